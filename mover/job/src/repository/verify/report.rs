//! From damage to what it touches: notes for later backups and for people, and the result.

use std::collections::HashSet;
use std::sync::Arc;

use mover_model::event::{RunResult, TouchedDisk, VerifyResult};
use mover_model::manifest::Manifest;
use mover_model::{ChunkId, Error, ErrorKind, Name, Result};
use mover_repository::notes::{self, DamagedChunk, PointNote};
use mover_repository::tree::Nodes;
use mover_repository::verify::{Survey, touched};
use mover_repository::{Repository, manifests};

use super::execute::{Damage, key_of, lost, objects};

/// Puts notes, fills the result. Damage is an error of `Corruption` there, not one that is returned.
pub(super) fn report(
    repository: &Arc<Repository>,
    survey: &Survey,
    scope: &[Manifest],
    damage: Damage,
    mut found: VerifyResult,
    result: &mut RunResult,
) -> Result<()> {
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
    if !ids.is_empty() {
        hurt = touch(repository, survey, &ids, &mut found)?;
    }
    // Of damage that is healed elsewhere nothing is lost, and nobody need act: later backups rely on the whole place.
    if damage.complete && found.damaged_objects.is_empty() {
        for point in scope.iter().filter(|point| !hurt.contains(&(point.vm.clone(), point.point.clone()))) {
            notes::put_point(repository, &point.vm, &point.point, &PointNote::Verified { time: now() })?;
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
    if places.is_empty() { Ok(()) } else { notes::put_damaged(repository, &places) }
}

/// Finds the damage in all restore points, in scope or not, and notes it of each.
fn touch(
    repository: &Arc<Repository>,
    survey: &Survey,
    ids: &HashSet<ChunkId>,
    found: &mut VerifyResult,
) -> Result<HashSet<(Name, Name)>> {
    let nodes = Nodes::new(survey.chunks().clone());
    let mut known = Default::default();
    let mut hurt = HashSet::new();
    for vm in manifests::machines(repository)? {
        for point in manifests::all(repository, &vm)?.points {
            let mut extents = Vec::new();
            for disk in &point.disks {
                let ranges = match ids.contains(&disk.root) {
                    true => vec![(0, disk.size)],
                    false => touched(&nodes, &disk.root, disk.size, ids, &mut known)?,
                };
                if ranges.is_empty() {
                    continue;
                }
                extents.extend(ranges.iter().map(|&(start, length)| (disk.id.clone(), start, length)));
                found.touched.push(TouchedDisk {
                    vm: vm.to_string(),
                    point: point.point.to_string(),
                    disk: disk.id.to_string(),
                    extents: ranges,
                });
            }
            if !extents.is_empty() {
                let note = PointNote::Damaged { time: now(), extents };
                notes::put_point(repository, &vm, &point.point, &note)?;
                hurt.insert((vm.clone(), point.point));
            }
        }
    }
    Ok(hurt)
}

/// Now, to the second.
fn now() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}
