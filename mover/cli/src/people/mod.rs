//! What people see on stderr: progress, warnings, downgrades, and a summary at the end.

mod columns;
mod fields;
mod points;
mod progress;
mod summary;
mod table;

use std::io::{self, Write};

use mover_model::error::ErrorRecord;
use mover_model::event::{BadExtent, Degradation, Event, Plan, RunResult};
use mover_model::units::format_size;

use crate::output::{self, Options};
pub use columns::{columns, figures, words};
pub use fields::{Fields, short_time};
pub use points::prune_table;
use progress::ProgressView;
pub use table::plan_table;

/// Bad extents that are told one by one; the rest is counted.
const BAD_EXTENTS_SHOWN: u64 = 20;

/// Shows the events of one run. Lives in a thread of its own, so that a stuck terminal holds up nothing.
pub struct Screen {
    quiet: bool,
    dry_run: bool,
    progress: ProgressView,
    bad_extents: u64,
}

impl Screen {
    /// For people, or under `--json` for errors only.
    pub fn new(options: Options, dry_run: bool) -> Self {
        let quiet = options.json && options.progress != output::Progress::Always;
        let shown = !quiet && options.progress != output::Progress::Never && !dry_run;
        Screen { quiet, dry_run, progress: ProgressView::new(shown), bad_extents: 0 }
    }

    /// Shows an event; false when nobody can see it any more.
    pub fn show(&mut self, event: &Event) -> bool {
        let text = match event {
            Event::Result(result) => self.result(result),
            _ if self.quiet => return true,
            Event::Progress(progress) => self.progress.advance(progress),
            // The plan of a prune is a table on stdout.
            Event::Start { .. } | Event::Phase { .. } | Event::PrunePlan(_) => None,
            Event::Plan(plan) => (!self.dry_run).then(|| plan_line(plan)),
            // The usual choices stand in the plan's line already, or in the summary.
            Event::Choice { about, chosen, .. } if is_usual(about, chosen) => None,
            Event::Choice { about, chosen, reason, .. } => Some(format!("{about}: {chosen} ({reason})")),
            Event::Degraded(degradation) => Some(degradation_line(degradation)),
            Event::Warning { message } => Some(warning_line(message)),
            Event::BadExtent(extent) => self.bad_extent(extent),
        };
        text.is_none_or(|text| self.progress.around(|| say(&text)).is_ok())
    }

    /// The end; nothing follows.
    pub fn end(&mut self) -> bool {
        self.progress.clear();
        true
    }

    fn result(&mut self, result: &RunResult) -> Option<String> {
        self.progress.clear();
        let mut lines = Vec::new();
        for error in errors(result) {
            lines.push(error_lines(error));
        }
        if !self.quiet && self.dry_run && result.error.is_none() {
            // Of a gc or a prune the summary is the plan.
            if result.gc.is_some() || result.prune.is_some() {
                lines.extend(summary::summary(result));
            }
            lines.push("dry run: nothing was written".to_owned());
        } else if !self.quiet {
            lines.extend(summary::summary(result));
        }
        (!lines.is_empty()).then(|| lines.join("\n"))
    }

    fn bad_extent(&mut self, extent: &BadExtent) -> Option<String> {
        self.bad_extents += 1;
        (self.bad_extents <= BAD_EXTENTS_SHOWN).then(|| {
            let more =
                if self.bad_extents == BAD_EXTENTS_SHOWN { "; further ones are only counted" } else { "" };
            format!(
                "{} {}: {} at offset {} cannot be read: {}{more}",
                paint(YELLOW, "bad extent:"),
                extent.path,
                format_size(extent.length),
                extent.start,
                io::Error::from_raw_os_error(extent.errno),
            )
        })
    }
}

/// The run's error, and those of the pairs that say something else.
fn errors(result: &RunResult) -> Vec<&ErrorRecord> {
    let mut errors: Vec<&ErrorRecord> = result.error.iter().collect();
    for error in result.pairs.iter().filter_map(|pair| pair.error.as_ref()) {
        if !errors.contains(&error) {
            errors.push(error);
        }
    }
    errors
}

fn is_usual(about: &str, chosen: &str) -> bool {
    matches!((about, chosen), ("backend", "io_uring") | ("offload", "none") | ("space", _))
}

fn plan_line(plan: &Plan) -> String {
    let known = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), format_size);
    let data = plan.data_bytes.map_or_else(String::new, |bytes| format!(", {} of data", format_size(bytes)));
    let means = match plan.backend.as_str() {
        "reflink" | "copy_file_range" => plan.backend.clone(),
        backend => format!(
            "{backend}, blocks of {}, {} worker{} with {} of buffers, {} to {}",
            format_size(u64::from(plan.block_size)),
            plan.workers,
            if plan.workers == 1 { "" } else { "s" },
            format_size(plan.buffer_bytes),
            plan.source_access,
            plan.target_access
        ),
    };
    format!("{} -> {}, size {}{data}; {means}", plan.source, plan.target, known(plan.size))
}

