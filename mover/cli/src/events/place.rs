//! Where `--events` and `--result` write: opened and checked before the run begins.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mover_model::{Error, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{AccessFlags, access};

/// Opens what `--events` names: `fd:N`, or a file, which is appended to.
///
/// # Errors
/// `Usage`: the descriptor is not open for writing or carries something else; the file cannot be written.
pub fn open(to: &OsStr, json: bool, stdout_is_data: bool) -> Result<File> {
    match to.as_bytes().strip_prefix(b"fd:") {
        Some(number) => descriptor(&String::from_utf8_lossy(number), json, stdout_is_data),
        None => append(Path::new(to)),
    }
}

/// The name under which the kernel knows what `--events` names.
pub fn path(to: &OsStr) -> PathBuf {
    match to.as_bytes().strip_prefix(b"fd:") {
        Some(number) => Path::new("/proc/self/fd").join(OsStr::from_bytes(number)),
        None => to.into(),
    }
}

fn descriptor(number: &str, json: bool, stdout_is_data: bool) -> Result<File> {
    let bad = |message: &str| {
        Error::usage(format!("--events fd:{number}: {message}"))
            .hint("name a descriptor that the calling program left open for writing, or a file")
    };
    let fd: RawFd = number.parse().ok().filter(|fd| *fd >= 0).ok_or_else(|| bad("is no descriptor"))?;
    if fd == 1 && stdout_is_data {
        return Err(bad("standard output carries the data"));
    }
    if json && fd == if stdout_is_data { 2 } else { 1 } {
        return Err(bad("--json already writes the events there"));
    }
    let copy = duplicate(fd).map_err(|_| bad("is not open"))?;
    let flags = fcntl(&copy, FcntlArg::F_GETFL).map_err(|_| bad("is not open"))?;
    if OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE == OFlag::O_RDONLY {
        return Err(bad("is open for reading only"));
    }
    Ok(copy.into())
}

/// A copy of a descriptor that the caller of this process left open; EBADF where there is none.
#[allow(unsafe_code)]
fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fd is not negative, and the borrow ends with the call, which takes any number: one that is not
    // open is EBADF. Nothing of ours is closed or moved by it.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}

fn append(path: &Path) -> Result<File> {
    let bad = |message: String| {
        Error::usage(format!("--events {}: {message}", path.display()))
            .hint("name a file that can be written")
    };
    if std::fs::metadata(path).is_ok_and(|facts| facts.file_type().is_block_device()) {
        return Err(bad("is a block device".to_owned()));
    }
    if holds_something_else(path) {
        return Err(Error::refused(path.display().to_string(), "the file holds something else than events")
            .hint("name another --events file"));
    }
    // O_NONBLOCK: a fifo that nobody reads answers ENXIO instead of waiting for a reader.
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file = OpenOptions::new().append(true).create(true).custom_flags(flags).open(path);
    let file = file.map_err(|error| bad(error.to_string()))?;
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND)).map_err(|errno| bad(errno.desc().to_owned()))?;
    Ok(file)
}

/// Whether a regular file holds what no mover wrote: that is not overwritten or added to unasked.
fn holds_something_else(path: &Path) -> bool {
    let Ok(facts) = std::fs::metadata(path) else { return false };
    if !facts.is_file() || facts.len() == 0 {
        return false;
    }
    let mut begin = [0; EVENT_BEGIN.len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut begin));
    read.is_err() || begin != EVENT_BEGIN
}

/// How every event line begins.
const EVENT_BEGIN: [u8; 6] = *b"{\"v\":1";

/// What `--result` names: written once, whole or not at all.
pub struct ResultFile {
    path: PathBuf,
    folder: PathBuf,
}

impl ResultFile {
    /// Checks that a file can be put there; creates nothing.
    pub fn check(path: PathBuf) -> Result<Self> {
        let shown = path.display().to_string();
        let bad = |message: &str| {
            Error::usage(format!("--result {shown}: {message}"))
                .hint("name a file in a folder that can be written")
        };
        // A link to a file stays a link.
        let path = path.canonicalize().unwrap_or(path);
        if std::fs::symlink_metadata(&path).is_ok_and(|facts| !facts.is_file()) {
            return Err(bad("is there and is not a regular file"));
        }
        if path.file_name().is_none() {
            return Err(bad("is no name of a file"));
        }
        if holds_something_else(&path) {
            return Err(Error::refused(shown, "the file holds something else than a result")
                .hint("name another --result file"));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).to_owned();
        if !folder.is_dir() {
            return Err(bad("its folder does not exist"));
        }
        access(&folder, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|errno| bad(errno.desc()))?;
        Ok(ResultFile { path, folder })
    }

    /// Writes the line beside the file and renames it into place: after a crash there is the old file or the
    /// new one, because the content is flushed before the rename and the name after it.
    pub fn write(&self, line: &[u8]) -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(".mover-result-")
            // As any new file: the umask decides who may read it.
            .permissions(std::fs::Permissions::from_mode(0o666))
            .tempfile_in(&self.folder)?;
        file.write_all(line)?;
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|error| error.error)?;
        File::open(&self.folder)?.sync_all()
    }

    /// Its name in messages.
    pub fn label(&self) -> String {
        self.path.display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mover_model::ErrorKind;

    #[test]
    fn descriptors_that_cannot_carry_events() {
        for (to, json, data) in [
            ("fd:", false, false),
            ("fd:x", false, false),
            ("fd:-1", false, false),
            ("fd:1000000", false, false),
            ("fd:1", true, false),
            ("fd:1", false, true),
            ("fd:2", true, true),
        ] {
            assert_eq!(open(OsStr::new(to), json, data).unwrap_err().kind(), ErrorKind::Usage, "{to}");
        }
        let reader = File::open("/dev/null").unwrap();
        let to = format!("fd:{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
        assert!(open(OsStr::new(&to), false, false).unwrap_err().message().contains("reading only"));
    }

    #[test]
    fn files_are_appended_to_and_a_fifo_without_a_reader_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("events");
        for _ in 0..2 {
            open(file.as_os_str(), false, false).unwrap().write_all(b"{\"v\":1}\n").unwrap();
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"{\"v\":1}\n{\"v\":1}\n");
        let disk = folder.path().join("disk");
        std::fs::write(&disk, "a disk").unwrap();
        assert_eq!(open(disk.as_os_str(), false, false).unwrap_err().kind(), ErrorKind::Refused);
        assert_eq!(ResultFile::check(disk).err().map(|error| error.kind()), Some(ErrorKind::Refused));
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert!(open(fifo.as_os_str(), false, false).is_err());
    }

    #[test]
    fn a_result_replaces_a_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result");
        for text in [b"{\"v\":1,1\n", b"{\"v\":1,2\n"] {
            ResultFile::check(path.clone()).unwrap().write(text).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), text);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        for bad in [folder.path().to_owned(), folder.path().join("no/file"), "/dev/null".into(), "".into()] {
            assert!(ResultFile::check(bad).is_err());
        }
    }
}
