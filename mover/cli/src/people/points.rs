//! What the verbs that work on a repository tell at their end.

use mover_model::event::{
    DiskResult, DiskStatus, GcResult, PairResult, PointResult, PruneResult, RunResult, VerifyResult,
};
use mover_model::manifest::Method;
use mover_model::units::format_size;

use super::columns::{columns, words};
use super::fields::short_time;
use super::summary::pace;

/// Ranges of damage, and objects, that are told one by one; the rest is counted.
const DAMAGE_SHOWN: usize = 20;

/// The lines of a backup's end: the restore point, its disks, and what it took.
pub fn backup(result: &RunResult, point: &PointResult) -> Vec<String> {
    let mut lines = Vec::new();
    let after = point.parent.as_ref().map_or(String::new(), |parent| format!(", after {parent}"));
    if point.committed {
        let repeated = if point.repeated { ": an earlier run of this run key made it" } else { "" };
        let damaged = if point.damaged { "; damaged, so it is not `latest`" } else { "" };
        lines.push(format!("restore point {}@{}{after}{repeated}{damaged}", point.vm, point.id));
    }
    if point.repeated || result.error.is_some() && point.disks.is_empty() {
        return lines;
    }
    lines.extend(point.disks.iter().map(backed_up));
    if point.committed {
        lines.push(format!(
            "read {}, {} new, {} stored; {}",
            format_size(result.moved.read_bytes),
            format_size(point.stored.new_bytes),
            format_size(point.stored.stored_bytes),
            pace(result, result.moved.read_bytes),
        ));
    } else {
        lines.push("no restore point was made; earlier ones are as they were".to_owned());
    }
    lines
}

fn backed_up(disk: &DiskResult) -> String {
    let size = format_size(disk.size);
    let reason = disk.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
    let common = disk.common.as_ref().map_or(String::new(), |common| {
        format!("; common {} at {}, in {}", common.id, common.location, common.vms.join(", "))
    });
    let how = match (disk.status, disk.method) {
        (DiskStatus::Referenced, _) | (DiskStatus::Stored, Some(Method::Common)) => {
            "known already, neither read nor stored"
        }
        (DiskStatus::Failed, _) => "failed",
        (DiskStatus::Skipped, _) => "not begun",
        (_, Some(Method::Changed)) => "changes only",
        (_, Some(Method::Scan)) => "read whole",
        (_, Some(Method::Full)) => "first backup",
        (_, _) => "planned",
    };
    let moved = if disk.read_bytes > 0 || disk.stored.stored_bytes > 0 {
        format!(
            ": {} read, {} new, {} stored",
            format_size(disk.read_bytes),
            format_size(disk.stored.new_bytes),
            format_size(disk.stored.stored_bytes)
        )
    } else {
        String::new()
    };
    format!("  {}  {size}, {how}{reason}{moved}{common}", disk.id)
}

/// The lines of a restore's end.
pub fn restore(result: &RunResult, point: &PointResult) -> Vec<String> {
    let moved = &result.moved;
    if result.error.is_some() && moved.written_bytes == 0 && moved.zero_bytes == 0 && point.disks.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![format!("restore point {}@{}", point.vm, point.id)];
    for disk in &point.disks {
        let pair = result.pairs.iter().find(|pair| pair.disk.as_ref() == Some(&disk.id));
        lines.push(restored(disk, pair));
    }
    let bytes = result.moved.written_bytes;
    lines.push(format!("wrote {}; {}", format_size(bytes), pace(result, bytes)));
    lines
}

fn restored(disk: &DiskResult, pair: Option<&PairResult>) -> String {
    let reason = disk.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
    let size = format_size(disk.size);
    let what = match disk.status {
        DiskStatus::Restored => match pair {
            Some(pair) => {
                let flushed = if pair.flushed { ", flushed" } else { "" };
                format!(
                    "restored to {}: {} written, {} zero{flushed}",
                    pair.target,
                    format_size(pair.moved.written_bytes),
                    format_size(pair.moved.zero_bytes)
                )
            }
            None => "restored".to_owned(),
        },
        DiskStatus::Kept => "kept as it is".to_owned(),
        DiskStatus::Failed => "failed".to_owned(),
        DiskStatus::Skipped => "not begun".to_owned(),
        DiskStatus::Stored | DiskStatus::Referenced => "not touched".to_owned(),
    };
    format!("  {}  {size}, {what}{reason}", disk.id)
}

