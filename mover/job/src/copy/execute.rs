//! The course of a copy: open everything, decide, say the plan, move, flush, prove.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use mover_endpoints::{Medium, device_of_path};
use mover_engine::{
    Access, Control, Rate, ReadErrors, Report, Settings, Task, TaskOptions, run as run_engine,
};
use mover_model::event::{Event, Moved, PairResult, Plan, RunResult, Status};
use mover_model::{Error, ErrorKind, Locator, Operation, Result, limits};

use super::context::{Run, bad};
use super::digests::DigestFile;
use super::extents::{Pass, PassExtents};
use super::journal;
use super::ledger::Ledger;
use super::offload::offload;
use super::open::{self, OpenPair};
use super::record::{BadExtents, CopyRecorder};
use super::spool::{Record, Spool};
use super::{CopyOptions, Offload, Sparse, verify};
use crate::Emit;
use crate::preflight::preflight;
use crate::progress::Ticker;
use crate::resolve::{Found, Scratch, resolve};

/// Runs the copy; what moved and how each pair ended goes to `result`, an error of the run as a whole is returned.
pub(super) fn execute(
    options: &CopyOptions,
    control: &Control,
    emit: Emit<'_>,
    result: &mut RunResult,
) -> Result<()> {
    open::check(options)?;
    let found = journal::find(options)?;
    if let Some(found) = &found {
        journal::check_names(options, found)?;
    }
    let digests = match &options.digest_out {
        Some(path) if !options.dry_run => Some(DigestFile::create(path, options.force)?),
        _ => None,
    };
    if options.resume && found.is_none() {
        emit(Event::Warning {
            message: "there is no journal to resume from: the copy begins at the start".into(),
        });
    }
    let mut pairs = open::open_all(options, found.is_some(), control, emit)?;
    let ticker = Ticker::new(emit, control, options.strict);
    let decided = decide(
        options,
        &pairs,
        found.as_deref().map(|opened| opened.header.block_size),
        control,
        emit,
        &ticker,
    );
    let settings = match decided {
        Ok(settings) => settings,
        Err(error) => {
            open::abandon(&pairs);
            return Err(error);
        }
    };
    if options.dry_run {
        result.pairs = pairs.iter().map(|pair| pair_result(pair, false)).collect();
        return Ok(());
    }
    let wants_digests = options.verify || options.digest_out.is_some();
    let run = Run {
        options,
        rate: options.engine.rate.map(Rate::new),
        settings,
        control,
        emit,
        ticker: &ticker,
        spool: wants_digests.then(Spool::default),
        bad: BadExtents::default(),
        cut_short: AtomicBool::new(false),
        report: Mutex::default(),
    };
    let begins = found.is_none();
    let ledger = match &options.journal {
        None => None,
        Some(path) => {
            let begun = journal::header(options, &pairs, run.settings.block_size).and_then(|header| {
                journal::begin(path, &header, options.force, found, &mut pairs, run.spool.as_ref(), emit)
            });
            match begun {
                Ok(ledger) => Some(ledger),
                Err(error) => {
                    open::abandon(&pairs);
                    return Err(error);
                }
            }
        }
    };
    if let Err(error) = open::prepare(&pairs) {
        if let (Some(path), true) = (&options.journal, begins) {
            // Nothing is in it, and it would stand in the way of the next run.
            let _ = std::fs::remove_file(path);
        }
        open::abandon(&pairs);
        return Err(error);
    }
    let total = total_bytes(&pairs);
    let flushed: Vec<_> = pairs.iter().map(|_| Mutex::new((false, false))).collect();
    let ended = std::thread::scope(|scope| {
        let pairs = &pairs;
        let ticking = std::thread::Builder::new()
            .name("progress".into())
            .spawn_scoped(scope, || ticker.run(|| sum(pairs), total));
        let ticking = ticking.map_err(|error| no_thread(&error))?;
        // Also when what follows panics: the scope waits for the ticker.
        let _ends = ticker.ends_with(ticking.thread().clone());

        move_and_prove(&run, pairs, ledger, digests, &flushed)
    });
    fill(result, &run, &pairs, &flushed);
    if options.strict && !control.degraded(0).is_empty() {
        return ended.and_then(|()| Err(strict_error(control)));
    }
    ended
}

