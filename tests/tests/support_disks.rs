//! The support crate proves itself: faulty files and devices, loop devices, scratch filesystems.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mover_tests::compare::{assert_same, size_of};
use mover_tests::fault::{Fault, Op, Request};
use mover_tests::faulty::FaultyFile;
use mover_tests::layout::{Content, Layout, Shape};
use mover_tests::need;
use mover_tests::process::Run;
use mover_tests::rng::seed;
use mover_tests::scratch::{PLACE_VARIABLE, ScratchDir};
use mover_tests::volume::{Filesystem, Kind, LoopDevice, LoopOptions};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn open_direct(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).unwrap()
}

fn errno<T>(result: io::Result<T>) -> i32 {
    result.map_or_else(|error| error.raw_os_error().unwrap(), |_| 0)
}

/// A page with the alignment that O_DIRECT asks for.
#[repr(align(4096))]
struct Page([u8; 4096]);

#[test]
fn a_read_fails_exactly_where_it_is_told_to() {
    let faulty = need!(FaultyFile::memory(MIB));
    let layout = Layout::of(5, &[(MIB, Content::Data)]);
    layout.write_to(faulty.backing(), false).unwrap();
    layout.assert_on(&faulty.path());

    let file = open(&faulty.path());
    let id = faulty.faults().add(Fault::errno(libc::EIO).on_reads().range(10_000..10_512));
    let read = |offset: u64, len: usize| errno(file.read_exact_at(&mut vec![0; len], offset));
    assert_eq!(read(0, 10_000), 0);
    assert_eq!(read(0, 10_001), libc::EIO);
    assert_eq!(read(10_511, 1), libc::EIO);
    assert_eq!(read(10_512, 4096), 0);
    assert_eq!(read(9_000, 100_000), libc::EIO);
    assert_eq!(errno(file.write_all_at(&[0; 512], 10_000)), 0, "writes are not meant");
    assert_eq!(faulty.faults().remove(id), 3);
    assert_eq!(read(10_000, 512), 0, "sound again");
}

#[test]
fn a_write_fails_exactly_where_it_is_told_to() {
    let faulty = need!(FaultyFile::memory(MIB));
    faulty.faults().add(Fault::errno(libc::ENOSPC).on_writes().range(64 * KIB..u64::MAX));
    let file = open(&faulty.path());
    assert_eq!(errno(file.write_all_at(&[1; 4096], 60 * KIB)), 0);
    assert_eq!(errno(file.write_all_at(&[1; 4097], 60 * KIB)), libc::ENOSPC);
    let mut byte = [0; 2];
    faulty.backing().read_exact_at(&mut byte, 64 * KIB - 1).unwrap();
    assert_eq!(byte, [1, 0]);
    faulty.faults().clear();
    faulty.faults().add(Fault::errno(libc::EIO).on(&[Op::Sync]));
    assert_eq!(errno(file.sync_all()), libc::EIO);
    assert_eq!(errno(file.write_all_at(&[1; 4096], 64 * KIB)), 0);
}

#[test]
fn faults_can_wait_and_end() {
    let faulty = need!(FaultyFile::memory(MIB));
    let file = open(&faulty.path());
    faulty.faults().add(Fault::errno(libc::EIO).on_reads().after(2).times(1));
    let results: Vec<i32> = (0..5).map(|_| errno(file.read_exact_at(&mut [0; 512], 0))).collect();
    assert_eq!(results, [0, 0, libc::EIO, 0, 0]);
}

