//! Running programs, `mover` above all, under limits and with an account of what they took.
//!
//! **Peak memory.** The kernel's figure for an ended child (`ru_maxrss`) also holds what the forked copy of
//! *this* process had before it became the program. When this process is the larger one, that figure says
//! nothing about the child. Then the child's own high-water mark (`VmHWM`), which is looked at every few
//! milliseconds while it runs, is taken in its place: it can miss growth just before the end, never invent any.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::outcome::Outcome;
use crate::rng::Rng;
use crate::sandbox::{ORDINARY_USER, Sandbox};
use crate::scratch::ScratchDir;
use crate::skip::{Skip, require_root};
use crate::sys;

/// The variable that names the program to test, instead of the one built beside the tests.
pub const BINARY_VARIABLE: &str = "MOVER_BIN";

const PACKAGE: &str = "mover-cli";
const BINARY: &str = "mover";
/// A run that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// How often a running child is looked at.
const GLANCE: Duration = Duration::from_millis(5);

/// Path of the `mover` binary: what `MOVER_BIN` names, else the one of this build, brought up to date once.
///
/// The tests do not depend on the program's crate, so `cargo test` alone would leave an old binary standing.
pub fn mover_binary() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| match std::env::var_os(BINARY_VARIABLE) {
        Some(path) => {
            let path = PathBuf::from(path);
            assert!(path.is_file(), "{BINARY_VARIABLE}={} is no file", path.display());
            path
        }
        None => build_mover(),
    })
}

