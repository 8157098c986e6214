//! Garbage collection: gives back what no restore point needs, beside whatever else runs.
//!
//! ```text
//! session ─► mark ─► rewrite ─► put doom list ─► list sessions ─► wait ─► mark again ─► segment ─► delete
//! ```
//! # Why nothing is lost
//! A pack is deleted only when it was on a durable doom list, every session listed after that list was put has ended,
//! and a mark made after that found nothing that has its only whole place in it. So take any manifest M that is committed
//! at any time, and a chunk c that it needs, and a doomed pack D that has c:
//!
//! 1. *M was committed before the second mark listed manifests*: the mark found c. Either c has another whole place in a
//!    pack that is on no list, or D is spared. Places that were noted as damaged in between are looked at again.
//! 2. *M is committed later, by a session that was put before the doom list was listed for it*, that is, one that may not
//!    have seen the list: gc lists sessions after the list is durable, finds this one, and waits until it has ended; so
//!    M was committed before the second mark. An end by gc puts an `aborted` record at the manifest's key: M is never committed.
//! 3. *M is committed later, by a session that was put after gc had listed sessions*: it opened its index after the
//!    doom list was durable, and doom lists are read first. Chunks that it looked up count as absent in D: it stored c again. Chunks
//!    that it did not look up are in subtrees that it took from a restore point P which was there after the list was put. If
//!    P was there when the first mark listed manifests, c was living then, and D either had not been doomed or c had been copied
//!    out of it, into a segment that was put before the list. If P came after that, it is newer than the mark; prune leaves
//!    such a P alone while the list is there (it lists manifests first and looks for gc and doom lists afterwards, so a P
//!    that it knows is older than the mark of a gc that it does not see); so the second mark found P, and case 1 holds for it.
//!
//! The same holds for a list that an earlier gc left, with its own sessions and the time of its own mark. Readers hold
//! sessions too: one that began before the list is waited for; one that began later finds places outside of D first, and for
//! a point of case 3 the pack is spared.
//!
//! # Why every cut is safe
//! - While rewriting: packs in no segment, which the next gc dooms, or chunks with two places, of which the mark chooses one.
//! - After the doom list: later backups store again what is in its packs. The next gc finishes it.
//! - The new segment is durable before the old ones are deleted, and stands for them: both together say the same. A session
//!   that opened the old ones either is waited for or knows that the packs are doomed.
//! - Old segments go before packs, or are left where someone may have them open: no segment that counts names a pack that
//!   is gone.
//! - Packs are deleted before the doom list: what is left of them is in no segment and is doomed again.

mod doom;
pub(crate) mod mark;
mod merge;
pub(crate) mod packs;
mod points;
mod rebuild;
mod rewrite;
mod tidy;
mod wait;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use mover_engine::Control;
use mover_model::event::{Event, GcResult};
use mover_model::{ChunkId, Error, ErrorKind, Result};

use crate::format::pack::pack_key;
use crate::format::segment::segment_key;
use crate::index::doom::DoomList;
use crate::index::{Index, doom as doom_list};
use crate::names::ObjectName;
use crate::notes;
use crate::repository::Repository;
use crate::session::{self, Purpose, Session};
use mark::Marks;
use points::Points;
use wait::Pending;

/// More segments than this are merged even where nothing was deleted: a lookup asks each.
const SEGMENTS_MAX: usize = 16;

/// How garbage is collected.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long it waits for sessions that are older than its doom list.
    pub wait: Duration,
    /// A pack whose living share of bytes is smaller than this is rewritten.
    pub repack_below: f64,
    /// Nothing is changed.
    pub dry_run: bool,
}