#[test]
fn transfers_can_be_short_late_damaged_or_lost() {
    let faulty = need!(FaultyFile::memory(MIB));
    let file = open(&faulty.path());
    let faults = faulty.faults();
    faults.add(Fault::short(100));
    assert_eq!(file.read_at(&mut [0; 4096], 0).unwrap(), 100);
    assert_eq!(file.write_at(&[1; 4096], 0).unwrap(), 100);
    faults.clear();

    faults.add(Fault::flip().on_reads().range(4096..4097));
    let mut bytes = [0; 8192];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!((bytes[4095], bytes[4096], bytes[4097]), (0, 0xFF, 0));
    faults.clear();

    faults.add(Fault::lose().range(8192..8193));
    file.write_all_at(&[9; 512], 8192).unwrap();
    file.write_all_at(&[9; 512], 8704).unwrap();
    file.read_exact_at(&mut bytes, 8192).unwrap();
    assert_eq!((bytes[0], bytes[512]), (0, 9));
    faults.clear();

    let delay = faults.add(Fault::delay(Duration::from_millis(60)).on_reads());
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| file.read_exact_at(&mut [0; 512], 0).unwrap());
        }
    });
    assert!(start.elapsed() >= Duration::from_millis(60));
    assert!(faults.counts().inside_max > 1, "delays pass side by side");
    assert_eq!(faults.remove(delay), 4);

    let stuck = faults.add(Fault::delay(Duration::from_secs(600)));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| file.read_exact_at(&mut [0; 512], 0));
        while faults.hits(stuck) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        faults.remove(stuck);
        reader.join().unwrap().unwrap();
    });
}

#[test]
fn requests_are_counted_and_recorded() {
    let faulty = need!(FaultyFile::memory(4 * MIB));
    let file = open_direct(&faulty.path());
    let mut page = Page([3; 4096]);
    faulty.faults().reset();
    faulty.faults().record();
    file.write_all_at(&page.0, 8192).unwrap();
    file.read_exact_at(&mut page.0, 8192).unwrap();
    file.sync_data().unwrap();
    let counts = faulty.faults().counts();
    assert_eq!((counts.reads, counts.read_bytes, counts.writes, counts.write_bytes), (1, 4096, 1, 4096));
    assert_eq!((counts.syncs, counts.faulted, counts.inside_max), (1, 0, 1));
    let at = |op: Op| Request { op, offset: 8192, len: 4096 };
    let recorded = faulty.faults().recorded();
    assert_eq!(recorded[..2], [at(Op::Write), at(Op::Read)]);
    assert_eq!((recorded.len(), recorded[2].op), (3, Op::Sync));
}

#[test]
fn holes_and_size_shine_through() {
    let scratch = ScratchDir::new();
    let path = scratch.file("disk");
    Layout::of(2, &[(MIB, Content::Hole), (4096, Content::Data), (MIB, Content::Hole)]).write(&path).unwrap();
    let faulty = need!(FaultyFile::over(&path));
    assert_same(&path, &faulty.path());
    let file = open(&faulty.path());
    assert_eq!(errno(seek_data(&file, 0)), 0);
    assert_eq!(seek_data(&file, 0).unwrap(), MIB);
    assert_eq!(errno(seek_data(&file, MIB + 4096)), libc::ENXIO);
    faulty.backing().set_len(MIB).unwrap();
    assert_eq!(file.metadata().unwrap().len(), MIB, "a file that shrinks does so at once");
    assert_eq!(file.read_at(&mut [0; 512], MIB).unwrap(), 0);
}

