//! What the process has used: CPU time and peak memory.

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// User and system time of the process in seconds.
pub fn cpu_seconds() -> f64 {
    getrusage(UsageWho::RUSAGE_SELF)
        .map(|usage| (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6)
        .unwrap_or_default()
}

/// Peak resident memory in bytes.
///
/// `VmHWM` comes first: the figure of getrusage begins with the memory of the process that started this one.
pub fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let high_water = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib =
        high_water.and_then(|text| text.trim().strip_suffix("kB")).and_then(|text| text.trim().parse().ok());
    let kib: u64 = kib.unwrap_or_else(|| {
        getrusage(UsageWho::RUSAGE_SELF).map(|usage| usage.max_rss() as u64).unwrap_or_default()
    });
    kib << 10
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_uses_something() {
        assert!(super::peak_memory_bytes() > 100 << 10);
        let mut sum = 0u64;
        while super::cpu_seconds() == 0.0 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
    }
}
