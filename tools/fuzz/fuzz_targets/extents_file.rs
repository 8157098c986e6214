//! Any bytes as a list of extents: no panic, no unbounded memory, and no list that breaks a list's promises.
#![no_main]

#[path = "../../../mover/model/tests/support/extents_check.rs"]
mod extents_check;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // Small enough that ends are often past it; a disk whose size is no multiple of a sector.
    extents_check::check(input, (1 << 20) - 3);
});
