//! `mover bench`: arguments and rendering; the work is `mover_job::bench`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mover_engine::Control;
use mover_job::bench::{self, BenchOptions, BenchReport, Figures};
use mover_model::event::{Degradation, Event, Latency};
use mover_model::units::{format_size, parse_duration, parse_size};
use mover_model::{Error, ErrorKind, Result};

use crate::engine_args::EngineArgs;
use crate::output::{self, Progress};
use crate::signals;

/// Arguments of `mover bench`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without flags: random reads of 4K, depth 32, one worker for each path, 5 s. Several paths \
                        are measured at the same time.\nReads never write. --write makes a file of its own and \
                        refuses (exit 5) a path that exists and is no folder."
)]
pub struct Args {
    /// Files and block devices to read; with --write, folders or files that do not exist
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    /// Measure reads (the default)
    #[arg(long, conflicts_with = "write")]
    read: bool,

    /// Measure writes, into a file that is made for it and gone afterwards
    #[arg(long)]
    write: bool,

    /// At random offsets (the default)
    #[arg(long, conflicts_with = "sequential")]
    random: bool,

    /// In order
    #[arg(long)]
    sequential: bool,

    /// Measure 1, 2, 4 … workers, up to --workers or the number of CPUs
    #[arg(long)]
    curve: bool,

    /// How long each point is measured
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "5s")]
    runtime: Duration,

    /// Bytes from the start of each path to read; size of the file to write [default: all; 1G]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,

    /// Start of the random order: the same seed asks for the same blocks [default: another each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    #[command(flatten)]
    engine: EngineArgs,
}

/// Runs the verb; returns the process exit code.
pub fn run(args: Args, output: output::Options) -> u8 {
    let control = stoppable("bench", output);
    match measure(args, output, &control) {
        Ok(report) => {
            let printed = if output.json { output::document(&report) } else { output::text(&table(&report)) };
            if report.interrupted { stopped_code("bench", output) } else { printed }
        }
        Err(error) => output::fail("bench", &error, output),
    }
}

fn measure(args: Args, output: output::Options, control: &Control) -> Result<BenchReport> {
    let options = BenchOptions {
        write: args.write,
        sequential: args.sequential,
        curve: args.curve,
        runtime: args.runtime,
        size: args.size,
        seed: args.seed.unwrap_or_else(bench::seed_of_now),
        engine: args.engine.options()?,
        paths: args.paths,
    };
    bench::run(&options, control, &|event| tell_phase(&event, output))
}

/// A control that the first SIGINT or SIGTERM stops; the second ends the process.
pub fn stoppable(verb: &'static str, output: output::Options) -> Arc<Control> {
    let control = Arc::new(Control::new());
    let stop = control.clone();
    let give_up = move |_| output::fail(verb, &Error::new(ErrorKind::Stopped, "ended by a signal"), output);
    signals::watch(move |_| stop.stop(), give_up);
    control
}

/// Says that figures are those of a run that was cut short; returns the exit code.
pub fn stopped_code(verb: &str, output: output::Options) -> u8 {
    let error = Error::new(ErrorKind::Stopped, "stopped by a signal: the figures are of the time until then");
    // The document is out already: nothing more goes to stdout.
    output::fail(verb, &error, output::Options { json: false, ..output })
}

/// Says on stderr what is being done, where a person looks.
pub fn tell_phase(event: &Event, output: output::Options) {
    let wanted = match output.progress {
        Progress::Always => true,
        Progress::Auto => !output.json && output::stderr_is_a_screen(),
        Progress::Never => false,
    };
    if let (true, Event::Phase { phase }) = (wanted, event) {
        let _ = writeln!(std::io::stderr(), "{phase} …");
    }
}

fn table(report: &BenchReport) -> String {
    let mut text = format!(
        "{} {} of {}, depth {} for each worker{}, {}\n\n",
        report.order,
        report.operation,
        format_size(u64::from(report.block_size)),
        report.queue_depth,
        if report.paths.len() > 1 { " and path" } else { "" },
        report.backend,
    );
    let width = report.paths.iter().map(|path| path.path.chars().count()).max().unwrap_or(0).max(5);
    let _ = writeln!(
        text,
        "{:>7}  {:width$}  {:>9}  {:>7}  {:>9}  {:>9}  {:>9}  {:>8}",
        "workers", "path", "IOPS", "GB/s", "p50", "p99", "p99.9", "CPU s/GB"
    );
    for point in &report.points {
        for (path, figures) in report.paths.iter().zip(&point.paths) {
            row(&mut text, point.workers, &path.path, width, figures);
        }
        if report.paths.len() > 1 {
            row(&mut text, point.workers, "total", width, &point.total);
        }
    }
    text.push('\n');
    for path in &report.paths {
        let mut facts = vec![path.kind.to_owned(), path.access.to_owned()];
        facts.extend(path.filesystem.clone());
        facts.extend(path.device.as_ref().map(|device| format!("on {device}")));
        facts.extend(path.numa_node.map(|node| format!("NUMA node {node}")));
        let measured = format_size(path.measured_bytes);
        let _ = writeln!(text, "{}: {}, {measured} measured", path.path, facts.join(", "));
    }
    if report.paths.len() > 1 {
        text.push_str("total: latency is that of the slowest path; CPU is the whole process\n");
    }
    remarks(&mut text, &report.notes, &report.degraded);
    text
}

fn row(text: &mut String, workers: usize, path: &str, width: usize, figures: &Figures) {
    let latency = figures.latency.unwrap_or_default();
    let Latency { p50_us, p99_us, p999_us, .. } = latency;
    let _ = writeln!(
        text,
        "{workers:>7}  {path:width$}  {:>9.0}  {:>7.3}  {:>9}  {:>9}  {:>9}  {:>8.3}",
        figures.iops,
        figures.gb_per_second,
        microseconds(p50_us),
        microseconds(p99_us),
        microseconds(p999_us),
        figures.cpu_seconds_per_gb
    );
}

/// Notes and downgrades below a table.
pub fn remarks(text: &mut String, notes: &[String], degraded: &[Degradation]) {
    for note in notes {
        let _ = writeln!(text, "note: {note}");
    }
    for d in degraded {
        let _ = writeln!(text, "note: {} instead of {}: {}", d.used, d.wanted, d.reason);
    }
}

fn microseconds(us: u64) -> String {
    match us {
        0..10_000 => format!("{us} µs"),
        10_000..10_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_three_digits_or_so() {
        assert_eq!(microseconds(378), "378 µs");
        assert_eq!(microseconds(12_345), "12.3 ms");
        assert_eq!(microseconds(12_345_678), "12.3 s");
    }
}
