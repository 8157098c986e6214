//! `mover copy` over filesystems, devices, pipes and flags: what arrives is compared with the layout itself.
//! The matrix stands in one file, as its cases share their places and checks.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mover_tests::compare::{assert_same, size_of};
use mover_tests::layout::{Content, Layout, Piece, Shape, data};
use mover_tests::process::Run;
use mover_tests::rng::{Rng, seed};
use mover_tests::scratch::ScratchDir;
use mover_tests::skip::{require_root, require_tool};
use mover_tests::volume::{Filesystem, Kind, LoopDevice, LoopOptions, Mounted};
use mover_tests::{Skip, need};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
/// Block size of every filesystem here: the least that can be a hole.
const PAGE: u64 = 4 * KIB;
/// Seed of what lies on a target before the copy.
const PATTERN: u64 = 0x0dd5_eed5;

/// How many random copies each pair of places gets; raise it for a campaign.
fn rounds(default: u64) -> u64 {
    std::env::var("MOVER_TEST_ROUNDS").map_or(default, |text| text.parse().expect("MOVER_TEST_ROUNDS"))
}

fn copy(source: impl AsRef<Path>, target: impl AsRef<Path>, flags: &str) -> Run {
    let run = Run::mover(["copy"]).argument(source.as_ref()).argument(target.as_ref());
    run.argument("--json").arguments(flags.split_whitespace())
}

/// A target that holds something else before: nothing of it may shine through where the source has zeros.
fn pattern(path: &Path, size: u64) {
    Layout::of(PATTERN, &[(size, Content::Data)]).write(path).unwrap();
}

/// What lies past the end of the source on a larger device has to be as it was.
fn assert_pattern_from(device: &Path, start: u64) {
    let file = File::open(device).unwrap();
    let end = size_of(&file).unwrap();
    let (mut found, mut right) = (vec![0; (end - start) as usize], vec![0; (end - start) as usize]);
    file.read_exact_at(&mut found, start).unwrap();
    data(PATTERN, start, &mut right);
    let differs = found.iter().zip(&right).position(|(found, right)| found != right);
    assert_eq!(differs.map(|index| start + index as u64), None, "{} changed past {start}", device.display());
}