/// The lines of a verify's end. Damage names the objects, and the machines whose restore points it touches.
pub fn verify(result: &RunResult, verify: &VerifyResult) -> Vec<String> {
    let mut lines = Vec::new();
    for object in verify.damaged_objects.iter().take(DAMAGE_SHOWN) {
        lines.push(format!("damaged: {}: {}", object.key, object.reason));
    }
    if let Some(more) = verify.damaged_objects.len().checked_sub(DAMAGE_SHOWN).filter(|&more| more > 0) {
        lines.push(format!("damaged: {more} more objects (--json lists them)"));
    }
    for touched in &verify.touched {
        let shown = touched.extents.iter().take(DAMAGE_SHOWN);
        let mut ranges: Vec<String> =
            shown.map(|(start, length)| format!("{} at offset {start}", format_size(*length))).collect();
        if touched.extents.len() > DAMAGE_SHOWN {
            ranges.push(format!("{} more ranges", touched.extents.len() - DAMAGE_SHOWN));
        }
        let ranges = if ranges.is_empty() { "all of it".to_owned() } else { ranges.join(", ") };
        lines.push(format!("touched: {}@{} disk {}: {ranges}", touched.vm, touched.point, touched.disk));
    }
    let found = match (verify.damaged_chunks, verify.damaged_objects.len()) {
        (0, 0) => "no damage".to_owned(),
        (chunks, objects) => {
            format!("{} and {}", count(chunks, "damaged chunk"), count(objects as u64, "damaged object"))
        }
    };
    lines.push(format!(
        "{} verified: {found}; {} and {} read, {}; {}",
        count(verify.points, "restore point"),
        count(verify.chunks, "chunk"),
        count(verify.nodes, "node"),
        format_size(verify.stored_bytes),
        pace(result, verify.stored_bytes),
    ));
    lines
}

/// The lines of a gc's end.
pub fn gc(result: &RunResult, gc: &GcResult) -> Vec<String> {
    let (deleted, rewritten, freed) = if gc.dry_run {
        ("would be deleted", "would be rewritten", "would be given back")
    } else {
        ("deleted", "rewritten", "given back")
    };
    let mut lines = vec![format!(
        "{} {deleted}, {} {rewritten}; {} {freed}",
        count(gc.packs_deleted, "pack"),
        gc.packs_rewritten,
        format_size(gc.freed_bytes)
    )];
    let mut also = vec![format!("{} needed", count(gc.live_chunks, "chunk"))];
    if gc.rewritten_bytes > 0 {
        also.push(format!("{} moved to new packs", format_size(gc.rewritten_bytes)));
    }
    if gc.sessions_ended > 0 {
        also.push(format!("{} ended", count(gc.sessions_ended, "dead session")));
    }
    if gc.objects_deleted > 0 {
        also.push(format!("{} {deleted}", count(gc.objects_deleted, "other object")));
    }
    also.push(format!("{:.2} s", result.elapsed_seconds));
    lines.push(also.join(", "));
    if gc.packs_waiting > 0 {
        lines.push(format!(
            "{} left to the next gc, since these sessions may still need them: {}",
            count(gc.packs_waiting, "pack"),
            gc.waiting_for.join(", ")
        ));
    }
    lines
}

/// The line of a prune's end; the plan itself is [`prune_table`].
pub fn prune(prune: &PruneResult) -> Vec<String> {
    let stay = prune.points.iter().filter(|point| point.keep).count();
    let go = prune.points.len() - stay;
    if prune.points.is_empty() {
        return Vec::new();
    }
    let deleted = match (prune.dry_run, go) {
        (true, _) => "would be deleted",
        (false, 0) => "deleted",
        (false, _) => "deleted; their space comes back with `mover gc`",
    };
    vec![format!("{} kept, {go} {deleted}", count(stay as u64, "restore point"))]
}

/// The plan of a prune.
pub fn prune_table(prune: &PruneResult) -> String {
    let rows: Vec<Vec<String>> = prune
        .points
        .iter()
        .map(|point| {
            let what = if point.keep { "keep" } else { "delete" };
            vec![
                format!("{}@{}", point.vm, point.point),
                short_time(&point.time),
                what.to_owned(),
                point.reasons.join(", "),
            ]
        })
        .collect();
    columns(&[words("POINT"), words("TIME"), words("PLAN"), words("WHY")], &rows)
}

