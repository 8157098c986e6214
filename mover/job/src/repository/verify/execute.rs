//! The course of a verify: names first, then trees, then packs' own indexes, then data.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::sync::{Arc, Mutex};

use mover_endpoints::{Null, device_of_path};
use mover_engine::stats::Counters;
use mover_engine::sys::lies_in_memory;
use mover_engine::{
    Access, Control, Rate, ReadErrors as EngineErrors, Recorder, Segment, Settings, Task, TaskOptions,
    run as run_engine,
};
use mover_model::event::{DamagedObject, Event, RunResult, VerifyResult};
use mover_model::manifest::Manifest;
use mover_model::{ChunkId, Error, ErrorKind, Name, Result};
use mover_repository::format::envelope::{self, Protection};
use mover_repository::format::segment::segment_key;
use mover_repository::names::ObjectName;
use mover_repository::notes;
use mover_repository::read::{BadChunk, ChunkMap, ReadErrors, TreeSource};
use mover_repository::store::Key;
use mover_repository::verify::{Bad, Draw, Survey};
use mover_repository::{Repository, manifests};

use super::{Sample, VerifyOptions, report};
use crate::Emit;
use crate::progress::Ticker;
use crate::repository::access;
use crate::resolve::{Found, Scratch, fit_chunks, resolve};

/// What was found, whatever it touches.
#[derive(Default)]
pub(super) struct Damage {
    /// Objects, by key.
    pub objects: BTreeMap<String, String>,
    /// Chunks and nodes.
    pub chunks: Vec<Bad>,
    /// Whether everything was read that was to be.
    pub complete: bool,
}

/// Verifies; what was found goes to `result`, an error of the run as a whole is returned.
pub(super) fn execute(
    options: &VerifyOptions,
    control: &Control,
    emit: Emit<'_>,
    result: &mut RunResult,
) -> Result<()> {
    options.engine.check()?;
    if options.point.is_some() && options.vm.is_none() {
        return Err(Error::usage("a restore point is named without its machine").hint("write NAME@POINT"));
    }
    let repository = access::open(&options.repository)?;
    // Before the index is read: from here on gc deletes nothing that is looked at.
    let (session, degradation) = access::begin_reading(&repository, "verify")?;
    degradation.into_iter().for_each(|degradation| control.degrade(degradation));
    let ended = verify(&repository, options, control, emit, result);
    access::end_reading(session, emit);
    ended
}

fn verify(
    repository: &Arc<Repository>,
    options: &VerifyOptions,
    control: &Control,
    emit: Emit<'_>,
    result: &mut RunResult,
) -> Result<()> {
    let ticker = Ticker::new(emit, control, options.strict);
    let mut damage = Damage::default();
    ticker.phase("metadata");
    check_key_slots(repository, &mut damage)?;
    let scope = scope(repository, options, &mut damage)?;
    ticker.phase("trees");
    let roots = scope.iter().flat_map(|point| point.disks.iter().map(|disk| disk.root)).collect();
    let mut survey = Survey::new(repository, roots, control)?;
    survey.degradations().into_iter().for_each(|degradation| control.degrade(degradation));
    ticker.phase("packs");
    for (key, error) in notes::damaged_notes(repository)? {
        damage.objects.insert(repository.store().label_of(&key), text(&error));
    }
    let (bad, bad_packs) = survey.check_packs(control)?;
    damage.chunks.extend(bad);
    let store = repository.store();
    for (name, error) in bad_packs {
        damage.objects.insert(store.label_of(&mover_repository::format::pack::pack_key(name)), text(&error));
    }
    let mut found =
        VerifyResult { points: scope.len() as u64, nodes: survey.nodes_read(), ..VerifyResult::default() };
    let data = Data { repository, options, control, emit, ticker: &ticker, survey: Arc::new(survey) };
    data.read(&mut damage, &mut found, result)?;
    // Pages that were found bad while data was read stand there as well.
    for (name, error) in data.survey.bad_segments() {
        damage.objects.insert(store.label_of(&segment_key(name)), text(&error));
    }
    damage.complete = options.sample.is_none() && !control.stopped();
    ticker.phase("report");
    report::report(repository, &data.survey, &scope, damage, found, result)?;
    ticker.tell_degradations();
    if control.stopped() {
        return Err(Error::new(ErrorKind::Stopped, "stopped before everything was read").hint("run it again"));
    }
    if options.strict && !control.degraded(0).is_empty() {
        let list: Vec<_> =
            control.degraded(0).into_iter().map(|d| format!("{} ({})", d.about, d.reason)).collect();
        return Err(Error::new(
            ErrorKind::Downgrade,
            format!("--strict allows no downgrade: {}", list.join("; ")),
        ));
    }
    Ok(())
}

