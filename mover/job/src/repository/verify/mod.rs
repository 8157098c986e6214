//! `mover verify`: reads every object that restore points need once, and says which of them damage touches.

mod execute;
mod report;

use mover_engine::Control;
use mover_model::error::most_severe;
use mover_model::event::{RunResult, Status};
use mover_model::{Error, Name, PointSelector, Result};

use super::access::RepositoryOptions;
use crate::Emit;
use crate::options::EngineOptions;

/// `--sample`: how many of the chunks in scope are read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sample {
    /// This share of them, above 0 up to 100.
    Percent(f64),
    /// This many, at least 1.
    Count(u64),
}

impl std::str::FromStr for Sample {
    type Err = Error;

    /// `5%`, `0.1%` or `1000`.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::usage(format!("--sample {}: is no sample", text.escape_debug()))
                .hint("write a share such as 5%, or a number of chunks such as 1000")
        };
        match text.strip_suffix('%') {
            Some(percent) => percent
                .parse()
                .ok()
                .filter(|percent: &f64| *percent > 0.0 && *percent <= 100.0)
                .map(Sample::Percent)
                .ok_or_else(bad),
            None => text.parse().ok().filter(|count| *count > 0).map(Sample::Count).ok_or_else(bad),
        }
    }
}

/// What `mover verify` is told.
#[derive(Debug, Clone, Default)]
pub struct VerifyOptions {
    /// Which repository.
    pub repository: RepositoryOptions,
    /// Only this machine's restore points; `None`: those of all.
    pub vm: Option<Name>,
    /// Only this restore point of `vm`; a usage error without it.
    pub point: Option<PointSelector>,
    /// `--since`: only restore points begun at or after this time: nanoseconds since 1970, UTC.
    pub since: Option<i128>,
    /// `--sample`: a random choice of the chunks; everything that names them is read all the same.
    pub sample: Option<Sample>,
    /// The engine's flags.
    pub engine: EngineOptions,
    /// `--strict`: a downgrade is an error.
    pub strict: bool,
}

/// Verifies and returns the `result` record, with [`RunResult::verify`] filled; its `exit_code` is the process's: 6 where
/// damage was found.
///
/// Emits everything but `start` and `result`, which are the caller's. Stops early once `control` is stopped.
pub fn run(options: &VerifyOptions, control: &Control, emit: Emit<'_>) -> RunResult {
    let mut result = RunResult { verb: "verify".into(), ..RunResult::default() };
    let ended = execute::execute(options, control, emit, &mut result);
    result.degraded = control.degraded(0);
    if let Err(error) = ended {
        let code = most_severe(result.exit_code, error.exit_code());
        // Damage that was found is worse than what ended the run.
        if code != result.exit_code || result.error.is_none() {
            result.error = Some(error.record());
        }
        result.exit_code = code;
    }
    result.status = if result.exit_code == 0 { Status::Done } else { Status::Failed };
    result
}
