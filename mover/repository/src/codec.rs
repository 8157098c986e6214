//! From a chunk's content to the bytes of its record and back.
//!
//! Content is compressed where it pays, then encrypted in place. The other way each step is bounded by the length that
//! the index tells, and the result is compared with the chunk's name at last: [`check`].

use std::cell::RefCell;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use lz4_flex::block::{self as lz4, CompressTable};
use mover_model::{ChunkId, Error, ErrorKind, Result};
use zstd::zstd_safe;

use crate::config::{Compression, FORMAT_VERSION};
use crate::format::entry::{Encoding, Entry};
use crate::keys::Keys;

/// A chunk is kept compressed only where this part of it is saved: reading it back costs more than less would save.
const WORTH_ONE_IN: usize = 16;

/// Room that a compressor needs for the worst case of `plain` bytes.
pub fn compressed_bound(plain: usize) -> usize {
    lz4::get_maximum_output_size(plain).max(zstd_safe::compress_bound(plain))
}

/// Compresses chunks; one for each worker, as it keeps its tables.
pub struct Compressor {
    state: State,
}

enum State {
    None,
    Lz4(CompressTable),
    Zstd(Box<zstd::bulk::Compressor<'static>>),
}

impl Compressor {
    /// For a repository's setting.
    ///
    /// # Errors
    /// `Internal` when there is no memory for its tables.
    pub fn new(compression: Compression) -> Result<Self> {
        let state = match compression {
            Compression::None => State::None,
            Compression::Lz4 => State::Lz4(CompressTable::large()),
            Compression::Zstd(level) => State::Zstd(Box::new(zstd_compressor(level)?)),
        };
        Ok(Compressor { state })
    }

    /// Compresses into `out`, which has [`compressed_bound`] bytes of room; `None` where it does not pay (less than
    /// one part in sixteen is saved): the chunk is kept raw then.
    pub fn compress(&mut self, plain: &[u8], out: &mut [u8]) -> Option<(Encoding, usize)> {
        let most = plain.len() - plain.len().div_ceil(WORTH_ONE_IN);
        // An error is a lack of room in `out`, and costs no more than the saving.
        let (encoding, length) = match &mut self.state {
            State::None => return None,
            State::Lz4(table) => (Encoding::Lz4, lz4::compress_into_with_table(plain, out, table).ok()?),
            State::Zstd(zstd) => (Encoding::Zstd, zstd.compress_to_buffer(plain, out).ok()?),
        };
        (length > 0 && length <= most).then_some((encoding, length))
    }
}

/// A compressor with its tables: zstd makes them at the first use, so one small use is made here, where there is a way
/// to tell that there is no memory.
fn zstd_compressor(level: i32) -> Result<zstd::bulk::Compressor<'static>> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Internal, format!("zstd:{level} cannot begin: {error}"))
            .hint("a lower level or lz4 takes less memory")
    };
    let mut zstd = zstd::bulk::Compressor::new(level).map_err(failed)?;
    let plain = vec![0; crate::config::CHUNK_SIZE_DEFAULT as usize];
    let mut out = vec![0; zstd_safe::compress_bound(plain.len())];
    zstd.compress_to_buffer(&plain, &mut out[..]).map_err(failed)?;
    Ok(zstd)
}

/// A pack's own key; does nothing in a repository without encryption.
pub struct PackKey(Option<LessSafeKey>);

impl PackKey {
    /// From the repository's keys and the pack's seed.
    pub fn new(keys: &Keys, seed: &[u8; 32]) -> Self {
        PackKey(keys.encryption.as_ref().map(|keys| {
            let key = blake3::keyed_hash(&keys.chunks, seed);
            let key = UnboundKey::new(&AES_256_GCM, key.as_bytes());
            LessSafeKey::new(key.expect("a key of AES-256 has 32 bytes, as this hash"))
        }))
    }

    /// Encrypts a record in place; its offset in the pack is the nonce, its id and encoding are authenticated with it.
    ///
    /// # Errors
    /// `Internal`, never seen.
    pub fn seal(&self, entry: &Entry, bytes: &mut [u8]) -> Result<[u8; 16]> {
        let Some(key) = &self.0 else { return Ok([0; 16]) };
        let failed = || Error::new(ErrorKind::Internal, format!("chunk {} could not be encrypted", entry.id));
        let tag = key.seal_in_place_separate_tag(nonce(entry), aad(entry), bytes).map_err(|_| failed())?;
        tag.as_ref().try_into().map_err(|_| failed())
    }

