//! What bad input gets: an error that names path, offset and cause, the exit code of docs/exit-codes.md, and
//! nothing destroyed: every test compares what lay there before with what lies there afterwards.
//!
//! It is in one file, as it is a list: one test for each kind of refusal, in the order of the command line's
//! parts, and they share no more than the checks at the head.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use mover_tests::compare::{assert_same, fingerprint};
use mover_tests::layout::{Content, Layout};
use mover_tests::outcome::Outcome;
use mover_tests::process::{Run, mover_binary};
use mover_tests::scratch::ScratchDir;
use mover_tests::skip::{require_path, require_root, require_tool};
use mover_tests::volume::{Filesystem, LoopDevice, LoopOptions};
use mover_tests::{Skip, need, skip};
use serde_json::{Value, json};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

fn copy<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Run {
    Run::mover(["copy", "--json"]).arguments(arguments)
}

/// The kinds of docs/events.md with their exit codes.
const KINDS: [(&str, i32); 6] =
    [("usage", 2), ("unreachable", 10), ("full", 10), ("refused", 5), ("wrong_identity", 5), ("busy", 9)];

/// Runs to an error of this kind, about this path, in these words. Gives the error's record.
#[track_caller]
fn fails(run: Run, kind: &str, path: Option<&Path>, words: &str) -> Value {
    let outcome = run.run();
    check(&outcome, &outcome.result(), kind, path, words)
}

#[track_caller]
fn check(outcome: &Outcome, result: &Value, kind: &str, path: Option<&Path>, words: &str) -> Value {
    let code = KINDS.iter().find(|(known, _)| *known == kind).unwrap_or_else(|| panic!("{kind}")).1;
    outcome.assert_code(code);
    let error = &result["error"];
    assert_eq!(result["status"], "failed", "{outcome}");
    assert_eq!(result["exit_code"], code, "{outcome}");
    assert_eq!(error["kind"], kind, "{outcome}");
    if let Some(path) = path {
        assert_eq!(error["path"], path.to_string_lossy().as_ref(), "{outcome}");
    }
    let message = error["message"].as_str().unwrap_or_default();
    assert!(message.contains(words), "\"{words}\" expected\n{outcome}");
    for field in ["retryable", "disk", "path", "offset", "errno"] {
        assert!(error.get(field).is_some(), "a field `{field}` expected\n{outcome}");
    }
    let hint = error["hint"].as_str().unwrap_or_default();
    assert!(!hint.is_empty() || error["errno"].is_i64(), "a hint or an errno expected\n{outcome}");
    for field in ["read_bytes", "written_bytes", "zero_bytes", "offloaded_bytes"] {
        assert_eq!(result["moved"][field], 0, "{field}\n{outcome}");
    }
    error.clone()
}

/// Everything below a folder: names, sizes, inodes, modes, times of change, content.
#[derive(Debug, PartialEq)]
struct Seen(BTreeMap<PathBuf, (u64, u64, u32, i64, i64, u128)>);

impl Seen {
    fn below(folder: &Path) -> Seen {
        let mut seen = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let meta = fs::symlink_metadata(&path).unwrap();
                if meta.is_dir() {
                    folders.push(path.clone());
                }
                let content = if meta.is_file() { fingerprint(&path).unwrap() } else { 0 };
                let stamp = (meta.len(), meta.ino(), meta.mode(), meta.mtime(), meta.mtime_nsec(), content);
                // A folder's own time changes when a file comes and goes again, which is allowed.
                let stamp = if meta.is_dir() { (0, meta.ino(), meta.mode(), 0, 0, 0) } else { stamp };
                seen.insert(path, stamp);
            }
        }
        Seen(seen)
    }

    /// Panics unless everything is as it was.
    #[track_caller]
    fn unchanged(&self, folder: &Path) {
        let now = Seen::below(folder);
        for path in now.0.keys() {
            assert!(self.0.contains_key(path), "{} was left behind", path.display());
        }
        for (path, before) in &self.0 {
            assert_eq!(now.0.get(path), Some(before), "{} is not as it was", path.display());
        }
    }
}

/// A file of data.
fn data_file(scratch: &ScratchDir, name: &str, size: u64) -> PathBuf {
    let path = scratch.file(name);
    Layout::of(size ^ name.len() as u64, &[(size, Content::Data)]).write(&path).unwrap();
    path
}

/// A device that is all data.
fn data_device(size: u64) -> Result<LoopDevice, Skip> {
    let device = LoopOptions::default().sparse(size)?;
    Layout::of(77, &[(size, Content::Data)]).write(device.path()).unwrap();
    Ok(device)
}

fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
    file.sync_all().unwrap();
}

