//! The envelope of small metadata objects: config, key slots, manifests, sessions, doom lists, notes.
//!
//! ```text
//!  0 magic "MVOBJECT"  8   8 version u32   12 kind u32   16 three feature masks u64   40 writer's nonce 16
//! 56 length of the body u64   64 body (JSON; AES-256-GCM ciphertext and tag where encrypted)   then MAC 32
//! ```
//! The MAC is keyed BLAKE3 over the object's key and all bytes before it: a manifest moved to another name is none.
//! Config and key slots, which are read before there are keys, have an unkeyed one. The nonce is random for each put:
//! after a doubtful put the object is read back and compared by it.
//!
//! Magic, version, masks and the MAC in the last 32 bytes keep their places in every later version. So the MAC is
//! checked first: what fits it was written so, and a version or feature that is not known is a newer mover's; what
//! does not fit it is damage, whatever its version field says. That the keys themselves are right was settled when
//! the repository was opened, by the config's `key_check`.
//!
//! Incompatible bit 0 says that the body is a zstd frame (made before it was encrypted), bit 1 that it is encrypted.
//! The key of a body is made from the metadata key and the writer's nonce, so no key is used for two bodies and the
//! nonce of AES-GCM can be zero.

use std::io::Read;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use mover_model::{Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Features, newer};
use crate::keys::Keys;
use crate::names::ObjectName;
use crate::store::{Key, Put, Store};

/// Longest body: a manifest with the documents of a machine.
pub const BODY_MAX: u64 = 64 << 20;
/// Version of the envelope.
pub const ENVELOPE_VERSION: u32 = 1;
/// Bytes before the body.
pub const HEADER_BYTES: usize = 64;
/// Bytes of the MAC after the body.
pub const MAC_BYTES: usize = 32;

const MAGIC: &[u8; 8] = b"MVOBJECT";
/// The body is a zstd frame.
const ZSTD: u64 = 1 << 0;
/// The body is encrypted.
const ENCRYPTED: u64 = 1 << 1;
const KNOWN_INCOMPATIBLE: u64 = ZSTD | ENCRYPTED;
/// The only bits of read-only compatible features that this version knows: none yet.
const KNOWN_READ_ONLY_COMPATIBLE: u64 = 0;
/// Shorter bodies stay as they are: they take one block of a file system either way.
const COMPRESS_FROM: usize = 4096;
const TAG_BYTES: usize = 16;
/// A frame may not ask for a window larger than the longest body (2^26).
const ZSTD_WINDOW_LOG_MAX: u32 = 26;

/// What an envelope holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `config`.
    Config = 1,
    /// `keys/ID`.
    KeySlot = 2,
    /// `manifests/VM/POINT`: a manifest,
    Manifest = 3,
    /// or the record that the session which was to put it there has been ended.
    Aborted = 4,
    /// `sessions/ID/N`.
    Session = 5,
    /// `doom/ID`.
    Doom = 6,
    /// `notes/…`.
    Note = 7,
}

impl Kind {
    fn from_number(number: u32) -> Option<Self> {
        use Kind::*;
        [Config, KeySlot, Manifest, Aborted, Session, Doom, Note]
            .into_iter()
            .find(|kind| *kind as u32 == number)
    }
}

/// How a body is protected.
#[derive(Clone, Copy)]
pub enum Protection<'a> {
    /// Unkeyed hash, readable by all.
    Plain,
    /// Keyed; encrypted where the repository is.
    Sealed(&'a Keys),
}

impl Protection<'_> {
    /// The key of one body, where bodies are encrypted.
    fn body_key(&self, nonce: &[u8; 16]) -> Option<[u8; 32]> {
        let Protection::Sealed(Keys { encryption: Some(encryption), .. }) = self else { return None };
        let mut hasher = blake3::Hasher::new_keyed(&encryption.metadata);
        hasher.update(b"mover repository v1 envelope body");
        hasher.update(nonce);
        Some(*hasher.finalize().as_bytes())
    }
}

/// An envelope that was found to be authentic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// What it holds.
    pub kind: Kind,
    /// Its masks; unknown incompatible bits were refused before.
    pub features: Features,
    /// The writer's nonce.
    pub nonce: [u8; 16],
    /// The body, decrypted and decompressed.
    pub body: Vec<u8>,
}