    /// Decrypts a record in place.
    ///
    /// # Errors
    /// `Corruption` when the tag does not fit; `bytes` hold nothing of use then.
    pub fn open(&self, entry: &Entry, bytes: &mut [u8]) -> Result<()> {
        let damaged = |what: &str| {
            Error::new(ErrorKind::Corruption, format!("the record of chunk {} {what}", entry.id))
                .offset(entry.offset)
        };
        match &self.0 {
            None if entry.tag == [0; 16] => Ok(()),
            None => Err(damaged("has an authentication tag in a repository without encryption")),
            Some(key) => key
                .open_in_place_separate_tag(nonce(entry), aad(entry), &entry.tag, bytes)
                .map(|_| ())
                .map_err(|_| damaged("is not what was written")),
        }
    }
}

/// A record's offset, which no other record of its pack has; and each pack has a key of its own.
fn nonce(entry: &Entry) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&entry.offset.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// What is authenticated with a record, so that an index that names a wrong place or encoding is found out.
fn aad(entry: &Entry) -> Aad<[u8; 42]> {
    let mut aad = [0; 42];
    aad[..32].copy_from_slice(&entry.id.0);
    aad[32] = entry.encoding as u8;
    aad[33] = entry.kind as u8;
    aad[34..38].copy_from_slice(&entry.plain.to_le_bytes());
    aad[38..].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    Aad::from(aad)
}

thread_local! {
    /// zstd's tables for decompression, made at a thread's first use: a new one for each chunk would cost more than the
    /// chunk.
    static ZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Turns a record's bytes (decrypted already) into content; `out` has exactly `plain` bytes.
///
/// # Errors
/// `Corruption` when they do not decode to exactly that many; without a path, which the caller knows.
pub fn decompress(encoding: Encoding, stored: &[u8], out: &mut [u8]) -> Result<()> {
    let length = match encoding {
        Encoding::Raw => {
            if stored.len() == out.len() {
                out.copy_from_slice(stored);
            }
            stored.len()
        }
        Encoding::Lz4 => lz4::decompress_into(stored, out).map_err(|error| undecodable("LZ4", &error))?,
        Encoding::Zstd => ZSTD.with_borrow_mut(|zstd| {
            if zstd.is_none() {
                let made = zstd::bulk::Decompressor::new();
                *zstd = Some(made.map_err(|error| {
                    Error::new(ErrorKind::Internal, format!("zstd cannot begin to decompress: {error}"))
                })?);
            }
            match zstd {
                Some(zstd) => {
                    zstd.decompress_to_buffer(stored, out).map_err(|error| undecodable("zstd", &error))
                }
                None => Err(Error::new(ErrorKind::Internal, "zstd cannot begin to decompress")),
            }
        })?,
    };
    if length != out.len() {
        let message = format!("a record holds {length} bytes of content where the index says {}", out.len());
        return Err(Error::new(ErrorKind::Corruption, message));
    }
    Ok(())
}

fn undecodable(encoding: &str, error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corruption, format!("a record is no {encoding} of its content: {error}"))
}

/// Whether content is what its name says.
///
/// # Errors
/// `Corruption`; without a path, which the caller knows.
pub fn check(keys: &Keys, entry: &Entry, content: &[u8], id: &ChunkId) -> Result<()> {
    let corrupt = |what: String| Err(Error::new(ErrorKind::Corruption, what).offset(entry.offset));
    if entry.id != *id {
        return corrupt(format!("the place of chunk {id} holds {}", entry.id));
    }
    if content.len() as u64 != u64::from(entry.plain) {
        return corrupt(format!("chunk {id} has {} bytes, not {}", content.len(), entry.plain));
    }
    let found = keys.chunk_id(entry.kind, content);
    if found != *id {
        return corrupt(format!("what is stored as chunk {id} has other content ({found})"));
    }
    Ok(())
}
