//! `mover init`: makes a repository.

use std::path::PathBuf;
use std::sync::Arc;

use mover_model::{Error, ErrorKind, Operation, Result};
use mover_repository::config::default_chunk_size;
use mover_repository::store::LocalStore;
use mover_repository::{Compression, Repository, Secret};
use serde::{Deserialize, Serialize};

use super::access::{self, Place, RepositoryOptions};
use crate::Emit;

/// What an existing folder may hold: the top of a file system, and what an `init` that was cut short left.
const ALLOWED: [&str; 3] = ["lost+found", "keys", "tmp"];

/// What `mover init` is told.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// The folder: one that does not exist, or an empty one.
    pub folder: PathBuf,
    /// Bytes of a chunk; `None`: as many as the repository of `share_key_with` has, so that equal content has equal names;
    /// without one what suits the compression.
    pub chunk_size: Option<u32>,
    /// How chunks are compressed.
    pub compression: Compression,
    /// Other than `None`: the repository is encrypted, and this opens it.
    pub secret: Secret,
    /// `--share-key-with`: another repository, and what opens it. Equal content gets equal names in both.
    pub share_key_with: Option<(PathBuf, Secret)>,
    /// `--state DIR`: where the catalog is; `None`: the host's state folder.
    pub state: Option<PathBuf>,
}

impl Default for InitOptions {
    fn default() -> Self {
        InitOptions {
            folder: PathBuf::new(),
            chunk_size: None,
            compression: Compression::default(),
            secret: Secret::None,
            share_key_with: None,
            state: None,
        }
    }
}

/// What was made: the document of `init --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitDocument {
    /// The repository's id.
    pub id: String,
    /// Absolute path.
    pub folder: String,
    /// Bytes of a chunk.
    pub chunk_size: u32,
    /// `lz4`, `zstd:LEVEL` or `none`.
    pub compression: String,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// The repository whose id key it shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares_key_with: Option<String>,
}

/// Makes a repository.
///
/// # Errors
/// `Refused` where there is one or the folder is not empty, `Key`, `Usage` for options out of bounds, those of opening the
/// other repository, and the store's.
pub fn run(options: &InitOptions, emit: Emit<'_>) -> Result<InitDocument> {
    let folder = match access::find(&options.folder)? {
        Place::Missing(folder) => folder,
        Place::Folder(folder) => {
            check_empty(&folder)?;
            folder
        }
    };
    let shared = options.share_key_with.as_ref().map(|(other, secret)| {
        access::open(&RepositoryOptions {
            folder: other.clone(),
            secret: secret.clone(),
            state: options.state.clone(),
            id: None,
        })
    });
    let shared = shared.transpose()?;
    if let Some(other) = &shared
        && other.config().encrypted
        && options.secret.is_none()
    {
        return Err(Error::new(
            ErrorKind::Key,
            "the other repository is encrypted, and one without encryption would tell its id key to everyone",
        )
        .at(folder.display().to_string())
        .hint("give a key file or passphrase for the new repository too"));
    }
    let init = mover_repository::InitOptions {
        chunk_size: options
            .chunk_size
            .or(shared.as_ref().map(|other| other.config().chunk_size))
            .unwrap_or_else(|| default_chunk_size(options.compression)),
        compression: options.compression,
        id_key: shared.as_ref().map(|other| other.keys().id_key()),
    };
    let made = Repository::init(Arc::new(LocalStore::new(&folder)), &init, &options.secret)?;
    access::remember(options.state.as_deref(), &folder, &made, emit);
    let config = made.config();
    Ok(InitDocument {
        id: config.id.clone(),
        folder: folder.display().to_string(),
        chunk_size: config.chunk_size,
        compression: config.compression.to_string(),
        encrypted: config.encrypted,
        shares_key_with: shared.map(|other| other.config().id.clone()),
    })
}