impl Envelope {
    /// Whether a writer of this version may change what the object is about.
    pub fn may_be_changed(&self) -> bool {
        self.features.read_only_compatible & !KNOWN_READ_ONLY_COMPATIBLE == 0
    }
}

/// The MAC of an object: over its key and all its bytes but the MAC itself.
pub fn authenticate(key: &Key, protection: Protection<'_>, bytes: &[u8]) -> [u8; MAC_BYTES] {
    *mac(key, protection, bytes).as_bytes()
}

fn mac(key: &Key, protection: Protection<'_>, bytes: &[u8]) -> blake3::Hash {
    let mut hasher = match protection {
        Protection::Plain => blake3::Hasher::new_derive_key("mover repository v1 envelope, unkeyed"),
        // A key of its own: packs and segments are authenticated by others made from the same one.
        Protection::Sealed(keys) => blake3::Hasher::new_keyed(&blake3::derive_key(
            "mover repository v1 envelope, keyed",
            &keys.metadata_mac,
        )),
    };
    hasher.update(&(key.as_str().len() as u64).to_le_bytes());
    hasher.update(key.as_str().as_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// The bytes of an object. `nonce` must be random: an encrypted body's key is made from it.
///
/// # Errors
/// `Usage` for a body longer than [`BODY_MAX`]; `Internal` when cryptography or compression fail, never seen.
pub fn encode(
    key: &Key,
    kind: Kind,
    protection: Protection<'_>,
    nonce: [u8; 16],
    body: &[u8],
) -> Result<Vec<u8>> {
    if body.len() as u64 > BODY_MAX {
        let message =
            format!("a document of {} bytes is too long: at most {BODY_MAX} are stored", body.len());
        return Err(Error::usage(message).at(key.as_str()).hint("give smaller documents"));
    }
    let internal = |what: &str| Error::new(ErrorKind::Internal, format!("{what} failed")).at(key.as_str());
    let compressed = match body.len() {
        ..=COMPRESS_FROM => None,
        _ => {
            let frame = zstd::bulk::compress(body, 3).map_err(|_| internal("compression"))?;
            Some(frame).filter(|frame| frame.len() < body.len())
        }
    };
    let body_key = protection.body_key(&nonce);
    let features = Features {
        incompatible: compressed.as_ref().map_or(0, |_| ZSTD) | body_key.map_or(0, |_| ENCRYPTED),
        ..Features::default()
    };
    let mut stored = compressed.unwrap_or_else(|| body.to_vec());
    let stored_bytes = stored.len() + body_key.map_or(0, |_| TAG_BYTES);

    let mut bytes = Vec::with_capacity(HEADER_BYTES + stored_bytes + MAC_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&ENVELOPE_VERSION.to_le_bytes());
    bytes.extend_from_slice(&(kind as u32).to_le_bytes());
    bytes.extend_from_slice(&features.encode());
    bytes.extend_from_slice(&nonce);
    bytes.extend_from_slice(&(stored_bytes as u64).to_le_bytes());
    debug_assert_eq!(bytes.len(), HEADER_BYTES);
    if let Some(body_key) = body_key {
        aead(&body_key)
            .and_then(|aead| aead.seal_in_place_append_tag(zero_nonce(), aad(key, &bytes), &mut stored).ok())
            .ok_or_else(|| internal("encryption"))?;
    }
    bytes.extend_from_slice(&stored);
    bytes.extend_from_slice(&authenticate(key, protection, &bytes));
    Ok(bytes)
}

/// What the bytes of an object are. `label` names it in errors.
///
/// # Errors
/// `Corruption` when they are damaged or were put under another key, `Unsupported` for a newer version, kind or
/// incompatible feature, `Key` when they are authentic and still do not decrypt.
pub fn decode(key: &Key, label: &str, protection: Protection<'_>, bytes: &[u8]) -> Result<Envelope> {
    let damaged = |what: String| damaged(label, what);
    let size = bytes.len();
    if size < HEADER_BYTES + MAC_BYTES || size as u64 > object_bytes_max() {
        return Err(damaged(format!("an object of {size} bytes is none")));
    }
    let (content, found) = bytes.split_at(size - MAC_BYTES);
    let (header, stored) = content.split_at(HEADER_BYTES);
    let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let stored_bytes = u64::from_le_bytes(std::array::from_fn(|i| header[56 + i]));
    if &header[..8] != MAGIC {
        return Err(damaged("it does not begin as every object does".to_owned()));
    }
    // blake3::Hash compares in constant time.
    if mac(key, protection, content) != blake3::Hash::from_bytes(std::array::from_fn(|i| found[i])) {
        return Err(damaged(match stored_bytes == stored.len() as u64 {
            true => "its authentication code does not fit: it is damaged, or was put there from elsewhere"
                .to_owned(),
            false => format!("its body has {} bytes where its header says {stored_bytes}", stored.len()),
        }));
    }
    let version = u32_at(8);
    if version != ENVELOPE_VERSION {
        return Err(newer(
            label,
            &format!("it has version {version}, and this mover knows {ENVELOPE_VERSION}"),
        ));
    }
    let features = Features::decode(&std::array::from_fn(|i| header[16 + i]));
    features.check(KNOWN_INCOMPATIBLE, label)?;
    let kind = Kind::from_number(u32_at(12)).ok_or_else(|| {
        newer(label, &format!("it is of a kind that this mover does not know ({})", u32_at(12)))
    })?;
    if stored_bytes != stored.len() as u64 {
        return Err(damaged(format!(
            "its body has {} bytes where its header says {stored_bytes}",
            stored.len()
        )));
    }

    let nonce = std::array::from_fn(|i| header[40 + i]);
    let mut body = stored.to_vec();
    match (features.incompatible & ENCRYPTED != 0, protection.body_key(&nonce)) {
        (false, None) => {}
        (true, Some(body_key)) => {
            let plain = aead(&body_key)
                .and_then(|aead| aead.open_in_place(zero_nonce(), aad(key, header), &mut body).ok())
                .map(|plain| plain.len());
            // The MAC fits, so it is what was written; only the other key can be wrong.
            let plain = plain.ok_or_else(|| {
                Error::new(
                    ErrorKind::Key,
                    "it is authentic and does not decrypt: the encryption key is another one",
                )
                .at(label)
                .hint("see `mover key list`: a key slot may have been altered")
            })?;
            body.truncate(plain);
        }
        // Authentic, and not as this repository writes: only a faulty writer makes it.
        (true, None) => return Err(damaged("it is encrypted, and the repository is not".to_owned())),
        (false, Some(_)) => return Err(damaged("it is not encrypted, and the repository is".to_owned())),
    }
    if features.incompatible & ZSTD != 0 {
        body = inflate(&body).ok_or_else(|| damaged("its body does not decompress".to_owned()))?;
    }
    Ok(Envelope { kind, features, nonce, body })
}

/// Decompresses at most [`BODY_MAX`] bytes, with memory that grows with what comes out.
fn inflate(frame: &[u8]) -> Option<Vec<u8>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(frame).ok()?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).ok()?;
    let mut body = Vec::new();
    decoder.take(BODY_MAX + 1).read_to_end(&mut body).ok()?;
    (body.len() as u64 <= BODY_MAX).then_some(body)
}