fn degradation_line(degradation: &Degradation) -> String {
    let Degradation { wanted, used, reason, path, .. } = degradation;
    let path = path.as_deref().map(|path| format!("{path}: ")).unwrap_or_default();
    format!("{} {path}no {wanted}: {reason}; used instead: {used}", paint(YELLOW, "degraded:"))
}

/// `error: …` and, where there is a next step, `hint: …`.
fn error_lines(error: &ErrorRecord) -> String {
    let mut place = Vec::new();
    place.extend(error.operation.map(|operation| operation.to_string()));
    place.extend(error.path.clone());
    place.extend(error.offset.map(|offset| format!("at offset {offset}")));
    let place = if place.is_empty() { String::new() } else { format!("{}: ", place.join(" ")) };
    let mut text = format!("{} {place}{}", paint(RED, "error:"), error.message);
    if let Some(hint) = &error.hint {
        text.push_str(&format!("\n{} {hint}", paint(GREEN, "hint:")));
    }
    text
}

/// Prints an error of a verb that has no screen.
pub fn print_error(error: &ErrorRecord) {
    // There is nobody left to tell when this fails.
    let _ = say(&error_lines(error));
}

/// One write for all lines, so that they stay together.
fn say(text: &str) -> io::Result<()> {
    let mut line = printable(text);
    line.push('\n');
    io::stderr().write_all(line.as_bytes())
}

/// Marks for the beginning and end of a colour, until [`render`] has looked at names that hold escape codes. A name
/// that holds a mark gets a colour and nothing else.
const RED: char = '\u{e000}';
const YELLOW: char = '\u{e001}';
const GREEN: char = '\u{e002}';
const END: char = '\u{e003}';

fn paint(colour: char, text: &str) -> String {
    format!("{colour}{text}{END}")
}

/// The text with colours where stderr shows them, and with control characters, which a file's name may hold,
/// made visible.
fn printable(text: &str) -> String {
    let colours = output::stderr_is_a_screen() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    render(text, colours)
}

/// Shows an event of a verb that prints a document: what is worth knowing, and nothing of its course.
pub fn tell(event: &Event) {
    let text = match event {
        Event::Degraded(degradation) => degradation_line(degradation),
        Event::Warning { message } => warning_line(message),
        _ => return,
    };
    // There is nobody left to tell when this fails.
    let _ = say(&text);
}

fn warning_line(message: &str) -> String {
    format!("{} {message}", paint(YELLOW, "warning:"))
}

/// Text from outside as a part of a line.
fn one_line(text: &str) -> String {
    render(text, false).replace('\n', "\\n")
}

fn render(text: &str, colours: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let code = match c {
            RED => "\x1b[1;31m",
            YELLOW => "\x1b[1;33m",
            GREEN => "\x1b[1;32m",
            END => "\x1b[0m",
            _ => "",
        };
        match c {
            _ if !code.is_empty() => out.push_str(if colours { code } else { "" }),
            '\n' => out.push(c),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use mover_model::Error;

    #[test]
    fn colours_only_where_asked_and_no_escape_codes_from_names() {
        let text = format!("{} a\x1b[2Jb", paint(RED, "error:"));
        assert_eq!(render(&text, false), "error: a\\u{1b}[2Jb");
        assert_eq!(render(&text, true), "\x1b[1;31merror:\x1b[0m a\\u{1b}[2Jb");
    }

    #[test]
    fn an_error_reads_as_a_sentence_with_a_next_step() {
        let error = Error::os(mover_model::Operation::Read, "disk.raw", 5).offset(4096).hint("try again");
        let text = render(&error_lines(&error.record()), false);
        assert_eq!(
            text,
            "error: read disk.raw at offset 4096: Input/output error (os error 5)\nhint: try again"
        );
    }

    #[test]
    fn an_error_is_told_once() {
        let error = Error::refused("x", "is mounted").record();
        let other = Error::refused("y", "is mounted").record();
        let pair = |error: &ErrorRecord| mover_model::event::PairResult {
            error: Some(error.clone()),
            ..Default::default()
        };
        let result = RunResult {
            error: Some(error.clone()),
            pairs: vec![pair(&error), pair(&other)],
            ..RunResult::default()
        };
        assert_eq!(errors(&result), [&error, &other]);
    }
}
