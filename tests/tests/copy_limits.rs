//! Under limits: without io_uring, with little locked memory, within the promised memory, with readers that do
//! not read, and with `--dry-run`, under which nothing may change at all.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mover_tests::compare::{assert_same, fingerprint};
use mover_tests::layout::{Content, Layout};
use mover_tests::outcome::Outcome;
use mover_tests::process::{Run, mover_binary};
use mover_tests::scratch::ScratchDir;
use mover_tests::skip::{require_root, require_tool};
use mover_tests::volume::{Filesystem, LoopOptions};
use mover_tests::{Skip, need, skip};
use serde_json::Value;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const TIB: u64 = 1024 * GIB;

fn copy<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Run {
    Run::mover(["copy", "--json", "--offload", "never"]).arguments(arguments)
}

fn data_file(scratch: &ScratchDir, name: &str, size: u64) -> PathBuf {
    let path = scratch.file(name);
    Layout::of(size ^ name.len() as u64, &[(size, Content::Data)]).write(&path).unwrap();
    path
}

/// Both fields of all downgrades, as events and in the result, which have to agree.
#[track_caller]
fn degraded(outcome: &Outcome) -> Vec<(String, String)> {
    let pick = |value: &Value| {
        let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
        (text("about"), text("reason"))
    };
    let events: Vec<_> = outcome.events("degraded").iter().map(pick).collect();
    let listed: Vec<_> = outcome.result()["degraded"].as_array().unwrap().iter().map(pick).collect();
    assert_eq!(events, listed, "{outcome}");
    assert!(events.iter().all(|(about, reason)| !about.is_empty() && !reason.is_empty()), "{outcome}");
    events
}

// Without io_uring.

#[test]
fn where_io_uring_is_forbidden_system_calls_do() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", 24 * MIB + 4097);
    for (errno, words) in [(libc::EPERM, "seccomp"), (libc::ENOSYS, "not in this kernel")] {
        let target = scratch.file("target");
        let outcome = copy([&source, &target]).argument("--verify").deny_io_uring(errno).run();
        outcome.assert_code(0);
        assert_same(&source, &target);
        let told = degraded(&outcome);
        assert!(told.iter().any(|(about, reason)| about == "io_uring" && reason.contains(words)), "{told:?}");
        assert_eq!(outcome.events("plan")[0]["backend"], "sync");
        fs::remove_file(&target).unwrap();
    }
}

#[test]
fn strict_without_io_uring_writes_nothing() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", MIB);
    let old = data_file(&scratch, "old", 3 * MIB);
    let before = fingerprint(&old).unwrap();
    let device = LoopOptions::default().sparse(MIB);
    if let Ok(device) = &device {
        Layout::of(3, &[(MIB, Content::Data)]).write(device.path()).unwrap();
    }
    let mut targets = vec![scratch.file("new"), old.clone()];
    targets.extend(device.as_ref().ok().map(|device| device.path().to_owned()));
    for target in &targets {
        for arguments in [&["--strict"][..], &["--backend", "io_uring"]] {
            let run = copy([&source, target]).argument("--force").arguments(arguments);
            let outcome =
                run.argument("--journal").argument(scratch.file("journal")).deny_io_uring(libc::EPERM).run();
            outcome.assert_code(1);
            let result = outcome.result();
            assert_eq!(result["error"]["kind"], "downgrade", "{outcome}");
            let message = result["error"]["message"].as_str().unwrap();
            assert!(message.contains("io_uring") && message.contains("seccomp"), "{outcome}");
            assert!(!result["error"]["hint"].as_str().unwrap().is_empty());
            assert_eq!(result["moved"]["written_bytes"], 0);
        }
    }
    assert!(!scratch.file("new").exists() && !scratch.file("journal").exists());
    assert_eq!(fingerprint(&old).unwrap(), before);
    if let Ok(device) = &device {
        Layout::of(3, &[(MIB, Content::Data)]).assert_on(device.path());
    }
}

