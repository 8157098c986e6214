//! Sessions: every process that reads or writes a repository says so before it reads the index, so that gc deletes
//! nothing under it. docs/formats/repository.md has the table of what may run beside what.
//!
//! ```text
//! sessions/ID/0        put first: the record, its writer's lock held on it from before it can be seen
//! sessions/ID/turn     backups and gc: the session stands in line, see `turn`
//! sessions/ID/1, /2 …  the record again, put every minute by a thread; the one before goes
//! sessions/ID/end      where credentials do not allow to delete: it has ended
//! ```
//! A session has ended when `sessions/ID/0` is gone, when its manifest key is taken, or when `sessions/ID/end` is there.
//! It is dead when its process is: told by the lock on `sessions/ID/0` where host and boot id are ours, else when its
//! newest object is older than [`DEAD_AFTER`] by the store's clock.

mod host;
mod renewal;
mod survey;
mod turn;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mover_model::{Error, ErrorKind, Name, Result};
use serde::{Deserialize, Serialize};

use crate::format::envelope::{self, Kind, Protection};
use crate::names::ObjectName;
use crate::repository::Repository;
use crate::store::{Held, Key, Put};
use renewal::Renewal;

pub use survey::{end_dead, others, others_at};

/// Time between two renewals.
pub const RENEW_EVERY: Duration = Duration::from_secs(60);
/// Age of the newest object of a session on another host after which it counts as dead: far longer than a renewal may be
/// held up by a store that hangs.
pub const DEAD_AFTER: Duration = Duration::from_secs(15 * 60);
/// How long a backup or gc that begins waits for another one that has begun to begin and is slow at it.
pub const TURN_WAIT: Duration = Duration::from_secs(30);

/// The times that sessions live by. All who use a repository must agree on `dead_after`: only tests choose others.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// See [`RENEW_EVERY`].
    pub renew_every: Duration,
    /// See [`DEAD_AFTER`].
    pub dead_after: Duration,
    /// See [`TURN_WAIT`].
    pub turn_wait: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { renew_every: RENEW_EVERY, dead_after: DEAD_AFTER, turn_wait: TURN_WAIT }
    }
}

/// What a session is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "purpose", rename_all = "snake_case")]
pub enum Purpose {
    /// Makes a restore point: its manifest goes to exactly this key.
    Backup {
        /// The machine.
        vm: Name,
        /// The point's id.
        point: Name,
    },
    /// Reads restore points (restore, verify, export, diff).
    Read {
        /// The verb, for messages.
        verb: String,
    },
    /// Collects garbage: one at a time.
    Gc,
    /// Deletes manifests.
    Prune,
}

impl Purpose {
    /// Whether two sessions of these purposes may not run at once.
    fn excludes(&self, other: &Purpose) -> bool {
        match (self, other) {
            (Purpose::Backup { vm: this, .. }, Purpose::Backup { vm: that, .. }) => this == that,
            (Purpose::Gc, Purpose::Gc) => true,
            _ => false,
        }
    }

    /// Whether it excludes anything, and so waits for its turn.
    fn is_exclusive(&self) -> bool {
        matches!(self, Purpose::Backup { .. } | Purpose::Gc)
    }

    /// In words: "a backup of `web`".
    fn describe(&self) -> String {
        match self {
            Purpose::Backup { vm, .. } => format!("a backup of `{vm}`"),
            Purpose::Read { verb } => format!("a {verb}"),
            Purpose::Gc => "a gc".to_owned(),
            Purpose::Prune => "a prune".to_owned(),
        }
    }
}

/// The document of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Its id: 32 hex digits.
    pub id: String,
    /// What it is for.
    #[serde(flatten)]
    pub purpose: Purpose,
    /// The host's name, for messages.
    pub host: String,
    /// A hash of /etc/machine-id and the kernel's boot id together: whether a lock can be trusted. Empty where the
    /// kernel tells no boot id.
    pub host_id: String,
    /// Process id, for messages.
    pub pid: u32,
    /// RFC 3339, UTC, by the writer's clock; for messages.
    pub started: String,
}

/// A running session of this process. Dropping it without [`Session::end`] leaves it to die.
pub struct Session {
    repository: Arc<Repository>,
    record: SessionRecord,
    began: SystemTime,
    pace: Pace,
    renewal: Renewal,
    /// The locks on its first object; the last field, so that they go last.
    held: Vec<Held>,
}

/// Another session, as it is seen now.
#[derive(Debug, Clone)]
pub struct Seen {
    /// What it says of itself.
    pub record: SessionRecord,
    /// When its first object was put, by the store's clock.
    pub began: SystemTime,
    /// Whether its process may still be alive.
    pub alive: bool,
}

impl Session {
    /// Begins a session: its object is durable when this returns.
    ///
    /// For [`Purpose::Backup`]: `Busy` when another living session makes a point of the same machine (of two that begin
    /// together exactly one goes on). A dead one is ended first: see [`end_dead`]. For [`Purpose::Gc`]: `Busy` when
    /// another living gc runs.
    ///
    /// # Errors
    /// Those above and the store's.
    pub fn begin(repository: &Arc<Repository>, purpose: Purpose) -> Result<Self> {
        Session::begin_at(repository, purpose, Pace::default())
    }