fn tool(name: &str, arguments: &[&OsStr]) -> Result<(), Skip> {
    let output = Command::new(require_tool(name)?).args(arguments).output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

// Sources.

#[test]
fn a_source_that_is_not_there() {
    let scratch = ScratchDir::new();
    let (source, target) = (scratch.file("source"), scratch.file("target"));
    let seen = Seen::below(scratch.path());
    let error = fails(copy([&source, &target]), "unreachable", Some(&source), "No such file");
    assert_eq!(
        (&error["errno"], &error["operation"], &error["retryable"]),
        (&json!(2), &json!("open"), &json!(true))
    );
    let broken = scratch.file("broken");
    symlink("nowhere", &broken).unwrap();
    fails(copy([&broken, &target]), "unreachable", Some(&broken), "No such file");
    fs::remove_file(broken).unwrap();
    seen.unchanged(scratch.path());
}

#[test]
fn a_source_that_may_not_be_read() {
    let scratch = ScratchDir::new();
    scratch.open_to_all();
    let source = scratch.write("source", "secret");
    fs::set_permissions(&source, fs::Permissions::from_mode(0o600)).unwrap();
    let target = scratch.file("target");
    let seen = Seen::below(scratch.path());
    let run = need!(copy([&source, &target]).as_ordinary_user(64 * KIB));
    let error = fails(run, "unreachable", Some(&source), "Permission denied");
    assert_eq!(error["errno"], libc::EACCES);
    seen.unchanged(scratch.path());
}

#[test]
fn a_source_that_is_no_disk() {
    let scratch = ScratchDir::new();
    let target = scratch.file("target");
    let seen = Seen::below(scratch.path());
    fails(copy([scratch.path(), &target]), "usage", Some(scratch.path()), "folder");
    let device = Path::new("/dev/zero");
    let error = fails(copy([device, &target]), "usage", Some(device), "no regular file");
    assert!(error["hint"].as_str().unwrap().contains("null:"));
    fails(copy([OsStr::new("null:"), target.as_os_str()]), "usage", None, "needs a size");
    seen.unchanged(scratch.path());
}

// Targets that are there, or cannot be.

#[test]
fn a_file_that_holds_something_is_overwritten_only_when_told() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", 300_000);
    for (name, size) in [("smaller", 1u64), ("equal", 300_000), ("larger", 900_000)] {
        let target = data_file(&scratch, name, size);
        let seen = Seen::below(scratch.path());
        let error = fails(copy([&source, &target]), "refused", Some(&target), "exists and holds");
        assert!(error["hint"].as_str().unwrap().contains("--force"));
        seen.unchanged(scratch.path());
        copy([&source, &target]).argument("--force").run().assert_code(0);
        assert_same(&source, &target);
    }
    // What holds nothing can lose nothing.
    let target = scratch.write("empty", "");
    copy([&source, &target]).run().assert_code(0);
    assert_same(&source, &target);
    // A file that is all hole holds something too: its size, and zeros that someone counts on.
    let target = scratch.sparse("hole", MIB);
    fails(copy([&source, &target]), "refused", Some(&target), "exists and holds");
}

#[test]
fn a_target_that_is_no_disk() {
    let scratch = ScratchDir::new();
    let source = scratch.write("source", "data");
    let seen = Seen::below(scratch.path());
    for force in [&[][..], &["--force"]] {
        fails(copy([&source, scratch.path()]).arguments(force), "usage", Some(scratch.path()), "folder");
        let null = Path::new("/dev/null");
        let error = fails(copy([&source, null]).arguments(force), "usage", Some(null), "no regular file");
        assert!(error["hint"].as_str().unwrap().contains("null:"));
    }
    let target = scratch.file("no/such/folder/target");
    let error = fails(copy([&source, &target]), "unreachable", Some(&target), "No such file");
    assert_eq!(error["errno"], libc::ENOENT);
    let below_a_file = source.join("target");
    fails(copy([&source, &below_a_file]), "unreachable", Some(&below_a_file), "Not a directory");
    seen.unchanged(scratch.path());
}

#[test]
fn a_target_that_may_not_be_written() {
    let scratch = ScratchDir::new();
    scratch.open_to_all();
    let source = scratch.write("source", "data");
    fs::set_permissions(&source, fs::Permissions::from_mode(0o644)).unwrap();
    let theirs = scratch.write("theirs", "");
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o444)).unwrap();
    let folder = scratch.file("folder");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let seen = Seen::below(scratch.path());
    for target in [theirs, folder.join("target")] {
        let run = need!(copy([&source, &target]).as_ordinary_user(64 * KIB));
        fails(run, "unreachable", Some(&target), "Permission denied");
    }
    seen.unchanged(scratch.path());
}

#[test]
fn a_file_that_cannot_have_the_size_is_not_left_behind() {
    let scratch = ScratchDir::new();
    let source = scratch.sparse("source", 8 * MIB);
    let target = scratch.file("target");
    let seen = Seen::below(scratch.path());
    // 2,048 blocks of 512 bytes or of 1 KiB, as shells differ: both are less than the source.
    let limited = |arguments: &[&OsStr]| {
        Run::program("/bin/sh")
            .arguments(["-c", "ulimit -f 2048; exec \"$0\" copy --json \"$@\""])
            .argument(mover_binary())
            .arguments(arguments)
    };
    let error = fails(limited(&[source.as_os_str(), target.as_os_str()]), "full", Some(&target), "too large");
    assert_eq!(error["errno"], libc::EFBIG);
    seen.unchanged(scratch.path());
    // What was there stays.
    let precious = data_file(&scratch, "precious", 64 * KIB);
    let seen = Seen::below(scratch.path());
    let run = limited(&[source.as_os_str(), precious.as_os_str(), OsStr::new("--force")]);
    fails(run, "full", Some(&precious), "too large");
    seen.unchanged(scratch.path());
}

#[test]
fn a_read_only_filesystem_is_refused() {
    let mounted = need!(Filesystem::ext4().small().mount());
    let existing = mounted.file("existing");
    fs::write(&existing, "old").unwrap();
    fs::write(mounted.file("empty"), "").unwrap();
    need!(tool("mount", &["-o".as_ref(), "remount,ro".as_ref(), mounted.path().as_ref()]));
    let scratch = ScratchDir::new();
    let source = scratch.write("source", "data");
    let seen = Seen::below(mounted.path());
    for name in ["new", "empty"] {
        let target = mounted.file(name);
        fails(copy([&source, &target]), "refused", Some(&target), "read-only");
    }
    fails(copy([&source, &existing]).argument("--force"), "refused", Some(&existing), "read-only");
    seen.unchanged(mounted.path());
}

// Devices.

