//! Key slots: `keys/ID`. Each holds the master key and the id key, wrapped with one secret; any of them opens the
//! repository. A slot is immutable: a secret is changed by adding a slot and removing the old one.
//!
//! A slot says which work turns its secret into a key. That is read before anything is authentic, so it is bounded:
//! a slot cannot ask for more memory or time than `Kdf::check` allows.

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use mover_model::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::{Keys, Secret, random, wipe};
use crate::config::Config;
use crate::format::envelope::{self, Kind, Protection};
use crate::format::{hex, newer};
use crate::names::ObjectName;
use crate::repository::{Repository, now};
use crate::store::{Key, Put, Store};

/// Version of a key slot.
const SLOT_VERSION: u32 = 1;
/// Memory of argon2id for new slots: what a laptop and a small backup host both have to spare, for a moment.
const ARGON2_MEMORY_KIB: u32 = 64 << 10;
/// Passes of argon2id for new slots: with 64 MiB about a tenth of a second, and RFC 9106's second choice.
const ARGON2_PASSES: u32 = 3;
const ARGON2_LANES: u32 = 1;
/// Most that a slot may ask for: 1 GiB, and about half a minute.
const ARGON2_MEMORY_KIB_MAX: u32 = 1 << 20;
const ARGON2_PASSES_MAX: u32 = 16;
const ARGON2_LANES_MAX: u32 = 16;
const LABEL_MAX: usize = 128;

/// The work that turns a secret into a wrapping key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Kdf {
    /// For passphrases: slow on purpose.
    Argon2id {
        /// KiB of memory.
        memory_kib: u32,
        /// Passes over it.
        passes: u32,
        /// Lanes.
        lanes: u32,
        /// Random, 64 hex digits.
        salt: String,
    },
    /// For key files, which nobody guesses.
    Blake3 {
        /// Random, 64 hex digits.
        salt: String,
    },
}

/// The document `keys/ID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Slot {
    version: u32,
    /// The repository's id: a slot of another one is none.
    repository: String,
    id: String,
    label: String,
    created: String,
    kdf: Kdf,
    /// 24 hex digits.
    nonce: String,
    /// Master key, id key and tag: 160 hex digits.
    wrapped: String,
}

/// What kind of secret opens a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotKind {
    /// A passphrase.
    Passphrase,
    /// A key file.
    KeyFile,
}

/// A key slot as it is listed: nothing of it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotInfo {
    /// Its id, 32 hex digits.
    pub id: String,
    /// What the user calls it.
    pub label: String,
    /// RFC 3339, UTC.
    pub created: String,
    /// What opens it.
    pub kind: SlotKind,
}

/// The key slots of a repository.
#[derive(Debug, Default)]
pub struct Slots {
    /// Those that can be tried, in the order in which they were made.
    pub slots: Vec<SlotInfo>,
    /// Keys of objects that are no slots of this repository, and why.
    pub unreadable: Vec<(Key, Error)>,
}

impl Kdf {
    fn new(secret: &Secret) -> Result<Self> {
        let salt = hex::encode(&random::<32>()?);
        Ok(match secret {
            Secret::Passphrase(_) => Kdf::Argon2id {
                memory_kib: ARGON2_MEMORY_KIB,
                passes: ARGON2_PASSES,
                lanes: ARGON2_LANES,
                salt,
            },
            _ => Kdf::Blake3 { salt },
        })
    }

