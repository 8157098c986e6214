//! Opens all pairs of a copy, or none: whatever is refused is refused before a byte is written.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use mover_endpoints::{
    Identity, OpenOptions, OpenSource, OpenTarget, TargetOptions, open_source, open_target, refuse_shared,
};
use mover_engine::stats::Counters;
use mover_engine::{Access, Control, Order};
use mover_model::event::{Event, Moved};
use mover_model::extents_file::{self, Dialect};
use mover_model::{Error, ExtentKind, ExtentList, Locator, Operation, Result};

use super::{CopyOptions, Pair, Sparse};
use crate::Emit;

/// A pair with both ends open.
pub(super) struct OpenPair<'a> {
    pub pair: &'a Pair,
    pub source: OpenSource,
    pub target: OpenTarget,
    /// The extents to write, where a list was given.
    pub list: Option<ExtentList>,
    /// What an earlier run moved.
    pub done: ExtentList,
    /// Whether extents have unaligned ends: those are moved after everything else, through the page cache.
    pub has_rims: AtomicBool,
    pub counters: Counters,
    /// What is not counted by the engine.
    pub extra: Mutex<Moved>,
    /// The first error of this pair.
    pub error: Mutex<Option<Error>>,
    /// Bytes of the source; `None` for a stream.
    pub size: Option<u64>,
    /// Where a stream ended.
    pub stream_end: Mutex<Option<u64>>,
}

impl OpenPair<'_> {
    /// Records an error, unless there was one before.
    pub fn fail(&self, error: Error) {
        self.error.lock().unwrap_or_else(|p| p.into_inner()).get_or_insert(error);
    }

    pub fn failed(&self) -> bool {
        self.error.lock().unwrap_or_else(|p| p.into_inner()).is_some()
    }

    /// The unit that direct operations of both ends keep to.
    pub fn granule(&self) -> u64 {
        let source = self.source.source.alignment(self.source.source.access()).offset;
        let target = self.target.sink.alignment(self.target.sink.access()).offset;
        u64::from(source.max(target))
    }

    pub fn sequential(&self) -> bool {
        self.source.source.order() == Order::Sequential || self.target.sink.order() == Order::Sequential
    }

    pub fn sequential_target(&self) -> bool {
        self.target.sink.order() == Order::Sequential
    }

    /// Counts bytes that were read back and agreed.
    pub fn add_verified(&self, bytes: u64) {
        self.extra.lock().unwrap_or_else(|p| p.into_inner()).verified_bytes += bytes;
    }

    /// What moved so far.
    pub fn moved(&self) -> Moved {
        let mut moved = self.counters.moved();
        let extra = *self.extra.lock().unwrap_or_else(|p| p.into_inner());
        moved.offloaded_bytes = extra.offloaded_bytes;
        moved.resumed_bytes = extra.resumed_bytes;
        moved.verified_bytes = extra.verified_bytes;
        moved
    }

    pub fn identities(&self) -> Option<(&Identity, &Identity)> {
        Some((self.source.identity.as_ref()?, self.target.identity.as_ref()?))
    }

    pub fn access(&self) -> (Access, Access) {
        (self.source.source.access(), self.target.sink.access())
    }
}

/// Digest of a list of extents, by which a journal knows it again.
pub(super) fn list_digest(list: &ExtentList) -> String {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    for extent in list.iter() {
        hasher.update(&extent.start.to_le_bytes());
        hasher.update(&extent.length.to_le_bytes());
        hasher.update(&[extent.kind as u8]);
    }
    format!("{:032x}", hasher.digest128())
}