fn move_and_prove(
    run: &Run<'_>,
    pairs: &[OpenPair<'_>],
    mut ledger: Option<Ledger>,
    digests: Option<DigestFile>,
    flushed: &[Mutex<(bool, bool)>],
) -> Result<()> {
    run.ticker.phase("copy");
    offload_pairs(run, pairs);
    let kept = match &mut ledger {
        None => {
            passes(run, pairs, None);
            Ok(())
        }
        Some(ledger) => std::thread::scope(|scope| {
            let (sender, receiver) = sync_channel(limits::JOURNAL_QUEUE);
            let keeper = std::thread::Builder::new()
                .name("journal".into())
                .spawn_scoped(scope, move || journal::keep(ledger, &receiver, pairs, run.control))
                .map_err(|error| no_thread(&error))?;
            passes(run, pairs, Some(sender));
            keeper
                .join()
                .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "the journal's keeper panicked")))
        }),
    };
    run.ticker.phase("flush");
    for (pair, state) in pairs.iter().zip(flushed) {
        // Also after a failure: what is there is then as durable as it can be.
        match finish(pair) {
            // Of a pipe or of nothing there is nothing durable to speak of.
            Ok(()) => state.lock().unwrap_or_else(|p| p.into_inner()).0 = pair.target.file.is_some(),
            Err(error) => pair.fail(error),
        }
    }
    if let Err(error) = kept {
        pairs.iter().for_each(|pair| pair.fail(error.clone()));
        return Err(error);
    }
    for pair in pairs.iter().filter(|pair| !pair.failed()) {
        check_source_unchanged(run, pair);
    }
    if run.cut_short.load(Ordering::Acquire) {
        let kind = if ledger.is_some() { ErrorKind::Interrupted } else { ErrorKind::Stopped };
        for pair in pairs.iter().filter(|pair| !pair.failed()) {
            let error = Error::new(kind, "stopped before everything had moved: the target is not complete")
                .at(pair.pair.target.to_string());
            pair.fail(match kind {
                ErrorKind::Interrupted => error.hint("run the same command with --resume to go on"),
                _ => error.hint("with --journal a later run could go on from here"),
            });
        }
        return Ok(());
    }
    if run.options.verify {
        run.ticker.phase("verify");
        for (index, pair) in pairs.iter().enumerate().filter(|(_, pair)| !pair.failed()) {
            match verify::verify(run, index, pair) {
                Ok(()) => flushed[index].lock().unwrap_or_else(|p| p.into_inner()).1 = true,
                Err(error) => pair.fail(error),
            }
        }
    }
    let failed = pairs.iter().any(OpenPair::failed);
    if let (Some(ledger), false) = (&mut ledger, failed || !bad(run).is_empty()) {
        ledger.complete()?;
    }
    match (digests, &run.spool) {
        (Some(digests), Some(spool)) if !failed => digests.write(spool, run.settings.block_size),
        _ => Ok(()),
    }
}

/// Both passes: everything aligned by the best way, then the rims through the page cache.
///
/// The order matters: a dirty page of a rim, written back while a direct write to its other half is in
/// flight, would carry old bytes over the new ones. After the first pass nothing is in flight.
fn passes(run: &Run<'_>, pairs: &[OpenPair<'_>], journal: Option<SyncSender<Record>>) {
    let report = pass(run, pairs, Pass::Main, journal.clone());
    *run.report.lock().unwrap_or_else(|p| p.into_inner()) = Some(report);
    if pairs.iter().any(|pair| pair.has_rims.load(Ordering::Acquire))
        && !run.cut_short.load(Ordering::Acquire)
    {
        pass(run, pairs, Pass::Rims, journal);
    }
}

