//! Common disks: known by a backing field, a link or a name; neither read nor written again; read again when
//! stale; left alone by `--keep-common`, which tells when what points to one was changed.

mod repository_home;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mover_tests::need;
use mover_tests::outcome::Outcome;
use mover_tests::process::Run;
use mover_tests::skip::require_tool;
use repository_home::*;
use serde_json::{Value, json};

/// Stamps younger than two seconds are not trusted.
fn settle() {
    std::thread::sleep(Duration::from_millis(2100));
}

fn common_disk(home: &Home) -> PathBuf {
    let base = home.disk("base.img", 7, 2 * MIB);
    settle();
    base
}

/// A backup of a small disk of its own and a base.
fn desk(home: &Home, vm: &str, own: &Path, base: &Path, how: &str) -> Run {
    let mut argument = argument("base", base);
    argument.push(how);
    home.backup(vm, &[("vda", own)]).argument("--disk").argument(argument)
}

#[track_caller]
fn entry(outcome: &Outcome) -> Value {
    outcome.assert_code(0);
    disk_of(&outcome.result()["point"]["disks"], "base").clone()
}

/// Bytes that a run moved for the disk `base`.
fn read_of_base(outcome: &Outcome) -> (u64, u64) {
    let result = outcome.result();
    let disk = disk_of(&result["point"]["disks"], "base");
    let stored = disk["stored"]["stored_bytes"].as_u64().unwrap();
    (disk["read_bytes"].as_u64().unwrap(), stored)
}

#[test]
fn the_second_machine_neither_reads_nor_writes_it() {
    let home = Home::on_disk();
    let base = common_disk(&home);
    let (one, two) = (home.disk("one", 1, 300_000), home.disk("two", 2, 400_000));
    let first = desk(&home, "desk1", &one, &base, ",common").run();
    assert_eq!(entry(&first)["status"], "stored");
    let second = desk(&home, "desk2", &two, &base, ",common").run();
    let referenced = entry(&second);
    assert_eq!(
        (&referenced["status"], &referenced["method"]),
        (&json!("referenced"), &json!("common")),
        "{second}"
    );
    assert_eq!(read_of_base(&second), (0, 0));
    assert_eq!(second.result()["moved"]["read_bytes"], 400_000);
    assert_eq!(referenced["common"]["location"], base.to_string_lossy().as_ref());
    assert_eq!(referenced["common"]["vms"], json!(["desk1", "desk2"]));
    home.assert_restores("desk2", "base", &base);
    home.assert_restores("desk2", "vda", &two);

    // One byte changed, at the same size: it is stale, and read again.
    write_at(&base, 1_000_000, b"x");
    settle();
    let third = desk(&home, "desk3", &one, &base, ",common").run();
    assert_eq!(entry(&third)["status"], "stored");
    assert_eq!(read_of_base(&third).0, 2 * MIB);
    home.assert_restores("desk3", "base", &base);
    // Another file in its place, with size and times of the first.
    let other = home.disk("other.img", 8, 2 * MIB);
    let stamped = Command::new("touch").arg("-r").arg(&base).arg(&other).status().unwrap();
    assert!(stamped.success());
    fs::rename(&other, &base).unwrap();
    settle();
    let fourth = desk(&home, "desk4", &one, &base, ",common").run();
    assert_eq!(entry(&fourth)["status"], "stored");
    home.assert_restores("desk4", "base", &base);
    // One that was just written is not trusted.
    write_at(&base, 0, b"y");
    let fresh = desk(&home, "desk5", &one, &base, ",common").run();
    assert_eq!(entry(&fresh)["status"], "stored");
    let again = desk(&home, "desk6", &one, &base, ",common").run();
    home.assert_restores("desk6", "base", &base);
    assert!(read_of_base(&again).0 > 0, "a stamp of this moment was trusted");
}

#[test]
fn who_shares_it_survives_rebuild_gc_and_prune() {
    let home = Home::on_disk();
    let base = common_disk(&home);
    let (one, two) = (home.disk("one", 1, 300_000), home.disk("two", 2, 400_000));
    desk(&home, "desk1", &one, &base, ",common=win11").run().assert_code(0);
    desk(&home, "desk2", &two, &base, ",common=win11").run().assert_code(0);
    let common = |vm: &str| disk_of(&home.document("show", &[vm])["disks"], "base")["common"].clone();
    let expected = json!(["desk1", "desk2"]);
    assert_eq!((&common("desk1")["id"], &common("desk1")["vms"]), (&json!("win11"), &expected));
    home.run("catalog rebuild").run().assert_code(0);
    assert_eq!(common("desk2")["vms"], expected);
    fs::remove_dir_all(&home.state).unwrap();
    assert_eq!(common("desk1")["vms"], expected);
    home.gc();
    assert_eq!(common("desk2")["vms"], expected);
    // The one that stored it goes.
    desk(&home, "desk1", &one, &base, ",common=win11").run().assert_code(0);
    fs::remove_dir_all(home.repo.join("manifests/desk1")).unwrap();
    home.gc();
    assert_eq!(common("desk2")["vms"], json!(["desk2"]));
    home.assert_restores("desk2", "base", &base);
    home.assert_restores("desk2", "vda", &two);
    home.assert_whole();
    let third = desk(&home, "desk3", &one, &base, ",common=win11").run();
    assert_eq!(entry(&third)["status"], "referenced");
}

