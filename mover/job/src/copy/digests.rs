//! `--digest-out`: JSON lines in the order of the disk. Format: docs/formats/digests.md.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use mover_model::event::DigestLine;
use mover_model::{Error, Operation, Result};

use super::spool::{Record, Spool};

/// How the format begins; also how a file is known that may be replaced.
const FIRST: &str = r#"{"format":"mover-digests","version":1"#;

/// A file of digests that is not there yet: it appears whole or not at all.
pub(super) struct DigestFile {
    path: PathBuf,
    label: String,
    temporary: tempfile::NamedTempFile,
}

impl DigestFile {
    /// Takes the room before anything is moved, so that it cannot be refused after hours.
    ///
    /// # Errors
    /// `Refused` when something else than digests is there and nobody said `--force`, `Unreachable` when the
    /// folder cannot be written.
    pub fn create(path: &Path, force: bool) -> Result<Self> {
        let label = path.display().to_string();
        if path.is_dir() || path.file_name().is_none() {
            return Err(Error::usage("is no name of a file: --digest-out writes one").at(label));
        }
        match std::fs::metadata(path) {
            Ok(meta) if !meta.is_file() => {
                return Err(Error::refused(label, "is no regular file, so no place for digests")
                    .hint("name another --digest-out file"));
            }
            Ok(meta) if meta.len() > 0 && !force && !holds_digests(path) => {
                return Err(Error::refused(label, "holds something else than digests")
                    .hint("name another --digest-out file, or say --force"));
            }
            _ => {}
        }
        let temporary = temporary_beside(path, ".mover-digests-")?;
        Ok(DigestFile { path: path.to_owned(), label, temporary })
    }

    /// Writes all digests and gives the file its name.
    pub fn write(self, spool: &Spool, block_size: u32) -> Result<()> {
        let DigestFile { path, label, temporary } = self;
        let io = |error: std::io::Error| Error::io(Operation::Write, &label, &error);
        let mut out = std::io::BufWriter::new(temporary.as_file());
        writeln!(out, r#"{FIRST},"algorithm":"xxh3-128","block_size":{block_size}}}"#).map_err(io)?;
        // Zeros are joined, so that the file does not tell how they were found.
        let mut zeros: Option<Record> = None;
        for record in spool.sorted()? {
            let record = record?;
            if let Some(open) = &mut zeros {
                if record.zero && open.pair == record.pair && open.start + open.length == record.start {
                    open.length += record.length;
                    continue;
                }
                write_line(&mut out, open).map_err(io)?;
                zeros = None;
            }
            if record.zero {
                zeros = Some(record);
            } else {
                write_line(&mut out, &record).map_err(io)?;
            }
        }
        if let Some(zeros) = zeros {
            write_line(&mut out, &zeros).map_err(io)?;
        }
        out.into_inner().map_err(|error| io(error.into_error()))?.sync_all().map_err(io)?;
        temporary.persist(&path).map_err(|error| io(error.error))?;
        Ok(())
    }
}

fn write_line(out: &mut impl Write, record: &Record) -> std::io::Result<()> {
    let line = DigestLine {
        pair: record.pair as usize,
        start: record.start,
        length: record.length,
        xxh3_128: record.digest(),
        zero: record.zero,
    };
    serde_json::to_writer(&mut *out, &line)?;
    out.write_all(b"\n")
}

fn holds_digests(path: &Path) -> bool {
    let mut begin = [0; FIRST.len()];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut begin));
    read.is_ok() && begin == FIRST.as_bytes()
}

/// A temporary file in the folder of `path`, from where it can be renamed to it.
///
/// # Errors
/// `Unreachable` when the folder is not there or may not be written.
pub(super) fn temporary_beside(path: &Path, prefix: &str) -> Result<tempfile::NamedTempFile> {
    use nix::unistd::{AccessFlags, access};
    let label = path.display().to_string();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Asked first, as the error of what follows does not tell the errno.
    access(folder, AccessFlags::W_OK | AccessFlags::X_OK)
        .map_err(|errno| Error::os(Operation::Open, &label, errno as i32))?;
    let temporary = tempfile::Builder::new().prefix(prefix).tempfile_in(folder);
    temporary.map_err(|error| Error::io(Operation::Open, &label, &error))
}
