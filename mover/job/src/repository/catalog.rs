//! `mover catalog`: the host's cache of what manifests say.

use std::path::PathBuf;

use mover_model::event::Event;
use mover_model::{Error, ErrorKind, Result};
use mover_repository::Repository;
use mover_repository::catalog::{self, KnownRepository, Opened, Scope};
use serde::Serialize;

use super::access::{self, RepositoryOptions};
use crate::Emit;

/// The document of `catalog rebuild --json` and `catalog status --json`. Version 1 only grows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CatalogDocument {
    /// Version of this document.
    pub version: u32,
    /// The catalog's file.
    pub path: String,
    /// The repositories it knows.
    pub repositories: Vec<CatalogRepository>,
}

/// A repository that the catalog knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CatalogRepository {
    /// Its id.
    pub id: String,
    /// The folders it was seen at, the last one first.
    pub places: Vec<String>,
    /// When it was last seen: RFC 3339, UTC.
    pub seen: String,
    /// Machines.
    pub machines: u64,
    /// Restore points.
    pub points: u64,
    /// Manifests that could not be read by this rebuild; `status` reads none.
    pub unreadable: u64,
}

/// Opens the host's catalog, brought up to date for the scope. What is wrong with it is told in warnings, and then one in
/// memory takes its place: the answers are right all the same.
///
/// # Errors
/// The store's.
pub fn open(
    repository: &Repository,
    options: &RepositoryOptions,
    scope: &Scope,
    emit: Emit<'_>,
) -> Result<Opened> {
    let opened = catalog::open(options.state.as_deref(), repository, None, scope, false)?;
    tell(&opened, emit);
    Ok(opened)
}

fn tell(opened: &Opened, emit: Emit<'_>) {
    for message in &opened.warnings {
        emit(Event::Warning { message: message.clone() });
    }
    for (_, error) in &opened.unreadable {
        emit(Event::Warning { message: format!("a restore point cannot be read: {error}") });
    }
}

/// Forgets what the catalog knows of a repository and reads it again from the manifests alone.
///
/// # Errors
/// Those of opening the repository; the store's; `Io` where the catalog itself cannot be written.
pub fn rebuild(options: &RepositoryOptions, emit: Emit<'_>) -> Result<CatalogDocument> {
    let repository = access::open(options)?;
    let opened =
        catalog::open(options.state.as_deref(), &repository, Some(&options.folder), &Scope::All, true)?;
    tell(&opened, emit);
    if !opened.durable {
        let why = opened.warnings.last().cloned().unwrap_or_default();
        return Err(Error::new(ErrorKind::Io, format!("the catalog was not rebuilt: {why}"))
            .hint("name another state folder with --state DIR or MOVER_STATE"));
    }
    let known = opened.catalog.repositories()?.into_iter();
    let mine = known.filter(|known| known.id == repository.config().id);
    let unreadable = opened.unreadable.len() as u64;
    Ok(document(
        opened.catalog.label(),
        mine.map(|known| CatalogRepository { unreadable, ..known.into() }).collect(),
    ))
}

/// What the catalog of this host knows; no repository is opened.
///
/// # Errors
/// `NotFound` where there is no catalog; `Io`.
pub fn status(state: Option<&PathBuf>) -> Result<CatalogDocument> {
    let (path, known) = catalog::status(state.map(PathBuf::as_path))?;
    Ok(document(path.display().to_string(), known.into_iter().map(CatalogRepository::from).collect()))
}

fn document(path: String, repositories: Vec<CatalogRepository>) -> CatalogDocument {
    CatalogDocument { version: 1, path, repositories }
}

impl From<KnownRepository> for CatalogRepository {
    fn from(known: KnownRepository) -> Self {
        CatalogRepository {
            id: known.id,
            places: known.places,
            seen: known.seen,
            machines: known.machines,
            points: known.points,
            unreadable: 0,
        }
    }
}
