//! Backup and restore as a backup suite uses them: exit codes, results and documents, and every byte.

mod repository_home;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use mover_tests::fault::Fault;
use mover_tests::faulty::FaultyFile;
use mover_tests::layout::{Content, Layout, Shape};
use mover_tests::need;
use mover_tests::process::Run;
use mover_tests::rng::seed;
use mover_tests::volume::{LoopDevice, LoopOptions};
use repository_home::*;
use serde_json::{Value, json};

#[test]
fn disks_of_every_size_come_back() {
    let home = Home::new();
    for size in [1, 511, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 1_000_003, 3 * MIB] {
        let disk = home.disk("disk", size, size);
        let outcome = home.backup("sizes", &[("vda", &disk)]).run();
        outcome.assert_code(0);
        assert_eq!(outcome.result()["point"]["disks"][0]["size"], size);
        home.assert_restores("sizes", "vda", &disk);
    }
    assert_eq!(home.points("sizes").len(), 8);
    home.assert_whole();
}

#[test]
fn an_empty_disk_is_backed_up_or_refused_in_words() {
    let home = Home::new();
    let disk = home.scratch.sparse("empty", 0);
    let outcome = home.backup("empty", &[("vda", &disk)]).run();
    if outcome.code == Some(0) {
        home.assert_restores("empty", "vda", &disk);
        home.assert_whole();
    } else {
        assert!(matches!(outcome.code, Some(2 | 5)), "{outcome}");
        assert!(outcome.result()["error"]["message"].as_str().unwrap().contains("empty"), "{outcome}");
    }
}

#[test]
fn random_layouts_with_holes_come_back_with_holes() {
    let home = Home::new();
    let seed = seed("random_layouts_with_holes_come_back_with_holes");
    for round in 0..5 {
        let layout = Layout::random(seed + round, &Shape::file(12 * MIB));
        let disk = home.scratch.file("disk");
        layout.write(&disk).unwrap();
        let outcome = home.backup("random", &[("vda", &disk)]).run();
        outcome.assert_code(0);
        let target = home.scratch.file(&format!("target-{round}"));
        home.restore("random", "vda", &target).run().assert_code(0);
        layout.assert_on(&target);
    }
    // A disk that is all hole takes no chunk, and its restore no blocks.
    let disk = home.scratch.sparse("hole", 1 << 40);
    let result = home.backup("hole", &[("vda", &disk)]).run().result();
    assert_eq!(result["point"]["stored"]["new_bytes"].as_u64().unwrap(), 64, "the root alone: {result}");
    let target = home.scratch.file("hole-back");
    home.restore("hole", "vda", &target).run().assert_code(0);
    let meta = fs::metadata(&target).unwrap();
    assert_eq!((meta.len(), meta.blocks()), (1 << 40, 0));
}

#[test]
fn sparse_says_what_becomes_of_zeros() {
    let home = Home::new();
    let disk = home.scratch.file("disk");
    Layout::of(3, &[(MIB, Content::Data), (2 * MIB, Content::Zero), (MIB, Content::Data)])
        .write(&disk)
        .unwrap();
    let id = home.point("zeros", &[("vda", &disk)]);
    for (how, blocks) in [("auto", 2 * MIB), ("always", 2 * MIB), ("never", 4 * MIB)] {
        let target = home.scratch.file(how);
        home.restore(&format!("zeros@{id}"), "vda", &target)
            .arguments(["--sparse", how])
            .run()
            .assert_code(0);
        same(&disk, &target);
        assert_eq!(fs::metadata(&target).unwrap().blocks() * 512, blocks, "--sparse {how}");
    }
}

#[test]
fn the_second_backup_stores_only_what_is_new() {
    let home = Home::new();
    let disk = home.disk("disk", 1, 4 * MIB);
    let first_result = home.backup("vm", &[("vda", &disk)]).run().result();
    let first = point_id(&first_result);
    assert_eq!(first_result["point"]["disks"][0]["method"], "full");
    let old = home.copy_of(&disk, "old");

    write_at(&disk, MIB, b"news");
    let second = home.backup("vm", &[("vda", &disk)]).run().result();
    let entry = &second["point"]["disks"][0];
    assert_eq!((&entry["method"], &second["point"]["parent"]), (&json!("scan"), &json!(first)));
    assert_eq!(entry["stored"]["new_chunks"], 1);
    assert_eq!(entry["stored"]["new_bytes"], CHUNK);

    // Another machine with the same content stores nothing at all.
    let other = home.backup("twin", &[("sda", &disk)]).run().result();
    assert_eq!(other["point"]["stored"]["new_chunks"], 0);
    // Nothing changed: nothing new.
    let third = home.backup("vm", &[("vda", &disk)]).run().result();
    assert_eq!(third["point"]["stored"]["new_chunks"], 0);
    assert_eq!(third["point"]["disks"][0]["root"], entry["root"]);

    home.assert_restores(&format!("vm@{first}"), "vda", &old);
    home.assert_restores("vm", "vda", &disk);
    home.assert_restores("twin@latest", "sda", &disk);
}