#[test]
fn keep_common_leaves_it_and_tells_a_pointer_that_was_changed() {
    let home = Home::on_disk();
    let base = common_disk(&home);
    let (one, two) = (home.disk("one", 1, 300_000), home.disk("two", 2, 400_000));
    let link = home.scratch.file("current.img");
    symlink(&base, &link).unwrap();
    for (vm, own) in [("desk1", &one), ("desk2", &two)] {
        desk(&home, vm, own, &link, ",common").run().assert_code(0);
    }
    let base_before = fs::read(&base).unwrap();
    let into =
        |name: &str| home.run("restore").arguments(["desk2", "--into"]).argument(home.scratch.file(name));

    // Without the flag it is restored, with a warning that names the other machine.
    let outcome = into("plain").run();
    outcome.assert_code(0);
    let warnings = outcome.events("warning");
    assert!(warnings.iter().any(|warning| text(&warning["message"]).contains("desk1")), "{outcome}");
    same(&base, &home.scratch.file("plain/base.raw"));

    let outcome = into("kept").argument("--keep-common").run();
    outcome.assert_code(0);
    let result = outcome.result();
    assert_eq!(disk_of(&result["point"]["disks"], "base")["status"], "kept");
    assert_eq!(disk_of(&result["point"]["disks"], "vda")["status"], "restored");
    same(&two, &home.scratch.file("kept/vda.raw"));
    assert!(!home.scratch.file("kept/base.raw").exists());
    // By --disk too: the image that others use is not touched.
    let run = home.restore("desk2", "base", &base).arguments(["--keep-common", "--force"]);
    let outcome = run.run();
    outcome.assert_code(0);
    assert!(fs::read(&base).unwrap() == base_before);

    // The pointer is changed: exit 8, naming old and new; the rest is restored.
    let newer = home.disk("base-v2.img", 9, 2 * MIB);
    fs::remove_file(&link).unwrap();
    symlink(&newer, &link).unwrap();
    let outcome = into("changed").argument("--keep-common").run();
    outcome.assert_code(8);
    let said = outcome.result()["error"]["message"].to_string();
    assert!(said.contains("base.img") && said.contains("base-v2.img"), "{said}");
    assert_eq!(outcome.result()["error"]["kind"], "common_changed");
    same(&two, &home.scratch.file("changed/vda.raw"));
    assert!(!home.scratch.file("changed/base.raw").exists());
    assert!(fs::read(&base).unwrap() == base_before);
    // Gone altogether.
    fs::remove_file(&link).unwrap();
    let outcome = into("gone").argument("--keep-common").run();
    outcome.assert_code(8);
    same(&two, &home.scratch.file("gone/vda.raw"));
}

#[test]
fn the_backing_image_of_a_qcow2_disk_is_common_by_itself() {
    let qemu = need!(require_tool("qemu-img"));
    let home = Home::on_disk();
    let base = common_disk(&home);
    let overlay = |name: &str, base: &Path| {
        let path = home.scratch.file(name);
        let mut create = Command::new(&qemu);
        create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(base).arg(&path);
        let status = create.status().unwrap().success();
        assert!(status, "qemu-img create {name}");
        path
    };
    let (one, two) = (overlay("one.qcow2", &base), overlay("two.qcow2", &base));
    let first = home.backup("desk1", &[("vda", &one)]).run();
    first.assert_code(0);
    let second = home.backup("desk2", &[("vda", &two)]).run();
    second.assert_code(0);
    let result = second.result();
    let disks = result["point"]["disks"].as_array().unwrap().clone();
    assert_eq!(disks.len(), 2, "the backing image is a disk of the backup: {second}");
    let common = disks.iter().find(|disk| disk["common"].is_object()).unwrap_or_else(|| panic!("{second}"));
    assert_eq!((&common["status"], &common["read_bytes"]), (&json!("referenced"), &json!(0)));
    assert_eq!(common["common"]["vms"], json!(["desk1", "desk2"]));
    let id = text(&common["id"]);
    home.assert_restores("desk2", "vda", &two);
    home.assert_restores("desk2", &id, &base);

    let keep = |name: &str| {
        home.run("restore")
            .arguments(["desk2", "--keep-common", "--into"])
            .argument(home.scratch.file(name))
            .run()
    };
    keep("kept").assert_code(0);
    same(&two, &home.scratch.file("kept/vda.raw"));
    // The overlay is put upon another base.
    let other = home.disk("base-v2.img", 9, 2 * MIB);
    let rebase = Command::new(&qemu).args(["rebase", "-u", "-F", "raw", "-b"]).arg(&other).arg(&two).status();
    assert!(rebase.unwrap().success());
    let outcome = keep("changed");
    outcome.assert_code(8);
    let said = outcome.result()["error"]["message"].to_string();
    assert!(said.contains("base.img") && said.contains("base-v2.img"), "{said}");
}
