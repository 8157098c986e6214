//! Where a run stands, said once a second by a thread of its own; it also passes on downgrades as they
//! happen, so that workers never wait for whoever reads events.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use mover_engine::Control;
use mover_model::event::{Event, Moved, Progress};
use mover_model::limits;

use crate::Emit;

struct Ends<'t> {
    ended: &'t AtomicBool,
    thread: Thread,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// Says where a run stands until it is told to end.
pub struct Ticker<'a> {
    emit: Emit<'a>,
    control: &'a Control,
    started: Instant,
    strict: bool,
    ended: AtomicBool,
    phase: Mutex<String>,
    degradations_told: Mutex<usize>,
}

impl<'a> Ticker<'a> {
    /// For a run that began now. Under `strict` the first downgrade stops the run.
    pub fn new(emit: Emit<'a>, control: &'a Control, strict: bool) -> Self {
        Ticker {
            emit,
            control,
            started: Instant::now(),
            strict,
            ended: AtomicBool::new(false),
            phase: Mutex::new(String::new()),
            degradations_told: Mutex::new(0),
        }
    }

    /// A phase of the run begins.
    pub fn phase(&self, phase: &str) {
        phase.clone_into(&mut self.phase.lock().unwrap_or_else(|p| p.into_inner()));
        (self.emit)(Event::Phase { phase: phase.to_owned() });
    }

    /// Ends [`Ticker::run`] on `thread` when the guard is dropped.
    pub fn ends_with(&self, thread: Thread) -> impl Drop + use<'_, 'a> {
        Ends { ended: &self.ended, thread }
    }

    /// Passes on downgrades that were not told yet; true when there are any at all.
    pub fn tell_degradations(&self) -> bool {
        let mut told = self.degradations_told.lock().unwrap_or_else(|p| p.into_inner());
        for degradation in self.control.degraded(*told) {
            *told += 1;
            (self.emit)(Event::Degraded(degradation));
        }
        *told > 0
    }

    /// Reports until the end; `moved` and `total` are asked once a second. Runs on its own thread.
    pub fn run(&self, moved: impl Fn() -> Moved, total: Option<u64>) {
        let mut last = (Instant::now(), 0);
        let period = Duration::from_millis(limits::PROGRESS_MS);
        let tick = Duration::from_millis(limits::WAIT_MS);
        while !self.ended.load(Ordering::Acquire) {
            std::thread::park_timeout(tick);
            if self.tell_degradations() && self.strict {
                self.control.stop();
            }
            if last.0.elapsed() >= period {
                let moved = moved();
                let seconds = last.0.elapsed().as_secs_f64();
                let bytes = moved.written_bytes + moved.verified_bytes + moved.offloaded_bytes;
                let progress = Progress {
                    phase: self.phase.lock().unwrap_or_else(|p| p.into_inner()).clone(),
                    data_bytes: bytes,
                    zero_bytes: moved.zero_bytes,
                    done_bytes: bytes + moved.zero_bytes + moved.resumed_bytes,
                    total_bytes: total,
                    bytes_per_second: ((bytes.saturating_sub(last.1)) as f64 / seconds) as u64,
                    elapsed_seconds: self.started.elapsed().as_secs_f64(),
                };
                last = (Instant::now(), bytes);
                (self.emit)(Event::Progress(progress));
            }
        }
        self.tell_degradations();
    }
}
