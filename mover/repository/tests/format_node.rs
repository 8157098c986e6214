//! Roots and nodes: canonical, and nothing is taken for one that no writer writes.

mod format_support;

use format_support::{golden, id};
use mover_model::{ChunkId, ErrorKind};
use mover_repository::format::node::{
    FANOUT, LEVEL_MAX, NODE_BYTES_MAX, Node, Root, chunks_below, level_for,
};
use proptest::prelude::*;

const CHUNK: u32 = 128 << 10;

fn some_root() -> Root {
    Root { size: 10 << 30, chunk_size: CHUNK, level: level_for(10 << 30, CHUNK), top: id(1, 2) }
}

fn some_node(level: u8) -> Node {
    let mut node = Node::empty(level);
    [0, 1, 7, 8, 100, 255].into_iter().for_each(|place| node.children[place] = id(place as u64 + 1, 3));
    node
}

proptest! {
    #[test]
    fn a_root_reads_as_it_was_written(size in 0..=i64::MAX as u64, shift in 14u32..=22, top: [u8; 32]) {
        let chunk_size = 1 << shift;
        let top = if size == 0 { ChunkId::HOLE } else { ChunkId(top) };
        let root = Root { size, chunk_size, level: level_for(size, chunk_size), top };
        prop_assert_eq!(Root::decode(&root.encode()).unwrap(), root);
        prop_assert!(root.level <= LEVEL_MAX);
        // The least level that covers it.
        let chunks = u128::from(size).div_ceil(u128::from(chunk_size));
        let covers = |level: u8| 256u128.pow(u32::from(level) + 1) >= chunks;
        prop_assert!(covers(root.level) && (root.level == 0 || !covers(root.level - 1)));
    }

    #[test]
    fn a_node_reads_as_it_was_written(
        children in prop::collection::vec(prop::option::of(any::<[u8; 32]>()), FANOUT),
        level in 0..=LEVEL_MAX,
    ) {
        let mut node = Node::empty(level);
        for (child, id) in node.children.iter_mut().zip(&children) {
            *child = id.map_or(ChunkId::HOLE, ChunkId);
        }
        prop_assume!(!node.is_hole());
        let bytes = node.encode();
        prop_assert!(bytes.len() <= NODE_BYTES_MAX);
        let read = Node::decode(&bytes, level).unwrap();
        prop_assert_eq!(&read, &node);
        prop_assert_eq!(read.encode(), bytes);
    }

    /// Canonical: whatever is accepted is exactly what would be written for it.
    #[test]
    fn what_is_accepted_is_what_would_be_written(at in 0usize..4096, xor in 1u8.., cut in 0usize..300) {
        let mut bytes = some_node(2).encode();
        let length = bytes.len();
        bytes[at % length] ^= xor;
        bytes.truncate(length - cut.saturating_sub(200).min(length));
        if let Ok(node) = Node::decode(&bytes, 2) {
            prop_assert_eq!(node.encode(), bytes);
        }
        let mut bytes = some_root().encode();
        bytes[at % 64] ^= xor;
        if let Ok(root) = Root::decode(&bytes) {
            prop_assert_eq!(root.encode(), bytes);
        }
    }
}

#[test]
fn levels_change_where_a_node_is_full() {
    let chunk = u64::from(CHUNK);
    let cases =
        [(0, 0), (1, 0), (256 * chunk, 0), (256 * chunk + 1, 1), (65536 * chunk, 1), (65536 * chunk + 1, 2)];
    for (size, level) in cases {
        assert_eq!(level_for(size, CHUNK), level, "{size}");
    }
    assert_eq!(level_for(i64::MAX as u64, 16 << 10), LEVEL_MAX);
    assert_eq!((chunks_below(0), chunks_below(2), chunks_below(8)), (1, 65536, u64::MAX));
}

#[test]
fn every_flipped_bit_of_a_node_or_root_is_refused_or_is_another_one() {
    // Neither has a MAC: its name is the hash of these bytes. What counts is that no two encodings mean the same.
    let node = some_node(1);
    let bytes = node.encode();
    for at in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[at / 8] ^= 1 << (at % 8);
        assert!(
            Node::decode(&bytes, 1).map_or(true, |read| read != node && read.encode() == bytes),
            "bit {at}"
        );
    }
    let bytes = some_root().encode();
    for at in 0..bytes.len() * 8 {
        let mut bytes = bytes;
        bytes[at / 8] ^= 1 << (at % 8);
        assert!(
            Root::decode(&bytes).map_or(true, |read| read != some_root() && read.encode() == bytes),
            "bit {at}"
        );
    }
}

#[test]
fn truncated_and_longer_ones_are_refused() {
    let corrupt = |kind: Option<ErrorKind>| assert_eq!(kind, Some(ErrorKind::Corruption));
    let (node, root) = (some_node(0).encode(), some_root().encode());
    for length in 0..node.len() {
        corrupt(Node::decode(&node[..length], 0).err().map(|error| error.kind()));
    }
    for length in 0..root.len() {
        corrupt(Root::decode(&root[..length]).err().map(|error| error.kind()));
    }
    corrupt(Node::decode(&[&node[..], &[0]].concat(), 0).err().map(|error| error.kind()));
    corrupt(Node::decode(&[&node[..], &[7; 32]].concat(), 0).err().map(|error| error.kind()));
    corrupt(Root::decode(&[&root[..], &[0]].concat()).err().map(|error| error.kind()));
}

#[test]
fn what_no_writer_writes_is_refused_by_name() {
    let node = |at: usize, byte: u8, level: u8| {
        let mut bytes = some_node(1).encode();
        bytes[at] = byte;
        let error = Node::decode(&bytes, level).unwrap_err();
        (error.kind(), error.to_string())
    };
    assert_eq!(node(4, 2, 1).0, ErrorKind::Unsupported);
    assert!(node(4, 0, 1).1.contains("does not begin"));
    assert!(node(5, 1, 2).1.contains("level is 1 where 2"));
    assert!(node(6, 1, 1).1.contains("reserved"));
    assert!(node(8, 7, 1).1.contains("7 ids are said, 6 marked"));
    let mut hole = some_node(1).encode();
    hole[48..80].fill(0);
    assert!(Node::decode(&hole, 1).unwrap_err().to_string().contains("marked and a hole"));
    let mut empty = some_node(1).encode();
    empty.truncate(48);
    empty[8..48].fill(0);
    assert_eq!(Node::decode(&empty, 1).unwrap_err().kind(), ErrorKind::Corruption);

    let root = |change: &dyn Fn(&mut Root)| {
        let mut root = some_root();
        change(&mut root);
        Root::decode(&root.encode()).unwrap_err().to_string()
    };
    assert!(root(&|root| root.level += 1).contains("level is 3"));
    assert!(root(&|root| root.chunk_size = 100_000).contains("100000"));
    assert!(root(&|root| root.chunk_size = 8 << 20).contains("8388608"));
    assert!(root(&|root| root.size = 1 << 63).contains("size is"));
    assert!(root(&|root| (root.size, root.level) = (0, 0)).contains("no bytes"));
    let mut newer = some_root().encode();
    newer[7] = b'2';
    assert_eq!(Root::decode(&newer).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn golden_bytes_of_version_1() {
    golden("root-v1.bin", &some_root().encode());
    golden("node-v1.bin", &some_node(1).encode());
}
