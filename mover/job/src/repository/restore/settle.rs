//! The engine's settings for a restore, and the plan.

use std::fs::File;

use mover_endpoints::{Medium, device_of_path};
use mover_engine::capability::registrable_bytes;
use mover_engine::sys::lies_in_memory;
use mover_engine::{Access, Backend, Control, Settings, Source};
use mover_model::event::{Event, Plan};
use mover_model::manifest::Manifest;
use mover_model::units::format_size;
use mover_model::{Error, ErrorKind, Result};

use super::RestoreOptions;
use super::execute::target_paths;
use super::open::{Asked, OpenDisk};
use crate::Emit;
use crate::progress::Ticker;
use crate::resolve::{Found, resolve};

/// Decides every setting and tells the plan of each disk.
///
/// # Errors
/// `Usage` when what was said contradicts itself; `Downgrade` under `--strict`.
pub(super) fn settle(
    options: &RestoreOptions,
    manifest: &Manifest,
    asked: &[Asked<'_>],
    control: &Control,
    emit: Emit<'_>,
    ticker: &Ticker<'_>,
) -> Result<Settings> {
    let folder = &options.repository.folder;
    let open: Vec<_> = asked.iter().filter(|asked| asked.open.is_some()).collect();
    let targets = || open.iter().filter_map(|asked| asked.open.as_ref());
    let in_memory = File::open(folder).is_ok_and(|folder| lies_in_memory(&folder));
    let data_bytes = |asked: &&&Asked<'_>| {
        let compares = asked.open.as_ref().is_some_and(|open| open.compare);
        if compares { asked.disk.size } else { asked.disk.data_bytes }
    };
    let mut found = Found {
        pairs: open.len(),
        memory_only: in_memory && targets().all(|open| open.target.medium == Medium::Memory),
        sequential: !open.is_empty() && targets().all(OpenDisk::in_order),
        data_bytes: Some(open.iter().map(|asked| data_bytes(&asked)).sum()),
        ..Found::default()
    };
    for path in target_paths(asked).chain(std::iter::once(folder.as_path())) {
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
    let resolved = resolve(&options.engine, &found, control)?;
    let mut settings = resolved.settings;
    resolved.choices.into_iter().for_each(emit);
    fit_chunks(manifest, &mut settings, emit);
    fit_memory(options, &mut settings, emit);
    for (index, asked) in open.iter().enumerate() {
        emit(Event::Plan(plan(index, asked, manifest, &settings)));
    }
    ticker.tell_degradations();
    if options.strict && !control.degraded(0).is_empty() {
        return Err(strict_error(control));
    }
    Ok(settings)
}

/// Requests of whole chunks: of a chunk that two requests have in part each would read all. Polled devices take no
/// larger requests than they were given.
fn fit_chunks(manifest: &Manifest, settings: &mut Settings, emit: Emit<'_>) {
    let Some(chunk) = manifest.disks.iter().map(|disk| disk.chunk_size).max().filter(|&chunk| chunk > 0)
    else {
        return;
    };
    if settings.block_size.is_multiple_of(chunk) || settings.iopoll {
        return;
    }
    let block_size = settings.block_size.next_multiple_of(chunk);
    // As many bytes in flight as before, and a request at least.
    let bytes = settings.worker_bytes().next_multiple_of(u64::from(block_size));
    settings.block_size = block_size;
    settings.bytes_in_flight = settings.bytes_in_flight.map(|_| bytes);
    emit(Event::Choice {
        about: "block_size".into(),
        chosen: format_size(u64::from(block_size)),
        reason: "requests hold whole chunks of the repository".into(),
        pair: None,
    });
}

/// Chunks that are not as they lie on disk are read beside the buffers: both together keep to the ceiling, and to what
/// may be locked.
fn fit_memory(options: &RestoreOptions, settings: &mut Settings, emit: Emit<'_>) {
    let Some(bytes) = settings.bytes_in_flight else { return };
    let both = 2 * settings.buffer_bytes();
    let uses = settings.backend == Backend::Uring && settings.register;
    let lockable = registrable_bytes().filter(|&lockable| uses && lockable < both);
    if options.engine.memory_limit.is_none() && lockable.is_none() {
        return;
    }
    let block = u64::from(settings.block_size);
    let half = (bytes / 2 / block).max(1) * block;
    if half < bytes {
        settings.bytes_in_flight = Some(half);
        emit(Event::Choice {
            about: "bytes_in_flight".into(),
            chosen: format_size(half),
            reason: "packs are read beside the buffers, and the limit is for both".into(),
            pair: None,
        });
    }
}

/// What `--strict` says of downgrades.
pub(super) fn strict_error(control: &Control) -> Error {
    let list: Vec<_> =
        control.degraded(0).into_iter().map(|d| format!("{} ({})", d.about, d.reason)).collect();
    Error::new(ErrorKind::Downgrade, format!("--strict allows no downgrade: {}", list.join("; ")))
        .hint("`mover doctor` tells what it would take; without --strict the restore goes on")
}

fn plan(index: usize, asked: &Asked<'_>, manifest: &Manifest, settings: &Settings) -> Plan {
    let disk = asked.disk;
    let access = asked.open.as_ref().map_or(Access::Buffered, |open| open.target.sink.access());
    let compares = asked.open.as_ref().is_some_and(|open| open.compare);
    Plan {
        pair: index,
        source: asked
            .open
            .as_ref()
            .map_or_else(|| format!("{}@{}", manifest.vm, manifest.point), |open| open.source.label()),
        target: asked.target.to_string(),
        size: Some(disk.size),
        extents_from: if compares { "comparison" } else { "tree" }.to_owned(),
        // What differs is found on the way.
        data_bytes: (!compares).then_some(disk.data_bytes),
        zero_bytes: (!compares).then_some(disk.size.saturating_sub(disk.data_bytes)),
        extents: None,
        backend: settings.backend.name().to_owned(),
        source_access: "direct".into(),
        target_access: if access == Access::Direct { "direct" } else { "buffered" }.to_owned(),
        block_size: settings.block_size,
        queue_depth: settings.queue_depth,
        workers: settings.workers,
        buffer_bytes: settings.buffer_bytes(),
    }
}
