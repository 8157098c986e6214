//! What bad input of a repository's verbs gets: a clear error, the right exit code, nothing written, and
//! earlier restore points as they were.

mod repository_home;

use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::process::Command;
use std::time::{Duration, Instant};

use mover_tests::fault::Fault;
use mover_tests::faulty::FaultyFile;
use mover_tests::layout::{Content, Layout};
use mover_tests::need;
use mover_tests::process::Run;
use mover_tests::volume::{Filesystem, LoopDevice};
use repository_home::*;
use serde_json::json;

#[test]
fn names_that_would_leave_their_folder() {
    let home = Home::new();
    let disk = home.disk("disk", 1, 4096);
    home.point("good", &[("vda", &disk)]);
    let before = home.objects();
    let long = "x".repeat(129);
    for name in ["../x", ".x", "-x", "a/b", "..", "", "a b", "ä", "x\n", long.as_str()] {
        let run =
            home.run("backup").arguments(["--disk"]).argument(argument("vda", &disk)).arguments(["--", name]);
        let outcome = run.run();
        outcome.assert_code(2);
        assert_eq!(outcome.result()["error"]["kind"], "usage", "{name:?}");
        let argument = argument(name, &disk);
        let outcome = home.run("backup").arguments(["vm", "--disk"]).argument(argument).run();
        outcome.assert_code(2);
        for verb in ["list", "show", "restore", "verify", "prune --keep-last=1"] {
            let mut run = home.run(verb);
            if verb == "restore" {
                run = run.argument("--into").argument(home.scratch.file("into"));
            }
            run.arguments(["--", name]).run().assert_code(2);
        }
        let outcome = home.run("diff").arguments(["--", &format!("good@{name}"), "good@latest"]).run();
        outcome.assert_code(2);
    }
    assert_eq!(home.objects(), before);
    assert!(!home.scratch.file("into").exists());
    assert!(!home.scratch.file("x").exists());
}

#[test]
fn a_document_or_a_disk_of_a_restore_stays_in_its_folder() {
    let home = Home::new();
    let disk = home.disk("disk", 1, 4096);
    let file = home.scratch.write("conf", "x");
    for name in ["../conf", "/etc/conf", "a/b", "..", "."] {
        let argument = argument(name, &file);
        let run = home.backup("vm", &[("vda", &disk)]).argument("--document").argument(argument);
        run.run().assert_code(2);
    }
    // A symbolic link in the place of a target leads somewhere that holds something.
    home.point("vm", &[("vda", &disk)]);
    let into = home.scratch.file("into");
    fs::create_dir(&into).unwrap();
    let precious = home.disk("precious", 2, 9000);
    symlink(&precious, into.join("vda.raw")).unwrap();
    let before = fs::read(&precious).unwrap();
    fails(home.run("restore").arguments(["vm", "--into"]).argument(&into), 5, "refused", "vda.raw");
    assert_eq!(fs::read(&precious).unwrap(), before);
}