#[test]
fn a_device_with_a_signature_is_overwritten_only_when_told() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", 64 * KIB);
    let size = 4 * MIB;
    let device = need!(LoopOptions::default().sparse(size));
    let magics: [(&str, u64, &[u8]); 9] = [
        ("LVM", 512, b"LABELONE"),
        ("LUKS", 0, b"LUKS\xba\xbe\0\x02"),
        ("GUID partition table", 512, b"EFI PART"),
        ("GUID partition table", size - 512, b"EFI PART"),
        ("partition table", 510, b"\x55\xaa"),
        ("RAID", 4096, b"\xfc\x4e\x2b\xa9"),
        ("ext4", 1080, b"\x53\xef"),
        ("swap", 4086, b"SWAPSPACE2"),
        ("qcow2", 0, b"QFI\xfb\0\0\0\x03"),
    ];
    for (words, offset, magic) in magics {
        Layout::of(1, &[(size, Content::Zero)]).write(device.path()).unwrap();
        write_at(device.path(), offset, magic);
        let before = fingerprint(device.path()).unwrap();
        let error = fails(copy([&source, device.path()]), "refused", Some(device.path()), words);
        assert!(error["hint"].as_str().unwrap().contains("--force"));
        assert_eq!(fingerprint(device.path()).unwrap(), before, "{words}");
        copy([&source, device.path()]).argument("--force").run().assert_code(0);
        let mut arrived = vec![0; 64 << 10];
        File::open(device.path()).unwrap().read_exact_at(&mut arrived, 0).unwrap();
        assert_eq!(arrived, fs::read(&source).unwrap(), "{words}");
    }
    // Where nothing is known, nothing has to be said.
    Layout::of(1, &[(size, Content::Zero)]).write(device.path()).unwrap();
    copy([&source, device.path()]).run().assert_code(0);
}

#[test]
fn a_device_made_by_the_real_tools_is_refused() {
    need!(require_root());
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", 64 * KIB);
    let makers: [(&str, &str, u64, &[&str]); 4] = [
        ("ext4", "mkfs.ext4", 8, &["-q", "-F"]),
        ("xfs", "mkfs.xfs", 300, &["-q", "-f", "-K"]),
        ("btrfs", "mkfs.btrfs", 128, &["-q", "-f", "-K"]),
        ("swap", "mkswap", 8, &[]),
    ];
    let mut done = 0;
    for (words, maker, mib, arguments) in makers {
        let image = scratch.sparse(maker, mib * MIB);
        let mut all: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        all.push(image.as_os_str());
        if let Err(skip) = tool(maker, &all) {
            skip.report();
            continue;
        }
        let device = need!(LoopDevice::over(&image));
        let before = fingerprint(device.path()).unwrap();
        fails(copy([&source, device.path()]), "refused", Some(device.path()), words);
        // A plan of it is no less refused.
        fails(copy([&source, device.path()]).argument("--dry-run"), "refused", Some(device.path()), words);
        assert_eq!(fingerprint(device.path()).unwrap(), before, "{words}");
        done += 1;
    }
    assert!(done > 0, "none of the tools is here");
}

#[test]
fn a_mounted_device_is_always_refused() {
    let mounted = need!(Filesystem::ext4().small().mount());
    fs::write(mounted.file("precious"), vec![7; 100_000]).unwrap();
    need!(tool("sync", &["-f".as_ref(), mounted.path().as_ref()]));
    let device = mounted.device().unwrap().path();
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", MIB);
    let seen = Seen::below(mounted.path());
    for arguments in [&[][..], &["--force"], &["--force", "--direct", "off"], &["--force", "--dry-run"]] {
        let begin = Instant::now();
        let run = copy([&source, device]).arguments(arguments);
        fails(run, "refused", Some(device), "mounted or held");
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
    seen.unchanged(mounted.path());
    // The image below the mounted device is in use as well.
    let image = mounted.image();
    fails(copy([&source, &image]).argument("--force"), "refused", Some(&image), "loop device");
    seen.unchanged(mounted.path());
}

#[test]
fn a_device_that_another_program_holds_is_always_refused() {
    let device = need!(data_device(2 * MIB));
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", MIB);
    let before = fingerprint(device.path()).unwrap();
    let holder = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device.path()).unwrap();
    for arguments in [&[][..], &["--force"], &["--force", "--backend", "sync"]] {
        let run = copy([&source, device.path()]).arguments(arguments);
        fails(run, "refused", Some(device.path()), "held by another program");
    }
    assert_eq!(fingerprint(device.path()).unwrap(), before);
    drop(holder);
    copy([&source, device.path()]).argument("--force").run().assert_code(0);
}

#[test]
fn a_read_only_device_is_refused() {
    let scratch = ScratchDir::new();
    let image = data_file(&scratch, "image", 2 * MIB);
    let source = data_file(&scratch, "source", MIB);
    let device = need!(LoopOptions::default().read_only().attach(&image));
    let seen = Seen::below(scratch.path());
    for arguments in [&[][..], &["--force"], &["--force", "--direct", "off", "--backend", "sync"]] {
        let run = copy([&source, device.path()]).arguments(arguments);
        fails(run, "refused", Some(device.path()), "read-only");
    }
    seen.unchanged(scratch.path());
}

#[test]
fn a_target_that_is_too_small_is_refused() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", MIB + 512);
    let error = fails(copy([source.as_os_str(), OsStr::new("null:1M")]), "refused", None, "too small");
    assert!(error["message"].as_str().unwrap().contains("1048576 bytes and the source 1049088"));
    let device = need!(data_device(MIB));
    let before = fingerprint(device.path()).unwrap();
    let run = copy([&source, device.path()]).argument("--force");
    fails(run, "refused", Some(device.path()), "too small");
    assert_eq!(fingerprint(device.path()).unwrap(), before);
}

// The target is the source.

