//! Mutated arguments. tools/fuzz has the same check under libFuzzer.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

#[path = "support/arguments_check.rs"]
mod arguments_check;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// What mutation starts from.
const INPUTS: [&[u8]; 14] = [
    b"vda=disk.raw",
    b"vda=disk,,1.raw,common",
    b"vda=/dev/vg/lv,common=windows-11",
    b"vda=null:1T",
    b"vda=-",
    b"vm@latest",
    b"vm@2026-11-20T03:00:00Z",
    b"vm@2026-11-20T04:00:00+01:00",
    b"vm@20261120T193000Z-0011aabb",
    b"owner=finance",
    b"vm.xml=/etc/libvirt/qemu/vm.xml",
    b"2026-11-20",
    b"xxh128:00112233445566778899aabbccddeeff",
    b"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
];
const PIECES: [&[u8]; 14] = [
    b"=", b",", b",,", b"@", b":", b"-", b"..", b"/", b"\0", b"\xff", b"\x1b[2J", b"common=", b"null:",
    b"9999999",
];

fn step(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn mutated_arguments_neither_panic_nor_break_promises() {
    let given = std::env::var("MOVER_SEED").ok();
    let seed = given.map_or(0xa59, |seed| seed.parse().expect("MOVER_SEED is a number"));
    println!("MOVER_SEED={seed}");
    let mut state = seed;
    let mut below = |end: usize| (step(&mut state) % end.max(1) as u64) as usize;
    let (mut found, rounds) = (0, 40_000);
    for round in 0..rounds {
        let mut input = INPUTS[below(INPUTS.len())].to_vec();
        for _ in 0..below(4) {
            let at = below(input.len() + 1);
            match below(4) {
                0 => input.truncate(at),
                1 if at < input.len() => input[at] ^= 1 << below(8),
                2 if at < input.len() => drop(input.remove(at)),
                _ => drop(input.splice(at..at, PIECES[below(PIECES.len())].iter().copied())),
            }
        }
        match catch_unwind(AssertUnwindSafe(|| arguments_check::check(&input))) {
            Ok(something) => found += usize::from(something),
            Err(panic) => {
                println!("round {round}: {}", input.escape_ascii());
                resume_unwind(panic);
            }
        }
    }
    assert!(found > rounds / 10 && found < rounds, "{found} of {rounds} were something");
}
