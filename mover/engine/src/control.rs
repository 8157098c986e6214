//! What reaches into a run from outside: stop, the rate limit, and the list of downgrades.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mover_model::event::Degradation;

/// Shared by everything that takes part in a run.
#[derive(Default)]
pub struct Control {
    stop: Arc<AtomicBool>,
    degraded: Mutex<Vec<Degradation>>,
}

impl Control {
    /// Nothing stopped, nothing degraded.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks all workers to finish what is in flight and end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Whether [`Control::stop`] was called.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The flag behind [`Control::stopped`], for what cannot borrow the control.
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }

    /// Records a downgrade once, however many workers meet it.
    pub fn degrade(&self, degradation: Degradation) {
        let mut list = self.degraded.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let known = list.iter().any(|d| d.about == degradation.about && d.path == degradation.path);
        if !known {
            list.push(degradation);
        }
    }

    /// All downgrades so far, from index `from` on.
    pub fn degraded(&self, from: usize) -> Vec<Degradation> {
        let list = self.degraded.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        list.get(from..).unwrap_or_default().to_vec()
    }
}

/// A rate limit over all workers: a token bucket that holds a tenth of a second.
///
/// The bucket is one atomic: the time, in nanoseconds since the start, at which everything granted so far
/// is paid for. A worker that takes bytes moves it forward; a worker that finds it in the future waits.
pub struct Rate {
    start: Instant,
    bytes_per_second: u64,
    paid_until_ns: AtomicU64,
}

/// How far ahead of the clock grants may run, which lets bursts of requests start together.
const BURST_NS: u64 = 100_000_000;

impl Rate {
    /// At most this many bytes a second, at least 1.
    pub fn new(bytes_per_second: u64) -> Self {
        Rate {
            start: Instant::now(),
            bytes_per_second: bytes_per_second.max(1),
            paid_until_ns: AtomicU64::new(0),
        }
    }

    /// Takes `bytes`, or tells how long to wait before asking again.
    pub fn take(&self, bytes: u64) -> Result<(), Duration> {
        let now = self.start.elapsed().as_nanos() as u64;
        let cost = (u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second)) as u64;
        let mut paid_until = self.paid_until_ns.load(Ordering::Relaxed);
        loop {
            if paid_until > now + BURST_NS {
                return Err(Duration::from_nanos(paid_until - now - BURST_NS));
            }
            let next = paid_until.max(now) + cost;
            // Relaxed: the counter publishes nothing but itself.
            match self.paid_until_ns.compare_exchange_weak(
                paid_until,
                next,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(seen) => paid_until = seen,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_grants_no_more_than_it_says() {
        let rate = Rate::new(100 << 20);
        let begin = Instant::now();
        let mut granted = 0u64;
        while begin.elapsed() < Duration::from_millis(300) {
            match rate.take(1 << 20) {
                Ok(()) => granted += 1 << 20,
                Err(wait) => std::thread::sleep(wait.min(Duration::from_millis(5))),
            }
        }
        let allowed = (100 << 20) as f64 * (begin.elapsed().as_secs_f64() + 0.1) + (1 << 20) as f64;
        assert!((granted as f64) <= allowed, "{granted} > {allowed}");
        assert!(granted > 10 << 20);
    }
}
