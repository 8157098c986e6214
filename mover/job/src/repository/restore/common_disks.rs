//! Disks that other machines have in common: which are written, which are left as they are.

use mover_model::Result;
use mover_model::event::Event;
use mover_model::manifest::Manifest;
use mover_repository::Repository;
use mover_repository::catalog::{self, Scope};

use super::RestoreOptions;
use super::open::Asked;
use crate::Emit;
use crate::repository::common::{self, Decision};

/// Decides for every disk that was asked for and is a common one, before anything is opened: what is left as it is keeps
/// its reason, one whose pointer was changed its error.
///
/// # Errors
/// The store's.
pub(super) fn decide(
    repository: &Repository,
    options: &RestoreOptions,
    manifest: &Manifest,
    asked: &mut [Asked<'_>],
    emit: Emit<'_>,
) -> Result<()> {
    if asked.iter().all(|asked| asked.disk.common.is_none()) {
        return Ok(());
    }
    let (state, folder) = (options.repository.state.as_deref(), options.repository.folder.as_path());
    let opened = catalog::open(state, repository, Some(folder), &Scope::All, false)?;
    opened.warnings.into_iter().for_each(|message| emit(Event::Warning { message }));
    for asked in asked {
        let Some(shared) = &asked.disk.common else { continue };
        let id = &repository.config().id;
        // One that cannot tell is told of by the decision.
        let vms = opened.catalog.common_machines(id, &shared.id, &asked.disk.root).unwrap_or_default();
        asked.vms = vms.iter().map(ToString::to_string).collect();
        match common::decide(repository, &*opened.catalog, manifest, asked.disk, options.keep_common) {
            Decision::Restore { warning: None } => {}
            Decision::Restore { warning: Some(message) } => emit(Event::Warning { message }),
            Decision::Keep { reason } => {
                emit(Event::Choice {
                    about: "common_disk".into(),
                    chosen: format!("disk {} is kept", asked.disk.id),
                    reason: reason.clone(),
                    pair: None,
                });
                asked.kept = Some(reason);
            }
            Decision::Changed { error, .. } => {
                emit(Event::Warning { message: error.message().to_owned() });
                asked.fail(error);
            }
        }
    }
    Ok(())
}
