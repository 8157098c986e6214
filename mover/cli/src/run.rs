//! What happens around every job that reports by events: outputs, signals, a panic that becomes a result, hints.

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use mover_engine::Control;
use mover_job::Emit;
use mover_model::event::{Event, Plan, RunResult, Status};
use mover_model::{Error, ErrorKind, Result};

use crate::events::{self, Outputs, Reporter};
use crate::output;
use crate::people::{Screen, plan_table, print_error, prune_table};
use crate::roles::Roles;
use crate::signals::{self, GiveUp};
use crate::usage;

/// Where a run tells of itself beside the terminal.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Output")]
pub struct EventArgs {
    /// Write event lines to an open descriptor, or append them to a file
    #[arg(long, value_name = "fd:N|FILE")]
    pub events: Option<OsString>,

    /// Write the result event to this file, whole or not at all
    #[arg(long, value_name = "FILE")]
    pub result: Option<PathBuf>,
}

/// A verb whose job reports by events, as it is seen from outside.
pub struct Run {
    /// The verb.
    pub verb: &'static str,
    /// `--json` and `--progress`.
    pub output: output::Options,
    /// `--events` and `--result`.
    pub events: EventArgs,
    /// A target is `-`.
    pub stdout_is_data: bool,
    /// A run that was stopped can be taken up again with `--resume`: exit 7.
    pub resumable: bool,
    /// Only the plan is shown.
    pub dry_run: bool,
}

type Current = Mutex<Option<Arc<Reporter>>>;

impl Run {
    /// Adds the files of `--events` and `--result`, and refuses any file that has two roles.
    ///
    /// # Errors
    /// `Usage`.
    pub fn check_roles(&self, mut roles: Roles) -> Result<()> {
        let events = self.events.events.as_deref().map(events::path);
        roles.flag("--events", events.as_deref());
        roles.flag("--result", self.events.result.as_deref());
        roles.check(self.stdout_is_data)
    }

    /// Runs a job to its end; returns the process exit code. What people see of the result beside the usual lines
    /// is printed by the screen ([`Screen`]).
    pub fn go(&self, job: impl FnOnce(&Control, Emit<'_>) -> RunResult) -> u8 {
        let outputs = self.outputs();
        let json_on_stderr = outputs.json && outputs.stdout_is_data;
        let control = Arc::new(Control::new());
        // Set once the outputs are open; a signal before that ends the process at once.
        let reporter: Arc<Current> = Arc::default();
        self.watch_signals(&control, &reporter);

        let screen = (!json_on_stderr).then(|| Screen::new(self.output, self.dry_run));
        let opened = match Reporter::open(outputs, screen) {
            Ok(opened) => Arc::new(opened),
            Err(error) => return self.reject(&error),
        };
        *reporter.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&opened));

        opened.emit(output::start(self.verb));
        let plans = Mutex::new(Vec::<Plan>::new());
        let emit = |event: Event| {
            match &event {
                Event::Plan(plan) if self.dry_run => {
                    plans.lock().unwrap_or_else(PoisonError::into_inner).push(plan.clone());
                }
                // Before anything is deleted, and not by the screen's thread: who does not read it holds the deletion up.
                Event::PrunePlan(plan) if !self.output.json => {
                    output::text(&prune_table(plan));
                }
                _ => {}
            }
            opened.emit(event);
        };
        let ended = catch_unwind(AssertUnwindSafe(|| job(&control, &emit)));
        let mut result = ended.unwrap_or_else(|panic| {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message =
                message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a broken invariant");
            let error =
                Error::new(ErrorKind::Internal, message).hint("this is a defect of mover: please report it");
            RunResult { degraded: control.degraded(0), ..self.ended_early(opened.known(), &error) }
        });
        self.verb.clone_into(&mut result.verb);
        self.hint_at_help(&mut result);

        let plans = plans.into_inner().unwrap_or_else(PoisonError::into_inner);
        if self.dry_run && !self.output.json && result.error.is_none() && !plans.is_empty() {
            let table = plan_table(&plans);
            if self.stdout_is_data {
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
    pub fn reject(&self, error: &Error) -> u8 {
        self.reject_to(error, self.outputs())
    }

    /// Likewise, where the outputs of the command line may be what is wrong: nothing but the standard streams is
    /// opened, since an output may be named like a disk.
    pub fn reject_roles(&self, error: &Error) -> u8 {
        self.reject_to(error, Outputs { events: None, result: None, ..self.outputs() })
    }

    fn reject_to(&self, error: &Error, outputs: Outputs) -> u8 {
        let mut result = output::failure(self.verb, error);
        self.hint_at_help(&mut result);
        if let (Some(error), false) = (&result.error, outputs.json && outputs.stdout_is_data) {
            print_error(error);
        }
        usage::tell(outputs, result);
        error.exit_code()
    }

    fn outputs(&self) -> Outputs {
        Outputs {
            json: self.output.json,
            stdout_is_data: self.stdout_is_data,
            events: self.events.events.clone(),
            result: self.events.result.clone(),
        }
    }

    /// No usage error without a next step.
    fn hint_at_help(&self, result: &mut RunResult) {
        if let Some(error) = result.error.as_mut().filter(|error| error.kind == ErrorKind::Usage) {
            error.hint.get_or_insert_with(|| output::see_help(self.verb));
        }
    }

    fn ended_early(&self, known: RunResult, error: &Error) -> RunResult {
        RunResult {
            status: Status::Failed,
            exit_code: error.exit_code(),
            verb: self.verb.to_owned(),
            error: Some(error.record()),
            ..known
        }
    }

    fn watch_signals(&self, control: &Arc<Control>, reporter: &Arc<Current>) {
        let current = |reporter: &Current| reporter.lock().unwrap_or_else(PoisonError::into_inner).clone();
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
            let (verb, resumable) = (self.verb, self.resumable);
            move |why: GiveUp| {
                let kind = if resumable { ErrorKind::Interrupted } else { ErrorKind::Stopped };
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
                let error = if resumable {
                    error.hint("the same command with --resume goes on from there")
                } else {
                    error
                };
                let result = RunResult {
                    status: Status::Failed,
                    exit_code: error.exit_code(),
                    verb: verb.to_owned(),
                    error: Some(error.record()),
                    degraded: control.degraded(0),
                    ..reporter.known()
                };
                reporter.finish(result).exit_code
            }
        };
        signals::watch(stop, give_up);
    }
}
