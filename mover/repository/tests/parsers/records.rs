//! What has no MAC of its own: nodes and roots of trees, records of chunks, texts.

use mover_model::ErrorKind::{Corruption, Unsupported, Usage};
use mover_repository::codec::{self, Compressor, PackKey, compressed_bound};
use mover_repository::config::Compression;
use mover_repository::format::entry::{ENTRY_BYTES, Encoding, Entry};
use mover_repository::format::hex;
use mover_repository::format::node::{LEVEL_MAX, NODE_BYTES_MAX, Node, ROOT_BYTES, Root, level_for};
use mover_repository::keys::ChunkKind;
use mover_repository::store::Key;
use mover_repository::{Keys, ObjectName};

use super::{Source, refused};
use crate::format_support::{encrypted_keys, id, plain_keys};

/// Most bytes of a chunk here: enough for every path of the codecs.
const CHUNK: usize = 64 << 10;

/// A node of a tree: its encoding is the only one of its children.
pub fn node(input: &[u8]) -> bool {
    let mut source = Source(input);
    let level = source.byte() % (LEVEL_MAX + 2);
    if let Ok(node) = Node::decode(source.0, level) {
        assert_eq!(node.encode(), source.0);
    }
    let mut node = Node::empty(level.min(LEVEL_MAX));
    for _ in 0..1 + source.below(256) {
        node.children[usize::from(source.byte())] = id(source.word() | 1, 0);
    }
    let mut bytes = node.encode();
    assert!(bytes.len() <= NODE_BYTES_MAX);
    assert_eq!(Node::decode(&bytes, node.level).unwrap(), node);
    let all = bytes.len();
    source.damage(&mut bytes, 0..all);
    if source.byte().is_multiple_of(8) {
        bytes.truncate(source.below(all));
    }
    match Node::decode(&bytes, level) {
        Ok(node) => {
            assert!(node.level == level && !node.is_hole());
            assert_eq!(node.encode(), bytes, "two encodings of one node");
            true
        }
        Err(error) => {
            refused(&error, &[Corruption, Unsupported]);
            false
        }
    }
}

/// A tree's root.
pub fn root(input: &[u8]) -> bool {
    let mut source = Source(input);
    let (size, shift) = (source.word() >> (1 + source.byte() % 63), 14 + source.byte() % 9);
    let chunk_size = 1 << shift;
    let root = Root { size, chunk_size, level: level_for(size, chunk_size), top: id(1, 2) };
    let mut bytes = root.encode();
    if size > 0 {
        assert_eq!(Root::decode(&bytes).unwrap(), root);
    }
    source.damage(&mut bytes, 0..ROOT_BYTES);
    let bytes = if source.byte().is_multiple_of(8) { source.0 } else { &bytes[..] };
    match Root::decode(bytes) {
        Ok(root) => {
            assert_eq!(root.encode(), bytes, "two encodings of one root");
            assert!(root.size <= i64::MAX as u64 && root.level <= LEVEL_MAX);
            true
        }
        Err(error) => {
            refused(&error, &[Corruption, Unsupported]);
            false
        }
    }
}

/// A record: what was compressed and encrypted comes back, what is damaged is refused or is other content, which its
/// name tells.
pub fn codec(input: &[u8]) -> bool {
    let mut source = Source(input);
    let settings = [Compression::None, Compression::Lz4, Compression::Zstd(1), Compression::Zstd(3)];
    let setting = settings[source.below(settings.len())];
    let keys: Keys = if source.byte() % 2 == 0 { plain_keys() } else { encrypted_keys() };
    let key = PackKey::new(&keys, &[source.byte(); 32]);
    let said = 1 + source.below(CHUNK);
    let (encoding, repeats) = (source.byte() % 3, 1 + source.below(128));
    let encoding = [Encoding::Raw, Encoding::Lz4, Encoding::Zstd][usize::from(encoding)];
    let mutations = source.some(24);

    // Any bytes, said to be a record.
    let mut out = vec![0; said];
    if let Err(error) = codec::decompress(encoding, source.0, &mut out) {
        refused(&error, &[Corruption]);
    }

    let mut content = source.0.repeat(repeats);
    content.truncate(CHUNK);
    if content.is_empty() {
        return false;
    }
    let mut record = vec![0; compressed_bound(content.len())];
    let compressed = Compressor::new(setting).unwrap().compress(&content, &mut record);
    let encoding = match compressed {
        Some((encoding, length)) => {
            assert!(length < content.len());
            record.truncate(length);
            encoding
        }
        None => {
            record.clone_from(&content);
            Encoding::Raw
        }
    };
    let mut entry = Entry {
        id: keys.chunk_id(ChunkKind::Data, &content),
        tag: [0; 16],
        offset: 4096,
        stored: record.len() as u32,
        plain: content.len() as u32,
        pack: 0,
        encoding,
        kind: ChunkKind::Data,
    };
    let plain_record = record.clone();
    entry.tag = key.seal(&entry, &mut record).unwrap();
    let sealed = record.clone();
    let mut out = vec![0; content.len()];
    key.open(&entry, &mut record).unwrap();
    assert_eq!(record, plain_record);
    codec::decompress(encoding, &record, &mut out).unwrap();
    codec::check(&keys, &entry, &out, &entry.id).unwrap();
    assert_eq!(out, content);

    // Damaged as it is stored.
    let mut changes = Source(mutations);
    let mut damaged = sealed.clone();
    let all = damaged.len();
    changes.damage(&mut damaged, 0..all);
    if damaged == sealed {
        return true;
    }
    if let Err(error) = key.open(&entry, &mut damaged) {
        refused(&error, &[Corruption]);
        // Past the tag: an old key, or a writer that compresses wrongly.
        damaged = plain_record;
        changes.damage(&mut damaged, 0..all);
    }
    match codec::decompress(encoding, &damaged, &mut out) {
        Ok(()) if out == content => true,
        Ok(()) => {
            refused(&codec::check(&keys, &entry, &out, &entry.id).unwrap_err(), &[Corruption]);
            false
        }
        Err(error) => {
            refused(&error, &[Corruption]);
            false
        }
    }
}

/// Texts that stand in keys and documents, and single entries.
pub fn texts(input: &[u8]) -> bool {
    let mut source = Source(input);
    let bytes: [u8; ENTRY_BYTES] = source.bytes();
    match Entry::decode(&bytes) {
        Ok(entry) => assert_eq!(entry.encode(), bytes),
        Err(error) => refused(&error, &[Corruption]),
    }
    let text = String::from_utf8_lossy(input);
    let mut found = false;
    if let Some(key) = Key::parse(&text) {
        found = true;
        assert_eq!(key.as_str(), text);
        assert!(
            !text.starts_with('/') && !text.split('/').any(|part| part.is_empty() || part.starts_with('.'))
        );
    }
    if let Ok(name) = text.parse::<ObjectName>() {
        assert_eq!(name.to_string(), text);
    }
    if let Some(bytes) = hex::decode::<16>(&text) {
        assert_eq!(hex::encode(&bytes), text);
    }
    match text.parse::<Compression>() {
        Ok(compression) => {
            found = true;
            assert_eq!(compression.to_string().parse::<Compression>().unwrap(), compression);
        }
        Err(error) => refused(&error, &[Usage]),
    }
    found
}
