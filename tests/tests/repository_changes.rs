//! Backups by lists of changed extents, and the lists that `diff` makes.

mod repository_home;

use std::fs;

use mover_tests::process::Run;
use mover_tests::rng::{Rng, seed};
use repository_home::*;
use serde_json::{Value, json};

#[test]
fn only_what_is_listed_is_read_and_the_restore_equals() {
    let home = Home::new();
    let mut rng = Rng::new(seed("only_what_is_listed_is_read_and_the_restore_equals"));
    let disk = home.disk("disk", 1, 9 * MIB + 12_345);
    home.point("vm", &[("vda", &disk)]);
    for round in 0..6 {
        let mut extents: Vec<(u64, u64)> = Vec::new();
        for slot in 0..3 {
            let (start, length) = (slot * 3 * MIB + rng.range(0..2 * MIB), rng.range(1..300_000));
            let mut bytes = vec![0; length as usize];
            if !rng.chance(30) {
                mover_tests::layout::data(rng.bits(), 0, &mut bytes);
            }
            write_at(&disk, start, &bytes);
            extents.push((start, length));
        }
        let list = extents_file(&home.scratch.file("list"), &extents);
        // By the point, or by the checkpoint that `show` tells.
        let since = match round % 2 {
            0 => "vm@latest".to_owned(),
            _ => text(&home.document("show", &["vm"])["disks"][0]["checkpoint"]),
        };
        let run = home.backup("vm", &[("vda", &disk)]).argument("--extents").argument(argument("vda", &list));
        let outcome = run.arguments(["--since", &since]).run();
        outcome.assert_code(0);
        let result = outcome.result();
        let entry = &result["point"]["disks"][0];
        assert_eq!(entry["method"], "changed", "{outcome}");
        let listed: u64 = extents.iter().map(|(_, length)| length).sum();
        let read = entry["read_bytes"].as_u64().unwrap();
        assert!(read <= listed + 2 * 3 * CHUNK && read < 3 * MIB, "{read} bytes read for {listed} changed");
        home.assert_restores("vm", "vda", &disk);
        // The same content has the same name, however it was read.
        let full = home.backup("twin", &[("vda", &disk)]).run().result();
        assert_eq!(full["point"]["disks"][0]["root"], entry["root"]);
        assert_eq!(full["point"]["stored"]["new_chunks"], 0);
    }
    // An empty list: nothing is read.
    let list = extents_file(&home.scratch.file("list"), &[]);
    let run = home.backup("vm", &[("vda", &disk)]).argument("--extents").argument(&list);
    let result = run.arguments(["--since", "vm@latest"]).run().result();
    assert_eq!(
        (&result["moved"]["read_bytes"], &result["point"]["stored"]["new_bytes"]),
        (&json!(0), &json!(0))
    );
    home.assert_restores("vm", "vda", &disk);
    home.assert_whole();
}

#[test]
fn a_disk_of_another_size_is_read_whole_with_the_reason() {
    let home = Home::new();
    let disk = home.disk("disk", 1, 2 * MIB);
    home.point("vm", &[("vda", &disk)]);
    for size in [3 * MIB, MIB + 1] {
        let list = extents_file(&home.scratch.file("list"), &[(0, 4096)]);
        truncate(&disk, size);
        write_at(&disk, size - 5, b"grown");
        let run = home.backup("vm", &[("vda", &disk)]).argument("--extents").argument(argument("vda", &list));
        let outcome = run.arguments(["--since", "vm@latest"]).run();
        outcome.assert_code(0);
        let entry = outcome.result()["point"]["disks"][0].clone();
        assert!(entry["reason"].as_str().is_some_and(|reason| reason.contains("bytes")), "{entry}");
        assert_ne!(entry["method"], "changed");
        home.assert_restores("vm", "vda", &disk);
    }
}

#[test]
fn lists_of_other_programs_are_taken() {
    let home = Home::new();
    let disk = home.disk("disk", 1, 2 * MIB);
    home.point("vm", &[("vda", &disk)]);
    let lists = [
        json!([{"offset": 0, "length": MIB, "type": 0, "description": "clean"},
            {"offset": MIB, "length": MIB, "type": 1, "description": "dirty"}]),
        json!([{"start": MIB, "length": MIB, "dirty": true, "zero": false}]),
        json!([{"start": MIB, "length": MIB, "depth": 0, "present": true, "zero": false, "data": true, "offset": MIB}]),
    ];
    for (round, list) in lists.iter().enumerate() {
        write_at(&disk, MIB + 1000 * round as u64, &[round as u8 + 1; 700]);
        let file = home.scratch.write("list", list.to_string());
        let run = home.backup("vm", &[("vda", &disk)]).argument("--extents").argument(&file);
        let outcome = run.arguments(["--since", "vm@latest"]).run();
        outcome.assert_code(0);
        assert_eq!(outcome.result()["point"]["disks"][0]["read_bytes"], MIB);
        home.assert_restores("vm", "vda", &disk);
    }
}

