//! The script of a faulty file: which operations on which bytes go wrong, and how; and what was counted.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a client asked of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Bytes read.
    Read,
    /// Bytes written.
    Write,
    /// `fallocate` of any mode: holes punched, ranges zeroed or reserved.
    Allocate,
    /// `fsync` or `fdatasync`; it touches the whole file.
    Sync,
    /// `SEEK_DATA` or `SEEK_HOLE`; it touches the file from its offset on.
    Seek,
}

const OPS: usize = 5;

#[derive(Debug, Clone, Copy)]
enum Effect {
    Errno(i32),
    Short(u64),
    Delay(Duration),
    Flip,
    Lose,
}

/// One fault: what goes wrong, for which operations, on which bytes, when, how often.
///
/// Unless narrowed it hits every read and write, on the whole file, at once and for ever.
#[derive(Debug, Clone)]
pub struct Fault {
    effect: Effect,
    ops: Vec<Op>,
    range: Range<u64>,
    after: u64,
    times: u64,
}

impl Fault {
    /// The whole operation fails with this errno when it touches a byte of the range.
    pub fn errno(errno: i32) -> Fault {
        Fault::of(Effect::Errno(errno))
    }

    /// The operation moves at most `len` bytes. Not for writes below a loop device, which takes a short
    /// write for a whole one.
    pub fn short(len: u64) -> Fault {
        Fault::of(Effect::Short(len))
    }

    /// The operation answers late. Delays add up, and end when the fault is removed.
    pub fn delay(delay: Duration) -> Fault {
        Fault::of(Effect::Delay(delay))
    }

    /// Silent corruption: the first byte of the range that a read or a write touches has its bits inverted.
    pub fn flip() -> Fault {
        Fault::of(Effect::Flip)
    }

    /// A lost write: success is reported, the file keeps its old bytes.
    pub fn lose() -> Fault {
        Fault::of(Effect::Lose).on(&[Op::Write])
    }

    fn of(effect: Effect) -> Fault {
        Fault { effect, ops: vec![Op::Read, Op::Write], range: 0..u64::MAX, after: 0, times: u64::MAX }
    }

    /// Only these operations.
    pub fn on(mut self, ops: &[Op]) -> Fault {
        self.ops = ops.to_vec();
        self
    }

    /// Only reads.
    pub fn on_reads(self) -> Fault {
        self.on(&[Op::Read])
    }

    /// Only what changes bytes: writes, and `fallocate`, by which zeros are written.
    pub fn on_writes(self) -> Fault {
        self.on(&[Op::Write, Op::Allocate])
    }

    /// Only operations that touch a byte of this range.
    pub fn range(mut self, range: Range<u64>) -> Fault {
        self.range = range;
        self
    }

    /// The first `count` operations that would be hit pass.
    pub fn after(mut self, count: u64) -> Fault {
        self.after = count;
        self
    }

    /// Hits this often, then no more.
    pub fn times(mut self, count: u64) -> Fault {
        self.times = count;
        self
    }
}

/// Names a fault that was added, to remove it or to ask for its hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultId(u64);

/// What was counted since the file was made, or since [`Faults::reset`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Read requests.
    pub reads: u64,
    /// Bytes that reads asked for.
    pub read_bytes: u64,
    /// Write requests.
    pub writes: u64,
    /// Bytes that writes brought.
    pub write_bytes: u64,
    /// `fallocate` requests.
    pub allocates: u64,
    /// `fsync` and `fdatasync` requests.
    pub syncs: u64,
    /// `SEEK_DATA` and `SEEK_HOLE` requests.
    pub seeks: u64,
    /// Requests that a fault changed or delayed.
    pub faulted: u64,
    /// The most requests that were inside at one time.
    pub inside_max: u64,
}

/// One request, as the file saw it. Large requests of the client arrive here in several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What was asked.
    pub op: Op,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

/// The live script of one faulty file. Clones share it; it may change while the file is in use.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    ops: [AtomicU64; OPS],
    bytes: [AtomicU64; OPS],
    faulted: AtomicU64,
    inside: AtomicU64,
    inside_max: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    armed: Vec<Armed>,
    trace: Option<Vec<Request>>,
}

#[derive(Debug)]
struct Armed {
    id: FaultId,
    fault: Fault,
    seen: u64,
    hits: u64,
}

impl Faults {
    /// Adds a fault; from now on it counts. Where several errnos match, the first added wins.
    pub fn add(&self, fault: Fault) -> FaultId {
        let mut state = self.lock();
        let id = FaultId(state.next);
        state.next += 1;
        state.armed.push(Armed { id, fault, seen: 0, hits: 0 });
        id
    }

    /// Removes a fault, ends the delays it still causes, and says how often it hit.
    pub fn remove(&self, id: FaultId) -> u64 {
        let mut state = self.lock();
        let hits = state.armed.iter().find(|armed| armed.id == id).map_or(0, |armed| armed.hits);
        state.armed.retain(|armed| armed.id != id);
        self.shared.changed.notify_all();
        hits
    }

