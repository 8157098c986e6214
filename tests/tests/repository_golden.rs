//! Repositories of every version of the format stay readable by every later mover: those in tests/golden are opened,
//! listed, verified, restored and gone on with, on a copy.
//!
//! `MOVER_GOLDEN=update` makes them anew with the mover of now; otherwise they are never written. A released format's
//! repositories are not to be made anew: then a new version gets new ones, and these stay as they are.

mod repository_home;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use mover_tests::process::Run;
use mover_tests::scratch::ScratchDir;
use repository_home::*;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128;

const SMALL_CHUNK: u64 = 16 * KIB;
const PASSPHRASE: &str = "golden correct horse";
/// Most bytes of each. Nine tenths are the zeros that fill blocks of 4 KiB, of which git stores next to nothing.
const BYTES_MAX: u64 = 200 * KIB;

/// What lies beside a repository: the XXH3-128 digest of each disk, by `VM@POINT DISK`, in the order of the points.
type Digests = BTreeMap<String, String>;

fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

fn digest(path: &Path) -> String {
    format!("{:032x}", xxh3_128(&fs::read(path).unwrap()))
}

/// The files that open an encrypted one lie beside it: they are no secrets.
fn secrets(folder: &Path, encrypted: bool) -> [Vec<String>; 2] {
    let secret = |option: &str, file: &str| {
        vec![option.to_owned(), folder.join(file).to_str().expect("a path that is text").to_owned()]
    };
    match encrypted {
        true => [secret("--key-file", "key"), secret("--passphrase-file", "passphrase")],
        false => [Vec::new(), Vec::new()],
    }
}

