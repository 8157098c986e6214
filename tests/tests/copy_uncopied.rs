//! The count behind a promise: on a raw move no payload byte is copied in user space.
//!
//! A library laid before the C library counts the bytes of all calls by which a program copies memory (memcpy
//! and its kin, 512 bytes at a time or more), and of the C library's reads and writes. `mover` calls these for
//! every copy that the compiler does not write out itself, and that it does for small ones only. A program that
//! does copy shows that the count would tell.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mover_tests::compare::assert_same;
use mover_tests::layout::{Content, Layout};
use mover_tests::process::Run;
use mover_tests::scratch::ScratchDir;
use mover_tests::skip::{require_root, require_tool};
use mover_tests::volume::LoopOptions;
use mover_tests::{Skip, need, skip};

const MIB: u64 = 1024 * 1024;

/// The counting library. Its own copies are loops that the compiler must not turn back into calls.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define SMALLEST 512
static unsigned long copied, filled, compared, moved_in, moved_out, calls;

static void count(unsigned long *counter, size_t size) {
    __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED);
    if (size >= SMALLEST) __atomic_fetch_add(counter, size, __ATOMIC_RELAXED);
}
static void forward(unsigned char *to, const unsigned char *from, size_t size) {
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
}
static void backward(unsigned char *to, const unsigned char *from, size_t size) {
    for (volatile size_t left = size; left > 0; left--) to[left - 1] = from[left - 1];
}
void *memcpy(void *to, const void *from, size_t size) { count(&copied, size); forward(to, from, size); return to; }
void *__memcpy_chk(void *to, const void *from, size_t size, size_t room) { (void)room; return memcpy(to, from, size); }
void *mempcpy(void *to, const void *from, size_t size) { memcpy(to, from, size); return (char *)to + size; }
void *memmove(void *to, const void *from, size_t size) {
    count(&copied, size);
    if ((char *)to <= (const char *)from || (char *)to >= (const char *)from + size) forward(to, from, size);
    else backward(to, from, size);
    return to;
}
void *__memmove_chk(void *to, const void *from, size_t size, size_t room) { (void)room; return memmove(to, from, size); }
void bcopy(const void *from, void *to, size_t size) { memmove(to, from, size); }
void *memset(void *to, int byte, size_t size) {
    count(&filled, size);
    void *at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(size) : "a"(byte) : "memory");
    return to;
}
void *__memset_chk(void *to, int byte, size_t size, size_t room) { (void)room; return memset(to, byte, size); }
int memcmp(const void *left, const void *right, size_t size) {
    const unsigned char *a = left, *b = right;
    count(&compared, size);
    for (volatile size_t i = 0; i < size; i++) if (a[i] != b[i]) return a[i] - b[i];
    return 0;
}

#define NEXT(name) ({ static __typeof__(&name) next; if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name); next; })
#define COUNTED(counter, call) ({ ssize_t done = call; if (done > 0) count(&counter, (size_t)done); done; })
ssize_t read(int fd, void *to, size_t size) { return COUNTED(moved_in, NEXT(read)(fd, to, size)); }
ssize_t pread(int fd, void *to, size_t size, off_t at) { return COUNTED(moved_in, NEXT(pread)(fd, to, size, at)); }
ssize_t pread64(int fd, void *to, size_t size, off64_t at) { return COUNTED(moved_in, NEXT(pread64)(fd, to, size, at)); }
ssize_t preadv(int fd, const struct iovec *v, int n, off_t at) { return COUNTED(moved_in, NEXT(preadv)(fd, v, n, at)); }
ssize_t preadv64(int fd, const struct iovec *v, int n, off64_t at) { return COUNTED(moved_in, NEXT(preadv64)(fd, v, n, at)); }
ssize_t preadv2(int fd, const struct iovec *v, int n, off_t at, int f) { return COUNTED(moved_in, NEXT(preadv2)(fd, v, n, at, f)); }
ssize_t readv(int fd, const struct iovec *v, int n) { return COUNTED(moved_in, NEXT(readv)(fd, v, n)); }
ssize_t write(int fd, const void *from, size_t size) { return COUNTED(moved_out, NEXT(write)(fd, from, size)); }
ssize_t pwrite(int fd, const void *from, size_t size, off_t at) { return COUNTED(moved_out, NEXT(pwrite)(fd, from, size, at)); }
ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at) { return COUNTED(moved_out, NEXT(pwrite64)(fd, from, size, at)); }
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at) { return COUNTED(moved_out, NEXT(pwritev)(fd, v, n, at)); }
ssize_t pwritev64(int fd, const struct iovec *v, int n, off64_t at) { return COUNTED(moved_out, NEXT(pwritev64)(fd, v, n, at)); }
ssize_t writev(int fd, const struct iovec *v, int n) { return COUNTED(moved_out, NEXT(writev)(fd, v, n)); }