fn object_bytes_max() -> u64 {
    BODY_MAX + (HEADER_BYTES + TAG_BYTES + MAC_BYTES) as u64
}

fn damaged(label: &str, what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corruption, what)
        .at(label)
        .hint("restore the file from a copy of the repository, or run `mover verify` to see what it touches")
}

fn aead(key: &[u8; 32]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key).ok().map(LessSafeKey::new)
}

/// Each body has a key of its own, so the nonce need not differ.
fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn aad(key: &Key, header: &[u8]) -> Aad<Vec<u8>> {
    let mut bytes = Vec::with_capacity(header.len() + key.as_str().len());
    bytes.extend_from_slice(header);
    bytes.extend_from_slice(key.as_str().as_bytes());
    Aad::from(bytes)
}

/// Puts a document. A put of unknown outcome is settled by reading back: `Done` only when the object there is ours.
///
/// # Errors
/// The store's. After one of them the object may be there or not.
pub fn put(
    store: &dyn Store,
    key: &Key,
    kind: Kind,
    protection: Protection<'_>,
    body: &impl Serialize,
) -> Result<Put> {
    let body = serde_json::to_vec(body).map_err(|error| {
        Error::new(ErrorKind::Internal, format!("a document does not serialise: {error}"))
    })?;
    let nonce = ObjectName::random()?.0;
    put_bytes(store, key, &encode(key, kind, protection, nonce, &body)?)
}