#[test]
fn points_by_time_and_latest() {
    let home = Home::new();
    let disk = home.disk("disk", 1, MIB);
    let first = home.point("vm", &[("vda", &disk)]);
    let shown = home.document("show", &[&format!("vm@{first}")]);
    let began = text(&shown["started"]);
    std::thread::sleep(std::time::Duration::from_millis(20));
    let old = home.copy_of(&disk, "old");
    write_at(&disk, 0, b"second");
    let second = home.point("vm", &[("vda", &disk)]);
    assert_eq!(home.document("show", &["vm@latest"])["id"], second.as_str());
    assert_eq!(home.document("show", &["vm"])["id"], second.as_str());
    assert_eq!(home.document("show", &[&format!("vm@{began}")])["id"], first.as_str());
    home.assert_restores(&format!("vm@{began}"), "vda", &old);
    home.assert_restores("vm@2199-01-01T00:00:00+02:00", "vda", &disk);
    fails(home.restore("vm@2001-01-01T00:00:00Z", "vda", &home.scratch.file("x")), 10, "not_found", "vm");
    for (what, kind, code) in
        [("nobody", "not_found", 10), ("vm@nothing", "not_found", 10), ("vm@", "usage", 2)]
    {
        let outcome = home.restore(what, "vda", &home.scratch.file("x")).run();
        outcome.assert_code(code);
        assert_eq!(outcome.result()["error"]["kind"], kind, "{what}");
    }
    fails(home.restore("vm", "vdz", &home.scratch.file("x")), 10, "not_found", "vdz");
    assert!(!home.scratch.file("x").exists());
}