#[test]
fn what_is_no_repository() {
    let home = Home::new();
    let disk = home.disk("disk", 1, 4096);
    for verb in
        ["list", "verify", "gc", "prune --keep-last 1", "catalog rebuild", "show vm", "restore vm --into x"]
    {
        fails(home.run(verb), 10, "not_found", "repo");
    }
    assert!(!home.repo.exists());
    // A folder of someone else, and a file.
    let foreign = home.scratch.file("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("letter"), "dear").unwrap();
    let outcome =
        home.run_at(&foreign, "backup").arguments(["vm", "--disk"]).argument(argument("vda", &disk)).run();
    assert!(matches!(outcome.code, Some(5 | 10)), "{outcome}");
    assert!(!outcome.result()["error"]["hint"].as_str().unwrap().is_empty());
    fails(home.run_at(&foreign, "list"), 10, "not_found", "foreign");
    let outcome = Run::mover(["init", "--json"]).argument(&foreign).run();
    failed(&outcome, 5, "refused", "foreign");
    assert_eq!(objects(&foreign).len(), 1);
    let file = home.scratch.write("file", "x");
    let outcome =
        home.run_at(&file, "backup").arguments(["vm", "--disk"]).argument(argument("vda", &disk)).run();
    assert!(matches!(outcome.code, Some(2 | 5 | 10)), "{outcome}");
    assert_eq!(fs::read(&file).unwrap(), b"x");
    // None named at all.
    let outcome = Run::mover(["list", "--json"]).variable("MOVER_STATE", &home.state).run();
    failed(&outcome, 2, "usage", "--repo");
    // Twice initialised.
    Run::mover(["init", "--json"])
        .argument(&home.repo)
        .variable("MOVER_STATE", &home.state)
        .run()
        .assert_code(0);
    let before = home.objects();
    let again =
        Run::mover(["init", "--json"]).argument(&home.repo).variable("MOVER_STATE", &home.state).run();
    failed(&again, 5, "refused", "repo");
    assert_eq!(home.objects(), before);
}

#[test]
fn a_share_that_is_not_mounted_is_not_made_anew() {
    let home = Home::new();
    let disk = home.disk("disk", 1, MIB);
    let first = home.point("vm", &[("vda", &disk)]);
    let away = home.scratch.file("away");
    fs::rename(&home.repo, &away).unwrap();
    let result = fails(home.backup("vm", &[("vda", &disk)]), 5, "refused", "mount");
    assert_eq!(result["moved"]["read_bytes"], 0);
    assert!(!home.repo.exists());
    // The mount point that is left is an empty folder.
    fs::create_dir(&home.repo).unwrap();
    let outcome = home.backup("vm", &[("vda", &disk)]).run();
    outcome.assert_code(5);
    assert_eq!(fs::read_dir(&home.repo).unwrap().count(), 0);
    fs::remove_dir(&home.repo).unwrap();
    fs::rename(&away, &home.repo).unwrap();
    assert_eq!(home.points("vm"), [first]);
    home.assert_restores("vm", "vda", &disk);
}

#[test]
fn repo_id_pins_and_the_environment_names_the_repository() {
    let home = Home::new();
    let disk = home.disk("disk", 1, 4096);
    let result = home.backup("vm", &[("vda", &disk)]).run().result();
    let id = text(&result["point"]["repository"]);
    let other = "01a1fac3-587d-71d5-b3eb-7bd0f11f3d28";
    for verb in ["list", "show vm", "gc", "verify", "restore vm --into never", "prune --keep-last 1"] {
        fails(home.run(verb).arguments(["--repo-id", other]), 5, "wrong_identity", other);
    }
    fails(home.backup("vm", &[("vda", &disk)]).arguments(["--repo-id", other]), 5, "wrong_identity", other);
    home.backup("vm", &[("vda", &disk)]).arguments(["--repo-id", &id]).run().assert_code(0);
    // A folder that does not exist cannot be the one of that id, and is not made.
    let nowhere = home.scratch.file("nowhere");
    let run = home
        .run_at(&nowhere, "backup")
        .arguments(["vm", "--disk"])
        .argument(argument("vda", &disk))
        .arguments(["--repo-id", &id]);
    let outcome = run.run();
    assert!(matches!(outcome.code, Some(5 | 10)), "{outcome}");
    assert!(!nowhere.exists());
    let listed = Run::mover(["list", "vm", "--json"])
        .variable("MOVER_REPO", &home.repo)
        .variable("MOVER_STATE", &home.state)
        .run();
    listed.assert_code(0);
    assert!(listed.stdout_text().contains(&id));
}

#[test]
fn another_machine_of_the_same_name() {
    let home = Home::new();
    let disk = home.disk("disk", 1, 4096);
    let (one, two) = ("11111111-2222-3333-4444-555555555555", "aaaaaaaa-2222-3333-4444-555555555555");
    home.backup("vm", &[("vda", &disk)]).arguments(["--vm-uuid", one]).run().assert_code(0);
    fails(home.backup("vm", &[("vda", &disk)]).arguments(["--vm-uuid", two]), 5, "wrong_identity", one);
    assert_eq!(home.points("vm").len(), 1);
    home.backup("vm", &[("vda", &disk)]).arguments(["--vm-uuid", one]).run().assert_code(0);
}

#[test]
fn a_restore_never_writes_over_what_is_in_use() {
    let home = Home::on_disk();
    let disk = home.disk("disk", 1, 3 * MIB);
    home.point("vm", &[("vda", &disk)]);
    // A mounted device.
    let mounted = need!(Filesystem::ext4().small().mount());
    fs::write(mounted.file("precious"), "data").unwrap();
    let device = mounted.device().unwrap().path().to_owned();
    for flags in [&[][..], &["--force"], &["--delta"], &["--force", "--delta"]] {
        let outcome = home.restore("vm", "vda", &device).arguments(flags).run();
        failed(
            &outcome,
            if flags.len() == 2 && outcome.code == Some(2) { 2 } else { 5 },
            if outcome.code == Some(2) { "usage" } else { "refused" },
            "",
        );
    }
    // The image below a mounted loop device, by its own path.
    let outcome = home.restore("vm", "vda", &mounted.image()).argument("--force").run();
    outcome.assert_code(5);
    assert_eq!(fs::read_to_string(mounted.file("precious")).unwrap(), "data");
    // A loop device that someone holds exclusively.
    let image = home.disk("held", 2, 4 * MIB);
    let held = need!(LoopDevice::over(&image));
    let before = fs::read(&image).unwrap();
    let holder =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(held.path()).unwrap();
    assert!(holder.as_raw_fd() >= 0);
    let outcome = home.restore("vm", "vda", held.path()).argument("--force").run();
    assert!(matches!(outcome.code, Some(5 | 9)), "{outcome}");
    drop(holder);
    let outcome = home.restore("vm", "vda", &image).argument("--force").run();
    outcome.assert_code(5);
    assert!(fs::read(&image).unwrap() == before, "the image in use was written to");
}

#[test]
fn a_restore_over_files_needs_to_be_told() {
    let home = Home::new();
    let disk = home.disk("disk", 1, 3 * MIB);
    home.point("vm", &[("vda", &disk)]);
    for (name, size) in [("smaller", 1), ("equal", 3 * MIB), ("larger", 4 * MIB)] {
        let target = home.disk(name, 9, size);
        let before = fs::read(&target).unwrap();
        let result = fails(home.restore("vm", "vda", &target), 5, "refused", "--force");
        assert_eq!(result["moved"]["written_bytes"], 0);
        assert_eq!(fs::read(&target).unwrap(), before);
        home.restore("vm", "vda", &target).argument("--force").run().assert_code(0);
        same(&disk, &target);
    }
    // One of two is refused: neither is begun.
    home.point("two", &[("vda", &disk), ("vdb", &disk)]);
    let (fresh, taken) = (home.scratch.file("fresh"), home.disk("taken", 4, MIB));
    let run = home.restore("two", "vda", &fresh).argument("--disk").argument(argument("vdb", &taken));
    fails(run, 5, "refused", "taken");
    assert!(
        !fresh.exists() || fs::metadata(&fresh).unwrap().len() == 0,
        "a target was made before the refusal"
    );
    // Both into one file.
    let run = home.restore("two", "vda", &fresh).argument("--disk").argument(argument("vdb", &fresh));
    let outcome = run.run();
    assert!(matches!(outcome.code, Some(2 | 5)), "{outcome}");
    // Into the repository itself.
    let inside = home.repo.join("config");
    let config = fs::read(&inside).unwrap();
    home.restore("vm", "vda", &inside).run().assert_code(5);
    assert_eq!(fs::read(&inside).unwrap(), config);
    // A folder, a place without a parent.
    home.restore("vm", "vda", home.scratch.path()).run().assert_code(2);
    fails(home.restore("vm", "vda", &home.scratch.file("no/where")), 10, "unreachable", "no/where");
}

#[test]
fn a_source_that_shrinks() {
    let home = Home::new();
    let disk = home.disk("small", 1, MIB);
    let first = home.point("vm", &[("vda", &disk)]);
    let faulty = need!(FaultyFile::memory(4 * MIB));
    Layout::of(5, &[(4 * MIB, Content::Data)]).write_to(faulty.backing(), false).unwrap();
    faulty.faults().add(Fault::delay(Duration::from_millis(300)).on_reads());
    let running = home.backup("vm", &[("vda", &faulty.path())]).arguments(["--queue-depth", "1"]).start();
    std::thread::sleep(Duration::from_millis(500));
    faulty.backing().set_len(100_000).unwrap();
    let outcome = running.wait();
    failed(&outcome, 1, "source_shrank", "disk.img");
    assert_eq!(home.points("vm"), [first]);
    home.assert_restores("vm", "vda", &disk);
    let gc = home.gc();
    assert_eq!(gc["packs_waiting"], 0);
}

#[test]
fn two_backups_of_one_machine_at_once() {
    let home = Home::new();
    let disk = home.disk("disk", 1, MIB);
    home.point("vm", &[("vda", &disk)]);
    let faulty = need!(FaultyFile::memory(4 * MIB));
    Layout::of(5, &[(4 * MIB, Content::Data)]).write_to(faulty.backing(), false).unwrap();
    let slow =
        faulty.faults().add(Fault::delay(Duration::from_secs(20)).on_reads().range(2 * MIB..2 * MIB + 512));
    let running = home.backup("vm", &[("vda", &faulty.path())]).start();
    // Its session is there, and with it its turn.
    let deadline = Instant::now() + Duration::from_secs(30);
    while !home.objects().iter().any(|key| key.starts_with("sessions/")) {
        assert!(Instant::now() < deadline, "no session of the first backup");
        std::thread::sleep(Duration::from_millis(20));
    }
    let result = fails(home.backup("vm", &[("vda", &disk)]), 9, "busy", "vm");
    assert_eq!(result["error"]["retryable"], true);
    assert_eq!(result["moved"]["read_bytes"], 0);
    // Others go on beside it.
    home.backup("other", &[("vda", &disk)]).run().assert_code(0);
    home.assert_restores("vm", "vda", &disk);
    home.run("verify").run().assert_code(0);
    home.run("prune").arguments(["--keep-last", "1"]).run().assert_code(0);
    home.run("gc").arguments(["--wait", "0s"]).run().assert_code(0);
    faulty.faults().remove(slow);
    let outcome = running.wait();
    outcome.assert_code(0);
    home.assert_restores(&format!("vm@{}", point_id(&outcome.result())), "vda", &faulty.path());
    assert_eq!(home.points("vm").len(), 2);
    home.assert_whole();
}

#[test]
fn lists_of_changes_that_cannot_be_right() {
    let home = Home::new();
    let disk = home.disk("disk", 1, 2 * MIB);
    let first = home.point("vm", &[("vda", &disk)]);
    write_at(&disk, 70_000, b"changed between the two, which a list since the first would not tell");
    let second = home.point("vm", &[("vda", &disk)]);
    home.point("other", &[("vda", &disk)]);
    let list = extents_file(&home.scratch.file("list"), &[(0, 4096)]);
    let extents = argument("vda", &list);
    let run = || home.backup("vm", &[("vda", &disk)]).argument("--extents").argument(&extents);
    let refuse = |run: Run, codes: &[i32]| {
        let outcome = run.run();
        assert!(outcome.code.is_some_and(|code| codes.contains(&code)), "{codes:?} expected\n{outcome}");
        assert_eq!(home.points("vm").len(), 2, "{outcome}");
    };
    refuse(run(), &[2]);
    for since in [format!("vm@{first}"), "other@latest".into(), "garbage".into()] {
        refuse(run().arguments(["--since", &since]), &[2, 5]);
    }
    fails(run().arguments(["--since", &format!("vm@{first}")]), 5, "refused", &second);
    refuse(run().arguments(["--since", "vm@20010101T000000Z-00000000"]), &[5, 10]);
    // Without a list it says nothing; for a disk that is not there.
    refuse(home.backup("vm", &[("vda", &disk)]).arguments(["--since", "vm@latest"]), &[2]);
    let of_another = argument("vdb", &list);
    refuse(
        home.backup("vm", &[("vda", &disk)])
            .argument("--extents")
            .argument(of_another)
            .arguments(["--since", "vm@latest"]),
        &[2],
    );
    // A machine without a restore point.
    let run_new = home.backup("new", &[("vda", &disk)]).argument("--extents").argument(&extents);
    refuse(run_new.arguments(["--since", "new@latest"]), &[5, 10]);
    // Past the end, overlapping, and no list.
    for content in [
        json!([{"start": 2 * MIB, "length": 1, "kind": "data"}]).to_string(),
        json!([{"start": 0, "length": 10, "kind": "data"}, {"start": 5, "length": 10, "kind": "data"}])
            .to_string(),
        json!({"format": "mover-extents", "version": 1, "size": MIB, "extents": []}).to_string(),
        json!({"format": "mover-extents", "version": 2, "extents": []}).to_string(),
        "garbage".into(),
    ] {
        fs::write(&list, content).unwrap();
        refuse(run().arguments(["--since", "vm@latest"]), &[2, 5]);
    }
    // The list says what it counts from, and it is another point.
    let stale =
        json!({"format": "mover-extents", "version": 1, "base": format!("vm@{first}"), "extents": []});
    fs::write(&list, stale.to_string()).unwrap();
    refuse(run().arguments(["--since", "vm@latest"]), &[2, 5]);
}

#[test]
fn a_restore_target_that_runs_full() {
    let home = Home::new();
    let disk = home.disk("disk", 1, 6 * MIB);
    let small = home.disk("small", 2, 100_000);
    home.point("vm", &[("vda", &disk), ("vdb", &small)]);
    let volume = need!(Filesystem::tmpfs().size(16 * MIB).mount());
    volume.leave_free(2 * MIB);
    let (full, elsewhere) = (volume.file("vda"), home.scratch.file("elsewhere"));
    let run = || home.restore("vm", "vda", &full).argument("--disk").argument(argument("vdb", &elsewhere));
    let outcome = run().run();
    let error = failed(&outcome, 10, "full", "vda")["error"].clone();
    assert_eq!((&error["disk"], &error["errno"]), (&json!("vda"), &json!(libc::ENOSPC)));
    // The other disk is restored all the same.
    same(&small, &elsewhere);
    fs::remove_file(volume.file("ballast")).unwrap();
    run().argument("--force").run().assert_code(0);
    same(&disk, &full);
}

#[test]
fn a_repository_that_runs_full() {
    let volume = need!(Filesystem::tmpfs().size(24 * MIB).mount());
    let mut home = Home::new();
    home.repo = volume.file("repo");
    let disk = home.disk("disk", 1, 2 * MIB);
    home.point("vm", &[("vda", &disk)]);
    let before = home.objects();
    let big = home.disk("big", 2, 20 * MIB);
    for free in [0, 4 * KIB, 16 * KIB, 70 * KIB, MIB, 8 * MIB, 20 * MIB + 40 * KIB] {
        let ballast = volume.leave_free(free);
        let outcome = home.backup("vm", &[("vda", &big)]).run();
        if outcome.code != Some(0) {
            failed(&outcome, 10, "full", "");
            // A full disk does not keep anything from being read, pruned or swept.
            home.assert_restores("vm", "vda", &disk);
        }
        fs::remove_file(ballast).unwrap();
        let gc = home.gc();
        assert_eq!(gc["packs_waiting"], 0, "{free} bytes free: {gc}");
        if outcome.code != Some(0) {
            let left: Vec<String> = home.objects().difference(&before).cloned().collect();
            let unexpected =
                left.iter().filter(|key| !key.starts_with("index/") && !key.starts_with("manifests/"));
            assert_eq!(unexpected.count(), 0, "{free} bytes free leave {left:?}");
            assert_eq!(home.points("vm").len(), 1, "{free}");
        }
    }
    home.assert_whole();
    // Gc frees space on a disk that is entirely full.
    home.backup("vm", &[("vda", &big)]).run().assert_code(0);
    home.run("prune").arguments(["--keep-last", "1"]).run().assert_code(0);
    home.gc();
    let original = home.points("vm");
    home.assert_restores(&format!("vm@{}", original[0]), "vda", &big);
}

#[test]
fn prune_leaves_the_last_one() {
    let home = Home::new();
    let disk = home.disk("disk", 1, 300_000);
    let ids: Vec<String> = (0..4).map(|_| home.point("vm", &[("vda", &disk)])).collect();
    fails(home.run("prune"), 2, "usage", "--keep-");
    home.run("prune").arguments(["--keep-last", "-1"]).run().assert_code(2);
    let plan = |rule: &[&str]| {
        let outcome = home.run("prune").arguments(rule).argument("--dry-run").run();
        outcome.assert_code(0);
        let points = outcome.result()["prune"]["points"].as_array().unwrap().clone();
        points
            .into_iter()
            .filter(|point| point["keep"] == true)
            .map(|point| text(&point["point"]))
            .collect::<Vec<_>>()
    };
    assert_eq!(plan(&["--keep-last", "2"]), ids[2..]);
    for rule in ["--keep-daily", "--keep-weekly", "--keep-monthly", "--keep-yearly"] {
        let kept = plan(&[rule, "5"]);
        assert!(kept.contains(&ids[3]) && kept.len() <= 2, "{rule} keeps {kept:?}");
    }
    assert_eq!(plan(&["--keep-last", "99"]), ids[..]);
    let outcome = home.run("prune").arguments(["--keep-last", "0"]).run();
    assert!(matches!(outcome.code, Some(0 | 2 | 5)), "{outcome}");
    assert!(home.points("vm").contains(&ids[3]), "the last restore point is gone");
    home.run("prune").arguments(["vm", "--keep-last", "1"]).run().assert_code(0);
    home.run("prune").arguments(["vm", "--keep-daily", "0"]).run();
    assert_eq!(home.points("vm"), [ids[3].clone()]);
    home.gc();
    home.assert_restores("vm", "vda", &disk);
    fails(home.run("prune").arguments(["nobody", "--keep-last", "1"]), 10, "not_found", "nobody");
}

#[test]
fn a_repository_that_may_not_be_written() {
    let home = Home::new();
    home.scratch.open_to_all();
    let disk = home.disk("disk", 1, 300_000);
    home.point("vm", &[("vda", &disk)]);
    // Objects are root's, mode 0600: another user is told so, and harms nothing.
    let before = home.objects();
    let state = home.scratch.file("other-state");
    let run = Run::mover(["list", "--json", "--repo"]).argument(&home.repo).variable("MOVER_STATE", &state);
    let outcome = need!(run.as_ordinary_user(64 * KIB)).run();
    failed(&outcome, 10, "unreachable", "Permission denied");
    assert_eq!(home.objects(), before);
}

#[test]
fn a_repository_that_is_mounted_read_only() {
    let mut home = Home::new();
    let volume = need!(Filesystem::tmpfs().size(24 * MIB).mount());
    home.repo = volume.file("repo");
    let disk = home.disk("disk", 1, MIB);
    let first = home.point("vm", &[("vda", &disk)]);
    let remount = |how: &str| {
        let status = Command::new("mount").args(["-o", how]).arg(volume.path()).status();
        assert!(status.unwrap().success(), "remount {how}");
    };
    remount("remount,ro");
    let outcome = home.restore("vm", "vda", &home.scratch.file("target")).run();
    outcome.assert_code(0);
    same(&disk, &home.scratch.file("target"));
    // That gc does not know of the reader is told.
    let degraded = outcome.result()["degraded"].clone();
    assert!(degraded.as_array().unwrap().iter().any(|one| one["about"] == "session"), "{degraded}");
    home.run("verify").run().assert_code(0);
    assert_eq!(home.points("vm"), [first]);
    home.document("diff", &["vm@latest", "vm@latest"]);
    let outcome = home.backup("vm", &[("vda", &disk)]).run();
    assert!(matches!(outcome.code, Some(1 | 5 | 10)), "{outcome}");
    assert!(outcome.result()["error"]["errno"].is_i64(), "{outcome}");
    remount("remount,rw");
    home.backup("vm", &[("vda", &disk)]).run().assert_code(0);
}
