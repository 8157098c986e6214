//! `mover copy --journal` and `--resume`: killed, interrupted, lied to, and gone on with.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mover_tests::compare::{assert_same, checksum};
use mover_tests::fault::Op;
use mover_tests::faulty::FaultyFile;
use mover_tests::layout::{Content, Layout, Shape, data};
use mover_tests::need;
use mover_tests::outcome::Outcome;
use mover_tests::process::{Run, Running};
use mover_tests::rng::{Rng, seed};
use mover_tests::scratch::ScratchDir;
use mover_tests::volume::{Filesystem, LoopDevice, LoopOptions};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const PATTERN: u64 = 0x0dd5_eed5;
/// Extents that a resumed run reads back before it believes the journal.
const SAMPLE: u64 = 512;
/// Bytes of a journal's header, with few pairs and short paths, and of a record.
const HEADER: u64 = 4096;
const RECORD: u64 = 48;

fn rounds(default: u64) -> u64 {
    std::env::var("MOVER_TEST_ROUNDS").map_or(default, |text| text.parse().expect("MOVER_TEST_ROUNDS"))
}

fn pattern(path: &Path, size: u64) {
    Layout::of(PATTERN, &[(size, Content::Data)]).write(path).unwrap();
}

/// A copy with its three files.
struct Job {
    source: PathBuf,
    target: PathBuf,
    journal: PathBuf,
}

impl Job {
    fn run(&self, flags: &str) -> Run {
        let run = Run::mover(["copy", "--json"]).argument(&self.source).argument(&self.target);
        run.argument("--journal").argument(&self.journal).arguments(flags.split_whitespace())
    }

    /// Starts a slow copy and interrupts it once something has moved.
    fn interrupt(&self, flags: &str) -> Outcome {
        let rate = if flags.contains("--rate") { "" } else { "--rate 24M " };
        let mut running = self.run(&format!("{rate}{flags}")).start();
        while !self.journal.exists() {
            if running.ended_within(Duration::from_millis(5)) {
                panic!("ended before there was a journal\n{}", running.wait());
            }
        }
        std::thread::sleep(Duration::from_millis(250));
        running.signal(libc::SIGINT);
        let outcome = running.wait();
        outcome.assert_code(7);
        outcome
    }

    /// Whole records in the journal.
    fn records(&self) -> u64 {
        fs::metadata(&self.journal).map_or(0, |data| data.len().saturating_sub(HEADER) / RECORD)
    }

    fn resume_and_check(&self, layout: &Layout) -> Value {
        let outcome = self.run("--resume").run();
        outcome.assert_code(0);
        layout.assert_on(&self.target);
        let result = outcome.result();
        assert_all_accounted_for(&result, layout.size());
        result
    }

    #[track_caller]
    fn assert_refused(&self, flags: &str, path: &Path) -> Outcome {
        let outcome = self.run(&format!("--resume {flags}")).run();
        outcome.assert_code(5);
        let error = outcome.result()["error"].clone();
        assert_eq!(error["kind"], "wrong_identity", "{outcome}");
        assert_eq!(error["path"], path.to_str().unwrap(), "{outcome}");
        assert_eq!(outcome.result()["moved"]["written_bytes"], 0, "{outcome}");
        outcome
    }
}

/// Runs until it is not in the way of the killed run before it: without a journal (that run had not come so far)
/// its locks are waited for only shortly.
fn settled(run: impl Fn() -> Run) -> Outcome {
    for _ in 0..20 {
        let outcome = run().run();
        if outcome.code != Some(9) {
            return outcome;
        }
    }
    run().run()
}

fn number(result: &Value, name: &str) -> u64 {
    result["moved"][name].as_u64().unwrap()
}

/// Waits until the run has written to its target, a file that it made.
#[track_caller]
fn await_data(running: &mut Running, target: &Path) {
    let begin = Instant::now();
    while fs::metadata(target).map_or(0, |data| data.blocks()) == 0 {
        let ended = running.ended_within(Duration::from_millis(5));
        assert!(!ended && begin.elapsed() < Duration::from_secs(60), "no data came (ended: {ended})");
    }
}