#[test]
fn the_source_itself_is_always_refused() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", MIB);
    fs::hard_link(&source, scratch.file("hard")).unwrap();
    symlink("source", scratch.file("soft")).unwrap();
    symlink(scratch.path(), scratch.file("folder")).unwrap();
    let seen = Seen::below(scratch.path());
    for target in ["source", "hard", "soft", "./source", "folder/source"] {
        let target = scratch.file(target);
        for arguments in [&[][..], &["--force"], &["--force", "--direct", "off"]] {
            fails(copy([&source, &target]).arguments(arguments), "refused", Some(&target), "same file");
            fails(copy([&target, &source]).arguments(arguments), "refused", Some(&source), "same file");
        }
    }
    seen.unchanged(scratch.path());
}

#[test]
fn the_source_behind_a_loop_device_is_always_refused() {
    let scratch = ScratchDir::new();
    let file = data_file(&scratch, "file", 2 * MIB);
    let device = need!(LoopDevice::over(&file));
    let seen = Seen::below(scratch.path());
    let run = copy([&file, device.path()]).argument("--force");
    fails(run, "refused", Some(device.path()), "loop device over the source");
    fails(copy([device.path(), &file]).argument("--force"), "refused", Some(&file), "loop device");
    let same = copy([device.path(), device.path()]).argument("--force");
    fails(same, "refused", Some(device.path()), "same device");
    // However deep.
    let outer = need!(LoopDevice::over(device.path()));
    let run = copy([&file, outer.path()]).argument("--force");
    fails(run, "refused", Some(outer.path()), "loop device over the source");
    fails(copy([outer.path(), &file]).argument("--force"), "refused", Some(&file), "loop device");
    fails(copy([outer.path(), device.path()]).argument("--force"), "refused", Some(device.path()), "");
    fails(copy([device.path(), outer.path()]).argument("--force"), "refused", Some(outer.path()), "");
    drop(outer);
    // A file that a loop device shows is in use whatever the source is.
    let other = data_file(&scratch, "other", MIB);
    let seen_with_other = Seen::below(scratch.path());
    let error = fails(copy([&other, &file]).argument("--force"), "refused", Some(&file), "loop device");
    assert!(error["hint"].as_str().unwrap().contains("losetup -d"));
    seen_with_other.unchanged(scratch.path());
    fs::remove_file(other).unwrap();
    seen.unchanged(scratch.path());
}

/// A disk with two partitions, of a MiB each from the second and the third MiB on; detached on drop.
struct Partitioned {
    path: PathBuf,
    losetup: PathBuf,
    nodes: ScratchDir,
}

impl Partitioned {
    fn over(image: &Path) -> Result<Partitioned, Skip> {
        require_root()?;
        require_path("/dev/loop-control")?;
        let losetup = require_tool("losetup")?;
        let mut sector = [0; 66];
        for (index, start) in [2048u32, 4096].into_iter().enumerate() {
            let entry = &mut sector[16 * index..][..16];
            entry[4] = 0x83;
            entry[8..12].copy_from_slice(&start.to_le_bytes());
            entry[12..16].copy_from_slice(&2048u32.to_le_bytes());
        }
        sector[64..].copy_from_slice(b"\x55\xaa");
        write_at(image, 446, &sector);
        let output =
            Command::new(&losetup).args(["--find", "--show", "--partscan"]).arg(image).output().unwrap();
        if !output.status.success() {
            return Err(Skip::because("no loop device with partitions"));
        }
        let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        let disk = Partitioned { path, losetup, nodes: ScratchDir::new() };
        let name = disk.path.file_name().unwrap().to_string_lossy().into_owned();
        for number in [1, 2] {
            let start = if number == 1 { "2048" } else { "4096" };
            if !Path::new(&format!("/sys/class/block/{name}p{number}")).exists() {
                // A kernel that does not read this kind of table is told of its content.
                let count = number.to_string();
                let words = [disk.path.as_os_str(), count.as_ref(), start.as_ref(), "2048".as_ref()];
                tool("addpart", &words)?;
            }
            // Their nodes in /dev are made by the system, or by nobody.
            let numbers = PathBuf::from(format!("/sys/class/block/{name}p{number}/dev"));
            require_path(&numbers)?;
            let numbers = fs::read_to_string(numbers).unwrap();
            let (major, minor) = numbers.trim().split_once(':').unwrap();
            let node = disk.part(number);
            tool("mknod", &[node.as_os_str(), "b".as_ref(), major.as_ref(), minor.as_ref()])?;
        }
        Ok(disk)
    }

    fn part(&self, number: u32) -> PathBuf {
        self.nodes.file(&format!("part{number}"))
    }
}

impl Drop for Partitioned {
    fn drop(&mut self) {
        let _ = Command::new(&self.losetup).arg("--detach").arg(&self.path).status();
    }
}

#[test]
fn a_partition_of_the_source_is_refused_and_its_neighbour_is_not() {
    let scratch = ScratchDir::new();
    let image = data_file(&scratch, "image", 4 * MIB);
    let disk = need!(Partitioned::over(&image));
    let seen = Seen::below(scratch.path());
    let (one, two) = (disk.part(1), disk.part(2));
    fails(copy([&one, &disk.path]).argument("--force"), "refused", Some(&disk.path), "partition");
    fails(copy([&disk.path, &one]).argument("--force"), "refused", Some(&one), "partition");
    fails(copy([&image, &one]).argument("--force"), "refused", Some(&one), "loop device over the source");
    fails(copy([&one, &image]).argument("--force"), "refused", Some(&image), "loop device");
    seen.unchanged(scratch.path());
    copy([&one, &two]).argument("--force").run().assert_code(0);
    assert_same(&one, &two);
    // A partition that is held keeps the whole disk from being a target.
    let holder = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&two).unwrap();
    let source = data_file(&scratch, "source", MIB);
    let seen = Seen::below(scratch.path());
    fails(copy([&source, &disk.path]).argument("--force"), "refused", Some(&disk.path), "held");
    seen.unchanged(scratch.path());
    drop(holder);
}

