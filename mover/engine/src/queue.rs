//! The queue of work that workers steal from each other.
//!
//! Extents are pulled from a task's list only when the queue runs low, by whichever worker notices first, so
//! a disk of any number of extents takes the same memory. Nothing here is touched more than once per item,
//! and an item is up to 64 MiB.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, TryLockError};

use crossbeam_deque::{Injector, Steal, Stealer, Worker as Deque};
use mover_model::{Error, Extent, Result, limits};

use crate::lane::Order;
use crate::plan::{Item, Planner, split_span};

/// The extents of one task, in order.
pub type Extents<'a> = Box<dyn Iterator<Item = Result<Extent>> + Send + 'a>;

struct Feed<'a> {
    task: usize,
    extents: Extents<'a>,
    planner: Planner,
}

/// What a worker that asks for work is told.
pub enum Next {
    /// Here is some.
    Item(Item),
    /// Another worker is fetching some: ask again.
    Later,
    /// There is none and there will be none.
    Never,
}

/// What the queue has to know of tasks.
pub trait Tasks {
    /// Whether a task has failed: its extents are not asked for any more.
    fn failed(&self, task: usize) -> bool;
    /// A task's list of extents ended in an error.
    fn fail(&self, task: usize, error: Error);
}

/// All work of a run.
pub struct Queue<'a> {
    ready: Injector<Item>,
    feeds: Mutex<Vec<Feed<'a>>>,
    sequential: Mutex<Vec<(usize, Extents<'a>)>>,
    exhausted: AtomicBool,
    /// Items that are in the queue, in a worker's own, or in the hands of one that may put a part back.
    open: AtomicUsize,
    stealers: Vec<Stealer<Item>>,
    block_size: u32,
}

impl<'a> Queue<'a> {
    /// A queue over the extents of all tasks.
    pub fn new(tasks: Vec<(Extents<'a>, Order, u32)>, block_size: u32, stealers: Vec<Stealer<Item>>) -> Self {
        let ready = Injector::new();
        let mut feeds = Vec::new();
        let mut sequential = Vec::new();
        for (task, (extents, order, join_gap)) in tasks.into_iter().enumerate() {
            match order {
                Order::Any => {
                    feeds.push(Feed { task, extents, planner: Planner::new(task, block_size, join_gap) })
                }
                Order::Sequential => {
                    sequential.push((task, extents));
                    ready.push(Item::Sequential { task });
                }
            }
        }
        Queue {
            open: AtomicUsize::new(sequential.len()),
            ready,
            exhausted: AtomicBool::new(feeds.is_empty()),
            feeds: Mutex::new(feeds),
            sequential: Mutex::new(sequential),
            stealers,
            block_size,
        }
    }

    /// The next item for a worker: its own first, then the common queue, then others' own, then the lists.
    pub fn next(&self, own: &Deque<Item>, tasks: &impl Tasks) -> Next {
        if let Some(item) = own.pop() {
            return Next::Item(self.split(item));
        }
        loop {
            let mut retry = false;
            match self.ready.steal_batch_and_pop(own) {
                Steal::Success(item) => return Next::Item(self.split(item)),
                Steal::Retry => retry = true,
                Steal::Empty => {}
            }
            for stealer in &self.stealers {
                match stealer.steal() {
                    Steal::Success(item) => return Next::Item(self.split(item)),
                    Steal::Retry => retry = true,
                    Steal::Empty => {}
                }
            }
            if retry {
                continue;
            }
            // Acquire pairs with the release in `refill`: whoever sees the flag sees all items pushed before it.
            if self.exhausted.load(Ordering::Acquire) {
                // An empty queue is not the end: an item may be on its way between two of the places above, and
                // a part of it come back.
                return if self.open.load(Ordering::Acquire) == 0 { Next::Never } else { Next::Later };
            }
            if !self.refill(tasks) {
                return Next::Later;
            }
        }
    }

    fn push(&self, item: Item) {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.ready.push(item);
    }

    /// Keeps what one worker takes at once, and puts the rest back for others.
    fn split(&self, mut item: Item) -> Item {
        if let Item::Span { task, extent } = &mut item
            && let Some(rest) = split_span(extent, self.block_size)
        {
            // Before this item is counted off, so that the count is not zero between the two.
            self.push(Item::Span { task: *task, extent: rest });
        }
        self.open.fetch_sub(1, Ordering::Release);
        item
    }

    /// Pulls the next batch of every task's extents; false when another worker is at it.
    fn refill(&self, tasks: &impl Tasks) -> bool {
        let mut feeds = match self.feeds.try_lock() {
            Ok(feeds) => feeds,
            Err(TryLockError::WouldBlock) => return false,
            // A list of extents panicked, which fails the run: nothing more comes, or the others wait for ever.
            Err(TryLockError::Poisoned(poisoned)) => {
                poisoned.into_inner().clear();
                self.exhausted.store(true, Ordering::Release);
                return true;
            }
        };
        let mut push = |item| self.push(item);
        feeds.retain_mut(|feed| {
            if tasks.failed(feed.task) {
                return false;
            }
            for _ in 0..limits::FEED_BATCH {
                match feed.extents.next() {
                    Some(Ok(extent)) => feed.planner.add(extent, &mut push),
                    Some(Err(error)) => {
                        tasks.fail(feed.task, error);
                        return false;
                    }
                    None => {
                        feed.planner.flush(&mut push);
                        return false;
                    }
                }
            }
            true
        });
        if feeds.is_empty() {
            self.exhausted.store(true, Ordering::Release);
        }
        true
    }

    /// Takes a sequential task's extents, once.
    pub fn take_sequential(&self, task: usize) -> Option<Extents<'a>> {
        let mut list = self.sequential.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let index = list.iter().position(|(t, _)| *t == task)?;
        Some(list.swap_remove(index).1)
    }
}
