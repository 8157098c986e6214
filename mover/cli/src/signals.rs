//! SIGINT, SIGTERM and SIGHUP: the first asks the run to stop, a second one or [`GRACE`] ends the process.
//!
//! The signals are blocked in every thread and taken by one that waits for them, so no system call of the run is
//! interrupted and no handler runs anywhere. SIGINT and SIGHUP that the caller had ignored (`nohup`, a job in the
//! background of a script) stay ignored; a blocked signal would arrive nevertheless, so they are left out.

use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

/// How long a run may take to stop after the first signal.
pub const GRACE: Duration = Duration::from_secs(5);

/// A second signal so soon belongs to the first.
const SAME_REQUEST: Duration = Duration::from_millis(300);

/// Why the run has to end at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUp {
    /// A second signal came.
    Signal(&'static str),
    /// [`GRACE`] went by.
    Time,
}

/// Watches for signals from now on, in a thread of its own. To be called before any other thread starts, since
/// threads inherit what is blocked.
///
/// `stop` is called with the signal's name at the first one; `give_up` at the second, or when the process still
/// runs after [`GRACE`], and returns the exit code.
pub fn watch(
    stop: impl FnOnce(&'static str) + Send + 'static,
    give_up: impl Fn(GiveUp) -> u8 + Clone + Send + 'static,
) {
    // A write past the limit on file sizes shall fail with EFBIG, which names the file, and not kill.
    let mut never = SigSet::empty();
    never.add(Signal::SIGXFSZ);
    let _ = never.thread_block();
    let ignored = ignored_signals();
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    for signal in [Signal::SIGINT, Signal::SIGHUP] {
        if ignored & (1 << (signal as u32 - 1)) == 0 {
            set.add(signal);
        }
    }
    if set.thread_block().is_err() {
        return; // the signals keep their default: the process ends
    }
    let wait = move || {
        let Ok(first) = set.wait() else { return };
        let timed = give_up.clone();
        let timer = std::thread::Builder::new().name("grace".into()).stack_size(256 << 10);
        // Before `stop`, which may wait for a reader.
        let _ = timer.spawn(move || {
            std::thread::sleep(GRACE);
            std::process::exit(timed(GiveUp::Time).into());
        });
        let stopper = std::thread::Builder::new().name("stop".into()).stack_size(256 << 10);
        let _ = stopper.spawn(move || stop(first.as_str()));
        // Some tools signal the process and then its group: that is one request.
        let begun = Instant::now();
        while let Ok(second) = set.wait() {
            if begun.elapsed() >= SAME_REQUEST {
                std::process::exit(give_up(GiveUp::Signal(second.as_str())).into());
            }
        }
    };
    let thread = std::thread::Builder::new().name("signals".into()).stack_size(256 << 10);
    if thread.spawn(wait).is_err() {
        let _ = set.thread_unblock();
    }
}

/// The kernel's mask of signals that this process ignores, bit 0 for signal 1.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_library_ignores_sigpipe() {
        assert_ne!(ignored_signals() & (1 << (Signal::SIGPIPE as u32 - 1)), 0);
    }
}