/// Every byte was moved by this run or by an earlier one, and by one of them only.
#[track_caller]
fn assert_all_accounted_for(result: &Value, size: u64) {
    let now = number(result, "written_bytes") + number(result, "zero_bytes");
    assert_eq!(now + number(result, "resumed_bytes"), size, "{}", result["moved"]);
}

fn job_in(scratch: &ScratchDir) -> Job {
    Job { source: scratch.file("source"), target: scratch.file("target"), journal: scratch.file("journal") }
}

/// A source of 16 MiB of data, with an interrupted copy of it.
fn interrupted() -> (ScratchDir, Job, Layout) {
    let scratch = ScratchDir::new();
    let job = job_in(&scratch);
    let layout = Layout::of(77, &[(16 * MIB + 777, Content::Data)]);
    layout.write(&job.source).unwrap();
    job.interrupt("");
    (scratch, job, layout)
}

/// Changes a byte in every 64 KiB, so that whatever was moved is changed too.
fn damage(path: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    for offset in (0..file.metadata().unwrap().len()).step_by(64 * KIB as usize) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[!byte[0]], offset).unwrap();
    }
}

/// Kills the job again and again, and lets the last run come to its end.
fn kill_and_resume(job: &Job, layout: &Layout, rng: &mut Rng, flags: &str) {
    let mut known = 0;
    for _ in 0..rounds(4) {
        let delay = Duration::from_millis(rng.range(0..1800));
        let outcome = settled(|| job.run(&format!("--resume --force {flags}")).kill_after(delay));
        let records = job.records();
        assert!(records >= known, "{known} records became {records}\n{outcome}");
        known = records;
        if outcome.signal.is_none() {
            outcome.assert_code(0);
            break;
        }
    }
    let outcome = settled(|| job.run(&format!("--resume --force --verify {flags}")));
    outcome.assert_code(0);
    let result = outcome.result();
    assert_all_accounted_for(&result, layout.size());
    assert_eq!(number(&result, "verified_bytes"), layout.size(), "{outcome}");
    assert!(known == 0 || number(&result, "resumed_bytes") > 0, "what was moved is forgotten\n{outcome}");
    layout.assert_on(&job.target);
}

#[test]
fn killed_at_random_moments_files_arrive_whole() {
    let mut rng = Rng::new(seed("killed_at_random_moments_files_arrive_whole"));
    let scratch = ScratchDir::new();
    for (index, flags) in [
        "--backend io_uring --workers 2",
        "--backend sync --block-size 64K",
        "--direct off --workers 3 --sparse always",
    ]
    .iter()
    .enumerate()
    {
        let size = 48 * MIB + rng.range(1..9999);
        let layout = Layout::random(rng.bits() >> 32, &Shape { size: size..size + 1, ..Shape::file(size) });
        let name = |what: &str| scratch.file(&format!("{what}{index}"));
        let job = Job { source: name("source"), target: name("target"), journal: name("journal") };
        layout.write(&job.source).unwrap();
        pattern(&job.target, rng.range(1..size * 2));
        kill_and_resume(&job, &layout, &mut rng, &format!("{flags} --rate 16M"));
        assert_same(&job.source, &job.target);
    }
}

#[test]
fn killed_at_random_moments_devices_arrive_whole() {
    let mut rng = Rng::new(seed("killed_at_random_moments_devices_arrive_whole"));
    for sector in [512, 4096] {
        let scratch = ScratchDir::new();
        let layout = Layout::random(
            rng.bits() >> 32,
            &Shape { size: 40 * MIB..40 * MIB + 1, ..Shape::device(40 * MIB, u64::from(sector)) },
        );
        let source = need!(LoopOptions::default().sector_size(sector).sparse(layout.size()));
        let image = scratch.sparse("image", 44 * MIB);
        let target = need!(LoopOptions::default().sector_size(sector).attach(&image));
        layout.write(source.path()).unwrap();
        pattern(target.path(), 44 * MIB);
        let job = Job {
            source: source.path().to_owned(),
            target: target.path().to_owned(),
            journal: scratch.file("journal"),
        };
        kill_and_resume(&job, &layout, &mut rng, "--rate 20M --workers 2");
        let mut tail = vec![0; 4 * MIB as usize];
        let mut right = tail.clone();
        File::open(target.path()).unwrap().read_exact_at(&mut tail, 40 * MIB).unwrap();
        data(PATTERN, 40 * MIB, &mut right);
        assert!(tail == right, "what lies past the source on the target was touched");
    }
}

