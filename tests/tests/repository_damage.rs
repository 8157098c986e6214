//! Damage of every kind of object: truncated, a bit flipped, gone. It is told, never silent; what it does not
//! touch stays restorable; verify names what it touches; a later backup heals it.

mod repository_home;

use std::fs;
use std::path::{Path, PathBuf};

use mover_repository::format::envelope::{Protection, authenticate};
use mover_repository::store::Key;
use mover_tests::rng::{Rng, seed};
use repository_home::*;
use serde_json::Value;

/// Two machines that share nothing, each in packs and segments of its own.
struct Two {
    home: Home,
    a: PathBuf,
    b: PathBuf,
    of_a: Vec<String>,
}

fn two() -> Two {
    let home = Home::new();
    let (a, b) = (home.disk("a", 1, MIB + 77_777), home.disk("b", 2, 600_000));
    home.point("bystander", &[("vda", &b)]);
    let before = home.objects();
    home.point("victim", &[("vda", &a)]);
    let of_a = home.objects().difference(&before).cloned().collect();
    Two { home, a, b, of_a }
}

impl Two {
    fn keys(&self, prefix: &str) -> Vec<String> {
        self.of_a.iter().filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    /// With this object damaged: the other machine restores; the victim gives right bytes or an error.
    #[track_caller]
    fn check(&self, what: &str) {
        self.home.assert_restores("bystander", "vda", &self.b);
        let target = self.home.scratch.file("victim-back");
        let outcome = self.home.restore("victim", "vda", &target).run();
        match outcome.code {
            Some(0) => same(&self.a, &target),
            Some(5 | 6 | 10) => {
                let error = &outcome.result()["error"];
                assert!(!error["message"].as_str().unwrap().is_empty(), "{what}: {outcome}");
            }
            _ => panic!("{what}: {outcome}"),
        }
        let _ = fs::remove_file(target);
    }

    /// Verify finds it (exit 6) and blames only the victim.
    #[track_caller]
    fn verify_blames(&self, what: &str) -> Value {
        let outcome = self.home.run("verify").run();
        assert_eq!(outcome.code, Some(6), "{what}: {outcome}");
        let verify = outcome.result()["verify"].clone();
        for touched in verify["touched"].as_array().unwrap() {
            assert_eq!(touched["vm"], "victim", "{what}: {touched}");
        }
        assert!(
            !verify["damaged_objects"].as_array().unwrap().is_empty() || verify["damaged_chunks"] != 0,
            "{what}: {verify}"
        );
        verify
    }

    fn forget_notes(&self) {
        let _ = fs::remove_dir_all(self.home.repo.join("notes"));
    }
}

#[test]
fn packs_are_damaged_in_every_part() {
    let two = two();
    for key in two.keys("packs/") {
        let path = two.home.repo.join(&key);
        let whole = fs::read(&path).unwrap();
        let size = whole.len() as u64;
        // Header, seed, a record, index, footer with its MACs.
        for at in [0, 9, 60, 75, 4064, 4096 + 10, size - 8192 + 3, size - 4096, size - 4096 + 100, size - 1] {
            flip(&path, at);
            two.check(&format!("{key} at {at} of {size}"));
            two.verify_blames(&format!("{key} at {at} of {size}"));
            fs::write(&path, &whole).unwrap();
            two.forget_notes();
        }
        for left in [0, 4095, size / 2, size - 4096, size - 1] {
            truncate(&path, left);
            two.check(&format!("{key} cut at {left} of {size}"));
            two.verify_blames(&format!("{key} cut at {left} of {size}"));
            fs::write(&path, &whole).unwrap();
            two.forget_notes();
        }
        fs::remove_file(&path).unwrap();
        two.check(&format!("{key} gone"));
        two.verify_blames(&format!("{key} gone"));
        fs::write(&path, &whole).unwrap();
        two.forget_notes();
    }
    two.home.assert_whole();
}

#[test]
fn index_segments_are_damaged_in_every_part() {
    let two = two();
    let home = &two.home;
    let keys = two.keys("index/");
    assert_eq!(keys.len(), 1);
    let path = home.repo.join(&keys[0]);
    let whole = fs::read(&path).unwrap();
    let size = whole.len() as u64;
    let mut spots: Vec<Option<u64>> =
        [0, 60, 4064, 4096 + 5, 4096 + 4035, 2 * 4096 + 1, size - 4097, size - 4096, size - 4000, size - 1]
            .map(Some)
            .into();
    spots.push(None);
    for spot in spots {
        match spot {
            Some(at) => flip(&path, at),
            None => fs::remove_file(&path).unwrap(),
        }
        let what = format!("{spot:?} of {size}");
        // Readers take the packs' own indexes.
        home.assert_restores("bystander", "vda", &two.b);
        home.assert_restores("victim", "vda", &two.a);
        // A writer stores again what it does not find, and all is whole.
        let result = home.backup("victim", &[("vda", &two.a)]).run();
        result.assert_code(0);
        home.assert_restores("victim", "vda", &two.a);
        let outcome = home.run("verify").run();
        assert!(matches!(outcome.code, Some(0 | 6)), "{what}: {outcome}");
        fs::write(&path, &whole).unwrap();
        two.forget_notes();
    }
    for left in [0, 4095, 4096, size - 1] {
        truncate(&path, left);
        home.assert_restores("victim", "vda", &two.a);
        fs::write(&path, &whole).unwrap();
    }
    home.gc();
    home.assert_whole();
}

#[test]
fn gc_deletes_nothing_on_the_word_of_a_damaged_index() {
    let two = two();
    let home = &two.home;
    let path = home.repo.join(&two.keys("index/")[0]);
    for at in [4096 + 5, fs::metadata(&path).unwrap().len() - 100] {
        if path.exists() {
            flip(&path, at);
        }
        let outcome = home.run("gc").arguments(["--wait", "0s"]).run();
        assert!(matches!(outcome.code, Some(0 | 6)), "{outcome}");
        home.assert_restores("victim", "vda", &two.a);
        home.assert_restores("bystander", "vda", &two.b);
        if path.exists() {
            flip(&path, at);
        }
    }
    let packs = home.objects();
    if path.exists() {
        fs::remove_file(&path).unwrap();
    }
    let outcome = home.run("gc").arguments(["--wait", "0s"]).run();
    assert!(matches!(outcome.code, Some(0 | 6)), "{outcome}");
    home.assert_restores("victim", "vda", &two.a);
    home.assert_restores("bystander", "vda", &two.b);
    assert!(
        two.keys("packs/").iter().all(|key| home.objects().contains(key)) || outcome.code == Some(0),
        "{packs:?}"
    );
}

#[test]
fn manifests_are_damaged() {
    let two = two();
    let home = &two.home;
    let first = home.points("victim").remove(0);
    let changed = home.copy_of(&two.a, "changed");
    write_at(&changed, 5, b"later");
    let second = home.point("victim", &[("vda", &changed)]);
    let path = home.repo.join("manifests/victim").join(&second);
    let whole = fs::read(&path).unwrap();
    let mut damages: Vec<(String, Vec<u8>)> = Vec::new();
    for at in (0..whole.len()).step_by(whole.len() / 12) {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        damages.push((format!("flipped at {at}"), bytes));
    }
    for left in [0, 1, 63, 64, whole.len() - 1] {
        damages.push((format!("cut at {left}"), whole[..left].to_vec()));
    }
    for (what, bytes) in damages {
        fs::write(&path, bytes).unwrap();
        home.assert_restores(&format!("victim@{first}"), "vda", &two.a);
        home.assert_restores("bystander", "vda", &two.b);
        let outcome = home.restore(&format!("victim@{second}"), "vda", &home.scratch.file("never")).run();
        assert!(matches!(outcome.code, Some(5 | 6)), "{what}: {outcome}");
        let verify = home.run("verify").run();
        assert!(matches!(verify.code, Some(6)), "{what}: {verify}");
        assert!(verify.stdout_text().contains(&second), "{what}: {verify}");
        // It may be the point that was meant to be kept: gc must not take what it may need.
        let gc = home.run("gc").arguments(["--wait", "0s"]).run();
        assert!(matches!(gc.code, Some(0 | 6)), "{what}: {gc}");
        fs::write(&path, &whole).unwrap();
        two.forget_notes();
        home.assert_restores(&format!("victim@{second}"), "vda", &changed);
    }
    // Moved to another machine's name it is none.
    let moved = home.repo.join("manifests/bystander").join(&second);
    fs::copy(&path, &moved).unwrap();
    let outcome = home.restore(&format!("bystander@{second}"), "vda", &home.scratch.file("never")).run();
    assert!(matches!(outcome.code, Some(5 | 6 | 10)), "{outcome}");
    fs::remove_file(moved).unwrap();
    // Backups go on beside a damaged one, which is told.
    flip(&path, 70);
    let outcome = home.backup("victim", &[("vda", &changed)]).run();
    outcome.assert_code(0);
    assert!(outcome.stdout_text().contains(&second), "the damaged restore point is not told: {outcome}");
    assert!(!home.scratch.file("never").exists());
}

#[test]
fn the_config_is_damaged_or_gone() {
    let two = two();
    let path = two.home.repo.join("config");
    let whole = fs::read(&path).unwrap();
    let before = two.home.objects();
    for at in 0..whole.len() {
        if at % 16 != 3 && at > 8 {
            continue;
        }
        flip(&path, at as u64);
        for verb in ["list", "gc"] {
            let outcome = two.home.run(verb).run();
            assert!(matches!(outcome.code, Some(5 | 6 | 11)), "byte {at}, {verb}: {outcome}");
        }
        fs::write(&path, &whole).unwrap();
    }
    for left in [0, 8, 63, whole.len() - 1] {
        truncate(&path, left as u64);
        let outcome = two.home.backup("victim", &[("vda", &two.a)]).run();
        assert!(matches!(outcome.code, Some(5 | 6 | 11)), "{left} bytes: {outcome}");
        fs::write(&path, &whole).unwrap();
    }
    fs::remove_file(&path).unwrap();
    let outcome = two.home.backup("victim", &[("vda", &two.a)]).run();
    assert!(matches!(outcome.code, Some(5 | 6 | 10)), "a new repository over an old one: {outcome}");
    let outcome = two.home.run("gc").run();
    assert!(matches!(outcome.code, Some(5 | 6 | 10)), "{outcome}");
    fs::write(&path, &whole).unwrap();
    assert_eq!(two.home.objects(), before);
    two.check("config is back");
}

#[test]
fn sessions_doom_lists_and_notes_are_damaged() {
    let two = two();
    let home = &two.home;
    let rubbish = [Vec::new(), b"MVOBJECT".to_vec(), vec![0xA5; 300]];
    let name = "0123456789abcdef0123456789abcdef";
    let places = [
        format!("sessions/{name}/0"),
        format!("doom/{name}"),
        format!("notes/damaged/{name}"),
        format!("notes/points/victim/{}/{name}", home.points("victim")[0]),
        format!("packs/01/{name}"),
        format!("index/{name}"),
        "manifests/stranger/20200101T000000Z-00000000".to_owned(),
        "manifests/victim/garbage".to_owned(),
        "keys/garbage".to_owned(),
    ];
    for place in &places {
        for content in &rubbish {
            let path = home.repo.join(place);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            home.assert_restores("victim", "vda", &two.a);
            let backup = home.backup("bystander", &[("vda", &two.b)]).run();
            if place.starts_with("doom/") {
                // What it dooms is not known, so nothing can be built on; gc gives it up.
                failed(&backup, 6, "corruption", place);
            } else {
                backup.assert_code(0);
            }
            home.run("list").run().assert_code(0);
            let gc = home.run("gc").arguments(["--wait", "0s"]).run();
            assert!(matches!(gc.code, Some(0 | 6 | 9)), "{place}: {gc}");
            let prune = home.run("prune").arguments(["--keep-last", "3"]).run();
            assert!(matches!(prune.code, Some(0 | 6)), "{place}: {prune}");
            home.assert_restores("victim", "vda", &two.a);
            home.assert_restores("bystander", "vda", &two.b);
            home.backup("bystander", &[("vda", &two.b)]).run().assert_code(0);
            let _ = fs::remove_file(&path);
        }
    }
    home.gc();
    home.assert_whole();
}

#[test]
fn a_newer_format_is_told_from_damage() {
    let two = two();
    let home = &two.home;
    let path = home.repo.join("config");
    let whole = fs::read(&path).unwrap();
    // The version, and an unknown incompatible feature, each with a MAC that is right.
    for (at, value) in [(8, 2), (16 + 7, 0x80)] {
        let mut bytes = whole.clone();
        bytes[at] = value;
        let end = bytes.len() - 32;
        let mac = authenticate(&Key::new("config"), Protection::Plain, &bytes[..end]);
        bytes[end..].copy_from_slice(&mac);
        fs::write(&path, &bytes).unwrap();
        for verb in
            ["list", "show victim", "gc", "verify", "prune --keep-last 1", "restore victim --into never"]
        {
            fails(home.run(verb), 5, "unsupported", "");
        }
        fails(home.backup("victim", &[("vda", &two.a)]), 5, "unsupported", "");
    }
    fs::write(&path, &whole).unwrap();
    home.point("victim", &[("vda", &two.a)]);
    // One that only writers need to know: it is read, and not written to.
    let mut bytes = whole.clone();
    bytes[24 + 7] = 0x80;
    let end = bytes.len() - 32;
    let mac = authenticate(&Key::new("config"), Protection::Plain, &bytes[..end]);
    bytes[end..].copy_from_slice(&mac);
    fs::write(&path, &bytes).unwrap();
    home.assert_restores("victim", "vda", &two.a);
    fails(home.backup("victim", &[("vda", &two.a)]), 5, "unsupported", "");
    fails(home.run("gc"), 5, "unsupported", "");
    fails(home.run("prune").arguments(["--keep-last", "1"]), 5, "unsupported", "");
    // And one that nobody needs to know.
    let mut bytes = whole.clone();
    bytes[32 + 7] = 0x80;
    let mac = authenticate(&Key::new("config"), Protection::Plain, &bytes[..end]);
    bytes[end..].copy_from_slice(&mac);
    fs::write(&path, &bytes).unwrap();
    home.backup("victim", &[("vda", &two.a)]).run().assert_code(0);
    assert!(!Path::new("never").exists());
}

#[test]
fn verify_names_what_is_touched_and_a_backup_heals_it() {
    let two = two();
    let home = &two.home;
    let mut rng = Rng::new(seed("verify_names_what_is_touched_and_a_backup_heals_it"));
    // The clone shares all with the victim, but for its head.
    let clone = home.copy_of(&two.a, "clone");
    write_at(&clone, 0, b"the head of the clone");
    home.point("clone", &[("sda", &clone)]);
    // A chunk of data in the victim's pack.
    let pack =
        two.keys("packs/").into_iter().max_by_key(|key| fs::metadata(home.repo.join(key)).unwrap().len());
    let pack = home.repo.join(pack.unwrap());
    flip(&pack, rng.range(4096..4096 + MIB));
    let outcome = home.run("verify").run();
    outcome.assert_code(6);
    let verify = &outcome.result()["verify"];
    assert_eq!(verify["damaged_chunks"], 1, "{verify}");
    let touched = verify["touched"].as_array().unwrap();
    assert!(touched.iter().any(|touched| touched["vm"] == "victim" && touched["disk"] == "vda"), "{verify}");
    assert!(touched.iter().all(|touched| touched["vm"] != "bystander"), "{verify}");
    let extent = &touched[0]["extents"][0];
    let (start, length) = (extent[0].as_u64().unwrap(), extent[1].as_u64().unwrap());
    assert!(start % CHUNK == 0 && length == CHUNK && start < MIB, "{extent}");

    // A restore says where, restores the rest, and is exit 6.
    let target = home.scratch.file("target");
    let outcome = home.restore("victim", "vda", &target).run();
    failed(&outcome, 6, "corruption", "");
    assert_eq!(outcome.result()["error"]["offset"], start);
    let (now, right) = (fs::read(&target).unwrap(), fs::read(&two.a).unwrap());
    assert!(now[..start as usize] == right[..start as usize]);
    assert!(now[(start + length) as usize..] == right[(start + length) as usize..]);
    home.assert_restores("bystander", "vda", &two.b);

    // The next backup that reads the content stores it again; everything is whole then.
    let healed = home.backup("victim", &[("vda", &two.a)]).run();
    healed.assert_code(0);
    assert_eq!(healed.result()["point"]["disks"][0]["stored"]["new_chunks"], 1);
    let first = home.points("victim").remove(0);
    home.assert_restores(&format!("victim@{first}"), "vda", &two.a);
    home.assert_restores("clone", "sda", &clone);
    home.assert_whole();
    home.gc();
    home.assert_whole();
}

#[test]
fn verify_looks_at_what_it_is_told() {
    let two = two();
    let home = &two.home;
    let of = |arguments: &[&str]| {
        let outcome = home.run("verify").arguments(arguments).run();
        outcome.assert_code(0);
        outcome.result()["verify"].clone()
    };
    assert_eq!(of(&[])["points"], 2);
    assert_eq!(of(&["victim"])["points"], 1);
    assert_eq!(of(&["--since", "1d"])["points"], 2);
    assert_eq!(of(&["--since", "2199-01-01T00:00:00Z"])["points"], 0);
    assert_eq!(of(&["victim", "--sample", "3"])["chunks"], 3);
    let half = of(&["--sample", "50%"])["chunks"].as_u64().unwrap();
    assert!(half <= 14, "{half}");
    for bad in ["--sample=101%", "--sample=x", "--since=yesterday", "--sample=-1"] {
        home.run("verify").argument(bad).run().assert_code(2);
    }
}
