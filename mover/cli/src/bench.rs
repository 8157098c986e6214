//! `mover bench`: arguments and rendering; the work is `mover_job::bench`.

use mover_model::{Error, ErrorKind};

use crate::output;

/// Arguments of `mover bench`.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb; returns the process exit code.
pub fn run(_args: Args, output: output::Options) -> u8 {
    output::fail("bench", &Error::new(ErrorKind::Internal, "this build has no `bench`"), output)
}
