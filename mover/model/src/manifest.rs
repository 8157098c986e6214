//! The manifest: what a restore point is. One JSON document, immutable once committed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::chunk_id::ChunkId;
use crate::event::BadExtent;
use crate::name::Name;

/// Version of the manifest.
pub const MANIFEST_VERSION: u32 = 1;

/// A restore point: all disks of one machine at one moment. Order is by `parent`, never by clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// The repository's id: a manifest of another one is refused.
    pub repository: String,
    /// For tenants; empty by default.
    #[serde(default)]
    pub namespace: String,
    /// The machine.
    pub vm: Name,
    /// The machine's UUID, where it is known; another one under the same name is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_uuid: Option<String>,
    /// The restore point's id, unique within its machine.
    pub point: Name,
    /// The restore point before it; absent for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Name>,
    /// One more than its parent's; 1 for the first.
    pub sequence: u64,
    /// `--run-key`: repeating a committed run returns this point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_key: Option<String>,
    /// `--label KEY=VALUE`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// When the backup began: RFC 3339, UTC. The content of the disks is of this time or later.
    pub started: String,
    /// When it was committed.
    pub finished: String,
    /// The host that made it.
    pub host: String,
    /// The version of mover that made it.
    pub mover: String,
    /// Whether parts could not be read: it is not `@latest`.
    #[serde(default)]
    pub damaged: bool,
    /// The disks, in the order of their ids.
    pub disks: Vec<Disk>,
    /// What it added to the repository.
    pub stored: Stored,
    /// The quiesce receipt, where a coordinator gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesce: Option<serde_json::Value>,
    /// Evidence for the time point, where several providers had to agree on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_point: Option<serde_json::Value>,
    /// Configuration documents of the machine, by name (`--document NAME=FILE`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub documents: BTreeMap<String, String>,
}

/// What a backup added to the repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Chunks that were not there before.
    pub new_chunks: u64,
    /// Their bytes before compression.
    pub new_bytes: u64,
    /// Bytes written as packs, tree nodes and indexes included.
    pub stored_bytes: u64,
}

/// One disk of a restore point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Disk {
    /// Its id within the machine.
    pub id: Name,
    /// Bytes.
    pub size: u64,
    /// Bytes of a chunk.
    pub chunk_size: u32,
    /// The tree's root, which names the content.
    pub root: ChunkId,
    /// Bytes in chunks that are not zeros.
    pub data_bytes: u64,
    /// How it was read.
    pub method: Method,
    /// Why it is a full backup where less was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The restore point whose content the list of changes was counted from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Name>,
    /// The tracker's own name of this moment, where there is a tracker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// Its locator, as it was given.
    pub source: String,
    /// Absolute path, where the source was a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What the source was when it was read; for files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<FileIdentity>,
    /// Present where the disk is common to several machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub common: Option<Common>,
    /// Parts that could not be read and are not in the backup.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bad_extents: Vec<BadExtent>,
    /// Bytes read from the source.
    pub read_bytes: u64,
    /// What this disk added.
    pub stored: Stored,
}

/// How a disk was backed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Everything was read, and there was no earlier restore point.
    Full,
    /// Everything was read; what was known already was not stored again.
    Scan,
    /// Only listed extents were read.
    Changed,
    /// Neither read nor stored: another restore point has it.
    Common,
}

/// What tells a file from another one, and from itself after a change (statx(2)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Device number, as `major:minor`.
    pub device: String,
    /// Inode.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Last change of the content, nanoseconds since 1970.
    pub mtime_ns: i128,
    /// Last change of content or attributes.
    pub ctime_ns: i128,
    /// When it was made; absent where the filesystem does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub birth_ns: Option<i128>,
}

/// A disk that several machines have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Common {
    /// By which it is known: given as `common=ID`, else made from its identity.
    pub id: String,
    /// Where it lies: an absolute path, or its locator.
    pub location: String,
    /// What the machine's configuration names as its common disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pointer: Option<Pointer>,
}

/// What names the common disk, and what it named at the time of the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pointer {
    /// What kind of pointer.
    pub kind: PointerKind,
    /// Absolute path of what holds it: the qcow2 image, the symlink, the document.
    pub holder: String,
    /// Its value, as it stands there.
    pub value: String,
    /// Absolute path that it came to.
    pub resolved: String,
    /// What was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<FileIdentity>,
}

/// Kinds of pointers to a common disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PointerKind {
    /// The backing file field of a qcow2 image.
    Qcow2Backing,
    /// A symbolic link.
    Symlink,
    /// The source of a disk in the machine's definition.
    Domain,
}
