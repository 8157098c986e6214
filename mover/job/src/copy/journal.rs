//! Keeps the journal while a copy runs, and goes on from one that an earlier run left.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use mover_endpoints::Identity;
use mover_engine::{Control, transform};
use mover_model::event::Event;
use mover_model::units::format_size;
use mover_model::{Error, ErrorKind, Locator, Result, limits};

use super::CopyOptions;
use super::ledger::{self, Existing, FileFacts, Header, Ledger, Opened, PairHeader};
use super::open::{OpenPair, list_digest};
use super::spool::{Record, Spool};
use crate::Emit;

/// Looks at the journal that the user named, and refuses one that would be overwritten unasked.
pub(super) fn find(options: &CopyOptions) -> Result<Option<Box<Opened>>> {
    let Some(path) = &options.journal else { return Ok(None) };
    match ledger::look(path)? {
        Existing::Nothing => Ok(None),
        Existing::Ledger(opened) if options.resume => Ok(Some(opened)),
        Existing::Ledger(_) if options.force => Ok(None),
        Existing::Ledger(_) => {
            Err(Error::refused(path.display().to_string(), "a journal of an earlier copy is here")
                .hint("--resume goes on with it; --force begins anew"))
        }
    }
}

/// Refuses to go on with other files or devices than those of the journal, before any of them is opened for
/// writing: what the journal names may be overwritten without `--force`, and nothing else.
pub(super) fn check_names(options: &CopyOptions, found: &Opened) -> Result<()> {
    let mut pairs = Vec::new();
    if options.pairs.len() != found.header.pairs.len() {
        return found.check(&Header { pairs, ..found.header.clone() });
    }
    for pair in &options.pairs {
        let (Locator::Path(source), Locator::Path(target)) = (&pair.source, &pair.target) else {
            return Ok(());
        };
        if !target.exists() {
            let error =
                Error::new(ErrorKind::WrongIdentity, "the target of the journal is not there any more");
            return Err(error.at(pair.target.to_string()).hint("to copy anew, remove the journal"));
        }
        pairs.push(PairHeader {
            source: FileFacts::source(pair.source.to_string(), &Identity::of_path(source)?),
            target: FileFacts::target(pair.target.to_string(), &Identity::of_path(target)?),
        });
    }
    found.check(&Header { pairs, ..found.header.clone() })
}

/// What this run is, as a journal tells it.
pub(super) fn header(options: &CopyOptions, pairs: &[OpenPair<'_>], block_size: u32) -> Result<Header> {
    let mut headers = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let Some((source, target)) = pair.identities() else {
            return Err(Error::usage("--journal needs files or devices at both ends"));
        };
        headers.push(PairHeader {
            source: FileFacts::source(pair.pair.source.to_string(), source),
            target: FileFacts::target(pair.pair.target.to_string(), target),
        });
    }
    Ok(Header {
        pairs: headers,
        block_size,
        extents: pairs.iter().find_map(|pair| pair.list.as_ref().map(list_digest)),
        keep_allocated: options.sparse == super::Sparse::Never,
    })
}

