//! `mover verify`: its arguments; the work is `mover_job::repository::verify`.

use mover_job::repository::verify::{Sample, VerifyOptions};
use mover_model::{PointArg, Result};

use super::RepoArgs;
use crate::engine_args::EngineArgs;
use crate::output;
use crate::roles::Roles;
use crate::run::{EventArgs, Run};

/// Arguments of `mover verify`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Every chunk is read once, however many restore points have it. What is damaged is put on \
                        record, so that later backups store it again. Exit code 6 where damage was found."
)]
pub struct Args {
    /// Only this machine's restore points, or only this one [default: all]
    #[arg(value_name = "NAME[@POINT]", value_parser = super::point)]
    point: Option<PointArg>,

    /// Only restore points that began at or after this time, or in this last time (90m, 12h, 7d)
    #[arg(long, value_name = "TIME|DURATION", value_parser = since)]
    since: Option<i128>,

    /// Read only a random choice of the chunks: a share or a number
    #[arg(long, value_name = "5%|N", value_parser = sample)]
    sample: Option<Sample>,

    /// Fail where something asked for or preferred is not to be had
    #[arg(long)]
    strict: bool,

    #[command(flatten)]
    repository: RepoArgs,

    #[command(flatten)]
    engine: EngineArgs,

    #[command(flatten)]
    events: EventArgs,
}

fn sample(text: &str) -> Result<Sample, String> {
    text.parse().map_err(|error| super::sentence(&error))
}

fn since(text: &str) -> Result<i128, String> {
    since_at(text, jiff::Timestamp::now().as_nanosecond())
}

fn since_at(text: &str, now: i128) -> Result<i128, String> {
    match super::duration(text) {
        Ok(duration) => Ok(now - duration.as_nanos() as i128),
        Err(_) if text.contains(':') => {
            mover_model::disk_arg::time(text).map_err(|error| super::sentence(&error))
        }
        Err(_) => {
            Err("write a time such as 2026-11-20T03:00:00Z, or a duration such as 12h or 7d".to_owned())
        }
    }
}

impl Args {
    fn options(&self) -> Result<VerifyOptions> {
        Ok(VerifyOptions {
            repository: self.repository.options()?,
            vm: self.point.as_ref().map(|point| point.vm.clone()),
            point: self.point.as_ref().and_then(|point| point.point.clone()),
            since: self.since,
            sample: self.sample,
            engine: self.engine.options()?,
            strict: self.strict,
        })
    }
}

/// Runs the verb; returns the process exit code.
pub fn run(args: Args, output: output::Options) -> u8 {
    let run = Run {
        verb: "verify",
        output,
        events: args.events.clone(),
        stdout_is_data: false,
        resumable: false,
        dry_run: false,
    };
    if let Err(error) = run.check_roles(Roles::default()) {
        return run.reject_roles(&error);
    }
    match args.options() {
        Ok(options) => run.go(|control, emit| mover_job::repository::verify::run(&options, control, emit)),
        Err(error) => run.reject(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_time_or_how_long_ago() {
        let second = 1_000_000_000;
        assert_eq!(since_at("1970-01-01T00:00:01Z", 5), Ok(second));
        assert_eq!(since_at("90m", 6000 * second), Ok(600 * second));
        assert_eq!(since_at("7d", 0), Ok(-7 * 86400 * second));
        for bad in ["", "yesterday", "2026-11-20", "-1h", "7y"] {
            assert!(since_at(bad, 0).is_err(), "{bad}");
        }
    }
}
