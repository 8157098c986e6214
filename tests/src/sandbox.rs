//! What a program is denied before it starts: io_uring, root, locked memory.
//!
//! Everything here is prepared before the fork; between fork and exec only plain system calls are made.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The three system calls of io_uring; they have these numbers on every architecture.
const IO_URING_CALLS: [u32; 3] = [425, 426, 427];

/// The ordinary user that programs are run as: `nobody`, without rights on anything.
pub const ORDINARY_USER: u32 = 65534;

/// Limits that are laid upon a program.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sandbox {
    pub(crate) io_uring_errno: Option<u16>,
    pub(crate) user: Option<u32>,
    pub(crate) memlock_bytes: Option<u64>,
}

impl Sandbox {
    /// Makes the command start its program under these limits, and end with the thread that started it.
    pub(crate) fn apply(&self, command: &mut Command) {
        let filter = self.io_uring_errno.map(deny_io_uring);
        let (user, memlock) = (self.user, self.memlock_bytes);
        let before_exec = move || {
            if let Some(bytes) = memlock {
                let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
                // SAFETY: a live struct of the type asked for.
                check(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) })?;
            }
            if let Some(id) = user {
                // SAFETY: an empty list of groups, and plain integers. The raw calls act on this thread, which
                // after the fork is the only one; the wrappers of the C library would look for others.
                unsafe {
                    check_long(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
                    check_long(libc::syscall(libc::SYS_setgid, id))?;
                    check_long(libc::syscall(libc::SYS_setuid, id))?;
                }
            }
            // After the change of user, which resets it.
            // SAFETY: plain integers.
            check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
            match &filter {
                Some(filter) => install(filter),
                None => Ok(()),
            }
        };
        // SAFETY: the closure makes system calls only: no allocation, no lock, as it has to be after a fork.
        unsafe { command.pre_exec(before_exec) };
    }
}

/// A filter that answers the calls of io_uring with the errno and lets everything else pass.
fn deny_io_uring(errno: u16) -> Vec<libc::sock_filter> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    // The number is the first word of seccomp_data. The calls have the same number on x86-64 and on arm64, and
    // so a program of a foreign architecture could at worst be denied something else.
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for call in IO_URING_CALLS {
        let equal = statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call);
        program.push(libc::sock_filter { jt: 0, jf: 1, ..equal });
        program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | u32::from(errno)));
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    program
}

fn install(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: plain integers; the kernel only reads the program, which lives until the call returns.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        check(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program))
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    check_long(result.into())
}

fn check_long(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