#[test]
fn diff_brings_an_old_image_up_to_date() {
    let home = Home::new();
    let disk = home.disk("disk", 1, 5 * MIB + 999);
    let first = home.point("vm", &[("vda", &disk)]);
    let old = home.copy_of(&disk, "old");
    write_at(&disk, 300_000, b"changed");
    write_at(&disk, 2 * MIB, &[0; 512 * 1024]);
    write_at(&disk, 5 * MIB + 990, b"tail");
    home.point("vm", &[("vda", &disk)]);
    let list = home.document("diff", &[&format!("vm@{first}"), "vm@latest"]);
    assert_eq!((&list["format"], &list["size"]), (&json!("mover-extents"), &json!(5 * MIB + 999)));
    let extents = list["extents"].as_array().unwrap();
    let bytes: u64 = extents.iter().map(|extent| extent["length"].as_u64().unwrap()).sum();
    assert!((512 * KIB..=512 * KIB + 4 * CHUNK).contains(&bytes), "{bytes} bytes differ: {list}");
    let file = home.scratch.write("list", list.to_string());
    let copy =
        Run::mover(["copy", "--json", "--force", "--extents"]).argument(&file).argument(&disk).argument(&old);
    copy.run().assert_code(0);
    same(&disk, &old);
    // A point and itself differ in nothing.
    let none = home.document("diff", &["vm@latest", "vm@latest"]);
    assert_eq!(none["extents"], Value::Array(Vec::new()));
    // The list is one of a backup, too: it names its base.
    let third = home.copy_of(&disk, "third");
    write_at(&third, 100, b"third");
    let run = home.backup("vm", &[("vda", &third)]).argument("--extents").argument(&file);
    let outcome = run.arguments(["--since", "vm@latest"]).run();
    assert!(matches!(outcome.code, Some(0 | 5)), "{outcome}");
    // Several disks need --disk.
    home.point("two", &[("vda", &disk), ("vdb", &old)]);
    fails(home.run("diff").arguments(["two@latest", "two@latest"]), 2, "usage", "--disk");
    home.document("diff", &["two@latest", "two@latest", "--disk", "vdb"]);
    assert!(fs::metadata(&file).unwrap().len() > 0);
}

#[test]
fn documents_for_programs_have_their_fields() {
    let home = Home::new();
    let disk = home.disk("disk", 1, MIB);
    let id = home.point("web", &[("vda", &disk)]);
    home.point("db", &[("vda", &disk)]);
    let all = home.document("list", &[]);
    let machines = all["machines"].as_array().unwrap();
    assert_eq!(machines.iter().map(|machine| text(&machine["vm"])).collect::<Vec<_>>(), ["db", "web"]);
    assert_eq!((&machines[1]["points"], &machines[1]["latest"]), (&json!(1), &json!(id)));
    let list = home.document("list", &["web"]);
    for field in
        ["id", "parent", "sequence", "time", "disks", "size", "stored_bytes", "damaged", "verified_at"]
    {
        assert!(list["points"][0].get(field).is_some(), "{field}: {list}");
    }
    home.assert_whole();
    assert!(home.document("list", &["web"])["points"][0]["verified_at"].is_string());
    let shown = home.document("show", &["web"]);
    let of_disk =
        ["id", "size", "root", "method", "reason", "base", "checkpoint", "source", "common", "bad_extents"];
    for field in of_disk {
        assert!(shown["disks"][0].get(field).is_some(), "{field}: {shown}");
    }
    fails(home.run("list").argument("nobody"), 10, "not_found", "nobody");
    // The catalog is a cache: the same without it, and after a rebuild.
    for round in 0..2 {
        if round == 0 {
            fs::remove_dir_all(&home.state).unwrap();
        } else {
            home.run("catalog rebuild").run().assert_code(0);
        }
        assert_eq!(home.document("list", &[]), all);
        assert_eq!(home.document("show", &["web"]), shown);
    }
    // What another host makes or deletes is seen.
    fs::remove_file(home.repo.join("manifests/db").join(text(&machines[0]["latest"]))).unwrap();
    assert_eq!(home.document("list", &[])["machines"].as_array().unwrap().len(), 1);
    // A catalog that is garbage is no reason to fail.
    for entry in fs::read_dir(&home.state).unwrap() {
        fs::write(entry.unwrap().path(), b"garbage, and no database at all").unwrap();
    }
    home.run("list").run().assert_code(0);
    home.backup("web", &[("vda", &disk)]).run().assert_code(0);
    home.assert_restores("web", "vda", &disk);
}
