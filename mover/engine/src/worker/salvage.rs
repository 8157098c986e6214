//! A request that could not be read as a whole is read in small pieces, so that no more is lost than what is
//! unreadable (`--on-read-error record`).

use std::sync::atomic::Ordering;

use mover_model::{Error, ErrorKind, Operation, limits};

use super::Worker;
use crate::lane::Fault;
use crate::slot::{DataSegment, Phase, Slot};
use crate::stats::Counters;

impl Worker<'_, '_> {
    pub(super) fn salvage(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        slot.salvaged.clear();
        slot.phase = Phase::Salvaging { segment: 0, position: slot.segments[0].start };
        self.begin_salvage_read(index);
    }

    fn begin_salvage_read(&mut self, index: u16) {
        let slot = &self.slots[usize::from(index)];
        let Phase::Salvaging { segment, position } = slot.phase else { unreachable!("not salvaging") };
        self.begin_read(index, position, salvage_length(slot, segment, position));
    }

    pub(super) fn on_salvaged(
        &mut self,
        index: u16,
        segment: usize,
        position: u32,
        result: std::result::Result<u64, Fault>,
    ) {
        let slot = &mut self.slots[usize::from(index)];
        let task = &self.shared.tasks[slot.task];
        if task.failed() {
            return self.forgo(index);
        }
        let length = salvage_length(slot, segment, position);
        match result {
            Ok(done) if done == u64::from(length) => match slot.salvaged.last_mut() {
                Some(last) if last.start + last.length == position => last.length += length,
                _ => slot.salvaged.push(DataSegment { start: position, length, digest: None }),
            },
            Ok(done) => {
                let error = Error::new(ErrorKind::SourceShrank, "the source ended while it was read");
                let offset = slot.start + u64::from(position) + done;
                task.fail(error.during(Operation::Read).at(task.source.label()).offset(offset));
                return self.forgo(index);
            }
            Err(fault) if is_medium_error(fault.errno) => {
                let start = slot.start + u64::from(position);
                self.recorders[slot.task].bad(start, u64::from(length), fault.errno);
                let count = task.bad_extents.fetch_add(1, Ordering::Relaxed);
                if count as usize >= limits::BAD_EXTENTS_MAX {
                    let error =
                        Error::os(Operation::Read, task.source.label(), fault.errno).offset(fault.offset);
                    task.fail(error.hint("too many unreadable extents: the source is gone, not scratched"));
                    return self.forgo(index);
                }
            }
            Err(fault) => {
                task.fail(Error::os(Operation::Read, task.source.label(), fault.errno).offset(fault.offset));
                return self.forgo(index);
            }
        }
        let next = position + length;
        let current = slot.segments[segment];
        slot.phase = if next < current.start + current.length {
            Phase::Salvaging { segment, position: next }
        } else if let Some(following) = slot.segments.get(segment + 1) {
            Phase::Salvaging { segment: segment + 1, position: following.start }
        } else {
            std::mem::swap(&mut slot.segments, &mut slot.salvaged);
            if slot.segments.is_empty() {
                return self.release(index);
            }
            let bytes = slot.segments.iter().map(|s| u64::from(s.length)).sum();
            Counters::add(&task.counters.read_bytes, bytes);
            Counters::add(&task.counters.reads, 1);
            return self.transform_and_write(index);
        };
        self.begin_salvage_read(index);
    }
}

/// Errors that say something about a part of the medium and nothing about the rest.
pub(super) fn is_medium_error(errno: i32) -> bool {
    matches!(errno, libc::EIO | libc::EREMOTEIO | libc::ENODATA | libc::EILSEQ | libc::EBADMSG | libc::ENXIO)
}

fn salvage_length(slot: &Slot, segment: usize, position: u32) -> u32 {
    let current = slot.segments[segment];
    let to_grid = limits::SALVAGE_BYTES - (slot.start + u64::from(position)) as u32 % limits::SALVAGE_BYTES;
    to_grid.min(current.start + current.length - position)
}