#[test]
fn several_disks_are_all_or_nothing() {
    let home = Home::new();
    let (a, b) = (home.disk("a", 1, MIB), home.disk("b", 2, 700_001));
    let gone = home.scratch.file("gone");
    fails(home.backup("vm", &[("vda", &a), ("vdb", &gone)]), 10, "unreachable", "gone");
    assert!(!home.objects().iter().any(|key| key.starts_with("manifests/")), "{:?}", home.objects());
    let first = home.point("vm", &[("vda", &a), ("vdb", &b)]);
    fails(home.backup("vm", &[("vdb", &b), ("vda", &gone)]), 10, "unreachable", "gone");
    assert_eq!(home.points("vm"), std::slice::from_ref(&first));

    let into = home.scratch.file("into");
    let outcome = home.run("restore").arguments(["vm", "--into"]).argument(&into).run();
    outcome.assert_code(0);
    same(&a, &into.join("vda.raw"));
    same(&b, &into.join("vdb.raw"));
    let statuses: Vec<Value> = outcome.result()["point"]["disks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|disk| disk["status"].clone())
        .collect();
    assert_eq!(statuses, ["restored", "restored"]);
    // One by --disk, the rest into the folder.
    let (elsewhere, into) = (home.scratch.file("elsewhere"), home.scratch.file("into-2"));
    let run = home.restore("vm", "vdb", &elsewhere).argument("--into").argument(&into);
    run.run().assert_code(0);
    same(&b, &elsewhere);
    same(&a, &into.join("vda.raw"));
    assert!(!into.join("vdb.raw").exists());
    // The same disk, or id, twice.
    fails(home.backup("vm", &[("vda", &a), ("vda", &b)]), 2, "usage", "vda");
    // A second restore into the same folder would overwrite.
    let seen = fs::read(into.join("vda.raw")).unwrap();
    fails(home.run("restore").arguments(["vm", "--into"]).argument(&into), 5, "refused", "vda.raw");
    assert_eq!(fs::read(into.join("vda.raw")).unwrap(), seen);
    assert!(!into.join("vdb.raw").exists(), "refused, and yet a disk was restored");
}

#[test]
fn a_run_key_makes_a_run_once() {
    let home = Home::new();
    let disk = home.disk("disk", 1, MIB);
    let run = || home.backup("vm", &[("vda", &disk)]).arguments(["--run-key", "night 1"]).run();
    let first = run().result();
    write_at(&disk, 0, b"later");
    let again = run().result();
    assert_eq!(point_id(&first), point_id(&again));
    assert_eq!((&first["point"]["repeated"], &again["point"]["repeated"]), (&json!(false), &json!(true)));
    assert_eq!(again["moved"]["read_bytes"], 0);
    assert_eq!(home.points("vm").len(), 1);
    // Of another machine it is another run.
    let other = home.backup("vm2", &[("vda", &disk)]).arguments(["--run-key", "night 1"]).run().result();
    assert_eq!(other["point"]["repeated"], false);
    // The name holds without the catalog too.
    fs::remove_dir_all(&home.state).unwrap();
    assert_eq!(point_id(&run().result()), point_id(&first));
}

#[test]
fn a_spec_says_what_the_command_line_would() {
    let home = Home::new();
    let disk = home.disk("new, disk.raw", 1, MIB);
    let document = home.scratch.write("vm.xml", "<domain/>");
    let spec = json!({"vm": "web", "repo": home.repo, "state": home.state, "run_key": "k",
        "disks": [{"id": "vda", "source": disk}], "labels": {"owner": "a=b"}, "documents": {"vm.xml": document}});
    let file = home.scratch.write("spec.json", spec.to_string());
    Run::mover(["backup", "--json", "--spec"]).argument(&file).run().assert_code(0);
    let shown = home.document("show", &["web"]);
    assert_eq!((&shown["labels"]["owner"], &shown["run_key"]), (&json!("a=b"), &json!("k")));
    let into = home.scratch.file("into");
    let spec = json!({"vm": "web", "point": "latest", "repo": home.repo, "state": home.state, "into": into});
    Run::mover(["restore", "--json", "--spec", "-"]).stdin(spec.to_string()).run().assert_code(0);
    same(&disk, &into.join("vda.raw"));
    assert_eq!(fs::read_to_string(into.join("vm.xml")).unwrap(), "<domain/>");
    // Twice, unknown, or no JSON.
    for bad in [
        json!({"vm": "web", "disc": []}).to_string(),
        r#"{"vm":"a","vm":"b"}"#.into(),
        "{".into(),
        "[]".into(),
    ] {
        let outcome = Run::mover(["backup", "--json", "--spec", "-"]).stdin(bad).run();
        outcome.assert_code(2);
        assert_eq!(outcome.result()["error"]["kind"], "usage");
    }
    fails(Run::mover(["backup", "--json", "web", "--spec"]).argument(&file), 2, "usage", "web");
}

#[test]
fn streams_in_and_out() {
    let home = Home::new();
    let layout =
        Layout::of(7, &[(MIB + 5, Content::Data), (3 * MIB, Content::Zero), (12_345, Content::Data)]);
    let disk = home.scratch.file("disk");
    layout.write(&disk).unwrap();
    let bytes = fs::read(&disk).unwrap();
    let outcome = home.backup("pipe", &[("vda", Path::new("-"))]).stdin(bytes.clone()).run();
    outcome.assert_code(0);
    assert_eq!(outcome.result()["point"]["disks"][0]["size"], layout.size());
    let out = home.restore("pipe", "vda", Path::new("-")).run();
    out.assert_code(0);
    assert!(out.stdout == bytes, "{} bytes on stdout, {} expected", out.stdout.len(), bytes.len());
    let lines = out.json_lines_stderr();
    assert_eq!(lines.last().unwrap()["type"], "result");
    assert_eq!(lines.last().unwrap()["exit_code"], 0);
    // A file as stdin, and a second time: the content is known.
    let again = home.backup("pipe", &[("vda", Path::new("-"))]).stdin_file(File::open(&disk).unwrap()).run();
    again.assert_code(0);
    assert_eq!(again.result()["point"]["disks"][0]["stored"]["new_chunks"], 0);
    home.assert_restores("pipe", "vda", &disk);
    // Two disks cannot both be stdin.
    fails(home.backup("pipe", &[("vda", Path::new("-")), ("vdb", Path::new("-"))]), 2, "usage", "");
}

#[test]
fn devices_are_backed_up_and_restored_to() {
    let home = Home::on_disk();
    let device = need!(LoopOptions::default().sparse(8 * MIB));
    let layout = Layout::of(9, &[(3 * MIB, Content::Data), (4 * MIB, Content::Hole), (MIB, Content::Data)]);
    layout.write(device.path()).unwrap();
    home.backup("dev", &[("vda", device.path())]).run().assert_code(0);
    let target = home.scratch.file("target");
    home.restore("dev", "vda", &target).run().assert_code(0);
    layout.assert_on(&target);

    // A device that held something else: refused without --force, and the hole is zeros afterwards.
    let file = home.disk("larger", 1, 10 * MIB);
    let larger = need!(LoopDevice::over(&file));
    fs::write(home.scratch.file("table"), [0x55, 0xAA]).unwrap();
    write_at(larger.path(), 510, &[0x55, 0xAA]);
    let outcome = home.restore("dev", "vda", larger.path()).run();
    failed(&outcome, 5, "refused", "");
    home.restore("dev", "vda", larger.path()).argument("--force").run().assert_code(0);
    let mut now = fs::read(larger.path()).unwrap();
    assert_eq!(now.len() as u64, 10 * MIB);
    now.truncate(layout.size() as usize);
    assert!(now == fs::read(&target).unwrap(), "the device is not what was backed up");
}

#[test]
fn a_larger_target_keeps_its_size_and_a_smaller_one_is_refused() {
    let home = Home::on_disk();
    let disk = home.disk("disk", 1, 3 * MIB + 512);
    home.point("vm", &[("vda", &disk)]);
    let small = need!(LoopOptions::default().sparse(3 * MIB));
    let before = fs::read(small.path()).unwrap();
    fails(home.restore("vm", "vda", small.path()).argument("--force"), 5, "refused", "small");
    assert!(fs::read(small.path()).unwrap() == before, "something was written");
    let large = need!(LoopOptions::default().sparse(4 * MIB));
    home.restore("vm", "vda", large.path()).run().assert_code(0);
    let now = fs::read(large.path()).unwrap();
    assert!(now[..disk.metadata().unwrap().len() as usize] == fs::read(&disk).unwrap()[..]);
}

#[test]
fn delta_writes_only_what_differs() {
    let home = Home::new();
    let disk = home.disk("disk", 1, 8 * MIB);
    home.point("vm", &[("vda", &disk)]);
    let target = home.copy_of(&disk, "target");
    write_at(&target, 2 * MIB + 7, b"ransom");
    write_at(&target, 5 * MIB, &[0; 4096]);
    let outcome = home.restore("vm", "vda", &target).argument("--delta").run();
    outcome.assert_code(0);
    same(&disk, &target);
    let written = outcome.result()["moved"]["written_bytes"].as_u64().unwrap();
    assert!((1..=2 * CHUNK).contains(&written), "{written} bytes written for two chunks");
    // Equal already: nothing.
    let again = home.restore("vm", "vda", &target).argument("--delta").run().result();
    assert_eq!(again["moved"]["written_bytes"], 0);
    // A file that does not exist is a restore like any other.
    let fresh = home.scratch.file("fresh");
    home.restore("vm", "vda", &fresh).argument("--delta").run().assert_code(0);
    same(&disk, &fresh);
    // Holes of the backup over data of the target.
    let hole = home.scratch.sparse("hole", 8 * MIB);
    home.point("hole", &[("vda", &hole)]);
    home.restore("hole", "vda", &target).argument("--delta").run().assert_code(0);
    same(&hole, &target);
}

#[test]
fn unreadable_parts_are_recorded_and_the_point_is_not_latest() {
    let faulty = need!(FaultyFile::memory(2 * MIB));
    let layout = Layout::of(5, &[(2 * MIB, Content::Data)]);
    layout.write_to(faulty.backing(), false).unwrap();
    let home = Home::new();
    let source = faulty.path();
    let whole = home.point("vm", &[("vda", &source)]);
    let bad = MIB + 8192;
    faulty.faults().add(Fault::errno(libc::EIO).on_reads().range(bad..bad + 512));
    // Without being told so, the run ends and commits nothing.
    fails(home.backup("vm", &[("vda", &source)]), 1, "io", "disk.img");
    assert_eq!(home.points("vm"), std::slice::from_ref(&whole));
    let outcome = home.backup("vm", &[("vda", &source)]).arguments(["--on-read-error", "record"]).run();
    outcome.assert_code(3);
    let result = outcome.result();
    assert_eq!(
        (&result["status"], &result["point"]["damaged"]),
        (&json!("done_with_bad_extents"), &json!(true))
    );
    let extent = &result["bad_extents"][0];
    let (start, length) = (extent["start"].as_u64().unwrap(), extent["length"].as_u64().unwrap());
    assert!(start <= bad && bad + 512 <= start + length && length <= 64 * KIB, "{extent}");
    let damaged = point_id(&result);
    faulty.faults().clear();

    assert_eq!(home.document("show", &["vm"])["id"], whole.as_str());
    let shown = home.document("show", &[&format!("vm@{damaged}")]);
    assert_eq!((&shown["damaged"], &shown["disks"][0]["bad_extents"][0][0]), (&json!(true), &json!(start)));
    // Named, it gives what there is.
    let target = home.scratch.file("target");
    home.restore(&format!("vm@{damaged}"), "vda", &target).run();
    let (now, right) = (fs::read(&target).unwrap(), fs::read(&source).unwrap());
    assert!(now[..start as usize] == right[..start as usize]);
    assert!(now[(start + length) as usize..] == right[(start + length) as usize..]);
    // Prune never takes the last that is whole for it.
    home.run("prune").arguments(["vm", "--keep-last", "1"]).run().assert_code(0);
    assert!(home.points("vm").contains(&whole), "the last whole restore point was pruned");
}
