//! Restores as a suite drives them: plans, downgrades, signals and going on, limits of an ordinary user.

mod repository_home;

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use mover_tests::compare::fingerprint;
use mover_tests::layout::{Content, Layout};
use mover_tests::need;
use mover_tests::process::{Run, Running, mover_binary};
use mover_tests::volume::LoopOptions;
use repository_home::*;
use serde_json::json;

#[test]
fn strict_writes_nothing_where_a_downgrade_is_known_before() {
    let home = Home::on_disk();
    let disk = home.disk("disk", 1, 2 * MIB);
    home.point("vm", &[("vda", &disk)]);
    let old = home.disk("old", 2, 2 * MIB);
    let before = fingerprint(&old).unwrap();
    let device = LoopOptions::default().sparse(2 * MIB);
    let mut targets = vec![home.scratch.file("new"), old.clone()];
    targets.extend(device.as_ref().ok().map(|device| device.path().to_owned()));
    for target in &targets {
        for more in [&["--strict", "--force"][..], &["--backend", "io_uring", "--force"]] {
            let run = home.restore("vm", "vda", target).arguments(more).deny_io_uring(libc::EPERM);
            let result = fails(run, 1, "downgrade", "io_uring");
            assert_eq!(result["moved"]["written_bytes"], 0);
        }
    }
    let into = home.scratch.file("into");
    let run = home.run("restore").arguments(["vm", "--strict", "--into"]).argument(&into);
    fails(run.deny_io_uring(libc::EPERM), 1, "downgrade", "io_uring");
    assert!(!home.scratch.file("new").exists() && !into.exists(), "something was left behind");
    assert_eq!(fingerprint(&old).unwrap(), before);
    if let Ok(device) = &device {
        assert!(fs::read(device.path()).unwrap().iter().all(|&byte| byte == 0), "the device was written");
    }
    let marks = fs::read_dir(home.scratch.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!marks.into_iter().any(|name| name.to_string_lossy().contains("mover-restore")));
    // Without the flag it is a downgrade that is told.
    let outcome = home.restore("vm", "vda", &home.scratch.file("new")).deny_io_uring(libc::EPERM).run();
    outcome.assert_code(0);
    same(&disk, &home.scratch.file("new"));
}

/// Buffers that cannot be registered are known before, too: with the memory beside them that packs are read to.
#[test]
fn strict_counts_locked_memory_with_the_scratch_of_packs() {
    let home = Home::on_disk();
    let disk = home.disk("disk", 1, 24 * MIB);
    home.point("vm", &[("vda", &disk)]);
    home.scratch.open_to_all();
    mover_tests::process::Run::program("/bin/chmod")
        .arguments(["-R", "a+rwX"])
        .argument(home.scratch.path())
        .run()
        .assert_code(0);
    let target = home.scratch.file("target");
    // Not enough for the least: told, and an error under --strict.
    let run = home.restore("vm", "vda", &target).argument("--strict");
    let outcome = need!(run.as_ordinary_user(256 * KIB)).run();
    failed(&outcome, 1, "downgrade", "registered_buffers");
    assert!(!target.exists(), "strict came too late");
    let outcome = need!(home.restore("vm", "vda", &target).as_ordinary_user(256 * KIB)).run();
    outcome.assert_code(0);
    assert!(outcome.events("degraded").iter().any(|it| it["about"] == "registered_buffers"), "{outcome}");
    same(&disk, &target);
    fs::remove_file(&target).unwrap();
    // What is usual for a user does for a worker, with fewer bytes in flight.
    let run = home.restore("vm", "vda", &target).arguments(["--workers", "1", "--strict"]);
    let outcome = need!(run.as_ordinary_user(8 * MIB)).run();
    outcome.assert_code(0);
    assert!(outcome.events("choice").iter().any(|it| it["about"] == "bytes_in_flight"), "{outcome}");
    let locked = outcome.events("plan")[0]["buffer_bytes"].as_u64().unwrap();
    assert!(locked <= 7 * MIB, "{locked} bytes would be locked");
    same(&disk, &target);
}

#[test]
fn workers_follow_cpus_and_memory_stays_below_the_limit() {
    let home = Home::new();
    let disk = home.disk("disk", 1, 96 * MIB);
    home.point("vm", &[("vda", &disk)]);
    let cpus = std::thread::available_parallelism().unwrap().get().min(8) as u64;
    let outcome = home.restore("vm", "vda", Path::new("null:")).run();
    outcome.assert_code(0);
    assert_eq!(outcome.events("plan")[0]["workers"], cpus);
    for verb in ["restore", "verify"] {
        let run = match verb {
            "verify" => home.run("verify"),
            _ => home.restore("vm", "vda", Path::new("null:")),
        };
        let outcome = run.arguments(["--workers", "8"]).run();
        outcome.assert_code(0);
        assert!(outcome.peak_rss_bytes < 256 * MIB, "{verb}: {} bytes\n{outcome}", outcome.peak_rss_bytes);
        let run = match verb {
            "verify" => home.run("verify"),
            _ => home.restore("vm", "vda", Path::new("null:")),
        };
        let outcome = run.arguments(["--memory-limit", "48M"]).run();
        outcome.assert_code(0);
        assert!(outcome.peak_rss_bytes <= 48 * MIB, "{verb}: {} bytes\n{outcome}", outcome.peak_rss_bytes);
    }
    // Little data keeps one busy.
    let small = home.disk("small", 2, MIB);
    home.point("small", &[("vda", &small)]);
    let outcome = home.restore("small", "vda", Path::new("null:")).run();
    assert_eq!(outcome.events("plan")[0]["workers"], 1);
}

