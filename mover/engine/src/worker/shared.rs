//! What the workers of a run share, and what they tell of finished work.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mover_model::{Digest, Error};

use crate::control::{Control, Rate};
use crate::lane::{Access, Order, Sink, Source};
use crate::queue::{Queue, Tasks};
use crate::settings::Settings;
use crate::stats::Counters;

/// How one task is moved.
#[derive(Debug, Clone, Copy)]
pub struct TaskOptions {
    /// How the source is read.
    pub source_access: Access,
    /// How the sink is written.
    pub sink_access: Access,
    /// Least length of a run of zeros in data that is not written (a power of two); `None`: not looked for.
    pub zero_run: Option<u32>,
    /// Zeros are not sent to the sink: it reads as zeros where nothing is written.
    pub skip_zeros: bool,
    /// Zeros and holes stay allocated on the target.
    pub keep_allocated: bool,
    /// Take a digest of each segment.
    pub digest: bool,
    /// Neighbours closer than this are read in one request; 0 where the bytes between are not to be touched.
    pub join_gap: u32,
    /// What to do about what cannot be read.
    pub read_errors: ReadErrors,
}

/// What happens when a part of the source cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadErrors {
    /// The task fails.
    Fail,
    /// What can be read is moved, the rest is recorded and the target left there as it was.
    Record,
}

/// A finished part of a task: its bytes are at the target (not yet flushed).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Digest of the bytes, where digests are taken; `None` for zeros that were not read too.
    pub digest: Option<Digest>,
    /// Whether it was a range of zeros that was not read.
    pub zero: bool,
}

/// One worker's record of what it finished for one task; never shared, so never locked.
pub trait Recorder: Send {
    /// A segment has arrived at its target.
    fn finished(&mut self, segment: &Segment);
    /// A part of the source could not be read.
    fn bad(&mut self, start: u64, length: u64, errno: i32);
}

/// One task as the workers share it.
pub(crate) struct SharedTask<'a> {
    pub source: &'a dyn Source,
    pub sink: &'a dyn Sink,
    pub options: TaskOptions,
    pub counters: &'a Counters,
    /// The first error: what follows it is not worth telling.
    pub error: Mutex<Option<Error>>,
    /// Set with the error: no worker begins anything more for the task.
    pub failed: AtomicBool,
    /// End of a stream, once found.
    pub stream_end: AtomicU64,
    pub bad_extents: AtomicU64,
}

impl SharedTask<'_> {
    pub fn fail(&self, error: Error) {
        let mut slot = self.error.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        slot.get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }

    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

/// What all workers of a run share.
pub(crate) struct Shared<'a> {
    pub settings: &'a Settings,
    pub control: &'a Control,
    pub rate: Option<&'a Rate>,
    pub tasks: Vec<SharedTask<'a>>,
    pub queue: Queue<'a>,
    /// Set by a worker that was stopped and left work undone.
    pub cut_short: AtomicBool,
}

impl Tasks for Shared<'_> {
    fn failed(&self, task: usize) -> bool {
        self.tasks[task].failed()
    }

    fn fail(&self, task: usize, error: Error) {
        self.tasks[task].fail(error);
    }
}

/// Whether a task must keep to one worker.
pub(crate) fn order_of(source: &dyn Source, sink: &dyn Sink) -> Order {
    if source.order() == Order::Sequential || sink.order() == Order::Sequential {
        Order::Sequential
    } else {
        Order::Any
    }
}
