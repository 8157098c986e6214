//! From damage to what it touches: notes for later backups and for people, and the result.

use std::collections::HashSet;
use std::sync::Arc;

use mover_model::event::{RunResult, TouchedDisk, VerifyResult};
use mover_model::manifest::Manifest;
use mover_model::{ChunkId, Error, ErrorKind, Name, Result};
use mover_repository::format::pack::pack_key;
use mover_repository::index::Index;
use mover_repository::notes::{self, DamagedChunk, PointNote};
use mover_repository::read::Chunks;
use mover_repository::repository::precisely_now;
use mover_repository::tree::Nodes;
use mover_repository::verify::{Bad, Survey, touched};
use mover_repository::{Repository, manifests};

use super::execute::{Damage, key_of, lost, objects};

/// Puts notes, fills the result. Damage is an error of `Corruption` there, not one that is returned.
pub(super) fn report(
    repository: &Arc<Repository>,
    survey: &Survey,
    scope: &[Manifest],
    mut damage: Damage,
    mut found: VerifyResult,
    result: &mut RunResult,
) -> Result<()> {
    let now_there = match damage.chunks.is_empty() && damage.objects.is_empty() {
        true => None,
        false => Some(Present::look(repository)?),
    };
    if let Some(present) = &now_there {
        forget_what_went(repository, survey, present, &mut damage)?;
    }
    let places: Vec<DamagedChunk> = damage
        .chunks
        .iter()
        .filter_map(|bad| {
            let place = bad.location?;
            Some(DamagedChunk {
                id: bad.id,
                pack: place.pack.to_string(),
                reason: bad.error.message().to_owned(),
            })
        })
        .collect();
    note_places(repository, places)?;
    let lost = lost(&damage);
    let ids: HashSet<ChunkId> = lost.keys().copied().collect();
    found.damaged_chunks = ids.len() as u64;
    found.damaged_objects = objects(&damage);
    let mut hurt: HashSet<(Name, Name)> = HashSet::new();
    if let Some(present) = now_there.filter(|_| !ids.is_empty()) {
        present.touched(repository, &ids, &mut |vm, point, touched| {
            let extents = touched.iter().flat_map(|(disk, ranges)| {
                ranges.iter().map(|&(start, length)| (disk.clone(), start, length))
            });
            let note = PointNote::Damaged { time: precisely_now(), extents: extents.collect() };
            unless_forbidden(notes::put_point(repository, vm, point, &note))?;
            hurt.insert((vm.clone(), point.clone()));
            found.touched.extend(touched.into_iter().map(|(disk, extents)| TouchedDisk {
                vm: vm.to_string(),
                point: point.to_string(),
                disk: disk.to_string(),
                extents,
            }));
            Ok(())
        })?;
    }
    // Of damage that is healed elsewhere nothing is lost, and nobody need act: later backups rely on the whole place.
    if damage.complete && found.damaged_objects.is_empty() {
        for point in scope.iter().filter(|point| !hurt.contains(&(point.vm.clone(), point.point.clone()))) {
            let note = PointNote::Verified { time: precisely_now() };
            unless_forbidden(notes::put_point(repository, &point.vm, &point.point, &note))?;
        }
    }
    if !ids.is_empty() || !found.damaged_objects.is_empty() {
        let mut error = Error::new(
            ErrorKind::Corruption,
            format!(
                "{} chunks and {} objects are damaged; {} disks of restore points are touched{}",
                found.damaged_chunks,
                found.damaged_objects.len(),
                found.touched.len(),
                lost.values().next().map(|bad| format!(" (one of them: {})", bad.error)).unwrap_or_default()
            ),
        )
        .hint(
            "the next backup of what still exists stores damaged chunks again; `touched` names what is hurt",
        );
        let first = lost.values().find_map(|bad| key_of(bad)).map(|key| repository.store().label_of(&key));
        let first = found.damaged_objects.first().map(|object| object.key.clone()).or(first);
        error = error.at(first.unwrap_or_else(|| repository.store().label()));
        result.exit_code = error.exit_code();
        result.error = Some(error.record());
    }
    result.verify = Some(found);
    Ok(())
}