fn text(error: &Error) -> String {
    error.message().to_owned()
}

/// Key slots are needed by whoever opens the repository next: each must be what was written.
fn check_key_slots(repository: &Repository, damage: &mut Damage) -> Result<()> {
    let store = repository.store();
    for listed in store.list("keys/")? {
        match envelope::open(store, &listed.key, Protection::Plain) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Corruption => {
                damage.objects.insert(store.label_of(&listed.key), text(&error));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The restore points that are meant. What cannot be read among them is damage.
fn scope(repository: &Repository, options: &VerifyOptions, damage: &mut Damage) -> Result<Vec<Manifest>> {
    let vms: Vec<Name> = match &options.vm {
        Some(vm) => vec![vm.clone()],
        None => manifests::machines(repository)?,
    };
    let mut scope = Vec::new();
    for vm in vms {
        let points = manifests::all(repository, &vm)?;
        if options.vm.is_some() && points.points.is_empty() && points.unreadable.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no restore point of `{vm}`"))
                .at(repository.store().label())
                .hint("`mover list` shows all machines"));
        }
        if let Some(selector) = &options.point {
            scope.push(points.select(&vm, selector)?.clone());
            continue;
        }
        for (key, error) in &points.unreadable {
            damage.objects.insert(repository.store().label_of(key), text(error));
        }
        scope.extend(points.points.into_iter().filter(|point| is_since(point, options.since)));
    }
    Ok(scope)
}

/// Whether a restore point was begun at or after a time; of one whose time cannot be read nobody knows, so it is.
fn is_since(point: &Manifest, since: Option<i128>) -> bool {
    let Some(since) = since else { return true };
    point.started.parse::<jiff::Timestamp>().map_or(true, |began| began.as_nanosecond() >= since)
}

/// Reads data.
struct Data<'a> {
    repository: &'a Arc<Repository>,
    options: &'a VerifyOptions,
    control: &'a Control,
    emit: Emit<'a>,
    ticker: &'a Ticker<'a>,
    survey: Arc<Survey>,
}