    /// The same at another pace.
    ///
    /// # Errors
    /// As for [`Session::begin`].
    pub fn begin_at(repository: &Arc<Repository>, purpose: Purpose, pace: Pace) -> Result<Self> {
        let id = ObjectName::random()?.to_string();
        let record = SessionRecord {
            id: id.clone(),
            purpose,
            host: host::name(),
            host_id: host::id(),
            pid: std::process::id(),
            started: now_text(),
        };
        let store = repository.store();
        store.enter(&id);
        let put_at = host::uptime()?;
        let key = object_key(&id, "0");
        let bytes = encode(repository, &key, &record)?;
        let mut held = Vec::new();
        // A doubtful put is repeated once, as for all envelopes. Then the lock of either may be the one that counts.
        let put = match store.put_held(&key, &bytes, &mut held) {
            Err(error) if matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Io) => {
                store.put_held(&key, &bytes, &mut held).map_err(|_| error)?
            }
            put => put?,
        };
        // Ours, if the first put had come through.
        let put = if put == Put::Exists { envelope::put_bytes(store, &key, &bytes)? } else { put };
        if put == Put::Exists {
            // 128 random bits: the system's randomness is broken.
            return Err(Error::new(ErrorKind::Internal, "a new session's name is taken")
                .at(store.label_of(&key))
                .hint("the system's random source gives the same numbers again: do not trust it"));
        }
        let prefix = format!("sessions/{id}/");
        let listed = store.list(&prefix)?;
        let Some(own) = listed.iter().find(|object| object.key == key) else {
            return Err(Error::new(
                ErrorKind::Unreachable,
                "the session's object is gone as soon as it was put",
            )
            .at(store.label_of(&key))
            .hint("does anything but mover delete files there?"));
        };
        let began = own.modified;
        let renewal = Renewal::start(repository, &record, pace, put_at)?;
        let session = Session { repository: repository.clone(), record, began, pace, renewal, held };
        if session.record.purpose.is_exclusive()
            && let Err(error) = turn::take(&session)
        {
            // What is left of it dies with this process: the first error is the one to tell.
            let _ = session.end();
            return Err(error);
        }
        Ok(session)
    }

    /// What it says of itself.
    pub fn record(&self) -> &SessionRecord {
        &self.record
    }

    /// When its first object was put, by the store's clock.
    pub fn began(&self) -> SystemTime {
        self.began
    }

    /// The times it lives by.
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// An error once a renewal has failed for so long that others may count this session as dead, or once one of them
    /// has ended it: what it does then may be deleted under it, so it must not commit. Asks the store once.
    ///
    /// # Errors
    /// `Unreachable`; the store's.
    pub fn check(&self) -> Result<()> {
        let store = self.repository.store();
        let label = store.label_of(&object_key(&self.record.id, "0"));
        let again = "nothing was committed; run it again";
        let (age, last_error) = self.renewal.age()?;
        // A renewal's time is left for what is done on the strength of this answer.
        if age + self.pace.renew_every.min(self.pace.dead_after / 4) >= self.pace.dead_after {
            let why = last_error
                .map_or_else(|| "this host slept, or the store hangs".to_owned(), |e| e.to_string());
            let message = format!("the session could not be renewed for {} s: {why}", age.as_secs());
            return Err(Error::new(ErrorKind::Unreachable, message).at(label).hint(again));
        }
        if store.open(&object_key(&self.record.id, "0"))?.is_none() {
            let message = "another process took this session for dead and has ended it";
            return Err(Error::new(ErrorKind::Unreachable, message).at(label).hint(again));
        }
        Ok(())
    }

    /// Ends it: its objects are deleted, or where that is not allowed an `end` object is put.
    ///
    /// # Errors
    /// The store's: the session is left to die then.
    pub fn end(mut self) -> Result<()> {
        self.renewal.stop();
        let ended = survey::remove(&self.repository, &self.record);
        // Its lock goes after its objects: a session that ends is never seen as one that died.
        self.held.clear();
        ended
    }
}

/// `sessions/ID/NAME`.
fn object_key(id: &str, name: &str) -> Key {
    Key::new(format!("sessions/{id}/{name}"))
}

fn encode(repository: &Repository, key: &Key, record: &SessionRecord) -> Result<Vec<u8>> {
    let internal = |error| Error::new(ErrorKind::Internal, format!("a session does not serialise: {error}"));
    let body = serde_json::to_vec(record).map_err(internal)?;
    let protection = Protection::Sealed(repository.keys());
    envelope::encode(key, Kind::Session, protection, ObjectName::random()?.0, &body)
}

/// Puts the record under another name of its session.
fn put(repository: &Repository, name: &str, record: &SessionRecord) -> Result<Put> {
    let protection = Protection::Sealed(repository.keys());
    envelope::put(repository.store(), &object_key(&record.id, name), Kind::Session, protection, record)
}

/// Now, to the second.
fn now_text() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}
