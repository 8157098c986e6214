//! What all verbs share about output: `--json`, `--progress`, documents on stdout, and how a verb fails.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use mover_model::event::{Event, RunResult, Status};
use mover_model::{Error, Operation};
use serde::Serialize;

use crate::events::{Outputs, Reporter};
use crate::people;

/// Flags of every verb.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
#[command(next_help_heading = "Output")]
pub struct Options {
    /// Print JSON for programs on stdout: event lines or a document; on stderr where stdout carries data
    #[arg(long)]
    pub json: bool,

    /// Show progress on stderr, a bar or a line every 10 s: auto without --json, always with it too
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub progress: Progress,
}

/// When progress is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    #[default]
    Auto,
    Always,
    Never,
}

/// Prints text for people on stdout; returns the exit code.
pub fn text(text: &str) -> u8 {
    bytes(text.as_bytes())
}

/// Prints one JSON document on stdout, with a newline; returns the exit code.
pub fn document(document: &impl Serialize) -> u8 {
    let mut line = serde_json::to_vec(document).expect("a document of plain values");
    line.push(b'\n');
    bytes(&line)
}

/// Writes bytes to stdout; a reader that has gone is no failure. Returns the exit code.
pub fn bytes(bytes: &[u8]) -> u8 {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let error = Error::io(Operation::Write, "standard output", &error);
            people::print_error(&error.record());
            error.exit_code()
        }
        _ => 0,
    }
}

/// How a verb that prints a document fails: a line and a hint on stderr and, under `--json`, a `result` event
/// on stdout. Returns the exit code.
pub fn fail(verb: &str, error: &Error, options: Options) -> u8 {
    people::print_error(&error.record());
    if options.json {
        let outputs = Outputs { json: true, ..Outputs::default() };
        if let Ok(reporter) = Reporter::open(outputs, None) {
            reporter.finish(failure(verb, error));
        }
    }
    error.exit_code()
}

/// The `result` of a run that failed before it did anything.
pub fn failure(verb: &str, error: &Error) -> RunResult {
    RunResult {
        status: Status::Failed,
        exit_code: error.exit_code(),
        verb: verb.to_owned(),
        error: Some(error.record()),
        ..RunResult::default()
    }
}

/// The next step where nothing better is known.
pub fn see_help(verb: &str) -> String {
    format!("see mover {verb} --help")
}

/// Whether stderr is a terminal that can move its cursor.
pub fn stderr_is_a_screen() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The first event of a run.
pub fn start(verb: &str) -> Event {
    Event::Start { verb: verb.to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
}