#[test]
fn killed_at_full_speed_several_pairs_arrive_whole() {
    let mut rng = Rng::new(seed("killed_at_full_speed_several_pairs_arrive_whole"));
    let scratch = ScratchDir::new();
    let layouts: Vec<_> = (0..3).map(|_| Layout::random(rng.bits() >> 32, &Shape::file(24 * MIB))).collect();
    let run = |index: usize| (scratch.file(&format!("s{index}")), scratch.file(&format!("t{index}")));
    layouts.iter().enumerate().for_each(|(index, layout)| layout.write(&run(index).0).unwrap());
    let journal = scratch.file("journal");
    let command = || {
        let start = Run::mover(["copy", "--json", "--resume", "--force", "--journal"]).argument(&journal);
        (0..3).fold(start, |command, index| command.argument(run(index).0).argument(run(index).1))
    };
    for _ in 0..rounds(10) {
        let delay = Duration::from_micros(rng.range(0..150_000));
        let outcome = settled(|| command().kill_after(delay));
        assert!(outcome.signal.is_some() || outcome.code == Some(0), "{outcome}");
    }
    settled(command).assert_code(0);
    layouts.iter().enumerate().for_each(|(index, layout)| layout.assert_on(&run(index).1));
}

#[test]
fn killed_while_it_begins_it_is_begun_again_without_force() {
    let mut rng = Rng::new(seed("killed_while_it_begins_it_is_begun_again_without_force"));
    let layout = Layout::of(4, &[(3 * MIB, Content::Data)]);
    for _ in 0..rounds(25) {
        let scratch = ScratchDir::new();
        let job = job_in(&scratch);
        layout.write(&job.source).unwrap();
        let delay = Duration::from_micros(rng.range(0..15_000));
        let killed = job.run("--resume --rate 100M").kill_after(delay).run();
        let outcome = settled(|| job.run("--resume"));
        assert!(outcome.code == Some(0), "killed after {delay:?}:\n{killed}{outcome}");
        layout.assert_on(&job.target);
    }
}