    /// Removes all faults; the file is sound again.
    pub fn clear(&self) {
        self.lock().armed.clear();
        self.shared.changed.notify_all();
    }

    /// How often a fault has hit so far.
    pub fn hits(&self, id: FaultId) -> u64 {
        self.lock().armed.iter().find(|armed| armed.id == id).map_or(0, |armed| armed.hits)
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        let ops = |op: Op| self.shared.ops[op as usize].load(Ordering::Relaxed);
        let bytes = |op: Op| self.shared.bytes[op as usize].load(Ordering::Relaxed);
        Counts {
            reads: ops(Op::Read),
            read_bytes: bytes(Op::Read),
            writes: ops(Op::Write),
            write_bytes: bytes(Op::Write),
            allocates: ops(Op::Allocate),
            syncs: ops(Op::Sync),
            seeks: ops(Op::Seek),
            faulted: self.shared.faulted.load(Ordering::Relaxed),
            inside_max: self.shared.inside_max.load(Ordering::Relaxed),
        }
    }

    /// Starts all counts from zero.
    pub fn reset(&self) {
        let shared = &self.shared;
        let counters = shared.ops.iter().chain(&shared.bytes).chain([&shared.faulted, &shared.inside_max]);
        counters.for_each(|counter| counter.store(0, Ordering::Relaxed));
    }

    /// Starts to record requests in the order of their arrival.
    pub fn record(&self) {
        self.lock().trace = Some(Vec::new());
    }

    /// Ends the record and hands it out.
    pub fn recorded(&self) -> Vec<Request> {
        self.lock().trace.take().unwrap_or_default()
    }

    /// Runs one request by the script: counted in, delayed, failed or carried out, and counted out before
    /// the client hears of it, so that its next request never counts beside this one.
    pub(crate) fn run<T>(
        &self,
        request: Request,
        action: impl FnOnce(Verdict) -> io::Result<T>,
    ) -> io::Result<T> {
        let verdict = self.enter(request);
        let result = match verdict.errno {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => action(verdict),
        };
        self.shared.inside.fetch_sub(1, Ordering::Relaxed);
        result
    }

    fn enter(&self, request: Request) -> Verdict {
        let shared = &*self.shared;
        shared.ops[request.op as usize].fetch_add(1, Ordering::Relaxed);
        shared.bytes[request.op as usize].fetch_add(request.len, Ordering::Relaxed);
        let inside = shared.inside.fetch_add(1, Ordering::Relaxed) + 1;
        shared.inside_max.fetch_max(inside, Ordering::Relaxed);

        let mut state = self.lock();
        if let Some(trace) = &mut state.trace {
            trace.push(request);
        }
        let mut verdict = Verdict { errno: None, len: request.len, flip: None, lose: false };
        let mut delays = Vec::new();
        let mut faulted = false;
        for armed in &mut state.armed {
            if armed.hit(&request) {
                faulted = true;
                verdict.take(&armed.fault, &request);
                if let Effect::Delay(delay) = armed.fault.effect {
                    delays.push((armed.id, delay));
                }
            }
        }
        shared.faulted.fetch_add(u64::from(faulted), Ordering::Relaxed);
        for (id, delay) in delays {
            state = self.sit_out(state, id, delay);
        }
        verdict
    }

    fn sit_out<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        id: FaultId,
        delay: Duration,
    ) -> MutexGuard<'a, State> {
        let end = Instant::now() + delay;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || !state.armed.iter().any(|armed| armed.id == id) {
                return state;
            }
            let wait = self.shared.changed.wait_timeout(state, left);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves counts and script usable; the unmounting that follows needs them.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Armed {
    fn hit(&mut self, request: &Request) -> bool {
        let end = request.offset.saturating_add(request.len);
        let touches = request.offset < self.fault.range.end && end > self.fault.range.start;
        if !touches || !self.fault.ops.contains(&request.op) {
            return false;
        }
        self.seen += 1;
        let hit = self.seen > self.fault.after && self.hits < self.fault.times;
        self.hits += u64::from(hit);
        hit
    }
}

/// What is to happen to one request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verdict {
    pub(crate) errno: Option<i32>,
    pub(crate) len: u64,
    /// Index, within the request, of the byte to invert.
    pub(crate) flip: Option<u64>,
    pub(crate) lose: bool,
}

impl Verdict {
    fn take(&mut self, fault: &Fault, request: &Request) {
        match fault.effect {
            Effect::Errno(errno) => self.errno = self.errno.or(Some(errno)),
            Effect::Short(len) => self.len = self.len.min(len),
            Effect::Flip => self.flip = Some(fault.range.start.saturating_sub(request.offset)),
            Effect::Lose => self.lose = true,
            Effect::Delay(_) => {}
        }
    }
}
