//! The two to four lines at the end of a run.

use mover_model::event::{Moved, RunResult, Status};
use mover_model::units::format_size;

use super::points;

/// The end of a run: of a copy, else of what worked on a repository.
pub fn summary(result: &RunResult) -> Vec<String> {
    if let Some(verify) = &result.verify {
        return points::verify(result, verify);
    }
    if let Some(gc) = &result.gc {
        return points::gc(result, gc);
    }
    if let Some(prune) = &result.prune {
        return points::prune(prune);
    }
    match &result.point {
        Some(point) if result.verb == "backup" => points::backup(result, point),
        Some(point) => points::restore(result, point),
        None if result.verb == "copy" => copy_summary(result),
        // It ended before there was anything to tell but its error.
        None => Vec::new(),
    }
}

/// Time, rate, CPU and memory of a run that moved so many bytes.
pub fn pace(result: &RunResult, bytes: u64) -> String {
    pace_and(result, bytes, "")
}

/// Likewise, with some words behind the time.
fn pace_and(result: &RunResult, bytes: u64, words: &str) -> String {
    let seconds = result.elapsed_seconds;
    let mut text = format!("{seconds:.2} s{words}");
    if bytes > 0 && seconds > 0.0 {
        let gb = bytes as f64 / 1e9;
        text.push_str(&format!(": {:.2} GB/s, {:.2} CPU s/GB", gb / seconds, result.cpu_seconds / gb));
    } else {
        text.push_str(&format!(": {:.2} CPU s", result.cpu_seconds));
    }
    text.push_str(&format!(", peak memory {}", format_size(result.peak_memory_bytes)));
    text
}

/// What moved, in which time and at which cost; what was zero; what is known of the targets.
fn copy_summary(result: &RunResult) -> Vec<String> {
    let moved = &result.moved;
    let failed = result.status == Status::Failed;
    let bytes = moved.written_bytes + moved.offloaded_bytes;
    if failed && bytes == 0 && moved.zero_bytes == 0 {
        return Vec::new();
    }
    let early = if failed { " before it ended" } else { "" };
    let mut lines = vec![format!("copied {} in {}", format_size(bytes), pace_and(result, bytes, early))];
    lines.extend(not_moved(moved));
    if !failed {
        lines.extend(targets(result));
    }
    if result.bad_extents_count > 0 {
        lines.push(format!(
            "{} bad extents could not be read; the target was left there as it was",
            result.bad_extents_count
        ));
    }
    lines
}

fn not_moved(moved: &Moved) -> Option<String> {
    let mut parts = Vec::new();
    if moved.zero_bytes > 0 {
        let found = match moved.zero_found_bytes {
            0 => String::new(),
            found => format!(" ({} of it found in data)", format_size(found)),
        };
        parts.push(format!("{} zero{found}", format_size(moved.zero_bytes)));
    }
    if moved.offloaded_bytes > 0 {
        parts.push(format!("{} of it by the kernel, without reading", format_size(moved.offloaded_bytes)));
    }
    if moved.resumed_bytes > 0 {
        parts.push(format!("{} there from an earlier run", format_size(moved.resumed_bytes)));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn targets(result: &RunResult) -> Option<String> {
    let all = result.pairs.len();
    let count = |name: &str, n: usize| match n {
        0 => None,
        n if n == all => Some(name.to_owned()),
        n => Some(format!("{name} {n} of {all}")),
    };
    let verified = count("verified", result.pairs.iter().filter(|pair| pair.verified).count());
    let flushed = count("flushed", result.pairs.iter().filter(|pair| pair.flushed).count());
    let verified = verified.map(|text| match result.moved.verified_bytes {
        0 => text,
        bytes => format!("{text} ({} read back)", format_size(bytes)),
    });
    let parts: Vec<String> = verified.into_iter().chain(flushed).collect();
    (!parts.is_empty()).then(|| format!("target {}", parts.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::copy_summary as summary;
    use super::*;
    use mover_model::event::PairResult;

    fn result() -> RunResult {
        RunResult {
            elapsed_seconds: 2.0,
            cpu_seconds: 0.4,
            peak_memory_bytes: 28 << 20,
            moved: Moved {
                written_bytes: 4_000_000_000,
                zero_bytes: 3 << 30,
                zero_found_bytes: 1 << 30,
                verified_bytes: 4 << 30,
                ..Moved::default()
            },
            pairs: vec![PairResult { flushed: true, verified: true, ..PairResult::default() }],
            ..RunResult::default()
        }
    }

    #[test]
    fn a_run_in_three_lines() {
        assert_eq!(
            summary(&result()),
            [
                "copied 3.7 GiB in 2.00 s: 2.00 GB/s, 0.10 CPU s/GB, peak memory 28 MiB",
                "3 GiB zero (1 GiB of it found in data)",
                "target verified (4 GiB read back), flushed"
            ]
        );
    }

    #[test]
    fn a_refused_run_has_no_summary_and_a_failed_one_says_how_far_it_came() {
        let refused = RunResult { status: Status::Failed, ..RunResult::default() };
        assert_eq!(summary(&refused), [""; 0]);
        let failed = RunResult { status: Status::Failed, ..result() };
        assert!(summary(&failed)[0].contains("before it ended"));
        assert_eq!(summary(&failed).len(), 2);
    }

    #[test]
    fn nothing_moved_divides_by_nothing() {
        let empty = RunResult { cpu_seconds: 0.01, peak_memory_bytes: 1 << 20, ..RunResult::default() };
        assert_eq!(summary(&empty), ["copied 0 B in 0.00 s: 0.01 CPU s, peak memory 1 MiB"]);
    }
}
