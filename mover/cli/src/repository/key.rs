//! `mover key`: what opens an encrypted repository.

use std::path::PathBuf;

use clap::Subcommand;
use mover_job::repository::key::{self, KeyDocument, KeyListDocument};
use mover_model::Result;
use mover_repository::keys::slots::SlotKind;

use super::{PlaceArgs, RepoArgs, secret};
use crate::output;
use crate::people::{columns, short_time, words};

/// Arguments of `mover key`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "To change a passphrase: add a key slot for the new one, then remove that of the old one. Nothing \
                        that is stored is encrypted anew."
)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Let another key or passphrase open the repository
    Add(Add),
    /// Let a key or passphrase open it no more
    Remove(Remove),
    /// Show the key slots
    List(List),
}

#[derive(Debug, clap::Args)]
struct Add {
    #[command(flatten)]
    new: New,
    #[command(flatten)]
    repository: RepoArgs,
    #[command(flatten)]
    output: output::Options,
}

/// The new secret; asked for at the terminal where none is named.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "The new one")]
struct New {
    /// A file of at least 32 random bytes
    #[arg(long, value_name = "FILE", group = "new_secret")]
    new_key_file: Option<PathBuf>,

    /// A file with the passphrase [default: it is asked for at the terminal]
    #[arg(long, value_name = "FILE", group = "new_secret")]
    new_passphrase_file: Option<PathBuf>,

    /// A shell command that prints the passphrase
    #[arg(long, value_name = "COMMAND", group = "new_secret")]
    new_passphrase_command: Option<String>,

    /// What it is called in `mover key list`, for everyone to read
    #[arg(long, value_name = "TEXT", default_value = "")]
    label: String,
}

#[derive(Debug, clap::Args)]
struct Remove {
    /// The key slot's id, from `mover key list`
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    repository: RepoArgs,
    #[command(flatten)]
    output: output::Options,
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: output::Options,
}

/// Runs the verb; returns the process exit code.
pub fn run(args: Args) -> u8 {
    match args.what {
        What::Add(add) => changed("key add", "added", added(&add), add.output),
        What::Remove(remove) => {
            let removed = remove.repository.options().and_then(|options| key::remove(&options, &remove.id));
            changed("key remove", "removed", removed, remove.output)
        }
        What::List(List { place, output }) => match place.options().and_then(|options| key::list(&options)) {
            Ok(document) if output.json => output::document(&document),
            Ok(document) => output::text(&page(&document)),
            Err(error) => output::fail("key list", &error, output),
        },
    }
}

fn added(add: &Add) -> Result<KeyDocument> {
    let options = add.repository.options()?;
    let New { new_key_file, new_passphrase_file, new_passphrase_command, label } = &add.new;
    let given = secret::of(
        new_key_file.as_deref(),
        new_passphrase_file.as_deref(),
        new_passphrase_command.as_deref(),
    )?;
    let flags = "--new-key-file FILE, --new-passphrase-file FILE or --new-passphrase-command COMMAND";
    let new = given.map_or_else(|| secret::ask_new(flags), Ok)?;
    key::add(&options, &new, label)
}

fn changed(verb: &str, what: &str, document: Result<KeyDocument>, output: output::Options) -> u8 {
    match document {
        Ok(document) if output.json => output::document(&document),
        Ok(document) => output::text(&format!("key slot {} {what}\n", document.slot.id)),
        Err(error) => output::fail(verb, &error, output),
    }
}

fn page(document: &KeyListDocument) -> String {
    if !document.encrypted {
        return format!("repository {} is not encrypted: it has no key slots\n", document.repository);
    }
    let rows: Vec<Vec<String>> = document
        .slots
        .iter()
        .map(|slot| {
            let kind = match slot.kind {
                SlotKind::Passphrase => "passphrase",
                SlotKind::KeyFile => "key file",
            };
            vec![slot.id.clone(), kind.to_owned(), short_time(&slot.created), slot.label.clone()]
        })
        .collect();
    let mut text = columns(&[words("ID"), words("KIND"), words("MADE"), words("LABEL")], &rows);
    for unreadable in &document.unreadable {
        text.push_str(&format!("cannot be read: {}: {}\n", unreadable.key, unreadable.reason));
    }
    text
}
