//! No file has two roles: a ledger appended to the disk it tells of would destroy it.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use mover_model::{Error, Locator, Result};

/// The files of a command line, with what each is for: `--journal`, `a source`.
#[derive(Debug, Default)]
pub struct Roles {
    flags: Vec<(&'static str, PathBuf)>,
    endpoints: Vec<(&'static str, PathBuf)>,
}

impl Roles {
    /// A file that a flag names.
    pub fn flag(&mut self, flag: &'static str, path: Option<&Path>) {
        self.flags.extend(path.map(|path| (flag, path.to_owned())));
    }

    /// A source or a target; `-` and `null:` are no files.
    pub fn endpoint(&mut self, what: &'static str, locator: &Locator) {
        if let Locator::Path(path) = locator {
            self.endpoints.push((what, path.clone()));
        }
    }

    /// Refuses a file that has two roles, and messages that would go where the data goes.
    ///
    /// # Errors
    /// `Usage`.
    pub fn check(&self, stdout_is_data: bool) -> Result<()> {
        for (index, (flag, path)) in self.flags.iter().enumerate() {
            for (what, other) in self.flags[index + 1..].iter().chain(&self.endpoints) {
                if same_file(path, other) {
                    return Err(Error::usage(format!("{flag} {} is also {what}", path.display()))
                        .hint(format!("name another file for {flag}")));
                }
            }
        }
        if stdout_is_data {
            let stderr = ("standard error", PathBuf::from("/proc/self/fd/2"));
            for (what, path) in self.flags.iter().chain([&stderr]) {
                if same_open_file(path, Path::new("/proc/self/fd/1")) {
                    return Err(Error::usage(format!(
                        "{what} goes to standard output, which carries the data"
                    ))
                    .hint("send it elsewhere: data and messages would mix"));
                }
            }
        }
        Ok(())
    }
}

/// Whether two names mean one file, which need not exist yet. Terminals, pipes and /dev/null may be shared.
pub fn same_file(one: &Path, other: &Path) -> bool {
    match (std::fs::metadata(one), std::fs::metadata(other)) {
        (Ok(facts), Ok(_)) => {
            let kind = facts.file_type();
            !kind.is_fifo() && !kind.is_socket() && same_open_file(one, other)
        }
        (Err(_), Err(_)) => {
            let place = |path: &Path| {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                let folder = folder.unwrap_or(Path::new(".")).canonicalize().ok()?;
                Some((folder, path.file_name()?.to_owned()))
            };
            place(one).is_some_and(|one| place(other) == Some(one))
        }
        _ => false,
    }
}

/// Whether two names that exist mean one file, pipe or socket; terminals and /dev/null do not count.
fn same_open_file(one: &Path, other: &Path) -> bool {
    let (Ok(one), Ok(other)) = (std::fs::metadata(one), std::fs::metadata(other)) else { return false };
    !one.file_type().is_char_device() && (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Names of standard input (0) and output (1) that the system gives are `-`: a reader of events must not find them
/// among the bytes of a disk.
pub fn standard(locator: Locator, descriptor: u8) -> Locator {
    let names = match descriptor {
        0 => ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"],
        _ => ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"],
    };
    match &locator {
        Locator::Path(path) if names.iter().any(|name| path.as_os_str() == *name) => Locator::Stream,
        _ => locator,
    }
}
