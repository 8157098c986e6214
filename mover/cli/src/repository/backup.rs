//! `mover backup`: its arguments; the work is `mover_job::repository::backup`.

use std::ffi::OsString;
use std::path::PathBuf;

use mover_job::repository::backup::{BackupOptions, CommonRequest, DiskSpec};
use mover_model::{CommonArg, DiskArg, Error, Locator, Name, Result, disk_arg};

use super::RepoArgs;
use crate::engine_args::{EngineArgs, OnReadError};
use crate::output;
use crate::roles::{Roles, standard};
use crate::run::{EventArgs, Run};

/// Arguments of `mover backup`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A source is a file or a block device; ./x forces a path, `,,` is a comma in one.\nAll disks \
                        of a machine are one backup: all of them or nothing. See docs/repository.md."
)]
pub struct Args {
    /// The machine
    #[arg(value_name = "NAME", value_parser = super::name, required_unless_present = "spec")]
    vm: Option<Name>,

    #[command(flatten)]
    what: What,

    #[command(flatten)]
    changes: Changes,

    #[command(flatten)]
    record: Record,

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
#[command(next_help_heading = "What is backed up")]
struct What {
    /// A disk: its id and where it is read from; `,common` or `,common=ID` where several machines share it; repeatable
    #[arg(long = "disk", value_name = "ID=SOURCE[,common[=ID]]", required_unless_present = "spec")]
    disks: Vec<OsString>,

    /// Take all arguments from this JSON document, or from stdin (-); see docs/cli.md
    #[arg(long, value_name = "FILE|-")]
    spec: Option<PathBuf>,

    /// Show the plan and write nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "What changed")]
struct Changes {
    /// Read only what this list names (docs/formats/extents.md); ID may be left out for one disk; repeatable
    #[arg(long, value_name = "ID=FILE", requires = "since")]
    extents: Vec<OsString>,

    /// The restore point, or checkpoint of `show --json`, that the lists of changes count from
    #[arg(long, value_name = "NAME@POINT|TOKEN", requires = "extents")]
    since: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "What is recorded with it")]
struct Record {
    /// Name of this run: a second one of the same name returns the first one's restore point
    #[arg(long, value_name = "KEY")]
    run_key: Option<String>,

    /// Kept with the restore point; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = super::label)]
    labels: Vec<(String, String)>,

    /// The machine's UUID: restore points of another machine of the same name are refused
    #[arg(long, value_name = "UUID")]
    vm_uuid: Option<uuid::Uuid>,

    /// A document of the machine's configuration, kept with the restore point; repeatable
    #[arg(long = "document", value_name = "NAME=FILE")]
    documents: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Safety")]
struct Safety {
    /// What an unreadable part of a disk does: end the run, or be recorded and left out (exit 3)
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    on_read_error: OnReadError,

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
    fn options(&self) -> Result<BackupOptions> {
        let vm = self.vm.clone().ok_or_else(|| Error::usage("no machine is named"))?;
        let disks = self.disks()?;
        let mut options =
            BackupOptions::new(self.repository.options()?, vm, disks.iter().map(spec_of).collect());
        options.extents = super::extents(&self.changes.extents, &disks)?;
        options.since.clone_from(&self.changes.since);
        options.run_key.clone_from(&self.record.run_key);
        for (key, value) in &self.record.labels {
            if options.labels.insert(key.clone(), value.clone()).is_some() {
                return Err(
                    Error::usage(format!("--label {key}=… is given twice")).hint("give each key one value")
                );
            }
        }
        options.vm_uuid = self.record.vm_uuid.map(|uuid| uuid.to_string());
        for (name, file) in self.documents()? {
            if options.documents.iter().any(|(other, _)| *other == name.as_str()) {
                return Err(Error::usage(format!("--document {name}=… is given twice"))
                    .hint("give each document a name of its own"));
            }
            options.documents.push((name.to_string(), file));
        }
        options.engine = self.engine.options()?;
        options.record_read_errors = self.safety.on_read_error == OnReadError::Record;
        options.strict = self.safety.strict;
        options.dry_run = self.what.dry_run;
        Ok(options)
    }

    fn disks(&self) -> Result<Vec<DiskArg>> {
        let mut disks = super::disks(&self.what.disks)?;
        super::each_once(disks.iter().map(|disk| &disk.id))?;
        for disk in &mut disks {
            disk.locator = standard(disk.locator.clone(), 0);
        }
        if disks.iter().filter(|disk| disk.locator == Locator::Stream).count() > 1 {
            return Err(Error::usage(
                "`-` is the source of several disks, and there is only one standard input",
            )
            .hint("name files or devices"));
        }
        Ok(disks)
    }

    fn documents(&self) -> Result<Vec<(Name, PathBuf)>> {
        self.record.documents.iter().map(|text| disk_arg::document(text)).collect()
    }

    fn roles(&self) -> Roles {
        let mut roles = Roles::default();
        // What does not parse is told later, with its reason.
        let disks = self.disks().unwrap_or_default();
        for (_, file) in super::extents(&self.changes.extents, &disks).unwrap_or_default() {
            roles.flag("--extents", Some(&file));
        }
        disks.iter().for_each(|disk| roles.endpoint("a source", &disk.locator));
        roles
    }
}

fn spec_of(disk: &DiskArg) -> DiskSpec {
    let common = match &disk.common {
        CommonArg::No => CommonRequest::No,
        CommonArg::ByIdentity => CommonRequest::Auto,
        CommonArg::Id(id) => CommonRequest::Id(id.clone()),
    };
    DiskSpec { id: disk.id.clone(), locator: disk.locator.clone(), common }
}

/// Runs the verb; returns the process exit code.
pub fn run(args: Args, output: output::Options) -> u8 {
    let run = Run {
        verb: "backup",
        output,
        events: args.events.clone(),
        stdout_is_data: false,
        resumable: false,
        dry_run: args.what.dry_run,
    };
    // Before any output is opened: an output may be named like a disk.
    if let Err(error) = run.check_roles(args.roles()) {
        return run.reject_roles(&error);
    }
    match args.options() {
        Ok(options) => run.go(|control, emit| mover_job::repository::backup::run(&options, control, emit)),
        Err(error) => run.reject(&error),
    }
}
