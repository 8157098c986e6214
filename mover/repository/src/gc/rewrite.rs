//! Packs with little living data: what lives in them is copied to new packs, so that they can go.

use std::sync::Arc;

use mover_engine::Control;
use mover_model::event::Event;
use mover_model::{Error, ErrorKind, Result};

use super::mark::Marks;
use super::stopped;
use crate::codec;
use crate::format::entry::Entry;
use crate::format::pack::pack_key;
use crate::names::ObjectName;
use crate::read::Chunks;
use crate::repository::Repository;
use crate::write::Writer;

/// What was rewritten.
#[derive(Debug, Default)]
pub(super) struct Rewritten {
    /// Packs of which everything that lives is durable elsewhere, and in a segment.
    pub packs: Vec<ObjectName>,
    /// Bytes of records read.
    pub read_bytes: u64,
    /// Bytes of new packs and segments.
    pub written_bytes: u64,
}

/// Copies what lives in the packs. Records are copied as they are, decoded only to compare them with their names: damage
/// must not get a new place that nothing says is damaged. A pack with a damaged record stays.
pub(super) fn rewrite(
    repository: &Arc<Repository>,
    marks: &Marks,
    packs: &[ObjectName],
    control: &Control,
    emit: &(dyn Fn(Event) + Sync),
) -> Result<Rewritten> {
    let mut rewritten = Rewritten::default();
    if packs.is_empty() {
        return Ok(rewritten);
    }
    let chunks = marks.chunks();
    let writer = Writer::new(repository.clone(), chunks.index().clone())?;
    for &pack in packs {
        if control.stopped() {
            return Err(stopped());
        }
        match copy_living(repository, marks, chunks, pack, &writer, &mut rewritten.read_bytes) {
            Ok(()) => rewritten.packs.push(pack),
            Err(error) if error.kind() == ErrorKind::Corruption => emit(Event::Warning {
                message: format!("{error}: the pack is kept; `mover verify` tells what it touches"),
            }),
            Err(error) => return Err(error),
        }
    }
    rewritten.written_bytes = writer.finish()?.stored_bytes;
    Ok(rewritten)
}

fn copy_living(
    repository: &Repository,
    marks: &Marks,
    chunks: &Chunks,
    name: ObjectName,
    writer: &Writer,
    read_bytes: &mut u64,
) -> Result<()> {
    let label = repository.store().label_of(&pack_key(name));
    let index = chunks.pack_index(name)?;
    let pack = chunks.pack(name)?;
    let mut content = Vec::new();
    for entry in &index.entries {
        if !marks.is_marked_at(entry, name)? {
            continue;
        }
        let mut record = vec![0; entry.stored as usize];
        let whole = pack.object.read_at(entry.offset, &mut record).and_then(|()| {
            *read_bytes += u64::from(entry.stored);
            pack.key.open(entry, &mut record)?;
            check(repository, entry, &record, &mut content)
        });
        whole.map_err(|error| match error.kind() {
            ErrorKind::Corruption => {
                Error::new(ErrorKind::Corruption, error.message()).at(&label).offset(entry.offset)
            }
            _ => error,
        })?;
        writer.copy(entry, &record)?;
    }
    Ok(())
}

fn check(repository: &Repository, entry: &Entry, record: &[u8], content: &mut Vec<u8>) -> Result<()> {
    let most = repository.config().chunk_size.max(crate::format::node::NODE_BYTES_MAX as u32);
    if entry.plain > most {
        return Err(Error::new(
            ErrorKind::Corruption,
            format!("chunk {} claims {} bytes", entry.id, entry.plain),
        ));
    }
    content.clear();
    content.resize(entry.plain as usize, 0);
    codec::decompress(entry.encoding, record, content)?;
    codec::check(repository.keys(), entry, content, &entry.id)
}
