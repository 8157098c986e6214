//! `mover tune`: arguments and rendering; the work is `mover_job::tune`.

use mover_model::{Error, ErrorKind};

use crate::output;

/// Arguments of `mover tune`.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb; returns the process exit code.
pub fn run(_args: Args, output: output::Options) -> u8 {
    output::fail("tune", &Error::new(ErrorKind::Internal, "this build has no `tune`"), output)
}