/// Checks what can be checked before anything is opened.
pub(super) fn check(options: &CopyOptions) -> Result<()> {
    options.engine.check()?;
    if options.pairs.is_empty() {
        return Err(Error::usage("nothing to copy: name a source and a target"));
    }
    if options.resume && options.journal.is_none() {
        return Err(Error::usage("--resume needs --journal FILE"));
    }
    if options.extents.is_some() && options.pairs.len() != 1 {
        return Err(Error::usage("--extents belongs to one pair: copy the others in runs of their own"));
    }
    let streams = |locator: fn(&Pair) -> &Locator| {
        options.pairs.iter().filter(|pair| *locator(pair) == Locator::Stream).count()
    };
    if streams(|pair| &pair.source) > 1 || streams(|pair| &pair.target) > 1 {
        return Err(Error::usage("`-` can be the source of one pair and the target of one pair only"));
    }
    for pair in &options.pairs {
        let stdout = pair.target == Locator::Stream;
        let nothing = matches!(pair.target, Locator::Null { .. });
        if options.verify && (stdout || nothing) {
            return Err(Error::usage(format!("--verify cannot read {} back", pair.target)));
        }
        if pair.source == Locator::Stream && options.extents.is_some() || stdout && options.extents.is_some()
        {
            return Err(Error::usage("--extents needs a source and a target that are not streams"));
        }
        if stdout && options.record_read_errors {
            return Err(Error::usage(
                "--on-read-error record needs a target that can be left as it is, not a stream",
            ));
        }
        let streams = pair.source == Locator::Stream || stdout;
        if options.journal.is_some() && (streams || nothing || matches!(pair.source, Locator::Null { .. })) {
            return Err(Error::usage("--journal needs files or devices at both ends"));
        }
    }
    let asks_for_bytes = [
        (options.verify, "--verify"),
        (options.digest_out.is_some(), "--digest-out"),
        (options.journal.is_some(), "--journal"),
        (options.extents.is_some(), "--extents"),
        (options.engine.rate.is_some(), "--rate"),
        (options.sparse == Sparse::Never, "--sparse never"),
    ];
    if options.offload == super::Offload::Always
        && let Some((_, flag)) = asks_for_bytes.iter().find(|(asked, _)| *asked)
    {
        return Err(Error::usage(format!(
            "--offload always leaves the bytes to the kernel, but {flag} needs them"
        )));
    }
    Ok(())
}

/// Whether a pair's bytes may be left to the kernel.
pub(super) fn may_offload(options: &CopyOptions) -> bool {
    options.offload != super::Offload::Never
        && !options.verify
        && options.digest_out.is_none()
        && options.journal.is_none()
        && options.extents.is_none()
        && options.engine.rate.is_none()
        && options.sparse != Sparse::Never
        && !options.record_read_errors
}

/// Opens all pairs. `resume` tells that a journal of an earlier run was found.
pub(super) fn open_all<'a>(
    options: &'a CopyOptions,
    resume: bool,
    control: &Control,
    emit: Emit<'_>,
) -> Result<Vec<OpenPair<'a>>> {
    let names: Vec<_> = options.pairs.iter().map(|pair| (&pair.source, &pair.target)).collect();
    refuse_shared(&names)?;
    // All sources before the first target is made: a target that is another pair's source must not be found.
    let how = OpenOptions { direct: options.engine.direct };
    let mut sources = Vec::with_capacity(options.pairs.len());
    for pair in &options.pairs {
        sources.push(open_source(&pair.source, how, control)?);
    }
    let mut open = Vec::with_capacity(options.pairs.len());
    for (pair, source) in options.pairs.iter().zip(sources) {
        match open_pair(options, pair, source, resume, control, emit) {
            Ok(pair) => open.push(pair),
            Err(error) => {
                abandon(&open);
                return Err(error);
            }
        }
    }
    Ok(open)
}

