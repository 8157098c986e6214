//! The engine's settings for a restore, and the plan.

use std::fs::File;

use mover_endpoints::{Medium, device_of_path};
use mover_engine::sys::lies_in_memory;
use mover_engine::{Access, Control, Settings, Source};
use mover_model::event::{Event, Plan};
use mover_model::manifest::Manifest;
use mover_model::{Error, ErrorKind, Result};

use super::RestoreOptions;
use super::execute::target_paths;
use super::open::{Asked, OpenDisk};
use crate::Emit;
use crate::preflight::preflight;
use crate::progress::Ticker;
use crate::resolve::{Found, Scratch, fit_chunks, resolve};

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
    let chunk_size = manifest.disks.iter().map(|disk| disk.chunk_size).max().unwrap_or_default();
    let mut found = Found {
        pairs: open.len(),
        memory_only: in_memory && targets().all(|open| open.target.medium == Medium::Memory),
        sequential: !open.is_empty() && targets().all(OpenDisk::in_order),
        data_bytes: Some(open.iter().map(|asked| data_bytes(&asked)).sum()),
        scratch: Scratch::Read(chunk_size),
        // What is read is decrypted, decompressed and hashed by the worker that has read it.
        cpu_bound: true,
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
    fit_chunks(chunk_size, &mut settings, emit);
    for (index, asked) in open.iter().enumerate() {
        emit(Event::Plan(plan(index, asked, manifest, chunk_size, &settings)));
    }
    if options.strict && !options.dry_run && !open.is_empty() {
        preflight(&settings, Scratch::Read(chunk_size), control)?;
    }
    ticker.tell_degradations();
    if options.strict && !control.degraded(0).is_empty() {
        return Err(strict_error(control));
    }
    Ok(settings)
}

/// What `--strict` says of downgrades.
pub(super) fn strict_error(control: &Control) -> Error {
    let list: Vec<_> =
        control.degraded(0).into_iter().map(|d| format!("{} ({})", d.about, d.reason)).collect();
    Error::new(ErrorKind::Downgrade, format!("--strict allows no downgrade: {}", list.join("; ")))
        .hint("`mover doctor` tells what it would take; without --strict the restore goes on")
}

fn plan(index: usize, asked: &Asked<'_>, manifest: &Manifest, chunk_size: u32, settings: &Settings) -> Plan {
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
        buffer_bytes: Scratch::Read(chunk_size).with_buffers(settings),
    }
}
