//! From the outcomes of all disks to one `result` and one exit code.

use mover_engine::Control;
use mover_model::Result;
use mover_model::error::most_severe;
use mover_model::event::{RunResult, Status};

/// Fills status, error and exit code. `ended` is an error of the run as a whole; those of disks stand in
/// `result.pairs` already.
pub(super) fn conclude(result: &mut RunResult, ended: Result<()>, control: &Control) {
    result.degraded = control.degraded(0);
    if let Err(error) = ended {
        result.exit_code = error.exit_code();
        result.error = Some(error.record());
    }
    for pair in &result.pairs {
        let Some(error) = &pair.error else { continue };
        let severe = most_severe(result.exit_code, error.kind.exit_code());
        if severe != result.exit_code || result.error.is_none() {
            result.error = Some(error.clone());
        }
        result.exit_code = severe;
    }
    result.status = if result.exit_code == 0 { Status::Done } else { Status::Failed };
}