#[test]
fn a_dry_run_tells_the_plan_and_touches_nothing() {
    let home = Home::on_disk();
    let disk = home.disk("disk", 1, 2 * MIB);
    home.point("vm", &[("vda", &disk)]);
    let old = home.disk("old", 2, 2 * MIB);
    let (before, objects) = (fingerprint(&old).unwrap(), home.objects());
    let into = home.scratch.file("into");
    let new = home.scratch.file("new");
    let runs = [
        home.restore("vm", "vda", &new),
        home.restore("vm", "vda", &old).argument("--force"),
        home.restore("vm", "vda", &old).argument("--delta"),
        home.run("restore").arguments(["vm", "--into"]).argument(&into),
    ];
    for run in runs {
        let outcome = run.argument("--dry-run").run();
        outcome.assert_code(0);
        assert_eq!(outcome.events("plan").len(), 1, "{outcome}");
        assert_eq!(outcome.result()["moved"]["written_bytes"], 0);
        assert_eq!(outcome.result()["point"]["disks"][0]["status"], "skipped");
    }
    // What would be refused is refused.
    fails(home.restore("vm", "vda", &old).argument("--dry-run"), 5, "refused", "--force");
    assert!(!into.exists() && !new.exists());
    assert_eq!((fingerprint(&old).unwrap(), home.objects()), (before, objects));
}

#[test]
fn an_unknown_disk_is_told_with_those_there_are() {
    let home = Home::new();
    let disk = home.disk("disk", 1, MIB);
    home.point("vm", &[("vda", &disk), ("data.1", &disk)]);
    let target = home.scratch.file("target");
    let result = fails(home.restore("vm", "vdb", &target), 10, "not_found", "vdb");
    let hint = text(&result["error"]["hint"]);
    assert!(hint.contains("vda") && hint.contains("data.1"), "{hint}");
    assert!(!target.exists());
}

#[test]
fn a_pipe_gets_every_byte_and_one_that_closes_ends_the_run() {
    let home = Home::new();
    let layout =
        Layout::of(7, &[(5 * MIB + 5, Content::Data), (3 * MIB, Content::Hole), (999, Content::Data)]);
    let disk = home.scratch.file("disk");
    layout.write(&disk).unwrap();
    home.point("vm", &[("vda", &disk)]);
    let pipe = home.scratch.file("pipe");
    Run::program("mkfifo").argument(&pipe).run().assert_code(0);
    let running = home.restore("vm", "vda", &pipe).start();
    let mut bytes = Vec::new();
    File::open(&pipe).unwrap().read_to_end(&mut bytes).unwrap();
    running.wait().assert_code(0);
    assert!(bytes == fs::read(&disk).unwrap(), "{} bytes came through the pipe", bytes.len());
    // A reader that takes a little and goes.
    let script = "\"$0\" restore vm --disk vda=- --json --repo \"$1\" | head -c 1000 >/dev/null; \
                  exit ${PIPESTATUS[0]}";
    let outcome = Run::program("bash")
        .arguments(["-c", script])
        .argument(mover_binary())
        .argument(&home.repo)
        .variable("MOVER_STATE", &home.state)
        .run();
    assert!(!matches!(outcome.code, Some(0) | None), "{outcome}");
}

/// Waits until a part of the data has been written.
#[track_caller]
fn await_progress(running: &mut Running, events: &Path) {
    let begin = Instant::now();
    let moved = |line: &str| {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        (event["type"] == "progress").then(|| event["data_bytes"].as_u64())?
    };
    loop {
        let seen = fs::read_to_string(events).unwrap_or_default();
        if seen.lines().filter_map(moved).any(|bytes| bytes > 0) {
            return;
        }
        let ended = running.ended_within(Duration::from_millis(20));
        assert!(!ended && begin.elapsed() < Duration::from_secs(60), "no progress (ended: {ended})");
    }
}

#[test]
fn an_interrupted_restore_to_a_device_is_gone_on_with() {
    let home = Home::on_disk();
    let device = need!(LoopOptions::default().sparse(24 * MIB));
    let disk = home.disk("disk", 1, 20 * MIB);
    home.point("vm", &[("vda", &disk)]);
    let other = home.disk("other", 9, 20 * MIB);
    home.point("other", &[("vda", &other)]);
    let events = home.scratch.file("events");
    let mut running = home
        .restore("vm", "vda", device.path())
        .arguments(["--rate", "4M", "--block-size", "256K", "--events"])
        .argument(&events)
        .start();
    await_progress(&mut running, &events);
    running.signal(libc::SIGINT);
    let outcome = running.wait();
    let result = failed(&outcome, 7, "interrupted", "--resume");
    let first = result["moved"]["written_bytes"].as_u64().unwrap();
    assert!(first > 0 && first < 20 * MIB, "{first} bytes");
    // Not with another point, which would mix two disks.
    let run = home.restore("other", "vda", device.path()).argument("--resume");
    fails(run, 5, "wrong_identity", "is of vm@");
    let outcome = home.restore("vm", "vda", device.path()).argument("--resume").run();
    outcome.assert_code(0);
    let second = outcome.result()["moved"]["written_bytes"].as_u64().unwrap();
    assert!(second <= 20 * MIB - first, "{first} and then {second} bytes were written");
    let now = fs::read(device.path()).unwrap();
    assert!(now[..20 * MIB as usize] == fs::read(&disk).unwrap(), "the device is not the disk");
    // The mark is gone: a second time there is nothing to go on with.
    let outcome = home.restore("vm", "vda", device.path()).arguments(["--resume", "--dry-run"]).run();
    assert!(
        outcome.events("warning").iter().any(|it| text(&it["message"]).contains("no mark"))
            || outcome.code == Some(5),
        "{outcome}"
    );
    assert_eq!(json!(24 * MIB), json!(now.len()));
}
