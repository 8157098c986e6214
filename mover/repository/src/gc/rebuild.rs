//! Index segments that are damaged or gone, made again from the packs' own indexes.
//!
//! Safe at every cut and beside all others: only entries of durable packs are named, as their writers would; a pack of a
//! backup that runs may be named twice then, and what is dead goes by the mark that follows. The damaged segments are
//! superseded by the last segment that is put, when everything they may have named is named again.

use std::collections::HashSet;

use mover_model::{Error, ErrorKind, Result};

use super::Gc;
use super::mark::Marks;
use crate::format::entry::Entry;
use crate::format::pack::PackIndex;
use crate::format::segment::{segment_key, write_segment};
use crate::names::ObjectName;

/// Entries of a segment: about 40 MiB of memory.
const ENTRIES: usize = 512 << 10;

/// What was made again.
#[derive(Default)]
pub(super) struct Rebuilt {
    /// Packs that are named again.
    pub packs: u64,
    /// A pack that does not tell what it has.
    pub unreadable: Option<(ObjectName, Error)>,
}

/// Names all packs that no sound segment names. Without damaged segments only where one of these packs has something
/// that is missing: packs in no segment are what backups that were cut have left. A dry run only looks.
pub(super) fn rebuild(gc: &Gc<'_>, marks: &Marks) -> Result<Rebuilt> {
    let named: HashSet<ObjectName> = marks
        .segments()
        .filter(|segment| !marks.bad_segments.contains_key(&segment.name()))
        .flat_map(|segment| segment.packs().iter().copied())
        .collect();
    let there = marks.packs.iter().filter(|pack| pack.size.is_some());
    let mut packs: Vec<ObjectName> =
        there.map(|pack| pack.name).filter(|name| !named.contains(name)).collect();
    packs.sort_unstable();

    let mut rebuilt = Rebuilt::default();
    let mut has_missing = false;
    let mut readable = Vec::with_capacity(packs.len());
    for name in packs {
        if gc.control.stopped() {
            return Err(super::stopped());
        }
        match marks.chunks().pack_index(name) {
            Ok(index) => {
                let is_missing = |entry: &Entry| {
                    marks.missing.contains(&entry.id) || marks.missing_nodes.contains(&entry.id)
                };
                has_missing |= index.entries.iter().any(is_missing);
                readable.push(name);
            }
            // Deleted since it was listed, by whoever else deletes here, or damaged.
            Err(error) if error.kind() == ErrorKind::Corruption => {
                gc.warn(format!("{error}: the pack is left out of the index that is made again"));
                rebuilt.unreadable.get_or_insert((name, error));
            }
            Err(error) => return Err(error),
        }
    }
    if marks.bad_segments.is_empty() && !has_missing {
        return Ok(rebuilt);
    }
    if gc.options.dry_run {
        return Err(Error::new(
            ErrorKind::Corruption,
            "chunks that restore points need are in packs that no index segment names: what is dead is not known",
        )
        .at(format!("{}/index", gc.repository.store().label()))
        .hint("`mover gc` without --dry-run makes the index again from the packs"));
    }
    put(gc, marks, &readable)?;
    rebuilt.packs = readable.len() as u64;
    tell(gc, marks, readable.len());
    Ok(rebuilt)
}

/// Puts the segments. The last one is put also where it has no entries: it supersedes.
fn put(gc: &Gc<'_>, marks: &Marks, packs: &[ObjectName]) -> Result<()> {
    let mut superseded: Vec<ObjectName> = marks.bad_segments.keys().copied().collect();
    // What these stood for must not count again once they are gone.
    let bad = marks.segments().filter(|segment| marks.bad_segments.contains_key(&segment.name()));
    superseded.extend(bad.flat_map(|segment| segment.superseded().iter().copied()));
    superseded.sort_unstable();
    superseded.dedup();
    let mut batch = Batch::default();
    for &name in packs {
        let index = marks.chunks().pack_index(name)?;
        if batch.entries.len() + index.entries.len() > ENTRIES {
            gc.go_on()?;
            std::mem::take(&mut batch).put(gc, &[])?;
        }
        batch.add(name, &index);
    }
    gc.go_on()?;
    if batch.entries.is_empty() && superseded.is_empty() { Ok(()) } else { batch.put(gc, &superseded) }
}

fn tell(gc: &Gc<'_>, marks: &Marks, packs: usize) {
    let label = |name: &ObjectName| gc.repository.store().label_of(&segment_key(*name));
    for (name, error) in &marks.bad_segments {
        let message = error.message();
        gc.warn(format!(
            "{}: {message}: the index was made again from the own indexes of {packs} packs that no other segment names",
            label(name)
        ));
    }
    if marks.bad_segments.is_empty() {
        gc.warn(format!(
            "an index segment is gone: {packs} packs were in none, and restore points need some of them; the index was made \
             again from the packs' own indexes"
        ));
    }
}

/// Entries of one segment.
#[derive(Default)]
struct Batch {
    packs: Vec<ObjectName>,
    entries: Vec<Entry>,
}

impl Batch {
    fn add(&mut self, name: ObjectName, index: &PackIndex) {
        let pack = self.packs.len() as u32;
        self.packs.push(name);
        self.entries.extend(index.entries.iter().map(|&entry| Entry { pack, ..entry }));
    }

    fn put(mut self, gc: &Gc<'_>, superseded: &[ObjectName]) -> Result<()> {
        self.entries.sort_unstable_by_key(|entry| (entry.id, entry.pack, entry.offset));
        let repository = gc.repository;
        let (store, keys, id) = (repository.store(), repository.keys(), repository.id());
        let mut entries = self.entries.into_iter().map(Ok);
        let name = ObjectName::random()?;
        write_segment(store, keys, id, name, &self.packs, superseded, &mut entries)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_segment_of_a_rebuild_holds_the_entries_of_any_pack() {
        const { assert!(super::ENTRIES >= crate::format::pack::PACK_ENTRIES_MAX) };
    }
}
