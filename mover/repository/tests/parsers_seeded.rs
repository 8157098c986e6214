//! The checks of the fuzz targets on seeded input: a short round of what tools/fuzz does for longer.
//! `MOVER_TEST_ROUNDS` multiplies the number of inputs, `MOVER_SEED` repeats a run.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

mod format_support;
mod parsers;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use mover_engine::pattern::SplitMix;

/// Inputs of a check, where nothing is said.
const INPUTS: u64 = 3000;

fn rounds() -> u64 {
    let given = std::env::var("MOVER_TEST_ROUNDS").ok();
    given.map_or(1, |rounds| rounds.parse().expect("MOVER_TEST_ROUNDS is a number"))
}

fn run(name: &str) {
    let (_, check) = parsers::ALL.into_iter().find(|(found, _)| *found == name).unwrap();
    let given = std::env::var("MOVER_SEED").ok();
    let seed = given.map_or(0x70a5_0001, |seed| seed.parse().expect("MOVER_SEED is a number"));
    println!("MOVER_SEED={seed}");
    let mut random = SplitMix::new(seed);
    let inputs = INPUTS * rounds();
    let mut accepted = 0;
    for number in 0..inputs {
        let mut input = vec![0; random.below(600) as usize];
        random.fill(&mut input);
        match catch_unwind(AssertUnwindSafe(|| check(&input))) {
            Ok(found) => accepted += u64::from(found),
            Err(panic) => {
                println!("{name}, input {number}: {input:02x?}");
                resume_unwind(panic);
            }
        }
    }
    println!("{accepted} of {inputs} were accepted");
    // Both ways are gone, or the check would show nothing. Random text is hardly ever a key.
    assert!(accepted > inputs / 50 || name == "texts", "{accepted} of {inputs} were accepted");
    assert!(accepted < inputs, "nothing was refused");
}

#[test]
fn envelopes() {
    run("envelope");
}

#[test]
fn json_bodies() {
    run("documents");
}

#[test]
fn packs() {
    run("pack");
}

#[test]
fn segments() {
    run("segment");
}

#[test]
fn nodes() {
    run("node");
}

#[test]
fn roots() {
    run("root");
}

#[test]
fn records() {
    run("codec");
}

#[test]
fn keys_and_entries() {
    run("texts");
}
