//! `mover copy`: its arguments, and what happens around `mover_job::copy`.

use std::ffi::OsString;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use clap::ValueEnum;
use mover_engine::Control;
use mover_job::copy::{CopyOptions, Offload, Pair, Sparse};
use mover_model::event::{Event, Plan, RunResult, Status};
use mover_model::{Error, ErrorKind, Locator, Result};

use crate::engine_args::EngineArgs;
use crate::events::{self, Outputs, Reporter};
use crate::output;
use crate::people::{Screen, plan_table, print_error};
use crate::signals::{self, GiveUp};
use crate::usage;

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

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Output")]
struct EventArgs {
    /// Write event lines to an open descriptor, or append them to a file
    #[arg(long, value_name = "fd:N|FILE")]
    events: Option<OsString>,

    /// Write the result event to this file, whole or not at all
    #[arg(long, value_name = "FILE")]
    result: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum OffloadArg {
    #[default]
    Auto,
    Never,
    Always,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum SparseArg {
    #[default]
    Auto,
    Never,
    Always,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum OnReadError {
    #[default]
    Fail,
    Record,
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
            sparse: match self.what.sparse {
                SparseArg::Auto => Sparse::Auto,
                SparseArg::Never => Sparse::Never,
                SparseArg::Always => Sparse::Always,
            },
            verify: self.safety.verify,
            digest_out: self.safety.digest_out.clone(),
            journal: self.safety.journal.clone(),
            resume: self.safety.resume,
            force: self.safety.force,
            record_read_errors: matches!(self.safety.on_read_error, OnReadError::Record),
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

    /// No file has two roles: a ledger appended to the disk it tells of would destroy it.
    fn refuse_shared_files(&self) -> Result<()> {
        let mut files: Vec<(&str, &Path)> = Vec::new();
        let events = self.events.events.as_deref().map(events::path);
        let flags = [
            ("--extents", self.what.extents.as_deref()),
            ("--journal", self.safety.journal.as_deref()),
            ("--digest-out", self.safety.digest_out.as_deref()),
            ("--events", events.as_deref()),
            ("--result", self.events.result.as_deref()),
        ];
        files.extend(flags.into_iter().filter_map(|(flag, path)| Some((flag, path?))));
        let roles = ["a source", "a target"].into_iter().cycle();
        let endpoints = roles.zip(self.endpoints.iter().map(Path::new));
        // `-` and `null:` are no files.
        let endpoints: Vec<(&str, &Path)> = endpoints
            .filter(|(_, path)| matches!(Locator::parse(path.as_os_str()), Ok(Locator::Path(_))))
            .collect();
        for (index, (flag, path)) in files.iter().enumerate() {
            for (what, other) in files[index + 1..].iter().chain(&endpoints) {
                if same_file(path, other) {
                    return Err(Error::usage(format!("{flag} {} is also {what}", path.display()))
                        .hint(format!("name another file for {flag}")));
                }
            }
        }
        if self.stdout_is_data() {
            let others = files.iter().copied().chain([("standard error", Path::new("/proc/self/fd/2"))]);
            for (what, path) in others {
                if same_open_file(path, Path::new("/proc/self/fd/1")) {
                    return Err(Error::usage(format!(
                        "{what} goes to standard output, which carries the data"
                    ))
                    .hint("send it elsewhere: data and messages would mix"));
                }
            }
        }
        Ok(())
    }

    fn outputs(&self, output: output::Options) -> Outputs {
        Outputs {
            json: output.json,
            stdout_is_data: self.stdout_is_data(),
            events: self.events.events.clone(),
            result: self.events.result.clone(),
        }
    }

    fn stdout_is_data(&self) -> bool {
        let mut targets = self.endpoints.iter().skip(1).step_by(2);
        targets.any(|target| {
            matches!(Locator::parse(target).map(|target| standard(target, 1)), Ok(Locator::Stream))
        })
    }
}

/// Whether two names mean one file, which need not exist yet. Terminals, pipes and /dev/null may be shared.
pub fn same_file(one: &Path, other: &Path) -> bool {
    match (std::fs::metadata(one), std::fs::metadata(other)) {
        (Ok(facts), Ok(_)) => {
            let kind = facts.file_type();
            !kind.is_fifo() && !kind.is_socket() && same_open_file(one, other)
        }
        (Err(_), Err(_)) => {
            let place = |path: &Path| {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                let folder = folder.unwrap_or(Path::new(".")).canonicalize().ok()?;
                Some((folder, path.file_name()?.to_owned()))
            };
            place(one).is_some_and(|one| place(other) == Some(one))
        }
        _ => false,
    }
}

/// Whether two names that exist mean one file, pipe or socket; terminals and /dev/null do not count.
fn same_open_file(one: &Path, other: &Path) -> bool {
    let (Ok(one), Ok(other)) = (std::fs::metadata(one), std::fs::metadata(other)) else { return false };
    !one.file_type().is_char_device() && (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Runs the verb; returns the process exit code.
pub fn run(args: Args, output: output::Options) -> u8 {
    let outputs = args.outputs(output);
    // Before any output is opened: an output may be named like a disk.
    if let Err(error) = args.refuse_shared_files() {
        return reject(&error, Outputs { events: None, result: None, ..outputs });
    }
    let options = match args.options() {
        Ok(options) => options,
        Err(error) => return reject(&error, outputs),
    };
    let json_on_stderr = outputs.json && outputs.stdout_is_data;
    let control = Arc::new(Control::new());
    // Set once the outputs are open; a signal before that ends the process at once.
    let reporter: Arc<Mutex<Option<Arc<Reporter>>>> = Arc::default();
    watch_signals(&control, &reporter, options.journal.is_some());

    let screen = (!json_on_stderr).then(|| Screen::new(output, options.dry_run));
    let opened = match Reporter::open(outputs.clone(), screen) {
        Ok(opened) => Arc::new(opened),
        Err(error) => return reject(&error, outputs),
    };
    *reporter.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(Arc::clone(&opened));

    opened.emit(output::start(VERB));
    let plans = Mutex::new(Vec::<Plan>::new());
    let emit = |event: Event| {
        if let (true, Event::Plan(plan)) = (options.dry_run, &event) {
            plans.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(plan.clone());
        }
        opened.emit(event);
    };
    let ended = catch_unwind(AssertUnwindSafe(|| mover_job::copy::run(&options, &control, &emit)));
    let mut result = ended.unwrap_or_else(|panic| {
        let known = opened.known();
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message =
            message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a broken invariant");
        let error =
            Error::new(ErrorKind::Internal, message).hint("this is a defect of mover: please report it");
        RunResult { degraded: control.degraded(0), ..ended_early(known, &error) }
    });
    VERB.clone_into(&mut result.verb);
    hint_at_help(&mut result);

    let shown = options.dry_run && !output.json && result.error.is_none();
    if shown {
        let table = plan_table(&plans.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()));
        if args.stdout_is_data() {
            use std::io::Write;
            // A reader of stderr that has gone is no failure of the run.
            let _ = std::io::stderr().write_all(table.as_bytes());
        } else {
            output::text(&table);
        }
    }
    opened.finish(result).exit_code
}

/// Ends a run that has not begun, and tells why to every output that can be opened.
fn reject(error: &Error, outputs: Outputs) -> u8 {
    let mut result = output::failure(VERB, error);
    hint_at_help(&mut result);
    if let (Some(error), false) = (&result.error, outputs.json && outputs.stdout_is_data) {
        print_error(error);
    }
    usage::tell(outputs, result);
    error.exit_code()
}

/// No usage error without a next step.
fn hint_at_help(result: &mut RunResult) {
    if let Some(error) = result.error.as_mut().filter(|error| error.kind == ErrorKind::Usage) {
        error.hint.get_or_insert_with(|| "see mover copy --help".to_owned());
    }
}

fn ended_early(known: RunResult, error: &Error) -> RunResult {
    RunResult {
        status: Status::Failed,
        exit_code: error.exit_code(),
        verb: VERB.to_owned(),
        error: Some(error.record()),
        ..known
    }
}

fn watch_signals(control: &Arc<Control>, reporter: &Arc<Mutex<Option<Arc<Reporter>>>>, journal: bool) {
    let current = |reporter: &Mutex<Option<Arc<Reporter>>>| {
        reporter.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    };
    let stop = {
        let (control, reporter) = (Arc::clone(control), Arc::clone(reporter));
        move |signal: &'static str| {
            control.stop();
            match current(&reporter) {
                Some(reporter) => {
                    let message = format!("{signal}: stopping; a second signal ends the run at once");
                    reporter.emit(Event::Warning { message });
                }
                None => std::process::exit(ErrorKind::Stopped.exit_code().into()),
            }
        }
    };
    let give_up = {
        let (control, reporter) = (Arc::clone(control), Arc::clone(reporter));
        move |why: GiveUp| {
            let kind = if journal { ErrorKind::Interrupted } else { ErrorKind::Stopped };
            let Some(reporter) = current(&reporter) else { return kind.exit_code() };
            if let (Some(code), GiveUp::Signal(_)) = (reporter.ending(), why) {
                return code;
            }
            let error = match why {
                GiveUp::Signal(name) => Error::new(kind, format!("ended by a second signal, {name}")),
                GiveUp::Time => {
                    let grace = signals::GRACE.as_secs();
                    Error::new(kind, format!("ended by a signal; the run did not stop within {grace} s"))
                }
            };
            let error = if journal {
                error.hint("the same command with --resume goes on from the journal")
            } else {
                error
            };
            let result = RunResult { degraded: control.degraded(0), ..ended_early(reporter.known(), &error) };
            reporter.finish(result).exit_code
        }
    };
    signals::watch(stop, give_up);
}

/// Names of standard input and output that the system gives are `-`: a reader of events must not find them
/// among the bytes of a disk.
fn standard(locator: Locator, descriptor: u8) -> Locator {
    let names = match descriptor {
        0 => ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"],
        _ => ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"],
    };
    match &locator {
        Locator::Path(path) if names.iter().any(|name| path.as_os_str() == *name) => Locator::Stream,
        _ => locator,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::copy_args;
    use std::os::unix::ffi::OsStringExt;

    fn options(args: &[&str]) -> Result<CopyOptions> {
        copy_args(args).unwrap().0.options()
    }

    fn rejected(args: &[&str]) -> String {
        let shared = copy_args(args).unwrap().0.refuse_shared_files();
        let error = shared.and_then(|()| options(args)).unwrap_err();
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
        let outputs = args.outputs(output);
        assert!(outputs.json && outputs.stdout_is_data);
        assert_eq!(outputs.events.unwrap(), "fd:5");
        let (args, output) = copy_args(&["-", "b", "--json"]).unwrap();
        assert!(!args.outputs(output).stdout_is_data);
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
            assert!(copy_args(fine).unwrap().0.refuse_shared_files().is_ok(), "{fine:?}");
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
