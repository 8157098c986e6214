//! Listing many machines with many restore points. `MOVER_LARGE=1` makes it 10,000 machines with 100 points each, a
//! million small files in the place that `MOVER_TEST_DIR` or `TMPDIR` names.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

mod catalog_support;

use std::time::{Duration, Instant};

use catalog_support::{Bench, point, wait_for_stamps};

#[test]
fn a_long_list_comes_within_a_second() {
    let large = std::env::var_os("MOVER_LARGE").is_some();
    let (machines, points) = if large { (10_000, 100) } else { (200, 20) };
    let bench = Bench::new();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let bench = &bench;
            scope.spawn(move || {
                for vm in (thread..machines).step_by(4) {
                    let vm = format!("vm{vm:05}");
                    (1..=points).for_each(|sequence| bench.commit(&point(&bench.repository, &vm, sequence)));
                }
            });
        }
    });
    println!("{machines} machines x {points} points made in {:.1} s", begin.elapsed().as_secs_f64());
    (0..4).for_each(|last| wait_for_stamps(&bench, &format!("vm{:05}", machines - 1 - last)));

    let begin = Instant::now();
    drop(bench.open_well());
    println!("first look: {:.2} s", begin.elapsed().as_secs_f64());

    let begin = Instant::now();
    let opened = bench.open_well();
    let list = opened.catalog.machines(bench.id()).unwrap();
    let took = begin.elapsed();
    println!("list: {:.3} s", took.as_secs_f64());
    assert_eq!(list.len(), machines);
    assert!(list.iter().all(|machine| machine.points == points));
    assert!(took < Duration::from_secs(1), "{took:?}");
}
