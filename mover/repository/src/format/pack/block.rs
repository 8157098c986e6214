//! The authenticated blocks at the beginning and the end of packs and index segments.
//!
//! ```text
//!  0 magic        8    8 version u32   12 zero u32   16 three feature masks u64   40 repository 16   56 name 16
//! 72 content    3992   zeros where there is none
//! 4064 MAC        32   keyed BLAKE3 over a constant and all bytes before it
//! ```
//! The fields up to the name lie there in every version, so that a newer one is told from damage. The repository and
//! the name are among what is authenticated: a block moved to another object is none.

use mover_model::{Error, ErrorKind, Result};

use crate::format::entry::array;
use crate::format::{BLOCK, Features, newer};
use crate::keys::Keys;
use crate::names::ObjectName;

/// Bytes of a block.
pub(crate) const BYTES: usize = BLOCK as usize;
/// Bytes of what a block says beyond its common fields.
pub(crate) const CONTENT_BYTES: usize = MAC_AT - CONTENT_AT;

const VERSION: u32 = crate::config::FORMAT_VERSION;
const CONTENT_AT: usize = 72;
const MAC_AT: usize = BYTES - 32;
/// Set apart from every other use of the key.
const CONTEXT: &[u8; 16] = b"mover block\0\0\0\0\0";

/// Which block of which object.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    /// What it begins with.
    pub magic: &'a [u8; 8],
    /// The repository's id.
    pub repository: [u8; 16],
    /// The object's name.
    pub name: ObjectName,
    /// What it is called in messages: `the header of a pack`.
    pub what: &'a str,
    /// The object's label.
    pub label: &'a str,
    /// Where in the object it lies.
    pub offset: u64,
}

/// A block that is authentic.
pub(crate) struct Opened {
    /// What it says beyond its common fields.
    pub content: [u8; CONTENT_BYTES],
    /// Its features; none of the incompatible ones is unknown.
    pub features: Features,
    /// Its MAC: names it with all that it says.
    pub mac: [u8; 32],
}

impl Block<'_> {
    /// Its bytes.
    pub(crate) fn encode(&self, keys: &Keys, content: &[u8]) -> [u8; BYTES] {
        debug_assert!(content.len() <= CONTENT_BYTES);
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(self.magic);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[40..56].copy_from_slice(&self.repository);
        bytes[56..72].copy_from_slice(&self.name.0);
        bytes[CONTENT_AT..CONTENT_AT + content.len()].copy_from_slice(content);
        let mac = mac(keys, &bytes);
        bytes[MAC_AT..].copy_from_slice(mac.as_bytes());
        bytes
    }

    /// Checks a block.
    pub(crate) fn open(&self, keys: &Keys, bytes: &[u8; BYTES]) -> Result<Opened> {
        if bytes[..8] != self.magic[..] {
            return Err(self.corrupt("does not begin as one"));
        }
        // Before what it covers is believed: a bit that flipped in the version is damage, and no newer format.
        let mac_found: [u8; 32] = array(bytes, MAC_AT);
        let version = u32::from_le_bytes(array(bytes, 8));
        // Compared in constant time.
        let authentic = mac(keys, bytes) == mac_found;
        if authentic && version > VERSION {
            let what = format!("{} has version {version}, this program knows {VERSION}", self.what);
            return Err(newer(self.label, &what));
        }
        let repository: [u8; 16] = array(bytes, 40);
        if repository != self.repository {
            let id = uuid::Uuid::from_bytes;
            let (found, wanted) = (id(repository), id(self.repository));
            let message = format!("{} belongs to the repository {found}, not to {wanted}", self.what);
            return Err(self
                .error(ErrorKind::WrongIdentity, message)
                .hint("do not mix repositories' folders"));
        }
        let name = ObjectName(array(bytes, 56));
        if name != self.name {
            return Err(self.corrupt(&format!("is that of {name}, under another name")));
        }
        if !authentic || version == 0 {
            return Err(self.corrupt("is not what was written"));
        }
        let features = Features::decode(&array(bytes, 16));
        features.check(0, self.label)?;
        Ok(Opened { content: array(bytes, CONTENT_AT), features, mac: mac_found })
    }

    /// Damage of this block.
    pub(crate) fn corrupt(&self, what: &str) -> Error {
        self.error(ErrorKind::Corruption, format!("{} {what}", self.what))
            .hint("`mover verify` tells which restore points it touches")
    }

    fn error(&self, kind: ErrorKind, message: String) -> Error {
        Error::new(kind, message).at(self.label).offset(self.offset)
    }
}

fn mac(keys: &Keys, bytes: &[u8; BYTES]) -> blake3::Hash {
    blake3::Hasher::new_keyed(&keys.metadata_mac).update(CONTEXT).update(&bytes[..MAC_AT]).finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_features_are_refused_only_where_they_must_be_known() {
        let keys = Keys::plain([1; 32]);
        let (repository, name) = ([2; 16], ObjectName([3; 16]));
        let block = Block { magic: b"MVTESTHD", repository, name, what: "a block", label: "here", offset: 0 };
        let opened = |at: usize| {
            let mut bytes = block.encode(&keys, b"content");
            bytes[at] = 4;
            let mac = mac(&keys, &bytes);
            bytes[MAC_AT..].copy_from_slice(mac.as_bytes());
            block.open(&keys, &bytes)
        };
        assert_eq!(opened(16).err().map(|error| error.kind()), Some(ErrorKind::Unsupported));
        let read_only = opened(24).unwrap();
        assert_eq!((read_only.features.read_only_compatible, &read_only.content[..7]), (4, &b"content"[..]));
        assert_eq!(opened(32).unwrap().features.compatible, 4);
    }
}
