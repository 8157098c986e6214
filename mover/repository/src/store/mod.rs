//! What the repository asks of a place that keeps objects. Nothing above this trait relies on a rename, an
//! append or a write in place, so an object store can be one.
//!
//! Every object is immutable: put once, whole, under a name that is never used again, and gone only by a
//! delete.

mod local;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::SystemTime;

use mover_engine::Alignment;
use mover_model::Result;
use mover_model::event::Degradation;

pub use local::{LocalStore, Step, Steps};

/// A lock that is held until it is dropped.
pub type Held = Box<dyn Send + Sync>;

/// The key of an object: segments of `[A-Za-z0-9._-]+` with `/` between them, none of them starting with a dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    /// A key.
    ///
    /// # Panics
    /// If it is none: keys are made of our own constants and of checked names, never of raw input.
    pub fn new(key: impl Into<String>) -> Self {
        let key = key.into();
        assert!(Key::is_valid(&key), "{key:?} is no key");
        Key(key)
    }

    /// A key found in a store's listing; `None` for what no key of ours looks like.
    pub fn parse(key: &str) -> Option<Self> {
        Key::is_valid(key).then(|| Key(key.to_owned()))
    }

    fn is_valid(key: &str) -> bool {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        key.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && part.bytes().all(allowed))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What follows the last `/`.
    pub fn last(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a put ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The object is there, durable, and it is ours.
    Done,
    /// Another one was there before; nothing was changed.
    Exists,
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub key: Key,
    /// Bytes.
    pub size: u64,
    /// When it was put, by the store's clock: not before the first listing that could have it. Prune's rule beside a
    /// gc relies on that: what a gc had not listed when it began its mark is not older than the mark.
    pub modified: SystemTime,
}

/// A place that keeps objects.
pub trait Store: Send + Sync {
    /// Its name in messages: a path, a URL.
    fn label(&self) -> String;

    /// The name of an object in messages.
    fn label_of(&self, key: &Key) -> String {
        format!("{}/{key}", self.label())
    }

    /// Puts an object. Durable, with its name, once it returns [`Put::Done`].
    ///
    /// # Errors
    /// `Full`, `Io`, `Unreachable`; the object may be there or not then.
    fn put(&self, key: &Key, bytes: &[u8]) -> Result<Put>;

    /// Begins a large object: it exists for nobody until it is committed, and not at all when it is dropped.
    ///
    /// # Errors
    /// As for [`Store::put`].
    fn begin(&self, key: &Key, expected_bytes: u64) -> Result<Box<dyn Upload>>;

    /// Opens an object; `None` when there is none of that key.
    ///
    /// # Errors
    /// `Io`, `Unreachable`.
    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>>;

    /// All objects whose keys begin with `prefix` (empty, or ending in `/`), in the order of their keys.
    ///
    /// # Errors
    /// `Io`, `Unreachable`.
    fn list(&self, prefix: &str) -> Result<Vec<Listed>>;

    /// The distinct next segments below `prefix` (empty, or ending in `/`) under which there are objects, in order:
    /// `list_folders("manifests/")` gives the names of machines.
    ///
    /// # Errors
    /// `Io`, `Unreachable`.
    fn list_folders(&self, prefix: &str) -> Result<Vec<String>>;

    /// A value that is different after anything directly below `prefix` was put or deleted, where the store has such a
    /// thing at a price far below a listing. `None`: it cannot tell, now or ever. Take it before the listing that it
    /// stands for.
    ///
    /// # Errors
    /// `Io`, `Unreachable`.
    fn stamp(&self, _prefix: &str) -> Result<Option<String>> {
        Ok(None)
    }

    /// Deletes an object; one that is not there is no error. Once it returns, the object does not come back, not even
    /// after a power cut: what is deleted next may rely on it.
    ///
    /// # Errors
    /// `Io`, `Unreachable`, `Refused` where credentials do not allow it.
    fn delete(&self, key: &Key) -> Result<()>;

