//! Objects in a folder, for reading.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use mover_engine::Alignment;
use mover_model::{Error, ErrorKind, Operation, Result};

use super::place::Place;
use crate::store::{DirectFile, Key, Object};

/// An open object.
pub(super) struct LocalObject {
    place: Arc<Place>,
    path: PathBuf,
    file: File,
    size: u64,
    /// Whether the engine's ring reads it: packs, which are large and read once.
    is_large: bool,
    direct: OnceLock<Option<(File, Alignment)>>,
}

impl LocalObject {
    pub(super) fn open(place: &Arc<Place>, key: &Key) -> Result<Option<Self>> {
        let path = place.path_of(key);
        let Some(file) = open_file(place, key)? else { return Ok(None) };
        let meta = file.metadata().map_err(|error| place.error(Operation::Stat, &path, &error))?;
        if meta.is_dir() {
            // Keys below it, but no object.
            return Ok(None);
        }
        if !meta.is_file() {
            return Err(Error::new(ErrorKind::Corruption, "is no regular file")
                .at(path.display().to_string())
                .hint("something other than mover put it into the repository: look what it is, and move it away"));
        }
        let is_large = key.as_str().starts_with("packs/");
        let place = place.clone();
        Ok(Some(LocalObject { place, path, file, size: meta.len(), is_large, direct: OnceLock::new() }))
    }

    fn too_short(&self, offset: u64) -> Error {
        Error::new(
            ErrorKind::Corruption,
            format!("the object ends at {} bytes, before what is needed", self.size),
        )
        .during(Operation::Read)
        .at(self.path.display().to_string())
        .offset(offset)
        .hint("`mover verify` tells what the damage touches")
    }
}

/// Opens an object's file; `None` when there is none. A link in its place is never followed.
pub(super) fn open_file(place: &Place, key: &Key) -> Result<Option<File>> {
    let path = place.path_of(key);
    // Without O_NONBLOCK, a pipe in an object's place would make us wait for its writer.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(error) => Err(place.error(Operation::Open, &path, &error)),
    }
}

impl Object for LocalObject {
    fn size(&self) -> u64 {
        self.size
    }

    fn file(&self) -> Option<DirectFile<'_>> {
        let direct =
            || self.is_large.then(|| self.place.open_direct(&self.path, &self.file, false)).flatten();
        Some(match self.direct.get_or_init(direct) {
            Some((file, alignment)) => DirectFile { fd: file.as_fd(), alignment: *alignment },
            None => DirectFile { fd: self.file.as_fd(), alignment: Alignment::NONE },
        })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(self.too_short(offset));
        }
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            match self.file.read_at(&mut buffer[done..], at) {
                // Cut short since it was opened.
                Ok(0) => return Err(self.too_short(at)),
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(self.place.error(Operation::Read, &self.path, &error).offset(at));
                }
            }
        }
        Ok(())
    }

    fn read_all(&self, most: u64) -> Result<Vec<u8>> {
        let length = usize::try_from(self.size).ok().filter(|_| self.size <= most);
        let Some(length) = length else {
            let what =
                format!("the object has {} bytes; an object of its kind has at most {most}", self.size);
            return Err(Error::new(ErrorKind::Corruption, what)
                .during(Operation::Read)
                .at(self.path.display().to_string())
                .hint("it was damaged or put there by something else"));
        };
        let mut bytes = vec![0; length];
        self.read_at(0, &mut bytes)?;
        Ok(bytes)
    }
}
