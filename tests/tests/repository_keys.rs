//! Encrypted repositories from end to end: nothing in clear, every wrong key is exit 11, keys come and go.

mod repository_home;

use std::fs;

use mover_tests::process::Run;
use repository_home::*;
use serde_json::Value;

const PASSPHRASE: &str = "correct horse battery staple";

struct Locked {
    home: Home,
    key: String,
    passphrase: String,
}

/// An encrypted repository that a key file opens; a passphrase lies in a file.
fn locked() -> Locked {
    let mut home = Home::new();
    let key = home.disk("key", 77, 32).to_string_lossy().into_owned();
    let passphrase =
        home.scratch.write("passphrase", format!("{PASSPHRASE}\n")).to_string_lossy().into_owned();
    let init = Run::mover(["init", "--json", "--key-file", &key]).argument(&home.repo);
    init.variable("MOVER_STATE", &home.state).run().assert_code(0);
    home.secret = vec!["--key-file".into(), key.clone()];
    Locked { home, key, passphrase }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn nothing_stands_in_clear() {
    let Locked { home, key, .. } = locked();
    let marker = b"a line that must not be found by whoever steals the disk of backups";
    let disk = home.disk("disk", 1, 2 * MIB);
    for at in [100, CHUNK + 4000, MIB + 77] {
        write_at(&disk, at, marker);
    }
    let document = home.scratch.write("vm.xml", "<secret-definition/>");
    let run =
        home.backup("vm", &[("very-private-disk", &disk)]).arguments(["--label", "colour=hidden-label"]);
    run.argument("--document").argument(argument("vm.xml", &document)).run().assert_code(0);
    let key_bytes = fs::read(&key).unwrap();
    for object in home.objects() {
        let bytes = fs::read(home.repo.join(&object)).unwrap();
        let clear =
            [&marker[..20], b"very-private-disk", b"hidden-label", b"secret-definition", &key_bytes[..16]];
        for needle in clear {
            assert!(!contains(&bytes, needle), "{object} holds \"{}\"", String::from_utf8_lossy(needle));
        }
    }
    home.assert_restores("vm", "very-private-disk", &disk);
    home.assert_whole();
    let shown = home.document("show", &["vm"]);
    assert_eq!(
        (&shown["labels"]["colour"], &shown["documents"].is_object()),
        (&"hidden-label".into(), &true)
    );
    // Incremental, prune and gc work the same.
    write_at(&disk, 5, b"new");
    let second = home.backup("vm", &[("very-private-disk", &disk)]).run().result();
    assert_eq!(second["point"]["disks"][0]["stored"]["new_chunks"], 1);
    home.run("prune").arguments(["--keep-last", "1"]).run().assert_code(0);
    home.gc();
    home.assert_restores("vm", "very-private-disk", &disk);
    home.assert_whole();
}

#[test]
fn a_wrong_or_missing_key_is_exit_11_everywhere() {
    let Locked { mut home, passphrase, .. } = locked();
    let disk = home.disk("disk", 1, 300_000);
    home.point("vm", &[("vda", &disk)]);
    let before = home.objects();
    let wrong = home.disk("wrong", 78, 32).to_string_lossy().into_owned();
    let right = std::mem::take(&mut home.secret);
    let target = home.scratch.file("target");
    for secret in [
        vec![],
        vec!["--key-file".into(), wrong],
        vec!["--passphrase-file".into(), passphrase],
        vec!["--passphrase-command".into(), "echo nonsense".into()],
    ] {
        home.secret = secret;
        for verb in [
            "list",
            "show vm",
            "verify",
            "gc",
            "prune --keep-last 1",
            "diff vm@latest vm@latest",
            "catalog rebuild",
        ] {
            let result = fails(home.run(verb), 11, "key", "");
            assert_eq!(result["error"]["retryable"], false);
        }
        fails(home.backup("vm", &[("vda", &disk)]), 11, "key", "");
        fails(home.restore("vm", "vda", &target), 11, "key", "");
    }
    assert!(!target.exists());
    assert_eq!(home.objects(), before);
    // Secrets that cannot be had are not wrong keys of a repository, but never exit 0.
    let short = home.scratch.write("short", "x").to_string_lossy().into_owned();
    let gone = home.scratch.file("gone").to_string_lossy().into_owned();
    for (flag, value) in [
        ("--key-file", short),
        ("--key-file", gone.clone()),
        ("--passphrase-file", gone),
        ("--passphrase-command", "exit 3".into()),
    ] {
        home.secret = vec![flag.into(), value];
        let outcome = home.run("list").run();
        assert!(matches!(outcome.code, Some(2 | 10 | 11)), "{outcome}");
        assert!(outcome.result()["error"]["message"].is_string());
    }
    home.secret = right;
    home.assert_restores("vm", "vda", &disk);
}

#[test]
fn keys_are_added_and_removed() {
    let Locked { mut home, key, passphrase } = locked();
    let disk = home.disk("disk", 1, 300_000);
    home.point("vm", &[("vda", &disk)]);
    let packs_before: Vec<String> =
        home.objects().into_iter().filter(|key| key.starts_with("packs/")).collect();

    let slots = |home: &Home| -> Vec<Value> {
        let outcome = home.run_at(&home.repo, "key list").run();
        outcome.assert_code(0);
        let document: Value = serde_json::from_slice(&outcome.stdout).unwrap();
        document["slots"].as_array().unwrap().clone()
    };
    assert_eq!(slots(&home).len(), 1);
    let only = text(&slots(&home)[0]["id"]);
    // The last one stays.
    let outcome = home.run("key remove").argument(&only).run();
    failed(&outcome, 5, "refused", "last");
    assert_eq!(slots(&home).len(), 1);

    let outcome =
        home.run("key add").arguments(["--new-passphrase-file", &passphrase, "--label", "safe"]).run();
    outcome.assert_code(0);
    assert!(!mentions(&outcome, PASSPHRASE));
    assert_eq!(slots(&home).len(), 2);
    assert!(slots(&home).iter().any(|slot| slot["label"] == "safe"));
    // Both open it; the passphrase by file and by command.
    home.assert_restores("vm", "vda", &disk);
    home.secret = vec!["--passphrase-file".into(), passphrase.clone()];
    let outcome = home.backup("vm", &[("vda", &disk)]).run();
    outcome.assert_code(0);
    assert!(!mentions(&outcome, PASSPHRASE), "a passphrase in the events");
    home.secret = vec!["--passphrase-command".into(), format!("cat {passphrase}")];
    let outcome = home.run("verify").run();
    outcome.assert_code(0);
    assert!(!mentions(&outcome, PASSPHRASE));
    // The old key goes, and opens nothing any more.
    home.run("key remove").argument(&only).run().assert_code(0);
    let by_key = home.run_at(&home.repo, "list").arguments(["--key-file", &key]).run();
    failed(&by_key, 11, "key", "");
    home.assert_restores("vm", "vda", &disk);
    fails(home.run("key remove").argument("ffffffffffffffffffffffffffffffff"), 10, "not_found", "ffff");
    fails(home.run("key remove").argument("../config"), 10, "not_found", "../config");
    // Nothing was encrypted anew.
    let packs = home.objects();
    assert!(packs_before.iter().all(|pack| packs.contains(pack)));
    // A repository without encryption has no keys to change.
    let plain = home.scratch.file("plain");
    Run::mover(["init", "--json"]).argument(&plain).variable("MOVER_STATE", &home.state).run().assert_code(0);
    let outcome = home.run_at(&plain, "key add").arguments(["--new-passphrase-file", &passphrase]).run();
    outcome.assert_code(5);
    assert!(home.repo.join("config").exists());
}

#[test]
fn a_key_slot_that_is_damaged() {
    let Locked { mut home, passphrase, .. } = locked();
    let disk = home.disk("disk", 1, 300_000);
    home.point("vm", &[("vda", &disk)]);
    let slot = home.object("keys/");
    let whole = fs::read(&slot).unwrap();
    for at in (0..whole.len() as u64).step_by(whole.len() / 20) {
        flip(&slot, at);
        let outcome = home.run("list").run();
        assert!(matches!(outcome.code, Some(5 | 6 | 11)), "byte {at}: {outcome}");
        fs::write(&slot, &whole).unwrap();
    }
    for size in [0, 1, 63, whole.len() as u64 - 1] {
        truncate(&slot, size);
        let outcome = home.run("list").run();
        assert!(matches!(outcome.code, Some(6 | 11)), "{size} bytes: {outcome}");
        fs::write(&slot, &whole).unwrap();
    }
    // Another slot still opens.
    home.run("key add").arguments(["--new-passphrase-file", &passphrase]).run().assert_code(0);
    flip(&slot, 100);
    home.secret = vec!["--passphrase-file".into(), passphrase];
    home.assert_restores("vm", "vda", &disk);
    // None at all.
    for key in home.objects().into_iter().filter(|key| key.starts_with("keys/")) {
        fs::remove_file(home.repo.join(key)).unwrap();
    }
    let outcome = home.run("list").run();
    assert!(matches!(outcome.code, Some(6 | 11)), "{outcome}");
}

#[test]
fn a_tampered_config_is_not_a_plain_repository() {
    // Whoever can write to the folder must not get data stored in clear, or under a key of his.
    let Locked { home, .. } = locked();
    let disk = home.disk("disk", 1, 300_000);
    home.point("vm", &[("vda", &disk)]);
    let other = Home::new();
    other.point("vm", &[("vda", &disk)]);
    fs::copy(other.repo.join("config"), home.repo.join("config")).unwrap();
    let before = home.objects();
    let outcome = home.backup("vm", &[("vda", &disk)]).run();
    assert!(matches!(outcome.code, Some(2 | 5 | 6 | 11)), "{outcome}");
    assert_eq!(home.objects(), before);
}
