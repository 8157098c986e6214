//! `mover copy` on the oldest supported kernel, 6.1, in a guest: disks that are virtio and NVMe, with poll queues.
//!
//! What a guest copies from disk to disk is compared on the host, in the images of its disks, and for one of each
//! kind in the guest too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mover_tests::compare::assert_same;
use mover_tests::layout::{Content, Layout};
use mover_tests::outcome::Outcome;
use mover_tests::process::{Run, mover_binary};
use mover_tests::scratch::ScratchDir;
use mover_tests::skip::require_tool;
use mover_tests::{Skip, need};
use serde_json::Value;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// Guests emulate every instruction: two at a time would only take each other's processors.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Guest {
    program: PathBuf,
    scratch: ScratchDir,
    mover: PathBuf,
    disks: Vec<String>,
    _turn: MutexGuard<'static, ()>,
}

impl Guest {
    fn new() -> Result<Guest, Skip> {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/lab/guest");
        let check = Command::new(&program).arg("check").output();
        let check = check.map_err(|error| Skip::because(format!("no tools/lab/guest: {error}")))?;
        if !check.status.success() {
            let why = String::from_utf8_lossy(&check.stdout).trim().to_owned();
            return Err(Skip::because(format!("no guest can run here: {why}")));
        }
        let scratch = ScratchDir::new();
        // Without its debug information the program is a tenth, and a guest unpacks it into its memory.
        let mover = scratch.file("mover");
        let stripped = require_tool("strip").is_ok_and(|strip| {
            Command::new(strip).arg("-o").arg(&mover).arg(mover_binary()).status().is_ok_and(|s| s.success())
        });
        let mover = if stripped { mover } else { mover_binary().to_owned() };
        Ok(Guest { program, scratch, mover, disks: Vec::new(), _turn: turn })
    }

    /// A disk in the guest, and its image here.
    fn disk(&mut self, kind: &str, name: &str, size: u64, options: &str) -> PathBuf {
        let image = self.scratch.file(name);
        if !image.exists() {
            self.scratch.sparse(name, size);
        }
        self.disks.push(format!("--{kind}"));
        self.disks.push(format!("{},serial={name}{options}", image.display()));
        image
    }

    /// A disk that is full of data.
    fn full_disk(&mut self, kind: &str, name: &str, layout: &Layout, options: &str) -> PathBuf {
        layout.write(&self.scratch.file(name)).unwrap();
        self.disk(kind, name, layout.size(), options)
    }

    /// Runs a script in the guest and gives what it left in /out.
    #[track_caller]
    fn run(&self, more: &[&str], script: &str) -> (Outcome, PathBuf) {
        let out = self.scratch.file("out");
        let outcome = Run::program(&self.program)
            .argument("run")
            .argument("--share")
            .argument(format!("{}:/bin/mover", self.mover.display()))
            .arguments(&self.disks)
            .arguments(more)
            .argument("--out")
            .argument(&out)
            .arguments(["--timeout", "90", "--", script])
            .limit(Duration::from_secs(110))
            .run();
        outcome.assert_code(0);
        (outcome, out)
    }
}