fn pass<'r>(
    run: &'r Run<'_>,
    pairs: &'r [OpenPair<'_>],
    pass: Pass,
    journal: Option<SyncSender<Record>>,
) -> Report {
    let mut tasks = Vec::new();
    let mut indices = Vec::new();
    for (index, pair) in pairs.iter().enumerate() {
        let offloaded = pair.extra.lock().unwrap_or_else(|p| p.into_inner()).offloaded_bytes > 0;
        if pair.failed() || offloaded {
            continue;
        }
        let extents = match PassExtents::new(pair, pass) {
            Ok(extents) => Box::new(extents),
            Err(error) => {
                pair.fail(error);
                continue;
            }
        };
        let journal = journal.clone();
        let recorder = move || -> Box<dyn mover_engine::Recorder + 'r> {
            Box::new(CopyRecorder {
                pair: index as u32,
                path: pair.pair.source.to_string(),
                spool: run.spool.as_ref(),
                batch: Vec::new(),
                journal: journal.clone(),
                bad: run.bad.clone(),
            })
        };
        tasks.push(Task {
            source: &*pair.source.source,
            sink: &*pair.target.sink,
            extents,
            options: task_options(run, pair, pass),
            counters: &pair.counters,
            recorder: Box::new(recorder),
        });
        indices.push(index);
    }
    if tasks.is_empty() {
        return Report::default();
    }
    let report = run_engine(&run.settings, tasks, run.control, run.rate.as_ref());
    if report.cut_short {
        run.cut_short.store(true, Ordering::Release);
    }
    for (outcome, index) in report.outcomes.iter().zip(indices) {
        if let Some(error) = &outcome.error {
            pairs[index].fail(error.clone());
        }
        if let Some(end) = outcome.stream_end {
            *pairs[index].stream_end.lock().unwrap_or_else(|p| p.into_inner()) = Some(end);
        }
    }
    report
}

fn task_options(run: &Run<'_>, pair: &OpenPair<'_>, pass: Pass) -> TaskOptions {
    let (source_access, sink_access) = match pass {
        Pass::Main => pair.access(),
        Pass::Rims => (Access::Buffered, Access::Buffered),
    };
    let sparse = run.options.sparse;
    let in_order = pair.sequential_target();
    // Where zeros need not be told from data, looking for them would only cost.
    let looks = pass == Pass::Main && !in_order && !matches!(pair.pair.target, Locator::Null { .. });
    TaskOptions {
        source_access,
        sink_access,
        zero_run: match sparse {
            // Runs are looked for within requests, which may be smaller.
            Sparse::Auto if looks => {
                Some(limits::ZERO_RUN_AUTO.min(1 << run.settings.block_size.trailing_zeros()))
            }
            Sparse::Always if looks => Some(limits::ZERO_RUN_ALWAYS),
            _ => None,
        },
        skip_zeros: pair.target.sink.reads_zero() && (sparse != Sparse::Never || pair.target.file.is_none()),
        keep_allocated: sparse == Sparse::Never,
        digest: run.spool.is_some() || run.options.journal.is_some(),
        join_gap: if pair.list.is_some() || pair.sequential() { 0 } else { limits::JOIN_GAP_BYTES },
        read_errors: if run.options.record_read_errors { ReadErrors::Record } else { ReadErrors::Fail },
    }
}