/// Makes a repository: two machines, a full and an incremental backup, a disk that both have in common, a verified
/// point, chunks of every encoding.
fn make(name: &str, encrypted: bool, compression: &str) {
    let folder = place(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let mut home = Home::on_disk();
    home.repo = folder.join("repository");
    if encrypted {
        fs::copy(home.disk("key", 4711, 48), folder.join("key")).unwrap();
        fs::write(folder.join("passphrase"), format!("{PASSPHRASE}\n")).unwrap();
    }
    let [by_key, by_passphrase] = secrets(&folder, encrypted);
    home.secret = by_key;
    let init = Run::mover(["init", "--json", "--chunk-size", "16K", "--compression", compression]);
    init.arguments(&home.secret).argument(&home.repo).run().assert_code(0);
    if encrypted {
        let add = home.run("key add").arguments(["--label", "a passphrase", "--new-passphrase-file"]);
        add.argument(&by_passphrase[1]).run().assert_code(0);
    }

    // Text that compresses, noise that does not, a hole, and an end that is no whole chunk.
    let disk = home.scratch.file("vda.raw");
    let text = "what compresses, line after line\n".repeat(1 + SMALL_CHUNK as usize / 33);
    fs::write(&disk, &text.as_bytes()[..SMALL_CHUNK as usize]).unwrap();
    let noise = fs::read(home.disk("noise", 12, SMALL_CHUNK + 100)).unwrap();
    write_at(&disk, 20 * SMALL_CHUNK, &noise);
    let base = home.disk("base.raw", 13, 700);
    fs::OpenOptions::new().write(true).open(&base).unwrap().set_len(5 * SMALL_CHUNK).unwrap();
    let document = home.scratch.write("vm.xml", "<domain type='kvm'/>\n");
    let mut digests = Digests::new();
    let mut backup = |vm: &str, disk: &Path, more: &[&str]| {
        let run = home.run("backup").argument(vm).argument("--disk").argument(argument("vda", disk));
        let mut common = argument("base", &base);
        common.push(",common=golden-base");
        let run = run.argument("--disk").argument(common).arguments(["--label", "kind=golden"]);
        let run = run.arguments(more).argument("--document").argument(argument("vm.xml", &document));
        let outcome = run.run();
        outcome.assert_code(0);
        let point = point_id(&outcome.result());
        for (id, path) in [("vda", disk), ("base", base.as_path())] {
            digests.insert(format!("{vm}@{point} {id}"), digest(path));
        }
        point
    };
    let full = backup("one", &disk, &["--run-key", "first"]);
    write_at(&disk, 3 * SMALL_CHUNK + 5, b"changed");
    let changes = extents_file(&home.scratch.file("changes.json"), &[(3 * SMALL_CHUNK, SMALL_CHUNK)]);
    let list = format!("vda={}", changes.display());
    backup("one", &disk, &["--extents", &list, "--since", &format!("one@{full}")]);
    let other = home.disk("other.raw", 14, 1000);
    backup("two", &other, &["--vm-uuid", "7e6a1c9e-0c5e-4b53-9c1c-0242ac120002"]);
    home.assert_whole();
    assert!(home.objects().iter().any(|key| key.starts_with("notes/")), "{:?}", home.objects());
    fs::write(folder.join("digests.json"), serde_json::to_string_pretty(&digests).unwrap() + "\n").unwrap();
    // Git keeps no empty folders.
    let _ = fs::remove_dir_all(home.repo.join("tmp"));
    let _ = fs::remove_dir_all(home.repo.join("sessions"));
}

/// A home with a copy of the repository.
fn copied(name: &str, secret: &[String]) -> (Home, Digests) {
    let folder = place(name);
    let mut home = Home::on_disk();
    copy_folder(&folder.join("repository"), &home.repo);
    home.secret = secret.to_vec();
    let digests = fs::read(folder.join("digests.json"))
        .unwrap_or_else(|error| panic!("{}: {error}; MOVER_GOLDEN=update makes it", folder.display()));
    (home, serde_json::from_slice(&digests).unwrap())
}

fn restores_all(home: &Home, digests: &Digests, scratch: &ScratchDir) {
    for (number, (what, expected)) in digests.iter().enumerate() {
        let (point, id) = what.split_once(' ').unwrap();
        let target = scratch.file(&format!("restored-{number}"));
        home.restore(point, id, &target).run().assert_code(0);
        assert_eq!(&digest(&target), expected, "{what}");
        fs::remove_file(target).unwrap();
    }
}

fn check(name: &str, encrypted: bool, compression: &str) {
    if std::env::var_os("MOVER_GOLDEN").is_some_and(|value| value == "update") {
        make(name, encrypted, compression);
    }
    let before = contents(&place(name).join("repository"));
    assert!(before.values().map(|bytes| bytes.len() as u64).sum::<u64>() < BYTES_MAX);
    let [first, second] = secrets(&place(name), encrypted);
    let (mut home, digests) = copied(name, &first);
    let scratch = ScratchDir::new();
    assert_eq!(digests.len(), 6, "{digests:?}");

    // What is there.
    let points = home.points("one");
    assert_eq!((points.len(), home.points("two").len()), (2, 1));
    let shown = home.document("show", &["one"]);
    assert_eq!(
        (&shown["labels"]["kind"], &shown["parent"]),
        (&"golden".into(), &Value::from(points[0].clone()))
    );
    assert_eq!(disk_of(&shown["disks"], "vda")["method"], "changed");
    assert!(disk_of(&shown["disks"], "base")["common"].is_object(), "{shown}");
    home.assert_whole();
    restores_all(&home, &digests, &scratch);
    if encrypted {
        // To list slots takes no secret.
        home.secret.clear();
        let slots = home.document("key list", &[]);
        assert_eq!(slots["slots"].as_array().map(Vec::len), Some(2), "{slots}");
        home.secret = second;
        restores_all(&home, &digests, &scratch);
        home.secret = vec!["--passphrase-file".into(), place(name).join("key").display().to_string()];
        fails(home.run("list"), 11, "key", "wrong passphrase");
        home.secret = first;
    }
    // A repeated run is the point that there is.
    let disk = scratch.file("vda.raw");
    home.restore(&format!("one@{}", points[1]), "vda", &disk).run().assert_code(0);
    let base = scratch.file("base.raw");
    home.restore("one", "base", &base).run().assert_code(0);
    let repeated =
        home.backup("one", &[("vda", &disk), ("base", &base)]).arguments(["--run-key", "first"]).run();
    assert_eq!(point_id(&repeated.result()), points[0], "{repeated}");

    // It is gone on with: an incremental backup on what is there, a prune of what was first, a gc.
    write_at(&disk, 7 * SMALL_CHUNK, b"of a later mover");
    let changes = extents_file(&scratch.file("changes.json"), &[(7 * SMALL_CHUNK, 512)]);
    let run = home.backup("one", &[("vda", &disk)]).arguments(["--since", &format!("one@{}", points[1])]);
    let outcome = run.argument("--extents").argument(argument("vda", &changes)).run();
    outcome.assert_code(0);
    let result = outcome.result();
    let entry = disk_of(&result["point"]["disks"], "vda");
    assert_eq!(
        (&entry["method"], &entry["stored"]["new_chunks"]),
        (&"changed".into(), &1.into()),
        "{result}"
    );
    home.assert_restores("one", "vda", &disk);
    let pruned = home.run("prune").arguments(["one", "--keep-last", "2"]).run();
    pruned.assert_code(0);
    assert_eq!(home.points("one"), [points[1].clone(), point_id(&result)]);
    home.gc();
    home.assert_whole();
    let kept: Digests =
        digests.into_iter().filter(|(what, _)| !what.starts_with(&format!("one@{} ", points[0]))).collect();
    restores_all(&home, &kept, &scratch);
    home.assert_restores("one", "vda", &disk);
    assert_eq!(
        contents(&place(name).join("repository")),
        before,
        "the golden repository itself was written to"
    );
}

/// All objects with their bytes.
fn contents(repo: &Path) -> BTreeMap<String, Vec<u8>> {
    objects(repo).into_iter().map(|key| (key.clone(), fs::read(repo.join(key)).unwrap())).collect()
}

#[test]
fn version_1_without_encryption() {
    check("repository-v1-plain", false, "lz4");
}

#[test]
fn version_1_encrypted() {
    check("repository-v1-encrypted", true, "zstd:3");
}
