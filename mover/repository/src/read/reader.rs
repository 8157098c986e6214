//! How a worker reads chunks: from the request of a slot to records of packs, read in as few operations as their places
//! allow, and from there to checked content in the slot's buffer.
//!
//! ```text
//! request → names and places of its chunks → runs: records side by side in one pack, one read each
//!   raw records of whole blocks → straight into the slot's buffer → decrypted and checked there
//!   others → scratch memory → decrypted there → decompressed into the slot's buffer → checked there
//! ```
//! A run needs a place in the ring's table of files for its pack, and for the second kind a part of the scratch memory;
//! one that finds none waits for another to end. It holds neither while it waits, so the first always goes on.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mover_engine::lane::LaneOperation;
use mover_engine::pool::{self, Pool};
use mover_engine::ring::{FileId, Submission, Token, Verb};
use mover_engine::{Alignment, Io, LaneSetup, Scratch};
use mover_model::event::Degradation;
use mover_model::{ChunkId, Error, ErrorKind, Operation, Result, limits};

use super::Chunks;
use super::chunks::{OpenPack, VERIFY_HINT, check_place};
use super::parts::{
    Disk, chunk_range, copy_part, file_of, part_bytes, part_of, rules_of, run_bytes, scratch_bytes,
};
use super::source::{BadChunk, ReadErrors};
use crate::codec;
use crate::format::entry::Encoding;
use crate::index::Location;

/// Packs that a worker's ring knows at a time: neighbours on a disk lie in few packs.
const PLACES: usize = 16;
/// Bytes between two records that are read for nothing rather than by a second operation.
const GAP_BYTES: u64 = 64 << 10;
/// A request.
struct Request {
    operation: LaneOperation,
    task: usize,
    disk: Rc<Disk>,
    /// Runs that have not ended.
    outstanding: usize,
    failed: bool,
}

/// A chunk of a request, and where it is.
#[derive(Clone, Copy)]
struct Record {
    number: u64,
    id: ChunkId,
    location: Location,
}

/// Records that are read in one operation.
struct Run {
    request: usize,
    pack: Option<Arc<OpenPack>>,
    records: Vec<Record>,
    /// What is read of the pack.
    offset: u64,
    length: u64,
    /// Where in the slot's buffer it goes; `None`: to scratch memory.
    straight: Option<u64>,
    part: Option<pool::Chunk>,
    place: usize,
    done: u64,
    retries: u32,
}

/// A place in the ring's table of files.
struct Place {
    file: FileId,
    pack: Option<Arc<OpenPack>>,
    in_flight: usize,
    used: u64,
}

/// What the lanes of one worker share.
pub(super) struct Reader {
    chunks: Arc<Chunks>,
    scratch: Scratch,
    pool: Pool,
    run_bytes: u64,
    places: Vec<Place>,
    /// Rises with every use of a place.
    uses: u64,
    requests: Vec<Option<Request>>,
    runs: Vec<Run>,
    free_runs: Vec<usize>,
    /// Runs that wait for a place or for scratch memory.
    waiting: VecDeque<usize>,
    /// Content of a chunk of which a request has only a part.
    whole: Vec<u8>,
    found: Vec<Option<(ChunkId, Location)>>,
    records: Vec<Record>,
}

