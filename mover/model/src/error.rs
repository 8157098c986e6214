//! Errors: a small matchable kind, the operation, where it happened, the errno, and what to do next.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// Result with mover's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as a suite matches on it. The exit code follows from it alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The command line, a list of extents or another argument makes no sense. Exit 2.
    Usage,
    /// An endpoint is not there or may not be opened. Exit 10.
    Unreachable,
    /// The target has no room left. Exit 10.
    Full,
    /// Would overwrite something, is mounted or in use, is the source, is too small. Nothing written. Exit 5.
    Refused,
    /// A journal belongs to another source or target. Nothing written. Exit 5.
    WrongIdentity,
    /// There is no such repository, machine, restore point or disk. Exit 10.
    NotFound,
    /// The key or passphrase is missing or wrong, or what it protects was tampered with. Exit 11.
    Key,
    /// A format that this version does not know. Nothing written. Exit 5.
    Unsupported,
    /// What points to a common disk was changed after the backup; it was left as it is. Exit 8.
    CommonChanged,
    /// Another process holds a lock that is needed. Exit 9.
    Busy,
    /// The device or filesystem answered a read, write, flush or other call with an error. Exit 1.
    Io,
    /// The source ended before the size it had when the run began. Exit 1.
    SourceShrank,
    /// Data read back is not the data that was written. Exit 6.
    Corruption,
    /// Stopped by a signal, and a journal allows to resume. Exit 7.
    Interrupted,
    /// Stopped by a signal; there is no journal to resume from. Exit 1.
    Stopped,
    /// A downgrade under `--strict`, or something that was required is not to be had. Exit 1.
    Downgrade,
    /// A broken invariant of ours. Exit 1.
    Internal,
}

impl ErrorKind {
    /// The process exit code for this kind (contract: docs/exit-codes.md).
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Usage => 2,
            ErrorKind::Unreachable | ErrorKind::Full | ErrorKind::NotFound => 10,
            ErrorKind::Refused | ErrorKind::WrongIdentity | ErrorKind::Unsupported => 5,
            ErrorKind::Key => 11,
            ErrorKind::CommonChanged => 8,
            ErrorKind::Busy => 9,
            ErrorKind::Corruption => 6,
            ErrorKind::Interrupted => 7,
            ErrorKind::Io
            | ErrorKind::SourceShrank
            | ErrorKind::Stopped
            | ErrorKind::Downgrade
            | ErrorKind::Internal => 1,
        }
    }

    /// Whether the same command may succeed later without a change by the user.
    pub fn retryable(self) -> bool {
        matches!(self, ErrorKind::Unreachable | ErrorKind::Busy | ErrorKind::Interrupted | ErrorKind::Stopped)
    }
}

/// Exit code of a run that finished with recorded bad extents.
pub const EXIT_BAD_EXTENTS: u8 = 3;

/// The more severe of two exit codes, for runs with several outcomes.
///
/// Order, most severe first: corruption 6 · failed 1 · interrupted 7 · endpoint 10 · key 11 · busy 9 ·
/// refused 5 · quiesce 4 · common disk changed 8 · bad extents 3 · usage 2 · done 0.
pub fn most_severe(a: u8, b: u8) -> u8 {
    const ORDER: [u8; 12] = [6, 1, 7, 10, 11, 9, 5, 4, 8, 3, 2, 0];
    let rank = |code: u8| ORDER.iter().position(|&c| c == code).unwrap_or(1);
    if rank(a) <= rank(b) { a } else { b }
}

/// The call that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Operation {
    Open,
    Stat,
    Read,
    Write,
    Zero,
    Flush,
    Resize,
    Seek,
    Clone,
    Copy,
    Lock,
    Register,
    Setup,
    Verify,
    List,
    Link,
    Delete,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Open => "open",
            Operation::Stat => "stat",
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Zero => "zero",
            Operation::Flush => "flush",
            Operation::Resize => "resize",
            Operation::Seek => "find extents of",
            Operation::Clone => "reflink",
            Operation::Copy => "copy_file_range",
            Operation::Lock => "lock",
            Operation::Register => "register memory",
            Operation::Setup => "set up io_uring",
            Operation::Verify => "verify",
            Operation::List => "list",
            Operation::Link => "put in place",
            Operation::Delete => "delete",
        })
    }
}

/// An error with everything a person or a suite needs to act on it.
#[derive(Debug, Clone)]
pub struct Error(Box<Details>);

#[derive(Debug, Clone)]
struct Details {
    kind: ErrorKind,
    message: String,
    operation: Option<Operation>,
    path: Option<String>,
    offset: Option<u64>,
    errno: Option<i32>,
    hint: Option<String>,
}

