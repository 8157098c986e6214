//! `mover copy`: its arguments, and what happens around `mover_job::copy`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::ValueEnum;
use mover_job::copy::{CopyOptions, Offload, Pair};
use mover_model::{Error, Locator, Result};

use crate::engine_args::{EngineArgs, OnReadError, SparseArg};
use crate::output;
use crate::roles::{Roles, standard};
use crate::run::{EventArgs, Run};

const VERB: &str = "copy";

/// Arguments of `mover copy`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "An endpoint is a file, a block device, `-` (stdin or stdout) or null:SIZE; ./x forces a \
                        path.\nNothing is overwritten unasked: see --force."
)]
pub struct Args {
    /// Source and target; several pairs run together under one memory ceiling
    #[arg(value_name = "SRC DST", required = true)]
    endpoints: Vec<OsString>,

    #[command(flatten)]
    what: What,

    #[command(flatten)]
    safety: Safety,

    #[command(flatten)]
    engine: EngineArgs,

    #[command(flatten)]
    events: EventArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "What is copied")]
struct What {
    /// Write only the extents that this list names (docs/formats/extents.md); one pair only
    #[arg(long, value_name = "FILE")]
    extents: Option<PathBuf>,

    /// Whether the kernel may share or copy blocks itself (reflink, copy_file_range)
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    offload: OffloadArg,

    /// Holes on the target: auto keeps holes and leaves out 64K of zeros or more, always from 4K on
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    sparse: SparseArg,

    /// Show the plan and write nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Safety")]
struct Safety {
    /// Read the target back past the page cache and compare digests
    #[arg(long)]
    verify: bool,

    /// Write the digest of every extent to this file
    #[arg(long, value_name = "FILE")]
    digest_out: Option<PathBuf>,

    /// Keep a ledger of finished extents in this file, so that a broken run can be resumed
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,

    /// Move only what the journal does not have
    #[arg(long, requires = "journal")]
    resume: bool,

    /// Overwrite a file that is not empty, or a device that carries something; never one in use
    #[arg(long)]
    force: bool,

    /// What an unreadable part of the source does: end the run, or be recorded and left out (exit 3)
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    on_read_error: OnReadError,

    /// Fail where something asked for or preferred is not to be had
    #[arg(long)]
    strict: bool,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum OffloadArg {
    #[default]
    Auto,
    Never,
    Always,
}

impl Args {
    /// What the job is told.
    ///
    /// # Errors
    /// `Usage`; those of reading a profile.
    fn options(&self) -> Result<CopyOptions> {
        let options = CopyOptions {
            pairs: self.pairs()?,
            extents: self.what.extents.clone(),
            engine: self.engine.options()?,
            offload: match self.what.offload {
                OffloadArg::Auto => Offload::Auto,
                OffloadArg::Never => Offload::Never,
                OffloadArg::Always => Offload::Always,
            },
            sparse: self.what.sparse.into(),
            verify: self.safety.verify,
            digest_out: self.safety.digest_out.clone(),
            journal: self.safety.journal.clone(),
            resume: self.safety.resume,
            force: self.safety.force,
            record_read_errors: self.safety.on_read_error == OnReadError::Record,
            strict: self.safety.strict,
            dry_run: self.what.dry_run,
        };
        if options.extents.is_some() && options.pairs.len() > 1 {
            return Err(Error::usage("--extents names the extents of one disk, and several are given")
                .hint("copy that pair in a run of its own"));
        }
        Ok(options)
    }

    fn pairs(&self) -> Result<Vec<Pair>> {
        if !self.endpoints.len().is_multiple_of(2) {
            let last =
                self.endpoints.last().map(|last| last.to_string_lossy().into_owned()).unwrap_or_default();
            return Err(Error::usage(format!(
                "{} endpoints are given, and every source needs a target: `{last}` has none",
                self.endpoints.len()
            ))
            .hint("write SRC DST, or SRC DST SRC DST for several"));
        }
        let mut pairs = Vec::with_capacity(self.endpoints.len() / 2);
        for pair in self.endpoints.chunks_exact(2) {
            pairs.push(Pair {
                source: standard(Locator::parse(&pair[0])?, 0),
                target: standard(Locator::parse(&pair[1])?, 1),
            });
        }
        let streams = |which: fn(&Pair) -> &Locator| {
            pairs.iter().filter(|pair| *which(pair) == Locator::Stream).count()
        };
        for (count, what) in
            [(streams(|pair| &pair.source), "source"), (streams(|pair| &pair.target), "target")]
        {
            if count > 1 {
                return Err(Error::usage(format!(
                    "`-` is the {what} of {count} pairs, and there is only one"
                ))
                .hint("run these pairs one after the other"));
            }
        }
        Ok(pairs)
    }

    fn roles(&self) -> Roles {
        let mut roles = Roles::default();
        roles.flag("--extents", self.what.extents.as_deref());
        roles.flag("--journal", self.safety.journal.as_deref());
        roles.flag("--digest-out", self.safety.digest_out.as_deref());
        for (what, endpoint) in ["a source", "a target"].into_iter().cycle().zip(&self.endpoints) {
            // What is no locator at all is told later, with its reason.
            if let Ok(locator) = Locator::parse(endpoint) {
                roles.endpoint(what, &locator);
            }
        }
        roles
    }

