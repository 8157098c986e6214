//! A queue and a thread before a reader that may be slow, blocked or gone.
//!
//! What may be dropped (progress) never waits: it takes the place of its predecessor that is still queued, so a
//! slow reader always gets the newest. Everything else waits for room, but only as long as the outlet's patience
//! lasts, which is one amount for the whole run; afterwards the oldest queued item gives way. So the last item is
//! always queued.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The sending side; see the module.
pub struct Outlet<T> {
    shared: Arc<Shared<T>>,
    capacity: usize,
}

struct Shared<T> {
    queue: Mutex<Queue<T>>,
    changed: Condvar,
}

struct Queue<T> {
    items: VecDeque<Item<T>>,
    /// How long senders may still wait, in all.
    patience: Duration,
    /// Nothing more will come.
    ended: bool,
    /// The thread has ended: everything is read, or the reader has gone.
    over: bool,
}

struct Item<T> {
    value: T,
    droppable: bool,
}

impl<T: Send + 'static> Outlet<T> {
    /// Starts the thread. `consume` gets every item and at the end `None`; it returns false when its reader has
    /// gone, and is then not called again.
    pub fn new(
        name: &str,
        capacity: usize,
        patience: Duration,
        mut consume: impl FnMut(Option<T>) -> bool + Send + 'static,
    ) -> Self {
        let queue = Queue { items: VecDeque::new(), patience, ended: false, over: false };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), changed: Condvar::new() });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(256 << 10);
        let started = thread.spawn(move || {
            // Runs also when `consume` panics: senders must not wait for a thread that is no more.
            let _over = MarkOver(&theirs);
            loop {
                let item = theirs.take();
                let more = item.is_some();
                if !consume(item) || !more {
                    break;
                }
            }
        });
        if started.is_err() {
            shared.lock().over = true;
        }
        Outlet { shared, capacity }
    }

    /// Queues an item, or drops it as the module says.
    pub fn offer(&self, value: T, droppable: bool) {
        let mut queue = self.shared.lock();
        if droppable || queue.items.len() >= self.capacity {
            queue.items.retain(|item| !item.droppable);
        }
        if droppable && queue.items.len() >= self.capacity {
            return;
        }
        while queue.items.len() >= self.capacity && !queue.over && !queue.patience.is_zero() {
            let waited = Instant::now();
            let patience = queue.patience;
            let woken = self.shared.changed.wait_timeout(queue, patience);
            queue = woken.unwrap_or_else(PoisonError::into_inner).0;
            queue.patience = queue.patience.saturating_sub(waited.elapsed());
        }
        if queue.items.len() >= self.capacity {
            queue.items.pop_front();
        }
        if !queue.over && !queue.ended {
            queue.items.push_back(Item { value, droppable });
            self.shared.changed.notify_all();
        }
    }

    /// Says that nothing more comes, and waits until everything is read, the reader has gone, or `deadline`.
    pub fn end(&self, deadline: Instant) {
        let mut queue = self.shared.lock();
        queue.ended = true;
        self.shared.changed.notify_all();
        while !queue.over {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = self.shared.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<T> {
        let mut queue = self.lock();
        loop {
            if let Some(item) = queue.items.pop_front() {
                self.changed.notify_all();
                return Some(item.value);
            }
            if queue.ended {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

struct MarkOver<'a, T>(&'a Shared<T>);

impl<T> Drop for MarkOver<'_, T> {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.over = true;
        queue.items.clear();
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::sync::mpsc;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn everything_arrives_in_order() {
        let (sender, receiver) = mpsc::channel();
        let outlet = Outlet::new("test", 4, Duration::from_secs(10), move |item| sender.send(item).is_ok());
        for n in 0..100 {
            outlet.offer(n, false);
        }
        outlet.end(soon());
        let got: Vec<Option<i32>> = receiver.iter().collect();
        assert_eq!(got, (0..100).map(Some).chain([None]).collect::<Vec<_>>());
    }

    #[test]
    fn a_slow_reader_gets_the_newest_progress_and_all_the_rest() {
        let (go, gate) = mpsc::channel::<()>();
        let (sender, receiver) = mpsc::channel();
        let outlet = Outlet::new("test", 8, Duration::from_secs(10), move |item: Option<u32>| {
            if item == Some(0) {
                gate.recv().unwrap();
            }
            item.is_none_or(|item| sender.send(item).is_ok())
        });
        outlet.offer(0, false);
        while !outlet.shared.lock().items.is_empty() {
            std::thread::yield_now();
        }
        for n in 1..=1000 {
            outlet.offer(n, true);
        }
        outlet.offer(2000, false);
        go.send(()).unwrap();
        outlet.end(soon());
        assert_eq!(receiver.iter().collect::<Vec<_>>(), [0, 1000, 2000]);
    }

    #[test]
    fn a_blocked_reader_costs_its_patience_once_and_the_end_its_deadline() {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let patience = Duration::from_millis(200);
        // Paid for every line it would be 40 s; an end that waits for the reader never comes.
        let limit = Duration::from_secs(10);
        let outlet = Outlet::new("test", 4, patience, move |line: Option<Vec<u8>>| {
            line.is_none_or(|line| writer.write_all(&line).is_ok())
        });
        let begin = Instant::now();
        for n in 0..200u32 {
            outlet.offer(vec![n as u8; 64 << 10], false);
            outlet.offer(vec![0xff; 64 << 10], true);
        }
        let emitting = begin.elapsed();
        assert!(emitting >= patience && emitting < limit, "{emitting:?}");
        let begin = Instant::now();
        outlet.end(Instant::now() + patience);
        assert!(begin.elapsed() >= patience && begin.elapsed() < limit);
        // Once the reader reads on it gets whole lines, the last one among them.
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        assert!(text.len() % (64 << 10) == 0 && text.contains(&199));
    }

    #[test]
    fn a_reader_that_has_gone_costs_nothing() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        drop(reader);
        let outlet = Outlet::new("test", 4, Duration::from_secs(60), move |line: Option<Vec<u8>>| {
            line.is_none_or(|line| writer.write_all(&line).is_ok())
        });
        let begin = Instant::now();
        for _ in 0..1000 {
            outlet.offer(vec![1; 4096], false);
        }
        outlet.end(begin + Duration::from_secs(60));
        assert!(begin.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_consumer_that_panics_holds_nobody_up() {
        let outlet = Outlet::new("test", 2, Duration::from_secs(60), |_: Option<u8>| panic!("on purpose"));
        let begin = Instant::now();
        for _ in 0..10 {
            outlet.offer(1, false);
        }
        outlet.end(begin + Duration::from_secs(60));
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}
