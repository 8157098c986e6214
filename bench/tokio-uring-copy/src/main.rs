//! A plain copy loop on tokio-uring 0.5: the baseline that `bench/compare` runs beside mover.
//!
//! `mover-bench-tokio-uring-copy SRC DST BLOCK DEPTH [plain]` copies a file with DEPTH tasks in flight, each one reading
//! BLOCK bytes and writing them where they belong, both ends O_DIRECT, holes skipped, fsync at the end.
//!
//! It uses what the crate offers: one runtime (a ring belongs to one thread), a registry of fixed buffers, COOP_TASKRUN
//! and SINGLE_ISSUER. DEFER_TASKRUN is left out: the crate waits in epoll for the ring's descriptor, and with that
//! flag no completion is posted until somebody enters the ring, so it hangs. Registered files and linked
//! operations are not offered. `plain` leaves the buffers unregistered, to see what registration is worth.
#![allow(clippy::print_stderr)]

mod arena;

use std::cell::RefCell;
use std::error::Error;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::FallocateFlags;
use nix::unistd::{Whence, lseek};
use tokio_uring::buf::fixed::{FixedBuf, FixedBufRegistry};
use tokio_uring::buf::{BoundedBuf, BoundedBufMut};
use tokio_uring::fs::File;

use arena::{Buffer, carve_buffers};

/// What O_DIRECT asks of offset, length and address; right for every 512-byte and 4 KiB device.
const ALIGNMENT: u64 = 4096;
const O_DIRECT: i32 = nix::libc::O_DIRECT;

const USAGE: &str = "usage: mover-bench-tokio-uring-copy SRC DST BLOCK_BYTES DEPTH [plain]";

type Failure = Box<dyn Error>;

struct Arguments {
    source: String,
    target: String,
    block_bytes: usize,
    depth: usize,
    fixed: bool,
}

fn main() -> Result<(), Failure> {
    let arguments = parse_arguments()?;
    let mut ring = tokio_uring::uring_builder();
    ring.setup_single_issuer().setup_coop_taskrun();
    let entries = u32::try_from(arguments.depth * 2)?.next_power_of_two().max(16);
    tokio_uring::builder().entries(entries).uring_builder(&ring).start(copy(arguments))
}

fn parse_arguments() -> Result<Arguments, Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (source, target, block, depth, fixed) = match words.as_slice() {
        [source, target, block, depth] => (source, target, block, depth, true),
        [source, target, block, depth, plain] if plain == "plain" => (source, target, block, depth, false),
        _ => return Err(USAGE.into()),
    };
    let (block_bytes, depth): (usize, usize) = (block.parse()?, depth.parse()?);
    if block_bytes == 0 || !(block_bytes as u64).is_multiple_of(ALIGNMENT) || !(1..=1024).contains(&depth) {
        return Err("BLOCK_BYTES must be a multiple of 4096, DEPTH from 1 to 1024".into());
    }
    Ok(Arguments { source: source.clone(), target: target.clone(), block_bytes, depth, fixed })
}

