//! Disk layouts: where data, written zeros and holes lie, with content that follows from seed and offset.
//!
//! Whatever offset is asked for, the right bytes can be computed: a copy is checked against the layout itself
//! ([`Layout::check`]), with no need for the source. No byte of data is zero, so that every lost byte shows.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use crate::compare::{Difference, size_of};
use crate::rng::{Rng, mix};

/// Bytes that are computed, written or compared at a time.
const CHUNK: u64 = 1024 * 1024;

/// What a piece of a disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// Bytes, none of which is zero.
    Data,
    /// Zeros that were written.
    Zero,
    /// Nothing was written.
    Hole,
}

/// One piece of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// First byte.
    pub start: u64,
    /// Number of bytes, more than none.
    pub len: u64,
    /// What it holds. Neighbours may hold the same.
    pub content: Content,
}

impl Piece {
    /// The byte after the last.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// What random layouts look like.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Sizes of the disk.
    pub size: Range<u64>,
    /// Sizes of a piece; small and large ones are equally likely.
    pub piece: Range<u64>,
    /// The most pieces; the rest is hole.
    pub pieces_max: usize,
    /// All boundaries and the size are multiples of this: 1 for files, the block size for devices.
    pub align: u64,
}

impl Shape {
    /// A file of up to `size_max` bytes with boundaries anywhere.
    pub fn file(size_max: u64) -> Shape {
        Shape { size: 1..size_max + 1, piece: 1..size_max / 4 + 2, pieces_max: 200, align: 1 }
    }

    /// A device of up to `size_max` bytes with boundaries at blocks.
    pub fn device(size_max: u64, block_size: u64) -> Shape {
        Shape {
            size: block_size..size_max + 1,
            piece: 1..size_max / 4 + 2,
            pieces_max: 200,
            align: block_size,
        }
    }
}

/// A disk: its size, its pieces in order without gaps, and the seed of its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    seed: u64,
    size: u64,
    pieces: Vec<Piece>,
}

impl Layout {
    /// A random layout; the same seed and shape give the same one.
    pub fn random(seed: u64, shape: &Shape) -> Layout {
        let mut rng = Rng::new(seed);
        let whole_blocks = |bytes: u64| (bytes / shape.align).max(1) * shape.align;
        let size = whole_blocks(rng.range(shape.size.clone()));
        let mut layout = Layout { seed, size, pieces: Vec::new() };
        let mut start = 0;
        while start < size {
            let last = layout.pieces.len() + 1 >= shape.pieces_max;
            let content = *rng.pick(&[Content::Data, Content::Data, Content::Zero, Content::Hole]);
            let len = whole_blocks(rng.magnitude(shape.piece.clone())).min(size - start);
            let piece = Piece { start, len, content };
            layout.pieces.push(if last {
                Piece { len: size - start, content: Content::Hole, ..piece }
            } else {
                piece
            });
            start = layout.pieces[layout.pieces.len() - 1].end();
        }
        layout
    }

    /// `data_len` bytes of data at the start of every `period`, the rest hole.
    pub fn regular(seed: u64, size: u64, period: u64, data_len: u64) -> Layout {
        assert!(0 < data_len && data_len < period, "{data_len} bytes of data in {period}");
        let mut pieces = Vec::new();
        for start in (0..size).step_by(period as usize) {
            let data = data_len.min(size - start);
            pieces.push(Piece { start, len: data, content: Content::Data });
            let hole = (period - data_len).min(size - start - data);
            if hole > 0 {
                pieces.push(Piece { start: start + data, len: hole, content: Content::Hole });
            }
        }
        Layout { seed, size, pieces }
    }