/// Puts an encoded envelope and settles a doubtful outcome.
///
/// After an error the object may be there and still not be durable (the folder's fsync failed), so that to find it
/// there is not enough: the same bytes are put once more, with all the syncs of a put. Only when that ends well, or
/// says that something is there, is the nonce asked.
pub(crate) fn put_bytes(store: &dyn Store, key: &Key, bytes: &[u8]) -> Result<Put> {
    let again = |first: Error| match first.kind() {
        // A full store has no second answer, nor has one that does not let us.
        ErrorKind::Full | ErrorKind::Refused | ErrorKind::Internal | ErrorKind::Usage => Err(first),
        kind => match store.put(key, bytes) {
            Ok(outcome) => Ok(outcome),
            // A store that cannot be reached makes nothing visible before it is durable: what is there counts.
            Err(_) if kind == ErrorKind::Unreachable && is_ours(store, key, bytes).unwrap_or(false) => {
                Ok(Put::Done)
            }
            Err(_) => Err(first),
        },
    };
    match store.put(key, bytes).or_else(again)? {
        Put::Exists if is_ours(store, key, bytes)? => Ok(Put::Done),
        outcome => Ok(outcome),
    }
}

/// Whether the object there is the one of these bytes: told by the writer's nonce.
fn is_ours(store: &dyn Store, key: &Key, bytes: &[u8]) -> Result<bool> {
    let Some(object) = store.open(key)? else { return Ok(false) };
    let nonce = 40..56;
    if object.size() != bytes.len() as u64 {
        return Ok(false);
    }
    let mut found = [0; 16];
    object.read_at(nonce.start as u64, &mut found)?;
    Ok(found == bytes[nonce])
}

/// Reads a document of one of the kinds; `None` when there is no object of that key. `Corruption` when it is damaged,
/// `Unsupported` for a newer version or unknown incompatible features, `Key` when only the key can be wrong.
///
/// # Errors
/// Those above and the store's.
pub fn get<T: DeserializeOwned>(
    store: &dyn Store,
    key: &Key,
    kind: Kind,
    protection: Protection<'_>,
) -> Result<Option<T>> {
    let Some((found, body)) = open(store, key, protection)? else { return Ok(None) };
    if found != kind {
        return Err(damaged(&store.label_of(key), format!("it holds {found:?} where {kind:?} belongs")));
    }
    parse(&store.label_of(key), &body).map(Some)
}

/// The document in an authentic body.
///
/// # Errors
/// `Unsupported`: it was written so, and this version does not understand it.
pub(crate) fn parse<T: DeserializeOwned>(label: &str, body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| {
        newer(label, &format!("it is whole, and this version does not understand it: {error}"))
    })
}

/// The kind of an object, and its body where it is authentic.
///
/// # Errors
/// As for [`get`].
pub fn open(store: &dyn Store, key: &Key, protection: Protection<'_>) -> Result<Option<(Kind, Vec<u8>)>> {
    Ok(read(store, key, protection)?.map(|envelope| (envelope.kind, envelope.body)))
}

/// The whole envelope.
///
/// # Errors
/// As for [`get`].
pub fn read(store: &dyn Store, key: &Key, protection: Protection<'_>) -> Result<Option<Envelope>> {
    let Some(object) = store.open(key)? else { return Ok(None) };
    let label = store.label_of(key);
    let size = object.size();
    if size > object_bytes_max() {
        return Err(damaged(&label, format!("an object of {size} bytes is none")));
    }
    decode(key, &label, protection, &object.read_all(object_bytes_max())?).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_authentic_and_does_not_decrypt_is_a_matter_of_keys() {
        let keys = Keys::encrypted([1; 32], [2; 32]);
        let mut other = Keys::encrypted([3; 32], [2; 32]);
        other.metadata_mac = keys.metadata_mac;
        let key = Key::new("notes/x");
        let bytes = encode(&key, Kind::Note, Protection::Sealed(&keys), [0; 16], b"body").unwrap();
        let error = decode(&key, "x", Protection::Sealed(&other), &bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Key);
        // Nor does it read what is in the clear, were it ever so authentic.
        let mut plain = Keys::plain([2; 32]);
        plain.metadata_mac = keys.metadata_mac;
        let bytes = encode(&key, Kind::Note, Protection::Sealed(&plain), [0; 16], b"body").unwrap();
        assert_eq!(
            decode(&key, "x", Protection::Sealed(&keys), &bytes).unwrap_err().kind(),
            ErrorKind::Corruption
        );
    }
}
