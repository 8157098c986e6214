//! One segment in place of all others, without what is gone.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use mover_model::{ChunkId, Error, ErrorKind, Result};

use super::mark::Marks;
use crate::format::entry::Entry;
use crate::format::segment::write_segment;
use crate::names::ObjectName;
use crate::repository::Repository;

/// Puts a segment that stands for all segments of the mark and for `leftover` ones. Entries of `gone` packs are
/// left out, and those that are not worth keeping. Returns its name; the others may be deleted once it is durable,
/// which it is when this returns: a reader that lists segments finds the old ones, or the new one, or both, of which it
/// then ignores the old.
pub(super) fn merge(
    repository: &Repository,
    marks: &Marks,
    gone: &HashSet<ObjectName>,
    leftover: &[ObjectName],
) -> Result<ObjectName> {
    let mut packs: Vec<ObjectName> = marks
        .segments()
        .flat_map(|segment| segment.packs())
        .copied()
        .filter(|name| !gone.contains(name))
        .collect();
    packs.sort_unstable();
    packs.dedup();
    let numbers: HashMap<ObjectName, u32> = packs.iter().copied().zip(0..).collect();
    let mut superseded: Vec<ObjectName> = marks.segments().map(|segment| segment.name()).collect();
    superseded.extend(leftover);
    let name = ObjectName::random()?;
    let mut entries = Merged::new(marks, &numbers)?;
    write_segment(
        repository.store(),
        repository.keys(),
        repository.id(),
        name,
        &packs,
        &superseded,
        &mut entries,
    )?;
    Ok(name)
}

/// An entry that is next in its segment.
type Head = Reverse<(ChunkId, usize, u64)>;

struct Input<'a> {
    entries: Box<dyn Iterator<Item = Result<(u64, Entry)>> + Send + 'a>,
    packs: &'a [ObjectName],
    next: Option<Entry>,
}

/// All segments' entries in the order of their ids.
struct Merged<'a> {
    marks: &'a Marks,
    numbers: &'a HashMap<ObjectName, u32>,
    inputs: Vec<Input<'a>>,
    heads: BinaryHeap<Head>,
    /// Records of the present id that were given out: an entry may stand in two segments.
    id: ChunkId,
    given: Vec<(u32, u64)>,
}

impl<'a> Merged<'a> {
    fn new(marks: &'a Marks, numbers: &'a HashMap<ObjectName, u32>) -> Result<Self> {
        let inputs = marks
            .segments()
            .map(|segment| Input { entries: segment.iter(), packs: segment.packs(), next: None })
            .collect();
        let heads = BinaryHeap::new();
        let mut merged = Merged { marks, numbers, inputs, heads, id: ChunkId::HOLE, given: Vec::new() };
        for input in 0..merged.inputs.len() {
            merged.advance(input)?;
        }
        Ok(merged)
    }

    fn advance(&mut self, number: usize) -> Result<()> {
        let input = &mut self.inputs[number];
        input.next = None;
        if let Some(item) = input.entries.next() {
            let (ordinal, entry) = item?;
            input.next = Some(entry);
            self.heads.push(Reverse((entry.id, number, ordinal)));
        }
        Ok(())
    }

    /// The next entry that stays.
    fn pull(&mut self) -> Result<Option<Entry>> {
        while let Some(Reverse((id, number, ordinal))) = self.heads.pop() {
            let input = &self.inputs[number];
            let lost = || Error::new(ErrorKind::Internal, "the merge of segments lost an entry");
            let entry = input.next.ok_or_else(lost)?;
            let pack = *input.packs.get(entry.pack as usize).ok_or_else(lost)?;
            self.advance(number)?;
            if id != self.id {
                self.id = id;
                self.given.clear();
            }
            let Some(&pack_number) = self.numbers.get(&pack) else { continue };
            let place = (pack_number, entry.offset);
            if self.marks.worth_keeping(number, ordinal, &entry, pack) && !self.given.contains(&place) {
                self.given.push(place);
                return Ok(Some(Entry { pack: pack_number, ..entry }));
            }
        }
        Ok(None)
    }
}

impl Iterator for Merged<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        self.pull().transpose()
    }
}