/// `1 chunk`, `2 chunks`.
fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mover_model::event::{CommonResult, DamagedObject, Moved, PrunePoint, TouchedDisk};
    use mover_model::manifest::Stored;

    fn disk(id: &str, status: DiskStatus, method: Option<Method>) -> DiskResult {
        DiskResult {
            id: id.into(),
            status,
            size: 8 << 30,
            root: None,
            method,
            reason: None,
            read_bytes: 0,
            stored: Stored::default(),
            common: None,
        }
    }

    fn run() -> RunResult {
        RunResult {
            elapsed_seconds: 2.0,
            cpu_seconds: 0.4,
            peak_memory_bytes: 28 << 20,
            moved: Moved { read_bytes: 4_000_000_000, written_bytes: 2_000_000_000, ..Moved::default() },
            ..RunResult::default()
        }
    }

    #[test]
    fn a_backup() {
        let stored = Stored { new_chunks: 3, new_bytes: 2 << 20, stored_bytes: 1 << 20 };
        let mut point = PointResult {
            vm: "vm1".into(),
            id: "p2".into(),
            parent: Some("p1".into()),
            committed: true,
            disks: vec![
                DiskResult {
                    read_bytes: 3 << 20,
                    stored,
                    ..disk("vda", DiskStatus::Stored, Some(Method::Changed))
                },
                DiskResult {
                    common: Some(CommonResult {
                        id: "win11".into(),
                        location: "/b".into(),
                        vms: vec!["vm0".into(), "vm1".into()],
                    }),
                    ..disk("vdb", DiskStatus::Referenced, Some(Method::Common))
                },
            ],
            stored,
            ..PointResult::default()
        };
        assert_eq!(
            backup(&run(), &point),
            [
                "restore point vm1@p2, after p1",
                "  vda  8 GiB, changes only: 3 MiB read, 2 MiB new, 1 MiB stored",
                "  vdb  8 GiB, known already, neither read nor stored; common win11 at /b, in vm0, vm1",
                "read 3.7 GiB, 2 MiB new, 1 MiB stored; 2.00 s: 2.00 GB/s, 0.10 CPU s/GB, peak memory 28 MiB",
            ]
        );
        point.repeated = true;
        assert_eq!(
            backup(&run(), &point),
            ["restore point vm1@p2, after p1: an earlier run of this run key made it"]
        );
        let none =
            PointResult { disks: vec![disk("vda", DiskStatus::Failed, None)], ..PointResult::default() };
        assert_eq!(
            backup(&run(), &none),
            ["  vda  8 GiB, failed", "no restore point was made; earlier ones are as they were"]
        );
    }

    #[test]
    fn a_restore() {
        let point = PointResult {
            vm: "vm1".into(),
            id: "p2".into(),
            disks: vec![
                disk("vda", DiskStatus::Restored, None),
                DiskResult { reason: Some("common to vm0".into()), ..disk("vdb", DiskStatus::Kept, None) },
            ],
            ..PointResult::default()
        };
        let moved = Moved { written_bytes: 1 << 30, zero_bytes: 7 << 30, ..Moved::default() };
        let pair = PairResult {
            disk: Some("vda".into()),
            target: "a.raw".into(),
            moved,
            flushed: true,
            ..PairResult::default()
        };
        let result = RunResult { pairs: vec![pair], ..run() };
        assert_eq!(
            restore(&result, &point)[..3],
            [
                "restore point vm1@p2",
                "  vda  8 GiB, restored to a.raw: 1 GiB written, 7 GiB zero, flushed",
                "  vdb  8 GiB, kept as it is (common to vm0)",
            ]
        );
    }

    #[test]
    fn damage_names_what_it_touches() {
        let touched = TouchedDisk {
            vm: "vm1".into(),
            point: "p2".into(),
            disk: "vda".into(),
            extents: (0..22).map(|n| (n << 20, 131_072)).collect(),
        };
        let found = VerifyResult {
            points: 1,
            chunks: 3,
            nodes: 2,
            stored_bytes: 1 << 20,
            damaged_objects: vec![DamagedObject { key: "packs/ab/abcd".into(), reason: "is missing".into() }],
            damaged_chunks: 22,
            touched: vec![touched],
        };
        let lines = verify(&run(), &found);
        assert_eq!(lines[0], "damaged: packs/ab/abcd: is missing");
        assert!(
            lines[1]
                .starts_with("touched: vm1@p2 disk vda: 128 KiB at offset 0, 128 KiB at offset 1048576, ")
        );
        assert!(lines[1].ends_with(", 2 more ranges"));
        assert!(lines[2].starts_with(
            "1 restore point verified: 22 damaged chunks and 1 damaged object; 3 chunks and 2 nodes read"
        ));
        let whole = VerifyResult { points: 2, ..VerifyResult::default() };
        assert!(verify(&run(), &whole)[0].contains("2 restore points verified: no damage"));
    }

    #[test]
    fn what_gc_leaves_is_said() {
        let waiting = GcResult {
            packs_deleted: 1,
            freed_bytes: 64 << 20,
            packs_waiting: 2,
            waiting_for: vec!["backup of vm1 by host1".into()],
            ..GcResult::default()
        };
        let lines = gc(&run(), &waiting);
        assert_eq!(lines[0], "1 pack deleted, 0 rewritten; 64 MiB given back");
        assert_eq!(
            lines[2],
            "2 packs left to the next gc, since these sessions may still need them: backup of vm1 by host1"
        );
    }

    #[test]
    fn a_prune_plan_is_a_table() {
        let point = |point: &str, keep| PrunePoint {
            vm: "vm1".into(),
            point: point.into(),
            time: "2026-11-20T03:00:00.5Z".into(),
            keep,
            reasons: if keep { vec!["last 1/1".into(), "daily 2026-11-20".into()] } else { vec![] },
        };
        let plan = PruneResult { dry_run: true, points: vec![point("p1", false), point("p2", true)] };
        assert_eq!(
            prune_table(&plan),
            "POINT   TIME                  PLAN    WHY\n\
             vm1@p1  2026-11-20T03:00:00Z  delete\n\
             vm1@p2  2026-11-20T03:00:00Z  keep    last 1/1, daily 2026-11-20\n"
        );
        assert_eq!(prune(&plan), ["1 restore point kept, 1 would be deleted"]);
    }
}