/// Collects garbage; what was done so far stands in `result` also when it fails.
///
/// # Errors
/// `Busy` when another gc runs. `Corruption`, and nothing is deleted, when a manifest or a node cannot be read, or
/// chunks are missing beside a pack that cannot be read: what is needed is unknown. `Stopped`, or `Interrupted` with a doom list that a later gc finishes. The store's.
pub fn collect(
    repository: &Arc<Repository>,
    options: &Options,
    control: &Control,
    emit: &(dyn Fn(Event) + Sync),
    result: &mut GcResult,
) -> Result<()> {
    result.dry_run = options.dry_run;
    if !options.dry_run {
        repository.check_writable()?;
    }
    // A dry run only reads, and may run beside a gc.
    let purpose = if options.dry_run { Purpose::Read { verb: "gc".into() } } else { Purpose::Gc };
    let session = Session::begin(repository, purpose)?;
    let gc = Gc { repository, options, control, emit, session: &session };
    let collected = gc.collect(result);
    let ended = session.end();
    collected.and(ended)
}

/// One gc.
struct Gc<'a> {
    repository: &'a Arc<Repository>,
    options: &'a Options,
    control: &'a Control,
    emit: &'a (dyn Fn(Event) + Sync),
    session: &'a Session,
}

/// What the first mark says is to be done.
#[derive(Default)]
struct Plan {
    /// Packs in which nothing lives.
    dead: Vec<ObjectName>,
    /// Packs with little that lives.
    rewrite: Vec<ObjectName>,
    /// Bytes that this gives back.
    freed_bytes: u64,
}

