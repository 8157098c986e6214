//! `mover copy` when source or target goes wrong: what is said, what is kept, and that it ends.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mover_tests::compare::assert_same;
use mover_tests::fault::{Fault, FaultId, Faults, Op};
use mover_tests::faulty::{FaultyDevice, FaultyFile};
use mover_tests::layout::{Content, Layout, Shape, data};
use mover_tests::outcome::Outcome;
use mover_tests::process::{Run, Running};
use mover_tests::rng::{Rng, seed};
use mover_tests::scratch::ScratchDir;
use mover_tests::skip::require_root;
use mover_tests::volume::{Filesystem, Kind, LoopOptions};
use mover_tests::{Skip, need};
use serde_json::Value;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
/// What an unreadable byte costs at most: the rest of its page.
const SALVAGE: u64 = 4 * KIB;
/// Seed of what lies on a target before the copy.
const PATTERN: u64 = 0x0dd5_eed5;
const BACKENDS: [&str; 2] = ["io_uring", "sync"];

fn copy(source: impl AsRef<Path>, target: impl AsRef<Path>, flags: &str) -> Run {
    let run = Run::mover(["copy"]).argument(source.as_ref()).argument(target.as_ref());
    run.argument("--json").arguments(flags.split_whitespace())
}

fn pattern(path: &Path, size: u64) {
    Layout::of(PATTERN, &[(size, Content::Data)]).write(path).unwrap();
}

/// A disk that fails by script: a file, or a loop device over one.
enum Faulty {
    File(FaultyFile),
    Device(FaultyDevice),
}

impl Faulty {
    /// A file (0) or a device of this sector size, with this content.
    fn new(sector: u32, layout: &Layout) -> Result<Faulty, Skip> {
        let file = FaultyFile::memory(layout.size())?;
        layout.write_to(file.backing(), sector > 0).unwrap();
        Ok(match sector {
            0 => Faulty::File(file),
            sector => Faulty::Device(file.into_device(LoopOptions::default().sector_size(sector))?),
        })
    }

    fn path(&self) -> PathBuf {
        match self {
            Faulty::File(file) => file.path(),
            Faulty::Device(device) => device.path().to_owned(),
        }
    }

    fn faults(&self) -> &Faults {
        match self {
            Faulty::File(file) => file.faults(),
            Faulty::Device(device) => device.faults(),
        }
    }

    fn backing(&self) -> &File {
        match self {
            Faulty::File(file) => file.backing(),
            Faulty::Device(device) => device.file().backing(),
        }
    }
}

/// All kinds of faulty disks that this machine lets us make.
fn kinds() -> &'static [u32] {
    if require_root().is_ok() { &[0, 512, 4096] } else { &[0] }
}

#[track_caller]
fn assert_error(outcome: &Outcome, code: i32, kind: &str, operation: &str, path: &Path) -> Value {
    outcome.assert_code(code);
    let error = outcome.result()["error"].clone();
    assert_eq!(error["kind"], kind, "{outcome}");
    if !operation.is_empty() {
        assert_eq!(error["operation"], operation, "{outcome}");
    }
    assert_eq!(error["path"], path.to_str().unwrap(), "{outcome}");
    assert_eq!(outcome.result()["status"], "failed", "{outcome}");
    error
}

#[test]
fn an_unreadable_byte_ends_the_run_and_is_named() {
    let scratch = ScratchDir::new();
    let layout = Layout::of(1, &[(6 * MIB, Content::Data)]);
    let bad = 3 * MIB + 5 * KIB;
    for &kind in kinds() {
        let source = need!(Faulty::new(kind, &layout));
        source.faults().add(Fault::errno(libc::EIO).on_reads().range(bad..bad + 1));
        for backend in BACKENDS {
            for flags in ["", "--workers 1", "--direct off --block-size 64K"] {
                if kind > 0 && flags.contains("off") {
                    // The page cache of a device reads ahead in large folios: what fails is not where it is bad.
                    continue;
                }
                let target = scratch.file("target");
                let _ = fs::remove_file(&target);
                let outcome = copy(source.path(), &target, &format!("--backend {backend} {flags}")).run();
                let error = assert_error(&outcome, 1, "io", "read", &source.path());
                assert_eq!(error["errno"], libc::EIO, "{outcome}");
                let offset = error["offset"].as_u64().unwrap();
                assert!(offset <= bad && bad < offset + MIB, "{outcome}");
                outcome.assert_stderr(&["error:", source.path().to_str().unwrap(), &offset.to_string()]);
                assert_eq!(outcome.result()["pairs"][0]["status"], "failed", "{outcome}");
            }
        }
    }
}