    /// Whether it asks for a sane amount of work.
    fn check(&self, label: &str) -> Result<()> {
        let Kdf::Argon2id { memory_kib, passes, lanes, .. } = self else { return Ok(()) };
        let fits = (8..=ARGON2_MEMORY_KIB_MAX).contains(memory_kib)
            && (1..=ARGON2_PASSES_MAX).contains(passes)
            && (1..=ARGON2_LANES_MAX).contains(lanes)
            && *memory_kib >= 8 * lanes;
        match fits {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Corruption,
                format!("it asks for {memory_kib} KiB of memory, {passes} passes and {lanes} lanes: no slot of ours does"),
            )
            .at(label)
            .hint("open the repository with another key slot, and remove this one")),
        }
    }

    /// The wrapping key, or `None` where this is no work for such a secret.
    fn wrapping_key(&self, secret: &Secret, label: &str) -> Result<Option<[u8; 32]>> {
        let bad_salt = || Error::new(ErrorKind::Corruption, "its salt is none").at(label);
        match (self, secret) {
            (Kdf::Argon2id { memory_kib, passes, lanes, salt }, Secret::Passphrase(passphrase)) => {
                let salt: [u8; 32] = hex::decode(salt).ok_or_else(bad_salt)?;
                let failed = |error: argon2::Error| {
                    Error::new(ErrorKind::Internal, format!("argon2id failed: {error}")).at(label)
                };
                let mut key = [0; 32];
                let params = Params::new(*memory_kib, *passes, *lanes, Some(key.len())).map_err(failed)?;
                Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                    .hash_password_into(passphrase, &salt, &mut key)
                    .map_err(failed)?;
                Ok(Some(key))
            }
            (Kdf::Blake3 { salt }, Secret::KeyFile(content)) => {
                let salt: [u8; 32] = hex::decode(salt).ok_or_else(bad_salt)?;
                let mut hasher = blake3::Hasher::new_derive_key("mover repository v1 key file");
                hasher.update(&salt);
                hasher.update(content);
                Ok(Some(*hasher.finalize().as_bytes()))
            }
            _ => Ok(None),
        }
    }
}

impl Slot {
    /// Wraps the keys for a secret.
    fn wrap(repository: &str, keys: &Keys, secret: &Secret, label: &str, kdf: Kdf) -> Result<Self> {
        secret.check()?;
        let internal =
            |what: &str| Error::new(ErrorKind::Internal, format!("{what}: no key slot can be made"));
        let master =
            keys.encryption.as_ref().ok_or_else(|| internal("the repository has no master key"))?.master;
        let nonce: [u8; 12] = random()?;
        let mut slot = Slot {
            version: SLOT_VERSION,
            repository: repository.to_owned(),
            id: ObjectName::random()?.to_string(),
            label: label.to_owned(),
            created: now(),
            kdf,
            nonce: hex::encode(&nonce),
            wrapped: String::new(),
        };
        let mut key = slot
            .kdf
            .wrapping_key(secret, &slot.id)?
            .ok_or_else(|| internal("this kind of secret wraps no keys"))?;
        let mut wrapped = [master, keys.id_key].concat();
        let sealed = aead(&key).and_then(|aead| {
            let nonce = Nonce::assume_unique_for_key(nonce);
            aead.seal_in_place_append_tag(nonce, slot.aad(), &mut wrapped).ok()
        });
        wipe(&mut key);
        sealed.ok_or_else(|| internal("encryption failed"))?;
        slot.wrapped = hex::encode(&wrapped);
        Ok(slot)
    }

    /// The keys, if the secret is this slot's.
    fn unwrap(&self, secret: &Secret, label: &str) -> Result<Option<Keys>> {
        let damaged = |what: &str| Error::new(ErrorKind::Corruption, what).at(label);
        let nonce: [u8; 12] = hex::decode(&self.nonce).ok_or_else(|| damaged("its nonce is none"))?;
        let mut wrapped: [u8; 80] =
            hex::decode(&self.wrapped).ok_or_else(|| damaged("what it wraps is no pair of keys"))?;
        let Some(mut key) = self.kdf.wrapping_key(secret, label)? else { return Ok(None) };
        let opened = aead(&key).and_then(|aead| {
            aead.open_in_place(Nonce::assume_unique_for_key(nonce), self.aad(), &mut wrapped).ok().map(|_| ())
        });
        wipe(&mut key);
        let keys = opened.map(|()| {
            let half = |at: usize| -> [u8; 32] { std::array::from_fn(|i| wrapped[at + i]) };
            Keys::encrypted(half(0), half(32))
        });
        wipe(&mut wrapped);
        Ok(keys)
    }

    /// All that a slot says of itself, so that nothing of it can be altered and still open.
    fn aad(&self) -> Aad<Vec<u8>> {
        let Slot { version, repository, id, label, created, .. } = self;
        Aad::from(format!("mover key slot\0{version}\0{repository}\0{id}\0{created}\0{label}").into_bytes())
    }

    fn info(&self) -> SlotInfo {
        let kind = match self.kdf {
            Kdf::Argon2id { .. } => SlotKind::Passphrase,
            Kdf::Blake3 { .. } => SlotKind::KeyFile,
        };
        SlotInfo { id: self.id.clone(), label: self.label.clone(), created: self.created.clone(), kind }
    }
}