#[test]
fn a_killed_list_of_extents_is_gone_on_with() {
    let mut rng = Rng::new(seed("a_killed_list_of_extents_is_gone_on_with"));
    let scratch = ScratchDir::new();
    let job = job_in(&scratch);
    let size = 24 * MIB;
    let layout = Layout::of(rng.bits() >> 32, &[(size, Content::Data)]);
    layout.write(&job.source).unwrap();
    pattern(&job.target, size);
    let mut expected = vec![0; size as usize];
    data(PATTERN, 0, &mut expected);
    let mut entries = Vec::new();
    for start in (0..size - 64 * KIB).step_by(96 * KIB as usize) {
        let (start, length) = (start + rng.range(0..30_000), rng.range(1..60_000));
        let kind = *rng.pick(&["data", "data", "data", "zero", "hole"]);
        let part = &mut expected[start as usize..(start + length) as usize];
        if kind == "data" {
            layout.fill(start, part)
        } else {
            part.fill(0)
        }
        entries.push(serde_json::json!({"start": start, "length": length, "kind": kind}));
    }
    let list = scratch.write("list", Value::from(entries).to_string());
    let with_list = |flags: &str| job.run(flags).argument("--extents").argument(&list);
    for _ in 0..rounds(2) {
        let delay = Duration::from_millis(rng.range(0..2000));
        let outcome = settled(|| with_list("--resume --force --rate 4M").kill_after(delay));
        assert!(outcome.signal.is_some() || outcome.code == Some(0), "{outcome}");
    }
    settled(|| with_list("--resume --force --verify")).assert_code(0);
    assert!(fs::read(&job.target).unwrap() == expected);
    // Another list is another copy.
    fs::write(&list, r#"[{"start":0,"length":4096,"kind":"data"}]"#).unwrap();
    let outcome = with_list("--resume").run();
    outcome.assert_code(5);
    assert_eq!(outcome.result()["error"]["kind"], "wrong_identity", "{outcome}");
    job.assert_refused("", &job.journal);
    assert!(fs::read(&job.target).unwrap() == expected);
}

#[test]
fn what_the_journal_has_is_not_read_again() {
    let scratch = ScratchDir::new();
    let size = 48 * MIB;
    let layout = Layout::of(6, &[(size, Content::Data)]);
    let source = need!(FaultyFile::memory(size));
    layout.write_to(source.backing(), false).unwrap();
    let job = Job { source: source.path(), ..job_in(&scratch) };
    let block = 8 * KIB;
    job.interrupt("--block-size 8K --rate 60M");
    source.faults().reset();
    source.faults().record();
    let result = job.resume_and_check(&layout);
    let resumed = number(&result, "resumed_bytes");
    assert!(resumed > SAMPLE * block, "too little to see anything: {resumed}");
    assert_eq!(number(&result, "read_bytes"), size - resumed);
    let read: u64 = source
        .faults()
        .recorded()
        .iter()
        .filter(|request| request.op == Op::Read)
        .map(|request| request.len)
        .sum();
    let (least, most) = (size - resumed, size - resumed + SAMPLE * block);
    // The probe of O_DIRECT reads a page.
    assert!((least..most + 64 * KIB).contains(&read), "{read} bytes were read, {least} to {most} expected");
}

#[test]
fn signals_interrupt_and_the_journal_allows_to_resume() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let scratch = ScratchDir::new();
        let job = job_in(&scratch);
        let layout = Layout::of(5, &[(16 * MIB + 5, Content::Data)]);
        layout.write(&job.source).unwrap();
        // It would run for 16 s.
        let mut running = job.run("--rate 1M").start();
        await_data(&mut running, &job.target);
        running.signal(signal);
        let begin = Instant::now();
        let outcome = running.wait();
        assert!(begin.elapsed() < Duration::from_secs(10), "{outcome}");
        outcome.assert_code(7);
        let error = outcome.result()["error"].clone();
        assert_eq!((&error["kind"], &error["retryable"]), (&"interrupted".into(), &true.into()), "{outcome}");
        assert!(error["hint"].as_str().unwrap().contains("--resume"), "{outcome}");
        let moved = number(&outcome.result(), "written_bytes");
        let result = job.resume_and_check(&layout);
        assert_eq!(number(&result, "resumed_bytes"), moved, "the last batch is in the journal too");
    }
}

#[test]
fn without_a_journal_a_signal_is_a_failure() {
    let scratch = ScratchDir::new();
    let layout = Layout::of(5, &[(16 * MIB, Content::Data)]);
    layout.write(&scratch.file("source")).unwrap();
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // A target of its own, so that its data is that of this run.
        let target = scratch.file(&format!("target{signal}"));
        let run = Run::mover(["copy", "--json", "--rate", "1M"]).argument(scratch.file("source"));
        let mut running = run.argument(&target).start();
        await_data(&mut running, &target);
        running.signal(signal);
        let outcome = running.wait();
        outcome.assert_code(1);
        assert_eq!(outcome.result()["error"]["kind"], "stopped", "{outcome}");
    }
}

#[test]
fn after_the_end_there_is_nothing_left_to_do() {
    let (_scratch, job, layout) = interrupted();
    job.resume_and_check(&layout);
    for _ in 0..2 {
        let result = job.resume_and_check(&layout);
        let moved = ["read_bytes", "written_bytes", "zero_bytes"].map(|name| number(&result, name));
        assert_eq!((moved, number(&result, "resumed_bytes")), ([0, 0, 0], layout.size()));
    }
    // A journal is not begun anew unasked, and nothing is lost by the refusal.
    let before = fs::read(&job.journal).unwrap();
    let outcome = job.run("").run();
    outcome.assert_code(5);
    assert_eq!(outcome.result()["error"]["kind"], "refused", "{outcome}");
    assert!(fs::read(&job.journal).unwrap() == before);
    job.run("--force").run().assert_code(0);
    layout.assert_on(&job.target);
}

