//! The support crate proves itself: layouts, comparison, and programs run under limits.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use mover_tests::compare::{Difference, assert_same, checksum, compare, fingerprint};
use mover_tests::layout::{Content, Layout, Piece, Shape, data};
use mover_tests::need;
use mover_tests::process::{Run, mover_binary};
use mover_tests::rng::{Rng, seed};
use mover_tests::sandbox::ORDINARY_USER;
use mover_tests::scratch::ScratchDir;

const MIB: u64 = 1024 * 1024;

#[test]
fn layouts_are_reproducible_and_whole() {
    let seed = seed("layouts_are_reproducible_and_whole");
    for round in 0..300 {
        let shape = if round % 2 == 0 { Shape::file(3 * MIB) } else { Shape::device(3 * MIB, 4096) };
        let layout = Layout::random(seed + round, &shape);
        assert_eq!(layout, Layout::random(seed + round, &shape));
        let mut end = 0;
        for piece in layout.pieces() {
            assert!(piece.start == end && piece.len > 0, "{piece:?} after {end}");
            assert_eq!(piece.start % shape.align, 0);
            end = piece.end();
        }
        assert_eq!(end, layout.size());
        assert_eq!(end % shape.align, 0);
        assert!(layout.pieces().len() <= shape.pieces_max && shape.size.contains(&end));
    }
}

#[test]
fn bytes_follow_from_the_offset_alone() {
    let seed = seed("bytes_follow_from_the_offset_alone");
    let layout = Layout::random(seed, &Shape::file(MIB));
    let mut whole = vec![0xAA; layout.size() as usize];
    layout.fill(0, &mut whole);
    for piece in layout.pieces() {
        let bytes = &whole[piece.start as usize..piece.end() as usize];
        let is_data = piece.content == Content::Data;
        assert!(bytes.iter().all(|byte| (*byte != 0) == is_data), "{piece:?}");
    }
    let mut rng = Rng::new(seed);
    for _ in 0..500 {
        let start = rng.range(0..layout.size());
        let end = rng.range(start..layout.size()) + 1;
        let mut part = vec![0xAA; (end - start) as usize];
        layout.fill(start, &mut part);
        assert_eq!(part, whole[start as usize..end as usize], "{start}..{end}");
    }
    let (mut here, mut there) = ([0; 64], [0; 64]);
    data(seed, 4096, &mut here);
    data(seed, 8192, &mut there);
    assert_ne!(here, there, "a block at the wrong place has to show");
}

#[test]
fn a_layout_is_written_sparse_and_recognised() {
    let seed = seed("a_layout_is_written_sparse_and_recognised");
    let scratch = ScratchDir::new();
    let pieces =
        [(MIB, Content::Data), (64 * MIB, Content::Hole), (MIB, Content::Zero), (777, Content::Data)];
    let layout = Layout::of(seed, &pieces);
    let path = scratch.file("disk");
    layout.write(&path).unwrap();
    let blocks = path.metadata().unwrap().blocks() * 512;
    assert!((2 * MIB..4 * MIB).contains(&blocks), "{blocks} bytes allocated");
    assert_eq!(layout.check(&path).unwrap(), None);

    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let offset = 30 * MIB + 12345;
    file.write_all_at(&[7], offset).unwrap();
    let expected = Difference { offset, left: Some(7), right: Some(0) };
    assert_eq!(layout.check(&path).unwrap(), Some(expected));
    file.write_all_at(&[0], offset).unwrap();
    file.set_len(layout.size() - 1).unwrap();
    let cut = layout.check(&path).unwrap().unwrap();
    assert!(cut.offset == layout.size() - 1 && cut.left.is_none() && cut.right.is_some(), "{cut}");
    file.set_len(layout.size() + 1).unwrap();
    let long = layout.check(&path).unwrap().unwrap();
    assert!(long.offset == layout.size() - 1, "the cut byte is zero now: {long}");
}

