//! Waits until nobody can rely on doomed packs any more.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use mover_model::event::GcResult;
use mover_model::{Error, ErrorKind, Result};

use super::Gc;
use super::doom::{self, Found};
use super::mark::Marks;
use crate::index::doom::{DoomList, key as key_of};
use crate::names::ObjectName;
use crate::session::{self, Purpose, Seen};
use crate::store::Key;

/// Time between two looks at the sessions.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A doom list that is to be finished.
pub(super) struct Pending {
    list: DoomList,
    /// Its packs.
    pub packs: HashSet<ObjectName>,
    /// Sessions that must end first, by id, with a word on each. `None`: not known yet, so all that are there.
    waits: Option<HashMap<String, String>>,
    /// Objects that say who is waited for.
    told: Vec<Key>,
}

impl Pending {
    /// A list, of whose sessions nothing is known.
    ///
    /// # Errors
    /// `Corruption` for a pack's name that is none.
    pub fn new(list: DoomList) -> Result<Self> {
        let packs = list.pack_names()?.into_iter().collect();
        Ok(Pending { list, packs, waits: None, told: Vec::new() })
    }

    /// Takes the sessions that were listed after the list had been put.
    pub fn began_with(&mut self, seen: &[Seen]) {
        let living = || seen.iter().filter(|seen| seen.alive);
        match &mut self.waits {
            None => {
                self.waits = Some(living().map(|seen| (seen.record.id.clone(), word(seen))).collect());
            }
            Some(waits) => {
                waits.retain(|id, _| living().any(|seen| seen.record.id == *id));
                for seen in living() {
                    if let Some(said) = waits.get_mut(&seen.record.id) {
                        *said = word(seen);
                    }
                }
            }
        }
    }

    /// Whether all of them have ended.
    pub fn is_ripe(&self) -> bool {
        self.waits.as_ref().is_some_and(HashMap::is_empty)
    }
}

/// The lists that are there, with those who are waited for as far as an earlier gc has told.
pub(super) fn pending(found: Found) -> Result<Vec<Pending>> {
    let mut pending = found.lists.into_iter().map(Pending::new).collect::<Result<Vec<_>>>()?;
    for (key, waits) in found.waits {
        let Some(pending) = pending.iter_mut().find(|pending| pending.list.id == waits.list) else {
            continue;
        };
        match &mut pending.waits {
            // Whoever has told twice of a list: each time all that were left.
            Some(known) => known.retain(|id, _| waits.sessions.contains(id)),
            None => pending.waits = Some(waits.sessions.into_iter().map(|id| (id.clone(), id)).collect()),
        }
        pending.told.push(key);
    }
    Ok(pending)
}

impl Gc<'_> {
    /// Waits until all lists are ripe, as long as it may; ends sessions that die meanwhile.
    ///
    /// # Errors
    /// `Interrupted` when stopped; the store's.
    pub(super) fn wait(&self, pending: &mut [Pending], result: &mut GcResult) -> Result<()> {
        if pending.iter().all(Pending::is_ripe) {
            return Ok(());
        }
        self.phase("wait");
        let begun = Instant::now();
        while begun.elapsed() < self.options.wait && !pending.iter().all(Pending::is_ripe) {
            if self.control.stopped() {
                tell_waits(self, pending)?;
                return Err(Error::new(
                    ErrorKind::Interrupted,
                    "stopped while sessions were waited for: nothing was deleted, the doom list stays",
                )
                .hint("the next `mover gc` goes on from there"));
            }
            std::thread::sleep(LOOK_EVERY.min(self.options.wait.saturating_sub(begun.elapsed())));
            self.session.check()?;
            let seen = session::others(self.repository, Some(self.session))?;
            let ended = session::end_dead(self.repository, &seen)?;
            result.sessions_ended += ended.len() as u64;
            let living: Vec<Seen> = seen
                .into_iter()
                .filter(|seen| !ended.iter().any(|ended| ended.record.id == seen.record.id))
                .collect();
            pending.iter_mut().for_each(|pending| pending.began_with(&living));
        }
        Ok(())
    }
}

/// Deletes the lists that are finished, at the very end; of the others says who is waited for.
pub(super) fn leave(gc: &Gc<'_>, pending: &[Pending], result: &mut GcResult) -> Result<()> {
    tell_waits(gc, pending)?;
    let store = gc.repository.store();
    let found = doom::all(gc.repository)?;
    let waits = |id: &str| pending.iter().any(|pending| !pending.is_ripe() && pending.list.id == id);
    // What tells of a list goes before it: without that a list is only waited for longer.
    let told = found.waits.into_iter().filter(|(_, told)| !waits(&told.list)).map(|(key, _)| key);
    let damaged = found.damaged.into_iter().map(|(key, _)| key);
    let lists = found.lists.iter().filter(|list| !waits(&list.id)).filter_map(|list| list.id.parse().ok());
    for key in told.chain(damaged).chain(lists.map(key_of)) {
        store.delete(&key)?;
        result.objects_deleted += 1;
    }
    Ok(())
}

fn tell_waits(gc: &Gc<'_>, pending: &[Pending]) -> Result<()> {
    for pending in pending.iter().filter(|pending| !pending.is_ripe() && pending.told.is_empty()) {
        if let Some(waits) = &pending.waits {
            doom::put_waits(gc.repository, &pending.list, waits.keys().cloned().collect())?;
        }
    }
    Ok(())
}

/// What is left to a later gc.
pub(super) fn tell(pending: &[Pending], marks: &Marks, result: &mut GcResult) {
    let waiting: HashSet<ObjectName> = pending
        .iter()
        .filter(|pending| !pending.is_ripe())
        .flat_map(|pending| pending.packs.iter().copied())
        .filter(|name| marks.packs.find(*name).is_some_and(|pack| pack.size.is_some()))
        .collect();
    result.packs_waiting = waiting.len() as u64;
    let words: HashSet<&String> =
        pending.iter().filter_map(|pending| pending.waits.as_ref()).flat_map(HashMap::values).collect();
    result.waiting_for = words.into_iter().cloned().collect();
    result.waiting_for.sort_unstable();
}

/// A session, for people.
fn word(seen: &Seen) -> String {
    let record = &seen.record;
    let what = match &record.purpose {
        Purpose::Backup { vm, point } => format!("backup of {vm}@{point}"),
        Purpose::Read { verb } => verb.clone(),
        Purpose::Gc => "gc".to_owned(),
        Purpose::Prune => "prune".to_owned(),
    };
    format!("{what} on {}, process {}, session {}", record.host, record.pid, record.id)
}