    /// Deletes objects, in any order, where that is cheaper together. Once it returns, none of them comes back.
    ///
    /// # Errors
    /// As for [`Store::delete`]; some of them may be deleted then.
    fn delete_many(&self, keys: &[Key]) -> Result<()> {
        keys.iter().try_for_each(|key| self.delete(key))
    }

    /// The time by the clock that [`Listed::modified`] is taken from.
    ///
    /// # Errors
    /// `Io`, `Full`, `Unreachable`: some stores tell it only by what is put there.
    fn now(&self) -> Result<SystemTime> {
        Ok(SystemTime::now())
    }

    /// What this store could not do the way it wanted so far, each told once.
    fn degraded(&self) -> Vec<Degradation> {
        Vec::new()
    }

    /// Holds an object's lock until the guard is dropped or this process dies, where the store has locks that other
    /// processes of this host see. Held shared: `is_held` of another process tells.
    ///
    /// # Errors
    /// `Io`.
    fn hold(&self, _key: &Key) -> Result<Option<Held>> {
        Ok(None)
    }

    /// As [`Store::put`], with the object's lock held from before the object can be seen: a process that lists it never
    /// finds it unlocked while its writer lives. The lock is added to `held`, after an error as well: the object may be
    /// there. Nothing is added where the store has no locks.
    ///
    /// # Errors
    /// As for [`Store::put`] and [`Store::hold`].
    fn put_held(&self, key: &Key, bytes: &[u8], held: &mut Vec<Held>) -> Result<Put> {
        let put = self.put(key, bytes)?;
        if put == Put::Done {
            held.extend(self.hold(key)?);
        }
        Ok(put)
    }

    /// Whether a process holds the object's lock; `None` when the store cannot tell.
    ///
    /// # Errors
    /// `Io`.
    fn is_held(&self, _key: &Key) -> Result<Option<bool>> {
        Ok(None)
    }

    /// Removes what uploads of dead processes have left, other than objects: those that began in a session for which
    /// `living` says no (`none` stands for uploads outside a session). An upload whose process is seen to live is left
    /// alone whatever `living` says. Returns how many were removed.
    ///
    /// # Errors
    /// `Io`.
    fn sweep(&self, _living: &dyn Fn(&str) -> bool) -> Result<u64> {
        Ok(0)
    }

    /// Names the session that uploads belong to from now on, for [`Store::sweep`].
    fn enter(&self, _session: &str) {}
}

/// A file behind an object, for the engine's ring.
#[derive(Clone, Copy)]
pub struct DirectFile<'a> {
    /// Opened with O_DIRECT where `alignment` says more than [`Alignment::NONE`].
    pub fd: BorrowedFd<'a>,
    /// Its rules.
    pub alignment: Alignment,
}

/// An object on its way into the store.
pub trait Upload: Send {
    /// The file that bytes may be written to by the engine's ring, where the store has one. What is written there
    /// must be complete before [`Upload::commit`]. It may be a descriptor that goes past the page cache while
    /// [`Upload::write_at`] goes through it: no block of 4096 bytes may get bytes by both ways.
    fn file(&self) -> Option<DirectFile<'_>>;

    /// Writes bytes; ranges do not overlap and leave no gaps in the end.
    ///
    /// # Errors
    /// `Full`, `Io`, `Unreachable`.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Makes the object durable at `length` bytes and gives it its name.
    ///
    /// # Errors
    /// `Full`, `Io`, `Unreachable`; the object may be there or not then.
    fn commit(self: Box<Self>, length: u64) -> Result<Put>;
}

/// An object in the store.
pub trait Object: Send + Sync {
    /// Bytes.
    fn size(&self) -> u64;

    /// The file that bytes may be read from by the engine's ring, where the store has one.
    fn file(&self) -> Option<DirectFile<'_>>;

    /// Fills the buffer from `offset` on.
    ///
    /// # Errors
    /// `Io`, `Unreachable`; `Corruption` when the object ends before that.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// All of it, if it is no longer than `most`.
    ///
    /// # Errors
    /// As for [`Object::read_at`]; `Corruption` when it is longer.
    fn read_all(&self, most: u64) -> Result<Vec<u8>>;
}