fn aead(key: &[u8; 32]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key).ok().map(LessSafeKey::new)
}

fn slot_key(id: &str) -> Key {
    Key::new(format!("keys/{id}"))
}

/// Whoever removes a slot puts a mark of their own here first: see [`remove`].
fn marks_of(id: &str) -> String {
    format!("notes/keys/{id}/")
}

/// Objects that are no slots of this repository, and why.
type Unreadable = Vec<(Key, Error)>;

/// Reads all slots: those that can be tried, the first made first, and what is none.
fn read_all(store: &dyn Store, repository: &str) -> Result<(Vec<Slot>, Unreadable)> {
    let (mut slots, mut unreadable) = (Vec::new(), Vec::new());
    for listed in store.list("keys/")? {
        match read_one(store, repository, &listed.key) {
            Ok(Some(slot)) => slots.push(slot),
            // Removed since it was listed.
            Ok(None) => {}
            Err(error) if matches!(error.kind(), ErrorKind::Io | ErrorKind::Unreachable) => {
                return Err(error);
            }
            Err(error) => unreadable.push((listed.key, error)),
        }
    }
    slots.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
    Ok((slots, unreadable))
}

fn read_one(store: &dyn Store, repository: &str, key: &Key) -> Result<Option<Slot>> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let label = store.label_of(key);
    let Some((kind, body)) = envelope::open(store, key, Protection::Plain)? else { return Ok(None) };
    if kind != Kind::KeySlot {
        return Err(Error::new(ErrorKind::Corruption, format!("it holds {kind:?} where a key slot belongs"))
            .at(label));
    }
    let Versioned { version } = envelope::parse(&label, &body)?;
    if version != SLOT_VERSION {
        return Err(newer(&label, &format!("it has version {version}, and this mover knows {SLOT_VERSION}")));
    }
    let slot: Slot = envelope::parse(&label, &body)?;
    if slot.repository != repository || slot.id != key.last() {
        let message = format!("it is slot {} of repository {}", slot.id, slot.repository);
        return Err(Error::new(ErrorKind::WrongIdentity, message).at(label));
    }
    slot.kdf.check(&label)?;
    Ok(Some(slot))
}

/// Wraps the keys for the first slot, or a further one, and puts it. Returns what it is.
pub(crate) fn put(
    store: &dyn Store,
    config: &Config,
    keys: &Keys,
    secret: &Secret,
    label: &str,
) -> Result<SlotInfo> {
    let slot = Slot::wrap(&config.id, keys, secret, label, Kdf::new(secret)?)?;
    match envelope::put(store, &slot_key(&slot.id), Kind::KeySlot, Protection::Plain, &slot)? {
        Put::Done => Ok(slot.info()),
        Put::Exists => Err(Error::new(ErrorKind::Internal, "another object has the name of a new key slot")
            .at(store.label_of(&slot_key(&slot.id)))),
    }
}

/// Takes away a slot that was put for a repository that did not come to be.
pub(crate) fn withdraw(store: &dyn Store, slot: &SlotInfo) -> Result<()> {
    store.delete(&slot_key(&slot.id))
}

/// The keys of an encrypted repository, from the first slot that the secret opens.
pub(crate) fn unlock(store: &dyn Store, config: &Config, secret: &Secret) -> Result<Keys> {
    let (slots, mut unreadable) = read_all(store, &config.id)?;
    for slot in &slots {
        let key = slot_key(&slot.id);
        match slot.unwrap(secret, &store.label_of(&key)) {
            Ok(Some(keys)) => return Ok(keys),
            Ok(None) => {}
            Err(error) => unreadable.push((key, error)),
        }
    }
    let label = store.label();
    let newer = unreadable.iter().find(|(_, error)| error.kind() == ErrorKind::Unsupported);
    match (unreadable.first(), newer) {
        (None, _) if slots.is_empty() => Err(Error::new(
            ErrorKind::Corruption,
            "the repository is encrypted, and all its key slots are gone",
        )
        .at(store.label_of(&Key::new("keys")))
        .hint("restore the folder `keys` from a copy of the repository")),
        (None, _) => Err(Error::new(ErrorKind::Key, "wrong passphrase or key file")
            .at(label)
            .hint("`mover key list` shows which key slots there are, and whether a passphrase or a key file opens them")),
        // Where nothing could be tried it is not the secret that is wrong.
        (Some(_), Some((_, error))) if slots.is_empty() => Err(error.clone()),
        (Some((_, error)), _) if slots.is_empty() => Err(error.clone()),
        (Some((key, error)), _) => {
            let message = format!(
                "wrong passphrase or key file; it may also be that of {key}, which could not be tried: {}",
                error.message()
            );
            Err(Error::new(ErrorKind::Key, message).at(label).hint("give the secret of another key slot"))
        }
    }
}

