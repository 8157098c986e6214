//! Packs' own indexes and index segments, with MACs that fit whatever they say.

use mover_model::ErrorKind::{Corruption, Unsupported, WrongIdentity};
use mover_repository::ObjectName;
use mover_repository::format::BLOCK;
use mover_repository::format::entry::{Encoding, Entry};
use mover_repository::format::pack::{PackHeader, encode_header, encode_tail, read_header, read_index};
use mover_repository::format::segment::{PAGE_ENTRIES, Segment, segment_key, write_segment};
use mover_repository::keys::{ChunkKind, Keys};
use mover_repository::store::Store;

use super::{Source, mac_key, refused};
use crate::format_support::{MemoryObject, MemoryStore, REPOSITORY, encrypted_keys, id, name, plain_keys};

const KINDS: &[mover_model::ErrorKind] = &[Corruption, Unsupported, WrongIdentity];
const NAME: ObjectName = ObjectName([2; 16]);
const PAGE: usize = BLOCK as usize;

/// Makes a block's MAC anew.
fn seal_block(key: &[u8; 32], block: &mut [u8]) {
    let mac = *blake3::Hasher::new_keyed(key)
        .update(b"mover block\0\0\0\0\0")
        .update(&block[..PAGE - 32])
        .finalize()
        .as_bytes();
    block[PAGE - 32..].copy_from_slice(&mac);
}

/// A key or MAC over a use, the repository, the object's name and more.
fn keyed(key: &[u8; 32], context: &[u8; 16], more: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    *hasher.update(context).update(&REPOSITORY).update(&NAME.0).update(more).finalize().as_bytes()
}

fn entries(source: &mut Source<'_>, most: usize, packs: u32) -> Vec<Entry> {
    let mut free = BLOCK;
    let count = source.below(most + 1);
    let made = (0..count).map(|_| {
        let [shape, length, gap] = source.bytes();
        let encoding = [Encoding::Raw, Encoding::Lz4, Encoding::Zstd][usize::from(shape % 3)];
        let stored = u32::from(length) * 7 + 1;
        let offset = free + u64::from(gap % 3) * 512;
        free = offset + u64::from(stored);
        Entry {
            id: id(u64::from(source.short()) << 40 | 1, u64::from(source.byte())),
            tag: [shape; 16],
            offset,
            stored,
            plain: if encoding == Encoding::Raw { stored } else { stored + 1 },
            pack: u32::from(shape).checked_rem(packs).unwrap_or(0),
            encoding,
            kind: if shape & 64 == 0 { ChunkKind::Data } else { ChunkKind::Node },
        }
    });
    made.collect()
}

/// A pack's header, index and footer.
pub fn pack(input: &[u8]) -> bool {
    let mut source = Source(input);
    let encrypted = source.byte() % 2 == 1;
    let keys: Keys = if encrypted { encrypted_keys() } else { plain_keys() };
    let mac_key = mac_key(encrypted);
    let header = PackHeader { repository: REPOSITORY, name: NAME, seed: source.bytes() };
    let placed = entries(&mut source, 120, 0);

    let mut bytes = encode_header(&keys, &header);
    let end = placed.iter().map(Entry::end).max().unwrap_or(BLOCK);
    bytes.resize(end.next_multiple_of(BLOCK) as usize, 0xaa);
    let index_at = bytes.len();
    bytes.extend(encode_tail(&keys, &header, &placed, index_at as u64));
    let footer_at = bytes.len() - PAGE;
    let read = |bytes: &[u8]| {
        let object = MemoryObject::new(bytes.to_vec());
        read_index(&keys, REPOSITORY, NAME, &object, "here").inspect(|index| {
            assert_eq!(read_header(&keys, REPOSITORY, NAME, &object, "here").unwrap(), index.header)
        })
    };
    assert_eq!(read(&bytes).unwrap().entries, placed);

    // Only damaged, or cut.
    let whole = bytes.clone();
    let mut outside = Source(source.some(16));
    outside.damage(&mut bytes, 0..PAGE);
    outside.damage(&mut bytes, index_at..footer_at + PAGE);
    if bytes != whole {
        refused(&read(&bytes).unwrap_err(), KINDS);
    }
    refused(&read(&whole[..outside.below(whole.len())]).unwrap_err(), KINDS);

    // And with MACs that fit. Fields before the features are compared first, so they are seldom changed.
    let mut bytes = whole;
    let head = if source.byte().is_multiple_of(8) { 0 } else { 16 };
    source.damage(&mut bytes, index_at..footer_at);
    source.damage(&mut bytes, footer_at + 72..footer_at + 96);
    if source.byte().is_multiple_of(4) {
        source.damage(&mut bytes, head..PAGE - 32);
        source.damage(&mut bytes, footer_at + head..footer_at + PAGE - 32);
    }
    // What the footer says of where the index is, where that is a place.
    let said = u64::from_le_bytes(bytes[footer_at + 72..footer_at + 80].try_into().unwrap());
    let from = usize::try_from(said).ok().filter(|&at| at <= footer_at).unwrap_or(index_at);
    let index_mac = keyed(&mac_key, b"mover pack index", &bytes[from..footer_at]);
    seal_block(&mac_key, &mut bytes[..PAGE]);
    let header_mac: [u8; 32] = bytes[PAGE - 32..PAGE].try_into().unwrap();
    bytes[footer_at + 96..footer_at + 128].copy_from_slice(&header_mac);
    bytes[footer_at + 128..footer_at + 160].copy_from_slice(&index_mac);
    seal_block(&mac_key, &mut bytes[footer_at..]);
    match read(&bytes) {
        Ok(index) => {
            let mut free = BLOCK;
            for entry in &index.entries {
                assert!(entry.offset >= free && entry.end() <= footer_at as u64, "{entry:?}");
                free = entry.end();
                assert!(index.find(&entry.id).any(|found| found == entry));
            }
            true
        }
        Err(error) => {
            refused(&error, KINDS);
            false
        }
    }
}