#[test]
fn strict_where_everything_is_to_be_had_is_no_hindrance() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", 4 * MIB);
    let outcome = copy([&source, &scratch.file("target")]).run();
    if !degraded(&outcome).is_empty() {
        skip!("this machine downgrades an ordinary copy: {:?}", degraded(&outcome));
    }
    copy([&source, &scratch.file("strict")]).argument("--strict").run().assert_code(0);
    assert_same(&source, &scratch.file("strict"));
}

/// The sysctl is one for the whole machine; a mount over it, seen by this run alone, shows the text. What
/// follows from the setting itself is shown by the filter.
#[test]
fn the_sysctl_that_forbids_io_uring_is_named() {
    need!(require_root());
    let unshare = need!(require_tool("unshare"));
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", MIB);
    let setting = scratch.write("setting", "2\n");
    if !Path::new("/proc/sys/kernel/io_uring_disabled").exists() {
        skip!("this kernel has no kernel.io_uring_disabled");
    }
    let script = "mount --bind \"$1\" /proc/sys/kernel/io_uring_disabled || exit 99; shift; exec \"$@\"";
    let outcome = Run::program(unshare)
        .arguments(["--mount", "/bin/sh", "-c", script, "sh"])
        .argument(&setting)
        .argument(mover_binary())
        .arguments(["copy", "--json"])
        .arguments([&source, &scratch.file("target")])
        .deny_io_uring(libc::EPERM)
        .run();
    if outcome.code == Some(99) {
        skip!("no mount over a file of /proc here");
    }
    outcome.assert_code(0);
    let told = degraded(&outcome);
    assert!(told.iter().any(|(_, reason)| reason.contains("kernel.io_uring_disabled=2")), "{told:?}");
}

/// The limit counts what all processes of the user have locked, and the rings of a process that has ended are
/// taken down a moment later: so these runs come one at a time, and wait for the ones before.
static ONE_USER: Mutex<()> = Mutex::new(());

