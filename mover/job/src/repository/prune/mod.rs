//! `mover prune`: forgets restore points by rules. What they held is freed by `mover gc`.
//!
//! Safe beside backups: a point whose parent goes is complete all the same. Beside a gc the order is: manifests
//! listed, then gc sessions and doom lists looked at. A manifest that is newer than the mark of one of these is not deleted:
//! a backup that builds on it does not see the doomed chunks below shared nodes, and gc spares these only as
//! long as it finds them in a manifest.

mod rules;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use mover_engine::Control;
use mover_model::event::{Event, PrunePoint, PruneResult, RunResult, Status};
use mover_model::{Error, ErrorKind, Name, Result};
use mover_repository::catalog::is_damaged_by;
use mover_repository::index::doom;
use mover_repository::session::{self, Purpose, Session};
use mover_repository::{Repository, manifests, notes};

use self::rules::{Candidate, judge};
use super::access::{self, RepositoryOptions};
use super::list::no_points;
use crate::Emit;

/// What `mover prune` is told.
#[derive(Debug, Clone, Default)]
pub struct PruneOptions {
    /// The repository.
    pub repository: RepositoryOptions,
    /// The machine; `None`: all of them, each by the same rules.
    pub vm: Option<Name>,
    /// `--keep-last N`: the N newest.
    pub keep_last: Option<u32>,
    /// `--keep-daily N`: the newest of each of the last N days that have one; UTC.
    pub keep_daily: Option<u32>,
    /// `--keep-weekly N`: likewise for ISO weeks.
    pub keep_weekly: Option<u32>,
    /// `--keep-monthly N`: likewise for months.
    pub keep_monthly: Option<u32>,
    /// `--keep-yearly N`: likewise for years.
    pub keep_yearly: Option<u32>,
    /// `--dry-run`: plan only.
    pub dry_run: bool,
}

/// Plans, tells the plan ([`Event::PrunePlan`]) and then deletes, unless it is a dry run. What came of the plan is
/// `result.prune`; its `exit_code` is the process's.
///
/// Emits everything but `start` and `result`, which are the caller's. Stops early, between two restore points, once
/// `control` is stopped.
pub fn run(options: &PruneOptions, control: &Control, emit: Emit<'_>) -> RunResult {
    let mut plan = PruneResult { dry_run: options.dry_run, points: Vec::new() };
    let ended = execute(options, control, emit, &mut plan);
    let mut result = RunResult { verb: "prune".into(), prune: Some(plan), ..RunResult::default() };
    result.degraded = control.degraded(0);
    if let Err(error) = ended {
        result.status = Status::Failed;
        result.exit_code = error.exit_code();
        result.error = Some(error.record());
    }
    result
}

fn execute(options: &PruneOptions, control: &Control, emit: Emit<'_>, plan: &mut PruneResult) -> Result<()> {
    check(options)?;
    let repository = access::open(&options.repository)?;
    if options.dry_run {
        plan.points = make_plan(options, &repository, None, emit)?;
        emit(Event::PrunePlan(plan.clone()));
        return Ok(());
    }
    repository.check_writable()?;
    let session = Session::begin(&repository, Purpose::Prune)?;
    let done = alone(&repository, &session).and_then(|()| {
        plan.points = make_plan(options, &repository, Some(&session), emit)?;
        emit(Event::PrunePlan(plan.clone()));
        delete(&repository, &session, control, emit, &mut plan.points)
    });
    // What was deleted is deleted: a session that cannot be ended is left to die.
    if let Err(error) = session.end() {
        emit(Event::Warning { message: format!("the session could not be ended: {error}") });
    }
    done
}

fn check(options: &PruneOptions) -> Result<()> {
    let given = [
        options.keep_last,
        options.keep_daily,
        options.keep_weekly,
        options.keep_monthly,
        options.keep_yearly,
    ];
    let hint = "say what is to be kept: --keep-last N, --keep-daily N, --keep-weekly N, --keep-monthly N, --keep-yearly N";
    if given.iter().all(Option::is_none) {
        return Err(Error::usage("there is no rule").hint(hint));
    }
    if given.iter().flatten().all(|count| *count == 0) {
        let place = options.repository.folder.display().to_string();
        return Err(Error::refused(place, "these rules would remove every restore point").hint(hint));
    }
    Ok(())
}

/// Two at once, with different findings on what is damaged, could each delete what the other one keeps. Of two that began
/// at the same time, as the store's clock tells, both leave: one of them may have looked before the other was there.
fn alone(repository: &Repository, session: &Session) -> Result<()> {
    let others = session::others(repository, Some(session))?;
    let earlier = others.iter().find(|other| {
        other.alive && other.record.purpose == Purpose::Prune && other.began <= session.began()
    });
    let Some(other) = earlier else { return Ok(()) };
    let message = format!("another prune is running on {} (process {})", other.record.host, other.record.pid);
    Err(Error::new(ErrorKind::Busy, message)
        .at(repository.store().label())
        .hint("run it again when that has ended"))
}

