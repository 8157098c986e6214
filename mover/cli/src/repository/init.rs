//! `mover init`: makes a repository.

use std::path::PathBuf;

use mover_job::repository::access::RepositoryOptions;
use mover_job::repository::init::{self, InitDocument, InitOptions};
use mover_model::units::{format_size, parse_size};
use mover_model::{Error, Result};
use mover_repository::{Compression, Secret};

use super::{SecretArgs, StateArgs, secret};
use crate::output;
use crate::people::Fields;

/// Arguments of `mover init`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A first backup makes a repository by itself, with these defaults. With --encrypt or a key or \
                        passphrase it is encrypted, for good: keep the secret elsewhere too."
)]
pub struct Args {
    /// The folder: one that does not exist, or an empty one [default: what --repo or MOVER_REPO names]
    #[arg(value_name = "DIR", conflicts_with = "repo")]
    folder: Option<PathBuf>,

    /// The same, as other verbs have it
    #[arg(long, value_name = "DIR", help_heading = "Repository")]
    repo: Option<PathBuf>,

    /// Bytes of a chunk: a power of two from 16K to 4M [default: 128K; 512K with zstd; as --share-key-with]
    #[arg(long, value_name = "SIZE", value_parser = chunk_size)]
    chunk_size: Option<u32>,

    /// How chunks are compressed: lz4, zstd, zstd:1 to zstd:19, or none [default: lz4]
    #[arg(long, value_name = "METHOD", value_parser = compression)]
    compression: Option<Compression>,

    /// Encrypt it with a passphrase that is asked for at the terminal
    #[arg(long, help_heading = "Repository", group = "secret")]
    encrypt: bool,

    #[command(flatten)]
    secret: SecretArgs,

    #[command(flatten)]
    share: Share,

    #[command(flatten)]
    state: StateArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Equal names in two repositories")]
struct Share {
    /// Take the key of chunks' names from this repository: equal content gets equal names in both
    #[arg(long, value_name = "DIR")]
    share_key_with: Option<PathBuf>,

    /// What opens that one, as --key-file
    #[arg(long, value_name = "FILE", requires = "share_key_with", group = "other_secret")]
    other_key_file: Option<PathBuf>,

    /// What opens that one, as --passphrase-file
    #[arg(long, value_name = "FILE", requires = "share_key_with", group = "other_secret")]
    other_passphrase_file: Option<PathBuf>,

    /// What opens that one, as --passphrase-command
    #[arg(long, value_name = "COMMAND", requires = "share_key_with", group = "other_secret")]
    other_passphrase_command: Option<String>,
}

fn compression(text: &str) -> Result<Compression, String> {
    text.parse().map_err(|error| super::sentence(&error))
}

fn chunk_size(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    u32::try_from(bytes).map_err(|_| "must be a power of two from 16K to 4M".to_owned())
}

impl Args {
    fn options(&self) -> Result<InitOptions> {
        let named = self.folder.clone().or_else(|| self.repo.clone());
        let folder = named.or_else(|| super::variable("MOVER_REPO")).ok_or_else(|| {
            Error::usage("no folder is named").hint("say mover init DIR, or set MOVER_REPO")
        })?;
        let defaults = InitOptions::default();
        let secret = match self.secret.given()? {
            Some(secret) => secret,
            None if self.encrypt => {
                secret::ask_new("--key-file FILE, --passphrase-file FILE or --passphrase-command COMMAND")?
            }
            None => Secret::None,
        };
        Ok(InitOptions {
            folder,
            chunk_size: self.chunk_size,
            compression: self.compression.unwrap_or(defaults.compression),
            secret,
            share_key_with: self.share.other()?,
            state: self.state.folder(),
        })
    }
}

impl Share {
    fn other(&self) -> Result<Option<(PathBuf, Secret)>> {
        let Some(folder) = &self.share_key_with else { return Ok(None) };
        let given = secret::of(
            self.other_key_file.as_deref(),
            self.other_passphrase_file.as_deref(),
            self.other_passphrase_command.as_deref(),
        )?;
        let options = RepositoryOptions { folder: folder.clone(), ..RepositoryOptions::default() };
        let secret = given.map_or_else(|| secret::ask_if_needed(&options), Ok)?;
        Ok(Some((folder.clone(), secret)))
    }
}

/// Runs the verb; returns the process exit code.
pub fn run(args: Args, output: output::Options) -> u8 {
    match args.options().and_then(|options| init::run(&options, &super::tell)) {
        Ok(document) if output.json => output::document(&document),
        Ok(document) => output::text(&page(&document)),
        Err(error) => output::fail("init", &error, output),
    }
}

fn page(document: &InitDocument) -> String {
    let mut page = Fields::default();
    page.head(&format!("repository {}", document.id));
    page.line("folder", &document.folder);
    page.line("chunks", format!("{}, {}", format_size(document.chunk_size.into()), document.compression));
    let encrypted = if document.encrypted { "yes: without its key or passphrase it is lost" } else { "no" };
    page.line("encrypted", encrypted);
    page.maybe("shares key", document.shares_key_with.as_ref());
    page.text()
}