impl Reader {
    /// For one worker.
    ///
    /// # Errors
    /// `Internal` when the scratch memory was not reserved.
    pub fn new(chunks: &Arc<Chunks>, setup: &mut LaneSetup<'_>) -> Result<Self> {
        let chunk_size = chunks.repository().config().chunk_size;
        let bytes = scratch_bytes(chunk_size, setup.settings().worker_bytes());
        let place = |setup: &mut LaneSetup<'_>| Place {
            file: setup.reserve_file(),
            pack: None,
            in_flight: 0,
            used: 0,
        };
        Ok(Reader {
            chunks: chunks.clone(),
            scratch: setup.scratch(bytes)?,
            pool: Pool::new(bytes, part_bytes(chunk_size)),
            run_bytes: run_bytes(chunk_size),
            places: (0..PLACES).map(|_| place(setup)).collect(),
            uses: 0,
            requests: Vec::new(),
            runs: Vec::new(),
            free_runs: Vec::new(),
            waiting: VecDeque::new(),
            whole: Vec::new(),
            found: Vec::new(),
            records: Vec::new(),
        })
    }

    /// A request begins.
    pub fn begin(&mut self, operation: LaneOperation, task: usize, disk: &Rc<Disk>, io: &mut Io<'_>) {
        let request = Request { operation, task, disk: disk.clone(), outstanding: 1, failed: false };
        let index = self.requests.iter().position(Option::is_none).unwrap_or(self.requests.len());
        if index == self.requests.len() {
            self.requests.push(Some(request));
        } else {
            self.requests[index] = Some(request);
        }
        self.look_up(index, io);
        self.make_runs(index, io);
        self.pump(io);
        // What was held at one until all runs had begun, so that none ends the request early.
        self.one_ended(index, io);
    }

    /// Finds the chunks of a request; holes are filled with zeros at once.
    fn look_up(&mut self, index: usize, io: &mut Io<'_>) {
        let Some(Request { operation, disk, .. }) = &self.requests[index] else { return };
        let (operation, disk) = (*operation, disk.clone());
        let chunk = u64::from(disk.map.chunk_size());
        let first = operation.offset / chunk;
        let count = (operation.offset + operation.length).div_ceil(chunk) - first;
        let mut found = std::mem::take(&mut self.found);
        found.clear();
        self.records.clear();
        if let Err(error) = disk.map.chunks(first, count, &mut found) {
            found.clear();
            match disk.errors {
                ReadErrors::Fail => self.fail(index, first, error, io),
                ReadErrors::Collect(_) | ReadErrors::CollectUpTo(..) => {
                    // One by one: the others may be there.
                    for number in first..first + count {
                        if let Err(error) = disk.map.chunks(number, 1, &mut found) {
                            found.truncate((number - first) as usize);
                            found.push(None);
                            self.give_up(index, number, ChunkId::HOLE, None, error, io);
                        }
                    }
                }
            }
        }
        for (at, found) in found.iter().enumerate() {
            let number = first + at as u64;
            match found {
                Some((id, location)) => {
                    self.records.push(Record { number, id: *id, location: *location });
                }
                None => io.bytes(&part_of(&operation, &disk, number)).fill(0),
            }
        }
        self.found = found;
    }

    /// Puts a request's records together as they lie.
    fn make_runs(&mut self, index: usize, io: &mut Io<'_>) {
        let mut records = std::mem::take(&mut self.records);
        records.sort_unstable_by_key(|record| (record.location.pack, record.location.entry.offset));
        let mut pack: Option<Arc<OpenPack>> = None;
        let mut last: Option<usize> = None;
        for record in &records {
            let name = record.location.pack;
            if pack.as_ref().is_none_or(|pack| pack.name != name) {
                last = None;
                pack = match self.chunks.pack(name) {
                    Ok(pack) => Some(pack),
                    Err(error) => {
                        pack = None;
                        self.bad_record(index, record, error, io);
                        continue;
                    }
                };
            }
            let Some(pack) = &pack else { continue };
            if let Err(error) = self.check_record(index, record, pack.object.size()) {
                self.bad_record(index, record, error, io);
                continue;
            }
            last = Some(self.add_record(index, record, &pack.clone(), last));
        }
        records.clear();
        self.records = records;
    }

    /// Whether a record can be what the disk has there.
    fn check_record(&self, index: usize, record: &Record, pack_size: u64) -> Result<()> {
        let entry = &record.location.entry;
        check_place(entry, pack_size)?;
        let Some(request) = &self.requests[index] else { return Ok(()) };
        let (_, length) = chunk_range(&request.disk, record.number);
        if u64::from(entry.plain) != length {
            let message = format!("the index tells {} bytes for a chunk of {length}", entry.plain);
            return Err(Error::new(ErrorKind::Corruption, message));
        }
        Ok(())
    }

    /// Adds a record to the last run, or to a new one.
    fn add_record(
        &mut self,
        index: usize,
        record: &Record,
        pack: &Arc<OpenPack>,
        last: Option<usize>,
    ) -> usize {
        let rules = rules_of(pack);
        let granule = u64::from(rules.offset);
        let entry = &record.location.entry;
        let end = entry.offset + u64::from(entry.stored);
        let straight = self.straight(index, record, rules);
        if let Some(last) = last {
            let run = &mut self.runs[last];
            let run_end = run.offset + run.length;
            match (run.straight, straight) {
                // The one read goes on where the buffer does.
                (Some(at), Some(to)) if run_end == entry.offset && at + run.length == to => {
                    run.length += u64::from(entry.stored);
                    run.records.push(*record);
                    return last;
                }
                (None, None)
                    if entry.offset <= run_end.saturating_add(GAP_BYTES)
                        && end.saturating_sub(run.offset) <= self.run_bytes =>
                {
                    run.length = run_end.max(end.next_multiple_of(granule)) - run.offset;
                    run.records.push(*record);
                    return last;
                }
                _ => {}
            }
        }
        let offset = entry.offset / granule * granule;
        let run = self.free_runs.pop().unwrap_or_else(|| {
            self.runs.push(Run {
                request: 0,
                pack: None,
                records: Vec::new(),
                offset: 0,
                length: 0,
                straight: None,
                part: None,
                place: 0,
                done: 0,
                retries: 0,
            });
            self.runs.len() - 1
        });
        let records = std::mem::take(&mut self.runs[run].records);
        self.runs[run] = Run {
            request: index,
            pack: Some(pack.clone()),
            records,
            offset,
            length: end.next_multiple_of(granule) - offset,
            straight,
            part: None,
            place: 0,
            done: 0,
            retries: 0,
        };
        self.runs[run].records.push(*record);
        if let Some(request) = &mut self.requests[index] {
            request.outstanding += 1;
        }
        self.waiting.push_back(run);
        run
    }

    /// Where in the slot's buffer a record may be read to as it is.
    fn straight(&self, index: usize, record: &Record, rules: Alignment) -> Option<u64> {
        let Some(Request { operation, disk, .. }) = &self.requests[index] else { return None };
        let entry = &record.location.entry;
        let part = part_of(operation, disk, record.number);
        let whole = part.length == u64::from(entry.plain);
        let fits = rules.allows(entry.offset, u64::from(entry.stored), part.memory.address());
        (entry.encoding == Encoding::Raw && whole && fits).then_some(part.offset - operation.offset)
    }

    /// Begins runs that wait, in their order, as long as there is room.
    fn pump(&mut self, io: &mut Io<'_>) {
        while let Some(&run) = self.waiting.front() {
            let request = self.runs[run].request;
            if self.requests[request].as_ref().is_none_or(|request| request.failed) {
                self.waiting.pop_front();
                self.end_run(run, io);
                continue;
            }
            let Some(pack) = self.runs[run].pack.clone() else { return };
            let place = match file_of(&pack) {
                Some(_) => match self.place_for(&pack, io) {
                    Some(place) => Some(place),
                    None => return,
                },
                None => None,
            };
            if self.runs[run].straight.is_none() {
                let Some(part) = self.pool.take(self.runs[run].length as usize) else { return };
                self.runs[run].part = Some(part);
            }
            self.waiting.pop_front();
            match place {
                Some(place) => {
                    self.places[place].in_flight += 1;
                    self.runs[run].place = place;
                    self.push(run, io);
                }
                None => self.read_without_ring(run, &pack, io),
            }
        }
    }

    /// A place where the pack is, or one that nothing in flight needs.
    fn place_for(&mut self, pack: &Arc<OpenPack>, io: &mut Io<'_>) -> Option<usize> {
        self.uses += 1;
        let here = self
            .places
            .iter()
            .position(|place| place.pack.as_ref().is_some_and(|placed| Arc::ptr_eq(placed, pack)));
        let index = match here {
            Some(index) => index,
            None => {
                let idle = self.places.iter().enumerate().filter(|(_, place)| place.in_flight == 0);
                let (index, _) = idle.min_by_key(|(_, place)| place.used)?;
                let place = &mut self.places[index];
                if let Some(file) = file_of(pack) {
                    io.set_file(place.file, file.fd, false);
                }
                place.pack = Some(pack.clone());
                index
            }
        };
        self.places[index].used = self.uses;
        Some(index)
    }

    fn push(&mut self, index: usize, io: &mut Io<'_>) {
        let run = &self.runs[index];
        let memory = match (run.straight, run.part, &self.requests[run.request]) {
            (Some(at), _, Some(request)) => request.operation.memory.skip(at),
            (_, Some(part), _) => io.scratch_memory(&self.scratch, self.pool.offset(part)),
            _ => unreachable!("a run has one of the two until it has ended"),
        };
        let submission = Submission {
            verb: Verb::Read,
            file: self.places[run.place].file,
            memory: memory.skip(run.done),
            length: run.length - run.done,
            offset: run.offset + run.done,
            token: Token { lane: 0, aux: 0 },
        };
        io.push(index as u32, submission);
    }

    /// A pack that is no file is read by the store.
    fn read_without_ring(&mut self, index: usize, pack: &OpenPack, io: &mut Io<'_>) {
        let run = &self.runs[index];
        let read = match (run.straight, run.part, &self.requests[run.request]) {
            (Some(at), _, Some(request)) => {
                let operation = &request.operation;
                let memory = operation.memory.skip(at);
                let part = LaneOperation { memory, length: run.length, ..*operation };
                pack.object.read_at(run.offset, io.bytes(&part))
            }
            (_, Some(part), _) => {
                let part = self.scratch.part(self.pool.offset(part), run.length as usize);
                pack.object.read_at(run.offset, io.scratch(&part))
            }
            _ => unreachable!("a run has one of the two until it has ended"),
        };
        match read {
            Ok(()) => {
                self.runs[index].done = self.runs[index].length;
                self.take_in(index, io);
            }
            Err(error) => self.bad_run(index, &error, io),
        }
        self.end_run(index, io);
    }

    /// A read has completed.
    pub fn advance(&mut self, aux: u32, result: i32, io: &mut Io<'_>) {
        let index = aux as usize;
        let run = &mut self.runs[index];
        match result {
            n if n == -libc::EINTR || n == -libc::EAGAIN => {
                run.retries += 1;
                if run.retries <= limits::RETRIES_MAX {
                    if run.retries > 8 {
                        std::thread::sleep(Duration::from_micros(u64::from(run.retries.min(1_000))));
                    }
                    return self.push(index, io);
                }
                self.failed_read(index, -n, io);
            }
            n if n < 0 => self.failed_read(index, -n, io),
            n => {
                let rules = run.pack.as_ref().map_or(Alignment::NONE, |pack| rules_of(pack));
                let granule = u64::from(rules.offset);
                run.done += n as u64;
                // A read that ended inside a block has met the pack's end; one at a block's end may go on.
                if n > 0 && run.done < run.length && run.done.is_multiple_of(granule) {
                    return self.push(index, io);
                }
                self.take_in(index, io);
            }
        }
        self.places[self.runs[index].place].in_flight -= 1;
        self.end_run(index, io);
        self.pump(io);
    }

    fn failed_read(&mut self, index: usize, errno: i32, io: &mut Io<'_>) {
        let run = &self.runs[index];
        let label = run.pack.as_ref().map(|pack| self.chunks.label_of(pack.name)).unwrap_or_default();
        let error = Error::os(Operation::Read, label, errno).offset(run.offset + run.done);
        self.bad_run(index, &error, io);
    }

    fn bad_run(&mut self, index: usize, error: &Error, io: &mut Io<'_>) {
        let request = self.runs[index].request;
        let records = std::mem::take(&mut self.runs[index].records);
        records.iter().for_each(|record| self.bad_record(request, record, error.clone(), io));
        self.runs[index].records = records;
    }

    /// Brings a run's records into the slot's buffer, checked.
    fn take_in(&mut self, index: usize, io: &mut Io<'_>) {
        let request = self.runs[index].request;
        let records = std::mem::take(&mut self.runs[index].records);
        for record in &records {
            if let Err(error) = self.take_record(index, record, io) {
                self.bad_record(request, record, error, io);
            }
        }
        self.runs[index].records = records;
    }

    fn take_record(&mut self, index: usize, record: &Record, io: &mut Io<'_>) -> Result<()> {
        let run = &self.runs[index];
        let (Some(Request { operation, disk, .. }), Some(pack)) = (&self.requests[run.request], &run.pack)
        else {
            return Ok(());
        };
        let entry = &record.location.entry;
        let at = entry.offset - run.offset;
        if at + u64::from(entry.stored) > run.done {
            let message = format!("the pack ends at {} bytes, inside the chunk", run.offset + run.done);
            return Err(Error::new(ErrorKind::Corruption, message));
        }
        let keys = self.chunks.repository().keys();
        let part = part_of(operation, disk, record.number);
        let Some(held) = run.part else {
            let bytes = io.bytes(&part);
            pack.key.open(entry, bytes)?;
            return codec::check(keys, entry, bytes, &record.id);
        };
        let held = self.scratch.part(self.pool.offset(held) + at as usize, entry.stored as usize);
        if part.length == u64::from(entry.plain) {
            let (bytes, stored) = io.bytes_and_scratch(&part, &held);
            pack.key.open(entry, stored)?;
            if entry.encoding == Encoding::Raw {
                bytes.copy_from_slice(stored);
            } else {
                codec::decompress(entry.encoding, stored, bytes)?;
            }
            codec::check(keys, entry, bytes, &record.id)?;
        } else {
            // The whole chunk is checked, whatever the request has of it.
            self.whole.resize(entry.plain as usize, 0);
            let stored = io.scratch(&held);
            pack.key.open(entry, stored)?;
            if entry.encoding == Encoding::Raw {
                self.whole.copy_from_slice(stored);
            } else {
                codec::decompress(entry.encoding, stored, &mut self.whole)?;
            }
            codec::check(keys, entry, &self.whole, &record.id)?;
            copy_part(&self.whole, disk, record.number, &part, io);
        }
        io.count_copied(part.length);
        Ok(())
    }

    /// A chunk is not whole where it was looked for: another place will do.
    fn bad_record(&mut self, index: usize, record: &Record, error: Error, io: &mut Io<'_>) {
        let Some(Request { operation, disk, failed: false, .. }) = &self.requests[index] else { return };
        let (part, disk) = (part_of(operation, disk, record.number), disk.clone());
        let entry = &record.location.entry;
        let elsewhere = self.chunks.get_elsewhere(&record.id, entry.kind, Some(&record.location));
        let (_, length) = chunk_range(&disk, record.number);
        match elsewhere {
            Ok(Some(content)) if content.len() as u64 == length => {
                copy_part(&content, &disk, record.number, &part, io);
                io.count_copied(part.length);
                io.control().degrade(Degradation {
                    about: "damaged_pack".into(),
                    wanted: "each chunk from the first place where it is".into(),
                    used: "another place".into(),
                    reason: format!("chunk {}: {}", record.id, error.message()),
                    path: Some(self.chunks.label_of(record.location.pack)),
                });
            }
            _ => self.give_up(index, record.number, record.id, Some(record.location), error, io),
        }
    }

    /// No place has a chunk as it was written.
    fn give_up(
        &mut self,
        index: usize,
        number: u64,
        id: ChunkId,
        location: Option<Location>,
        error: Error,
        io: &mut Io<'_>,
    ) {
        let Some(Request { operation, disk, .. }) = &self.requests[index] else { return };
        let (operation, disk) = (*operation, disk.clone());
        let error = match location {
            Some(location) => {
                let pack = self.chunks.label_of(location.pack);
                let message = format!("chunk {id} in pack {pack} is bad: {}", error.message());
                Error::new(error.kind(), message).during(Operation::Read)
            }
            None => error,
        };
        let (list, most) = match &disk.errors {
            ReadErrors::Fail => return self.fail(index, number, error, io),
            ReadErrors::Collect(list) => (list, usize::MAX),
            ReadErrors::CollectUpTo(list, most) => (list, *most),
        };
        let mut list = list.lock().unwrap_or_else(|p| p.into_inner());
        if list.len() >= most {
            drop(list);
            return self.fail(index, number, error, io);
        }
        io.bytes(&part_of(&operation, &disk, number)).fill(0);
        list.push(BadChunk { number, id, location, error });
    }

    /// Fails a request's task; the error names the disk, and where on it.
    fn fail(&mut self, index: usize, number: u64, error: Error, io: &mut Io<'_>) {
        let Some(request) = &mut self.requests[index] else { return };
        request.failed = true;
        let (start, _) = chunk_range(&request.disk, number);
        // Only an error about an object of the store has a path; the offset of any other is the disk's.
        let (offset, message) = match error.record().path {
            Some(path) => (start, format!("{path}: {}", error.message())),
            None => (error.at_offset().unwrap_or(start), error.message().to_owned()),
        };
        let error = Error::new(error.kind(), message).during(Operation::Read);
        io.fail_task(request.task, error.at(&request.disk.label).offset(offset).hint(VERIFY_HINT));
    }

    fn end_run(&mut self, index: usize, io: &mut Io<'_>) {
        let run = &mut self.runs[index];
        run.records.clear();
        run.pack = None;
        if let Some(part) = run.part.take() {
            self.pool.give(part);
        }
        let request = run.request;
        self.free_runs.push(index);
        self.one_ended(request, io);
    }

    /// One of the things that a request waits for has ended.
    fn one_ended(&mut self, index: usize, io: &mut Io<'_>) {
        let Some(request) = &mut self.requests[index] else { return };
        request.outstanding -= 1;
        if request.outstanding > 0 {
            return;
        }
        let operation = request.operation;
        if request.failed {
            io.finish_failed(&operation);
        } else {
            io.finish(&operation, Ok(operation.length));
        }
        self.requests[index] = None;
    }
}