fn seek(file: &File, offset: u64, whence: i32) -> io::Result<u64> {
    // SAFETY: plain integers on a descriptor that the reference keeps open.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset as i64, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

/// Whether a range of a file is all hole.
fn is_hole(file: &File, start: u64, end: u64) -> bool {
    seek(file, start, libc::SEEK_DATA).map_or(true, |found| found >= end)
}

fn aligned(piece: &Piece, align: u64) -> Option<(u64, u64)> {
    let (start, end) = (piece.start.next_multiple_of(align), piece.end() / align * align);
    (start < end).then_some((start, end))
}

/// Checks what `--sparse` promises of a file target.
fn assert_allocation(layout: &Layout, target: &Path, sparse: &str, from_file: bool) {
    let file = File::open(target).unwrap();
    file.sync_all().unwrap();
    let pieces = layout.pieces().iter();
    if sparse == "never" {
        let allocated = file.metadata().unwrap().blocks() * 512;
        // The smallest files lie in the inode on some filesystems.
        if layout.size() >= 64 * KIB {
            assert!(allocated >= layout.size(), "{allocated} of {} bytes allocated", layout.size());
        }
        return;
    }
    let found = if sparse == "always" { PAGE } else { 64 * KIB };
    for piece in pieces.filter(|piece| piece.content != Content::Data) {
        let align = if from_file && piece.content == Content::Hole { PAGE } else { found };
        // Neighbouring zeros make longer holes, which is no matter here.
        if let Some((start, end)) = aligned(piece, align) {
            assert!(is_hole(&file, start, end), "{piece:?} is allocated in {}", target.display());
        }
    }
}

/// Where disks lie in this test.
enum Place {
    Folder(Mounted),
    Device(u32),
}

impl Place {
    fn all() -> Result<Vec<Place>, Skip> {
        require_root()?;
        let mut places = Vec::new();
        for kind in Kind::ALL {
            places.push(Place::Folder(Filesystem::new(kind).mount()?));
        }
        places.extend([Place::Device(512), Place::Device(4096)]);
        Ok(places)
    }

    fn sector(&self) -> u64 {
        match self {
            Place::Folder(_) => 1,
            Place::Device(sector) => u64::from(*sector),
        }
    }
}

/// A disk that was made in a place; a device goes with it.
struct Disk {
    path: PathBuf,
    device: Option<LoopDevice>,
}

fn device(sector: u32, size: u64) -> Result<Disk, Skip> {
    let device = LoopOptions::default().sector_size(sector).sparse(size)?;
    Ok(Disk { path: device.path().to_owned(), device: Some(device) })
}

fn source_in(place: &Place, layout: &Layout) -> Result<Disk, Skip> {
    let disk = match place {
        Place::Folder(folder) => Disk { path: folder.file("source"), device: None },
        Place::Device(sector) => device(*sector, layout.size())?,
    };
    layout.write(&disk.path).unwrap();
    Ok(disk)
}

/// A target and whether it needs `--force`: new, empty, smaller, as large or larger, and full of other bytes.
fn target_in(place: &Place, size: u64, rng: &mut Rng) -> Result<(Disk, bool), Skip> {
    match place {
        Place::Folder(folder) => {
            let path = folder.file("target");
            let _ = fs::remove_file(&path);
            let old = match rng.range(0..5) {
                0 | 1 => None,
                2 => Some(0),
                3 => Some(rng.range(0..size + 1)),
                _ => Some(size + rng.magnitude(1..MIB)),
            };
            if let Some(old) = old {
                pattern(&path, old);
            }
            Ok((Disk { path, device: None }, old.is_some_and(|old| old > 0)))
        }
        Place::Device(sector) => {
            let sector = u64::from(*sector);
            let larger = if rng.chance(50) { rng.magnitude(1..MIB) } else { 0 };
            let disk = device(sector as u32, (size + larger).next_multiple_of(sector).max(sector))?;
            let whole = size_of(&File::open(&disk.path).unwrap()).unwrap();
            pattern(&disk.path, whole);
            Ok((disk, true))
        }
    }
}

/// Flags at random, and what of them the checks need: `--sparse`, and whether zeros are looked for in it.
fn flags(rng: &mut Rng) -> (String, &'static str, bool) {
    let sparse = *rng.pick(&["auto", "auto", "never", "always"]);
    let block = *rng.pick(&[4, 8, 64, 68, 128, 256, 1024, 1024, 4096]);
    let flags = format!(
        "--backend {} --direct {} --sparse {sparse} --block-size {block}K --queue-depth {} --workers {}{}",
        rng.pick(&["io_uring", "sync"]),
        rng.pick(&["auto", "auto", "off"]),
        rng.pick(&[1, 2, 3, 8, 32]),
        rng.range(1..5),
        rng.pick(&["", " --verify", " --offload never"]),
    );
    // Zeros are found in whole granules of one request.
    let found = if sparse == "always" { true } else { block >= 64 && block % 64 == 0 };
    (flags, sparse, found)
}

#[test]
fn every_place_to_every_place() {
    let mut rng = Rng::new(seed("every_place_to_every_place"));
    let places = need!(Place::all());
    for from in &places {
        for to in &places {
            for _ in 0..rounds(1) {
                let layout_seed = rng.bits() >> 32;
                let size = rng.magnitude(1..6 * MIB).max(from.sector());
                let align = from.sector().max(*rng.pick(&[1, 1, 512, PAGE]));
                let many = rng.chance(30);
                let piece = if many { 1..3 * PAGE } else { 1..size / 4 + 2 };
                let shape = Shape { size: size..size + 1, piece, pieces_max: 400, align };
                let layout = Layout::random(layout_seed, &shape);
                let source = need!(source_in(from, &layout));
                let (target, force) = need!(target_in(to, layout.size(), &mut rng));
                let (mut flags, sparse, found) = flags(&mut rng);
                if force {
                    flags += " --force";
                }
                let outcome = copy(&source.path, &target.path, &flags).run();
                outcome.assert_code(0);
                let result = outcome.result();
                assert_eq!(
                    (&result["status"], &result["moved"]["copied_bytes"]),
                    (&"done".into(), &0.into())
                );
                assert_eq!(result["pairs"][0]["flushed"], true, "{outcome}");
                if flags.contains("--verify") {
                    assert_eq!(result["pairs"][0]["verified"], true, "{outcome}");
                    assert_eq!(result["moved"]["verified_bytes"], layout.size(), "{outcome}");
                }
                let found_difference = layout.check(&target.path).unwrap();
                assert!(
                    found_difference.is_none(),
                    "{found_difference:?} {layout_seed} {shape:?}\n{outcome}"
                );
                if target.device.is_some() {
                    assert_pattern_from(&target.path, layout.size());
                } else if sparse == "never" || found {
                    let offloaded = result["moved"]["offloaded_bytes"] != 0;
                    if !offloaded {
                        assert_allocation(&layout, &target.path, sparse, from.sector() == 1);
                    }
                }
            }
        }
    }
}

#[test]
fn sizes_that_are_no_multiple_of_anything() {
    let scratch = ScratchDir::new();
    let memory = ScratchDir::in_memory();
    for size in [0, 1, 511, 512, 513, 4095, 4097, 65535, MIB - 1, MIB, MIB + 1, 2 * MIB + 4095] {
        let zeros = size / 3;
        let layout = Layout::of(size, &[(size - zeros, Content::Data), (zeros, Content::Zero)]);
        let (disk, shm) = (scratch.file("source"), memory.file("source"));
        layout.write(&disk).unwrap();
        layout.write(&shm).unwrap();
        for (backend, direct) in
            [("io_uring", "auto"), ("io_uring", "off"), ("sync", "auto"), ("sync", "off")]
        {
            let folder = if direct == "off" { &memory } else { &scratch };
            let target = folder.file(&format!("{backend}-{direct}-{size}"));
            let source = if backend == "sync" { &shm } else { &disk };
            let flags = format!("--backend {backend} --direct {direct}");
            copy(source, &target, &flags).run().assert_code(0);
            layout.assert_on(&target);
            // An empty file is nothing to be overwritten.
            let again = copy(source, &target, &flags).run();
            again.assert_code(if size == 0 { 0 } else { 5 });
            layout.assert_on(&target);
        }
    }
}

#[test]
fn holes_at_both_ends_and_everywhere() {
    let scratch = ScratchDir::new();
    let hole = |len: u64| (len, Content::Hole);
    let bytes = |len: u64| (len, Content::Data);
    let zero = |len: u64| (len, Content::Zero);
    let comb: Vec<_> =
        (0..2000).map(|i| if i % 2 == 0 { bytes(PAGE) } else { hole(PAGE * (1 + i % 3)) }).collect();
    let layouts = [
        vec![hole(5 * MIB)],
        vec![hole(3 * MIB), bytes(PAGE), hole(3 * MIB + 5)],
        vec![zero(2 * MIB + 77)],
        vec![hole(1), bytes(1), hole(MIB)],
        vec![bytes(MIB), zero(64 * KIB), bytes(1), zero(64 * KIB - 1), bytes(7), zero(PAGE), hole(13)],
        comb,
    ];
    for (index, pieces) in layouts.iter().enumerate() {
        let layout = Layout::of(index as u64, pieces);
        let (source, target) = (scratch.file("source"), scratch.file("target"));
        layout.write(&source).unwrap();
        for sparse in ["auto", "always", "never"] {
            for old in [0, layout.size() + 3 * PAGE] {
                let _ = fs::remove_file(&target);
                if old > 0 {
                    pattern(&target, old);
                }
                let outcome = copy(&source, &target, &format!("--sparse {sparse} --force --verify")).run();
                outcome.assert_code(0);
                assert_same(&source, &target);
                layout.assert_on(&target);
                assert_allocation(&layout, &target, sparse, true);
            }
        }
    }
}

#[test]
fn a_disk_of_tebibytes_that_holds_little_takes_little() {
    let scratch = ScratchDir::new();
    let layout = Layout::of(
        3,
        &[
            (MIB, Content::Data),
            (6 << 40, Content::Hole),
            (MIB, Content::Data),
            ((2 << 40) + 5, Content::Hole),
            (8 * KIB, Content::Data),
        ],
    );
    let (source, target) = (scratch.file("source"), scratch.file("target"));
    layout.write(&source).unwrap();
    let outcome = copy(&source, &target, "").run();
    outcome.assert_code(0);
    assert_same(&source, &target);
    assert!(outcome.wall < Duration::from_secs(10), "{outcome}");
    assert!(outcome.peak_rss_bytes < 40 * MIB, "{} bytes of memory", outcome.peak_rss_bytes);
}

// ---- streams -----------------------------------------------------------------------------------------------

fn bytes_of(layout: &Layout) -> Vec<u8> {
    let mut bytes = vec![0; layout.size() as usize];
    layout.fill(0, &mut bytes);
    bytes
}

#[test]
fn stdin_to_files_and_devices() {
    let mut rng = Rng::new(seed("stdin_to_files_and_devices"));
    let scratch = ScratchDir::new();
    let sectors: &[u32] = if require_root().is_ok() { &[1, 512, 4096] } else { &[1] };
    for size in [0, 1, 511, 4095, 65537, MIB, 3 * MIB + 64 * KIB + 123] {
        let layout =
            Layout::random(rng.bits() >> 32, &Shape { size: size..size + 1, ..Shape::file(size.max(1)) });
        // The shape makes no empty disk.
        let bytes = if size == 0 { Vec::new() } else { bytes_of(&layout) };
        let size = bytes.len() as u64;
        for &sector in sectors {
            for backend in ["io_uring", "sync"] {
                let sparse = *rng.pick(&["auto", "always", "never"]);
                let block = *rng.pick(&[4, 64, 1024]);
                let flags = format!("--backend {backend} --sparse {sparse} --block-size {block}K --force");
                let room = (size + 3 * 4096).next_multiple_of(4096);
                let target = if sector == 1 {
                    let path = scratch.file(&format!("{backend}-{size}"));
                    if rng.chance(50) {
                        pattern(&path, room);
                    }
                    Disk { path, device: None }
                } else {
                    let disk = need!(device(sector, room));
                    pattern(&disk.path, room);
                    disk
                };
                let flags = flags + *rng.pick(&["", " --verify"]);
                let outcome = copy("-", &target.path, &flags).stdin(bytes.clone()).run();
                outcome.assert_code(0);
                assert_eq!(outcome.result()["pairs"][0]["size"], size, "{outcome}");
                let mut found = vec![0; bytes.len()];
                let file = File::open(&target.path).unwrap();
                file.read_exact_at(&mut found, 0).unwrap();
                assert!(found == bytes, "{outcome}");
                if sector == 1 {
                    assert_eq!(file.metadata().unwrap().len(), size, "{outcome}");
                } else {
                    // The last sector is filled up with zeros, what follows is not touched.
                    assert_pattern_from(&target.path, size.next_multiple_of(4096));
                }
            }
        }
    }
}

#[test]
fn files_devices_and_nothing_to_stdout() {
    let mut rng = Rng::new(seed("files_devices_and_nothing_to_stdout"));
    let scratch = ScratchDir::new();
    for size in [0, 1, 511, 4095, 65537, MIB, 5 * MIB + 12345] {
        for backend in ["io_uring", "sync"] {
            let layout =
                Layout::random(rng.bits() >> 32, &Shape { size: size..size + 1, ..Shape::file(size.max(1)) });
            let source = scratch.file("source");
            let bytes = if size == 0 { Vec::new() } else { bytes_of(&layout) };
            if size == 0 {
                fs::write(&source, "").unwrap();
            } else {
                layout.write(&source).unwrap();
            }
            let block = *rng.pick(&[4, 64, 1024]);
            let flags = format!("--backend {backend} --block-size {block}K");
            let outcome = copy(&source, "-", &flags).run();
            assert!(outcome.code == Some(0) && outcome.stdout == bytes, "{outcome}");
            let result = outcome.json_lines_stderr().pop().unwrap();
            assert_eq!((&result["type"], &result["exit_code"]), (&"result".into(), &0.into()), "{outcome}");
            // From pipe to pipe.
            let outcome = copy("-", "-", &flags).stdin(bytes.clone()).run();
            assert!(outcome.code == Some(0) && outcome.stdout == bytes, "{outcome}");
        }
    }
    let outcome = copy("null:1000001", "-", "").run();
    assert!(outcome.code == Some(0) && outcome.stdout == vec![0; 1_000_001], "{outcome}");

    let layout = Layout::random(
        rng.bits() >> 32,
        &Shape { size: 4 * MIB..4 * MIB + 1, ..Shape::device(4 * MIB, 4096) },
    );
    for sector in [512, 4096] {
        let source = need!(device(sector, layout.size()));
        layout.write(&source.path).unwrap();
        let outcome = copy(&source.path, "-", "").run();
        assert!(outcome.code == Some(0) && outcome.stdout == bytes_of(&layout), "{outcome}");
    }
}

#[test]
fn zeros_from_null_and_everything_to_null() {
    let scratch = ScratchDir::new();
    let target = scratch.file("target");
    copy("null:3000001", &target, "").run().assert_code(0);
    assert_eq!(fs::read(&target).unwrap(), vec![0; 3_000_001]);
    assert_eq!(fs::metadata(&target).unwrap().blocks(), 0);
    pattern(&target, 5_000_000);
    copy("null:3000001", &target, "--force --sparse never").run().assert_code(0);
    assert_eq!(fs::read(&target).unwrap(), vec![0; 3_000_001]);

    let layout = Layout::random(7, &Shape::file(4 * MIB));
    layout.write(&target).unwrap();
    let outcome = copy(&target, "null:", "--digest-out").argument(scratch.file("digests")).run();
    outcome.assert_code(0);
    assert_digests(&scratch.file("digests"), &[&layout]);
    copy(&target, format!("null:{}", layout.size() - 1), "").run().assert_code(5);
    copy("null:", &target, "--force").run().assert_code(2);

    let disk = need!(device(512, 4 * MIB));
    pattern(&disk.path, 4 * MIB);
    copy("null:3M", &disk.path, "--force --verify").run().assert_code(0);
    Layout::of(0, &[(3 * MIB, Content::Zero)]).assert_on(&disk.path);
    assert_pattern_from(&disk.path, 3 * MIB);
}

/// A source with allocation finer than O_DIRECT's unit there: its extents have rims, and a stream has no
/// place to put them later.
#[test]
fn fine_allocation_below_a_coarse_unit_goes_to_a_pipe_in_order() {
    use mover_tests::faulty::FaultyFile;
    // mke2fs gives small filesystems blocks of 1 KiB.
    let fine = need!(Filesystem::ext4().small().mount());
    let some =
        [(KIB, Content::Hole), (9 * KIB, Content::Data), (6 * KIB, Content::Hole), (11 * KIB, Content::Data)];
    let pieces: Vec<_> = (0..20).flat_map(|_| some).collect();
    let layout = Layout::of(11, &pieces);
    layout.write(&fine.file("disk")).unwrap();
    let coarse = need!(FaultyFile::over(&fine.file("disk")));
    let scratch = ScratchDir::new();
    copy(coarse.path(), scratch.file("target"), "--direct required").run().assert_code(0);
    layout.assert_on(&scratch.file("target"));
    for backend in ["io_uring", "sync"] {
        let run = copy(coarse.path(), "-", &format!("--direct required --backend {backend}"));
        let outcome = run.limit(Duration::from_secs(10)).run();
        assert!(outcome.code == Some(0) && outcome.stdout == bytes_of(&layout), "{outcome}");
    }
}

#[test]
fn named_pipes_are_streams() {
    let mkfifo = need!(require_tool("mkfifo"));
    let scratch = ScratchDir::new();
    let pipe = scratch.file("pipe");
    Run::program(mkfifo).argument(&pipe).run().assert_code(0);
    let layout = Layout::random(seed("named_pipes_are_streams"), &Shape::file(3 * MIB));
    let (source, target) = (scratch.file("source"), scratch.file("target"));
    layout.write(&source).unwrap();
    let writer = copy(&source, &pipe, "").start();
    copy(&pipe, &target, "--verify").run().assert_code(0);
    writer.wait().assert_code(0);
    layout.assert_on(&target);

    let list = scratch.write("list", r#"[{"start":4096,"length":1,"kind":"data"}]"#);
    let lists = format!("--extents {}", list.display());
    for flags in [lists.as_str(), "--verify", "--on-read-error record"] {
        // Holds the other end, so that opening it does not wait.
        let other = OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
        let outcome = copy(&source, &pipe, flags).limit(Duration::from_secs(10)).run();
        outcome.assert_code(2);
        if flags == lists {
            copy(&pipe, &target, &format!("--force {flags}")).run().assert_code(2);
        }
        drop(other);
    }
    layout.assert_on(&target);
}

// ---- lists of extents --------------------------------------------------------------------------------------

/// Random extents of a disk, none touching another, with their kind.
fn random_list(rng: &mut Rng, size: u64, align: u64) -> Vec<(u64, u64, &'static str)> {
    let mut list = Vec::new();
    let mut position = 0;
    while list.len() < 60 {
        let start = (position + rng.magnitude(1..size / 8)).next_multiple_of(align);
        let length = rng.magnitude(1..size / 8).next_multiple_of(align);
        if start + length > size {
            break;
        }
        list.push((start, length, *rng.pick(&["data", "data", "zero", "hole"])));
        position = start + length + align;
    }
    list
}

fn write_list(path: &Path, list: &[(u64, u64, &str)]) {
    let entry = |&(start, length, kind): &(u64, u64, &str)| serde_json::json!({"start": start, "length": length, "kind": kind});
    let entries: Vec<Value> = list.iter().map(entry).collect();
    let list = serde_json::json!({"format": "mover-extents", "version": 1, "extents": entries});
    fs::write(path, list.to_string()).unwrap();
}

#[test]
fn a_list_of_extents_changes_those_and_nothing_else() {
    let mut rng = Rng::new(seed("a_list_of_extents_changes_those_and_nothing_else"));
    let places = need!(Place::all());
    let scratch = ScratchDir::new();
    let size = 3 * MIB;
    for from in &places {
        for to in places.iter() {
            let layout_seed = rng.bits() >> 32;
            let layout =
                Layout::random(layout_seed, &Shape { size: size..size + 1, ..Shape::device(size, 4096) });
            let source = need!(source_in(from, &layout));
            let target = match to {
                Place::Folder(folder) => Disk { path: folder.file("target"), device: None },
                Place::Device(sector) => need!(device(*sector, size)),
            };
            pattern(&target.path, size);
            let align = *rng.pick(&[1, 1, 512, PAGE]);
            let mut list = random_list(&mut rng, size, align);
            let mut expected = vec![0; size as usize];
            data(PATTERN, 0, &mut expected);
            for &(start, length, kind) in &list {
                let part = &mut expected[start as usize..(start + length) as usize];
                if kind == "data" { layout.fill(start, part) } else { part.fill(0) }
            }
            if rng.chance(30) {
                list.reverse();
            }
            let file = scratch.file("list");
            write_list(&file, &list);
            let flags = format!(
                "--force --backend {} --direct {} --workers {} --block-size {}K --sparse {}{} --extents",
                rng.pick(&["io_uring", "sync"]),
                rng.pick(&["auto", "auto", "off"]),
                rng.range(1..5),
                rng.pick(&[4, 64, 1024]),
                rng.pick(&["auto", "never", "always"]),
                rng.pick(&["", " --verify"]),
            );
            let outcome = copy(&source.path, &target.path, &flags).argument(&file).run();
            outcome.assert_code(0);
            if matches!(to, Place::Device(_)) {
                assert_eq!(outcome.result()["degraded"], serde_json::json!([]), "{outcome}");
            }
            let mut found = vec![0; size as usize];
            let target = File::open(&target.path).unwrap();
            assert_eq!(size_of(&target).unwrap(), size);
            target.read_exact_at(&mut found, 0).unwrap();
            let differs = found.iter().zip(&expected).position(|(found, right)| found != right);
            assert_eq!(differs, None, "layout {layout_seed}, list {list:?}\n{outcome}");
        }
    }
}

#[test]
fn the_map_of_qemu_img_is_a_list_of_extents() {
    let qemu_img = need!(require_tool("qemu-img"));
    let scratch = ScratchDir::new();
    let layout = Layout::random(
        seed("the_map_of_qemu_img_is_a_list_of_extents"),
        &Shape { align: 512, ..Shape::file(4 * MIB) },
    );
    let (source, target) = (scratch.file("source"), scratch.file("target"));
    layout.write(&source).unwrap();
    let map = Run::program(qemu_img).arguments(["map", "--output=json", "-f", "raw"]).argument(&source).run();
    map.assert_code(0);
    let list = scratch.write("list", &map.stdout);
    pattern(&target, layout.size());
    let outcome = copy(&source, &target, "--force --verify --extents").argument(&list).run();
    outcome.assert_code(0);
    layout.assert_on(&target);
    assert!(outcome.events("choice").iter().any(|choice| choice["about"] == "extents"), "{outcome}");
}

// ---- several pairs, offload, digests, rate -----------------------------------------------------------------

#[test]
fn several_pairs_in_one_run() {
    let mut rng = Rng::new(seed("several_pairs_in_one_run"));
    let scratch = ScratchDir::new();
    let memory = ScratchDir::in_memory();
    for backend in ["io_uring", "sync"] {
        let layouts: Vec<_> =
            (0..5).map(|_| Layout::random(rng.bits() >> 32, &Shape::file(3 * MIB))).collect();
        let digests = scratch.file("digests");
        let mut run =
            Run::mover(["copy", "--json", "--verify", "--force", "--workers", "3", "--backend", backend])
                .argument("--digest-out")
                .argument(&digests);
        let mut targets = Vec::new();
        for (index, layout) in layouts.iter().enumerate() {
            let (from, to) = if index % 2 == 0 { (&scratch, &memory) } else { (&memory, &scratch) };
            let (source, target) = (from.file(&format!("s{index}")), to.file(&format!("t{index}")));
            layout.write(&source).unwrap();
            run = run.argument(source).argument(&target);
            targets.push(target);
        }
        let outcome = run.run();
        outcome.assert_code(0);
        layouts.iter().zip(&targets).for_each(|(layout, target)| layout.assert_on(target));
        let result = outcome.result();
        assert_eq!(result["pairs"].as_array().unwrap().len(), layouts.len());
        assert_digests(&digests, &layouts.iter().collect::<Vec<_>>());
    }
}

#[test]
fn one_pair_that_fails_leaves_the_others_alone() {
    let scratch = ScratchDir::new();
    let small = need!(Filesystem::tmpfs().size(MIB).mount());
    let layout = Layout::of(1, &[(8 * MIB, Content::Data)]);
    layout.write(&scratch.file("source")).unwrap();
    let run = Run::mover(["copy", "--json"]).argument(scratch.file("source")).argument(small.file("target"));
    let outcome = run.argument(scratch.file("source")).argument(scratch.file("target")).run();
    outcome.assert_code(10);
    let result = outcome.result();
    assert_eq!(
        (&result["pairs"][0]["status"], &result["pairs"][1]["status"]),
        (&"failed".into(), &"done".into())
    );
    assert_eq!(result["error"]["kind"], "full", "{outcome}");
    layout.assert_on(&scratch.file("target"));
}

#[test]
fn reflinks_share_the_blocks() {
    for kind in [Kind::Xfs, Kind::Btrfs] {
        let folder = need!(Filesystem::new(kind).mount());
        let layout =
            Layout::of(9, &[(MIB, Content::Hole), (32 * MIB, Content::Data), (5 * MIB + 77, Content::Hole)]);
        layout.write(&folder.file("source")).unwrap();
        let free = folder.free_bytes();
        for (name, flags, old) in
            [("new", "--offload always", 0), ("old", "--offload always --force", 50 * MIB)]
        {
            if old > 0 {
                pattern(&folder.file(name), old);
            }
            let outcome = copy(folder.file("source"), folder.file(name), flags).run();
            outcome.assert_code(0);
            let moved = &outcome.result()["moved"];
            assert_eq!((&moved["read_bytes"], &moved["offloaded_bytes"]), (&0.into(), &layout.size().into()));
            layout.assert_on(&folder.file(name));
        }
        copy(folder.file("source"), folder.file("auto"), "").run().assert_code(0);
        layout.assert_on(&folder.file("auto"));
        let spent = free.saturating_sub(folder.free_bytes());
        // Three times 32 MiB, were they not shared; btrfs takes some for its own use.
        assert!(spent < 48 * MIB, "three copies of 32 MiB took {spent} bytes on {kind:?}");
        // A written byte of the copy is the copy's own.
        OpenOptions::new().write(true).open(folder.file("new")).unwrap().write_all_at(b"x", 2 * MIB).unwrap();
        layout.assert_on(&folder.file("source"));
    }
}

#[test]
fn offload_without_reflink_still_makes_an_equal_copy_or_says_no() {
    let folder = need!(Filesystem::ext4().mount());
    let other = need!(Filesystem::xfs().mount());
    let layout = Layout::of(
        4,
        &[(MIB, Content::Hole), (MIB + 5, Content::Data), (MIB, Content::Hole), (7, Content::Data)],
    );
    layout.write(&folder.file("source")).unwrap();
    for old in [0, 2 * MIB, 9 * MIB] {
        let target = folder.file(&format!("target{old}"));
        if old > 0 {
            pattern(&target, old);
        }
        let outcome = copy(folder.file("source"), &target, "--offload always --force").run();
        outcome.assert_code(0);
        assert_ne!(outcome.result()["moved"]["offloaded_bytes"], 0, "{outcome}");
        layout.assert_on(&target);
    }
    let outcome = copy(folder.file("source"), other.file("target"), "--offload always").run();
    outcome.assert_code(1);
    assert_eq!(outcome.result()["error"]["kind"], "downgrade", "{outcome}");
    copy(folder.file("source"), other.file("second"), "--offload auto").run().assert_code(0);
    layout.assert_on(&other.file("second"));
}

/// Reads a file of digests and checks it against the layouts: each byte covered once, each digest right.
fn assert_digests(path: &Path, layouts: &[&Layout]) {
    let text = fs::read_to_string(path).unwrap();
    let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let header = lines.next().unwrap();
    assert_eq!((&header["format"], &header["algorithm"]), (&"mover-digests".into(), &"xxh3-128".into()));
    let mut covered = vec![0; layouts.len()];
    for line in lines {
        let pair = line["pair"].as_u64().unwrap() as usize;
        let (start, length) = (line["start"].as_u64().unwrap(), line["length"].as_u64().unwrap());
        assert_eq!(start, covered[pair], "in order and without gaps: {line}");
        covered[pair] += length;
        let mut bytes = vec![0; length as usize];
        layouts[pair].fill(start, &mut bytes);
        if line["zero"] == true {
            assert!(bytes.iter().all(|byte| *byte == 0), "{line}");
        } else {
            assert_eq!(line["xxh3_128"], format!("{:032x}", xxh3_128(&bytes)), "{line}");
        }
    }
    let sizes: Vec<_> = layouts.iter().map(|layout| layout.size()).collect();
    assert_eq!(covered, sizes);
}

#[test]
fn digests_are_those_of_the_bytes() {
    let mut rng = Rng::new(seed("digests_are_those_of_the_bytes"));
    let scratch = ScratchDir::new();
    for backend in ["io_uring", "sync"] {
        for block in [4, 64, 1024] {
            let layout = Layout::random(rng.bits() >> 32, &Shape::file(4 * MIB));
            let (source, target) = (scratch.file("source"), scratch.file("target"));
            layout.write(&source).unwrap();
            let flags = format!("--backend {backend} --block-size {block}K --workers 3 --force --digest-out");
            copy(&source, &target, &flags).argument(scratch.file("digests")).run().assert_code(0);
            layout.assert_on(&target);
            assert_digests(&scratch.file("digests"), &[&layout]);
            let run = copy("-", &target, &flags).argument(scratch.file("digests"));
            run.stdin(bytes_of(&layout)).run().assert_code(0);
            assert_digests(&scratch.file("digests"), &[&layout]);
        }
    }
}

#[test]
fn a_bad_place_for_digests_is_told_before_anything_moves() {
    let scratch = ScratchDir::new();
    let source = scratch.write("source", "content");
    for (place, code) in [(scratch.file("none/digests"), 10), (scratch.path().to_owned(), 2)] {
        let outcome = copy(&source, scratch.file("target"), "--digest-out").argument(&place).run();
        outcome.assert_code(code);
        assert_eq!(outcome.result()["error"]["path"], place.to_str().unwrap(), "{outcome}");
        assert!(!scratch.file("target").exists());
    }
}

#[test]
fn a_rate_is_kept() {
    let scratch = ScratchDir::in_memory();
    let layout = Layout::of(2, &[(24 * MIB, Content::Data), (500 * MIB, Content::Hole)]);
    layout.write(&scratch.file("source")).unwrap();
    for backend in ["io_uring", "sync"] {
        let flags = format!("--rate 16M --force --backend {backend}");
        let outcome = copy(scratch.file("source"), scratch.file("target"), &flags).run();
        outcome.assert_code(0);
        let seconds = outcome.wall.as_secs_f64();
        // 1.5 s, less the burst; the upper bound is for a loaded machine.
        assert!((1.2..6.0).contains(&seconds), "{seconds} s for 24 MiB at 16 MiB/s");
        assert_same(&scratch.file("source"), &scratch.file("target"));
    }
}
