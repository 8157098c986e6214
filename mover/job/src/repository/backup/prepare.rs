//! From what was said to what will be done: restore points before this one, disks, settings, the plan.

use std::fs::File;
use std::sync::Arc;

use mover_endpoints::{Medium, device_of_path};
use mover_engine::sys::lies_in_memory;
use mover_engine::{Access, Control, Settings};
use mover_model::event::{Event, Plan};
use mover_model::{Error, ErrorKind, Locator, Result};
use mover_repository::Repository;
use mover_repository::catalog::{self, Catalog, Scope};
use mover_repository::manifests::Points;

use super::base;
use super::open::{OpenDisk, Opening, What};
use super::{BackupOptions, CommonRequest};
use crate::Emit;
use crate::preflight::preflight;
use crate::progress::Ticker;
use crate::repository::common::{self, Arranged, CommonPlan};
use crate::resolve::{Found, Scratch, resolve};

/// What a backup is about to do.
pub(super) struct Prepared {
    pub points: Points,
    pub disks: Vec<OpenDisk>,
    pub settings: Settings,
    /// Open only where a disk is common.
    pub catalog: Option<Box<dyn Catalog>>,
}

/// What the preparation has to know.
pub(super) struct Preparing<'a> {
    pub options: &'a BackupOptions,
    /// `None` in a dry run without one.
    pub repository: Option<&'a Arc<Repository>>,
    pub chunk_size: u32,
    pub control: &'a Control,
    pub emit: Emit<'a>,
    pub ticker: &'a Ticker<'a>,
}

impl Preparing<'_> {
    /// Finds everything out, and refuses what has to be refused. Writes nothing.
    pub fn prepare(&self, arranged: Vec<Arranged>) -> Result<Prepared> {
        let (points, base) = match self.repository {
            Some(repository) => {
                let points = base::points(repository, self.options, self.emit)?;
                let base = base::find(repository, self.options, &points)?;
                (points, base)
            }
            None if self.options.since.is_some() => {
                let message = "there is no repository yet, so no restore point that changes could count from";
                return Err(Error::new(ErrorKind::NotFound, message).at(self
                    .options
                    .repository
                    .folder
                    .display()
                    .to_string()));
            }
            None => (Points::default(), None),
        };
        let catalog = self.catalog(&arranged)?;
        let opening = Opening {
            options: self.options,
            chunk_size: self.chunk_size,
            points: &points,
            base: base.as_ref(),
            control: self.control,
            emit: self.emit,
        };
        let mut disks = Vec::with_capacity(arranged.len());
        for (number, arranged) in arranged.into_iter().enumerate() {
            let plan = match (self.repository, &catalog) {
                (Some(repository), Some(catalog)) => {
                    common::plan(repository, &**catalog, &arranged, self.emit)?
                }
                _ => CommonPlan::NotCommon,
            };
            let what = match plan {
                CommonPlan::Reference { disk, reason, .. } => What::Reference { disk, reason },
                CommonPlan::Read(common) => What::Read(opening.open(number, &arranged.spec, Some(common))?),
                CommonPlan::NotCommon => What::Read(opening.open(number, &arranged.spec, None)?),
            };
            disks.push(OpenDisk::new(arranged, what));
        }
        let settings = self.decide(&disks)?;
        Ok(Prepared { points, disks, settings, catalog })
    }

    fn catalog(&self, disks: &[Arranged]) -> Result<Option<Box<dyn Catalog>>> {
        let Some(repository) = self.repository else { return Ok(None) };
        if disks.iter().all(|disk| disk.spec.common == CommonRequest::No) {
            return Ok(None);
        }
        let options = &self.options.repository;
        // A dry run leaves the host's catalog as it is, too.
        let place = (!self.options.dry_run).then_some(options.folder.as_path());
        let opened = catalog::open(options.state.as_deref(), repository, place, &Scope::All, false)?;
        for message in opened.warnings {
            (self.emit)(Event::Warning { message });
        }
        Ok(Some(opened.catalog))
    }

    fn decide(&self, disks: &[OpenDisk]) -> Result<Settings> {
        let folder = &self.options.repository.folder;
        let in_memory = File::open(folder).is_ok_and(|folder| lies_in_memory(&folder));
        let readings: Vec<_> = disks.iter().filter_map(OpenDisk::reading).collect();
        let mut found = Found {
            pairs: readings.len().max(1),
            memory_only: in_memory && readings.iter().all(|reading| reading.source.medium == Medium::Memory),
            sequential: !readings.is_empty() && readings.iter().all(|reading| reading.is_stream()),
            data_bytes: readings.iter().map(|reading| reading.data_bound()).sum(),
            scratch: Scratch::Write(self.chunk_size),
            chunk_size: self.chunk_size,
            cpu_bound: true,
            ..Found::default()
        };
        let places = disks.iter().filter_map(|disk| match &disk.spec().locator {
            Locator::Path(path) => Some(path),
            _ => None,
        });
        for path in places.chain([folder]) {
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
        let resolved = resolve(&self.options.engine, &found, self.control)?;
        for choice in resolved.choices {
            (self.emit)(choice);
        }
        let settings = resolved.settings;
        for (number, disk) in disks.iter().enumerate() {
            (self.emit)(Event::Plan(self.plan(number, disk, &settings, in_memory)?));
        }
        if self.options.strict && !self.options.dry_run && !readings.is_empty() {
            preflight(&settings, Scratch::Write(self.chunk_size), self.control)?;
        }
        self.ticker.tell_degradations();
        if self.options.strict {
            strict(self.control)?;
        }
        Ok(settings)
    }

    fn plan(&self, number: usize, disk: &OpenDisk, settings: &Settings, in_memory: bool) -> Result<Plan> {
        let name = |access| match access {
            Access::Direct => "direct".to_owned(),
            Access::Buffered => "buffered".to_owned(),
        };
        let (amount, from, access) = match &disk.what {
            What::Reference { .. } => ((Some(0), Some(0), Some(0)), "common", Access::Buffered),
            What::Read(reading) => {
                let from = match (&reading.base, &reading.source.file) {
                    (Some(_), _) => "list",
                    (None, Some(file)) if !file.is_block() => "allocation",
                    _ if reading.is_stream() => "stream",
                    _ => "whole",
                };
                (reading.amount(self.options.dry_run)?, from, reading.access(self.chunk_size))
            }
        };
        let (data_bytes, zero_bytes, extents) = amount;
        Ok(Plan {
            pair: number,
            source: disk.spec().locator.to_string(),
            target: self.options.repository.folder.display().to_string(),
            size: disk.size(),
            extents_from: from.to_owned(),
            data_bytes,
            zero_bytes,
            extents,
            backend: settings.backend.name().to_owned(),
            source_access: name(access),
            target_access: name(if in_memory { Access::Buffered } else { Access::Direct }),
            block_size: settings.block_size,
            queue_depth: settings.queue_depth,
            workers: settings.workers,
            buffer_bytes: Scratch::Write(self.chunk_size).with_buffers(settings),
        })
    }
}

/// Under `--strict` a downgrade is an error.
pub(super) fn strict(control: &Control) -> Result<()> {
    let list: Vec<_> = control
        .degraded(0)
        .into_iter()
        .map(|degraded| format!("{} ({})", degraded.about, degraded.reason))
        .collect();
    if list.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Downgrade, format!("--strict allows no downgrade: {}", list.join("; ")))
        .hint("`mover doctor` tells what it would take; without --strict the backup goes on"))
}
