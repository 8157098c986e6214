//! Figures of a run: latency histograms of each worker, and counters that progress is read from.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use mover_model::event::{Latency, Moved};

/// Latency of one kind of request: microseconds, two significant digits, up to 10 minutes.
pub struct LatencyHistogram(Histogram<u64>);

impl Default for LatencyHistogram {
    fn default() -> Self {
        // 1 µs to 600 s at 2 digits: about 28 KiB, allocated once per worker.
        LatencyHistogram(
            Histogram::new_with_bounds(1, 600_000_000, 2)
                .unwrap_or_else(|_| unreachable!("constant bounds are valid")),
        )
    }
}

impl LatencyHistogram {
    /// Counts one request.
    pub fn record(&mut self, elapsed: Duration) {
        self.0.saturating_record(elapsed.as_micros().max(1) as u64);
    }

    /// Adds another worker's requests.
    pub fn add(&mut self, other: &LatencyHistogram) {
        // Both have the same bounds, so nothing is out of range.
        let _ = self.0.add(&other.0);
    }

    /// The figures, or none if nothing was counted.
    pub fn summary(&self) -> Option<Latency> {
        (!self.0.is_empty()).then(|| Latency {
            count: self.0.len(),
            p50_us: self.0.value_at_quantile(0.5),
            p99_us: self.0.value_at_quantile(0.99),
            p999_us: self.0.value_at_quantile(0.999),
            max_us: self.0.max(),
        })
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters of one task, raised at completion by any worker and read by whoever shows progress.
        #[derive(Default)]
        pub struct Counters { $($(#[$doc])* pub $name: AtomicU64,)* }
        impl Counters {
            /// The figures so far.
            pub fn moved(&self) -> Moved {
                // Relaxed: each is a statistic of its own; the final read follows the join of all workers.
                Moved { $($name: self.$name.load(Ordering::Relaxed),)* ..Moved::default() }
            }
        }
    };
}

counters! {
    /// Bytes read from the source.
    read_bytes,
    /// Bytes written as data.
    written_bytes,
    /// Bytes zeroed or left out.
    zero_bytes,
    /// Of these, found to be zeros in data.
    zero_found_bytes,
    /// Payload bytes copied in user space.
    copied_bytes,
    /// Read requests.
    reads,
    /// Write requests.
    writes,
    /// Zeroing requests.
    zeroes,
}

impl Counters {
    /// Raises one counter.
    pub fn add(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}
