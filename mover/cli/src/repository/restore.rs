//! `mover restore`: its arguments; the work is `mover_job::repository::restore`.

use std::ffi::OsString;
use std::path::PathBuf;

use mover_job::repository::restore::RestoreOptions;
use mover_model::{Error, Locator, PointArg, Result, TargetArg};

use super::RepoArgs;
use crate::engine_args::{EngineArgs, SparseArg};
use crate::output;
use crate::roles::{Roles, standard};
use crate::run::{EventArgs, Run};

/// Arguments of `mover restore`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "POINT is an id, `latest` or a time such as 2026-11-20T03:00:00Z; without one it is the latest.\n\
                        Nothing is overwritten unasked: see --force and --delta. ID=- writes to stdout."
)]
pub struct Args {
    /// The machine, and which of its restore points
    #[arg(value_name = "NAME[@POINT]", value_parser = super::point, required_unless_present = "spec")]
    point: Option<PointArg>,

    #[command(flatten)]
    what: What,

    #[command(flatten)]
    safety: Safety,

    #[command(flatten)]
    repository: RepoArgs,

    #[command(flatten)]
    engine: EngineArgs,

    #[command(flatten)]
    events: EventArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "What is restored, and where to")]
#[group(id = "targets", multiple = true)]
struct What {
    /// A disk's id, and the file, block device or stdout (-) it goes to; repeatable
    #[arg(long = "disk", value_name = "ID=TARGET")]
    disks: Vec<OsString>,

    /// Restore all disks to DIR/ID.raw, but for those that --disk names, and the machine's documents beside them
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,

    /// Take all arguments from this JSON document, or from stdin (-); see docs/cli.md
    #[arg(long, value_name = "FILE|-")]
    spec: Option<PathBuf>,

    /// Show the plan and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Holes on the target: auto keeps holes and leaves out 64K of zeros or more, always from 4K on
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    sparse: SparseArg,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Safety")]
struct Safety {
    /// Overwrite a file that is not empty, or a device that carries something; never one in use
    #[arg(long, conflicts_with = "delta")]
    force: bool,

    /// Bring what is there to the restore point's state, and write only what differs
    #[arg(long)]
    delta: bool,

    /// Go on with a run of the same command that was stopped
    #[arg(long)]
    resume: bool,

    /// Leave disks that other machines have in common as they are
    #[arg(long)]
    keep_common: bool,

    /// Fail where something asked for or preferred is not to be had
    #[arg(long)]
    strict: bool,
}

impl Args {
    /// The document of `--spec`.
    pub fn spec(&self) -> Option<&PathBuf> {
        self.what.spec.as_ref()
    }

    /// What the job is told.
    fn options(&self) -> Result<RestoreOptions> {
        let point = self.point.clone().ok_or_else(|| Error::usage("no machine is named"))?;
        let disks = self.disks()?;
        if disks.is_empty() && self.what.into.is_none() {
            return Err(Error::usage("nothing says where the disks go")
                .hint("say --into DIR for all disks, or --disk ID=TARGET for single ones; mover show tells their ids"));
        }
        let repository = self.repository.options()?;
        let (vm, point) = point.or_latest();
        Ok(RestoreOptions {
            repository,
            vm,
            point,
            disks: disks.into_iter().map(|disk| (disk.id, disk.locator)).collect(),
            into: self.what.into.clone(),
            force: self.safety.force,
            delta: self.safety.delta,
            resume: self.safety.resume,
            keep_common: self.safety.keep_common,
            engine: self.engine.options()?,
            sparse: self.what.sparse.into(),
            strict: self.safety.strict,
            dry_run: self.what.dry_run,
        })
    }

    fn disks(&self) -> Result<Vec<TargetArg>> {
        let mut disks = super::targets(&self.what.disks)?;
        super::each_once(disks.iter().map(|disk| &disk.id))?;
        for disk in &mut disks {
            disk.locator = standard(disk.locator.clone(), 1);
        }
        if disks.iter().filter(|disk| disk.locator == Locator::Stream).count() > 1 {
            return Err(Error::usage(
                "`-` is the target of several disks, and there is only one standard output",
            )
            .hint("restore the disks one after the other"));
        }
        Ok(disks)
    }

    fn roles(&self) -> Roles {
        let mut roles = Roles::default();
        // What does not parse is told later, with its reason.
        let disks = self.disks().unwrap_or_default();
        disks.iter().for_each(|disk| roles.endpoint("a target", &disk.locator));
        roles
    }

    fn stdout_is_data(&self) -> bool {
        // One that is wrong does not hide the others: messages must not mix with data.
        self.what
            .disks
            .iter()
            .any(|text| TargetArg::parse(text).is_ok_and(|disk| standard(disk.locator, 1) == Locator::Stream))
    }
}

/// Runs the verb; returns the process exit code.
pub fn run(args: Args, output: output::Options) -> u8 {
    let stdout_is_data = args.stdout_is_data();
    let run = Run {
        verb: "restore",
        output,
        events: args.events.clone(),
        stdout_is_data,
        resumable: !stdout_is_data,
        dry_run: args.what.dry_run,
    };
    // Before any output is opened: an output may be named like a disk.
    if let Err(error) = run.check_roles(args.roles()) {
        return run.reject_roles(&error);
    }
    match args.options() {
        Ok(options) => run.go(|control, emit| mover_job::repository::restore::run(&options, control, emit)),
        Err(error) => run.reject(&error),
    }
}
