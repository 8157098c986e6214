//! The thread that tells others that a session lives.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use mover_model::{Error, ErrorKind, Result};

use super::{Pace, SessionRecord, host, object_key, put};
use crate::repository::Repository;
use crate::store::{Key, Put};

/// Part of a renewal's time after which one that failed is tried again.
const RETRY: u32 = 4;

struct State {
    stopped: bool,
    /// When the last renewal that worked was begun, by [`host::uptime`]: the store gave it that time or a later one.
    renewed_at: Duration,
    /// Why the last one did not work; `None` when it did.
    error: Option<Error>,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Plain values, each right by itself: a panic leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Renewal {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Renewal {
    pub(super) fn start(
        repository: &Arc<Repository>,
        record: &SessionRecord,
        pace: Pace,
        renewed_at: Duration,
    ) -> Result<Self> {
        let state = Mutex::new(State { stopped: false, renewed_at, error: None });
        let shared = Arc::new(Shared { state, wake: Condvar::new() });
        let (repository, record, same) = (repository.clone(), record.clone(), shared.clone());
        let thread = std::thread::Builder::new()
            .name("session".to_owned())
            .spawn(move || run(&repository, &record, pace, &same))
            .map_err(|error| {
                Error::new(ErrorKind::Internal, format!("no thread to renew the session: {error}"))
                    .hint("look at the limit of processes (ulimit -u)")
            })?;
        Ok(Renewal { shared, thread: Some(thread) })
    }

    /// Time since the last renewal that worked, and why later ones did not.
    pub(super) fn age(&self) -> Result<(Duration, Option<Error>)> {
        let state = self.shared.state();
        Ok((host::uptime()?.saturating_sub(state.renewed_at), state.error.clone()))
    }

    /// Stops it, and waits until it no longer puts anything.
    pub(super) fn stop(&mut self) {
        self.tell();
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, it puts nothing any more either.
            let _ = thread.join();
        }
    }

    fn tell(&self) {
        self.shared.state().stopped = true;
        self.shared.wake.notify_all();
    }
}

impl Drop for Renewal {
    /// Does not wait: a session that is dropped is left to die, and one renewal more does no harm.
    fn drop(&mut self) {
        self.tell();
    }
}

fn run(repository: &Repository, record: &SessionRecord, pace: Pace, shared: &Shared) {
    let mut previous: Option<Key> = None;
    for number in 1_u64.. {
        let mut state = shared.state();
        let wait = if state.error.is_some() { pace.renew_every / RETRY } else { pace.renew_every };
        let waited = shared.wake.wait_timeout_while(state, wait, |state| !state.stopped);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        if state.stopped {
            return;
        }
        drop(state);
        // One that failed may be there all the same: each has a name of its own.
        let name = number.to_string();
        let renewed = host::uptime().and_then(|begun| Ok((begun, put(repository, &name, record)?)));
        let mut state = shared.state();
        match renewed {
            Ok((begun, Put::Done)) => {
                state.renewed_at = begun;
                state.error = None;
                drop(state);
                let renewed = object_key(&record.id, &name);
                if let Some(old) = previous.replace(renewed) {
                    // Not allowed, or not now: one object more in the listing until the session ends.
                    let _ = repository.store().delete(&old);
                }
            }
            Ok((_, Put::Exists)) => {
                state.error = Some(Error::new(ErrorKind::Internal, "the name of a renewal is taken"));
            }
            Err(error) => state.error = Some(error),
        }
    }
}
