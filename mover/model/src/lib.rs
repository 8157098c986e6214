//! The vocabulary of mover: units, extents, locators, digests, events, limits and errors.
//!
//! No I/O happens here and no unsafe code is allowed. Every other crate speaks in these types.
#![forbid(unsafe_code)]

pub mod chunk_id;
pub mod digest;
pub mod disk_arg;
pub mod error;
pub mod event;
pub mod extent;
pub mod extents_file;
pub mod limits;
pub mod locator;
pub mod manifest;
pub mod name;
pub mod units;

pub use chunk_id::ChunkId;
pub use digest::Digest;
pub use disk_arg::{CommonArg, DiskArg, FileOfDisk, PointArg, TargetArg};
pub use error::{Error, ErrorKind, Operation, Result};
pub use extent::{Extent, ExtentKind, ExtentList};
pub use locator::Locator;
pub use name::{Name, PointSelector};
