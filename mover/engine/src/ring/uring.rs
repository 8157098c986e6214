//! io_uring: a data ring of the best flavour the kernel gives, and beside a polled one a plain ring.
//!
//! An IOPOLL ring answers EINVAL to everything but reads and writes, and EOPNOTSUPP to files without poll
//! queues; so a pair exists only then, and the plain ring takes what the polled one cannot.

use std::time::Duration;

use io_uring::types::{Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use mover_model::event::Degradation;
use mover_model::{Error, ErrorKind, Operation, Result, limits};

use super::{Completed, FileEntry, FileId, Submission, Token, Verb};
use crate::arena::Arena;
use crate::control::Control;
use crate::settings::Settings;

/// How a ring was set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// SINGLE_ISSUER, DEFER_TASKRUN, NO_SQARRAY (kernel 6.6).
    DeferNoArray,
    /// SINGLE_ISSUER, DEFER_TASKRUN (kernel 6.1).
    Defer,
    /// COOP_TASKRUN (kernel 5.19).
    Cooperative,
    /// No flags.
    Basic,
    /// A kernel thread submits; excludes DEFER_TASKRUN and COOP_TASKRUN.
    SubmissionPolled,
}

impl Flavour {
    /// From the best to the plainest.
    pub const TASK_RUN: [Flavour; 4] =
        [Flavour::DeferNoArray, Flavour::Defer, Flavour::Cooperative, Flavour::Basic];

    /// Its name in events.
    pub fn name(self) -> &'static str {
        match self {
            Flavour::DeferNoArray => "defer_taskrun+no_sqarray",
            Flavour::Defer => "defer_taskrun",
            Flavour::Cooperative => "coop_taskrun",
            Flavour::Basic => "basic",
            Flavour::SubmissionPolled => "sqpoll",
        }
    }

    /// Sets up a ring of this flavour for the calling thread.
    pub fn build(self, entries: u32, role: Role) -> std::io::Result<IoUring> {
        let mut builder = IoUring::builder();
        builder.dontfork();
        // Every slot may have all its pieces in flight; the kernel keeps what does not fit, at a cost.
        builder.setup_cqsize(entries * 4);
        match self {
            Flavour::DeferNoArray => {
                builder.setup_single_issuer().setup_defer_taskrun().setup_no_sqarray();
            }
            Flavour::Defer => {
                builder.setup_single_issuer().setup_defer_taskrun();
            }
            Flavour::Cooperative => {
                builder.setup_coop_taskrun();
            }
            Flavour::Basic => {}
            Flavour::SubmissionPolled => {
                builder.setup_sqpoll(SQPOLL_IDLE_MS);
            }
        }
        match role {
            Role::Data => {}
            Role::Polled => {
                builder.setup_iopoll();
            }
            // Looked at without waiting, so the kernel must tell when completions are waiting to be posted.
            Role::Beside if matches!(self, Flavour::Basic | Flavour::SubmissionPolled) => {}
            Role::Beside => {
                builder.setup_taskrun_flag();
            }
        }
        builder.build(entries)
    }
}

/// What a ring is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes everything.
    Data,
    /// Takes reads and writes of files with poll queues.
    Polled,
    /// Takes the rest, beside a polled one.
    Beside,
}

/// A submission thread sleeps after this long without work.
const SQPOLL_IDLE_MS: u32 = 50;

struct OneRing {
    ring: IoUring,
    files_registered: bool,
    buffers_registered: bool,
    in_flight: usize,
    /// Pushed since the last system call.
    unsubmitted: usize,
}

/// Operations that are handed to the kernel at once. A device that gets a whole queue in one piece answers in one
/// piece and idles between: with 4 KiB at depth 32 that costs a sixth of the requests a second.
const SUBMIT_BATCH: usize = 4;

/// The data ring, and the plain ring where the data ring is a polled one.
pub struct UringPair {
    data: OneRing,
    plain: Option<OneRing>,
    files: Vec<FileEntry>,
}

impl UringPair {
    pub(super) fn new(settings: &Settings, control: &Control) -> Result<Self> {
        let entries = (u32::from(settings.queue_depth) * 4).clamp(16, 4096).next_power_of_two();
        let role = if settings.iopoll { Role::Polled } else { Role::Data };
        let mut data = None;
        if settings.sqpoll {
            match Flavour::SubmissionPolled.build(entries, role) {
                Ok(ring) => data = Some(ring),
                Err(error) => control.degrade(Degradation {
                    about: "sqpoll".into(),
                    wanted: "a kernel thread that polls for submissions".into(),
                    used: "submission by system call".into(),
                    reason: error.to_string(),
                    path: None,
                }),
            }
        }
        let data = match data {
            Some(ring) => ring,
            None => best_ring(entries, role)?,
        };
        let plain =
            if settings.iopoll { Some(OneRing::new(best_ring(entries, Role::Beside)?)) } else { None };
        Ok(UringPair { data: OneRing::new(data), plain, files: Vec::new() })
    }

