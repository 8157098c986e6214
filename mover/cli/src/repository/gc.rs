//! `mover gc`: its arguments; the work is `mover_job::repository::gc`.

use std::time::Duration;

use mover_job::repository::gc::GcOptions;
use mover_model::Result;

use super::RepoArgs;
use crate::output;
use crate::roles::Roles;
use crate::run::{EventArgs, Run};

/// Arguments of `mover gc`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Safe beside running backups, restores and verifies. What cannot be deleted yet, because an older \
                        run may still need it, is left to the next gc: exit code 0, and the summary says so."
)]
pub struct Args {
    /// How long to wait for runs that began before [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = super::duration)]
    wait: Option<Duration>,

    /// Rewrite packs of which less than this is still needed; 0 rewrites none [default: 70]
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    repack_below: Option<f64>,

    /// Show what would be given back and change nothing
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    repository: RepoArgs,

    #[command(flatten)]
    events: EventArgs,
}

/// A share from 0 to 1.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<f64>().ok();
    let share = number.filter(|percent| (0.0..=100.0).contains(percent)).map(|percent| percent / 100.0);
    share.ok_or_else(|| "write a number of percent from 0 to 100".to_owned())
}

impl Args {
    fn options(&self) -> Result<GcOptions> {
        let defaults = GcOptions::default();
        Ok(GcOptions {
            repository: self.repository.options()?,
            wait: self.wait.unwrap_or(defaults.wait),
            repack_below: self.repack_below.unwrap_or(defaults.repack_below),
            dry_run: self.dry_run,
        })
    }
}

/// Runs the verb; returns the process exit code.
pub fn run(args: Args, output: output::Options) -> u8 {
    let run = Run {
        verb: "gc",
        output,
        events: args.events.clone(),
        stdout_is_data: false,
        resumable: false,
        dry_run: args.dry_run,
    };
    if let Err(error) = run.check_roles(Roles::default()) {
        return run.reject_roles(&error);
    }
    match args.options() {
        Ok(options) => run.go(|control, emit| mover_job::repository::gc::run(&options, control, emit)),
        Err(error) => run.reject(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        assert_eq!(percent("70"), Ok(0.7));
        assert_eq!(percent("0"), Ok(0.0));
        assert_eq!(percent("100%"), Ok(1.0));
        for bad in ["", "-1", "101", "x", "nan", "%"] {
            assert!(percent(bad).is_err(), "{bad}");
        }
    }
}
