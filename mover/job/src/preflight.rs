//! What `--strict` asks before the first byte is written: whether the memory of all workers can be had as wanted.

use mover_engine::Control;
use mover_engine::arena::Arena;
use mover_engine::ring::Ring;
use mover_engine::settings::HugePages;
use mover_engine::{Backend, Settings};
use mover_model::{Error, ErrorKind, Result};

use crate::resolve::Scratch;

/// Sets up what all workers will, at the same time, and gives it back. What cannot be had is told to `control` as it
/// would be in the run.
///
/// # Errors
/// `Downgrade` where required huge pages are not to be had; those of a ring that cannot be set up.
pub fn preflight(settings: &Settings, scratch: Scratch, control: &Control) -> Result<()> {
    let mut held = Vec::new();
    let bytes = settings.worker_bytes() + scratch.bytes(settings.worker_bytes());
    for _ in 0..settings.workers {
        let mut ring = Ring::new(settings, control)?;
        let arena = Arena::new(bytes as usize, settings.huge_pages)?;
        if settings.huge_pages == HugePages::Pool && !arena.is_huge() {
            return Err(Error::new(
                ErrorKind::Downgrade,
                "huge pages are required and the pool has too few free",
            )
            .hint("raise vm.nr_hugepages"));
        }
        if settings.register && settings.backend == Backend::Uring {
            ring.register_buffers(&arena, control);
        }
        // In this order: a ring is dropped before the arena whose buffers it knows.
        held.push((ring, arena));
    }
    Ok(())
}