#[test]
fn digests_and_verification_of_a_resumed_copy_are_of_the_whole() {
    let scratch = ScratchDir::new();
    let job = job_in(&scratch);
    let layout = Layout::of(
        7,
        &[
            (9 * MIB, Content::Data),
            (3 * MIB, Content::Hole),
            (9 * MIB + 123, Content::Data),
            (MIB, Content::Zero),
        ],
    );
    layout.write(&job.source).unwrap();
    job.interrupt("");
    let outcome = job.run("--resume --verify --digest-out").argument(scratch.file("digests")).run();
    outcome.assert_code(0);
    layout.assert_on(&job.target);
    let result = outcome.result();
    assert_ne!(number(&result, "resumed_bytes"), 0);
    assert_eq!(number(&result, "verified_bytes"), layout.size(), "{outcome}");
    let mut covered = 0;
    for line in fs::read_to_string(scratch.file("digests")).unwrap().lines().skip(1) {
        let line: Value = serde_json::from_str(line).unwrap();
        let (start, length) = (line["start"].as_u64().unwrap(), line["length"].as_u64().unwrap());
        assert_eq!(start, covered, "in order and without gaps");
        covered += length;
        let mut bytes = vec![0; length as usize];
        layout.fill(start, &mut bytes);
        if line["zero"] == true {
            assert!(bytes.iter().all(|byte| *byte == 0));
        } else {
            assert_eq!(line["xxh3_128"], format!("{:032x}", xxh3_128(&bytes)));
        }
    }
    assert_eq!(covered, layout.size());
}

// ---- refusals ----------------------------------------------------------------------------------------------

#[test]
fn a_source_that_changed_is_refused() {
    let (_scratch, job, layout) = interrupted();
    let target = checksum(&job.target).unwrap();
    let file = OpenOptions::new().write(true).open(&job.source).unwrap();
    let then = file.metadata().unwrap().modified().unwrap();
    // Touched.
    file.set_modified(then + Duration::from_secs(1)).unwrap();
    job.assert_refused("", &job.source);
    // Changed behind the back of its time.
    damage(&job.source);
    file.set_modified(then).unwrap();
    job.assert_refused("", &job.source);
    // Another file of the same size and time.
    fs::remove_file(&job.source).unwrap();
    fs::copy(&job.target, &job.source).unwrap();
    File::options().write(true).open(&job.source).unwrap().set_modified(then).unwrap();
    job.assert_refused("", &job.source);
    assert_eq!(checksum(&job.target).unwrap(), target, "a refused run changes nothing");
    drop(file);
    drop(layout);
}

#[test]
fn a_source_under_another_name_that_is_another_file_is_refused() {
    let (scratch, job, layout) = interrupted();
    let other =
        Job { source: scratch.file("other"), target: job.target.clone(), journal: job.journal.clone() };
    layout.write(&other.source).unwrap();
    other.assert_refused("", &other.source);
    job.resume_and_check(&layout);
}

#[test]
fn a_target_that_is_another_file_is_refused_and_left_alone() {
    let (scratch, job, layout) = interrupted();
    // Larger and smaller than the source: neither is given its size.
    for size in [40 * MIB + 5, 3 * MIB] {
        let other =
            Job { source: job.source.clone(), target: scratch.file("other"), journal: job.journal.clone() };
        let held = Layout::of(99, &[(size, Content::Data)]);
        held.write(&other.target).unwrap();
        other.assert_refused("", &other.target);
        held.assert_on(&other.target);
        other.assert_refused("--force", &other.target);
        held.assert_on(&other.target);
    }
    // Put in the place of the right one.
    fs::rename(&job.target, scratch.file("kept")).unwrap();
    fs::rename(scratch.file("other"), &job.target).unwrap();
    job.assert_refused("", &job.target);
    Layout::of(99, &[(3 * MIB, Content::Data)]).assert_on(&job.target);
    // Not there at all: nothing is left behind.
    fs::remove_file(&job.target).unwrap();
    job.assert_refused("", &job.target);
    assert!(!job.target.exists());
    // The right one again.
    fs::rename(scratch.file("kept"), &job.target).unwrap();
    let result = job.resume_and_check(&layout);
    assert_ne!(number(&result, "resumed_bytes"), 0);
}