impl Gc<'_> {
    fn collect(&self, result: &mut GcResult) -> Result<()> {
        let seen = session::others(self.repository, Some(self.session))?;
        if self.options.dry_run {
            result.sessions_ended = seen.iter().filter(|seen| !seen.alive).count() as u64;
        } else {
            result.sessions_ended = session::end_dead(self.repository, &seen)?.len() as u64;
        }
        self.phase("mark");
        let found = doom::all(self.repository)?;
        for (key, error) in &found.damaged {
            self.warn(format!("{key}: {error}: this doom list is given up, its packs are looked at anew"));
        }
        let (mut points, mut marks) = self.first_mark(&found)?;
        self.count(&marks, result);
        let plan = self.plan(&marks);
        if self.options.dry_run {
            return self.foretell(&found, &marks, &plan, result);
        }
        let rewritten = self.rewrite(&marks, &plan, result)?;
        let mut pending = self.doom(found, &plan, &rewritten, result)?;
        self.wait(&mut pending, result)?;
        let gone = self.mark_again(&mut marks, &mut points, &pending, result)?;
        self.delete(&marks, &points, &pending, &gone, result)?;
        // What was written for it is no gain.
        result.freed_bytes = result.freed_bytes.saturating_sub(rewritten.written_bytes);
        wait::tell(&pending, &marks, result);
        Ok(())
    }

    /// Marks what the restore points of now need. Where segments are damaged or gone they are made again first: a pack
    /// that only these named would look like one that nobody needs.
    fn first_mark(&self, found: &doom::Found) -> Result<(Points, Marks)> {
        let mut rebuilt = None;
        loop {
            let mut points = Points::default();
            let mut roots = points.roots(self)?;
            let mut marks = Marks::new(self.repository, self.index()?, self.damaged()?)?;
            marks.packs.doom(&found.packs()?);
            if marks.bad_segments.is_empty() {
                let walked = marks.walk(&mut roots, self.control);
                let lacks = !marks.missing.is_empty() || !marks.missing_nodes.is_empty();
                if lacks && rebuilt.is_none() {
                    rebuilt = Some(rebuild::rebuild(self, &marks)?);
                    if rebuilt.as_ref().is_some_and(|rebuilt| rebuilt.packs > 0) {
                        continue;
                    }
                }
                // What is missing may be in a pack that does not tell what it has.
                if let Some((name, error)) = rebuilt.filter(|_| lacks).and_then(|rebuilt| rebuilt.unreadable)
                {
                    let message = format!(
                        "chunks that restore points need are in no index segment, and a pack does not tell what it has, so \
                         nothing is deleted: {}",
                        error.message()
                    );
                    return Err(Error::new(error.kind(), message)
                        .at(self.repository.store().label_of(&pack_key(name)))
                        .hint("`mover verify` tells which restore points miss chunks; prune these"));
                }
                return walked.map(|()| (points, marks));
            }
            let is_corrupt = |error: &Error| error.kind() == ErrorKind::Corruption;
            if rebuilt.is_some() || self.options.dry_run || !marks.bad_segments.values().all(is_corrupt) {
                marks.check_segments()?;
            }
            rebuilt = Some(rebuild::rebuild(self, &marks)?);
        }
    }

    fn phase(&self, phase: &str) {
        (self.emit)(Event::Phase { phase: phase.into() });
    }

    fn warn(&self, message: String) {
        (self.emit)(Event::Warning { message });
    }

    /// For reading: a writer's refuses to open where a doom list is damaged, which gc is there to remove.
    fn index(&self) -> Result<Arc<Index>> {
        Index::open_for_reading(self.repository).map(Arc::new)
    }

    fn damaged(&self) -> Result<HashSet<(ChunkId, ObjectName)>> {
        let damaged = notes::damaged(self.repository)?;
        Ok(damaged.into_iter().filter_map(|chunk| Some((chunk.id, chunk.pack.parse().ok()?))).collect())
    }

    fn count(&self, marks: &Marks, result: &mut GcResult) {
        result.live_chunks = marks.living;
        result.nodes_read = marks.nodes_read;
    }

    fn plan(&self, marks: &Marks) -> Plan {
        let mut plan = Plan::default();
        for pack in marks.packs.iter() {
            let Some(size) = pack.size else {
                if pack.is_living() {
                    self.warn(format!(
                        "{}: the pack is missing and restore points need it; `mover verify` tells which",
                        pack_key(pack.name)
                    ));
                }
                continue;
            };
            // On a list already: what becomes of it is decided when the list's time has come.
            if pack.doomed {
                continue;
            }
            if !pack.is_living() {
                plan.dead.push(pack.name);
                plan.freed_bytes += size;
            } else if pack.living_share() < self.options.repack_below {
                plan.rewrite.push(pack.name);
                let living = pack.living_bytes.load(std::sync::atomic::Ordering::Relaxed);
                plan.freed_bytes += size.saturating_sub(living);
            }
        }
        if !marks.missing.is_empty() {
            self.warn(format!(
                "{} chunks that restore points need are in no index segment; `mover verify` tells which restore points \
                 that touches",
                marks.missing.len()
            ));
        }
        plan
    }

    /// Says what would go.
    fn foretell(&self, found: &doom::Found, marks: &Marks, plan: &Plan, result: &mut GcResult) -> Result<()> {
        let listed = found.packs()?;
        let listed =
            listed.iter().filter_map(|&name| marks.packs.find(name)).filter(|pack| !pack.is_living());
        let sizes: Vec<u64> = listed.filter_map(|pack| pack.size).collect();
        result.packs_deleted = (sizes.len() + plan.dead.len() + plan.rewrite.len()) as u64;
        result.packs_rewritten = plan.rewrite.len() as u64;
        result.freed_bytes = plan.freed_bytes + sizes.iter().sum::<u64>();
        let living = plan.rewrite.iter().filter_map(|&name| marks.packs.find(name));
        result.rewritten_bytes =
            living.map(|pack| pack.living_bytes.load(std::sync::atomic::Ordering::Relaxed)).sum();
        Ok(())
    }

    fn rewrite(&self, marks: &Marks, plan: &Plan, result: &mut GcResult) -> Result<rewrite::Rewritten> {
        if !plan.rewrite.is_empty() {
            self.phase("rewrite");
        }
        let rewritten = rewrite::rewrite(self.repository, marks, &plan.rewrite, self.control, self.emit)?;
        result.packs_rewritten = rewritten.packs.len() as u64;
        result.rewritten_bytes = rewritten.read_bytes;
        for &name in &rewritten.packs {
            if let Some(pack) = marks.packs.find(name) {
                pack.moved_out();
            }
        }
        Ok(rewritten)
    }

    /// Puts the doom list, then, and only then, looks who is there.
    fn doom(
        &self,
        found: doom::Found,
        plan: &Plan,
        rewritten: &rewrite::Rewritten,
        result: &mut GcResult,
    ) -> Result<Vec<Pending>> {
        self.go_on()?;
        let mut pending = wait::pending(found)?;
        let packs: Vec<ObjectName> = plan.dead.iter().chain(&rewritten.packs).copied().collect();
        if !packs.is_empty() {
            let list = DoomList::new(ObjectName::random()?, self.session.began(), &packs);
            doom_list::put(self.repository, &list)?;
            pending.push(Pending::new(list)?);
        }
        if !pending.is_empty() {
            let seen = session::others(self.repository, Some(self.session))?;
            result.sessions_ended += session::end_dead(self.repository, &seen)?.len() as u64;
            pending.iter_mut().for_each(|pending| pending.began_with(&seen));
        }
        Ok(pending)
    }

    /// An error when this gc was stopped, or has been out of touch for so long that another one may have begun.
    fn go_on(&self) -> Result<()> {
        if self.control.stopped() {
            return Err(stopped());
        }
        self.session.check()
    }

    /// Marks what came since, and says which packs go: those on a list whose sessions have ended, where nothing has its
    /// place in them.
    fn mark_again(
        &self,
        marks: &mut Marks,
        points: &mut Points,
        pending: &[Pending],
        result: &mut GcResult,
    ) -> Result<HashSet<ObjectName>> {
        if !pending.iter().any(Pending::is_ripe) {
            return Ok(HashSet::new());
        }
        self.phase("mark again");
        let doomed = pending.iter().flat_map(|pending| pending.packs.iter().copied()).collect();
        marks.packs.doom(&doomed);
        let mut roots = points.roots(self)?;
        // Notes of damage before the index: a place that is noted later was seen whole by this mark.
        let damaged = self.damaged()?;
        marks.refresh(self.index()?, damaged)?;
        marks.check_segments()?;
        let missing = marks.missing.len();
        marks.walk(&mut roots, self.control)?;
        if marks.missing.len() > missing {
            let message =
                "chunks that restore points made meanwhile need are in no index segment: nothing is deleted";
            return Err(Error::new(ErrorKind::Corruption, message).at(self.repository.store().label()).hint(
                "run `mover gc` again: it looks for them in the packs; `mover verify` tells what it touches",
            ));
        }
        self.count(marks, result);
        let ripe = pending.iter().filter(|pending| pending.is_ripe());
        let living = |name: &ObjectName| marks.packs.find(*name).is_some_and(|pack| pack.is_living());
        // A pack may be on a list that waits, too.
        let waits = |name: &ObjectName| {
            pending.iter().any(|pending| !pending.is_ripe() && pending.packs.contains(name))
        };
        Ok(ripe
            .flat_map(|pending| pending.packs.iter().copied())
            .filter(|name| !living(name) && !waits(name))
            .collect())
    }

    fn delete(
        &self,
        marks: &Marks,
        points: &Points,
        pending: &[Pending],
        gone: &HashSet<ObjectName>,
        result: &mut GcResult,
    ) -> Result<()> {
        self.go_on()?;
        self.phase("delete");
        let store = self.repository.store();
        let leftover = tidy::leftover_segments(self.repository, marks)?;
        let mut old = leftover.clone();
        let named = |name: &ObjectName| marks.packs.find(*name).is_some_and(|pack| pack.indexed);
        if gone.iter().any(named) || marks.segments().count() > SEGMENTS_MAX {
            merge::merge(self.repository, marks, gone, &leftover)?;
            old.extend(marks.segments().map(|segment| segment.name()));
        }
        // A session that opened the old ones before the new one was there may open their files again: they stay, ignored by
        // all that come later, until a gc finds nobody. One that begins after this look never takes them.
        let nobody = session::others(self.repository, Some(self.session))?.is_empty();
        for name in old.into_iter().filter(|_| nobody) {
            store.delete(&segment_key(name))?;
            result.objects_deleted += 1;
        }
        for &name in gone {
            store.delete(&pack_key(name))?;
            if let Some(size) = marks.packs.find(name).and_then(|pack| pack.size) {
                result.packs_deleted += 1;
                result.freed_bytes += size;
            }
        }
        result.objects_deleted += tidy::tidy(self, marks, points)?;
        wait::leave(self, pending, result)
    }
}

/// The error of a gc that was stopped while nothing was doomed.
fn stopped() -> Error {
    Error::new(ErrorKind::Stopped, "stopped: nothing was deleted").hint("run `mover gc` again")
}