    pub(super) fn register_buffers(&mut self, arena: &Arena, control: &Control) {
        let iovecs = arena.iovecs();
        for ring in std::iter::once(&mut self.data).chain(&mut self.plain) {
            // SAFETY: the arena outlives the ring: a worker drops the ring first, and leaks both together.
            match unsafe { ring.ring.submitter().register_buffers(&iovecs) } {
                Ok(()) => ring.buffers_registered = true,
                Err(error) => control.degrade(Degradation {
                    about: "registered_buffers".into(),
                    wanted: "buffers registered with the ring".into(),
                    used: "plain reads and writes, still O_DIRECT and uncopied".into(),
                    reason: match error.raw_os_error() {
                        Some(libc::ENOMEM) => "the limit on locked memory is too low (ulimit -l)".into(),
                        _ => error.to_string(),
                    },
                    path: None,
                }),
            }
        }
    }

    pub(super) fn add_file(&mut self, entry: FileEntry) -> FileId {
        self.files.push(entry);
        FileId(self.files.len() as u32 - 1)
    }

    pub(super) fn register_files(&mut self, control: &Control) {
        let fds: Vec<_> = self.files.iter().map(|file| file.fd).collect();
        for ring in std::iter::once(&mut self.data).chain(&mut self.plain) {
            match ring.ring.submitter().register_files(&fds) {
                Ok(()) => ring.files_registered = true,
                Err(error) => control.degrade(Degradation {
                    about: "registered_files".into(),
                    wanted: "files registered with the ring".into(),
                    used: "plain descriptors, at a small cost for each request".into(),
                    reason: error.to_string(),
                    path: None,
                }),
            }
        }
    }

    pub(super) fn set_file(&mut self, id: FileId, entry: FileEntry) -> Result<()> {
        for ring in
            std::iter::once(&mut self.data).chain(&mut self.plain).filter(|ring| ring.files_registered)
        {
            ring.ring.submitter().register_files_update(id.0, &[entry.fd]).map_err(|error| {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                Error::os(Operation::Setup, "io_uring_register", errno)
            })?;
        }
        self.files[id.0 as usize] = entry;
        Ok(())
    }

    pub(super) fn push(&mut self, s: Submission) -> Result<()> {
        let file = &self.files[s.file.0 as usize];
        let polled = file.polled && matches!(s.verb, Verb::Read | Verb::Write);
        let ring = match &mut self.plain {
            Some(plain) if !polled => plain,
            _ => &mut self.data,
        };
        let entry = ring.entry(&s, file.fd);
        ring.push(&entry)
    }

    pub(super) fn cancel(&mut self, target: Token, own: Token) -> Result<()> {
        // Pipes are never polled, so they are on the plain ring where there is one.
        let ring = self.plain.as_mut().unwrap_or(&mut self.data);
        let entry = opcode::AsyncCancel::new(target.pack()).build().user_data(own.pack());
        ring.push(&entry)
    }

    pub(super) fn wait(&mut self, timeout: Duration) -> Result<()> {
        let Some(plain) = &mut self.plain else {
            return self.data.enter(1, Some(timeout));
        };
        if self.data.in_flight == 0 {
            self.data.enter(0, None)?;
            return plain.enter(1, Some(timeout));
        }
        // Completions of a polled ring are found by looking for them: go on until either ring has one.
        let begin = std::time::Instant::now();
        loop {
            plain.enter(0, Some(Duration::ZERO))?;
            self.data.poll()?;
            if self.data.has_completions() || plain.has_completions() || begin.elapsed() >= timeout {
                return Ok(());
            }
            std::hint::spin_loop();
        }
    }

    pub(super) fn pop(&mut self) -> Option<Completed> {
        self.data.pop().or_else(|| self.plain.as_mut().and_then(OneRing::pop))
    }

    pub(super) fn in_flight(&self) -> usize {
        self.data.in_flight + self.plain.as_ref().map_or(0, |plain| plain.in_flight)
    }
}

impl Drop for UringPair {
    /// The kernel tears a closed ring down later, in its own time. Until then it keeps the files it knows, and a
    /// device that was just written would still be busy for whoever mounts it next; and the locked memory, of
    /// which an ordinary user's next ring would find too little.
    fn drop(&mut self) {
        for ring in std::iter::once(&mut self.data).chain(&mut self.plain) {
            if ring.in_flight > 0 {
                continue;
            }
            // Where it is refused, both are let go a moment later.
            if ring.files_registered {
                let _ = ring.ring.submitter().unregister_files();
            }
            if ring.buffers_registered {
                let _ = ring.ring.submitter().unregister_buffers();
            }
        }
    }
}

/// How long a ring is waited for whose memory an ordinary user may not lock yet.
const RING_PATIENCE: Duration = Duration::from_secs(1);
/// A ring that is smaller than wanted still works, at one system call for as many operations.
const RING_ENTRIES_MIN: u32 = 16;