fn offload_pairs(run: &Run<'_>, pairs: &[OpenPair<'_>]) {
    let always = run.options.offload == Offload::Always;
    if !open::may_offload(run.options) {
        return;
    }
    for (index, pair) in pairs.iter().enumerate() {
        let (Some(source), Some(target)) = (&pair.source.file, &pair.target.file) else {
            if always {
                let error =
                    Error::new(ErrorKind::Downgrade, "--offload always needs regular files at both ends");
                pair.fail(error.at(pair.pair.target.to_string()));
                open::abandon(std::slice::from_ref(pair));
            }
            continue;
        };
        // A clone of a file that is being written stalls its writer (two GiB in 262,000 extents: 4.4 s).
        if !always && pair.source.warning.is_some() {
            continue;
        }
        match offload(source, target, run.options.offload, run.control) {
            Ok(Ok(offloaded)) => {
                pair.extra.lock().unwrap_or_else(|p| p.into_inner()).offloaded_bytes = offloaded.bytes;
                (run.emit)(Event::Choice {
                    about: "offload".into(),
                    chosen: offloaded.how.into(),
                    reason: "the kernel does it without moving the bytes through this process".into(),
                    pair: Some(index),
                });
            }
            Ok(Err(reason)) => (run.emit)(Event::Choice {
                about: "offload".into(),
                chosen: "none".into(),
                reason,
                pair: Some(index),
            }),
            Err(error) => {
                if error.kind() == ErrorKind::Downgrade {
                    // Nothing was written: the file that was made for it would only be in the way.
                    open::abandon(std::slice::from_ref(pair));
                }
                pair.fail(error);
            }
        }
    }
}

/// A source that shrank while it was read gave zeros for what it lost; one that was written to gave a mix of
/// moments, which nobody but its owner can judge.
fn check_source_unchanged(run: &Run<'_>, pair: &OpenPair<'_>) {
    let (Some(source), Some(then)) = (&pair.source.file, &pair.source.identity) else { return };
    let label = pair.pair.source.to_string();
    let now = match source.identity_now() {
        Ok(now) => now,
        Err(error) => return pair.fail(Error::io(Operation::Stat, label, &error)),
    };
    if now.size < then.size {
        let error = Error::new(ErrorKind::SourceShrank, "the source shrank while it was read");
        pair.fail(error.at(label).offset(now.size));
    } else if now.mtime_ns != then.mtime_ns || now.size != then.size {
        (run.emit)(Event::Warning {
            message: format!("{label} was written to while it was read: the copy may mix moments"),
        });
    }
}

fn no_thread(error: &std::io::Error) -> Error {
    Error::io(Operation::Setup, "a thread", error)
        .hint("raise the limit on processes (ulimit -u, pids of the container)")
}

/// Sets the final size and makes the target durable.
fn finish(pair: &OpenPair<'_>) -> Result<()> {
    let end = *pair.stream_end.lock().unwrap_or_else(|p| p.into_inner());
    if let Some(size) = end.or(pair.size)
        && !pair.failed()
    {
        pair.target.sink.finish(size)?;
    }
    pair.target.sink.flush()
}

