//! From the outcomes of all pairs to one `result` and one exit code.

use mover_engine::Control;
use mover_model::error::{EXIT_BAD_EXTENTS, most_severe};
use mover_model::event::{RunResult, Status};
use mover_model::{Error, Result};

/// Fills status, error and exit code. `ended` is an error of the run as a whole; those of pairs stand in
/// `result.pairs` already.
pub(super) fn conclude(result: &mut RunResult, ended: Result<()>, control: &Control) {
    result.degraded = control.degraded(0);
    if let Err(error) = ended {
        fail(result, &error);
    }
    let mut code = result.exit_code;
    for pair in &result.pairs {
        if let Some(error) = &pair.error {
            let severe = most_severe(code, error.kind.exit_code());
            if severe != code || result.error.is_none() {
                result.error = Some(error.clone());
            }
            code = severe;
        }
    }
    if result.bad_extents_count > 0 {
        code = most_severe(code, EXIT_BAD_EXTENTS);
    }
    result.exit_code = code;
    result.status = match code {
        0 => Status::Done,
        EXIT_BAD_EXTENTS => Status::DoneWithBadExtents,
        _ => Status::Failed,
    };
}

fn fail(result: &mut RunResult, error: &Error) {
    result.error = Some(error.record());
    result.exit_code = error.exit_code();
}