/// Runs as an ordinary user who may lock this much, once what earlier runs had locked is free again.
fn run_with_memlock(bytes: u64, run: impl Fn() -> Run) -> Result<Outcome, Skip> {
    let begin = Instant::now();
    loop {
        let outcome = run().as_ordinary_user(bytes)?.run();
        let waits = outcome.stderr_text().contains("no memory for a ring");
        if !waits || begin.elapsed() > Duration::from_secs(5) {
            return Ok(outcome);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn little_locked_memory_only_costs_the_registration() {
    let _turn = ONE_USER.lock().unwrap_or_else(PoisonError::into_inner);
    let scratch = ScratchDir::new();
    scratch.open_to_all();
    let source = data_file(&scratch, "source", 48 * MIB);
    fs::set_permissions(&source, fs::Permissions::from_mode(0o644)).unwrap();
    for (name, bytes) in [("1m", MIB), ("64k", 64 * KIB)] {
        let target = scratch.file(name);
        let arguments = ["--backend", "io_uring", "--workers", "2", "--verify"];
        let outcome = need!(run_with_memlock(bytes, || copy([&source, &target]).arguments(arguments)));
        outcome.assert_code(0);
        assert_same(&source, &target);
        let told = degraded(&outcome);
        assert!(
            told.iter().any(|(about, reason)| about == "registered_buffers" && reason.contains("ulimit -l")),
            "{bytes}: {told:?}"
        );
        assert!(told.iter().all(|(about, _)| about == "registered_buffers"), "{bytes}: {told:?}");
        assert_eq!(told.len(), 1, "one downgrade is told once: {told:?}");
        let strict = || copy([&source, &scratch.file("strict")]).arguments(arguments).argument("--strict");
        let outcome = need!(run_with_memlock(bytes, strict));
        outcome.assert_code(1);
        assert_eq!(outcome.result()["error"]["kind"], "downgrade");
        assert!(!scratch.file("strict").exists());
        fs::remove_file(&target).unwrap();
    }
}

#[test]
fn the_usual_limit_of_an_ordinary_user_is_kept_to() {
    let _turn = ONE_USER.lock().unwrap_or_else(PoisonError::into_inner);
    let scratch = ScratchDir::new();
    scratch.open_to_all();
    let source = data_file(&scratch, "source", 48 * MIB);
    fs::set_permissions(&source, fs::Permissions::from_mode(0o644)).unwrap();
    for workers in ["1", "2"] {
        let target = scratch.file(workers);
        let arguments = ["--backend", "io_uring", "--workers", workers, "--verify", "--strict"];
        let outcome = need!(run_with_memlock(8 * MIB, || copy([&source, &target]).arguments(arguments)));
        outcome.assert_code(0);
        assert_same(&source, &target);
        assert!(degraded(&outcome).is_empty());
        assert!(outcome.events("plan")[0]["buffer_bytes"].as_u64().unwrap() <= 7 * MIB);
    }
}

#[test]
fn with_no_locked_memory_at_all_system_calls_may_have_to_do() {
    let _turn = ONE_USER.lock().unwrap_or_else(PoisonError::into_inner);
    let scratch = ScratchDir::new();
    scratch.open_to_all();
    let source = data_file(&scratch, "source", 8 * MIB);
    fs::set_permissions(&source, fs::Permissions::from_mode(0o644)).unwrap();
    let target = scratch.file("target");
    let outcome = need!(copy([&source, &target]).as_ordinary_user(0)).run();
    outcome.assert_code(0);
    assert_same(&source, &target);
    let told = degraded(&outcome);
    // Kernels differ in whether they count a ring's own memory.
    let known = |about: &str| about == "io_uring" || about == "registered_buffers";
    assert!(told.iter().any(|(about, reason)| known(about) && reason.contains("ulimit -l")), "{told:?}");
}

// Memory.

/// Peak memory, from outside and as the run itself says.
#[track_caller]
fn assert_peak(outcome: &Outcome, ceiling: u64) {
    outcome.assert_code(0);
    let said = outcome.result()["peak_memory_bytes"].as_u64().unwrap();
    let peak = outcome.peak_rss_bytes.max(said);
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    assert!(peak > MIB, "no memory was measured\n{outcome}");
    assert!(peak <= ceiling, "{:.1} MiB of memory, {:.1} are allowed\n{outcome}", mib(peak), mib(ceiling));
}

/// The ceiling: 32 MiB at two workers, 8 MiB more for each further one.
fn ceiling(outcome: &Outcome) -> u64 {
    let workers = outcome.events("plan")[0]["workers"].as_u64().unwrap();
    32 * MIB + workers.saturating_sub(2) * 8 * MIB
}

#[test]
fn memory_does_not_depend_on_how_much_moves() {
    let scratch = ScratchDir::new();
    let source = scratch.file("source");
    let pieces = [(300 * MIB, Content::Data), (5 * MIB, Content::Zero), (207 * MIB, Content::Data)];
    Layout::of(11, &pieces).write(&source).unwrap();
    let (target, journal, digests) =
        (scratch.file("target"), scratch.file("journal"), scratch.file("digests"));
    let outcome = copy([&source, &target]).run();
    assert_peak(&outcome, 24 * MIB);
    assert_eq!(outcome.events("plan")[0]["workers"].as_u64().unwrap(), 1);
    fs::remove_file(&target).unwrap();
    let outcome = copy([&source, &target]).arguments(["--workers", "2"]).run();
    assert_eq!(outcome.events("plan")[0]["workers"].as_u64().unwrap(), 2);
    assert_peak(&outcome, 32 * MIB);
    fs::remove_file(&target).unwrap();
    // With everything on.
    let mut all = copy([&source, &target]).argument("--verify");
    all = all.argument("--journal").argument(&journal).argument("--digest-out").argument(&digests);
    assert_peak(&all.run(), 32 * MIB);
    fs::remove_file(&target).unwrap();
    // A tighter limit is kept, whatever it takes.
    for limit in [16, 20, 24] {
        let outcome = copy([source.as_os_str(), "null:".as_ref()])
            .argument("--memory-limit")
            .argument(format!("{limit}M"))
            .run();
        assert_peak(&outcome, limit * MIB);
    }
    let outcome = copy([source.as_os_str(), "null:".as_ref()]).arguments(["--workers", "8"]).run();
    assert_eq!(ceiling(&outcome), 80 * MIB);
    assert_peak(&outcome, 80 * MIB);
    let limited = ["--workers", "8", "--memory-limit", "48M"];
    assert_peak(&copy([source.as_os_str(), "null:".as_ref()]).arguments(limited).run(), 48 * MIB);
    // Without a ring: threads take the place of depth, under the same ceiling.
    let outcome = copy([source.as_os_str(), "null:".as_ref()]).arguments(["--backend", "sync"]).run();
    assert_peak(&outcome, 32 * MIB);
    // A stream.
    let piped = Run::program("/bin/sh")
        .arguments(["-c", "exec \"$0\" copy --json - null: <\"$1\""])
        .argument(mover_binary())
        .argument(&source)
        .run();
    assert_peak(&piped, 32 * MIB);
}

/// `size` bytes of hole with `data` bytes of data spread over it.
fn sparse_giant(path: &Path, size: u64, data: u64) -> std::io::Result<()> {
    let file = File::create(path)?;
    file.set_len(size)?;
    let pieces = 100;
    let mut buffer = vec![0; (data / pieces) as usize];
    for index in 0..pieces {
        let offset = (size / pieces * index) & !0xfff;
        mover_tests::layout::data(5, offset, &mut buffer);
        file.write_all_at(&buffer, offset)?;
    }
    file.sync_all()
}

#[test]
fn a_giant_that_is_nearly_empty_costs_what_is_in_it() {
    let scratch = ScratchDir::new();
    let (source, target) = (scratch.file("source"), scratch.file("target"));
    if let Err(error) = sparse_giant(&source, 8 * TIB, 100 * MIB) {
        skip!("no file of 8 TiB here: {error}");
    }
    let outcome = copy([&source, &target]).run();
    assert_peak(&outcome, 32 * MIB);
    assert!(outcome.wall < Duration::from_secs(10), "{outcome}");
    assert_eq!(outcome.result()["moved"]["read_bytes"], 100 * MIB);
    assert_same(&source, &target);
    assert!(target.metadata().unwrap().blocks() * 512 < 120 * MIB, "holes were filled");
    fs::remove_file(&target).unwrap();
    assert_peak(&copy([&source, &target]).argument("--verify").run(), 32 * MIB);
}

#[test]
fn sixty_four_tebibytes_are_no_more_than_any_size() {
    let mounted = need!(Filesystem::xfs().size(2 * GIB).mount());
    let (source, target) = (mounted.file("source"), mounted.file("target"));
    sparse_giant(&source, 64 * TIB, 50 * MIB).unwrap();
    let outcome = copy([&source, &target]).run();
    assert_peak(&outcome, 32 * MIB);
    assert_eq!(outcome.result()["pairs"][0]["size"], 64 * TIB);
    assert_same(&source, &target);
    // The last block, by a list, onto what is there.
    let list = mounted.file("list.json");
    let last = 64 * TIB - 4096;
    File::options().write(true).open(&source).unwrap().write_all_at(&[7; 4096], last).unwrap();
    fs::write(&list, format!("[{{\"start\":{last},\"length\":4096,\"kind\":\"data\"}}]")).unwrap();
    let outcome = copy([&source, &target]).argument("--force").argument("--extents").argument(&list).run();
    assert_eq!(outcome.assert_code(0).result()["moved"]["written_bytes"], 4096);
    assert_same(&source, &target);
}

#[test]
fn two_hundred_thousand_extents_fit() {
    const EXTENTS: u64 = 200_000;
    let scratch = ScratchDir::in_memory();
    let source = scratch.file("source");
    let file = File::create(&source).unwrap();
    // Further apart than what is read in one.
    let period = 64 * KIB;
    file.set_len(EXTENTS * period).unwrap();
    for index in 0..EXTENTS {
        file.write_all_at(&[(index % 255) as u8 + 1; 512], index * period).unwrap();
    }
    drop(file);
    for backend in ["io_uring", "sync"] {
        let outcome = copy([source.as_os_str(), "null:".as_ref()]).arguments(["--backend", backend]).run();
        if outcome.code == Some(1) && backend == "io_uring" {
            skip!("io_uring cannot be used here");
        }
        assert_peak(&outcome, 32 * MIB);
        // tmpfs knows its data by pages.
        assert_eq!(outcome.result()["moved"]["read_bytes"], EXTENTS * 4096, "{outcome}");
    }
    // The same extents by a list, and with a digest of each.
    let mut list = String::from("[");
    for index in 0..EXTENTS {
        let comma = if index == 0 { "" } else { ",\n" };
        write!(list, "{comma}{{\"start\":{},\"length\":512,\"kind\":\"data\"}}", index * period).unwrap();
    }
    list.push(']');
    let list = scratch.write("list.json", list);
    let digests = scratch.file("digests");
    let run = copy([source.as_os_str(), "null:".as_ref()]).argument("--extents").argument(&list);
    let outcome = run.argument("--digest-out").argument(&digests).run();
    assert_peak(&outcome, 32 * MIB);
    assert_eq!(outcome.result()["moved"]["read_bytes"], EXTENTS * 512);
    let text = fs::read_to_string(&digests).unwrap();
    assert_eq!(text.lines().filter(|line| line.contains("xxh3_128")).count() as u64, EXTENTS);
}

#[test]
fn many_pairs_share_one_ceiling() {
    let scratch = ScratchDir::new();
    let mut arguments = Vec::new();
    for index in 0..24 {
        arguments.push(data_file(&scratch, &format!("source{index}"), 12 * MIB));
        arguments.push(scratch.file(&format!("target{index}")));
    }
    let outcome = copy(&arguments).run();
    assert_peak(&outcome, ceiling(&outcome));
    assert_eq!(outcome.result()["pairs"].as_array().unwrap().len(), 24);
    for pair in arguments.chunks(2) {
        assert_same(&pair[0], &pair[1]);
    }
    let outcome = copy(&arguments).arguments(["--force", "--memory-limit", "20M"]).run();
    assert_peak(&outcome, 20 * MIB);
}

// Readers.

/// A fifo that is full and that somebody holds open, so that a writer waits for ever.
fn full_fifo(scratch: &ScratchDir) -> (PathBuf, File) {
    let path = scratch.file("fifo");
    let made = Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    let options = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path).unwrap();
    let mut file = options(libc::O_NONBLOCK);
    for size in [4096, 1] {
        while file.write(&vec![b' '; size]).is_ok() {}
    }
    (path.clone(), file)
}

/// Runs mover under a shell that does with its descriptors what the redirection says.
fn shell(redirect: &str, to: &Path, arguments: impl IntoIterator<Item = OsString>) -> Run {
    Run::program("/bin/sh")
        .argument("-c")
        .argument(format!("to=$1; shift; exec \"$@\" {redirect}"))
        .argument("sh")
        .argument(to)
        .argument(mover_binary())
        .argument("copy")
        .arguments(arguments)
}

#[test]
fn a_reader_that_never_reads_holds_nothing_up() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", 16 * MIB);
    let (fifo, _held) = full_fifo(&scratch);
    for (name, redirect, flags) in [
        ("stdout", "1<>\"$to\"", &["--json"][..]),
        ("events", "7<>\"$to\"", &["--events", "fd:7"]),
        ("stderr", "2<>\"$to\"", &["--progress", "always"]),
        ("all", "1<>\"$to\" 2<>\"$to\" 7<>\"$to\"", &["--json", "--events", "fd:7", "--progress", "always"]),
    ] {
        let (target, result) = (scratch.file(name), scratch.file("result"));
        let mut arguments = vec![source.clone().into_os_string(), target.clone().into()];
        arguments.extend(flags.iter().map(OsString::from));
        arguments.extend(["--result".into(), result.clone().into()]);
        let outcome = shell(redirect, &fifo, arguments).run();
        outcome.assert_code(0);
        assert!(outcome.wall < Duration::from_secs(15), "{name}\n{outcome}");
        assert_same(&source, &target);
        let line: Value = serde_json::from_slice(&fs::read(&result).unwrap()).unwrap();
        assert_eq!((&line["type"], &line["status"]), (&"result".into(), &"done".into()), "{name}");
    }
}

#[test]
fn a_reader_that_has_gone_changes_nothing() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", 16 * MIB);
    for (name, flags, redirect) in
        [("json", "--json", ""), ("events", "--events fd:7", "7>&1"), ("screen", "--progress always", "2>&1")]
    {
        let target = scratch.file(name);
        let code = scratch.file("code");
        // Whoever reads leaves at once; the code is that of mover, not of the pipe's end.
        let script = format!(
            "{{ sleep 0.2; \"$1\" copy \"$2\" \"$3\" {flags} --rate 32M {redirect}; echo $? >\"$4\"; }} | true"
        );
        let outcome = Run::program("/bin/sh")
            .arguments(["-c", &script, "sh"])
            .argument(mover_binary())
            .arguments([&source, &target, &code])
            .run();
        outcome.assert_code(0);
        assert_eq!(fs::read_to_string(&code).unwrap().trim(), "0", "{name}\n{outcome}");
        assert_same(&source, &target);
    }
}