    fn run(&self, output: output::Options) -> Run {
        Run {
            verb: VERB,
            output,
            events: self.events.clone(),
            stdout_is_data: self.stdout_is_data(),
            resumable: self.safety.journal.is_some(),
            dry_run: self.what.dry_run,
        }
    }

    fn stdout_is_data(&self) -> bool {
        let mut targets = self.endpoints.iter().skip(1).step_by(2);
        targets.any(|target| {
            matches!(Locator::parse(target).map(|target| standard(target, 1)), Ok(Locator::Stream))
        })
    }
}

/// Runs the verb; returns the process exit code.
pub fn run(args: Args, output: output::Options) -> u8 {
    let run = args.run(output);
    // Before any output is opened: an output may be named like a disk.
    if let Err(error) = run.check_roles(args.roles()) {
        return run.reject_roles(&error);
    }
    match args.options() {
        Ok(options) => run.go(|control, emit| mover_job::copy::run(&options, control, emit)),
        Err(error) => run.reject(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::copy_args;
    use mover_job::copy::Sparse;
    use mover_model::ErrorKind;
    use std::os::unix::ffi::OsStringExt;
    use std::path::Path;

    fn shared_files(args: &[&str]) -> Result<()> {
        let (args, output) = copy_args(args).unwrap();
        args.run(output).check_roles(args.roles())
    }

    fn options(args: &[&str]) -> Result<CopyOptions> {
        copy_args(args).unwrap().0.options()
    }

    fn rejected(args: &[&str]) -> String {
        let error = shared_files(args).and_then(|()| options(args)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{args:?}");
        assert!(error.record().hint.is_some() || !error.message().is_empty());
        error.message().to_owned()
    }

    #[test]
    fn nothing_said_means_the_defaults() {
        let said = options(&["a", "b"]).unwrap();
        let pair = Pair { source: Locator::Path("a".into()), target: Locator::Path("b".into()) };
        let expected = CopyOptions { pairs: vec![pair], ..CopyOptions::default() };
        assert_eq!(format!("{said:?}"), format!("{expected:?}"));
    }

    #[test]
    fn every_flag_reaches_the_options() {
        let line = "null:1G - --extents e --offload always --sparse never --verify --digest-out d --journal j \
                    --resume --force --on-read-error record --strict --dry-run";
        let options = options(&line.split_whitespace().collect::<Vec<_>>()).unwrap();
        assert_eq!(options.pairs[0].source, Locator::Null { size: Some(1 << 30) });
        assert_eq!(options.pairs[0].target, Locator::Stream);
        assert_eq!((options.offload, options.sparse), (Offload::Always, Sparse::Never));
        assert_eq!(options.extents.as_deref(), Some(Path::new("e")));
        assert_eq!(options.digest_out.as_deref(), Some(Path::new("d")));
        assert_eq!(options.journal.as_deref(), Some(Path::new("j")));
        assert!(options.verify && options.resume && options.force && options.record_read_errors);
        assert!(options.strict && options.dry_run);
    }

    #[test]
    fn outputs_go_where_there_is_no_data() {
        let (args, output) = copy_args(&["-", "b", "a", "-", "--json", "--events", "fd:5"]).unwrap();
        let run = args.run(output);
        assert!(run.output.json && run.stdout_is_data);
        assert_eq!(run.events.events.unwrap(), "fd:5");
        let (args, output) = copy_args(&["-", "b", "--json"]).unwrap();
        assert!(!args.run(output).stdout_is_data);
    }

    #[test]
    fn endpoints_that_make_no_sense() {
        assert!(rejected(&["a"]).contains("`a` has none"));
        assert!(rejected(&["a", "b", "c"]).contains("3 endpoints"));
        assert!(rejected(&["a", "nbd://host"]).contains("nbd://"));
        assert!(rejected(&["-", "a", "-", "b"]).contains("source of 2 pairs"));
        assert!(rejected(&["a", "b", "c", "d", "--extents", "e"]).contains("--extents"));
        assert!(rejected(&["a", "b", "--queue-depth", "0"]).contains("--queue-depth"));
    }

    #[test]
    fn a_file_has_one_role() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (a, b) = (file("a"), file("b"));
        std::fs::write(&a, "x").unwrap();
        std::fs::hard_link(&a, file("link")).unwrap();
        assert!(rejected(&[&a, &b, "--events", &file("link")]).contains("is also a source"));
        assert!(
            rejected(&[&a, &b, "--journal", &format!("{}/./b", folder.path().display())])
                .contains("a target")
        );
        assert!(rejected(&[&a, &b, "--journal", &file("j"), "--result", &file("j")]).contains("--result"));
        for fine in [
            &[&a, &b, "--journal", &file("j"), "--result", &file("r")][..],
            &["/dev/null", "/dev/null", "--events", "/dev/null"],
        ] {
            assert!(shared_files(fine).is_ok(), "{fine:?}");
        }
    }

    #[test]
    fn names_need_not_be_utf8() {
        let odd = OsString::from_vec(b"disk-\xff.raw".to_vec());
        let line = ["mover".into(), "copy".into(), odd.clone(), "b".into()];
        let cli = <crate::Cli as clap::Parser>::try_parse_from(line).unwrap();
        let crate::Verb::Copy(with) = cli.verb else { unreachable!() };
        assert_eq!(with.args.options().unwrap().pairs[0].source, Locator::Path(PathBuf::from(odd)));
    }
}
