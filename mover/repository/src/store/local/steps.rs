//! The hooks by which tests see, and cut, every step of a local store.

use std::io;
use std::path::PathBuf;

/// What a local store is about to do, or has done: tests cut here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A temporary file is made.
    Create(PathBuf),
    /// Bytes are written to it, or it gets its length.
    Write(PathBuf),
    /// fsync of a file.
    SyncFile(PathBuf),
    /// link(2) to its final name.
    Link(PathBuf, PathBuf),
    /// rename(2) to its final name, where the filesystem has no hard links.
    Rename(PathBuf, PathBuf),
    /// A folder is made.
    MakeFolder(PathBuf),
    /// fsync of a folder.
    SyncFolder(PathBuf),
    /// A name is removed: a file's, or an empty folder's.
    Remove(PathBuf),
}

/// Called around every step of a local store; an error from it is the step's outcome. What a ring writes to an upload's
/// file is no step; the fsync that makes it durable is.
pub trait Steps: Send + Sync {
    /// Before the step: an error means that it did not happen.
    ///
    /// # Errors
    /// Whatever the test wants.
    fn before(&self, step: &Step) -> io::Result<()>;
    /// After the step, and only if it happened: an error means that nobody was told.
    ///
    /// # Errors
    /// Whatever the test wants.
    fn after(&self, step: &Step) -> io::Result<()>;
}