/// Refuses a folder with files that are no objects: the store does not list them.
fn check_empty(folder: &std::path::Path) -> Result<()> {
    let label = folder.display().to_string();
    let failed = |error: std::io::Error| Error::io(Operation::List, &label, &error);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        // With a config it is a repository already, which is said better further on.
        if name == "config" {
            return Ok(());
        }
    }
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if !ALLOWED.iter().any(|allowed| name == *allowed) {
            return Err(Error::refused(&label, format!("it is not empty: it holds {}", name.display()))
                .hint("name a folder that does not exist or is empty"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_state(place: &tempfile::TempDir) -> InitOptions {
        InitOptions { state: Some(place.path().join("state")), ..InitOptions::default() }
    }

    fn open_with_state(place: &tempfile::TempDir) -> RepositoryOptions {
        RepositoryOptions { state: Some(place.path().join("state")), ..RepositoryOptions::default() }
    }

    #[test]
    fn init_says_what_it_made_and_makes_it_once() {
        let place = tempfile::tempdir().unwrap();
        let options = InitOptions {
            folder: place.path().join("repo"),
            chunk_size: Some(64 << 10),
            compression: Compression::Zstd(7),
            ..with_state(&place)
        };
        let made = run(&options, &|_| ()).unwrap();
        assert_eq!((made.chunk_size, made.compression.as_str(), made.encrypted), (65536, "zstd:7", false));
        let open = RepositoryOptions { folder: options.folder.clone(), ..open_with_state(&place) };
        assert_eq!(access::open(&open).unwrap().config().id, made.id);
        let error = run(&options, &|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.message().contains("already"), "{error}");
    }

    #[test]
    fn the_chunk_size_suits_the_compression_or_the_repository_that_shares_its_key() {
        let place = tempfile::tempdir().unwrap();
        let made = |name: &str, compression, share: Option<&str>| {
            let options = InitOptions {
                folder: place.path().join(name),
                compression,
                share_key_with: share.map(|other| (place.path().join(other), Secret::None)),
                ..with_state(&place)
            };
            run(&options, &|_| ()).unwrap().chunk_size
        };
        assert_eq!(made("lz4", Compression::Lz4, None), 128 << 10);
        assert_eq!(made("none", Compression::None, None), 128 << 10);
        assert_eq!(made("zstd", Compression::Zstd(3), None), 512 << 10);
        assert_eq!(made("zstd of lz4", Compression::Zstd(3), Some("lz4")), 128 << 10);
        assert_eq!(made("lz4 of zstd", Compression::Lz4, Some("zstd")), 512 << 10);
    }

    #[test]
    fn init_takes_an_empty_folder_and_no_other() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("mounted");
        std::fs::create_dir_all(folder.join("lost+found")).unwrap();
        let options = InitOptions { folder: folder.clone(), ..with_state(&place) };
        std::fs::write(folder.join("a b.txt"), "x").unwrap();
        assert_eq!(run(&options, &|_| ()).unwrap_err().kind(), ErrorKind::Refused);
        std::fs::remove_file(folder.join("a b.txt")).unwrap();
        run(&options, &|_| ()).unwrap();
    }

    #[test]
    fn a_shared_id_key_gives_equal_names_and_stays_secret() {
        let place = tempfile::tempdir().unwrap();
        let (first, second) = (place.path().join("first"), place.path().join("second"));
        let secret = Secret::KeyFile(vec![7; 32]);
        let options = InitOptions { folder: first.clone(), secret: secret.clone(), ..with_state(&place) };
        let made = run(&options, &|_| ()).unwrap();
        let mut options = InitOptions {
            folder: second.clone(),
            share_key_with: Some((first.clone(), secret.clone())),
            ..with_state(&place)
        };
        assert_eq!(run(&options, &|_| ()).unwrap_err().kind(), ErrorKind::Key);
        assert!(!second.exists());
        options.secret = Secret::KeyFile(vec![8; 32]);
        assert_eq!(run(&options, &|_| ()).unwrap().shares_key_with, Some(made.id));
        let id = |folder, secret| {
            let open = RepositoryOptions { folder, secret, ..open_with_state(&place) };
            access::open(&open).unwrap().keys().chunk_id(mover_repository::keys::ChunkKind::Data, b"content")
        };
        assert_eq!(id(first, secret), id(second, Secret::KeyFile(vec![8; 32])));
    }
}