#[test]
fn a_target_whose_content_changed_is_refused() {
    let (_scratch, job, _) = interrupted();
    damage(&job.target);
    let damaged = checksum(&job.target).unwrap();
    job.assert_refused("", &job.target);
    job.assert_refused("--force", &job.target);
    assert_eq!(checksum(&job.target).unwrap(), damaged);
    // Cut short.
    OpenOptions::new().write(true).open(&job.target).unwrap().set_len(100).unwrap();
    job.assert_refused("", &job.target);
    assert_eq!(fs::metadata(&job.target).unwrap().len(), 100);
}

#[test]
fn a_device_that_is_another_one_is_refused() {
    let scratch = ScratchDir::new();
    let layout = Layout::of(8, &[(16 * MIB, Content::Data)]);
    let right = need!(LoopDevice::over(&scratch.sparse("right", 16 * MIB)));
    let wrong = need!(LoopDevice::over(&scratch.sparse("wrong", 16 * MIB)));
    let larger = need!(LoopDevice::over(&scratch.sparse("larger", 17 * MIB)));
    let job = Job { target: right.path().to_owned(), ..job_in(&scratch) };
    layout.write(&job.source).unwrap();
    job.interrupt("");
    for device in [&wrong, &larger] {
        let held = Layout::of(99, &[(16 * MIB, Content::Data)]);
        held.write(device.path()).unwrap();
        let other = Job {
            source: job.source.clone(),
            target: device.path().to_owned(),
            journal: job.journal.clone(),
        };
        other.assert_refused("", device.path());
        held.assert_on(device.path());
    }
    job.resume_and_check(&layout);
}