#[test]
fn a_pipe_for_the_data_whose_reader_leaves_is_an_error_and_no_death() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", 16 * MIB);
    let (code, events) = (scratch.file("code"), scratch.file("events"));
    let script = "{ \"$1\" copy \"$2\" - --json 2>\"$4\"; echo $? >\"$3\"; } | head -c 100000 >/dev/null";
    let outcome = Run::program("/bin/sh")
        .arguments(["-c", script, "sh"])
        .argument(mover_binary())
        .arguments([&source, &code, &events])
        .run();
    outcome.assert_code(0);
    // A death by SIGPIPE would be 141.
    assert_eq!(fs::read_to_string(&code).unwrap().trim(), "1", "{outcome}");
    let text = fs::read_to_string(&events).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["error"]["kind"], &last["error"]["errno"]),
        (&"io".into(), &libc::EPIPE.into()),
        "{text}"
    );
    assert_eq!(last["error"]["path"], "-");
}

#[test]
fn events_and_result_go_where_they_are_sent() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", MIB);
    let (events, result) = (scratch.file("events"), scratch.file("result"));
    let arguments = |target: &str, flags: &[&str]| {
        let mut arguments = vec![source.clone().into_os_string(), scratch.file(target).into()];
        arguments.extend(flags.iter().map(OsString::from));
        arguments.extend(["--result".into(), result.clone().into()]);
        arguments
    };
    let lines = |path: &Path| -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let outcome = shell("7>>\"$to\"", &events, arguments("a", &["--events", "fd:7", "--json"])).run();
    outcome.assert_code(0);
    let all = lines(&events);
    assert_eq!(all, outcome.json_lines());
    assert_eq!(all[0]["type"], "start");
    let numbers: Vec<_> = all.iter().map(|line| line["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..all.len() as u64).collect::<Vec<_>>());
    assert!(all.iter().all(|line| line["run"] == all[0]["run"] && line["v"] == 1));
    assert_eq!(lines(&result), [all.last().unwrap().clone()]);
    // A run that fails replaces the result of the last one, and nothing else lies beside it.
    shell("", &events, arguments("a", &[])).run().assert_code(5);
    assert_eq!(lines(&result)[0]["error"]["kind"], "refused");
    let names: Vec<_> =
        fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().starts_with(".mover")), "{names:?}");
    for bad in ["fd:9", "fd:x", "fd:0"] {
        shell("", &events, arguments("b", &["--events", bad])).run().assert_code(2);
        assert!(!scratch.file("b").exists());
    }
}