impl Error {
    /// An error of a kind, with a sentence for people.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Box::new(Details {
            kind,
            message: message.into(),
            operation: None,
            path: None,
            offset: None,
            errno: None,
            hint: None,
        }))
    }

    /// A `Usage` error.
    pub fn usage(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Usage, message)
    }

    /// A `Refused` error: nothing was written.
    pub fn refused(path: impl Into<String>, message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Refused, message).at(path)
    }

    /// A system call's errno, with its kind derived from the operation and the errno.
    pub fn os(operation: Operation, path: impl Into<String>, errno: i32) -> Self {
        let kind = match (operation, errno) {
            (_, ENOSPC | EDQUOT | EFBIG) => ErrorKind::Full,
            (Operation::Open | Operation::Stat, EBUSY | ETXTBSY | EAGAIN) => ErrorKind::Busy,
            (Operation::Lock, EAGAIN | EACCES) => ErrorKind::Busy,
            (Operation::Open | Operation::Stat, _) => ErrorKind::Unreachable,
            _ => ErrorKind::Io,
        };
        let mut error = Error::new(kind, io::Error::from_raw_os_error(errno).to_string());
        error.0.operation = Some(operation);
        error.0.errno = Some(errno);
        error.at(path)
    }

    /// An `io::Error` of an operation on a path.
    pub fn io(operation: Operation, path: impl Into<String>, source: &io::Error) -> Self {
        match source.raw_os_error() {
            Some(errno) => Error::os(operation, path, errno),
            None => {
                let mut error = Error::new(ErrorKind::Io, source.to_string()).at(path);
                error.0.operation = Some(operation);
                error
            }
        }
    }

    /// With the path it is about.
    pub fn at(mut self, path: impl Into<String>) -> Self {
        self.0.path = Some(path.into());
        self
    }

    /// With the operation that failed.
    pub fn during(mut self, operation: Operation) -> Self {
        self.0.operation = Some(operation);
        self
    }

    /// With the byte offset it happened at.
    pub fn offset(mut self, offset: u64) -> Self {
        self.0.offset = Some(offset);
        self
    }

    /// With the next step for the user.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Its kind.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The errno of the call, where there was one.
    pub fn errno(&self) -> Option<i32> {
        self.0.errno
    }

    /// The byte offset it happened at.
    pub fn at_offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// The sentence for people, without path, offset and hint.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The process exit code.
    pub fn exit_code(&self) -> u8 {
        self.0.kind.exit_code()
    }

    /// The record of a `result` event.
    pub fn record(&self) -> ErrorRecord {
        let details = &self.0;
        ErrorRecord {
            kind: details.kind,
            retryable: details.kind.retryable(),
            disk: None,
            operation: details.operation,
            path: details.path.clone(),
            offset: details.offset,
            errno: details.errno,
            message: details.message.clone(),
            hint: details.hint.clone(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let details = &self.0;
        if let Some(operation) = details.operation {
            write!(f, "{operation}")?;
        }
        if let Some(path) = &details.path {
            let space = if details.operation.is_some() { " " } else { "" };
            write!(f, "{space}{path}")?;
        }
        if let Some(offset) = details.offset {
            write!(f, " at offset {offset}")?;
        }
        if details.operation.is_some() || details.path.is_some() || details.offset.is_some() {
            f.write_str(": ")?;
        }
        f.write_str(&details.message)?;
        if let Some(hint) = &details.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// An error as it stands in a `result` event: `error {kind, retryable, disk, path, offset, errno, message}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorRecord {
    /// What to match on.
    pub kind: ErrorKind,
    /// Whether the same command may succeed later.
    pub retryable: bool,
    /// The disk's id, where the run knows disks by id.
    pub disk: Option<String>,
    /// The call that failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub operation: Option<Operation>,
    /// The endpoint or file.
    pub path: Option<String>,
    /// Byte offset.
    pub offset: Option<u64>,
    /// The kernel's error number.
    pub errno: Option<i32>,
    /// A sentence for people.
    pub message: String,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hint: Option<String>,
}

// The few numbers the mapping needs; Linux has them equal on every architecture that mover runs on.
const EAGAIN: i32 = 11;
const EACCES: i32 = 13;
const EBUSY: i32 = 16;
const ETXTBSY: i32 = 26;
const EFBIG: i32 = 27;
const ENOSPC: i32 = 28;
const EDQUOT: i32 = 122;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_operation_path_offset_cause_and_next_step() {
        let error = Error::os(Operation::Read, "/x/disk.raw", 5).offset(4096).hint("see dmesg");
        assert_eq!(
            error.to_string(),
            "read /x/disk.raw at offset 4096: Input/output error (os error 5); see dmesg"
        );
        assert_eq!(error.kind(), ErrorKind::Io);
        assert_eq!(error.record().errno, Some(5));
    }

    #[test]
    fn errno_is_mapped_by_operation() {
        assert_eq!(Error::os(Operation::Write, "x", ENOSPC).exit_code(), 10);
        assert_eq!(Error::os(Operation::Open, "x", 2).exit_code(), 10);
        assert_eq!(Error::os(Operation::Open, "x", EBUSY).exit_code(), 9);
        assert_eq!(Error::os(Operation::Read, "x", 5).exit_code(), 1);
    }

    #[test]
    fn the_most_severe_code_wins() {
        assert_eq!(most_severe(0, 3), 3);
        assert_eq!(most_severe(3, 1), 1);
        assert_eq!(most_severe(6, 1), 6);
        assert_eq!(most_severe(5, 10), 10);
        assert_eq!(most_severe(0, 0), 0);
    }
}
