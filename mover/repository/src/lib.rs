//! The repository: restore points of disks that take the space of what changed, each complete in itself.
//!
//! Where to look first:
//! - [`store`] is all that is asked of a place to keep objects: put-if-absent, get, range, list, delete;
//! - [`mod@format`] holds the layouts of all objects; docs/formats/repository.md tells why a cut at any byte is safe;
//! - [`mod@write`] turns a disk's chunks into packs, on the engine's workers; [`read`] turns packs into disks;
//! - [`tree`] names a disk's content by one root; [`index`] finds chunks;
//! - [`session`] and [`gc`] keep what runs beside each other from losing anything;
//! - [`catalog`] is a cache of the manifests that makes listing fast.
#![forbid(unsafe_code)]

pub mod catalog;
pub mod codec;
pub mod config;
pub mod format;
pub mod gc;
pub mod index;
pub mod keys;
pub mod manifests;
pub mod names;
pub mod notes;
pub mod read;
pub mod repository;
pub mod session;
pub mod store;
pub mod tree;
pub mod verify;
pub mod write;

pub use config::{Compression, Config, InitOptions};
pub use keys::{Keys, Secret};
pub use names::ObjectName;
pub use repository::Repository;
