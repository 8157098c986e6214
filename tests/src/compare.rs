//! Comparing files and devices byte for byte, and naming a content by a checksum.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use crate::sys;

const CHUNK: u64 = 1024 * 1024;
/// Grain of [`fingerprint`]: smaller than any block that a copy would leave out.
const GRAIN: usize = 512;

/// The first byte in which two contents differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// Where.
    pub offset: u64,
    /// The byte on the left; none where the left has ended.
    pub left: Option<u8>,
    /// The byte on the right; none where the right has ended.
    pub right: Option<u8>,
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let byte = |byte: Option<u8>| byte.map_or("end".to_owned(), |byte| format!("{byte:#04x}"));
        write!(formatter, "at offset {}: left {}, right {}", self.offset, byte(self.left), byte(self.right))
    }
}

impl Difference {
    /// The first difference of two buffers of the same length that start at this offset.
    pub fn within(start: u64, left: &[u8], right: &[u8]) -> Option<Difference> {
        debug_assert_eq!(left.len(), right.len());
        if left == right {
            return None;
        }
        let index = left.iter().zip(right).position(|(left, right)| left != right)?;
        Some(Difference { offset: start + index as u64, left: Some(left[index]), right: Some(right[index]) })
    }
}

/// Size of a file or a block device.
pub fn size_of(file: &File) -> io::Result<u64> {
    sys::seek(file, 0, libc::SEEK_END)
}

/// Compares two files or devices; where both have a hole, nothing is read. Gives the first difference.
///
/// What was written is flushed and the page cache dropped first, so that the bytes come from below.
pub fn compare(left: &Path, right: &Path) -> io::Result<Option<Difference>> {
    let (left, right) = (open_cold(left)?, open_cold(right)?);
    let (left_size, right_size) = (size_of(&left)?, size_of(&right)?);
    let end = left_size.min(right_size);
    let (mut left_bytes, mut right_bytes) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
    let mut offset = 0;
    let (mut left_data, mut right_data) = (next_data(&left, 0, end)?, next_data(&right, 0, end)?);
    while offset < end {
        // Asked again only when passed: a file with many pieces would else be sought through for each chunk.
        if left_data.end <= offset {
            left_data = next_data(&left, offset, end)?;
        }
        if right_data.end <= offset {
            right_data = next_data(&right, offset, end)?;
        }
        offset = offset.max(left_data.start.min(right_data.start));
        let len = (end - offset).min(CHUNK) as usize;
        left.read_exact_at(&mut left_bytes[..len], offset)?;
        right.read_exact_at(&mut right_bytes[..len], offset)?;
        if let Some(difference) = Difference::within(offset, &left_bytes[..len], &right_bytes[..len]) {
            return Ok(Some(difference));
        }
        offset += len as u64;
    }
    let byte = |file: &File, size: u64| -> io::Result<Option<u8>> {
        let mut byte = [0];
        if size <= end {
            return Ok(None);
        }
        file.read_exact_at(&mut byte, end).map(|()| Some(byte[0]))
    };
    if left_size == right_size {
        return Ok(None);
    }
    Ok(Some(Difference { offset: end, left: byte(&left, left_size)?, right: byte(&right, right_size)? }))
}

/// [`compare`] that panics with the first difference.
pub fn assert_same(left: &Path, right: &Path) {
    let found = compare(left, right);
    let names = || format!("{} and {}", left.display(), right.display());
    match found {
        Ok(None) => {}
        Ok(Some(difference)) => panic!("{} differ {difference}", names()),
        Err(error) => panic!("comparing {}: {error}", names()),
    }
}

/// XXH3-128 of the whole content, holes counted as the zeros they read as. Takes time by the size.
pub fn checksum(path: &Path) -> io::Result<u128> {
    let file = open_cold(path)?;
    let (mut hash, mut buffer) = (Xxh3::new(), vec![0; CHUNK as usize]);
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset)? {
            0 => return Ok(hash.digest128()),
            count => {
                hash.update(&buffer[..count]);
                offset += count as u64;
            }
        }
    }
}

/// A checksum that skips holes: equal contents of equal size have equal ones, whether their zeros are
/// written or not. Takes time by the data.
pub fn fingerprint(path: &Path) -> io::Result<u128> {
    let file = open_cold(path)?;
    let end = size_of(&file)?;
    let (mut hash, mut buffer) = (Xxh3::new(), vec![0; CHUNK as usize]);
    hash.update(&end.to_le_bytes());
    let mut offset = 0;
    while offset < end {
        // Chunks start at multiples of the grain, else written zeros would be cut in different places.
        let data = next_data(&file, offset, end)?.start;
        offset = offset.max(data / GRAIN as u64 * GRAIN as u64);
        let len = (end - offset).min(CHUNK) as usize;
        file.read_exact_at(&mut buffer[..len], offset)?;
        for (index, grain) in buffer[..len].chunks(GRAIN).enumerate() {
            if grain.iter().any(|byte| *byte != 0) {
                hash.update(&(offset + (index * GRAIN) as u64).to_le_bytes());
                hash.update(grain);
            }
        }
        offset += len as u64;
    }
    Ok(hash.digest128())
}

fn open_cold(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    // Not every kind of file knows these two; then there is no cache to mislead us either.
    let _ = file.sync_data();
    let _ = sys::drop_cache(&file);
    Ok(file)
}

/// The next range with data at or after an offset; empty, at `end`, when there is none. Where the file cannot
/// tell (a device), everything is data.
fn next_data(file: &File, offset: u64, end: u64) -> io::Result<std::ops::Range<u64>> {
    let start = match sys::seek(file, offset as i64, libc::SEEK_DATA) {
        Ok(start) if start < end => start,
        Ok(_) => return Ok(end..end),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(end..end),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(offset..end),
        Err(error) => return Err(error),
    };
    Ok(start..sys::seek(file, start as i64, libc::SEEK_HOLE)?.min(end).max(start))
}