fn decide(
    options: &CopyOptions,
    pairs: &[OpenPair<'_>],
    resumed_block_size: Option<u32>,
    control: &Control,
    emit: Emit<'_>,
    ticker: &Ticker<'_>,
) -> Result<Settings> {
    let mut found = Found {
        pairs: pairs.len(),
        memory_only: pairs
            .iter()
            .all(|pair| pair.source.medium == Medium::Memory && pair.target.medium == Medium::Memory),
        sequential: pairs.iter().all(OpenPair::sequential),
        data_bytes: pairs.iter().map(open::data_bound).sum(),
        ..Found::default()
    };
    for pair in pairs {
        for locator in [&pair.pair.source, &pair.pair.target] {
            let Locator::Path(path) = locator else { continue };
            match device_of_path(path) {
                Some(device) => {
                    if !device.polls {
                        found.unpolled.push(path.display().to_string());
                    }
                    found.devices.push(device);
                }
                None => found.unpolled.push(path.display().to_string()),
            }
        }
    }
    let mut engine = options.engine.clone();
    if let Some(block_size) = resumed_block_size {
        // Digests in the ledger are of ranges cut at its block size.
        engine.block_size = Some(block_size);
    }
    let resolved = resolve(&engine, &found, control)?;
    let settings = resolved.settings;
    if resumed_block_size.is_some_and(|block_size| block_size != settings.block_size) {
        return Err(Error::usage("the journal was begun with larger blocks than --iopoll allows here")
            .hint("resume without --iopoll"));
    }
    for choice in resolved.choices {
        emit(choice);
    }
    for (index, pair) in pairs.iter().enumerate() {
        emit(Event::Plan(plan(index, pair, options, &settings)?));
    }
    if options.strict && !options.dry_run {
        preflight(&settings, Scratch::None, control)?;
    }
    ticker.tell_degradations();
    if options.strict && !control.degraded(0).is_empty() {
        return Err(strict_error(control));
    }
    Ok(settings)
}

fn strict_error(control: &Control) -> Error {
    let list: Vec<_> =
        control.degraded(0).into_iter().map(|d| format!("{} ({})", d.about, d.reason)).collect();
    Error::new(ErrorKind::Downgrade, format!("--strict allows no downgrade: {}", list.join("; ")))
        .hint("`mover doctor` tells what it would take; without --strict the copy goes on")
}

fn plan(index: usize, pair: &OpenPair<'_>, options: &CopyOptions, settings: &Settings) -> Result<Plan> {
    let open::Amount { data_bytes, zero_bytes, extents } = open::amount(pair, options.dry_run)?;
    let name = |access| match access {
        Access::Direct => "direct".to_owned(),
        Access::Buffered => "buffered".to_owned(),
    };
    let (source_access, target_access) = pair.access();
    Ok(Plan {
        pair: index,
        source: pair.pair.source.to_string(),
        target: pair.pair.target.to_string(),
        size: pair.size,
        extents_from: match (&options.extents, &pair.source.file) {
            (Some(_), _) => "list",
            (None, Some(file)) if !file.is_block() => "allocation",
            _ if pair.size.is_none() => "stream",
            _ => "whole",
        }
        .to_owned(),
        data_bytes,
        zero_bytes,
        extents,
        backend: settings.backend.name().to_owned(),
        source_access: name(source_access),
        target_access: name(target_access),
        block_size: settings.block_size,
        queue_depth: settings.queue_depth,
        workers: settings.workers,
        buffer_bytes: settings.buffer_bytes(),
    })
}

fn total_bytes(pairs: &[OpenPair<'_>]) -> Option<u64> {
    pairs.iter().try_fold(0u64, |total, pair| {
        Some(total.saturating_add(pair.list.as_ref().map(|list| list.bytes()).or(pair.size)?))
    })
}

fn sum(pairs: &[OpenPair<'_>]) -> Moved {
    let mut total = Moved::default();
    pairs.iter().for_each(|pair| total += pair.moved());
    total
}

fn pair_result(pair: &OpenPair<'_>, flushed: bool) -> PairResult {
    let error = pair.error.lock().unwrap_or_else(|p| p.into_inner()).clone();
    PairResult {
        disk: None,
        source: pair.pair.source.to_string(),
        target: pair.pair.target.to_string(),
        status: if error.is_some() { Status::Failed } else { Status::Done },
        size: pair.stream_end.lock().unwrap_or_else(|p| p.into_inner()).or(pair.size),
        moved: pair.moved(),
        flushed,
        verified: false,
        error: error.map(|error| error.record()),
    }
}

fn fill(result: &mut RunResult, run: &Run<'_>, pairs: &[OpenPair<'_>], flushed: &[Mutex<(bool, bool)>]) {
    let bad = bad(run);
    for extent in &bad {
        (run.emit)(Event::BadExtent(extent.clone()));
    }
    result.bad_extents_count = bad.len() as u64;
    result.moved = sum(pairs);
    result.pairs = pairs
        .iter()
        .zip(flushed)
        .enumerate()
        .map(|(index, (pair, state))| {
            let (flushed, verified) = *state.lock().unwrap_or_else(|p| p.into_inner());
            let mut result = pair_result(pair, flushed);
            result.verified = verified;
            if result.status == Status::Done && bad.iter().any(|extent| extent.pair == index) {
                result.status = Status::DoneWithBadExtents;
            }
            result
        })
        .collect();
    result.bad_extents = bad;
    result.bad_extents.truncate(limits::BAD_EXTENTS_LISTED);
    if let Some(report) = &*run.report.lock().unwrap_or_else(|p| p.into_inner()) {
        result.read_latency = report.read_latency;
        result.write_latency = report.write_latency;
    }
}