// A plan only.

/// Names, times, sizes, blocks and contents of a folder's files.
fn state(folder: &Path) -> BTreeMap<PathBuf, (u64, u64, i64, i64, u128)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| {
            let meta = path.metadata().unwrap();
            let stamp = (
                meta.len(),
                meta.blocks(),
                meta.mtime_nsec(),
                meta.ctime_nsec(),
                fingerprint(&path).unwrap(),
            );
            (path, stamp)
        })
        .collect()
}

#[test]
fn a_dry_run_changes_nothing_at_all() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", 3 * MIB);
    for (name, size) in [("smaller", MIB), ("larger", 5 * MIB), ("empty", 0)] {
        data_file(&scratch, name, size);
    }
    scratch.write("list.json", r#"[{"start":0,"length":4096,"kind":"data"}]"#);
    let before = state(scratch.path());
    let folder_before = scratch.path().metadata().unwrap().mtime_nsec();
    for target in ["new", "smaller", "larger", "empty"] {
        for flags in [
            &[][..],
            &["--journal", "journal"],
            &["--digest-out", "digests", "--verify"],
            &["--strict"],
            &["--direct", "off", "--backend", "sync"],
            &["--sparse", "never"],
        ] {
            let run = copy([source.as_os_str(), target.as_ref()]).folder(scratch.path());
            let outcome = run.arguments(["--dry-run", "--force"]).arguments(flags).run();
            outcome.assert_code(0);
            let plan = &outcome.events("plan")[0];
            assert_eq!((&plan["size"], &plan["pair"]), (&(3 * MIB).into(), &0.into()), "{outcome}");
            assert_eq!(outcome.result()["moved"]["written_bytes"], 0);
            assert!(state(scratch.path()) == before, "{target} {flags:?} changed something");
        }
    }
    assert_eq!(scratch.path().metadata().unwrap().mtime_nsec(), folder_before, "a file came and went");
    // What would be refused is refused by the plan.
    let run = copy([source.as_os_str(), "larger".as_ref()]).folder(scratch.path());
    run.argument("--dry-run").run().assert_code(5);
    let run = copy([source.as_os_str(), "larger".as_ref()]).folder(scratch.path());
    let outcome = run.arguments(["--dry-run", "--force", "--extents", "list.json"]).run();
    assert_eq!(outcome.assert_code(0).events("plan")[0]["data_bytes"], 4096);
    assert!(state(scratch.path()) == before);
}

#[test]
fn a_dry_run_leaves_a_device_alone() {
    let device = need!(LoopOptions::default().sparse(4 * MIB));
    let layout = Layout::of(8, &[(4 * MIB, Content::Data)]);
    layout.write(device.path()).unwrap();
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", MIB);
    let writes = || {
        let mut text = String::new();
        File::open(device.attribute("stat")).unwrap().read_to_string(&mut text).unwrap();
        text.split_whitespace().nth(4).unwrap().parse::<u64>().unwrap()
    };
    let before = writes();
    copy([&source, device.path()]).arguments(["--dry-run", "--force"]).run().assert_code(0);
    assert_eq!(writes(), before, "the device was written to");
    layout.assert_on(device.path());
}