__attribute__((destructor)) static void tell(void) {
    const char *path = getenv("COUNTS");
    int fd = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600) : -1;
    if (fd < 0) return;
    dprintf(fd, "copied %lu\nfilled %lu\ncompared %lu\nread %lu\nwritten %lu\ncalls %lu\n",
            copied, filled, compared, moved_in, moved_out, calls);
    close(fd);
}
"#;

/// A program that copies a file the ordinary way: into one buffer, from there into another, and out.
const COPIER: &str = r#"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int n, char **names) {
    enum { SIZE = 1 << 20 };
    char *one = malloc(SIZE), *two = malloc(SIZE);
    int from = open(names[1], O_RDONLY), to = open(names[2], O_WRONLY | O_CREAT | O_TRUNC, 0600);
    void *(*volatile copy)(void *, const void *, size_t) = memcpy;
    for (ssize_t got; n == 3 && (got = read(from, one, SIZE)) > 0;) {
        copy(two, one, got);
        if (write(to, two, got) != got) return 1;
    }
    return from < 0 || to < 0;
}
"#;

/// The compiled library and the program that copies.
struct Shim {
    scratch: ScratchDir,
    library: PathBuf,
    copier: PathBuf,
}

/// What was counted, in bytes.
type Counts = BTreeMap<String, u64>;

impl Shim {
    fn new() -> Result<Shim, Skip> {
        if !cfg!(target_arch = "x86_64") {
            return Err(Skip::because("the counting library is written for x86-64"));
        }
        let cc = require_tool("cc")?;
        let scratch = ScratchDir::new();
        let build = |name: &str, text: &str, flags: &[&str]| {
            let (source, out) = (scratch.write(&format!("{name}.c"), text), scratch.file(name));
            let mut command = Command::new(&cc);
            command.args([
                "-O1",
                "-w",
                "-fno-builtin",
                "-fno-tree-loop-distribute-patterns",
                "-U_FORTIFY_SOURCE",
            ]);
            let output = command.args(flags).arg("-o").arg(&out).arg(source).arg("-ldl").output().unwrap();
            assert!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
            out
        };
        let library = build("shim.so", SHIM, &["-shared", "-fPIC"]);
        let copier = build("copier", COPIER, &[]);
        Ok(Shim { scratch, library, copier })
    }

    /// Runs to a good end under the count.
    #[track_caller]
    fn count(&self, run: Run) -> (Counts, mover_tests::outcome::Outcome) {
        let counts = self.scratch.file("counts");
        let _ = fs::remove_file(&counts);
        let outcome = run.variable("LD_PRELOAD", &self.library).variable("COUNTS", &counts).run();
        outcome.assert_code(0);
        let text = fs::read_to_string(&counts)
            .unwrap_or_else(|error| panic!("nothing was counted: {error}\n{outcome}"));
        let pairs = text.lines().map(|line| line.split_once(' ').unwrap());
        let counts: Counts = pairs.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect();
        assert!(counts["calls"] > 0, "the library does not stand before the C library: {counts:?}");
        (counts, outcome)
    }
}

fn mover(arguments: &[&str], source: &Path, target: &Path) -> Run {
    // As many workers whatever the size: what starting them costs falls out of the difference.
    Run::mover(["copy", "--json", "--offload", "never", "--workers", "2"])
        .arguments(arguments)
        .arguments([source, target])
}

const SMALL: u64 = 16 * MIB;

/// How the counts grow from a small disk to one that is larger by `data` bytes. Starting and ending a run has
/// its own small change of about a megabyte, which is no payload and does not grow.
struct Growth {
    small: Counts,
    large: Counts,
    data: u64,
}

impl Growth {
    fn of(&self, name: &str) -> u64 {
        self.large[name].saturating_sub(self.small[name])
    }

    /// Less than a hundredth of the data was touched by the calls that copy, fill or compare memory.
    #[track_caller]
    fn assert_uncopied(&self) {
        let user = self.of("copied") + self.of("filled") + self.of("compared");
        assert!(user < self.data / 100, "{user} bytes in user space of {}: {:?}", self.data, self.large);
        // Nor can anything hide in the start: it is small beside the data.
        let all = self.large["copied"] + self.large["filled"] + self.large["compared"];
        assert!(all < self.data / 20, "{all} bytes in user space of {}: {:?}", self.data, self.large);
    }
}