async fn copy(arguments: Arguments) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    let source = open_direct(options.read(true), &arguments.source)?;
    let mut options = OpenOptions::new();
    let target = open_direct(options.write(true).create(true).truncate(false), &arguments.target)?;

    let size = source.metadata()?.len();
    let target_before = target.metadata()?;
    if (target_before.dev(), target_before.ino()) == (source.metadata()?.dev(), source.metadata()?.ino()) {
        return Err("the target is the source".into());
    }
    // Holes are only skipped. Where the target had blocks before, they are punched, or old data would shine through.
    let punch_holes = target_before.blocks() > 0;
    target.set_len(size)?;
    let length_setter = target.try_clone()?;

    let buffers = carve_buffers(arguments.depth, arguments.block_bytes)?;
    let registry = FixedBufRegistry::new(buffers.iter().copied());
    let fixed = arguments.fixed && register(&registry);
    let shared = Rc::new(Shared {
        planner: RefCell::new(Planner::new(source.try_clone()?, size, arguments.block_bytes as u64)),
        source: File::from_std(source),
        target: File::from_std(target),
        punch_holes,
    });

    let tasks: Vec<_> = buffers
        .into_iter()
        .enumerate()
        .map(|(index, buffer)| {
            let (shared, fixed_buffer) = (shared.clone(), fixed.then(|| registry.check_out(index)).flatten());
            tokio_uring::spawn(async move {
                match fixed_buffer {
                    Some(buffer) => move_pieces(&shared, FixedIo(buffer)).await,
                    None => move_pieces(&shared, PlainIo(buffer)).await,
                }
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    if !size.is_multiple_of(ALIGNMENT) {
        length_setter.set_len(size)?; // the last write was rounded up
    }
    shared.target.sync_all().await?;
    Ok(())
}

/// O_DIRECT where the filesystem allows it; through the page cache, and said so, where it does not.
fn open_direct(options: &mut OpenOptions, path: &str) -> Result<std::fs::File, Failure> {
    match options.custom_flags(O_DIRECT).open(path) {
        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {
            eprintln!("{path}: no O_DIRECT here, going through the page cache");
            options.custom_flags(0).open(path)
        }
        result => result,
    }
    .map_err(|error| format!("{path}: {error}").into())
}

fn register(registry: &FixedBufRegistry<Buffer>) -> bool {
    match registry.register() {
        Ok(()) => true,
        Err(error) => {
            eprintln!("buffers cannot be registered ({error}): using plain reads and writes");
            false
        }
    }
}

struct Shared {
    planner: RefCell<Planner>,
    source: File,
    target: File,
    punch_holes: bool,
}

/// One task: takes pieces off the common planner until there are none.
async fn move_pieces<B: BufferIo>(shared: &Shared, mut buffer: B) -> io::Result<()> {
    loop {
        let piece = shared.planner.borrow_mut().next_piece()?;
        match piece {
            None => return Ok(()),
            Some(Piece::Hole { offset, length }) if shared.punch_holes => {
                let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                shared.target.fallocate(offset, length, flags.bits()).await?;
            }
            Some(Piece::Hole { .. }) => {}
            Some(Piece::Data { offset, length }) => {
                buffer = move_data(shared, buffer, offset, length).await?
            }
        }
    }
}

async fn move_data<B: BufferIo>(shared: &Shared, mut buffer: B, offset: u64, length: u64) -> io::Result<B> {
    let mut done: u64 = 0;
    while done < length {
        let wanted = align_up(length - done) as usize;
        let (result, returned) = buffer.read(&shared.source, wanted, offset + done).await;
        buffer = returned;
        let read = match result? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => (read as u64).min(length - done),
        };
        // A short read that ends unaligned is the end of the file: the write is rounded up and cut off later.
        let (result, returned) =
            buffer.write_all(&shared.target, align_up(read) as usize, offset + done).await;
        buffer = returned;
        result?;
        done += read;
    }
    Ok(buffer)
}

/// The two ways to do the same: tokio-uring has separate calls for registered buffers.
trait BufferIo: Sized {
    async fn read(self, file: &File, length: usize, offset: u64) -> (io::Result<usize>, Self);
    async fn write_all(self, file: &File, length: usize, offset: u64) -> (io::Result<()>, Self);
}

struct FixedIo(FixedBuf);

impl BufferIo for FixedIo {
    async fn read(self, file: &File, length: usize, offset: u64) -> (io::Result<usize>, Self) {
        let (result, slice) = file.read_fixed_at(self.0.slice(..length), offset).await;
        (result, Self(slice.into_inner()))
    }

    async fn write_all(mut self, file: &File, length: usize, offset: u64) -> (io::Result<()>, Self) {
        // SAFETY: the arena was written over its whole length before it was carved into buffers.
        unsafe { self.0.set_init(length) };
        let (result, slice) = file.write_fixed_all_at(self.0.slice(..length), offset).await;
        (result, Self(slice.into_inner()))
    }
}

struct PlainIo(Buffer);

impl BufferIo for PlainIo {
    async fn read(self, file: &File, length: usize, offset: u64) -> (io::Result<usize>, Self) {
        let (result, slice) = file.read_at(self.0.slice(..length), offset).await;
        (result, Self(slice.into_inner()))
    }

    async fn write_all(self, file: &File, length: usize, offset: u64) -> (io::Result<()>, Self) {
        let (result, slice) = file.write_all_at(self.0.slice(..length), offset).await;
        (result, Self(slice.into_inner()))
    }
}

enum Piece {
    Data { offset: u64, length: u64 },
    Hole { offset: u64, length: u64 },
}

/// Walks the source by SEEK_DATA and SEEK_HOLE and hands out pieces of at most one block.
struct Planner {
    source: std::fs::File,
    size: u64,
    block_bytes: u64,
    position: u64,
    data_end: u64,
}

impl Planner {
    fn new(source: std::fs::File, size: u64, block_bytes: u64) -> Self {
        Self { source, size, block_bytes, position: 0, data_end: 0 }
    }

    fn next_piece(&mut self) -> io::Result<Option<Piece>> {
        if self.position >= self.size {
            return Ok(None);
        }
        if self.position >= self.data_end {
            let hole = self.position;
            let data = self.seek(Whence::SeekData)?.unwrap_or(self.size);
            self.position = (data / ALIGNMENT * ALIGNMENT).max(hole);
            if data < self.size {
                self.data_end = self.seek(Whence::SeekHole)?.map_or(self.size, align_up).min(self.size);
            } else {
                self.position = self.size;
            }
            if self.position > hole {
                return Ok(Some(Piece::Hole { offset: hole, length: self.position - hole }));
            }
        }
        let (offset, length) = (self.position, self.block_bytes.min(self.data_end - self.position));
        self.position += length;
        Ok(Some(Piece::Data { offset, length }))
    }

    fn seek(&self, whence: Whence) -> io::Result<Option<u64>> {
        match lseek(&self.source, self.position as i64, whence) {
            Ok(offset) => Ok(Some(offset as u64)),
            Err(Errno::ENXIO) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn align_up(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT)
}