/// The head of every script: what fails ends it, and a copy that hangs is told from a slow one.
const HEAD: &str = "set -e
d=/dev/by-serial
run() { # run NAME ARGUMENTS…: a copy whose events go to /out/NAME
    name=$1; shift
    timeout -s KILL 40 mover copy --json \"$@\" >/out/$name 2>/out/$name.err && return 0
    code=$?; echo \"$name: exit code $code\" >&2; cat /out/$name /out/$name.err >&2
    for t in /proc/[0-9]*/task/*; do grep -qs mover $t/comm && cat $t/comm $t/stack >&2; done
    return $code
}
";

fn script(body: &str) -> String {
    format!("{HEAD}{body}")
}

fn events(out: &Path, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(out.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The result, of which the run was done without a downgrade; and the first plan.
#[track_caller]
fn done(out: &Path, name: &str) -> (Value, Value) {
    let events = events(out, name);
    let result = events.last().unwrap().clone();
    assert_eq!((&result["type"], &result["status"]), (&"result".into(), &"done".into()), "{name}: {result}");
    assert_eq!(result["degraded"], Value::Array(vec![]), "{name}: {result}");
    let plan = events.iter().find(|event| event["type"] == "plan").unwrap().clone();
    (result, plan)
}

fn facts(out: &Path, name: &str) -> Vec<u64> {
    let text = fs::read_to_string(out.join(name)).unwrap();
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

#[test]
fn virtio_disks_on_both_backends() {
    let mut guest = need!(Guest::new());
    // A file on a filesystem that the guest mounts, and disks of its size and larger.
    let files = guest.scratch.file("files");
    fs::create_dir(&files).unwrap();
    let pieces = [(9 * MIB, Content::Data), (3 * MIB, Content::Zero), (4 * MIB + 512, Content::Data)];
    let layout = Layout::of(21, &pieces);
    layout.write(&files.join("image")).unwrap();
    let filesystem = guest.scratch.sparse("filesystem", 64 * MIB);
    let mkfs = need!(require_tool("mkfs.ext4"));
    let made = Command::new(mkfs).args(["-q", "-F", "-d"]).arg(&files).arg(&filesystem).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    guest.disk("disk", "filesystem", 0, "");
    let ring = guest.disk("disk", "ring", 24 * MIB, "");
    let sync = guest.disk("disk", "sync", 24 * MIB, "");
    let four_k = guest.disk("disk", "fourk", 24 * MIB, ",logical_block_size=4096,physical_block_size=4096");
    let copied = guest.disk("disk", "copied", 24 * MIB, "");
    let body = "
mkdir -p /mnt; mount -t ext4 $d/filesystem /mnt
uname -r >/out/kernel
for disk in ring fourk; do
    run $disk /mnt/image $d/$disk --direct required --verify --backend io_uring
done
run sync /mnt/image $d/sync --direct required --verify --backend sync
# 16777728 bytes are no multiple of the larger block.
head -c 16777728 $d/ring | cmp - /mnt/image
sha256sum /mnt/image | cut -d' ' -f1 >/out/sums; head -c 16777728 $d/sync | sha256sum | cut -d' ' -f1 >>/out/sums
run device $d/ring $d/copied --direct required --verify
run file $d/ring /mnt/back --verify
cmp $d/ring /mnt/back
run defaults $d/ring $d/copied --force
run polled $d/ring $d/copied --force --sqpoll --verify
run plain $d/ring $d/copied --force --no-register --verify
run journal $d/ring $d/copied --force --journal /tmp/journal
run resumed $d/ring $d/copied --journal /tmp/journal --resume
mover version --json >/out/version
umount /mnt
";
    let (_, out) = guest.run(&[], &script(body));
    assert!(fs::read_to_string(out.join("kernel")).unwrap().starts_with("6.1."));
    for name in ["ring", "fourk", "device", "file", "defaults", "polled", "plain", "journal", "resumed"] {
        let (_, plan) = done(&out, name);
        assert_eq!(plan["backend"], "io_uring", "{name}");
        let choices = events(&out, name);
        let backend = choices.iter().find(|event| event["type"] == "choice" && event["about"] == "backend");
        let reason = backend.and_then(|event| event["reason"].as_str()).unwrap_or("said");
        // The flavour of newer kernels is not to be had here.
        assert!(!reason.contains("no_sqarray"), "{reason}");
        assert!(reason == "said" || reason.contains("defer_taskrun"), "{reason}");
    }
    let (result, plan) = done(&out, "sync");
    assert_eq!((&plan["backend"], &plan["target_access"]), (&"sync".into(), &"direct".into()));
    assert_eq!(result["pairs"][0]["verified"], true);
    let (resumed, _) = done(&out, "resumed");
    assert_eq!(resumed["moved"]["resumed_bytes"], 24 * MIB, "{resumed}");
    assert_eq!(resumed["moved"]["written_bytes"], 0);
    let sums = fs::read_to_string(out.join("sums")).unwrap();
    let sums: Vec<_> = sums.lines().collect();
    assert_eq!(sums[0], sums[1]);
    for image in [&ring, &sync, &four_k] {
        // Beyond the source a device keeps what it has: nothing.
        let whole = Layout::of(21, &[&pieces[..], &[(24 * MIB - layout.size(), Content::Hole)]].concat());
        whole.assert_on(image);
    }
    assert_same(&ring, &copied);
}

#[test]
fn nvme_disks_are_polled() {
    let mut guest = need!(Guest::new());
    let layouts: Vec<_> = (0..2)
        .map(|seed| Layout::of(30 + seed, &[(20 * MIB, Content::Data), (4 * MIB, Content::Zero)]))
        .collect();
    for (index, layout) in layouts.iter().enumerate() {
        guest.full_disk("nvme", &format!("from{index}"), layout, "");
    }
    let targets: Vec<_> =
        (0..2).map(|index| guest.disk("nvme", &format!("to{index}"), 24 * MIB, "")).collect();
    let plain = guest.disk("disk", "plain", 24 * MIB, "");
    // A filesystem on a polled disk, with a file that lies in many pieces.
    let filesystem = guest.scratch.sparse("filesystem", 64 * MIB);
    let mkfs = need!(require_tool("mkfs.ext4"));
    let made = Command::new(mkfs).args(["-q", "-F"]).arg(&filesystem).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    guest.disk("nvme", "filesystem", 0, "");
    let body = "
interrupts() { awk '/nvme/ { for (i = 2; i <= 3; i++) sum += $i } END { print sum + 0 }' /proc/interrupts; }
node=$(basename $(readlink -f $d/from0))
cat /sys/block/$node/queue/io_poll /sys/block/$node/queue/max_sectors_kb /sys/block/$node/queue/max_segments >/out/facts
run both $d/from0 $d/to0 $d/from1 $d/to1 --iopoll --strict
cmp $d/from0 $d/to0; cmp $d/from1 $d/to1
before=$(interrupts)
run unpolled $d/from0 $d/to0 --force --block-size 64K --sparse never
between=$(interrupts)
run one $d/from0 $d/to0 --force --iopoll --verify --block-size 64K --sparse never
echo $((between - before)) $(($(interrupts) - between)) >/out/interrupts
# Sizes that the device would split, in one request or in all of them: registered buffers, and plain ones.
run large $d/from0 $d/to0 --force --iopoll --block-size 4M --queue-depth 4
run larger $d/from0 $d/to0 --force --iopoll --block-size 32M --no-register
run small $d/from0 $d/to0 --force --iopoll --block-size 4K --queue-depth 32
run threads $d/from0 $d/to0 --force --iopoll --workers 4
run sqpoll $d/from0 $d/to0 --force --iopoll --sqpoll --verify
# One end polled, the other not.
run mixed $d/from1 $d/plain --iopoll --verify
run list $d/from1 $d/to1 --force --iopoll --sparse always --journal /tmp/journal
mkdir -p /mnt; mount -t ext4 $d/filesystem /mnt
for i in $(seq 0 2 126); do
    dd if=$d/from0 of=/mnt/pieces bs=64k count=1 skip=$i seek=$i conv=notrunc
    dd if=$d/from1 of=/mnt/between bs=64k count=1 skip=$i seek=$i conv=notrunc
done 2>/dev/null
dd if=$d/from0 of=/mnt/pieces bs=64k count=127 conv=notrunc 2>/dev/null
run tofile $d/from0 /mnt/file --iopoll --verify
cmp $d/from0 /mnt/file
run fromfile /mnt/pieces $d/to1 --force --iopoll --verify
head -c 8323072 $d/to1 | cmp - /mnt/pieces
run files /mnt/pieces /mnt/copy --iopoll --verify --offload never
cmp /mnt/pieces /mnt/copy
run back $d/from1 $d/to1 --force --iopoll
umount /mnt
";
    let (_, out) = guest.run(&[], &script(body));
    let facts = facts(&out, "facts");
    assert_eq!(facts[0], 1, "the disk has no poll queues");
    let most = (facts[1] * KIB).min(facts[2] * 4 * KIB);
    let names = [
        "both", "large", "larger", "threads", "sqpoll", "mixed", "list", "tofile", "fromfile", "files",
        "back",
    ];
    for name in names.into_iter().chain(["one", "small"]) {
        let (result, plan) = done(&out, name);
        let block_size = plan["block_size"].as_u64().unwrap();
        assert!(block_size <= most, "{name}: requests of {block_size} bytes, the device takes {most} whole");
        let told = name == "one" || name == "small";
        assert!(told || block_size > most / 2, "{name}: {block_size} is smaller than needed");
        assert_eq!(result["moved"]["copied_bytes"], 0, "{name}");
    }
    // 768 requests end by interrupts, several by one; polled, only the flushes do, though there is more to do.
    let interrupts = self::facts(&out, "interrupts");
    assert!(interrupts[0] >= 24 && interrupts[1] <= interrupts[0] / 3, "interrupts: {interrupts:?}");
    assert_eq!(events(&out, "both").iter().filter(|event| event["type"] == "plan").count(), 2);
    for (layout, target) in layouts.iter().zip(&targets) {
        layout.assert_on(target);
    }
    layouts[1].assert_on(&plain);
}

#[test]
fn virtio_disks_with_poll_queues_are_polled() {
    let mut guest = need!(Guest::new());
    let layout = Layout::of(41, &[(20 * MIB, Content::Data), (4 * MIB, Content::Hole)]);
    guest.full_disk("disk", "from", &layout, ",num-queues=2");
    let target = guest.disk("disk", "to", 24 * MIB, ",num-queues=2");
    let body = "
node=$(basename $(readlink -f $d/from))
cat /sys/block/$node/queue/io_poll /sys/block/$node/queue/max_sectors_kb /sys/block/$node/queue/max_segments >/out/facts
run one $d/from $d/to --iopoll --verify
run large $d/from $d/to --force --iopoll --block-size 4M --queue-depth 4
run larger $d/from $d/to --force --iopoll --block-size 8M --no-register
run sqpoll $d/from $d/to --force --iopoll --sqpoll
cmp $d/from $d/to
";
    let (_, out) = guest.run(&["--append", "virtio_blk.poll_queues=1"], &script(body));
    let facts = facts(&out, "facts");
    if facts[0] != 1 {
        mover_tests::skip!("virtio disks have no poll queues here");
    }
    let most = (facts[1] * KIB).min(facts[2] * 4 * KIB);
    for name in ["one", "large", "larger", "sqpoll"] {
        let (_, plan) = done(&out, name);
        let block_size = plan["block_size"].as_u64().unwrap();
        assert!(block_size <= most, "{name}: requests of {block_size} bytes, the device takes {most} whole");
    }
    layout.assert_on(&target);
}

#[test]
fn the_doctor_knows_the_guest() {
    let mut guest = need!(Guest::new());
    guest.disk("disk", "virtio", 8 * MIB, "");
    guest.disk("nvme", "nvme", 8 * MIB, "");
    let body = "
mover doctor --json $d/virtio $d/nvme /tmp >/out/doctor 2>/out/doctor.err || { cat /out/doctor.err >&2; exit 1; }
mover doctor $d/nvme >/out/text
# A path that polling cannot reach is told, and copied nevertheless.
head -c 8388608 /dev/zero >/tmp/zeros
run unpolled /tmp/zeros $d/virtio --iopoll
";
    let (_, out) = guest.run(&[], &script(body));
    let text = fs::read_to_string(out.join("doctor")).unwrap();
    let document: Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("one document: {error}\n{text}"));
    assert!(text.contains("6.1."), "the kernel's release: {text}");
    assert!(text.contains("defer_taskrun"), "{text}");
    assert!(document.is_object());
    // The flavour without the array is of kernel 6.6: named as one that is not to be had, if at all.
    let chosen = text.find("\"defer_taskrun\"").expect("the flavour of 6.1 by itself");
    assert!(chosen > 0);
    assert!(fs::read_to_string(out.join("text")).unwrap().contains("nvme"), "the device's name");
    let events = events(&out, "unpolled");
    let degraded: Vec<_> = events.iter().filter(|event| event["type"] == "degraded").collect();
    assert!(degraded.iter().any(|event| event["about"] == "iopoll"), "{events:?}");
}
