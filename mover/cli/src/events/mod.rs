//! The events of a run: one JSON object a line, to every reader that was asked for, and to the screen.
//!
//! Nothing here makes the run wait for a reader, but for [`PATIENCE`] in total: each reader has its own queue
//! and thread ([`outlet`]). `seq` and `time` are given under one lock, so lines are in order everywhere.

mod outlet;
mod place;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use mover_model::event::{EVENT_VERSION, Envelope, Event, RunResult, Status};
use mover_model::{Error, ErrorKind, Operation, Result};

pub use outlet::Outlet;
pub use place::path;

use crate::people::Screen;

/// How long one reader may hold up a run in total, and how long it may take to read the rest at the end.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// Lines that wait for one reader.
const QUEUE_LINES: usize = 256;

/// Where events go.
#[derive(Debug, Clone, Default)]
pub struct Outputs {
    /// `--json`.
    pub json: bool,
    /// A target is `-`, so that `--json` goes to stderr.
    pub stdout_is_data: bool,
    /// `--events fd:N|FILE`.
    pub events: Option<OsString>,
    /// `--result FILE`.
    pub result: Option<PathBuf>,
}

/// Takes the events of a run and brings them to their readers.
pub struct Reporter {
    run: String,
    begin: Instant,
    result_file: Option<place::ResultFile>,
    /// The exit code, once the run is over and its result is on the way.
    ending: OnceLock<u8>,
    state: Mutex<State>,
}

struct State {
    seq: u64,
    readers: Vec<Outlet<Arc<[u8]>>>,
    screen: Option<Outlet<Event>>,
    /// What is known of the run when it has to be ended from outside.
    known: RunResult,
    /// The result that went out; nothing follows it.
    finished: Option<RunResult>,
}

impl Reporter {
    /// Opens all outputs. Nothing is emitted yet.
    ///
    /// # Errors
    /// `Usage` for an output that cannot be written.
    pub fn open(outputs: Outputs, screen: Option<Screen>) -> Result<Self> {
        let mut readers: Vec<Outlet<Arc<[u8]>>> = Vec::new();
        let mut add = |name: &str, mut to: Box<dyn Write + Send>| {
            readers.push(Outlet::new(name, QUEUE_LINES, PATIENCE, move |line: Option<Arc<[u8]>>| {
                line.is_none_or(|line| to.write_all(&line).and_then(|()| to.flush()).is_ok())
            }));
        };
        // The file first: where it is refused, no thread has started.
        let result_file = outputs.result.map(place::ResultFile::check).transpose()?;
        let elsewhere =
            outputs.events.as_deref().map(|to| place::open(to, outputs.json, outputs.stdout_is_data));
        if let Some(file) = elsewhere.transpose()? {
            add("events", Box::new(file));
        }
        if outputs.json && outputs.stdout_is_data {
            add("json", Box::new(io::stderr()));
        } else if outputs.json {
            add("json", Box::new(io::stdout()));
        }
        let screen = screen.map(|mut screen| {
            Outlet::new("screen", QUEUE_LINES, PATIENCE, move |event: Option<Event>| match event {
                Some(event) => screen.show(&event),
                None => screen.end(),
            })
        });
        Ok(Reporter {
            run: uuid::Uuid::now_v7().to_string(),
            begin: Instant::now(),
            result_file,
            ending: OnceLock::new(),
            state: Mutex::new(State { seq: 0, readers, screen, known: RunResult::default(), finished: None }),
        })
    }

    /// Sends an event to all readers. Waits no longer than [`PATIENCE`] in the whole run.
    pub fn emit(&self, event: Event) {
        let mut state = self.lock();
        if state.finished.is_none() {
            state.remember(&event);
            state.send(&self.run, now(), event);
        }
    }

    /// Ends the run with its one `result`: fills in what the run did not measure, writes the result file, and
    /// gives slow readers [`PATIENCE`] to read on. Whoever comes second gets the result that already went out.
    pub fn finish(&self, mut result: RunResult) -> RunResult {
        let mut state = self.lock();
        if let Some(finished) = &state.finished {
            return finished.clone();
        }
        self.complete(&mut result);
        let time = now();
        if let Some(file) = &self.result_file {
            let line = state.line(&self.run, time.clone(), Event::Result(Box::new(result.clone())));
            if let Err(error) = file.write(&line) {
                let error = Error::io(Operation::Write, file.label(), &error);
                result.status = Status::Failed;
                result.exit_code =
                    mover_model::error::most_severe(result.exit_code, ErrorKind::Io.exit_code());
                result.error.get_or_insert_with(|| error.record());
            }
        }
        let _ = self.ending.set(result.exit_code);
        state.send(&self.run, time, Event::Result(Box::new(result.clone())));
        state.finished = Some(result.clone());
        let deadline = Instant::now() + PATIENCE;
        for reader in &state.readers {
            reader.end(deadline);
        }
        if let Some(screen) = &state.screen {
            screen.end(deadline);
        }
        result
    }