// Several pairs.

#[test]
fn two_pairs_with_one_target_are_refused() {
    let scratch = ScratchDir::new();
    let (a, b) = (data_file(&scratch, "a", 64 * KIB), data_file(&scratch, "b", 64 * KIB));
    let old = data_file(&scratch, "old", 96 * KIB);
    fs::hard_link(&old, scratch.file("link")).unwrap();
    symlink(scratch.path(), scratch.file("folder")).unwrap();
    let seen = Seen::below(scratch.path());
    for (first, second) in [
        ("new", "new"),
        ("new", "./new"),
        ("new", "folder/new"),
        ("old", "old"),
        ("old", "link"),
        ("old", "folder/old"),
    ] {
        let (first, second) = (scratch.file(first), scratch.file(second));
        let run = copy([&a, &first, &b, &second]).argument("--force");
        fails(run, "refused", None, "");
        seen.unchanged(scratch.path());
    }
}

#[test]
fn a_target_that_is_the_source_of_another_pair_is_refused() {
    let scratch = ScratchDir::new();
    let (a, b) = (data_file(&scratch, "a", 64 * KIB), data_file(&scratch, "b", 64 * KIB));
    symlink("b", scratch.file("soft")).unwrap();
    let seen = Seen::below(scratch.path());
    let new = scratch.file("new");
    for target in [&b, &scratch.file("soft")] {
        for pairs in [[&a, target, &b, &new], [&b, &new, &a, target]] {
            fails(copy(pairs).argument("--force"), "refused", Some(target), "same file");
            seen.unchanged(scratch.path());
        }
    }
}

#[test]
fn one_pair_that_is_refused_keeps_the_others_from_being_touched() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", 64 * KIB);
    // Larger and smaller than the source: a target that were sized at once would show.
    let larger = data_file(&scratch, "larger", 256 * KIB);
    let smaller = data_file(&scratch, "smaller", 4 * KIB);
    let seen = Seen::below(scratch.path());
    let (new, missing) = (scratch.file("new"), scratch.file("missing"));
    for first in [&new, &larger, &smaller] {
        let pairs = [&source, first, &missing, &scratch.file("second")];
        fails(copy(pairs).argument("--force"), "unreachable", Some(&missing), "No such file");
        seen.unchanged(scratch.path());
        let pairs = [&source, first, &source, &scratch.path().to_owned()];
        fails(copy(pairs).argument("--force"), "usage", Some(scratch.path()), "folder");
        seen.unchanged(scratch.path());
    }
}

// Locks.

