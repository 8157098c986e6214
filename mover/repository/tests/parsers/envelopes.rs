//! Envelopes: whole, damaged, and authentic with odd content.

use mover_model::ErrorKind::{Corruption, Key as WrongKey, Unsupported};
use mover_repository::format::envelope::{
    BODY_MAX, HEADER_BYTES, Kind, MAC_BYTES, Protection, authenticate, decode, encode,
};
use mover_repository::store::Key;

use super::{Source, refused};
use crate::format_support::{encrypted_keys, plain_keys};

const KINDS: [Kind; 7] =
    [Kind::Config, Kind::KeySlot, Kind::Manifest, Kind::Aborted, Kind::Session, Kind::Doom, Kind::Note];

/// An envelope from the input.
pub fn envelope(input: &[u8]) -> bool {
    let mut source = Source(input);
    let (plain, encrypted) = (plain_keys(), encrypted_keys());
    let protections = [Protection::Plain, Protection::Sealed(&plain), Protection::Sealed(&encrypted)];
    let protection = protections[source.below(3)];
    let kind = KINDS[source.below(KINDS.len())];
    let (key, elsewhere) = (Key::new("notes/damaged/a"), Key::new("notes/damaged/b"));
    let repeats = 1 + source.below(64);

    // As it comes.
    if let Err(error) = decode(&key, "here", protection, source.0) {
        refused(&error, &[Corruption, Unsupported, WrongKey]);
    }

    // What is written is read, and nowhere else. Repeated, a body is worth compressing.
    let nonce = source.bytes();
    let mutations = source.some(24);
    let body = source.0.repeat(repeats);
    let whole = encode(&key, kind, protection, nonce, &body).unwrap();
    let read = decode(&key, "here", protection, &whole).unwrap();
    assert_eq!((read.kind, read.nonce, &read.body), (kind, nonce, &body));
    refused(&decode(&elsewhere, "there", protection, &whole).unwrap_err(), &[Corruption]);

    // Damaged: never accepted.
    let mut changes = Source(mutations);
    let mut bytes = whole.clone();
    let content = bytes.len() - MAC_BYTES;
    changes.damage(&mut bytes, 0..content);
    if bytes != whole {
        refused(&decode(&key, "here", protection, &bytes).unwrap_err(), &[Corruption]);
    }

    // The same with a MAC that fits, cut or longer, or with a frame of the input's own.
    if changes.byte().is_multiple_of(4) {
        let frame = source.some(4096);
        bytes.truncate(HEADER_BYTES);
        bytes.extend_from_slice(frame);
        bytes[56..64].copy_from_slice(&(frame.len() as u64).to_le_bytes());
        bytes[16] |= 1;
    } else {
        bytes.truncate(content - changes.below(4) * usize::from(changes.byte()).min(content / 4));
    }
    let mac = authenticate(&key, protection, &bytes);
    bytes.extend_from_slice(&mac);
    match decode(&key, "here", protection, &bytes) {
        Ok(read) => {
            assert!(read.body.len() as u64 <= BODY_MAX && read.features.incompatible & !3 == 0);
            true
        }
        Err(error) => {
            refused(&error, &[Corruption, Unsupported, WrongKey]);
            false
        }
    }
}