/// Gives all targets their sizes, once nothing can be refused any more.
pub(super) fn prepare(pairs: &[OpenPair<'_>]) -> Result<()> {
    pairs.iter().filter_map(|pair| pair.target.file.as_ref()).try_for_each(|file| file.prepare())
}

/// Removes the empty files that were made for a run that writes nothing.
pub(super) fn abandon(pairs: &[OpenPair<'_>]) {
    for pair in pairs {
        if let (true, Locator::Path(path)) = (pair.target.created, &pair.pair.target) {
            // It stays behind only if it cannot be removed, and then it is empty.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn open_pair<'a>(
    options: &'a CopyOptions,
    pair: &'a Pair,
    source: OpenSource,
    resume: bool,
    control: &Control,
    emit: Emit<'_>,
) -> Result<OpenPair<'a>> {
    let how = OpenOptions { direct: options.engine.direct };
    if let Some(message) = &source.warning {
        emit(Event::Warning { message: message.clone() });
    }
    let size = source.source.size();
    let list = match &options.extents {
        Some(path) => Some(read_list(path, size, emit)?),
        None => None,
    };
    let target_options = TargetOptions {
        force: options.force,
        resume,
        keep_content: list.is_some(),
        size,
        mode: source.mode,
        dry_run: options.dry_run,
    };
    let target = open_target(&pair.target, target_options, how, control)?;
    refuse_for_streams(options, pair, &source, &target)?;
    if let (Some(list), true) = (&list, target.sink.reads_zero() && target.file.is_some()) {
        let listed = list.bytes();
        if Some(listed) != size {
            emit(Event::Warning {
                message: format!(
                    "{} is new: bytes outside the list of extents read as zeros in it",
                    pair.target
                ),
            });
        }
    }
    Ok(OpenPair {
        pair,
        source,
        target,
        list,
        done: ExtentList::new(),
        has_rims: AtomicBool::new(false),
        counters: Counters::default(),
        extra: Mutex::default(),
        error: Mutex::default(),
        size,
        stream_end: Mutex::default(),
    })
}

/// What [`check`] says of `-`, for named pipes: those are known only once they are open.
fn refuse_for_streams(
    options: &CopyOptions,
    pair: &Pair,
    source: &OpenSource,
    target: &OpenTarget,
) -> Result<()> {
    let reads = source.source.order() == Order::Sequential;
    let writes = target.sink.order() == Order::Sequential;
    let pipe = if reads { &pair.source } else { &pair.target };
    let flag = match (options.extents.is_some(), options.verify, options.record_read_errors) {
        (true, ..) if reads || writes => "--extents",
        (_, true, _) if writes => "--verify",
        (_, _, true) if writes => "--on-read-error record",
        _ => return Ok(()),
    };
    Err(Error::usage(format!("{flag} cannot work on a stream")).at(pipe.to_string()))
}

fn read_list(path: &Path, size: Option<u64>, emit: Emit<'_>) -> Result<ExtentList> {
    let label = path.display().to_string();
    let file = File::open(path).map_err(|error| Error::io(Operation::Open, &label, &error))?;
    let parsed = extents_file::parse(BufReader::new(file), size).map_err(|error| error.at(&label))?;
    if parsed.dialect != Dialect::Mover {
        emit(Event::Choice {
            about: "extents".into(),
            chosen: parsed.dialect.to_string(),
            reason: "the list has the shape of that tool's output".into(),
            pair: Some(0),
        });
    }
    Ok(parsed.extents)
}

/// What a plan tells of a pair's extents; each absent where it is found on the way.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Amount {
    pub data_bytes: Option<u64>,
    pub zero_bytes: Option<u64>,
    pub extents: Option<u64>,
}

/// Bytes to move of each kind, where that is known beforehand; with `count` also where it has to be counted.
pub(super) fn amount(pair: &OpenPair<'_>, count: bool) -> Result<Amount> {
    let known = |data, zero, extents| Amount {
        data_bytes: Some(data),
        zero_bytes: Some(zero),
        extents: Some(extents),
    };
    let size = pair.size.unwrap_or(0);
    match (&pair.list, &pair.source.file) {
        (Some(list), _) => {
            let data = list.bytes_of(ExtentKind::Data);
            Ok(known(data, list.bytes() - data, list.len() as u64))
        }
        _ if pair.size.is_none() => Ok(Amount::default()),
        (None, Some(file)) if file.is_block() => Ok(known(size, 0, 1)),
        (None, None) => Ok(known(0, size, 1)),
        (None, Some(_)) if !count => Ok(Amount::default()),
        (None, Some(_)) => {
            let (mut data, mut extents) = (0, 0);
            for extent in pair.source.source.extents()? {
                let extent = extent?;
                extents += 1;
                data += if extent.kind == ExtentKind::Data { extent.length } else { 0 };
            }
            Ok(known(data, size - data, extents))
        }
    }
}

/// An upper bound on the bytes of data that will be read, for the choice of buffers.
pub(super) fn data_bound(pair: &OpenPair<'_>) -> Option<u64> {
    amount(pair, false).ok().and_then(|amount| amount.data_bytes).or(pair.size)
}
