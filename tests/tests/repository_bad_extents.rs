//! Backups of disks that cannot be read in parts: what is recorded, what is restored, and what builds on it.

mod repository_home;

use std::fs;
use std::path::Path;

use mover_tests::fault::Fault;
use mover_tests::faulty::FaultyFile;
use mover_tests::layout::{Content, Layout};
use mover_tests::need;
use mover_tests::outcome::Outcome;
use repository_home::*;
use serde_json::json;

const SIZE: u64 = 3 * MIB + 5000;

fn faulty() -> Result<FaultyFile, mover_tests::Skip> {
    let faulty = FaultyFile::memory(SIZE)?;
    Layout::of(5, &[(SIZE, Content::Data)]).write_to(faulty.backing(), false).unwrap();
    Ok(faulty)
}

fn record(home: &Home, vm: &str, disks: &[(&str, &Path)], more: &[&str]) -> Outcome {
    home.backup(vm, disks).arguments(["--on-read-error", "record"]).arguments(more).run()
}

/// Start and end of the recorded extents of a disk.
fn recorded(outcome: &Outcome, pair: u64) -> Vec<(u64, u64)> {
    let result = outcome.result();
    let of_pair = result["bad_extents"].as_array().unwrap().iter().filter(|bad| bad["pair"] == pair);
    of_pair
        .map(|bad| {
            let start = bad["start"].as_u64().unwrap();
            (start, start + bad["length"].as_u64().unwrap())
        })
        .collect()
}

#[test]
fn each_unreadable_part_is_told_where_it_is_and_no_more_is_lost() {
    let faulty = need!(faulty());
    let home = Home::new();
    let sound = home.disk("sound", 2, MIB);
    // One inside a chunk, one over the border of two chunks, one in the short last chunk.
    let bad = [(40_000, 40_001), (CHUNK * 8 - 100, CHUNK * 8 + 100), (3 * MIB + 4096, SIZE)];
    for (start, end) in bad {
        faulty.faults().add(Fault::errno(libc::EIO).on_reads().range(start..end));
    }
    let outcome = record(&home, "vm", &[("sound", &sound), ("vda", &faulty.path())], &[]);
    outcome.assert_code(3);
    let result = outcome.result();
    let found = recorded(&outcome, 1);
    // In blocks of 4 KiB; what is joined is one extent.
    assert_eq!(found, [(36_864, 40_960), (CHUNK * 8 - 4096, CHUNK * 8 + 4096), (3 * MIB + 4096, SIZE)]);
    assert_eq!((&result["bad_extents_count"], recorded(&outcome, 0).len()), (&json!(3), 0));
    let path = faulty.path();
    for event in outcome.events("bad_extent") {
        assert_eq!((event["path"].as_str(), &event["errno"]), (path.to_str(), &json!(libc::EIO)), "{event}");
    }
    assert_eq!(outcome.events("bad_extent").len(), 3);
    assert_eq!(
        (&result["pairs"][0]["status"], &result["pairs"][1]["status"]),
        (&json!("done"), &json!("done_with_bad_extents"))
    );
    let point = point_id(&result);
    let shown = home.document("show", &[&format!("vm@{point}")]);
    assert_eq!(disk_of(&shown["disks"], "vda")["bad_extents"].as_array().unwrap().len(), 3, "{shown}");
    assert!(disk_of(&shown["disks"], "sound")["bad_extents"].as_array().unwrap().is_empty());
    // It is no `latest`, and named it gives all that could be read, zeros for the rest.
    fails(home.restore("vm", "vda", &home.scratch.file("x")), 10, "not_found", "damaged");
    let target = home.scratch.file("target");
    home.restore(&format!("vm@{point}"), "vda", &target).run().assert_code(0);
    faulty.faults().clear();
    let (now, mut expected) = (fs::read(&target).unwrap(), fs::read(&path).unwrap());
    found.iter().for_each(|&(start, end)| expected[start as usize..end as usize].fill(0));
    assert!(now == expected, "more or less than the unreadable parts is missing");
    home.assert_whole();
}

#[test]
fn a_list_of_changes_records_what_it_names_and_a_damaged_base_is_not_built_on() {
    let faulty = need!(faulty());
    let home = Home::new();
    let (path, list) = (faulty.path(), home.scratch.file("list"));
    let whole = home.point("vm", &[("vda", &path)]);
    faulty.faults().add(Fault::errno(libc::EIO).on_reads().range(MIB..MIB + 1));
    faulty.faults().add(Fault::errno(libc::EIO).on_reads().range(0..1));
    // The list names the second part only: the first one is the base's.
    let named = format!("vda={}", extents_file(&list, &[(MIB, 4096)]).display());
    let since = format!("vm@{whole}");
    let changes = ["--extents", &named, "--since", &since];
    let outcome = record(&home, "vm", &[("vda", &path)], &changes);
    outcome.assert_code(3);
    assert_eq!(recorded(&outcome, 0), [(MIB, MIB + 4096)]);
    let damaged = point_id(&outcome.result());
    faulty.faults().clear();
    // Everything is read where the base is the damaged one, and the reason stands in the result.
    let since = format!("vm@{damaged}");
    let run = home.backup("vm", &[("vda", &path)]).arguments(["--extents", &named, "--since", &since]);
    let outcome = run.run();
    outcome.assert_code(0);
    let result = outcome.result();
    let disk = disk_of(&result["point"]["disks"], "vda");
    assert_eq!((&disk["method"], &disk["read_bytes"]), (&json!("scan"), &json!(SIZE)), "{disk}");
    assert!(disk["reason"].as_str().unwrap().contains(&damaged), "{disk}");
    assert!(result["degraded"].as_array().unwrap().iter().any(|it| it["about"] == "incremental"));
    home.assert_restores("vm", "vda", &path);
}

#[test]
fn an_unreadable_common_disk_is_not_referenced() {
    let faulty = need!(faulty());
    let home = Home::new();
    let path = faulty.path();
    let fault = faulty.faults().add(Fault::errno(libc::EIO).on_reads().range(MIB..MIB + 1));
    let common = path.with_file_name(format!("{},common=golden", path.file_name().unwrap().display()));
    let first = record(&home, "one", &[("base", &common)], &[]);
    first.assert_code(3);
    faulty.faults().remove(fault);
    let second = record(&home, "two", &[("base", &common)], &[]);
    second.assert_code(0);
    let result = second.result();
    assert_eq!(disk_of(&result["point"]["disks"], "base")["status"], "stored", "{second}");
    home.assert_restores("two", "base", &path);
}
