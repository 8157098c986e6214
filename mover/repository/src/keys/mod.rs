//! Keys: one master key, wrapped in key slots; everything else is derived from it.
//!
//! ```text
//! passphrase ──argon2id──► wrapping key ┐
//! key file ────BLAKE3 KDF─► wrapping key ┴─AES-256-GCM─► master key (32) + id key (32)   (keys/ID)
//! master key ──BLAKE3 KDF──► metadata MAC key, metadata encryption key, chunk encryption key
//! id key ──────BLAKE3 KDF──► key of data chunks' names, key of tree nodes' names
//! ```
//! A repository without encryption has the same derived keys, from the id key that its config tells everyone.

mod secret;
pub mod slots;

use std::hint::black_box;

use mover_model::{ChunkId, Error, ErrorKind, Result};

use crate::config::Config;
use crate::format::hex;

pub use secret::Secret;

/// Whether a chunk holds a disk's bytes or a node of a tree. Their names come from different keys: a guest that
/// writes the bytes of a node to its disk makes a chunk, not a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChunkKind {
    /// A disk's bytes.
    Data = 0,
    /// A node of a tree.
    Node = 1,
}

/// The derived keys of an open repository.
pub struct Keys {
    /// Names of data chunks.
    pub(crate) data_id: [u8; 32],
    /// Names of tree nodes.
    pub(crate) node_id: [u8; 32],
    /// Authenticates metadata: envelopes, packs' and segments' own indexes.
    pub(crate) metadata_mac: [u8; 32],
    /// What is encrypted with; `None` in a repository without encryption.
    pub(crate) encryption: Option<EncryptionKeys>,
    /// What other repositories may share (`init --share-key-with`).
    pub(crate) id_key: [u8; 32],
}

/// Keys of an encrypted repository.
pub(crate) struct EncryptionKeys {
    /// Envelopes' bodies.
    pub metadata: [u8; 32],
    /// From it and a pack's seed comes the pack's own key.
    pub chunks: [u8; 32],
    /// What all others but the names' come from; wrapped anew for each key slot.
    pub(crate) master: [u8; 32],
}

impl Keys {
    /// The keys of a repository without encryption.
    pub fn plain(id_key: [u8; 32]) -> Self {
        Keys::derive(&id_key, id_key, None)
    }

    /// The keys of an encrypted repository.
    pub fn encrypted(master: [u8; 32], id_key: [u8; 32]) -> Self {
        let encryption = EncryptionKeys {
            metadata: blake3::derive_key("mover repository v1 metadata encryption", &master),
            chunks: blake3::derive_key("mover repository v1 chunk encryption", &master),
            master,
        };
        Keys::derive(&master, id_key, Some(encryption))
    }

    fn derive(root: &[u8; 32], id_key: [u8; 32], encryption: Option<EncryptionKeys>) -> Self {
        Keys {
            data_id: blake3::derive_key("mover repository v1 names of data chunks", &id_key),
            node_id: blake3::derive_key("mover repository v1 names of tree nodes", &id_key),
            metadata_mac: blake3::derive_key("mover repository v1 metadata mac", root),
            encryption,
            id_key,
        }
    }

    /// The name of a chunk's content.
    pub fn chunk_id(&self, kind: ChunkKind, content: &[u8]) -> ChunkId {
        let key = match kind {
            ChunkKind::Data => &self.data_id,
            ChunkKind::Node => &self.node_id,
        };
        ChunkId(*blake3::keyed_hash(key, content).as_bytes())
    }

    /// The id key, for another repository that shall give equal content equal names.
    pub fn id_key(&self) -> [u8; 32] {
        self.id_key
    }

    /// The config's `key_check`: which keys a repository has, bound to what its config says of it, since anyone
    /// who can write to the store can write a config.
    pub(crate) fn check(&self, config: &Config) -> String {
        let key = blake3::derive_key("mover repository v1 key check", &self.metadata_mac);
        let Config { version, id, chunk_size, encrypted, .. } = config;
        let said = format!("mover repository {version} {id} {chunk_size} {encrypted}");
        hex::encode(blake3::keyed_hash(&key, said.as_bytes()).as_bytes())
    }
}

impl Drop for EncryptionKeys {
    fn drop(&mut self) {
        [&mut self.metadata, &mut self.chunks, &mut self.master].into_iter().for_each(|key| wipe(key));
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        [&mut self.data_id, &mut self.node_id, &mut self.metadata_mac, &mut self.id_key]
            .into_iter()
            .for_each(|key| wipe(key));
    }
}

/// Overwrites a secret. The compiler is told that someone looks at the zeros, so that it leaves them in.
pub(crate) fn wipe(secret: &mut [u8]) {
    secret.fill(0);
    black_box(secret);
}

/// Random bytes for a key.
///
/// # Errors
/// `Internal` when the system has none to give.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|_| Error::new(ErrorKind::Internal, "the system gives no random bytes"))?;
    Ok(bytes)
}
