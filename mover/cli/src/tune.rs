//! `mover tune`: arguments and rendering; the work is `mover_job::tune`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use mover_job::tune::{self, TuneCell, TuneOptions, TuneReport};
use mover_model::Result;
use mover_model::units::{format_size, parse_duration, parse_size};

use crate::bench::{remarks, stoppable, stopped_code, tell_phase};
use crate::engine_args::EngineArgs;
use crate::output;

/// Arguments of `mover tune`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Only reads, unless --write-test is given. An engine flag that is given is not searched: \
                        `--workers 2` finds the best block size and depth for two workers."
)]
pub struct Args {
    /// A file or block device to read; with --write-test a folder to write in, or a file in it
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// Measure writes, into a file that is made for it in the folder and gone afterwards
    #[arg(long)]
    write_test: bool,

    /// Keep the best flags in this file, for --profile
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,

    /// How long the search takes, about
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "20s")]
    runtime: Duration,

    /// Bytes from the start of the path to read; size of the file to write [default: all; 512M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,

    #[command(flatten)]
    engine: EngineArgs,
}

/// Runs the verb; returns the process exit code.
pub fn run(args: Args, output: output::Options) -> u8 {
    let control = stoppable("tune", output);
    let search = || -> Result<TuneReport> {
        let options = TuneOptions {
            path: args.path,
            write_test: args.write_test,
            save: args.save,
            runtime: args.runtime,
            size: args.size,
            engine: args.engine.options()?,
        };
        tune::run(&options, &control, &|event| tell_phase(&event, output))
    };
    match search() {
        Ok(report) => {
            let printed =
                if output.json { output::document(&report) } else { output::text(&picture(&report)) };
            if report.interrupted { stopped_code("tune", output) } else { printed }
        }
        Err(error) => output::fail("tune", &error, output),
    }
}

fn picture(report: &TuneReport) -> String {
    let mut text = format!(
        "{}: {}, {}, {}s in order, GB/s (█ = the fastest)\n",
        report.path.path, report.path.access, report.backend, report.operation
    );
    let mut workers: Vec<_> = report.cells.iter().map(|cell| cell.workers).collect();
    workers.sort_unstable();
    workers.dedup();
    for workers in workers {
        let cells: Vec<_> = report.cells.iter().filter(|cell| cell.workers == workers).collect();
        map(&mut text, report, workers, &cells);
    }
    text.push('\n');
    line(
        &mut text,
        "fastest",
        report.cells.iter().max_by(|a, b| a.gb_per_second.total_cmp(&b.gb_per_second)),
    );
    line(&mut text, "best", Some(&report.best));
    line(&mut text, "defaults", report.default.as_ref());
    let _ = writeln!(
        text,
        "\nbest flags (least memory within 3 % of the best of the last rounds):\n  {}",
        report.flags
    );
    if let Some(saved) = &report.saved {
        let _ = writeln!(text, "saved: --profile {}", saved.display());
    }
    remarks(&mut text, &report.notes, &report.degraded);
    text
}

/// Block sizes downwards, depths to the right; `*` marks the best.
fn map(text: &mut String, report: &TuneReport, workers: usize, cells: &[&TuneCell]) {
    let sorted = |mut values: Vec<u32>| {
        values.sort_unstable();
        values.dedup();
        values
    };
    let depths = sorted(cells.iter().map(|cell| cell.queue_depth.into()).collect());
    let sizes = sorted(cells.iter().map(|cell| cell.block_size).collect());
    let top = report.cells.iter().map(|cell| cell.gb_per_second).fold(0.0, f64::max);
    let _ = write!(
        text,
        "\n{:>10}",
        if workers == 1 { "1 worker".to_owned() } else { format!("{workers} workers") }
    );
    for depth in &depths {
        let _ = write!(text, "{:>11}", format!("depth {depth}"));
    }
    text.push('\n');
    for size in sizes {
        let _ = write!(text, "{:>10}", format_size(size.into()));
        for &depth in &depths {
            let cell =
                cells.iter().find(|cell| cell.block_size == size && u32::from(cell.queue_depth) == depth);
            let Some(cell) = cell else {
                let _ = write!(text, "{:>11}", "·");
                continue;
            };
            let best = (cell.workers, cell.block_size, cell.queue_depth)
                == (report.best.workers, report.best.block_size, report.best.queue_depth);
            let mark = if best { '*' } else { ' ' };
            let _ = write!(text, "  {:>6.2}{mark}{}", cell.gb_per_second, shade(cell.gb_per_second, top));
        }
        text.push('\n');
    }
}

/// Two characters, darker for faster.
fn shade(value: f64, top: f64) -> &'static str {
    match if top > 0.0 { value / top } else { 0.0 } {
        share if share >= 0.97 => "██",
        share if share >= 0.85 => "▓▓",
        share if share >= 0.60 => "▒▒",
        share if share >= 0.30 => "░░",
        _ => "··",
    }
}

fn line(text: &mut String, name: &str, cell: Option<&TuneCell>) {
    let Some(cell) = cell else { return };
    let _ = writeln!(
        text,
        "{name:<9} {:>6.2} GB/s  {:>7} × depth {:<3} × workers {}  = {} of buffers",
        cell.gb_per_second,
        format_size(cell.block_size.into()),
        cell.queue_depth,
        cell.workers,
        format_size(cell.buffer_bytes)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_is_darkest() {
        assert_eq!(shade(2.0, 2.0), "██");
        assert_eq!(shade(1.0, 2.0), "░░");
        assert_eq!(shade(0.0, 0.0), "··");
    }
}