#[test]
fn another_copy_is_not_gone_on_with() {
    let (scratch, job, layout) = interrupted();
    job.assert_refused("--sparse never", &job.journal);
    let list = scratch.write("list", r#"[{"start":0,"length":4096,"kind":"data"}]"#);
    let outcome = job.run("--resume --extents").argument(&list).run();
    outcome.assert_code(5);
    assert_eq!(outcome.result()["error"]["kind"], "wrong_identity", "{outcome}");
    let second = job.run("--resume").argument(&job.source).argument(scratch.file("second")).run();
    second.assert_code(5);
    assert!(!scratch.file("second").exists(), "nothing is left of a refused run");
    // The request size may be named otherwise: the journal's is used.
    let outcome = job.run("--resume --block-size 64K --workers 1 --backend sync").run();
    outcome.assert_code(0);
    layout.assert_on(&job.target);
    assert_all_accounted_for(&outcome.result(), layout.size());
}

#[test]
fn a_journal_or_target_in_use_is_busy() {
    let scratch = ScratchDir::new();
    let job = job_in(&scratch);
    let layout = Layout::of(5, &[(12 * MIB, Content::Data)]);
    layout.write(&job.source).unwrap();
    let running = job.run("--rate 2M").start();
    let begin = Instant::now();
    while !job.journal.exists() && begin.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let other =
        Job { source: job.source.clone(), target: scratch.file("other"), journal: job.journal.clone() };
    for flags in ["", "--resume", "--force"] {
        let outcome = other.run(flags).run();
        outcome.assert_code(9);
        assert_eq!(outcome.result()["error"]["kind"], "busy", "{outcome}");
        assert!(!other.target.exists(), "nothing is left of a refused run");
    }
    let other =
        Job { source: job.source.clone(), target: job.target.clone(), journal: scratch.file("journal2") };
    other.run("--force").run().assert_code(9);
    assert!(!other.journal.exists());
    running.wait().assert_code(0);
    layout.assert_on(&job.target);
}

#[test]
fn a_torn_end_of_the_journal_is_passed_over() {
    let mut rng = Rng::new(seed("a_torn_end_of_the_journal_is_passed_over"));
    let (_scratch, job, layout) = interrupted();
    let journal = fs::read(&job.journal).unwrap();
    for round in 0..8 {
        let mut torn = journal.clone();
        let records = torn.len() - HEADER as usize;
        assert!(records > RECORD as usize, "an empty journal shows nothing");
        match round % 4 {
            0 => torn.truncate(torn.len() - rng.range(1..48) as usize),
            1 => torn.truncate(4096 + rng.range(0..records as u64) as usize),
            2 => (0..rng.range(1..200)).for_each(|_| torn.push(rng.bits() as u8)),
            _ => {
                let at = 4096 + rng.range(0..records as u64) as usize;
                torn[at] ^= 1 << rng.range(0..8);
            }
        }
        fs::write(&job.journal, &torn).unwrap();
        let result = job.resume_and_check(&layout);
        let resumed = number(&result, "resumed_bytes");
        assert!(resumed < layout.size(), "round {round}");
        // What was appended after the tear is found by the next one.
        assert_eq!(number(&job.resume_and_check(&layout), "resumed_bytes"), layout.size(), "round {round}");
    }
}

#[test]
fn what_is_no_journal_is_left_alone() {
    let mut rng = Rng::new(seed("what_is_no_journal_is_left_alone"));
    let (_scratch, job, layout) = interrupted();
    let whole = fs::read(&job.journal).unwrap();
    let mut broken =
        vec![b"some other file of the user".to_vec(), whole[..rng.range(1..4096) as usize].to_vec()];
    let mut flipped = whole.clone();
    // Within what is used of the header: magic, version, its length, and the text.
    flipped[rng.range(0..200) as usize] ^= 1 << rng.range(0..8);
    broken.push(flipped);
    for bytes in broken {
        fs::write(&job.journal, &bytes).unwrap();
        for flags in ["--resume", "--force", "--resume --force"] {
            let outcome = job.run(flags).run();
            outcome.assert_code(5);
            assert!(fs::read(&job.journal).unwrap() == bytes, "{outcome}");
        }
    }
    // An empty file is no journal yet; the target is there, and needs the word.
    fs::write(&job.journal, "").unwrap();
    job.run("--resume").run().assert_code(5);
    job.run("--resume --force").run().assert_code(0);
    layout.assert_on(&job.target);
}

#[test]
fn recorded_bad_extents_are_tried_again() {
    use mover_tests::fault::Fault;
    let scratch = ScratchDir::new();
    let layout = Layout::of(6, &[(4 * MIB, Content::Data)]);
    let source = need!(FaultyFile::memory(layout.size()));
    layout.write_to(source.backing(), false).unwrap();
    let job = Job { source: source.path(), ..job_in(&scratch) };
    let bad = source.faults().add(Fault::errno(libc::EIO).on_reads().range(MIB + 1..MIB + 2));
    job.run("--on-read-error record").run().assert_code(3);
    job.run("--on-read-error record --resume").run().assert_code(3);
    job.run("--resume").run().assert_code(1);
    source.faults().remove(bad);
    let result = job.resume_and_check(&layout);
    assert_eq!(number(&result, "resumed_bytes"), layout.size() - 4 * KIB);
}

#[test]
fn a_full_target_can_be_gone_on_with_once_there_is_room() {
    let scratch = ScratchDir::new();
    let folder = need!(Filesystem::ext4().small().mount());
    let ballast = folder.leave_free(6 * MIB);
    let layout = Layout::of(6, &[(9 * MIB, Content::Data)]);
    let job = Job { target: folder.file("target"), ..job_in(&scratch) };
    layout.write(&job.source).unwrap();
    job.run("").run().assert_code(10);
    fs::remove_file(ballast).unwrap();
    let result = job.resume_and_check(&layout);
    assert_ne!(number(&result, "resumed_bytes"), 0);
}