fn seek_data(file: &File, from: u64) -> io::Result<u64> {
    use std::os::fd::AsRawFd;
    // SAFETY: plain integers on a descriptor that the reference keeps open.
    let found = unsafe { libc::lseek(file.as_raw_fd(), from as i64, libc::SEEK_DATA) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

#[test]
fn a_loop_device_shows_the_fault_below() {
    for sector_size in [512, 4096] {
        let faulty = need!(FaultyFile::memory(16 * MIB));
        let layout = Layout::of(9, &[(16 * MIB, Content::Data)]);
        layout.write_to(faulty.backing(), false).unwrap();
        let device = need!(faulty.into_device(LoopOptions::default().sector_size(sector_size)));
        layout.assert_on(device.path());

        let file = open_direct(device.path());
        device.faults().add(Fault::errno(libc::EIO).range(MIB..MIB + 4096));
        let mut page = Page([0; 4096]);
        assert_eq!(errno(file.read_exact_at(&mut page.0, MIB - 4096)), 0);
        assert_eq!(errno(file.read_exact_at(&mut page.0, MIB)), libc::EIO);
        assert_eq!(errno(file.write_all_at(&page.0, MIB)), libc::EIO);
        assert_eq!(errno(file.read_exact_at(&mut page.0, MIB + 4096)), 0);
        device.faults().clear();
        device.faults().add(Fault::errno(libc::ENOSPC).on_writes());
        assert_eq!(errno(file.write_all_at(&page.0, 0)), libc::ENOSPC);
        let unaligned = errno(file.read_exact_at(&mut page.0[..512], 512));
        assert_eq!(unaligned, if sector_size == 512 { 0 } else { libc::EINVAL });
    }
}

#[test]
fn all_is_taken_down_also_after_a_panic() {
    let mut left = Vec::new();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let device = FaultyFile::memory(MIB)?.into_device(LoopOptions::default())?;
        left.push(device.file().path());
        left.push(Path::new("/sys/block").join(device.path().file_name().unwrap()).join("loop/backing_file"));
        device.faults().add(Fault::delay(Duration::from_secs(600)));
        let filesystem = Filesystem::tmpfs().small().mount()?;
        left.push(filesystem.path().to_owned());
        assert!(left.iter().all(|path| path.exists()));
        std::panic::resume_unwind(Box::new("on purpose"));
        #[expect(unreachable_code, reason = "names the type of the error")]
        Ok::<(), mover_tests::Skip>(())
    }));
    if let Ok(skipped) = result {
        return need!(skipped);
    }
    assert_eq!(left.len(), 3);
    let (file, device, filesystem) = (&left[0], &left[1], &left[2]);
    // Another test may have the loop device by now, but never on this file.
    let backing = fs::read_to_string(device).unwrap_or_default();
    assert!(!backing.starts_with(file.to_str().unwrap()) && backing.trim() != "/disk.img", "{backing}");
    assert!(!file.exists() && !filesystem.exists());
}

/// The child of the test below: sets up all there is, says so, and waits to be killed.
#[test]
fn child() {
    match std::env::var("MOVER_TEST_CHILD").as_deref() {
        Ok("hold") => {
            let _device = need!(need!(FaultyFile::memory(MIB)).into_device(LoopOptions::default()));
            let _filesystem = need!(Filesystem::ext4().small().mount());
            fs::write(std::env::var_os("MOVER_TEST_READY").unwrap(), "").unwrap();
            std::thread::sleep(Duration::from_secs(60));
        }
        Ok("sweep") => drop(ScratchDir::new()),
        _ => {}
    }
}