/// Begins a journal, or goes on with `found` after checking that source and target are what it says.
pub(super) fn begin(
    path: &Path,
    header: &Header,
    force: bool,
    found: Option<Box<Opened>>,
    pairs: &mut [OpenPair<'_>],
    spool: Option<&Spool>,
    emit: Emit<'_>,
) -> Result<Ledger> {
    // An empty file is taken for a name that was set aside, a journal only under --force.
    let replace = force || path.metadata().is_ok_and(|meta| meta.len() == 0);
    let Some(found) = found else { return ledger::create(path, header, replace) };
    found.check(header)?;
    let mut batch = Vec::new();
    let (ledger, done) = found.read(limits::RESUME_SAMPLE_EXTENTS, |record| {
        if let Some(spool) = spool {
            batch.push(record);
            if batch.len() == limits::SPOOL_RECORDS {
                spool.add(std::mem::take(&mut batch));
            }
        }
    })?;
    if let Some(spool) = spool {
        spool.add(batch);
    }
    check_sample(&done.sample, pairs)?;
    let mut resumed = 0;
    for (pair, extents) in pairs.iter_mut().zip(done.extents) {
        let bytes = extents.bytes();
        pair.extra.get_mut().unwrap_or_else(|p| p.into_inner()).resumed_bytes = bytes;
        resumed += bytes;
        pair.done = extents;
    }
    let state = if done.complete { "; the earlier run had come to its end" } else { "" };
    emit(Event::Choice {
        about: "resume".into(),
        chosen: format!("{} are at the target already", format_size(resumed)),
        reason: format!("the journal says so, and {} extents read back agree{state}", done.sample.len()),
        pair: None,
    });
    Ok(ledger)
}

/// Reads a sample of finished extents back from both ends: identity tells little about a device, and
/// nothing about a target that someone else wrote to.
fn check_sample(sample: &[Record], pairs: &[OpenPair<'_>]) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = Vec::new();
    let mut check = |record: &Record, label: &str, file: &std::fs::File, what: &str| {
        // Of a long range of zeros its begin has to do.
        let most = if record.zero { limits::BLOCK_SIZE_DEFAULT } else { limits::BLOCK_SIZE_MAX };
        buffer.resize(record.length.min(u64::from(most)) as usize, 0);
        let read = file.read_exact_at(&mut buffer, record.start);
        let agrees = match record.digest() {
            Some(digest) => transform::digest(&buffer) == digest,
            None => transform::is_zero(&buffer),
        };
        if read.is_ok() && agrees {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::WrongIdentity,
            format!("is not the {what} the journal was begun with: its content differs from the ledger"),
        )
        .at(label)
        .offset(record.start)
        .hint("to copy anew, remove the journal and say --force"))
    };
    let mut sample: Vec<_> = sample.iter().collect();
    sample.sort_unstable();
    for record in sample {
        let pair = &pairs[record.pair as usize];
        if let Some(target) = &pair.target.file {
            check(record, &pair.pair.target.to_string(), target.file(), "target")?;
        }
        // A list may call zero what reads otherwise at the source.
        let told = record.zero && pair.list.is_some();
        if let (Some(source), false) = (&pair.source.file, told) {
            check(record, &pair.pair.source.to_string(), source.file(), "source")?;
        }
    }
    Ok(())
}

/// Appends finished segments to the ledger, each batch behind a flush of its targets, until all senders are
/// gone. An error stops the run: what is not in the ledger would be moved again, but an error of the flush
/// says that the target lost something.
pub(super) fn keep(
    ledger: &mut Ledger,
    finished: &Receiver<Record>,
    pairs: &[OpenPair<'_>],
    control: &Control,
) -> Result<()> {
    let mut batch: Vec<Record> = Vec::new();
    let mut bytes = 0;
    let mut last = Instant::now();
    let period = Duration::from_millis(limits::JOURNAL_CHECKPOINT_MS);
    loop {
        let open = match finished
            .recv_timeout(period.saturating_sub(last.elapsed()).max(Duration::from_millis(1)))
        {
            Ok(record) => {
                bytes += if record.zero { 0 } else { record.length };
                add(&mut batch, record);
                // What has come meanwhile is covered by the same flush.
                while let Ok(record) = finished.try_recv() {
                    bytes += if record.zero { 0 } else { record.length };
                    add(&mut batch, record);
                }
                true
            }
            Err(RecvTimeoutError::Timeout) => true,
            Err(RecvTimeoutError::Disconnected) => false,
        };
        let due = last.elapsed() >= period || bytes >= limits::JOURNAL_CHECKPOINT_BYTES;
        if (due || !open) && !batch.is_empty() {
            if let Err(error) = checkpoint(ledger, &batch, pairs) {
                control.stop();
                return Err(error);
            }
            batch.clear();
        }
        if due {
            bytes = 0;
            last = Instant::now();
        }
        if !open {
            return Ok(());
        }
    }
}

/// Ranges of zeros that touch are one record.
fn add(batch: &mut Vec<Record>, record: Record) {
    match batch.last_mut() {
        Some(last)
            if last.zero
                && record.zero
                && last.pair == record.pair
                && last.start + last.length == record.start =>
        {
            last.length += record.length;
        }
        _ => batch.push(record),
    }
}

/// Everything in the batch had completed before this began; after the flush it is durable, and only then is
/// the ledger told.
fn checkpoint(ledger: &mut Ledger, batch: &[Record], pairs: &[OpenPair<'_>]) -> Result<()> {
    for (index, pair) in pairs.iter().enumerate() {
        if batch.iter().any(|record| record.pair as usize == index) {
            pair.target.sink.flush()?;
        }
    }
    ledger.append(batch)
}
