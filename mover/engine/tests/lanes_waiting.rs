//! Lanes that wait for something outside the ring.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

mod recording;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mover_engine::{Access, Alignment, Io, Lane, LaneSetup, Settings, Sink, lane::LaneOperation};
use mover_model::Result;
use recording::{K, M, PLAIN, Rig, backends, data, move_between, must_end};

/// A sink that ends its writes at once, and at the end waits for a flag.
struct Patient {
    over: Arc<AtomicBool>,
}

struct PatientLane {
    over: Arc<AtomicBool>,
}

impl Sink for Patient {
    fn label(&self) -> String {
        "patient".to_owned()
    }
    fn capacity(&self) -> Option<u64> {
        None
    }
    fn access(&self) -> Access {
        Access::Buffered
    }
    fn alignment(&self, _: Access) -> Alignment {
        Alignment::NONE
    }
    fn reads_zero(&self) -> bool {
        true
    }
    fn lane(&self, _: Access, _: &mut LaneSetup<'_>) -> Result<Box<dyn Lane>> {
        Ok(Box::new(PatientLane { over: self.over.clone() }))
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn finish(&self, _: u64) -> Result<()> {
        Ok(())
    }
}

impl Lane for PatientLane {
    fn begin(&mut self, operation: LaneOperation, io: &mut Io<'_>) {
        io.finish(&operation, Ok(operation.length));
    }
    fn advance(&mut self, _: u32, _: i32, _: &mut Io<'_>) {}
    fn is_idle(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

#[test]
fn a_lane_that_waits_for_something_else_is_waited_for_until_the_run_is_stopped() {
    const WAIT: Duration = Duration::from_millis(50);
    for (backend, stopped) in backends().into_iter().flat_map(|b| [(b, true), (b, false)]) {
        must_end(move || {
            let rig = Rig::new(16 * K);
            let (over, control) = (Arc::new(AtomicBool::new(false)), rig.control.clone());
            let sink = Patient { over: over.clone() };
            let begin = Instant::now();
            let thread = std::thread::spawn(move || {
                std::thread::sleep(WAIT);
                if stopped { control.stop() } else { over.store(true, Ordering::Release) }
            });
            let extents = Box::new(std::iter::once(Ok(data(0, M))));
            let settings = Settings {
                block_size: 16 * K as u32,
                queue_depth: 8,
                workers: 1,
                backend,
                ..Settings::default()
            };
            let moves = move_between(&settings, PLAIN, &rig.control, None, &rig.source, &sink, extents);
            assert!(begin.elapsed() >= WAIT);
            assert!(moves.error().is_none());
            assert_eq!(moves.report.cut_short, stopped);
            thread.join().unwrap();
        });
    }
}
