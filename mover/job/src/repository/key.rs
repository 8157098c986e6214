//! `mover key add|remove|list`: the key slots of an encrypted repository. A secret is changed by adding a slot for the
//! new one and removing that of the old one; nothing that is stored is encrypted anew.

use mover_model::Result;
use mover_repository::Secret;
use mover_repository::keys::slots::{self, SlotInfo};
use serde::{Deserialize, Serialize};

use super::access::{self, RepositoryOptions};

/// The document of `key list --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyListDocument {
    /// The repository's id.
    pub repository: String,
    /// Whether it is encrypted; without encryption there are no key slots.
    pub encrypted: bool,
    /// The key slots, the first made first.
    pub slots: Vec<SlotInfo>,
    /// Objects that are no key slots of this repository.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<UnreadableSlot>,
}

/// An object among the key slots that is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadableSlot {
    /// Its key.
    pub key: String,
    /// Why.
    pub reason: String,
}

/// The document of `key add --json` and `key remove --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyDocument {
    /// The repository's id.
    pub repository: String,
    /// The key slot that was added or removed.
    pub slot: SlotInfo,
}

/// Lists the key slots. No secret is needed.
///
/// # Errors
/// Those of opening a repository.
pub fn list(options: &RepositoryOptions) -> Result<KeyListDocument> {
    let (store, config) = access::config(options)?;
    let slots = slots::list(&*store, &config)?;
    Ok(KeyListDocument {
        repository: config.id,
        encrypted: config.encrypted,
        slots: slots.slots,
        unreadable: slots
            .unreadable
            .into_iter()
            .map(|(key, error)| UnreadableSlot { key: key.to_string(), reason: error.message().to_owned() })
            .collect(),
    })
}

/// Adds a key slot for another secret.
///
/// # Errors
/// Those of opening a repository; `Refused` for one without encryption, `Key` for a secret that is none.
pub fn add(options: &RepositoryOptions, secret: &Secret, label: &str) -> Result<KeyDocument> {
    let repository = access::open(options)?;
    let slot = slots::add(&repository, secret, label)?;
    Ok(KeyDocument { repository: repository.config().id.clone(), slot })
}

/// Removes a key slot; never the last one.
///
/// # Errors
/// Those of opening a repository; `NotFound` for a slot that is not there, `Refused` for the last one.
pub fn remove(options: &RepositoryOptions, id: &str) -> Result<KeyDocument> {
    let repository = access::open(options)?;
    let slot = slots::remove(&repository, id)?;
    Ok(KeyDocument { repository: repository.config().id.clone(), slot })
}

#[cfg(test)]
mod tests {
    use mover_model::ErrorKind;

    use super::super::init;
    use super::*;

    #[test]
    fn a_secret_is_changed_by_adding_and_removing_slots() {
        let place = tempfile::tempdir().unwrap();
        let (old, new) = (Secret::KeyFile(vec![1; 32]), Secret::KeyFile(vec![2; 40]));
        let init = init::InitOptions {
            folder: place.path().join("repo"),
            secret: old.clone(),
            state: Some(place.path().join("state")),
            ..init::InitOptions::default()
        };
        init::run(&init, &|_| ()).unwrap();
        let with = |secret: &Secret| RepositoryOptions {
            folder: init.folder.clone(),
            secret: secret.clone(),
            state: init.state.clone(),
            id: None,
        };
        let first = list(&with(&Secret::None)).unwrap().slots.remove(0);
        assert_eq!(remove(&with(&old), &first.id).unwrap_err().kind(), ErrorKind::Refused);
        assert_eq!(add(&with(&old), &new, "two\nlines").unwrap_err().kind(), ErrorKind::Usage);
        assert_eq!(add(&with(&old), &Secret::KeyFile(vec![1]), "").unwrap_err().kind(), ErrorKind::Key);
        let added = add(&with(&old), &new, "new").unwrap().slot;
        assert_eq!(remove(&with(&new), "../x").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(remove(&with(&new), &first.id).unwrap().slot, first);
        assert_eq!(list(&with(&Secret::None)).unwrap().slots, [added]);
        assert_eq!(access::open(&with(&old)).map(|_| ()).unwrap_err().kind(), ErrorKind::Key);
        access::open(&with(&new)).unwrap();
    }
}
