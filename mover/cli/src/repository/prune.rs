//! `mover prune`: its arguments; the work is `mover_job::repository::prune`.

use mover_job::repository::prune::PruneOptions;
use mover_model::{Error, Name, Result};

use super::RepoArgs;
use crate::output;
use crate::roles::Roles;
use crate::run::{EventArgs, Run};

/// Arguments of `mover prune`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A restore point stays where any rule keeps it; times are UTC. The space comes back with `mover \
                        gc`. The last restore point of a machine that is not damaged is never deleted."
)]
pub struct Args {
    /// Only this machine's restore points [default: those of all, each by the same rules]
    #[arg(value_name = "NAME", value_parser = super::name)]
    vm: Option<Name>,

    #[command(flatten)]
    keep: Keep,

    /// Show the plan and delete nothing
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    repository: RepoArgs,

    #[command(flatten)]
    events: EventArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "What stays")]
struct Keep {
    /// The newest N
    #[arg(long, value_name = "N")]
    keep_last: Option<u32>,

    /// The newest of each of the last N days that have one
    #[arg(long, value_name = "N")]
    keep_daily: Option<u32>,

    /// The newest of each of the last N weeks that have one
    #[arg(long, value_name = "N")]
    keep_weekly: Option<u32>,

    /// The newest of each of the last N months that have one
    #[arg(long, value_name = "N")]
    keep_monthly: Option<u32>,

    /// The newest of each of the last N years that have one
    #[arg(long, value_name = "N")]
    keep_yearly: Option<u32>,
}

impl Args {
    fn options(&self) -> Result<PruneOptions> {
        let Keep { keep_last, keep_daily, keep_weekly, keep_monthly, keep_yearly } = self.keep;
        let rules = [keep_last, keep_daily, keep_weekly, keep_monthly, keep_yearly];
        if rules.iter().flatten().all(|&count| count == 0) {
            return Err(Error::usage("no rule says what stays").hint(
                "say --keep-last N, or --keep-daily, --keep-weekly, --keep-monthly, --keep-yearly; \
                       --dry-run shows what would happen",
            ));
        }
        Ok(PruneOptions {
            repository: self.repository.options()?,
            vm: self.vm.clone(),
            keep_last,
            keep_daily,
            keep_weekly,
            keep_monthly,
            keep_yearly,
            dry_run: self.dry_run,
        })
    }
}

/// Runs the verb; returns the process exit code.
pub fn run(args: Args, output: output::Options) -> u8 {
    let run = Run {
        verb: "prune",
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
        Ok(options) => run.go(|control, emit| mover_job::repository::prune::run(&options, control, emit)),
        Err(error) => run.reject(&error),
    }
}