impl Data<'_> {
    fn read(&self, damage: &mut Damage, found: &mut VerifyResult, result: &mut RunResult) -> Result<()> {
        self.ticker.phase("data");
        let draw = self.draw()?;
        let settings = self.settings()?;
        self.ticker.tell_degradations();
        let bad: Arc<Mutex<Vec<BadChunk>>> = Arc::default();
        let source = TreeSource::new(
            self.survey.clone(),
            self.survey.chunks().clone(),
            ReadErrors::Collect(bad.clone()),
            format!("{} (verify)", self.repository.store().label()),
        );
        let counters = Counters::default();
        let sink = Null { size: None };
        let task = Task {
            source: &source,
            sink: &sink,
            extents: Box::new(self.survey.extents(draw)),
            options: TaskOptions {
                source_access: Access::Direct,
                sink_access: Access::Direct,
                zero_run: None,
                skip_zeros: false,
                keep_allocated: false,
                digest: false,
                join_gap: 0,
                read_errors: EngineErrors::Fail,
            },
            counters: &counters,
            recorder: Box::new(|| Box::new(NoRecord)),
        };
        let rate = self.options.engine.rate.map(Rate::new);
        let report = std::thread::scope(|scope| {
            let ticking = std::thread::Builder::new()
                .name("progress".into())
                .spawn_scoped(scope, || self.ticker.run(|| counters.moved(), None))
                .map_err(|error| Error::io(mover_model::Operation::Setup, "a thread", &error))?;
            let _ends = self.ticker.ends_with(ticking.thread().clone());
            Ok(run_engine(&settings, vec![task], self.control, rate.as_ref()))
        })?;
        result.moved = counters.moved();
        result.moved.verified_bytes = result.moved.read_bytes;
        (result.read_latency, result.write_latency) = (report.read_latency, report.write_latency);
        found.chunks = result.moved.written_bytes / u64::from(self.survey.chunk_size());
        found.stored_bytes = self.survey.stored_bytes();
        if let Some(error) = report.outcomes.into_iter().find_map(|outcome| outcome.error) {
            return Err(error);
        }
        let bad = std::mem::take(&mut *bad.lock().unwrap_or_else(|p| p.into_inner()));
        damage.chunks.extend(bad.into_iter().map(|bad| Bad {
            id: bad.id,
            kind: mover_repository::keys::ChunkKind::Data,
            location: bad.location,
            error: bad.error,
            whole_elsewhere: false,
        }));
        self.read_aside(draw.is_some(), damage, found)?;
        self.look_again(damage)
    }

    /// Chunks that are no whole ones.
    fn read_aside(&self, drawn: bool, damage: &mut Damage, found: &mut VerifyResult) -> Result<()> {
        for location in self.survey.aside() {
            if self.control.stopped() || drawn {
                return Ok(());
            }
            damage.chunks.extend(self.survey.read(location)?);
            found.chunks += 1;
            found.stored_bytes += u64::from(location.entry.stored);
        }
        Ok(())
    }

    /// Of a pack that gave a bad chunk for which another place had a whole one, the engine tells no more than that: its
    /// chunks are read again one by one, so that each bad place is known.
    fn look_again(&self, damage: &mut Damage) -> Result<()> {
        let told: HashSet<String> = self
            .control
            .degraded(0)
            .into_iter()
            .filter(|degradation| degradation.about == "damaged_pack")
            .filter_map(|degradation| degradation.path)
            .collect();
        if told.is_empty() {
            return Ok(());
        }
        let known: HashSet<(ChunkId, Option<ObjectName>)> =
            damage.chunks.iter().map(|bad| (bad.id, bad.location.map(|place| place.pack))).collect();
        for &pack in self.survey.packs() {
            if !told.contains(&self.survey.chunks().label_of(pack)) {
                continue;
            }
            for location in self.survey.living_data_of(pack)? {
                if !known.contains(&(location.entry.id, Some(pack))) {
                    damage.chunks.extend(self.survey.read(&location)?);
                }
            }
        }
        Ok(())
    }

    /// Which chunks a sample has; the seed is said, so that the same can be read again.
    fn draw(&self) -> Result<Option<Draw>> {
        let Some(sample) = self.options.sample else { return Ok(None) };
        let all = self.survey.data_chunks();
        let count = match sample {
            Sample::Count(count) => count.min(all),
            Sample::Percent(percent) => ((all as f64 * percent / 100.0).ceil() as u64).min(all),
        };
        let name = ObjectName::random()?.0;
        let seed = name.iter().take(8).fold(0, |seed, &byte| seed << 8 | u64::from(byte));
        (self.emit)(Event::Choice {
            about: "sample".into(),
            chosen: format!("{count} of {all} chunks"),
            reason: format!("drawn at random, seed {seed:#x}"),
            pair: None,
        });
        Ok(Some(Draw { count, seed }))
    }

    fn settings(&self) -> Result<Settings> {
        let folder = &self.options.repository.folder;
        let mut found = Found {
            pairs: 1,
            memory_only: File::open(folder).is_ok_and(|folder| lies_in_memory(&folder)),
            data_bytes: Some(self.survey.data_chunks() * u64::from(self.survey.chunk_size())),
            scratch: Scratch::Read(self.survey.chunk_size()),
            // What is read is decrypted, decompressed and hashed by the worker that has read it.
            cpu_bound: true,
            ..Found::default()
        };
        match device_of_path(folder) {
            Some(device) => {
                if !device.polls {
                    found.unpolled.push(folder.display().to_string());
                }
                found.devices.push(device);
            }
            None => found.unpolled.push(folder.display().to_string()),
        }
        let resolved = resolve(&self.options.engine, &found, self.control)?;
        resolved.choices.into_iter().for_each(self.emit);
        let mut settings = resolved.settings;
        fit_chunks(self.survey.chunk_size(), &mut settings, self.emit);
        Ok(settings)
    }
}

struct NoRecord;

impl Recorder for NoRecord {
    fn finished(&mut self, _: &Segment) {}
    fn bad(&mut self, _: u64, _: u64, _: i32) {}
}

/// Damaged objects for the result.
pub(super) fn objects(damage: &Damage) -> Vec<DamagedObject> {
    damage
        .objects
        .iter()
        .map(|(key, reason)| DamagedObject { key: key.clone(), reason: reason.clone() })
        .collect()
}

/// Names of chunks that no place has whole.
pub(super) fn lost(damage: &Damage) -> HashMap<ChunkId, &Bad> {
    damage.chunks.iter().filter(|bad| !bad.whole_elsewhere).map(|bad| (bad.id, bad)).collect()
}

/// Only for messages: the key of a place.
pub(super) fn key_of(bad: &Bad) -> Option<Key> {
    bad.location.map(|place| mover_repository::format::pack::pack_key(place.pack))
}