/// What is on record already needs no second note.
fn note_places(repository: &Repository, mut places: Vec<DamagedChunk>) -> Result<()> {
    let known: HashSet<(ChunkId, String)> =
        notes::damaged(repository)?.into_iter().map(|bad| (bad.id, bad.pack)).collect();
    let mut seen = HashSet::new();
    places.retain(|bad| {
        let place = (bad.id, bad.pack.clone());
        !known.contains(&place) && seen.insert(place)
    });
    if places.is_empty() { Ok(()) } else { unless_forbidden(notes::put_damaged(repository, &places)) }
}

/// Where nothing may be put, verify still says what it found. That it has no session either was told as a downgrade.
fn unless_forbidden(put: Result<()>) -> Result<()> {
    match put {
        Err(error) if error.kind() == ErrorKind::Full => Ok(()),
        Err(error) if matches!(error.errno(), Some(libc::EROFS | libc::EACCES | libc::EPERM)) => Ok(()),
        put => put,
    }
}

/// The restore points that are there when everything has been read, and an index that has all they need.
struct Present {
    points: Vec<(Name, HashSet<Name>)>,
    nodes: Nodes,
}

impl Present {
    /// Names first, then the index: one that was opened before would miss what points made meanwhile need.
    fn look(repository: &Arc<Repository>) -> Result<Self> {
        let mut points = Vec::new();
        for vm in manifests::machines(repository)? {
            let listed = manifests::list(repository, &vm)?;
            let names = listed.iter().filter_map(|listed| listed.key.last().parse::<Name>().ok());
            points.push((vm, names.collect()));
        }
        let index = Arc::new(Index::open_for_reading(repository)?);
        Ok(Present { points, nodes: Nodes::new(Arc::new(Chunks::new(repository.clone(), index))) })
    }

    /// Tells which disks of which restore points, in scope or not, chunks or nodes among `ids` touch.
    fn touched(&self, repository: &Repository, ids: &HashSet<ChunkId>, tell: Tell<'_>) -> Result<()> {
        let mut known = Default::default();
        // What cannot be read was told if it is in scope: what it needs nobody knows.
        for (vm, names) in &self.points {
            let manifests = manifests::all(repository, vm)?.points;
            for manifest in manifests.iter().filter(|manifest| names.contains(&manifest.point)) {
                let mut hit = Vec::new();
                for disk in &manifest.disks {
                    let ranges = match ids.contains(&disk.root) {
                        true => vec![(0, disk.size)],
                        false => touched(&self.nodes, &disk.root, disk.size, ids, &mut known)?,
                    };
                    if !ranges.is_empty() {
                        hit.push((disk.id.clone(), ranges));
                    }
                }
                if !hit.is_empty() {
                    tell(vm, &manifest.point, hit)?;
                }
            }
        }
        Ok(())
    }
}

/// Is told of a restore point that is touched: machine, point, and the ranges of its disks.
type Tell<'a> = &'a mut dyn FnMut(&Name, &Name, Vec<(Name, Vec<(u64, u64)>)>) -> Result<()>;

/// Packs that were on a doom list when this verify began may have gone since, and restore points of its scope may have
/// been pruned. That is no damage, where what was in them is whole in another place or needed by no restore point that is
/// there.
fn forget_what_went(
    repository: &Repository,
    survey: &Survey,
    present: &Present,
    damage: &mut Damage,
) -> Result<()> {
    let store = repository.store();
    let mut went = HashSet::new();
    for &pack in survey.chunks().index().doomed() {
        if store.open(&pack_key(pack))?.is_none() {
            went.insert(pack);
        }
    }
    let may_have_gone = |bad: &Bad| bad.location.is_none_or(|place| went.contains(&place.pack));
    let (mut gone, rest): (Vec<Bad>, Vec<Bad>) =
        std::mem::take(&mut damage.chunks).into_iter().partition(|bad| may_have_gone(bad));
    damage.chunks = rest;
    gone.retain(|bad| present.nodes.chunks().get(&bad.id, bad.kind).is_err());
    if !gone.is_empty() {
        let ids = gone.iter().map(|bad| bad.id).collect();
        let mut is_needed = false;
        present.touched(repository, &ids, &mut |_, _, _| {
            is_needed = true;
            Ok(())
        })?;
        if is_needed {
            damage.chunks.append(&mut gone);
            return Ok(());
        }
    }
    for pack in went {
        damage.objects.remove(&store.label_of(&pack_key(pack)));
    }
    Ok(())
}