#[test]
fn a_file_that_a_virtual_machine_uses_is_busy() {
    let qemu_io = need!(require_tool("qemu-io"));
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", MIB);
    let target = data_file(&scratch, "target", MIB);
    let seen = Seen::below(scratch.path());
    let holder =
        Run::program(qemu_io).arguments(["-f", "raw", "-c", "sleep 60000"]).argument(&target).start();
    let inode = format!(":{} ", fs::metadata(&target).unwrap().ino());
    let begin = Instant::now();
    while !fs::read_to_string("/proc/locks").unwrap().contains(&inode) {
        if begin.elapsed() > Duration::from_secs(10) {
            skip!("qemu-io takes no lock that /proc/locks shows");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let error = fails(copy([&source, &target]).argument("--force"), "busy", Some(&target), "lock");
    assert_eq!((&error["retryable"], &error["operation"]), (&json!(true), &json!("lock")));
    seen.unchanged(scratch.path());
    // As a source it is read, with a warning that moments may mix.
    let outcome = copy([&target, &scratch.file("copy")]).run();
    outcome.assert_code(0);
    let warnings = outcome.events("warning");
    assert!(
        warnings.iter().any(|event| event["message"].as_str().unwrap().contains("virtual machine")),
        "{outcome}"
    );
    drop(holder);
    copy([&source, &target]).argument("--force").run().assert_code(0);
}

#[test]
fn two_runs_never_write_one_target() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", 8 * MIB);
    let target = scratch.file("target");
    let mut first = copy([&source, &target]).arguments(["--rate", "1M", "--offload", "never"]).start();
    let begin = Instant::now();
    while fs::metadata(&target).map_or(0, |meta| meta.blocks()) == 0 {
        assert!(begin.elapsed() < Duration::from_secs(20) && !first.ended_within(Duration::from_millis(10)));
    }
    fails(copy([&source, &target]).argument("--force"), "busy", Some(&target), "lock");
    first.signal(libc::SIGTERM);
    first.wait().assert_code(1);
}

// Lists of extents.

#[test]
fn a_bad_list_of_extents_is_refused_before_anything_is_made() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", MIB);
    let (list, target) = (scratch.file("list.json"), scratch.file("target"));
    let envelope = |size: &str, extents: &str| {
        format!(r#"{{"format":"mover-extents","version":1,"size":{size},"extents":[{extents}]}}"#)
    };
    let cases: Vec<(String, &str)> = vec![
        (envelope("null", r#"{"start":1048576,"length":1,"kind":"data"}"#), "end"),
        (envelope("null", r#"{"start":0,"length":1048577,"kind":"zero"}"#), "end"),
        (envelope("null", r#"{"start":9223372036854775807,"length":9223372036854775807,"kind":"data"}"#), ""),
        (
            envelope(
                "null",
                r#"{"start":0,"length":8192,"kind":"data"},{"start":4096,"length":4096,"kind":"hole"}"#,
            ),
            "overlap",
        ),
        (
            envelope(
                "null",
                r#"{"start":4096,"length":4096,"kind":"hole"},{"start":0,"length":4097,"kind":"data"}"#,
            ),
            "overlap",
        ),
        (envelope("null", r#"{"start":0,"length":0,"kind":"data"}"#), "empty"),
        (envelope("null", r#"{"start":-1,"length":1,"kind":"data"}"#), ""),
        (envelope("null", r#"{"start":0.5,"length":1,"kind":"data"}"#), ""),
        (envelope("null", r#"{"start":0,"length":1,"kind":"dirty"}"#), "dirty"),
        (envelope("2097152", ""), "2097152"),
        (
            envelope("1048576", r#"{"start":0,"length":1,"kind":"data"}"#).replace(":1,\"size", ":2,\"size"),
            "version",
        ),
        (envelope("null", r#"{"start":0,"length":1,"kind":"data"}"#)[..40].to_owned(), ""),
        (String::new(), ""),
        ("not json".to_owned(), ""),
        ("{}".to_owned(), ""),
        ("[]]".to_owned(), ""),
        ("\u{0}\u{1}".to_owned(), ""),
    ];
    for (text, words) in cases {
        fs::write(&list, &text).unwrap();
        let seen = Seen::below(scratch.path());
        let error = fails(
            copy([&source, &target]).argument("--extents").argument(&list),
            "usage",
            Some(&list),
            words,
        );
        assert!(!error["message"].as_str().unwrap().is_empty(), "{text}");
        seen.unchanged(scratch.path());
    }
    fs::remove_file(&list).unwrap();
    let run = copy([&source, &target]).argument("--extents").argument(&list);
    let error = fails(run, "unreachable", Some(&list), "No such file");
    assert_eq!(error["errno"], libc::ENOENT);
    assert!(!target.exists());
}

#[test]
fn where_a_list_goes_wrong_is_named_by_offset() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", MIB);
    let text = r#"[{"start":0,"length":512,"kind":"data"},{"start":1048000,"length":4096,"kind":"data"}]"#;
    let list = scratch.write("list.json", text);
    let run = copy([&source, &scratch.file("target")]).argument("--extents").argument(&list);
    let error = fails(run, "usage", Some(&list), "entry 2");
    assert!(error["message"].as_str().unwrap().contains("offset 1048000"), "{error}");
}

#[test]
fn lists_and_sizes_off_every_grid_are_taken() {
    let scratch = ScratchDir::new();
    let size = 3 * MIB + 777;
    let source = data_file(&scratch, "source", size);
    let old = Layout::of(9, &[(size, Content::Data)]);
    let target = scratch.file("target");
    old.write(&target).unwrap();
    // Odd starts, odd lengths, neighbours within one sector, the last byte; zeros that begin and end anywhere.
    let pieces = [
        (1u64, 1u64, "data"),
        (510, 3, "data"),
        (513, 4096, "zero"),
        (MIB - 1, 70_001, "data"),
        (2 * MIB + 5, 100_000, "hole"),
        (size - 1, 1, "data"),
    ];
    let entries: Vec<_> = pieces
        .iter()
        .map(|(start, length, kind)| json!({"start": start, "length": length, "kind": kind}))
        .collect();
    let list = scratch.write("list.json", json!(entries).to_string());
    let outcome = copy([&source, &target]).argument("--force").argument("--extents").argument(&list).run();
    outcome.assert_code(0);
    let (from, mut right) = (fs::read(&source).unwrap(), vec![0; size as usize]);
    old.fill(0, &mut right);
    for (start, length, kind) in pieces {
        let range = start as usize..(start + length) as usize;
        match kind {
            "data" => right[range.clone()].copy_from_slice(&from[range]),
            _ => right[range].fill(0),
        }
    }
    assert!(fs::read(&target).unwrap() == right, "the target is not what the list says");
    // An empty list moves nothing.
    fs::write(&list, "[]").unwrap();
    let before = Seen::below(scratch.path());
    let outcome = copy([&source, &target]).argument("--force").argument("--extents").argument(&list).run();
    assert_eq!(outcome.assert_code(0).result()["moved"]["written_bytes"], 0);
    assert_eq!(fingerprint(&target).unwrap(), before.0[&target].5);
}

// Journals.

#[test]
fn a_journal_of_something_else_is_refused_and_everything_kept() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", MIB);
    let (target, journal) = (scratch.file("target"), scratch.file("journal"));
    copy([&source, &target]).argument("--journal").argument(&journal).run().assert_code(0);
    let other = data_file(&scratch, "other", 2 * MIB);
    let precious = data_file(&scratch, "precious", 3 * MIB);
    let not_one = scratch.write("notes", "to do: back up");
    let seen = Seen::below(scratch.path());
    let with = |pair: [&Path; 2], journal: &Path| copy(pair).argument("--journal").argument(journal);

    fails(with([&source, &target], &journal), "refused", Some(&journal), "earlier copy");
    fails(with([&source, &scratch.file("new")], &not_one), "refused", Some(&not_one), "no journal");
    let run = with([&source, &scratch.file("new")], &not_one).argument("--force");
    fails(run, "refused", Some(&not_one), "no journal");
    // Another source; another target, which must not even be cut to size.
    fails(with([&other, &target], &journal).argument("--resume"), "wrong_identity", None, "");
    fails(with([&source, &precious], &journal).argument("--resume"), "wrong_identity", None, "");
    // One that is not there is no target to go on with, whatever the journal would say of it.
    let new = scratch.file("new");
    fails(
        with([&source, &new], &journal).argument("--resume"),
        "wrong_identity",
        Some(&new),
        "not there any more",
    );
    seen.unchanged(scratch.path());

    // A target that someone wrote to since.
    write_at(&target, 500_000, b"changed");
    let seen = Seen::below(scratch.path());
    let error = fails(
        with([&source, &target], &journal).argument("--resume"),
        "wrong_identity",
        Some(&target),
        "differs",
    );
    assert!(error["offset"].is_u64());
    seen.unchanged(scratch.path());
}

#[test]
fn a_resume_without_a_journal_to_resume_from_begins_anew_and_says_so() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", MIB);
    let (target, journal) = (scratch.file("target"), scratch.file("journal"));
    let outcome =
        copy([&source, &target]).argument("--journal").argument(&journal).argument("--resume").run();
    outcome.assert_code(0);
    assert!(!outcome.events("warning").is_empty(), "{outcome}");
    assert_same(&source, &target);
    // But never over something: there is no journal that says it is ours.
    let precious = data_file(&scratch, "precious", 64 * KIB);
    let seen = Seen::below(scratch.path());
    let none = scratch.file("none");
    let run = copy([&source, &precious]).argument("--journal").argument(&none).argument("--resume");
    fails(run, "refused", Some(&precious), "exists");
    seen.unchanged(scratch.path());
}

// The command line.

#[test]
fn command_lines_that_make_no_sense_are_usage_errors() {
    let scratch = ScratchDir::new();
    data_file(&scratch, "a", 64 * KIB);
    data_file(&scratch, "c", 64 * KIB);
    data_file(&scratch, "precious", 4 * KIB);
    scratch.write("list", "[]");
    scratch.write("profile", "{\"format\":\"mover-profile\",\"version\":9}");
    let lines = [
        "",
        "a",
        "a b c",
        "a b c d e",
        "a b --frob",
        "a b --block-size 1000",
        "a b --block-size 0",
        "a b --block-size 64M",
        "a b --block-size 1Q",
        "a b --block-size -1",
        "a b --queue-depth 0",
        "a b --queue-depth 5000",
        "a b --queue-depth x",
        "a b --workers 0",
        "a b --workers 257",
        "a b --memory-limit 1K",
        "a b --memory-limit 16M --workers 4 --queue-depth 64",
        "a b --memory-limit 8M --block-size 32M",
        "a b --rate 0",
        "a b --rate fast",
        "a b --direct never",
        "a b --offload perhaps",
        "a b --sparse 1",
        "a b --cpus 3-1",
        "a b --cpus x",
        "a b --numa here",
        "a b --on-read-error ignore",
        "a b --profile profile",
        "a b --resume",
        "a b --iopoll --direct off",
        "a b --sqpoll --backend sync",
        "a b --iopoll --backend sync",
        "a b --offload always --verify",
        "a b --offload always --journal j",
        "a b --offload always --digest-out d",
        "a b --offload always --extents list",
        "a b --offload always --rate 1M",
        "a b --offload always --sparse never",
        "a b c d --extents list",
        "a - --verify",
        "a null: --verify",
        "a - --journal j",
        "a null: --journal j",
        "null:1M b --journal j",
        "- b --journal j",
        "- b --extents list",
        "a - --extents list",
        "a - --on-read-error record",
        "- b - d",
        "a - c -",
        "a null:x",
        "null:1X b",
        "null:9E b",
        "a nbd://localhost/disk",
        "nbd+unix:///disk?socket=/x b",
        "a S3://bucket/object",
        "repo:x b",
        "a track:x",
        "https://host/disk b",
        "qmp:x b",
        "a precious --journal precious --force",
        "a precious --digest-out precious --force",
        "a precious --result precious --force",
        "a precious --events precious --force",
        "a b --journal a",
        "a b --extents a",
        "a b --digest-out j --journal j",
    ];
    let seen = Seen::below(scratch.path());
    for line in lines {
        let outcome = copy(line.split_whitespace()).folder(scratch.path()).run();
        let on_stdout = !line.split_whitespace().any(|word| word == "-") || line.starts_with('-');
        let result = if on_stdout { outcome.json_lines() } else { outcome.json_lines_stderr() };
        let result = result.last().unwrap_or_else(|| panic!("no result\n{outcome}")).clone();
        let error = check(&outcome, &result, "usage", None, "");
        assert!(!error["hint"].as_str().unwrap_or_default().is_empty(), "a next step is expected\n{outcome}");
        seen.unchanged(scratch.path());
    }
    let error = fails(copy(["", "b"]).folder(scratch.path()), "usage", None, "empty");
    assert!(error["errno"].is_null());
}

#[test]
fn names_are_what_they_say() {
    let scratch = ScratchDir::new();
    let copy = |pair: [&OsStr; 2]| copy(pair).folder(scratch.path());
    let data = b"data of a file with an odd name".to_vec();
    let odd = OsString::from_vec(b"disk-\xff\xfe.raw".to_vec());
    let line_break = OsString::from("two\nlines");
    for name in
        ["./null:1G", "./-", "./nbd:x", "a:b", "./repo:x", "with space", "--", "ümlaut"].map(OsString::from)
    {
        let name = if name == "--" { OsString::from("./--") } else { name };
        fs::write(scratch.path().join(&name), &data).unwrap();
        copy([&name, "out".as_ref()]).run().assert_code(0);
        assert_eq!(fs::read(scratch.file("out")).unwrap(), data, "{}", name.display());
        fs::remove_file(scratch.path().join(&name)).unwrap();
        copy(["out".as_ref(), &name]).run().assert_code(0);
        assert_eq!(fs::read(scratch.path().join(&name)).unwrap(), data, "{}", name.display());
        fs::remove_file(scratch.file("out")).unwrap();
    }
    for name in [&odd, &line_break] {
        fs::write(scratch.path().join(name), &data).unwrap();
        let outcome = copy([name, "out".as_ref()]).run();
        outcome.assert_code(0);
        assert_eq!(outcome.result()["pairs"][0]["source"], name.to_string_lossy().as_ref());
        fs::rename(scratch.file("out"), scratch.file("in")).unwrap();
        fs::remove_file(scratch.path().join(name)).unwrap();
        copy(["in".as_ref(), name]).run().assert_code(0);
        assert_eq!(fs::read(scratch.path().join(name)).unwrap(), data);
        let error = fails(copy(["in".as_ref(), name]), "refused", Some(Path::new(name)), "exists");
        assert!(!error.to_string().as_bytes().contains(&0xff));
        fs::remove_file(scratch.file("in")).unwrap();
    }
    // A name that could be a flag comes behind `--`.
    fs::write(scratch.file("-x"), &data).unwrap();
    Run::mover(["copy", "--", "-x", "-y"]).folder(scratch.path()).run().assert_code(0);
    assert_eq!(fs::read(scratch.file("-y")).unwrap(), data);
    let long = OsString::from_vec(vec![b'n'; 300]);
    fails(copy(["-x".as_ref(), &long]).argument("--force"), "usage", None, "");
    let error = fails(copy(["./-x".as_ref(), &long]), "unreachable", Some(Path::new(&long)), "too long");
    assert_eq!(error["errno"], libc::ENAMETOOLONG);
    assert!(odd.as_bytes().len() > odd.to_string_lossy().chars().count() - 2);
}

#[test]
fn streams_carry_data_and_the_events_go_elsewhere() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", MIB + 13);
    let bytes = fs::read(&source).unwrap();
    let outcome = copy([source.as_os_str(), "-".as_ref()]).run();
    outcome.assert_code(0);
    assert!(outcome.stdout == bytes, "stdout is not the disk");
    let last = outcome.json_lines_stderr().pop().unwrap();
    assert_eq!((&last["type"], &last["status"]), (&json!("result"), &json!("done")));
    let target = scratch.file("target");
    copy(["-".as_ref(), target.as_os_str()]).stdin(bytes.clone()).run().assert_code(0);
    assert_same(&source, &target);
    // A stream has no size to compare beforehand; what does not fit is an error, not a cut.
    let outcome = copy(["-", "null:1M"]).stdin(bytes.clone()).run();
    outcome.assert_code(10);
    let error = outcome.result()["error"].clone();
    assert_eq!((&error["kind"], &error["errno"]), (&json!("full"), &json!(libc::ENOSPC)), "{error}");
    assert_eq!((&error["offset"], &error["path"]), (&json!(MIB), &json!("null:1048576")), "{error}");
    // The limit on file sizes is met on the way.
    let script = "ulimit -f 512; exec \"$0\" copy --json - \"$1\"";
    let cut = scratch.file("cut");
    let run = Run::program("/bin/sh").arguments(["-c", script]).argument(mover_binary()).argument(&cut);
    let outcome = run.stdin(bytes).run();
    outcome.assert_code(10);
    let error = outcome.result()["error"].clone();
    assert_eq!((&error["kind"], &error["errno"]), (&json!("full"), &json!(libc::EFBIG)), "{error}");
}

#[test]
fn a_stream_that_does_not_fit_a_device_fails_at_its_end() {
    let device = need!(LoopOptions::default().sparse(MIB));
    let bytes = vec![5; (MIB + 13) as usize];
    let outcome = copy(["-".as_ref(), device.path().as_os_str()]).stdin(bytes.clone()).run();
    outcome.assert_code(10);
    let error = outcome.result()["error"].clone();
    assert_eq!((&error["kind"], &error["errno"]), (&json!("full"), &json!(libc::ENOSPC)), "{error}");
    assert_eq!(error["path"], device.path().to_string_lossy().as_ref());
    copy(["-".as_ref(), device.path().as_os_str()]).stdin(&bytes[..MIB as usize]).run().assert_code(0);
    assert!(fs::read(device.path()).unwrap() == bytes[..MIB as usize]);
}

#[test]
fn a_link_to_nowhere_is_no_target() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", 64 * KIB);
    let link = scratch.file("link");
    symlink("nowhere", &link).unwrap();
    for arguments in [&[][..], &["--force"], &["--dry-run"]] {
        fails(copy([&source, &link]).arguments(arguments), "refused", Some(&link), "link");
        assert!(!scratch.file("nowhere").exists() && link.is_symlink());
    }
}

#[test]
fn what_looks_like_an_endpoint_and_is_none() {
    let scratch = ScratchDir::new();
    let source = data_file(&scratch, "source", MIB);
    let precious = data_file(&scratch, "precious", MIB);
    let (one, two) = (scratch.file("one"), scratch.file("two"));
    let seen = Seen::below(scratch.path());
    // The source of the second pair is the target that the first would make.
    fails(copy([&source, &one, &one, &two]), "unreachable", Some(&one), "No such file");
    // A device that is not there is no file to be made.
    let device = Path::new("/dev/mover-no-such-device");
    fails(copy([source.as_path(), device]), "unreachable", Some(device), "No such device");
    assert!(!device.exists());
    // Files of results and events replace and lengthen their own kind only.
    for flag in ["--result", "--events"] {
        let outcome = copy([&source, &one]).argument(flag).argument(&precious).run();
        outcome.assert_code(5);
    }
    seen.unchanged(scratch.path());
    // Standard output by another name carries the disk alone.
    let script = "exec \"$0\" copy \"$1\" /dev/stdout --json";
    let run =
        Run::program("/bin/sh").arguments(["-c", script]).argument(mover_tests::process::mover_binary());
    let outcome = run.argument(&source).run();
    outcome.assert_code(0);
    assert_eq!(outcome.stdout, fs::read(&source).unwrap());
    // A closed standard stream is no empty disk.
    for script in
        ["exec \"$0\" copy - \"$1\" --force --json <&-", "exec \"$0\" copy \"$1\" - --json 2>&1 >&-"]
    {
        let run =
            Run::program("/bin/sh").arguments(["-c", script]).argument(mover_tests::process::mover_binary());
        run.argument(&precious).run().assert_code(10);
    }
    seen.unchanged(scratch.path());
}