/// The key slots of a repository; none where it is not encrypted. Needs no secret: nothing of a slot's list is one.
///
/// # Errors
/// The store's.
pub fn list(store: &dyn Store, config: &Config) -> Result<Slots> {
    let (slots, unreadable) = read_all(store, &config.id)?;
    Ok(Slots { slots: slots.iter().map(Slot::info).collect(), unreadable })
}

/// Adds a slot for another secret.
///
/// # Errors
/// `Refused` for a repository without encryption, `Key` for a secret that is none, `Usage` for a label that is too
/// long; the store's.
pub fn add(repository: &Repository, secret: &Secret, label: &str) -> Result<SlotInfo> {
    check_encrypted(repository)?;
    repository.check_writable()?;
    if secret.is_none() {
        return Err(Error::new(ErrorKind::Key, "no secret was given for the new key slot")
            .hint("name a key file or passphrase for it"));
    }
    if label.len() > LABEL_MAX || label.chars().any(char::is_control) {
        return Err(Error::usage(format!("a key slot's label is one line of at most {LABEL_MAX} bytes")));
    }
    put(repository.store(), repository.config(), repository.keys(), secret, label)
}

/// Removes a slot; never the last one.
///
/// Two that remove different slots at once must not both see the other's slot as the one that stays. So each first
/// marks its own slot, and only then looks which slots are unmarked: of the two the later one sees the other's mark,
/// or its slot gone. A marked slot still opens the repository, and a mark left by a killed process goes with its slot
/// when that is removed again.
///
/// # Errors
/// `NotFound`, naming the slots there are; `Refused` for the last one; the store's.
pub fn remove(repository: &Repository, id: &str) -> Result<SlotInfo> {
    #[derive(Serialize)]
    struct Removing<'a> {
        removing: &'a str,
        time: String,
    }
    check_encrypted(repository)?;
    repository.check_writable()?;
    let store = repository.store();
    let (slots, _) = read_all(store, &repository.config().id)?;
    let Some(slot) = slots.iter().find(|slot| slot.id == id) else {
        let ids: Vec<_> = slots.iter().map(|slot| slot.id.as_str()).collect();
        return Err(Error::new(ErrorKind::NotFound, format!("there is no key slot `{}`", id.escape_debug()))
            .at(store.label())
            .hint(format!("there are {}", ids.join(", "))));
    };
    let mark = Key::new(format!("{}{}", marks_of(id), ObjectName::random()?));
    let protection = Protection::Sealed(repository.keys());
    envelope::put(store, &mark, Kind::Note, protection, &Removing { removing: id, time: now() })?;
    let marks = store.list("notes/keys/")?;
    let (now_there, _) = read_all(store, &repository.config().id)?;
    let is_marked = |id: &str| marks.iter().any(|mark| mark.key.as_str().starts_with(&marks_of(id)));
    if !now_there.iter().any(|other| other.id != id && !is_marked(&other.id)) {
        store.delete(&mark)?;
        return Err(Error::refused(
            store.label_of(&slot_key(id)),
            "it is the last key slot that stays: without it nobody could open the repository",
        )
        .hint("add another one first with `mover key add`"));
    }
    store.delete(&slot_key(id))?;
    store.list(&marks_of(id))?.iter().try_for_each(|mark| store.delete(&mark.key))?;
    Ok(slot.info())
}

fn check_encrypted(repository: &Repository) -> Result<()> {
    match repository.config().encrypted {
        true => Ok(()),
        false => Err(Error::refused(
            repository.store().label(),
            "the repository is not encrypted: it has no key slots",
        )
        .hint("encryption is chosen by `mover init`; make a new repository for it")),
    }
}
