//! `mover diff`: what changed between two restore points, as a list that `copy --extents` takes.

use mover_job::repository::diff::{self, DiffDocument, DiffOptions};
use mover_model::{Error, Name, Operation, PointArg, Result};

use super::RepoArgs;
use crate::output;

/// Arguments of `mover diff`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Prints a list of extents (docs/formats/extents.md): what has to be written to bring a copy of OLD \
                        to the state of NEW. `mover copy --extents` takes it."
)]
pub struct Args {
    /// The older restore point
    #[arg(value_name = "OLD@POINT", value_parser = super::exact_point)]
    old: PointArg,

    /// The newer one; of another machine, if you like
    #[arg(value_name = "NEW@POINT", value_parser = super::exact_point)]
    new: PointArg,

    /// The disk; needed where the restore points have several
    #[arg(long, value_name = "ID", value_parser = super::name)]
    disk: Option<Name>,

    #[command(flatten)]
    repository: RepoArgs,
}

/// Runs the verb; returns the process exit code.
pub fn run(args: Args, output: output::Options) -> u8 {
    match compared(args) {
        Ok(document) if output.json => output::document(&document),
        Ok(document) => {
            let mut list = Vec::new();
            match document.write(&mut list) {
                Ok(()) => output::bytes(&list),
                Err(error) => {
                    output::fail("diff", &Error::io(Operation::Write, "standard output", &error), output)
                }
            }
        }
        Err(error) => output::fail("diff", &error, output),
    }
}

fn compared(args: Args) -> Result<DiffDocument> {
    diff::run(&DiffOptions {
        repository: args.repository.options()?,
        old: args.old.or_latest(),
        new: args.new.or_latest(),
        disk: args.disk,
    })
}
