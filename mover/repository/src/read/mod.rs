//! From packs to content: [`Chunks`] reads single chunks (nodes, exports), [`TreeSource`] whole disks through the
//! engine's rings. Nothing that was not checked against its name leaves this module.

mod chunks;
mod lane;
mod parts;
mod reader;
pub(crate) mod recent;
mod source;

pub(crate) use chunks::VERIFY_HINT;
pub use chunks::{Chunks, OpenPack};
pub use parts::scratch_bytes;
pub use source::{BadChunk, ChunkMap, ReadErrors, TreeMap, TreeSource};