/// Counts two runs over `pieces` behind 16 MiB of data: without the pieces, and with them.
#[track_caller]
fn growth(shim: &Shim, arguments: &[&str], pieces: &[(u64, Content)], target: Option<&Path>) -> Growth {
    let scratch = ScratchDir::new();
    let source = scratch.file("source");
    let target = target.map_or_else(|| scratch.file("target"), Path::to_owned);
    let run = |pieces: &[(u64, Content)]| {
        let layout = Layout::of(2, pieces);
        layout.write(&source).unwrap();
        let side = |name: &str| scratch.file(&format!("{name}-{}", pieces.len()));
        let mut run = mover(arguments, &source, &target).argument("--force");
        for flag in ["journal", "digest-out"] {
            if arguments.contains(&"--verify") {
                run = run.argument(format!("--{flag}")).argument(side(flag));
            }
        }
        let (counts, outcome) = shim.count(run);
        layout.assert_on(&target);
        let moved = &outcome.result()["moved"];
        assert_eq!(moved["copied_bytes"], 0, "{outcome}");
        let read = layout.bytes(Content::Data) + layout.bytes(Content::Zero);
        assert_eq!(moved["read_bytes"], read, "{outcome}");
        counts
    };
    let start = (SMALL, Content::Data);
    let small = run(&[start]);
    let all: Vec<_> = [start].into_iter().chain(pieces.iter().copied()).collect();
    let data = pieces.iter().filter(|(_, content)| *content != Content::Hole).map(|(len, _)| len).sum();
    Growth { small, large: run(&all), data }
}

#[test]
fn the_count_tells_what_is_copied() {
    let shim = need!(Shim::new());
    let scratch = ScratchDir::new();
    let (source, target) = (scratch.file("source"), scratch.file("target"));
    Layout::of(1, &[(16 * MIB, Content::Data)]).write(&source).unwrap();
    let (counts, _) = shim.count(Run::program(&shim.copier).arguments([&source, &target]));
    assert_same(&source, &target);
    assert_eq!((counts["copied"], counts["read"], counts["written"]), (16 * MIB, 16 * MIB, 16 * MIB));
}

#[test]
fn a_ring_carries_the_payload_uncopied() {
    let shim = need!(Shim::new());
    let pieces = [(240 * MIB, Content::Data)];
    let growth = growth(&shim, &["--backend", "io_uring", "--direct", "required"], &pieces, None);
    growth.assert_uncopied();
    // Nor does the data pass by the C library.
    assert!(growth.large["read"] + growth.large["written"] < growth.data / 100, "{:?}", growth.large);
}

#[test]
fn system_calls_carry_the_payload_uncopied() {
    let shim = need!(Shim::new());
    let growth = growth(&shim, &["--backend", "sync"], &[(240 * MIB, Content::Data)], None);
    growth.assert_uncopied();
    // Each byte passes once in and once out, by the calls that move it between kernel and buffer: the library
    // sees what this program does.
    for direction in ["read", "written"] {
        let bytes = growth.of(direction);
        assert!(bytes.abs_diff(growth.data) < growth.data / 100, "{direction}: {:?}", growth.large);
    }
}

#[test]
fn digests_zeros_journal_and_verify_copy_nothing_either() {
    let shim = need!(Shim::new());
    let pieces = [
        (40 * MIB, Content::Data),
        (8 * MIB, Content::Zero),
        (16 * MIB, Content::Hole),
        (64 * MIB, Content::Data),
    ];
    let arguments = ["--backend", "io_uring", "--verify", "--sparse", "always"];
    growth(&shim, &arguments, &pieces, None).assert_uncopied();
}

#[test]
fn unaligned_ends_cost_no_more_than_their_blocks() {
    let shim = need!(Shim::new());
    let pieces = [(64 * MIB + 777, Content::Data)];
    growth(&shim, &["--backend", "io_uring"], &pieces, None).assert_uncopied();
}

#[test]
fn a_device_is_written_uncopied() {
    need!(require_root());
    let shim = need!(Shim::new());
    let device = need!(LoopOptions::default().sparse(96 * MIB));
    let arguments = ["--backend", "io_uring", "--direct", "required"];
    growth(&shim, &arguments, &[(80 * MIB, Content::Data)], Some(device.path())).assert_uncopied();
}

/// What the kernel is told is what a ring with registered buffers and files tells it.
#[test]
fn reads_and_writes_are_of_registered_buffers() {
    let strace = need!(require_tool("strace"));
    let scratch = ScratchDir::new();
    let (source, target, trace) = (scratch.file("source"), scratch.file("target"), scratch.file("trace"));
    Layout::of(6, &[(16 * MIB, Content::Data)]).write(&source).unwrap();
    let outcome = Run::program(strace)
        .arguments([
            "-f",
            "-qq",
            "-e",
            "trace=io_uring_setup,io_uring_register,io_uring_enter,pread64,pwrite64",
        ])
        .argument("-o")
        .argument(&trace)
        .argument(mover_tests::process::mover_binary())
        .arguments(["copy", "--json", "--offload", "never", "--backend", "io_uring"])
        .arguments([&source, &target])
        .run();
    let text = fs::read_to_string(&trace).unwrap_or_default();
    if outcome.code != Some(0) && !text.contains("io_uring_setup") {
        skip!("strace cannot trace here: {}", outcome.stderr_text());
    }
    outcome.assert_code(0);
    for call in ["IORING_REGISTER_BUFFERS", "IORING_REGISTER_FILES"] {
        assert!(text.contains(call), "{call} expected\n{text}");
    }
    assert!(!text.contains("pwrite64("), "a write went past the ring\n{text}");
    assert_same(&source, &target);
}
