//! An open repository: store, config and keys.

use std::sync::Arc;

use jiff::Timestamp;
use mover_model::{Error, ErrorKind, Result};

use crate::config::{CONFIG_KEY, Config, InitOptions};
use crate::format::envelope::{self, Kind, Protection};
use crate::format::newer;
use crate::keys::{self, Keys, Secret, slots};
use crate::store::{Key, Put, Store};

/// An open repository.
pub struct Repository {
    store: Arc<dyn Store>,
    config: Config,
    keys: Keys,
    id: [u8; 16],
    writable: bool,
}

/// The time now, as documents carry it: RFC 3339, UTC, seconds.
pub fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The same to the microsecond, for notes of which the last one counts: two may be of the same second.
pub fn precisely_now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

impl Repository {
    /// Makes a repository in an empty store. `secret` other than `None` makes it an encrypted one, with a first key
    /// slot for that secret. `config` is put last: a process that is killed before leaves a key slot that opens nothing,
    /// and the next `init` goes on beside it.
    ///
    /// # Errors
    /// `Refused` when there is one already or the store is not empty, `Key` for a secret that is too short, `Usage` for
    /// options out of bounds; the store's.
    pub fn init(store: Arc<dyn Store>, options: &InitOptions, secret: &Secret) -> Result<Self> {
        options.check()?;
        secret.check()?;
        check_empty(&*store)?;

        let mut id_key = match options.id_key {
            Some(id_key) => id_key,
            None => keys::random()?,
        };
        let encrypted = !secret.is_none();
        let keys = match encrypted {
            true => Keys::encrypted(keys::random()?, id_key),
            false => Keys::plain(id_key),
        };
        let id = uuid::Uuid::now_v7();
        let mut config = Config::new(id.to_string(), now(), options, (!encrypted).then_some(&id_key));
        keys::wipe(&mut id_key);
        config.key_check = keys.check(&config);

        let slot = match encrypted {
            true => Some(slots::put(&*store, &config, &keys, secret, "first")?),
            false => None,
        };
        let outcome = envelope::put(&*store, &config_key(), Kind::Config, Protection::Plain, &config);
        if matches!(outcome, Ok(Put::Exists))
            && let Some(slot) = &slot
        {
            slots::withdraw(&*store, slot)?;
        }
        match outcome? {
            Put::Done => Ok(Repository { store, config, keys, id: id.into_bytes(), writable: true }),
            Put::Exists => Err(already(&*store)),
        }
    }

    /// Opens a repository.
    ///
    /// # Errors
    /// `NotFound` when there is none, `Unsupported` for a newer format, `Corruption`, `Key` for a missing or wrong
    /// secret; the store's.
    pub fn open(store: Arc<dyn Store>, secret: &Secret) -> Result<Self> {
        let label = store.label_of(&config_key());
        let Read { config, id, id_key, writable } = read(&*store)?;
        let keys = match (id_key, secret) {
            (Some(id_key), Secret::None) => Keys::plain(id_key),
            (Some(_), _) => {
                return Err(Error::new(
                    ErrorKind::Key,
                    "a key file or passphrase was given, and the repository is not encrypted",
                )
                .at(store.label())
                .hint("leave it out, or make an encrypted repository with `mover init`"));
            }
            (None, Secret::None) => {
                return Err(Error::new(
                    ErrorKind::Key,
                    "the repository is encrypted, and nothing was given to open it",
                )
                .at(store.label())
                .hint("give --key-file, --passphrase-file or --passphrase-command"));
            }
            (None, secret) => slots::unlock(&*store, &config, secret)?,
        };
        if keys.check(&config) != config.key_check {
            let (kind, message) = match config.encrypted {
                true => (
                    ErrorKind::Key,
                    "a key slot opens, and its keys are not those of this config: it was altered",
                ),
                false => (ErrorKind::Corruption, "its key check does not fit what it says: it was altered"),
            };
            return Err(Error::new(kind, message)
                .at(label)
                .hint("restore `config` from a copy of the repository"));
        }
        Ok(Repository { store, config, keys, id, writable })
    }

    /// What a repository says of itself to everyone: enough to know whether a secret is needed. That it is true is
    /// known only once the repository is open.
    ///
    /// # Errors
    /// As for [`Repository::open`], but for `Key`.
    pub fn read_config(store: &dyn Store) -> Result<Config> {
        Ok(read(store)?.config)
    }

    /// Whether the store holds a repository.
    ///
    /// # Errors
    /// The store's.
    pub fn exists(store: &dyn Store) -> Result<bool> {
        Ok(store.open(&config_key())?.is_some())
    }

    /// Whether this version may write to it: a newer one may have put features that only readers may pass over.
    ///
    /// # Errors
    /// `Unsupported`.
    pub fn check_writable(&self) -> Result<()> {
        match self.writable {
            true => Ok(()),
            false => Err(newer(
                &self.store.label_of(&config_key()),
                "the repository has features that this version can read beside and not write beside",
            )),
        }
    }

    /// Where its objects are.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// The same, to keep.
    pub fn store_arc(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    /// What it is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Its id (UUID bytes); as text it is `config().id`.
    pub fn id(&self) -> [u8; 16] {
        self.id
    }
}

/// What the object `config` tells.
struct Read {
    config: Config,
    id: [u8; 16],
    id_key: Option<[u8; 32]>,
    writable: bool,
}

fn read(store: &dyn Store) -> Result<Read> {
    let Some(envelope) = envelope::read(store, &config_key(), Protection::Plain)? else {
        return Err(without_config(store)?);
    };
    let label = store.label_of(&config_key());
    if envelope.kind != Kind::Config {
        let message = format!("it holds {:?} where the config belongs", envelope.kind);
        return Err(Error::new(ErrorKind::Corruption, message).at(label));
    }
    let (config, id, id_key) = Config::parse(&envelope.body, &label)?;
    Ok(Read { config, id, id_key, writable: envelope.may_be_changed() })
}

fn config_key() -> Key {
    Key::new(CONFIG_KEY)
}

fn already(store: &dyn Store) -> Error {
    Error::refused(store.label(), "it is a repository already")
        .hint("use it as it is, or name another folder")
}

/// Refuses a store in which there is anything but key slots of an `init` that was cut short.
fn check_empty(store: &dyn Store) -> Result<()> {
    if Repository::exists(store)? {
        return Err(already(store));
    }
    match store.list("")?.iter().find(|listed| !listed.key.as_str().starts_with("keys/")) {
        None => Ok(()),
        Some(listed) => {
            Err(Error::refused(store.label(), format!("it is not empty: it holds {}", listed.key))
                .hint("name a folder that does not exist or is empty"))
        }
    }
}

/// Why there is no config.
fn without_config(store: &dyn Store) -> Result<Error> {
    let folders = store.list_folders("")?;
    let ours = |folder: &&String| ["index", "manifests", "packs"].contains(&folder.as_str());
    Ok(match folders.iter().find(ours) {
        Some(folder) => {
            Error::new(ErrorKind::Corruption, format!("`config` is gone, and `{folder}` is there"))
                .at(store.label_of(&config_key()))
                .hint("restore `config` from a copy of the repository")
        }
        None => Error::new(ErrorKind::NotFound, "there is no repository here: it has no `config`")
            .at(store.label())
            .hint("make one with `mover init`, or check that its share is mounted"),
    })
}
