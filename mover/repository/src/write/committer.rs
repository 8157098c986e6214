//! Makes packs durable beside the workers, several at once (each waits for a device's flush), and puts index segments
//! of packs that are.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use mover_model::{Error, ErrorKind, Operation, Result};

use super::pack_builder::SealedPack;
use crate::index::{Index, Location};
use crate::names::ObjectName;
use crate::repository::Repository;

/// Packs that are made durable at the same time. Each waits for a flush, which a device does for several at once.
const THREADS: usize = 4;
/// Packs that wait for a thread; whoever hands over one more waits, so that the entries in memory stay few.
const QUEUE: usize = 8;
/// Entries of durable packs after which a segment is put: 9 MiB of memory at most.
const SEGMENT_ENTRIES: usize = 128 << 10;

/// Makes packs durable.
pub(crate) struct Committer {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    repository: Arc<Repository>,
    index: Arc<Index>,
    state: Mutex<State>,
    changed: Condvar,
    failed: AtomicBool,
}

#[derive(Default)]
struct State {
    queue: VecDeque<SealedPack>,
    /// Threads that work on a pack or a segment.
    busy: usize,
    /// Threads that wait for one.
    idle: usize,
    closed: bool,
    durable: Durable,
    packs: u64,
    bytes: u64,
    error: Option<Error>,
}

/// Packs that are durable and in no segment yet.
#[derive(Default)]
struct Durable {
    packs: Vec<ObjectName>,
    entries: Vec<Location>,
}

impl Committer {
    /// Without a thread: they are started as packs come.
    pub fn new(repository: Arc<Repository>, index: Arc<Index>) -> Self {
        let state = Mutex::default();
        let failed = AtomicBool::new(false);
        let shared = Arc::new(Shared { repository, index, state, changed: Condvar::new(), failed });
        Committer { shared, threads: Mutex::default() }
    }

    /// The first error, if there was one.
    pub fn error(&self) -> Option<Error> {
        if !self.shared.failed.load(Ordering::Acquire) {
            return None;
        }
        self.shared.lock().error.clone()
    }

    /// Takes an error of another part of the writer: nothing may be referenced after it.
    pub fn fail(&self, error: Error) {
        self.shared.fail(error);
    }

    /// Takes a pack. Waits while many wait.
    ///
    /// # Errors
    /// `Internal` when no thread can be started.
    pub fn add(&self, pack: SealedPack) -> Result<()> {
        let mut state = self.shared.lock();
        while state.queue.len() >= QUEUE && state.error.is_none() {
            state = self.shared.wait(state);
        }
        if let Some(error) = &state.error {
            return Err(error.clone());
        }
        state.queue.push_back(pack);
        let lacks = state.idle < state.queue.len();
        drop(state);
        self.shared.changed.notify_all();
        if lacks { self.start() } else { Ok(()) }
    }

    fn start(&self) -> Result<()> {
        let mut threads = self.threads.lock().unwrap_or_else(|p| p.into_inner());
        if threads.len() >= THREADS {
            return Ok(());
        }
        let shared = self.shared.clone();
        match std::thread::Builder::new().name("commit".into()).spawn(move || shared.work()) {
            Ok(thread) => threads.push(thread),
            // One is enough, only slower.
            Err(_) if !threads.is_empty() => {}
            Err(error) => {
                return Err(Error::io(Operation::Setup, "a thread", &error)
                    .hint("raise the limit on processes (ulimit -u, pids of the container)"));
            }
        }
        Ok(())
    }

    /// Waits until all packs are durable and puts a segment of those that are in none. Returns packs and bytes of all
    /// objects so far.
    ///
    /// # Errors
    /// The first error of any pack or segment.
    pub fn finish(&self) -> Result<(u64, u64)> {
        let mut state = self.shared.lock();
        while (!state.queue.is_empty() || state.busy > 0) && state.error.is_none() {
            state = self.shared.wait(state);
        }
        if let Some(error) = &state.error {
            return Err(error.clone());
        }
        let durable = std::mem::take(&mut state.durable);
        drop(state);
        if !durable.packs.is_empty() {
            let bytes =
                self.shared.put_segment(durable).inspect_err(|error| self.shared.fail(error.clone()))?;
            self.shared.lock().bytes += bytes;
        }
        let state = self.shared.lock();
        Ok((state.packs, state.bytes))
    }
}

impl Drop for Committer {
    /// Packs that still wait are given up: whoever wanted them has called `finish`.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.queue.clear();
        drop(state);
        self.shared.changed.notify_all();
        for thread in self.threads.lock().unwrap_or_else(|p| p.into_inner()).drain(..) {
            // A panic was recorded as the error of its pack.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn fail(&self, error: Error) {
        let mut state = self.lock();
        state.error.get_or_insert(error);
        // What waits would be referenced by nobody.
        state.queue.clear();
        self.failed.store(true, Ordering::Release);
        drop(state);
        self.changed.notify_all();
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(pack) = state.queue.pop_front() {
                state.busy += 1;
                drop(state);
                self.changed.notify_all();
                let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.make_durable(pack)));
                let made = made.unwrap_or_else(|_| {
                    Err(Error::new(ErrorKind::Internal, "the thread that makes packs durable panicked"))
                });
                if let Err(error) = made {
                    self.fail(error);
                }
                state = self.lock();
                state.busy -= 1;
                self.changed.notify_all();
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                state = self.wait(state);
                state.idle -= 1;
            }
        }
    }

    fn make_durable(&self, pack: SealedPack) -> Result<()> {
        let name = pack.name();
        let (entries, bytes) = pack.commit(self.repository.keys())?;
        let locations: Vec<_> = entries.into_iter().map(|entry| Location { pack: name, entry }).collect();
        self.index.add_pending(&locations);
        let mut state = self.lock();
        state.packs += 1;
        state.bytes += bytes;
        state.durable.packs.push(name);
        state.durable.entries.extend(locations);
        if state.durable.entries.len() < SEGMENT_ENTRIES {
            return Ok(());
        }
        let durable = std::mem::take(&mut state.durable);
        drop(state);
        let bytes = self.put_segment(durable)?;
        self.lock().bytes += bytes;
        Ok(())
    }

    fn put_segment(&self, durable: Durable) -> Result<u64> {
        self.index.put_segment(&durable.packs, durable.entries)
    }
}
