//! `mover doctor`: arguments and rendering; the work is `mover_job::doctor`.

use mover_model::{Error, ErrorKind};

use crate::output;

/// Arguments of `mover doctor`.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb; returns the process exit code.
pub fn run(_args: Args, output: output::Options) -> u8 {
    output::fail("doctor", &Error::new(ErrorKind::Internal, "this build has no `doctor`"), output)
}