/// Bad ranges, rounded out to the page; overlapping and touching ones joined.
fn expected_bad(ranges: &[(u64, u64)], size: u64) -> Vec<(u64, u64)> {
    let mut pages: Vec<_> = ranges
        .iter()
        .map(|&(start, end)| (start / SALVAGE * SALVAGE, end.next_multiple_of(SALVAGE).min(size)))
        .collect();
    pages.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (start, end) in pages {
        match joined.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    joined
}

#[test]
fn recorded_bad_extents_are_exact_and_the_rest_moves() {
    let mut rng = Rng::new(seed("recorded_bad_extents_are_exact_and_the_rest_moves"));
    let scratch = ScratchDir::new();
    for &kind in kinds() {
        // A size with a rim where a file may have one.
        let size = 4 * MIB + if kind == 0 { rng.range(1..5000) } else { 0 };
        let layout = Layout::of(rng.bits() >> 32, &[(size, Content::Data)]);
        let source = need!(Faulty::new(kind, &layout));
        let mut ranges: Vec<_> = (0..6)
            .map(|_| {
                // Not in the last page, whose rims may be finer than a page.
                let start = rng.range(0..size - 32_000);
                (start, start + rng.magnitude(1..20_000))
            })
            .collect();
        if rng.chance(50) {
            ranges.push(((size - 1) / SALVAGE * SALVAGE, size));
            ranges.push((0, 1));
        }
        for &(start, end) in &ranges {
            source.faults().add(Fault::errno(libc::EIO).on_reads().range(start..end));
        }
        let bad = expected_bad(&ranges, size);
        for backend in BACKENDS {
            for flags in ["", "--direct off", "--block-size 64K --workers 4 --sparse always"] {
                if kind > 0 && flags == "--direct off" {
                    // The page cache of a device reads ahead in larger folios and loses each as a whole.
                    continue;
                }
                let target = scratch.file("target");
                let _ = fs::remove_file(&target);
                let old = *rng.pick(&[0, size, size + 70_000, size / 2]);
                if old > 0 {
                    pattern(&target, old);
                }
                let digests = scratch.file("digests");
                let flags = format!("--on-read-error record --force --verify --backend {backend} {flags}");
                let outcome =
                    copy(source.path(), &target, &flags).argument("--digest-out").argument(&digests).run();
                outcome.assert_code(3);
                let result = outcome.result();
                let list = result["bad_extents"].as_array().unwrap();
                let number = |entry: &Value, name: &str| entry[name].as_u64().unwrap();
                let listed: Vec<_> = list
                    .iter()
                    .map(|entry| (number(entry, "start"), number(entry, "start") + number(entry, "length")))
                    .collect();
                assert_eq!(listed, bad, "{ranges:?}\n{outcome}");
                assert!(list.iter().all(|entry| entry["errno"] == libc::EIO), "{outcome}");
                assert!(list.iter().all(|entry| entry["path"] == source.path().to_str().unwrap()));
                assert_eq!(result["status"], "done_with_bad_extents", "{outcome}");
                assert_eq!(result["pairs"][0]["status"], "done_with_bad_extents", "{outcome}");
                assert_eq!(result["bad_extents_count"], bad.len(), "{outcome}");
                assert_eq!(outcome.events("bad_extent").len(), bad.len(), "{outcome}");

                // All else has moved; there the target is as it was: its own bytes, or zeros where it had none.
                let mut expected = vec![0; size as usize];
                layout.fill(0, &mut expected);
                for &(start, end) in &bad {
                    let part = &mut expected[start as usize..end as usize];
                    part.fill(0);
                    let kept = old.min(end).saturating_sub(start) as usize;
                    data(PATTERN, start, &mut part[..kept]);
                }
                let found = fs::read(&target).unwrap();
                assert_eq!(found.len(), expected.len(), "{outcome}");
                let differs = found.iter().zip(&expected).position(|(found, right)| found != right);
                assert_eq!(differs, None, "old size {old}, bad {bad:?}\n{outcome}");
                let named: u64 = fs::read_to_string(&digests)
                    .unwrap()
                    .lines()
                    .skip(1)
                    .map(|line| serde_json::from_str::<Value>(line).unwrap()["length"].as_u64().unwrap())
                    .sum();
                assert_eq!(named, size - bad.iter().map(|(start, end)| end - start).sum::<u64>());
            }
        }
    }
}

#[test]
fn an_unreadable_gap_between_extents_harms_nobody() {
    let scratch = ScratchDir::new();
    let layout = Layout::regular(5, 2 * MIB, 16 * KIB, 4 * KIB);
    let source = need!(Faulty::new(0, &layout));
    source.faults().add(Fault::errno(libc::EIO).on_reads().range(68 * KIB..80 * KIB));
    for backend in BACKENDS {
        let target = scratch.file(backend);
        let flags = format!("--on-read-error record --backend {backend}");
        copy(source.path(), &target, &flags).run().assert_code(0);
        layout.assert_on(&target);
    }
}

#[test]
fn a_failed_write_ends_the_run_and_is_named() {
    let scratch = ScratchDir::new();
    let layout = Layout::of(2, &[(4 * MIB, Content::Data), (2 * MIB, Content::Zero)]);
    layout.write(&scratch.file("source")).unwrap();
    for &kind in kinds() {
        for backend in BACKENDS {
            for direct in ["auto", "off"] {
                let target = need!(Faulty::new(kind, &layout));
                let id =
                    target.faults().add(Fault::errno(libc::EIO).on(&[Op::Write]).range(2 * MIB..2 * MIB + 1));
                let flags = format!("--force --backend {backend} --direct {direct}");
                let outcome = copy(scratch.file("source"), target.path(), &flags).run();
                // Behind the page cache of a device only the flush tells.
                let cached = kind > 0 && direct == "off";
                let error =
                    assert_error(&outcome, 1, "io", if cached { "" } else { "write" }, &target.path());
                assert_eq!(error["errno"], libc::EIO, "{outcome}");
                assert!(cached || error["offset"] == 2 * MIB, "{outcome}");
                assert_ne!(outcome.result()["pairs"][0]["status"], "done", "{outcome}");
                assert!(target.faults().remove(id) > 0);

                // Zeros on the target fail too: by whatever call they are made.
                let zeros = target.faults().add(Fault::errno(libc::EIO).on_writes().range(5 * MIB..6 * MIB));
                let outcome = copy(scratch.file("source"), target.path(), &flags).run();
                assert_error(&outcome, 1, "io", "", &target.path());
                assert!(target.faults().remove(zeros) > 0);
            }
        }
    }
}

#[test]
fn a_failed_flush_ends_the_run() {
    let scratch = ScratchDir::new();
    let layout = Layout::of(2, &[(2 * MIB, Content::Data)]);
    layout.write(&scratch.file("source")).unwrap();
    for &kind in kinds() {
        for flags in ["", "--backend sync", "--direct off", "--verify"] {
            let target = need!(Faulty::new(kind, &layout));
            target.faults().add(Fault::errno(libc::EIO).on(&[Op::Sync]));
            let outcome = copy(scratch.file("source"), target.path(), &format!("--force {flags}")).run();
            assert_error(&outcome, 1, "io", "flush", &target.path());
            assert_eq!(outcome.result()["pairs"][0]["flushed"], false, "{outcome}");
        }
    }
}

#[test]
fn a_target_that_fills_up_is_exit_10() {
    let scratch = ScratchDir::new();
    let layout = Layout::of(3, &[(24 * MIB, Content::Data)]);
    layout.write(&scratch.file("source")).unwrap();
    for kind in Kind::ALL {
        let folder = need!(Filesystem::new(kind).small().mount());
        folder.leave_free(4 * MIB);
        for (index, flags) in ["", "--backend sync --direct off", "--workers 4"].iter().enumerate() {
            let target = folder.file(&format!("target{index}"));
            let outcome = copy(scratch.file("source"), &target, flags).run();
            // Behind the page cache the flush may be the one that is told.
            let error = assert_error(&outcome, 10, "full", "", &target);
            assert!(error["errno"] == libc::ENOSPC, "{kind:?} {outcome}");
            fs::remove_file(&target).unwrap();
        }
        let bytes = fs::read(scratch.file("source")).unwrap();
        let target = folder.file("stream");
        assert_error(&copy("-", &target, "").stdin(bytes).run(), 10, "full", "", &target);
    }
}

#[test]
fn a_device_too_small_for_stdin_is_exit_10() {
    for sector in [512, 4096] {
        let device = need!(LoopOptions::default().sector_size(sector).sparse(2 * MIB));
        for byte in [0, 7] {
            for flags in ["--backend io_uring", "--backend sync", "--direct off", "--sparse never"] {
                let run = copy("-", device.path(), &format!("--force {flags}"));
                let outcome = run.stdin(vec![byte; 3 * MIB as usize + 5]).run();
                assert_error(&outcome, 10, "full", "", device.path());
            }
        }
        let exact = vec![7; 2 * MIB as usize];
        copy("-", device.path(), "--force --verify").stdin(exact).run().assert_code(0);
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(20), "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a fault has been met more often than this by a program that still runs.
fn wait_for_hits(mut running: Running, faults: &Faults, id: FaultId, count: u64) -> Running {
    let begin = Instant::now();
    while faults.hits(id) <= count {
        let late = begin.elapsed() > Duration::from_secs(20);
        if running.ended_within(Duration::from_millis(5)) || late {
            running.signal(libc::SIGKILL);
            faults.clear();
            panic!("the fault was not met\n{}", running.wait());
        }
    }
    running
}

#[test]
fn a_source_that_shrinks_while_it_is_read_is_told() {
    let folders = [ScratchDir::new(), ScratchDir::in_memory()];
    for (folder, backend) in folders.iter().zip(BACKENDS) {
        for (name, layout) in [
            ("whole", Layout::of(4, &[(24 * MIB, Content::Data)])),
            ("comb", Layout::regular(4, 48 * MIB, 16 * KIB, 8 * KIB)),
            (
                "tail",
                Layout::of(4, &[(20 * MIB, Content::Data), (MIB, Content::Hole), (3 * MIB, Content::Data)]),
            ),
        ] {
            let (source, target) = (folder.file("source"), folder.file("target"));
            let _ = fs::remove_file(&target);
            layout.write(&source).unwrap();
            let flags = format!("--rate 32M --workers 1 --backend {backend}");
            let running = copy(&source, &target, &flags).start();
            wait_until("the target", || fs::metadata(&target).is_ok_and(|data| data.len() == layout.size()));
            std::thread::sleep(Duration::from_millis(50));
            // Far ahead of what was read and planned so far.
            let left = layout.size() * 5 / 6;
            OpenOptions::new().write(true).open(&source).unwrap().set_len(left).unwrap();
            let outcome = running.wait();
            let error = assert_error(&outcome, 1, "source_shrank", "", &source);
            let offset = error["offset"].as_u64().unwrap();
            assert!((left..layout.size()).contains(&offset), "{name}, cut at {left}: {outcome}");
        }
    }
}

#[test]
fn a_fuse_source_that_shrinks_is_told() {
    let scratch = ScratchDir::new();
    let layout = Layout::of(4, &[(8 * MIB, Content::Data)]);
    for direct in ["auto", "off"] {
        let source = need!(Faulty::new(0, &layout));
        let slow = source.faults().add(Fault::delay(Duration::from_secs(60)).on_reads().range(MIB..8 * MIB));
        let target = scratch.file("target");
        let running = copy(source.path(), &target, &format!("--force --direct {direct}")).start();
        let running = wait_for_hits(running, source.faults(), slow, 0);
        source.backing().set_len(5 * MIB).unwrap();
        source.faults().remove(slow);
        assert_error(&running.wait(), 1, "source_shrank", "", &source.path());
    }
}

#[test]
fn verify_finds_what_the_target_lost_or_changed() {
    let mut rng = Rng::new(seed("verify_finds_what_the_target_lost_or_changed"));
    let scratch = ScratchDir::new();
    let size = 6 * MIB;
    let layout = Layout::of(rng.bits() >> 32, &[(5 * MIB, Content::Data), (MIB, Content::Hole)]);
    layout.write(&scratch.file("source")).unwrap();
    for &kind in kinds() {
        for (backend, direct) in [("io_uring", "auto"), ("sync", "auto"), ("io_uring", "off")] {
            let at = rng.range(0..5 * MIB);
            let zero = rng.range(5 * MIB..size);
            let one = |at: u64| at..at + 1;
            let mut faults = vec![
                Fault::flip().on_reads().range(one(at)),
                Fault::flip().on(&[Op::Write]).range(one(at)),
                Fault::lose().range(one(at)),
            ];
            if kind > 0 {
                // A device cannot say that it holds nothing there, and so its zeros are read too.
                faults.push(Fault::flip().on_reads().range(one(zero)));
            }
            for (index, fault) in faults.into_iter().enumerate() {
                let target = need!(Faulty::new(kind, &Layout::of(PATTERN, &[(size, Content::Data)])));
                let id = target.faults().add(fault);
                let flags = format!("--force --verify --backend {backend} --direct {direct}");
                let outcome = copy(scratch.file("source"), target.path(), &flags).run();
                assert!(target.faults().hits(id) > 0, "fault {index} was not met\n{outcome}");
                let error = assert_error(&outcome, 6, "corruption", "verify", &target.path());
                let offset = error["offset"].as_u64().unwrap();
                let at = if index == 3 { zero } else { at };
                assert!(offset <= at && at < offset + MIB, "{at}: {outcome}");
                assert_eq!(outcome.result()["pairs"][0]["verified"], false, "{outcome}");
            }
        }
    }
}

#[test]
fn short_transfers_are_gone_on_with() {
    let scratch = ScratchDir::new();
    let layout = Layout::random(
        seed("short_transfers_are_gone_on_with"),
        &Shape { size: 2 * MIB..2 * MIB + 9999, ..Shape::file(2 * MIB) },
    );
    layout.write(&scratch.file("source")).unwrap();
    for backend in BACKENDS {
        // A direct read that ends inside a block has met the end of the file: those are whole pages here.
        for (direct, read, write) in
            [("auto", 4096, 4096), ("auto", 12288, 5000), ("off", 1777, 1777), ("off", 4096, 511)]
        {
            let flags = format!("--force --backend {backend} --direct {direct} --workers 3");
            let source = need!(Faulty::new(0, &layout));
            source.faults().add(Fault::short(read).on_reads());
            let target = scratch.file("target");
            copy(source.path(), &target, &flags).run().assert_code(0);
            layout.assert_on(&target);

            if backend == "io_uring" {
                // FUSE itself makes EIO of a short asynchronous write.
                continue;
            }
            let target = need!(Faulty::new(0, &Layout::of(PATTERN, &[(3 * MIB, Content::Data)])));
            let id = target.faults().add(Fault::short(write).on(&[Op::Write]));
            copy(scratch.file("source"), target.path(), &flags).run().assert_code(0);
            assert!(target.faults().hits(id) > 0);
            assert_same(&scratch.file("source"), &target.path());
        }
    }
    // A device gets its bytes, too, when the file below gives few at a time.
    let whole = Layout::of(8, &[(2 * MIB, Content::Data)]);
    if require_root().is_ok() {
        let source = need!(Faulty::new(512, &whole));
        source.faults().add(Fault::short(8192).on_reads());
        let target = scratch.file("target");
        copy(source.path(), &target, "--force").run().assert_code(0);
        whole.assert_on(&target);
    }
}

/// Sends a signal once reads are under way, and gives what came of it.
fn stop(mut running: Running, signal: i32, patience: Duration) -> Outcome {
    let begin = Instant::now();
    running.signal(signal);
    let ended = running.ended_within(patience);
    let took = begin.elapsed();
    let outcome = running.wait();
    assert!(ended, "not ended {took:?} after signal {signal}\n{outcome}");
    outcome
}

#[test]
fn a_signal_stops_a_slow_copy_soon() {
    let scratch = ScratchDir::new();
    let layout = Layout::of(6, &[(64 * MIB, Content::Data)]);
    let source = need!(Faulty::new(0, &layout));
    for backend in BACKENDS {
        for (signal, slow_reads) in [(libc::SIGINT, true), (libc::SIGTERM, false)] {
            let target = scratch.file("target");
            let faults = source.faults();
            faults.reset();
            let rate = if slow_reads { "" } else { "--rate 4M" };
            let slow = faults.add(Fault::delay(Duration::from_millis(if slow_reads { 150 } else { 1 })));
            let running =
                copy(source.path(), &target, &format!("--force --backend {backend} {rate}")).start();
            let running = wait_for_hits(running, faults, slow, 4);
            let outcome = stop(running, signal, Duration::from_secs(4));
            let error = assert_error(&outcome, 1, "stopped", "", &target);
            assert_eq!(error["retryable"], true, "{outcome}");
            assert_eq!(outcome.result()["pairs"][0]["flushed"], true, "{outcome}");
            faults.remove(slow);
        }
    }
}

#[test]
fn a_signal_while_the_target_is_read_back_proves_nothing() {
    let scratch = ScratchDir::new();
    let layout = Layout::of(6, &[(16 * MIB, Content::Data)]);
    layout.write(&scratch.file("source")).unwrap();
    for backend in BACKENDS {
        for (journal, code, kind) in [(false, 1, "stopped"), (true, 7, "interrupted")] {
            let target = need!(Faulty::new(0, &layout));
            let slow = target.faults().add(Fault::delay(Duration::from_millis(100)).on_reads());
            let flags =
                format!("--force --verify --block-size 64K --queue-depth 2 --workers 1 --backend {backend}");
            let mut run = copy(scratch.file("source"), target.path(), &flags);
            if journal {
                run = run.argument("--journal").argument(scratch.file("journal"));
            }
            // The probe of O_DIRECT reads, too.
            let running = wait_for_hits(run.start(), target.faults(), slow, 6);
            let outcome = stop(running, libc::SIGINT, Duration::from_secs(4));
            assert_error(&outcome, code, kind, "", &target.path());
            assert_eq!(outcome.result()["pairs"][0]["verified"], false, "{outcome}");
        }
    }
}

#[test]
fn a_source_that_grows_is_copied_at_the_size_it_had() {
    let scratch = ScratchDir::new();
    let layout = Layout::of(6, &[(8 * MIB + 77, Content::Data)]);
    let (source, target) = (scratch.file("source"), scratch.file("target"));
    layout.write(&source).unwrap();
    let running = copy(&source, &target, "--rate 8M").start();
    wait_until("the target", || fs::metadata(&target).is_ok_and(|data| data.len() == layout.size()));
    let file = OpenOptions::new().write(true).open(&source).unwrap();
    file.write_all_at(&[1; 100_000], layout.size()).unwrap();
    running.wait().assert_code(0);
    layout.assert_on(&target);
}

#[test]
fn a_second_signal_ends_a_copy_from_a_dead_device() {
    let scratch = ScratchDir::new();
    let source = need!(Faulty::new(0, &Layout::of(6, &[(8 * MIB, Content::Data)])));
    for backend in BACKENDS {
        let dead = source.faults().add(Fault::delay(Duration::from_secs(600)).on_reads().range(MIB..8 * MIB));
        // To each a target of its own: what is in flight holds the lock until it has ended.
        let flags = format!("--backend {backend} --direct off");
        let running = copy(source.path(), scratch.file(backend), &flags).start();
        let mut running = wait_for_hits(running, source.faults(), dead, 0);
        running.signal(libc::SIGINT);
        // Later than what would be taken for the same request.
        assert!(!running.ended_within(Duration::from_millis(800)), "what is in flight is waited for");
        running.signal(libc::SIGINT);
        // The program tells its end at once; the kernel may hold the process until the device answers.
        std::thread::sleep(Duration::from_millis(500));
        source.faults().remove(dead);
        assert!(running.ended_within(Duration::from_secs(5)));
        let outcome = running.wait();
        outcome.assert_code(1);
        assert_eq!(outcome.result()["error"]["kind"], "stopped", "{outcome}");
        assert!(
            outcome.result()["error"]["message"].as_str().unwrap().contains("second signal"),
            "{outcome}"
        );
    }
}

#[test]
fn a_journal_that_cannot_be_written_ends_the_run() {
    let scratch = ScratchDir::new();
    let full = need!(Filesystem::tmpfs().size(64 * KIB).mount());
    full.leave_free(8 * KIB);
    let layout = Layout::regular(4, 8 * MIB, 8 * KIB, 4 * KIB);
    layout.write(&scratch.file("source")).unwrap();
    let (target, journal) = (scratch.file("target"), full.file("journal"));
    let flags = "--block-size 4K --journal";
    let outcome = copy(scratch.file("source"), &target, flags).argument(&journal).run();
    assert_error(&outcome, 10, "full", "write", &journal);
    assert_ne!(outcome.result()["pairs"][0]["status"], "done", "{outcome}");
}

#[test]
fn the_other_pairs_go_on_when_one_source_is_bad() {
    let scratch = ScratchDir::new();
    let layout = Layout::of(1, &[(6 * MIB, Content::Data)]);
    let source = need!(Faulty::new(0, &layout));
    source.faults().add(Fault::errno(libc::EIO).on_reads().range(MIB..MIB + 1));
    layout.write(&scratch.file("good")).unwrap();
    let run = copy(source.path(), scratch.file("t1"), "");
    let outcome = run.argument(scratch.file("good")).argument(scratch.file("t2")).run();
    assert_error(&outcome, 1, "io", "read", &source.path());
    assert_eq!(outcome.result()["pairs"][1]["status"], "done", "{outcome}");
    layout.assert_on(&scratch.file("t2"));
    let mut byte = [0];
    File::open(scratch.file("t2")).unwrap().read_exact_at(&mut byte, 0).unwrap();
    assert_ne!(byte[0], 0);
}