#[test]
fn regular_layouts_have_data_in_every_period() {
    let layout = Layout::regular(1, 10 * MIB + 100, MIB, 65536);
    assert_eq!(layout.bytes(Content::Data), 10 * 65536 + 100);
    assert_eq!(layout.size(), 10 * MIB + 100);
    assert_eq!(layout.pieces()[2], Piece { start: MIB, len: 65536, content: Content::Data });
}

#[test]
fn the_comparator_finds_one_flipped_byte() {
    let seed = seed("the_comparator_finds_one_flipped_byte");
    let mut rng = Rng::new(seed);
    let scratch = ScratchDir::new();
    let (left, right) = (scratch.file("left"), scratch.file("right"));
    for round in 0..20 {
        let layout = Layout::random(seed + round, &Shape::file(8 * MIB));
        layout.write(&left).unwrap();
        layout.write(&right).unwrap();
        assert_same(&left, &right);
        assert_eq!(fingerprint(&left).unwrap(), fingerprint(&right).unwrap());

        let offset = rng.range(0..layout.size());
        let file = OpenOptions::new().read(true).write(true).open(&right).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[!byte[0]], offset).unwrap();
        let expected = Difference { offset, left: Some(byte[0]), right: Some(!byte[0]) };
        assert_eq!(compare(&left, &right).unwrap(), Some(expected));
        assert_ne!(checksum(&left).unwrap(), checksum(&right).unwrap());
        assert_ne!(fingerprint(&left).unwrap(), fingerprint(&right).unwrap());
    }
}

#[test]
fn the_comparator_is_quick_on_holes_and_sees_the_length() {
    let scratch = ScratchDir::new();
    let (left, right) = (scratch.sparse("left", 8 << 40), scratch.sparse("right", 8 << 40));
    File::options().write(true).open(&left).unwrap().write_all_at(&[0; 4096], 5 << 40).unwrap();
    assert_same(&left, &right);
    assert_eq!(fingerprint(&left).unwrap(), fingerprint(&right).unwrap(), "written zeros are zeros");
    let file = File::options().write(true).open(&right).unwrap();
    file.set_len((8 << 40) + 1).unwrap();
    let expected = Difference { offset: 8 << 40, left: None, right: Some(0) };
    assert_eq!(compare(&left, &right).unwrap(), Some(expected));
}

#[test]
fn output_code_and_limits_are_seen() {
    let outcome = Run::program("/bin/sh")
        .arguments(["-c", "cat; echo no >&2; exit 7"])
        .stdin("{\"type\":\"result\"}\n");
    let outcome = outcome.run();
    outcome.assert_code(7).assert_stderr(&["no"]);
    assert_eq!(outcome.result()["type"], "result");

    let outcome = Run::program("/bin/sleep").argument("60").limit(Duration::from_millis(100)).run();
    assert!(outcome.timed_out && outcome.signal == Some(libc::SIGKILL), "{outcome}");
    let outcome = Run::program("/bin/sleep")
        .argument("60")
        .kill_within(&mut Rng::new(1), Duration::from_millis(50))
        .run();
    assert!(!outcome.timed_out && outcome.signal == Some(libc::SIGKILL), "{outcome}");

    let mut running = Run::program("/bin/sleep").argument("60").start();
    assert!(!running.ended_within(Duration::from_millis(20)));
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().signal, Some(libc::SIGTERM));
}

#[test]
fn the_program_is_found_and_built() {
    let binary = mover_binary();
    assert!(binary.is_file(), "{}", binary.display());
}

#[test]
fn children_do_not_outlive_the_program() {
    let outcome = Run::program("/bin/sh").arguments(["-c", "sleep 60 & echo started"]).run();
    assert!(outcome.wall < Duration::from_secs(30), "{outcome}");
    assert_eq!(outcome.assert_code(0).stdout_text(), "started\n");
}

