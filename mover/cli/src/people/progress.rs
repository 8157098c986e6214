//! Progress for people: a bar on a terminal, a line every ten seconds elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mover_model::event::Progress;
use mover_model::units::format_size;

use crate::output;

/// Time between two lines where there is no terminal.
const LINE_SECONDS: f64 = 10.0;
/// How much the newest second counts in the estimate of the time left.
const NEWEST_WEIGHT: f64 = 0.3;

/// Shows where a run stands.
pub struct ProgressView {
    way: Way,
    bar: Option<ProgressBar>,
    phase: String,
    last_line: f64,
    estimate: Estimate,
}

enum Way {
    Bar,
    Lines,
    Nothing,
}

impl ProgressView {
    pub fn new(shown: bool) -> Self {
        let way = match shown {
            true if output::stderr_is_a_screen() => Way::Bar,
            true => Way::Lines,
            false => Way::Nothing,
        };
        ProgressView { way, bar: None, phase: String::new(), last_line: 0.0, estimate: Estimate::default() }
    }

    /// Takes a progress event; a line to print where there is one.
    pub fn advance(&mut self, progress: &Progress) -> Option<String> {
        if progress.phase != self.phase {
            self.clear();
            self.phase.clone_from(&progress.phase);
            self.estimate = Estimate::default();
        }
        self.estimate.advance(progress);
        match self.way {
            Way::Nothing => None,
            Way::Bar => {
                let left = self.estimate.left(progress);
                let bar = self.bar.get_or_insert_with(|| new_bar(progress));
                bar.set_position(progress.done_bytes);
                bar.set_message(figures(progress, left));
                None
            }
            Way::Lines => {
                if progress.elapsed_seconds < self.last_line + LINE_SECONDS {
                    return None;
                }
                self.last_line = progress.elapsed_seconds;
                let percent =
                    progress.total_bytes.filter(|total| *total > 0).map_or_else(String::new, |total| {
                        format!(" {}%", u128::from(progress.done_bytes) * 100 / u128::from(total))
                    });
                Some(format!(
                    "{}{percent} {}",
                    progress.phase,
                    figures(progress, self.estimate.left(progress))
                ))
            }
        }
    }

    /// Calls `f` with the bar out of the way.
    pub fn around<T>(&self, f: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(f),
            None => f(),
        }
    }

    /// Takes the bar away.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn new_bar(progress: &Progress) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(progress.total_bytes, ProgressDrawTarget::stderr());
    let template = if progress.total_bytes.is_some() {
        "{prefix} [{bar:20}] {percent:>3}% {wide_msg}"
    } else {
        "{prefix} {spinner} {wide_msg}"
    };
    let style = ProgressStyle::with_template(template).expect("a fixed template");
    bar.set_style(style.progress_chars("=> "));
    bar.set_prefix(progress.phase.clone());
    bar
}

fn figures(progress: &Progress, left: Option<Duration>) -> String {
    let of = progress.total_bytes.map_or_else(String::new, |total| format!(" of {}", format_size(total)));
    let left = left.map_or_else(String::new, |left| format!(", {} left", duration(left)));
    let rate = progress.bytes_per_second as f64 / 1e9;
    format!("{}{of}, {rate:.2} GB/s{left}", format_size(progress.done_bytes))
}

/// `12 s`, `3 min 5 s`, `2 h 10 min`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// The smoothed speed at which a disk is done, holes included.
#[derive(Default)]
struct Estimate {
    last: Option<(f64, u64)>,
    bytes_per_second: f64,
}

impl Estimate {
    fn advance(&mut self, progress: &Progress) {
        let (now, done) = (progress.elapsed_seconds, progress.done_bytes);
        if let Some((before, done_before)) = self.last {
            let seconds = now - before;
            if seconds <= 0.0 {
                return;
            }
            let speed = done.saturating_sub(done_before) as f64 / seconds;
            self.bytes_per_second = if self.bytes_per_second == 0.0 {
                speed
            } else {
                NEWEST_WEIGHT * speed + (1.0 - NEWEST_WEIGHT) * self.bytes_per_second
            };
        }
        self.last = Some((now, done));
    }

    fn left(&self, progress: &Progress) -> Option<Duration> {
        let left = progress.total_bytes?.saturating_sub(progress.done_bytes) as f64;
        Duration::try_from_secs_f64(left / self.bytes_per_second).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64, done: u64) -> Progress {
        Progress {
            phase: "copy".into(),
            data_bytes: done,
            done_bytes: done,
            total_bytes: Some(100 << 30),
            bytes_per_second: 1_000_000_000,
            elapsed_seconds: seconds,
            ..Progress::default()
        }
    }

    #[test]
    fn a_log_gets_a_line_every_ten_seconds() {
        let mut view = ProgressView::new(true);
        view.way = Way::Lines;
        let lines: Vec<String> =
            (1..=25).filter_map(|s| view.advance(&at(f64::from(s), (s as u64) << 30))).collect();
        assert_eq!(
            lines,
            [
                "copy 10% 10 GiB of 100 GiB, 1.00 GB/s, 1 min 30 s left",
                "copy 20% 20 GiB of 100 GiB, 1.00 GB/s, 1 min 20 s left"
            ]
        );
    }

    #[test]
    fn nothing_known_nothing_promised() {
        let mut view = ProgressView::new(true);
        view.way = Way::Lines;
        let stalled = Progress { total_bytes: None, ..at(10.0, 0) };
        assert_eq!(view.advance(&stalled).unwrap(), "copy 0 B, 1.00 GB/s");
        assert_eq!(view.advance(&at(20.0, 0)).unwrap(), "copy 0% 0 B of 100 GiB, 1.00 GB/s");
        let mut nothing = ProgressView::new(false);
        assert_eq!(nothing.advance(&at(100.0, 1)), None);
    }
}