    /// A layout of these pieces, laid one after the other.
    pub fn of(seed: u64, pieces: &[(u64, Content)]) -> Layout {
        let mut layout = Layout { seed, size: 0, pieces: Vec::new() };
        for &(len, content) in pieces.iter().filter(|(len, _)| *len > 0) {
            layout.pieces.push(Piece { start: layout.size, len, content });
            layout.size += len;
        }
        layout
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The pieces, in order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Bytes in pieces of this content.
    pub fn bytes(&self, content: Content) -> u64 {
        self.pieces.iter().filter(|piece| piece.content == content).map(|piece| piece.len).sum()
    }

    /// The right bytes from an offset on (which, with the buffer, must lie within the disk).
    pub fn fill(&self, offset: u64, buffer: &mut [u8]) {
        let end = offset + buffer.len() as u64;
        assert!(end <= self.size, "{offset}..{end} in a disk of {} bytes", self.size);
        let first = self.pieces.partition_point(|piece| piece.end() <= offset);
        for piece in self.pieces[first..].iter().take_while(|piece| piece.start < end) {
            let (from, to) = (piece.start.max(offset), piece.end().min(end));
            let part = &mut buffer[(from - offset) as usize..(to - offset) as usize];
            match piece.content {
                Content::Data => data(self.seed, from, part),
                Content::Zero | Content::Hole => part.fill(0),
            }
        }
    }

    /// Writes the disk to a path: a file is made anew and sparse, a block device gets zeros for its holes.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let is_device = path.metadata().is_ok_and(|data| data.file_type().is_block_device());
        let file = OpenOptions::new().write(true).create(!is_device).truncate(!is_device).open(path)?;
        if !is_device {
            file.set_len(self.size)?;
        }
        self.write_to(&file, is_device)?;
        file.sync_all()
    }

    /// Writes data and zeros, and zeros for holes too when asked to, into an open file.
    pub fn write_to(&self, file: &File, holes: bool) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK as usize];
        for piece in self.pieces.iter().filter(|piece| holes || piece.content != Content::Hole) {
            for start in (piece.start..piece.end()).step_by(CHUNK as usize) {
                let part = &mut buffer[..(piece.end() - start).min(CHUNK) as usize];
                self.fill(start, part);
                file.write_all_at(part, start)?;
            }
        }
        Ok(())
    }

    /// Reads a file or device through and gives the first difference from the layout (`left` is what was
    /// read, `right` what is right). A device may be larger; what it holds beyond the end is not looked at.
    pub fn check(&self, path: &Path) -> io::Result<Option<Difference>> {
        let file = File::open(path)?;
        let size = size_of(&file)?;
        let is_device = file.metadata()?.file_type().is_block_device();
        let (mut read, mut right) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
        for start in (0..self.size.min(size)).step_by(CHUNK as usize) {
            let len = (self.size.min(size) - start).min(CHUNK) as usize;
            file.read_exact_at(&mut read[..len], start)?;
            self.fill(start, &mut right[..len]);
            if let Some(difference) = Difference::within(start, &read[..len], &right[..len]) {
                return Ok(Some(difference));
            }
        }
        if size == self.size || (is_device && size > self.size) {
            return Ok(None);
        }
        let byte = |is_there: bool, value: u8| is_there.then_some(value);
        let offset = size.min(self.size);
        let (mut left, mut right) = ([0], [0]);
        if size > offset {
            file.read_exact_at(&mut left, offset)?;
        } else {
            self.fill(offset, &mut right);
        }
        Ok(Some(Difference {
            offset,
            left: byte(size > offset, left[0]),
            right: byte(self.size > offset, right[0]),
        }))
    }

    /// [`Layout::check`] that panics with the difference and the seed.
    pub fn assert_on(&self, path: &Path) {
        let found = self.check(path).unwrap_or_else(|error| panic!("reading {}: {error}", path.display()));
        if let Some(difference) = found {
            panic!("{} is not the layout of seed {}: {difference}", path.display(), self.seed);
        }
    }
}

/// The data bytes of a seed from an offset on; none of them is zero.
pub fn data(seed: u64, offset: u64, buffer: &mut [u8]) {
    let word = |index: u64| (mix(seed ^ mix(index)) | 0x0101_0101_0101_0101).to_le_bytes();
    let head = ((8 - offset % 8) % 8).min(buffer.len() as u64) as usize;
    let (first, rest) = buffer.split_at_mut(head);
    if head > 0 {
        let skip = (offset % 8) as usize;
        first.copy_from_slice(&word(offset / 8)[skip..skip + head]);
    }
    let start = (offset + head as u64) / 8;
    for (index, part) in rest.chunks_mut(8).enumerate() {
        part.copy_from_slice(&word(start + index as u64)[..part.len()]);
    }
}