/// What the tests below run as a child: this very test, told by the variable what to do.
#[test]
fn child() {
    let Ok(task) = std::env::var("MOVER_TEST_CHILD") else { return };
    let report = match task.as_str() {
        "limits" => report_limits(),
        "memory" => {
            let bytes = std::hint::black_box(vec![1_u8; 96 << 20]);
            format!("{{\"type\":\"memory\",\"bytes\":{}}}", bytes.len())
        }
        "spin" => {
            while processor_time() < Duration::from_millis(200) {
                std::hint::black_box(0);
            }
            "{}".to_owned()
        }
        _ => panic!("unknown task {task}"),
    };
    std::io::stderr().write_all((report + "\n").as_bytes()).unwrap();
}

fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live struct of the type asked for.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn report_limits() -> String {
    let errno = |call: i64| {
        // SAFETY: invalid arguments (no entries, no descriptor, a null pointer), which the kernel refuses.
        let result = unsafe { libc::syscall(call, -1_i64, 0_i64, 0_i64, 0_i64, 0_i64, 0_i64) };
        if result < 0 { std::io::Error::last_os_error().raw_os_error().unwrap() } else { 0 }
    };
    let calls = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live struct of the type asked for; geteuid and getegid take nothing.
    let (uid, gid) = unsafe {
        libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit);
        (libc::geteuid(), libc::getegid())
    };
    let groups = fs::read_to_string("/proc/self/status").unwrap();
    let groups = groups.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap().trim().to_owned();
    let errnos = calls.map(errno);
    format!(
        r#"{{"errnos":{errnos:?},"uid":{uid},"gid":{gid},"groups":"{groups}","memlock":{}}}"#,
        limit.rlim_cur
    )
}

fn child_run(task: &str) -> Run {
    let this = std::env::current_exe().unwrap();
    Run::program(this).arguments(["--exact", "child", "--nocapture"]).variable("MOVER_TEST_CHILD", task)
}

#[test]
fn io_uring_can_be_denied() {
    let errnos = |run: Run| {
        let outcome = run.run();
        let errnos = outcome.assert_code(0).json_lines_stderr()[0]["errnos"].clone();
        errnos.as_array().unwrap().iter().map(|errno| errno.as_i64().unwrap() as i32).collect::<Vec<_>>()
    };
    for errno in [libc::EPERM, libc::ENOSYS] {
        assert_eq!(errnos(child_run("limits").deny_io_uring(errno)), vec![errno; 3]);
    }
    let free = errnos(child_run("limits"));
    if free[0] == libc::ENOSYS || free[0] == libc::EPERM {
        mover_tests::skip!("io_uring is off on this machine, so its denial cannot be told from that");
    }
}

#[test]
fn a_program_can_run_as_an_ordinary_user() {
    let run = need!(child_run("limits").as_ordinary_user(65536)).deny_io_uring(libc::EPERM);
    let report = run.run().assert_code(0).json_lines_stderr()[0].clone();
    assert_eq!(report["uid"], ORDINARY_USER);
    assert_eq!(report["gid"], ORDINARY_USER);
    assert_eq!(report["groups"], "");
    assert_eq!(report["memlock"], 65536);
    assert_eq!(report["errnos"][0], libc::EPERM);

    let hidden = ScratchDir::new();
    let program = hidden.file("true");
    fs::copy("/bin/true", &program).unwrap();
    need!(Run::program(program).as_ordinary_user(0)).run().assert_code(0);
}

#[test]
fn memory_and_processor_time_are_those_of_the_child() {
    // This process is made larger than the child, which is what spoils the kernel's own figure.
    let ballast = std::hint::black_box(vec![1_u8; 200 << 20]);
    let outcome = Run::program("/bin/sleep").argument("0.1").run();
    let peak = outcome.assert_code(0).peak_rss_bytes;
    assert!((64 * 1024..16 * MIB).contains(&peak), "{peak} bytes for sleep");
    drop(ballast);

    let outcome = child_run("memory").run();
    let peak = outcome.assert_code(0).peak_rss_bytes;
    assert!((90 * MIB..150 * MIB).contains(&peak), "{peak} bytes");
    let time = child_run("spin").run().assert_code(0).cpu_time();
    assert!((Duration::from_millis(190)..Duration::from_secs(10)).contains(&time), "{time:?}");
}
