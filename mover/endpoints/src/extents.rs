//! Allocation of regular files, found by lseek(2) with SEEK_DATA and SEEK_HOLE as it is asked for: a file
//! of any number of extents takes the same memory.

use std::fs::File;

use mover_model::{Error, ErrorKind, Extent, ExtentKind, Operation, Result};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// The extents of a file, in order and without gaps, up to the size it had when it was opened.
pub(crate) struct SeekExtents<'a> {
    file: &'a File,
    label: String,
    position: u64,
    size: u64,
    /// Data found behind a hole: given next.
    data_at: Option<u64>,
}

impl<'a> SeekExtents<'a> {
    pub fn new(file: &'a File, label: String, size: u64) -> Self {
        SeekExtents { file, label, position: 0, size, data_at: None }
    }

    fn seek(&self, offset: u64, whence: Whence) -> Result<Option<u64>> {
        match lseek(self.file, offset as i64, whence) {
            Ok(found) => Ok(Some((found as u64).min(self.size))),
            // ENXIO: nothing of the kind up to the end of the file.
            Err(Errno::ENXIO) => Ok(None),
            // A filesystem without allocation: everything is data.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) if matches!(whence, Whence::SeekData) => Ok(Some(offset)),
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(Some(self.size)),
            Err(errno) => Err(Error::os(Operation::Seek, &self.label, errno as i32).offset(offset)),
        }
    }

    /// Past the end of a file that was cut short nothing is found either: that is no hole.
    fn refuse_shrunk(&self) -> Result<()> {
        let meta = self.file.metadata().map_err(|error| Error::io(Operation::Stat, &self.label, &error))?;
        if meta.len() >= self.size {
            return Ok(());
        }
        let message = "the source ended before the size it had when the run began";
        Err(Error::new(ErrorKind::SourceShrank, message)
            .during(Operation::Seek)
            .at(&self.label)
            .offset(meta.len())
            .hint("let it stand still meanwhile, as a snapshot does"))
    }

    fn step(&mut self) -> Result<Extent> {
        let start = self.position;
        let data = match self.data_at.take() {
            Some(data) => Some(data),
            None => self.seek(start, Whence::SeekData)?,
        };
        match data {
            None => {
                self.refuse_shrunk()?;
                self.position = self.size;
                Ok(Extent::new(start, self.size - start, ExtentKind::Hole))
            }
            Some(data) if data > start => {
                self.position = data;
                self.data_at = Some(data);
                Ok(Extent::new(start, data - start, ExtentKind::Hole))
            }
            Some(_) => {
                // A file that changes meanwhile may answer a hole at once: take a step all the same.
                let end = self.seek(start, Whence::SeekHole)?.unwrap_or(self.size);
                self.position =
                    if end > start { end } else { (start + 1).next_multiple_of(4096).min(self.size) };
                Ok(Extent::data(start, self.position - start))
            }
        }
    }
}

impl Iterator for SeekExtents<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Result<Extent>> {
        if self.position >= self.size {
            return None;
        }
        let step = self.step();
        if step.is_err() {
            self.position = self.size;
        }
        Some(step)
    }
}