fn make_plan(
    options: &PruneOptions,
    repository: &Arc<Repository>,
    session: Option<&Session>,
    emit: Emit<'_>,
) -> Result<Vec<PrunePoint>> {
    let machines = match &options.vm {
        Some(vm) => vec![vm.clone()],
        None => manifests::machines(repository)?,
    };
    let mut plan = Vec::new();
    let mut modified = HashMap::new();
    for vm in machines {
        let listed = manifests::list(repository, &vm)?;
        if options.vm.is_some() && listed.is_empty() {
            return Err(no_points(repository, &vm)?);
        }
        modified.extend(listed.into_iter().map(|object| (object.key, object.modified)));
        plan.extend(judge_machine(options, repository, &vm, emit)?);
    }
    // Only now, after all manifests were listed.
    for mark in marks(repository, session)? {
        for point in plan.iter_mut().filter(|point| !point.keep) {
            let key = manifests::manifest_key(&point.vm.parse()?, &point.point.parse()?);
            // One that was not in the listing yet is newer still.
            if modified.get(&key).is_none_or(|modified| *modified >= mark.time) {
                point.keep = true;
                point.reasons = vec![format!("newer than the mark of {}: prune again after it", mark.what)];
            }
        }
    }
    Ok(plan)
}

fn judge_machine(
    options: &PruneOptions,
    repository: &Repository,
    vm: &Name,
    emit: Emit<'_>,
) -> Result<Vec<PrunePoint>> {
    let found = manifests::all(repository, vm)?;
    for (_, error) in &found.unreadable {
        emit(Event::Warning { message: format!("a restore point cannot be read, and stays: {error}") });
    }
    let candidates = found.points.iter().map(|manifest| {
        let noted = is_damaged_by(&notes::of_point(repository, vm, &manifest.point)?);
        Ok(Candidate { started: manifest.started.clone(), damaged: manifest.damaged || noted })
    });
    let verdicts = judge(options, &candidates.collect::<Result<Vec<_>>>()?);
    let points = found.points.iter().zip(verdicts).map(|(manifest, verdict)| PrunePoint {
        vm: vm.to_string(),
        point: manifest.point.to_string(),
        time: manifest.started.clone(),
        keep: verdict.keep,
        reasons: verdict.reasons,
    });
    Ok(points.collect())
}

/// A time by the store's clock, from which on a gc knows nothing of manifests.
struct Mark {
    time: SystemTime,
    what: String,
}

fn marks(repository: &Repository, session: Option<&Session>) -> Result<Vec<Mark>> {
    let others = session::others(repository, session)?;
    // One that seems dead and is not (its host slept) must find that it was ended: its mark is not heeded any more.
    if session.is_some() {
        let gcs: Vec<_> =
            others.iter().filter(|other| other.record.purpose == Purpose::Gc).cloned().collect();
        session::end_dead(repository, &gcs)?;
    }
    let running = others.iter().filter(|other| other.alive && other.record.purpose == Purpose::Gc);
    let running = running.map(|gc| Mark {
        time: gc.began,
        what: format!("the gc that runs on {} (process {})", gc.record.host, gc.record.pid),
    });
    let lists = doom::list(repository)?.into_iter();
    let pending = lists
        .map(|list| Mark { time: list.mark(), what: format!("a gc that is to be finished ({})", list.id) });
    Ok(running.chain(pending).collect())
}

fn delete(
    repository: &Repository,
    session: &Session,
    control: &Control,
    emit: Emit<'_>,
    plan: &mut [PrunePoint],
) -> Result<()> {
    let mut ended = Ok(());
    let mut deleted = 0u64;
    for point in plan.iter_mut().filter(|point| !point.keep) {
        if ended.is_ok() {
            ended = delete_point(repository, session, control, point);
        }
        match &ended {
            Ok(()) => deleted += 1,
            Err(error) => {
                point.keep = true;
                point.reasons = vec![format!("not deleted: {}", error.message())];
            }
        }
    }
    if deleted > 0 {
        emit(Event::Choice {
            about: "space".into(),
            chosen: "not freed yet".into(),
            reason: format!(
                "{deleted} restore points are forgotten: run `mover gc` to free what only they held"
            ),
            pair: None,
        });
    }
    ended
}

fn delete_point(
    repository: &Repository,
    session: &Session,
    control: &Control,
    point: &PrunePoint,
) -> Result<()> {
    if control.stopped() {
        return Err(Error::new(ErrorKind::Stopped, "stopped between two restore points")
            .hint("run it again: it goes on with what is left"));
    }
    session.check()?;
    let (vm, id): (Name, Name) = (point.vm.parse()?, point.point.parse()?);
    // The manifest first: notes of a restore point that is gone are removed by gc, one without its notes looks whole.
    repository.store().delete(&manifests::manifest_key(&vm, &id)).map_err(|error| {
        let refused = error.kind() == ErrorKind::Refused;
        if refused { error.hint("prune with credentials that may delete") } else { error }
    })?;
    notes::forget_point(repository, &vm, &id)
}