/// The best flavour the kernel sets up.
///
/// For an ordinary user a ring counts as locked memory, and one that was closed goes on counting until the
/// kernel has taken it down: where that is too much, a smaller ring is tried, and then waited for.
pub(crate) fn best_ring(mut entries: u32, role: Role) -> Result<IoUring> {
    let begin = std::time::Instant::now();
    loop {
        let error = match any_flavour(entries, role) {
            Ok(ring) => return Ok(ring),
            Err(error) => error,
        };
        let too_much = error.raw_os_error() == Some(libc::ENOMEM);
        if too_much && entries > RING_ENTRIES_MIN {
            entries /= 2;
        } else if too_much && begin.elapsed() < RING_PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
        } else {
            let hint = "raise the limit on locked memory (ulimit -l), or say --backend sync";
            let error = Error::new(ErrorKind::Internal, error.to_string()).during(Operation::Setup);
            return Err(if too_much { error.hint(hint) } else { error });
        }
    }
}

fn any_flavour(entries: u32, role: Role) -> std::io::Result<IoUring> {
    let mut last = std::io::Error::from_raw_os_error(libc::ENOSYS);
    for flavour in Flavour::TASK_RUN {
        match flavour.build(entries, role) {
            Ok(ring) => return Ok(ring),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl OneRing {
    fn new(ring: IoUring) -> Self {
        OneRing { ring, files_registered: false, buffers_registered: false, in_flight: 0, unsubmitted: 0 }
    }

    fn entry(&self, s: &Submission, fd: i32) -> squeue::Entry {
        let address = s.memory.address();
        // One expression per verb, for the two kinds of file reference that the crate keeps apart as types.
        macro_rules! on_file {
            ($file:expr) => {
                match s.verb {
                    Verb::Read if self.buffers_registered => {
                        opcode::ReadFixed::new($file, address, s.length as u32, s.memory.buffer())
                            .offset(s.offset)
                            .build()
                    }
                    Verb::Read => opcode::Read::new($file, address, s.length as u32).offset(s.offset).build(),
                    Verb::Write if self.buffers_registered => {
                        opcode::WriteFixed::new($file, address, s.length as u32, s.memory.buffer())
                            .offset(s.offset)
                            .build()
                    }
                    Verb::Write => {
                        opcode::Write::new($file, address, s.length as u32).offset(s.offset).build()
                    }
                    Verb::Fallocate(mode) => {
                        opcode::Fallocate::new($file, s.length).offset(s.offset).mode(mode).build()
                    }
                }
            };
        }
        let entry = if self.files_registered { on_file!(Fixed(s.file.0)) } else { on_file!(Fd(fd)) };
        entry.user_data(s.token.pack())
    }

    fn push(&mut self, entry: &squeue::Entry) -> Result<()> {
        loop {
            // SAFETY: an entry's buffer lies in the worker's arena, which is neither freed nor used otherwise
            // until the operation completes; its endpoint keeps its descriptor open as long.
            // Where a place has no file, the kernel answers EBADF.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.in_flight += 1;
                self.unsubmitted += 1;
                return if self.unsubmitted < SUBMIT_BATCH { Ok(()) } else { self.enter(0, None) };
            }
            self.enter(0, None)?;
        }
    }

    /// Submits, and waits for `want` completions or the time-out.
    fn enter(&mut self, want: usize, timeout: Option<Duration>) -> Result<()> {
        self.unsubmitted = 0;
        for _ in 0..limits::RETRIES_MAX {
            let entered = match timeout {
                Some(timeout) => {
                    let timespec = Timespec::new().sec(timeout.as_secs()).nsec(timeout.subsec_nanos());
                    self.ring.submitter().submit_with_args(want, &SubmitArgs::new().timespec(&timespec))
                }
                None => self.ring.submitter().submit_and_wait(want),
            };
            match entered {
                Ok(_) => return Ok(()),
                Err(error) => match error.raw_os_error() {
                    Some(libc::ETIME | libc::EINTR) => return Ok(()),
                    // The completion queue has overflown: make room first. Short of memory: try again.
                    Some(libc::EBUSY) if self.has_completions() => return Ok(()),
                    Some(libc::EAGAIN | libc::EBUSY) => std::thread::sleep(Duration::from_micros(100)),
                    errno => {
                        return Err(Error::os(
                            Operation::Setup,
                            "io_uring_enter",
                            errno.unwrap_or(libc::EIO),
                        ));
                    }
                },
            }
        }
        Err(Error::os(Operation::Setup, "io_uring_enter", libc::EAGAIN))
    }

    /// Submits and looks for polled completions without sleeping.
    fn poll(&mut self) -> Result<()> {
        self.enter(0, Some(Duration::ZERO))
    }

    fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    fn pop(&mut self) -> Option<Completed> {
        let entry = self.ring.completion().next()?;
        self.in_flight -= 1;
        Some(Completed { token: Token::unpack(entry.user_data()), result: entry.result() })
    }
}