    /// The exit code, once the run is over and its result is on the way. Never waits.
    pub fn ending(&self) -> Option<u8> {
        self.ending.get().copied()
    }

    /// What is known of a run that has to be ended from outside.
    pub fn known(&self) -> RunResult {
        self.lock().known.clone()
    }

    fn complete(&self, result: &mut RunResult) {
        if result.elapsed_seconds == 0.0 {
            result.elapsed_seconds = self.begin.elapsed().as_secs_f64();
        }
        if result.cpu_seconds == 0.0 {
            result.cpu_seconds = crate::measure::cpu_seconds();
        }
        if result.peak_memory_bytes == 0 {
            result.peak_memory_bytes = crate::measure::peak_memory_bytes();
        }
        if let Some(error) = result.error.as_ref().filter(|_| result.exit_code == 0) {
            result.exit_code = error.kind.exit_code();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// RFC 3339, UTC, microseconds.
fn now() -> String {
    format!("{:.6}", jiff::Timestamp::now())
}

impl State {
    fn line(&self, run: &str, time: String, event: Event) -> Arc<[u8]> {
        let envelope = Envelope { v: EVENT_VERSION, run: run.to_owned(), seq: self.seq, time, event };
        let mut line = serde_json::to_vec(&envelope).expect("events are plain values");
        line.push(b'\n');
        line.into()
    }

    fn send(&mut self, run: &str, time: String, event: Event) {
        let droppable = matches!(event, Event::Progress(_));
        if let Some(screen) = &self.screen {
            screen.offer(event.clone(), droppable);
        }
        if !self.readers.is_empty() {
            let line = self.line(run, time, event);
            for reader in &self.readers {
                reader.offer(line.clone(), droppable);
            }
        }
        self.seq += 1;
    }

    fn remember(&mut self, event: &Event) {
        let known = &mut self.known;
        match event {
            Event::Start { verb, .. } => known.verb.clone_from(verb),
            Event::Progress(progress) => {
                known.moved.written_bytes = progress.data_bytes;
                known.moved.zero_bytes = progress.zero_bytes;
            }
            Event::Degraded(degradation) => known.degraded.push(degradation.clone()),
            Event::BadExtent(extent) => {
                known.bad_extents_count += 1;
                if known.bad_extents.len() < mover_model::limits::BAD_EXTENTS_LISTED {
                    known.bad_extents.push(extent.clone());
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mover_model::event::Progress;

    #[test]
    fn lines_carry_one_run_rising_numbers_and_utc_microseconds() {
        let folder = tempfile::tempdir().unwrap();
        let (events, result) = (folder.path().join("events"), folder.path().join("result"));
        let outputs = Outputs {
            events: Some(events.clone().into()),
            result: Some(result.clone()),
            ..Outputs::default()
        };
        let reporter = Reporter::open(outputs, None).unwrap();
        reporter.emit(crate::output::start("copy"));
        reporter.emit(Event::Progress(Progress { data_bytes: 7, ..Progress::default() }));
        assert_eq!(reporter.known().moved.written_bytes, 7);
        let first = reporter.finish(RunResult { verb: "copy".into(), ..RunResult::default() });
        let second = reporter.finish(RunResult { exit_code: 7, ..RunResult::default() });
        assert_eq!(first, second);
        assert!(first.elapsed_seconds > 0.0 && first.peak_memory_bytes > 0);
        reporter.emit(crate::output::start("copy"));

        let text = std::fs::read_to_string(events).unwrap();
        let lines: Vec<Envelope> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.iter().map(|line| line.seq).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(lines.iter().all(|line| line.v == 1 && line.run == lines[0].run && line.time.len() == 27));
        assert!(lines[0].time.ends_with('Z') && lines[0].time.as_bytes()[10] == b'T');
        assert!(matches!(lines[2].event, Event::Result(_)));
        let record: Envelope = serde_json::from_slice(&std::fs::read(result).unwrap()).unwrap();
        assert_eq!((&record.event, record.seq), (&lines[2].event, 2));
    }

    #[test]
    fn a_result_file_that_cannot_be_written_fails_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let outputs = Outputs { result: Some(folder.path().join("result")), ..Outputs::default() };
        let reporter = Reporter::open(outputs, None).unwrap();
        folder.close().unwrap();
        let result = reporter.finish(RunResult::default());
        assert_eq!((result.status, result.exit_code), (Status::Failed, 1));
        assert!(result.error.unwrap().path.unwrap().ends_with("result"));
        assert_eq!(reporter.ending(), Some(1));
    }
}