/// An index segment: opened, walked and asked.
pub fn segment(input: &[u8]) -> bool {
    let mut source = Source(input);
    let encrypted = source.byte() % 2 == 1;
    let keys: Keys = if encrypted { encrypted_keys() } else { plain_keys() };
    let mac_key = mac_key(encrypted);
    let packs: Vec<ObjectName> = (0..1 + source.byte() % 5).map(name).collect();
    let superseded: Vec<ObjectName> = (0..source.byte() % 4).map(|number| name(number + 100)).collect();
    let mut sorted = entries(&mut source, 3 * PAGE_ENTRIES, packs.len() as u32);
    sorted.sort_by_key(|entry| entry.id);

    let store = MemoryStore::default();
    let mut given = sorted.iter().copied().map(Ok);
    write_segment(&store, &keys, REPOSITORY, NAME, &packs, &superseded, &mut given).unwrap();
    let key = segment_key(NAME);
    let whole = store.bytes(&key);
    let opened = Segment::open(&store, &keys, REPOSITORY, NAME).unwrap().unwrap();
    assert_eq!((opened.packs(), opened.superseded()), (&packs[..], &superseded[..]));
    let read: Vec<Entry> = opened.iter().map(|entry| entry.unwrap().1).collect();
    assert_eq!(read, sorted);

    let (pages_at, tables_at) = (PAGE, PAGE + sorted.len().div_ceil(PAGE_ENTRIES) * PAGE);
    let footer_at = whole.len() - PAGE;
    let mut outside = Source(source.some(16));
    let mut bytes = whole.clone();
    outside.damage(&mut bytes, tables_at..footer_at + PAGE);
    if bytes != whole {
        store.replace(&key, bytes);
        refused(&Segment::open(&store, &keys, REPOSITORY, NAME).err().unwrap(), KINDS);
    }

    let mut bytes = whole;
    let head = if source.byte().is_multiple_of(8) { 0 } else { 16 };
    source.damage(&mut bytes, pages_at..tables_at);
    source.damage(&mut bytes, tables_at..footer_at);
    source.damage(&mut bytes, footer_at + 72..footer_at + 144);
    if source.byte().is_multiple_of(4) {
        source.damage(&mut bytes, head..PAGE - 32);
        source.damage(&mut bytes, footer_at + head..footer_at + PAGE - 32);
    }
    let page_key = keyed(&mac_key, b"mover segm. page", &[]);
    for page in bytes[pages_at..tables_at].chunks_exact_mut(PAGE) {
        page[PAGE - 32..].fill(0);
        let mac = *blake3::keyed_hash(&page_key, page).as_bytes();
        page[PAGE - 32..].copy_from_slice(&mac);
    }
    // The tables begin where the footer says so, if that is a place.
    let said = u64::from_le_bytes(bytes[footer_at + 104..footer_at + 112].try_into().unwrap());
    let from = usize::try_from(said).ok().filter(|&at| at <= footer_at).unwrap_or(tables_at);
    let tables_key = keyed(&mac_key, b"mover segm. tabl", &[]);
    let tables = *blake3::keyed_hash(&tables_key, &bytes[from..footer_at]).as_bytes();
    bytes[footer_at + 144..footer_at + 176].copy_from_slice(&tables);
    seal_block(&mac_key, &mut bytes[..PAGE]);
    seal_block(&mac_key, &mut bytes[footer_at..]);
    store.replace(&key, bytes);
    let opened = match Segment::open(&store, &keys, REPOSITORY, NAME) {
        Ok(opened) => opened.unwrap(),
        Err(error) => {
            refused(&error, KINDS);
            return false;
        }
    };
    let (mut found, mut walked) = (Vec::new(), 0);
    for entry in opened.iter() {
        walked += 1;
        match entry {
            Ok((ordinal, entry)) => {
                assert!(ordinal < opened.entries() && (entry.pack as usize) < opened.packs().len());
            }
            Err(error) => refused(&error, KINDS),
        }
    }
    assert!(walked <= opened.entries());
    for entry in sorted.iter().take(8) {
        match opened.find(&entry.id, &mut found) {
            Ok(()) => assert!(found.iter().all(|(_, found)| (found.pack as usize) < opened.packs().len())),
            Err(error) => refused(&error, KINDS),
        }
    }
    store.delete(&key).unwrap();
    true
}
