//! The verbs that work on a repository. Each is a file with its arguments and its `run`; what they do is in
//! `mover_job::repository`.

pub mod backup;
pub mod catalog;
pub mod diff;
pub mod gc;
pub mod init;
pub mod key;
pub mod list;
pub mod prune;
pub mod restore;
mod secret;
pub mod show;
pub mod verify;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use mover_job::repository::access::RepositoryOptions;
use mover_model::event::Event;
use mover_model::units::parse_duration;
use mover_model::{DiskArg, Error, FileOfDisk, Name, PointArg, Result, TargetArg};

use crate::people;
use secret::SecretArgs;

/// Which repository, and what opens it: every verb that works on one takes these.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Repository")]
pub struct RepoArgs {
    #[command(flatten)]
    place: PlaceArgs,

    #[command(flatten)]
    secret: SecretArgs,
}

/// Which repository.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Repository")]
pub struct PlaceArgs {
    /// The repository's folder [default: what MOVER_REPO names]
    #[arg(long, value_name = "DIR")]
    repo: Option<PathBuf>,

    /// Refuse any repository but the one of this id, as `mover show` tells it
    #[arg(long, value_name = "ID")]
    repo_id: Option<String>,

    #[command(flatten)]
    state: StateArgs,
}

/// Where this host keeps its catalog.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct StateArgs {
    /// Folder of this host's catalog, a cache [default: what MOVER_STATE names, else
    /// /var/lib/mover for root and ~/.local/state/mover for others]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

impl RepoArgs {
    /// What the job is told. Asks for a passphrase where the repository needs one, none was given, and there is a
    /// terminal to ask at.
    ///
    /// # Errors
    /// `Usage` where no repository is named; `Key` for a key or passphrase that cannot be had.
    pub fn options(&self) -> Result<RepositoryOptions> {
        let mut options = self.place.options()?;
        options.secret = match self.secret.given()? {
            Some(secret) => secret,
            None => secret::ask_if_needed(&options)?,
        };
        Ok(options)
    }
}

impl PlaceArgs {
    /// What the job is told, without a secret.
    ///
    /// # Errors
    /// `Usage` where no repository is named.
    pub fn options(&self) -> Result<RepositoryOptions> {
        let folder = self.repo.clone().or_else(|| variable("MOVER_REPO")).ok_or_else(|| {
            Error::usage("no repository is named").hint("say --repo DIR, or set MOVER_REPO")
        })?;
        if folder.as_os_str().is_empty() {
            return Err(Error::usage("--repo is empty").hint("name the repository's folder"));
        }
        Ok(RepositoryOptions {
            folder,
            id: self.repo_id.clone(),
            state: self.state.folder(),
            ..RepositoryOptions::default()
        })
    }
}

impl StateArgs {
    /// The folder that was named, if any; the repository knows the variables of the environment.
    pub fn folder(&self) -> Option<PathBuf> {
        self.state.clone()
    }
}

/// A variable of the environment; an empty one counts as none.
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Shows the warnings of a verb that prints a document.
fn tell(event: Event) {
    people::tell(&event);
}

// clap's parsers take text or OsStr; these bring our errors into its form.

fn name(text: &str) -> Result<Name, String> {
    text.parse().map_err(|error| sentence(&error))
}

fn point(text: &str) -> Result<PointArg, String> {
    PointArg::parse(text).map_err(|error| sentence(&error))
}

/// `NAME@POINT`, where a point must be named.
fn exact_point(text: &str) -> Result<PointArg, String> {
    let arg = point(text)?;
    if arg.point.is_none() {
        return Err(format!("names no restore point; write {0}@ID, {0}@latest or {0}@TIME", arg.vm));
    }
    Ok(arg)
}

/// A duration: what `units` reads, and days and weeks.
fn duration(text: &str) -> Result<Duration, String> {
    let hours = [("d", 24u32), ("w", 24 * 7)].into_iter().find_map(|(unit, hours)| {
        let number = text.strip_suffix(unit)?;
        // `h` is put behind the number, so that everything else is checked in one place.
        Some(parse_duration(&format!("{number}h")).ok()?.checked_mul(hours))
    });
    let parsed = match hours {
        Some(duration) => duration,
        None => parse_duration(text).ok(),
    };
    parsed.ok_or_else(|| "write a duration such as 90s, 10m, 12h or 7d".to_owned())
}

/// The error and its next step in one line, for clap, which shows one.
fn sentence(error: &Error) -> String {
    match error.record().hint {
        Some(hint) => format!("{}; {hint}", error.message()),
        None => error.message().to_owned(),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    mover_model::disk_arg::label(OsStr::new(text)).map_err(|error| sentence(&error))
}

/// `--disk ID=SOURCE`, several of them.
fn disks(given: &[OsString]) -> Result<Vec<DiskArg>> {
    given.iter().map(|text| DiskArg::parse(text)).collect()
}

/// `--disk ID=TARGET`, several of them.
fn targets(given: &[OsString]) -> Result<Vec<TargetArg>> {
    given.iter().map(|text| TargetArg::parse(text)).collect()
}

/// `--extents ID=FILE`, several of them; the id may be left out where there is one disk.
fn extents(given: &[OsString], disks: &[DiskArg]) -> Result<Vec<(Name, PathBuf)>> {
    let mut lists: Vec<(Name, PathBuf)> = Vec::with_capacity(given.len());
    for text in given {
        let FileOfDisk { id, file } = FileOfDisk::parse(text)?;
        let id = match (id, disks) {
            (Some(id), disks) if disks.iter().any(|disk| disk.id == id) => id,
            (Some(id), _) => {
                return Err(Error::usage(format!("--extents {id}=…: no disk `{id}` is given"))
                    .hint("name one of the ids of --disk"));
            }
            (None, [disk]) => disk.id.clone(),
            (None, _) => {
                return Err(Error::usage(format!("--extents {}: of which disk?", file.display()))
                    .hint("write --extents ID=FILE"));
            }
        };
        if lists.iter().any(|(other, _)| *other == id) {
            return Err(Error::usage(format!("--extents names two lists of disk {id}"))
                .hint("join them, or give the disk one"));
        }
        lists.push((id, file));
    }
    Ok(lists)
}

/// No id may be given twice.
fn each_once<'a>(ids: impl IntoIterator<Item = &'a Name>) -> Result<()> {
    let mut seen = Vec::new();
    for id in ids {
        if seen.contains(&id) {
            return Err(
                Error::usage(format!("--disk {id}=… is given twice")).hint("every disk has an id of its own")
            );
        }
        seen.push(id);
    }
    Ok(())
}
