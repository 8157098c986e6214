//! Mutated heads of qcow2 images. tools/fuzz has the same check under libFuzzer.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

#[path = "support/qcow2_check.rs"]
mod qcow2_check;

use mover_engine::pattern::SplitMix;

#[test]
fn no_bytes_make_it_panic() {
    let given = std::env::var("MOVER_SEED").ok();
    let seed = given.map_or(0x5eed, |seed| seed.parse().expect("MOVER_SEED is a number"));
    println!("MOVER_SEED={seed}");
    let mut random = SplitMix::new(seed);
    let good = qcow2_check::image(b"/some/where/base.img", b"qcow2");
    let (mut sound, rounds) = (0, 50_000);
    for _ in 0..rounds {
        let mut bytes = good.clone();
        for _ in 0..random.below(6) {
            let at = random.below(280) as usize;
            bytes[at] = random.below(256) as u8;
        }
        bytes.truncate(bytes.len() - random.below(4) as usize * 120);
        sound += usize::from(qcow2_check::check(&bytes));
    }
    assert!(sound > 1000 && sound < rounds, "{sound} of the images were sound");
}
