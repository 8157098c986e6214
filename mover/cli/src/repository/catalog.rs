//! `mover catalog`: the cache of this host that makes listing fast.

use clap::Subcommand;
use mover_job::repository::catalog::{self, CatalogDocument};
use mover_model::Result;

use super::{RepoArgs, StateArgs};
use crate::output;
use crate::people::{columns, figures, short_time, words};

/// Arguments of `mover catalog`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Forget what is known of a repository, and read it again from its manifests
    Rebuild(Rebuild),
    /// Show the repositories that this host knows
    Status(Status),
}

#[derive(Debug, clap::Args)]
struct Rebuild {
    #[command(flatten)]
    repository: RepoArgs,
    #[command(flatten)]
    output: output::Options,
}

#[derive(Debug, clap::Args)]
struct Status {
    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    output: output::Options,
}

/// Runs the verb; returns the process exit code.
pub fn run(args: Args) -> u8 {
    let (verb, output, document) = match args.what {
        What::Rebuild(Rebuild { repository, output }) => ("catalog rebuild", output, rebuilt(&repository)),
        What::Status(Status { state, output }) => {
            ("catalog status", output, catalog::status(state.folder().as_ref()))
        }
    };
    match document {
        Ok(document) if output.json => output::document(&document),
        Ok(document) => output::text(&page(&document)),
        Err(error) => output::fail(verb, &error, output),
    }
}

fn rebuilt(repository: &RepoArgs) -> Result<CatalogDocument> {
    catalog::rebuild(&repository.options()?, &super::tell)
}

fn page(document: &CatalogDocument) -> String {
    let head = [
        words("REPOSITORY"),
        words("PLACE"),
        words("SEEN"),
        figures("MACHINES"),
        figures("POINTS"),
        words("STATE"),
    ];
    let rows: Vec<Vec<String>> = document
        .repositories
        .iter()
        .map(|repository| {
            vec![
                repository.id.clone(),
                repository.places.first().cloned().unwrap_or_default(),
                short_time(&repository.seen),
                repository.machines.to_string(),
                repository.points.to_string(),
                if repository.unreadable > 0 {
                    format!("{} unreadable", repository.unreadable)
                } else {
                    String::new()
                },
            ]
        })
        .collect();
    format!("catalog {}\n{}", document.path, columns(&head, &rows))
}
