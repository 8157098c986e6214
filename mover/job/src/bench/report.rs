//! The document of a benchmark, and how a window becomes figures.

use mover_engine::Access;
use mover_model::event::{Degradation, Latency};
use serde::Serialize;

use super::measure::Window;
use super::target::Target;

/// The document of `mover bench --json`. Version 1 only grows.
#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    /// `mover-bench`.
    pub format: &'static str,
    /// 1.
    pub version: u32,
    /// `read` or `write`.
    pub operation: &'static str,
    /// `random` or `sequential`.
    pub order: &'static str,
    /// Bytes of one request.
    pub block_size: u32,
    /// Requests in flight for each worker and path.
    pub queue_depth: u16,
    /// `io_uring` or `sync`.
    pub backend: &'static str,
    /// Seconds that each point was to be measured.
    pub runtime_seconds: f64,
    /// Start of the random order.
    pub seed: u64,
    /// What was measured.
    pub paths: Vec<PathFacts>,
    /// One for each number of workers.
    pub points: Vec<Point>,
    /// What was wanted and not to be had.
    pub degraded: Vec<Degradation>,
    /// What to know when reading the figures.
    pub notes: Vec<String>,
    /// Whether a signal ended it early.
    pub interrupted: bool,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct PathFacts {
    /// As it was named.
    pub path: String,
    /// `device` or `file`.
    pub kind: &'static str,
    /// Bytes of it.
    pub size_bytes: u64,
    /// Bytes of it that were measured.
    pub measured_bytes: u64,
    /// `direct` or `buffered`.
    pub access: &'static str,
    /// The filesystem it lies on.
    pub filesystem: Option<String>,
    /// The device it is or lies on.
    pub device: Option<String>,
    /// The NUMA node of the device.
    pub numa_node: Option<i64>,
}

impl PathFacts {
    /// Of a path that is ready to be measured.
    pub fn of(target: &Target) -> Self {
        PathFacts {
            path: target.label.clone(),
            kind: if target.is_block { "device" } else { "file" },
            size_bytes: target.size,
            measured_bytes: target.blocks.bytes(),
            access: match target.access() {
                Access::Direct => "direct",
                Access::Buffered => "buffered",
            },
            filesystem: target.filesystem.clone(),
            device: target.device.as_ref().map(|device| device.name.clone()),
            numa_node: target.device.as_ref().and_then(|device| device.numa_node),
        }
    }
}

/// Figures at one number of workers.
#[derive(Debug, Clone, Serialize)]
pub struct Point {
    /// Workers for each path.
    pub workers: usize,
    /// One for each path, in order.
    pub paths: Vec<Figures>,
    /// All paths together.
    pub total: Figures,
}

/// What was measured.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Figures {
    /// Requests a second.
    pub iops: f64,
    /// 10⁹ bytes a second.
    pub gb_per_second: f64,
    /// Latency of the requests; of a total over several paths, that of the slowest path in each figure.
    pub latency: Option<Latency>,
    /// CPU seconds for 10⁹ bytes: of the total (and of an only path) the whole process's, the kernel's workers
    /// for it included; of one of several paths its own workers'.
    pub cpu_seconds_per_gb: f64,
    /// Seconds of the measurement.
    pub seconds: f64,
}

impl Point {
    /// Of a window.
    pub fn of(workers: usize, window: &Window) -> Self {
        let seconds = window.seconds.max(f64::MIN_POSITIVE);
        let figures = |bytes: u64, requests: u64, latency, cpu_seconds_per_byte: f64| Figures {
            iops: requests as f64 / seconds,
            gb_per_second: bytes as f64 / seconds / 1e9,
            latency,
            cpu_seconds_per_gb: cpu_seconds_per_byte * 1e9,
            seconds: window.seconds,
        };
        let of_sample =
            |s: &super::measure::Sample| figures(s.bytes, s.requests, s.latency, s.cpu_seconds_per_byte);
        let bytes: u64 = window.samples.iter().map(|sample| sample.bytes).sum();
        let requests = window.samples.iter().map(|sample| sample.requests).sum();
        let slowest = window.samples.iter().filter_map(|sample| sample.latency).reduce(slower);
        let cpu = if bytes == 0 { 0.0 } else { window.cpu_seconds / bytes as f64 };
        let total = figures(bytes, requests, slowest, cpu);
        let paths = match window.samples.len() {
            // Kernel workers that take over what would block are threads of the process, of no path in particular.
            1 => vec![total],
            _ => window.samples.iter().map(of_sample).collect(),
        };
        Point { workers, paths, total }
    }
}

/// The larger of each figure: percentiles of two sets do not add up.
fn slower(a: Latency, b: Latency) -> Latency {
    Latency {
        count: a.count + b.count,
        p50_us: a.p50_us.max(b.p50_us),
        p99_us: a.p99_us.max(b.p99_us),
        p999_us: a.p999_us.max(b.p999_us),
        max_us: a.max_us.max(b.max_us),
    }
}

#[cfg(test)]
mod tests {
    use super::super::measure::Sample;
    use super::*;

    #[test]
    fn figures_are_per_second_and_add_up() {
        let latency = |p50_us, p99_us| Some(Latency { count: 1, p50_us, p99_us, p999_us: 9, max_us: 9 });
        let sample =
            |bytes, latency| Sample { bytes, requests: bytes / 4096, latency, cpu_seconds_per_byte: 1e-9 };
        let window = Window {
            samples: vec![sample(4096 * 1000, latency(10, 90)), sample(4096 * 3000, latency(20, 50))],
            seconds: 2.0,
            cpu_seconds: 0.5,
        };
        let point = Point::of(3, &window);
        assert_eq!(point.paths[0].iops, 500.0);
        assert_eq!(point.total.iops, 2000.0);
        assert!((point.total.gb_per_second - 0.008192).abs() < 1e-9);
        assert!((point.paths[1].cpu_seconds_per_gb - 1.0).abs() < 1e-9);
        let slowest = point.total.latency.unwrap();
        assert_eq!((slowest.count, slowest.p50_us, slowest.p99_us), (2, 20, 90));
    }
}
