//! Chunks that no place of the repository has as they were written: put on record, told, and the disk's error.

use mover_model::event::Event;
use mover_model::{Error, ErrorKind, Operation};
use mover_repository::Repository;
use mover_repository::notes::{self, DamagedChunk};
use mover_repository::read::BadChunk;

use super::execute::Run;
use super::open::{Asked, OpenDisk};

/// Ranges that are told one by one; `verify` lists them all.
const TOLD_MAX: usize = 20;

/// Makes what was passed over the error of its disk. Called after the target has its size.
pub(super) fn settle(run: &Run<'_>, asked: &Asked<'_>, open: &OpenDisk, label: &str) {
    let mut bad = std::mem::take(&mut *open.bad.lock().unwrap_or_else(|p| p.into_inner()));
    // The last chunk of a disk may have been read in two passes.
    bad.sort_by_key(|bad| bad.number);
    bad.dedup_by_key(|bad| bad.number);
    let Some(first) = bad.first() else { return };
    let chunk = u64::from(open.root.chunk_size);
    for bad in bad.iter().take(TOLD_MAX) {
        let start = bad.number * chunk;
        let end = (start + chunk).min(open.root.size);
        let message =
            format!("{label}: bytes {start} to {end} are lost, and zeros on the target: {}", bad.error);
        (run.emit)(Event::Warning { message });
    }
    if let Err(error) = note(run.nodes.chunks().repository(), &bad) {
        let message = format!("what is damaged could not be put on record; run `mover verify`: {error}");
        (run.emit)(Event::Warning { message });
    }
    let others = match bad.len() - 1 {
        0 => "it is".to_owned(),
        others => format!("it and {others} more are"),
    };
    let message = format!("{}; {others} zeros on the target, all others are restored", first.error.message());
    asked.fail(
        Error::new(first.error.kind(), message)
            .during(Operation::Read)
            .at(label)
            .offset(first.number * chunk)
            .hint("run `mover verify`: it tells which backups the damage touches"),
    );
}

/// Later backups count these places as absent, and store the chunks again.
fn note(repository: &Repository, bad: &[BadChunk]) -> mover_model::Result<()> {
    let known = notes::damaged(repository)?;
    let places = bad.iter().filter(|bad| bad.error.kind() == ErrorKind::Corruption).filter_map(|bad| {
        let reason = bad.error.message().to_owned();
        Some(DamagedChunk { id: bad.id, pack: bad.location?.pack.to_string(), reason })
    });
    let new: Vec<_> = places
        .filter(|place| !known.iter().any(|known| known.id == place.id && known.pack == place.pack))
        .collect();
    if new.is_empty() { Ok(()) } else { notes::put_damaged(repository, &new) }
}