#[test]
fn what_a_killed_run_leaves_is_swept_by_the_next() {
    need!(mover_tests::skip::require_root());
    let place = ScratchDir::new();
    let ready = place.file("ready");
    let child = |task: &str| {
        let run =
            Run::program(std::env::current_exe().unwrap()).arguments(["--exact", "child", "--nocapture"]);
        let run = run.variable("MOVER_TEST_CHILD", task).variable("MOVER_TEST_READY", &ready);
        run.variable(PLACE_VARIABLE, place.path())
    };
    let mut running = child("hold").start();
    while !ready.exists() {
        if running.ended_within(Duration::from_millis(20)) {
            let outcome = running.wait();
            outcome.assert_code(0);
            mover_tests::skip!("the child could not set up: {}", outcome.stderr_text().trim());
        }
    }
    running.signal(libc::SIGKILL);
    assert_eq!(running.wait().signal, Some(libc::SIGKILL));

    let left = || fs::read_dir(place.path()).unwrap().flatten().filter(|entry| entry.path().is_dir()).count();
    let mounts =
        || fs::read_to_string("/proc/self/mounts").unwrap().matches(place.path().to_str().unwrap()).count();
    // A device is known by its name and file: its number may be in use by another test later.
    let devices = || {
        let list =
            fs::read_dir("/sys/block").unwrap().flatten().map(|entry| entry.path().join("loop/backing_file"));
        let file = |path: &PathBuf| fs::read_to_string(path).unwrap_or_default();
        list.map(|path| (file(&path), path)).filter(|(file, _)| !file.is_empty()).collect::<Vec<_>>()
    };
    let ours: Vec<_> =
        devices().into_iter().filter(|(file, _)| Path::new(file).starts_with(place.path())).collect();
    assert_eq!((left(), mounts(), ours.len()), (2, 2, 2));
    child("sweep").run().assert_code(0);
    assert_eq!((left(), mounts()), (2, 2), "young folders are left alone");
    for entry in fs::read_dir(place.path()).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        let lock = File::options().write(true).open(entry.path().join(".lock")).unwrap();
        lock.set_modified(std::time::SystemTime::now() - Duration::from_secs(60)).unwrap();
    }
    child("sweep").run().assert_code(0);
    assert_eq!((left(), mounts()), (0, 0));
    // A device that lost its filesystem would show the path within that, or the path and "(deleted)".
    let still = devices().into_iter().filter(|(file, path)| {
        file.trim() == "/disk.img" || ours.iter().any(|our| our.1 == *path && file.starts_with(our.0.trim()))
    });
    assert_eq!(still.collect::<Vec<_>>(), []);
}

#[test]
fn loop_devices_have_the_sectors_asked_for_and_go() {
    let scratch = ScratchDir::new();
    let image = scratch.sparse("disk", 8 * MIB);
    for (sector_size, direct_io) in [(512, true), (512, false), (4096, true)] {
        let device =
            need!(LoopOptions::default().sector_size(sector_size).direct_io(direct_io).attach(&image));
        let attribute = |name: &str| fs::read_to_string(device.attribute(name)).unwrap().trim().to_owned();
        assert_eq!(attribute("queue/logical_block_size"), sector_size.to_string());
        assert_eq!(attribute("loop/dio"), u8::from(direct_io).to_string());
        assert_eq!(size_of(&open(device.path())).unwrap(), 8 * MIB);
    }
    let device = need!(LoopOptions::default().read_only().attach(&image));
    // Opening it for writing is not refused by the kernel; the first write is.
    assert_eq!(errno(open(device.path()).write_all_at(&[0; 4096], 0)), libc::EPERM);
    drop(device);

    let seed = seed("loop_devices_have_the_sectors_asked_for_and_go");
    let layout = Layout::random(seed, &Shape { size: 8 * MIB..8 * MIB + 1, ..Shape::device(8 * MIB, 512) });
    let device = need!(LoopDevice::over(&image));
    layout.write(device.path()).unwrap();
    layout.assert_on(device.path());
    layout.assert_on(&image);
    assert_same(device.path(), &image);
}

#[test]
fn filesystems_can_be_had_and_filled() {
    for kind in Kind::ALL {
        let filesystem = need!(Filesystem::new(kind).small().mount());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let line = format!(" {} {} ", filesystem.path().display(), kind.name());
        assert!(mounts.contains(&line), "{line} in\n{mounts}");

        let seed = seed("filesystems_can_be_had_and_filled");
        let layout = Layout::random(seed, &Shape::file(4 * MIB));
        layout.write(&filesystem.file("disk")).unwrap();
        layout.assert_on(&filesystem.file("disk"));

        filesystem.leave_free(MIB);
        let free = filesystem.free_bytes();
        assert!(free <= 2 * MIB, "{free} bytes free on {kind:?}");
        let file = File::create(filesystem.file("more")).unwrap();
        let filled =
            (0..64).map(|index| file.write_all_at(&vec![1; MIB as usize], index * MIB)).find(Result::is_err);
        let problem = filled.unwrap_or_else(|| file.sync_all());
        assert_eq!(errno(problem), libc::ENOSPC, "{kind:?}");
    }
}