fn build_mover() -> PathBuf {
    // A test stands in TARGET/PROFILE/deps/NAME; the folder `debug` belongs to the profile `dev`.
    let test = std::env::current_exe().expect("path of this test");
    let folder = test.parent().and_then(Path::parent).expect("folder of the build");
    let profile = folder.file_name().and_then(OsStr::to_str).expect("name of the profile");
    let profile = if profile == "debug" { "dev" } else { profile };
    let target = folder.parent().expect("target folder");
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--package", PACKAGE, "--bin", BINARY, "--profile", profile])
        .arg("--manifest-path")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .output();
    let binary = folder.join(BINARY);
    match output {
        Ok(output) if output.status.success() => {}
        // Tests that were built elsewhere and brought here have no cargo; the binary came with them.
        Err(_) if binary.is_file() => {}
        Ok(output) => panic!("cannot build {PACKAGE}:\n{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => panic!("no {} and no cargo to build it: {error}", binary.display()),
    }
    binary
}

/// A program to be run.
#[derive(Debug)]
pub struct Run {
    program: PathBuf,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    folder: Option<PathBuf>,
    stdin: Vec<u8>,
    stdin_file: Option<fs::File>,
    sandbox: Sandbox,
    limit: Duration,
    kill_after: Option<Duration>,
    /// Holds the copy of a program that an ordinary user could not reach.
    copy: Option<ScratchDir>,
}

impl Run {
    /// A run of `mover` with these arguments.
    pub fn mover<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Run {
        Run::program(mover_binary()).arguments(arguments)
    }

    /// A run of any program.
    pub fn program(program: impl AsRef<Path>) -> Run {
        Run {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            variables: Vec::new(),
            folder: None,
            stdin: Vec::new(),
            stdin_file: None,
            sandbox: Sandbox::default(),
            limit: LIMIT,
            kill_after: None,
            copy: None,
        }
    }

    /// One argument more.
    pub fn argument(mut self, argument: impl AsRef<OsStr>) -> Run {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// More arguments.
    pub fn arguments<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Run {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn variable(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Run {
        self.variables.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Runs in this folder.
    pub fn folder(mut self, folder: impl AsRef<Path>) -> Run {
        self.folder = Some(folder.as_ref().to_owned());
        self
    }

    /// Gives these bytes on stdin (through a pipe); else stdin is empty.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Run {
        self.stdin = bytes.into();
        self
    }

    /// Gives an open file as stdin.
    pub fn stdin_file(mut self, file: fs::File) -> Run {
        self.stdin_file = Some(file);
        self
    }

    /// Kills the program after this time and marks the outcome as timed out. Two minutes unless told.
    pub fn limit(mut self, limit: Duration) -> Run {
        self.limit = limit;
        self
    }

    /// Kills the program (`SIGKILL`) at this time after its start, if it still runs.
    pub fn kill_after(mut self, delay: Duration) -> Run {
        self.kill_after = Some(delay);
        self
    }

    /// Kills the program at a random moment up to this time after its start.
    pub fn kill_within(self, rng: &mut Rng, longest: Duration) -> Run {
        let micros = rng.range(0..longest.as_micros().max(1) as u64);
        self.kill_after(Duration::from_micros(micros))
    }

    /// Lets the system calls of io_uring fail with this errno (`EPERM` or `ENOSYS`), through seccomp.
    pub fn deny_io_uring(mut self, errno: i32) -> Run {
        self.sandbox.io_uring_errno = Some(errno as u16);
        self
    }

    /// Limits the memory that the program may lock. Means little for root, who may lock what he likes.
    pub fn memlock(mut self, bytes: u64) -> Run {
        self.sandbox.memlock_bytes = Some(bytes);
        self
    }

    /// Runs as an ordinary user who may lock this much memory. A program that this user cannot reach is
    /// copied to where he can. Files are the caller's affair: see [`ScratchDir::open_to_all`].
    pub fn as_ordinary_user(mut self, memlock_bytes: u64) -> Result<Run, Skip> {
        require_root()?;
        if !reachable_by_all(&self.program) {
            let scratch = ScratchDir::new();
            scratch.open_to_all();
            let copy = scratch.file(BINARY);
            fs::copy(&self.program, &copy).expect("copy of the program");
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("permissions of a program");
            self.program = copy;
            self.copy = Some(scratch);
        }
        self.sandbox.user = Some(ORDINARY_USER);
        Ok(self.memlock(memlock_bytes))
    }

    /// Runs to the end.
    pub fn run(self) -> Outcome {
        self.start().wait()
    }

    /// Starts the program, to send it signals or to change its world while it runs. It dies with the thread
    /// that called this.
    #[expect(clippy::zombie_processes, reason = "collected by wait4, which also tells what it used")]
    pub fn start(mut self) -> Running {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).envs(self.variables.iter().map(|(name, value)| (name, value)));
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        match (self.stdin_file.take(), self.stdin.is_empty()) {
            (Some(file), _) => command.stdin(file),
            (None, true) => command.stdin(Stdio::null()),
            (None, false) => command.stdin(Stdio::piped()),
        };
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, so that the children of the program can be killed with it.
        command.process_group(0);
        self.sandbox.apply(&mut command);

        let own_peak_bytes = peak_rss_bytes("self").unwrap_or(u64::MAX);
        let mut child =
            spawn(&mut command).unwrap_or_else(|error| panic!("{}: {error}", self.program.display()));
        let start = Instant::now();
        let input = std::mem::take(&mut self.stdin);
        let stdin = child.stdin.take().map(|mut pipe| {
            // A program that does not want all of its input is none of our business.
            std::thread::spawn(move || drop(pipe.write_all(&input)))
        });
        Running {
            process: sys::process_descriptor(child.id() as i32).expect("descriptor of a child"),
            pid: child.id() as i32,
            stdout: collect(child.stdout.take().expect("pipe")),
            stderr: collect(child.stderr.take().expect("pipe")),
            stdin,
            start,
            own_peak_bytes,
            peak_bytes: 0,
            collected: false,
            run: self,
        }
    }
}

/// A program that runs. Killed, with its process group, on drop.
#[derive(Debug)]
pub struct Running {
    run: Run,
    pid: i32,
    process: OwnedFd,
    stdin: Option<JoinHandle<()>>,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    start: Instant,
    own_peak_bytes: u64,
    peak_bytes: u64,
    collected: bool,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal. One that comes too late is no error: the program has ended, but is not collected yet.
    pub fn signal(&self, signal: i32) {
        sys::signal(self.pid, signal).expect("signal to a child");
    }

    /// Whether it has ended, after at most this time.
    pub fn ended_within(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            self.peak_bytes = self.peak_bytes.max(peak_rss_bytes(self.pid).unwrap_or(0));
            let left = deadline.saturating_duration_since(Instant::now());
            if sys::wait_ended(&self.process, left.min(GLANCE)).expect("poll of a child") {
                return true;
            }
            if left.is_zero() {
                return false;
            }
        }
    }

    /// Waits for the end, under the time limit of the run.
    pub fn wait(mut self) -> Outcome {
        let mut timed_out = false;
        let kill_at = self.run.kill_after.filter(|delay| *delay < self.run.limit);
        let patience = |until: Duration, start: Instant| until.saturating_sub(start.elapsed());
        if !self.ended_within(patience(kill_at.unwrap_or(self.run.limit), self.start)) {
            timed_out = kill_at.is_none();
            self.kill();
            // A process in uninterruptible I/O dies when that I/O ends.
            let dead = self.ended_within(LIMIT);
            assert!(dead, "{} does not die", self.run.program.display());
        }
        let wall = self.start.elapsed();
        // Children that outlive the program would hold the pipes open.
        self.kill();
        let (status, usage) = sys::collect(self.pid).expect("wait for a child");
        self.collected = true;
        let status = ExitStatus::from_raw(status);
        if let Some(stdin) = self.stdin.take() {
            stdin.join().expect("writer of stdin");
        }
        let output =
            |reader: Option<JoinHandle<Vec<u8>>>| reader.map(|reader| reader.join().expect("reader"));
        Outcome {
            command: self.command_line(),
            code: status.code(),
            signal: status.signal(),
            timed_out,
            stdout: output(self.stdout.take()).unwrap_or_default(),
            stderr: output(self.stderr.take()).unwrap_or_default(),
            wall,
            user_time: duration(usage.ru_utime),
            system_time: duration(usage.ru_stime),
            peak_rss_bytes: self.peak(usage.ru_maxrss as u64 * 1024),
        }
    }

    fn peak(&self, max_rss_bytes: u64) -> u64 {
        if max_rss_bytes > self.own_peak_bytes { max_rss_bytes } else { self.peak_bytes }
    }

    fn kill(&self) {
        // The group first: it exists as long as its leader is not collected.
        let _ = sys::signal(-self.pid, libc::SIGKILL);
        let _ = sys::signal(self.pid, libc::SIGKILL);
    }

    fn command_line(&self) -> String {
        let words = std::iter::once(self.run.program.as_os_str());
        let words = words.chain(self.run.arguments.iter().map(OsString::as_os_str));
        words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.collected {
            self.kill();
            let _ = sys::collect(self.pid);
        }
    }
}

/// Starts the command. A program that was just copied can be "busy" for a moment: a fork in another thread
/// still holds the descriptor that wrote it.
fn spawn(command: &mut Command) -> io::Result<Child> {
    for _ in 0..50 {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => std::thread::sleep(GLANCE),
            result => return result,
        }
    }
    command.spawn()
}

fn collect(mut pipe: impl Read + Send + 'static) -> Option<JoinHandle<Vec<u8>>> {
    Some(std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is worth showing.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    }))
}

/// High-water mark of the resident memory of a process; none once it has ended.
fn peak_rss_bytes(process: impl std::fmt::Display) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1024)
}

fn duration(time: libc::timeval) -> Duration {
    Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000)
}

/// Whether any user may enter all folders of the path and run the file.
fn reachable_by_all(program: &Path) -> bool {
    let Ok(program) = program.canonicalize() else { return false };
    let open = |path: &Path, bits: u32| path.metadata().is_ok_and(|data| data.mode() & bits == bits);
    open(&program, 0o005) && program.ancestors().skip(1).all(|folder| open(folder, 0o001))
}
