//! A repository with its own catalog in a scratch folder, as tests from outside use it: by the program alone.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use mover_tests::compare::compare;
use mover_tests::layout::{Content, Layout};
use mover_tests::outcome::Outcome;
use mover_tests::process::Run;
use mover_tests::scratch::ScratchDir;
use serde_json::Value;

pub const KIB: u64 = 1024;
pub const MIB: u64 = 1024 * KIB;
/// Bytes of a chunk, unless `init` was told otherwise.
pub const CHUNK: u64 = 128 * KIB;

/// A scratch folder with the place of a repository and of a catalog in it.
pub struct Home {
    pub scratch: ScratchDir,
    pub repo: PathBuf,
    pub state: PathBuf,
    /// What opens the repository, where it is encrypted.
    pub secret: Vec<String>,
}

impl Home {
    /// In memory: what is tested is not how the filesystem syncs.
    pub fn new() -> Home {
        Home::over(ScratchDir::in_memory())
    }

    /// On the filesystem for scratch folders, where files tell their birth.
    pub fn on_disk() -> Home {
        Home::over(ScratchDir::new())
    }

    fn over(scratch: ScratchDir) -> Home {
        let (repo, state) = (scratch.file("repo"), scratch.file("state"));
        Home { scratch, repo, state, secret: Vec::new() }
    }

    /// The same catalog, and a repository elsewhere.
    pub fn run_at(&self, repo: &Path, verb: &str) -> Run {
        Run::mover(verb.split(' '))
            .variable("MOVER_STATE", &self.state)
            .arguments(["--json", "--repo"])
            .argument(repo)
    }

    /// A run of `VERB --json --repo …`.
    pub fn run(&self, verb: &str) -> Run {
        self.run_at(&self.repo, verb).arguments(&self.secret)
    }

    /// A run of `backup VM --disk ID=PATH …`.
    pub fn backup(&self, vm: &str, disks: &[(&str, &Path)]) -> Run {
        let mut run = self.run("backup").argument(vm);
        for (id, path) in disks {
            run = run.argument("--disk").argument(argument(id, path));
        }
        run
    }

    /// A restore point of these disks; gives its id.
    #[track_caller]
    pub fn point(&self, vm: &str, disks: &[(&str, &Path)]) -> String {
        let outcome = self.backup(vm, disks).run();
        outcome.assert_code(0);
        point_id(&outcome.result())
    }

    /// A run of `restore WHAT --disk ID=TARGET`.
    pub fn restore(&self, what: &str, id: &str, target: &Path) -> Run {
        self.run("restore").argument(what).argument("--disk").argument(argument(id, target))
    }

    /// Restores a disk to a new file and holds it against the original.
    #[track_caller]
    pub fn assert_restores(&self, what: &str, id: &str, original: &Path) {
        let target = self.scratch.file(&format!("restored-{}-{id}", what.replace('@', "-")));
        let _ = fs::remove_file(&target);
        self.restore(what, id, &target).run().assert_code(0);
        same(original, &target);
        fs::remove_file(target).unwrap();
    }

    /// The document of a verb that prints one.
    #[track_caller]
    pub fn document(&self, verb: &str, arguments: &[&str]) -> Value {
        let outcome = self.run(verb).arguments(arguments).run();
        outcome.assert_code(0);
        serde_json::from_slice(&outcome.stdout).unwrap_or_else(|error| panic!("{error}\n{outcome}"))
    }

    /// Ids of the restore points of a machine, in the order of `list`.
    #[track_caller]
    pub fn points(&self, vm: &str) -> Vec<String> {
        let document = self.document("list", &[vm]);
        document["points"].as_array().unwrap().iter().map(|point| text(&point["id"])).collect()
    }

    /// Keys of all objects in the repository's folder, `tmp/` included.
    pub fn objects(&self) -> BTreeSet<String> {
        objects(&self.repo)
    }

    /// The only object whose key begins so.
    #[track_caller]
    pub fn object(&self, prefix: &str) -> PathBuf {
        let found: Vec<String> = self.objects().into_iter().filter(|key| key.starts_with(prefix)).collect();
        assert_eq!(found.len(), 1, "one object {prefix}… expected: {found:?}");
        self.repo.join(&found[0])
    }

    /// A file of data that follows from the seed.
    pub fn disk(&self, name: &str, seed: u64, size: u64) -> PathBuf {
        let path = self.scratch.file(name);
        Layout::of(seed, &[(size, Content::Data)]).write(&path).unwrap();
        path
    }

    /// A copy of a file.
    pub fn copy_of(&self, path: &Path, name: &str) -> PathBuf {
        let target = self.scratch.file(name);
        fs::copy(path, &target).unwrap();
        target
    }

    /// Verify finds nothing.
    #[track_caller]
    pub fn assert_whole(&self) {
        let outcome = self.run("verify").run();
        outcome.assert_code(0);
        let verify = &outcome.result()["verify"];
        assert_eq!(verify["damaged_objects"].as_array().unwrap().len(), 0, "{outcome}");
    }

    /// Gc, and what it says of itself.
    #[track_caller]
    pub fn gc(&self) -> Value {
        let outcome = self.run("gc").arguments(["--wait", "20s", "--repack-below", "100"]).run();
        outcome.assert_code(0);
        outcome.result()["gc"].clone()
    }
}

/// `ID=PATH`.
pub fn argument(id: &str, path: &Path) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from(format!("{id}="));
    argument.push(path);
    argument
}

/// Contents are equal, whatever their holes; panics with the first difference.
#[track_caller]
pub fn same(left: &Path, right: &Path) {
    let found = compare(left, right).unwrap();
    assert!(found.is_none(), "{} and {} differ {}", left.display(), right.display(), found.unwrap());
}

/// Keys of all objects below a folder.
pub fn objects(repo: &Path) -> BTreeSet<String> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![repo.to_owned()]);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(repo).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found
}

/// The id of the point that a `result` tells of.
#[track_caller]
pub fn point_id(result: &Value) -> String {
    text(&result["point"]["id"])
}

#[track_caller]
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("text expected, not {value}")).to_owned()
}

/// Ends with this code and an error of this kind whose message or hint has these words. Gives the result.
#[track_caller]
pub fn fails(run: Run, code: i32, kind: &str, words: &str) -> Value {
    let outcome = run.run();
    failed(&outcome, code, kind, words)
}

#[track_caller]
pub fn failed(outcome: &Outcome, code: i32, kind: &str, words: &str) -> Value {
    outcome.assert_code(code);
    let result = outcome.result();
    let error = &result["error"];
    assert_eq!((&result["exit_code"], &result["status"]), (&code.into(), &"failed".into()), "{outcome}");
    assert_eq!(error["kind"], kind, "{outcome}");
    let said = format!("{} {} {}", error["message"], error["hint"], error["path"]);
    assert!(said.contains(words), "\"{words}\" expected\n{outcome}");
    let hint = error["hint"].as_str().unwrap_or_default();
    assert!(!hint.is_empty() || error["errno"].is_i64(), "a hint or an errno expected\n{outcome}");
    result
}

pub fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

/// Inverts a bit of a byte.
pub fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

pub fn truncate(path: &Path, size: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(size).unwrap();
}

/// A list of changed extents of kind `data`, in a file.
pub fn extents_file(path: &Path, extents: &[(u64, u64)]) -> PathBuf {
    let entries: Vec<Value> = extents
        .iter()
        .map(|(start, length)| serde_json::json!({"start": start, "length": length, "kind": "data"}))
        .collect();
    let list = serde_json::json!({"format": "mover-extents", "version": 1, "extents": entries});
    fs::write(path, list.to_string()).unwrap();
    path.to_owned()
}

/// The entry of a disk in `point.disks` of a result, or in `disks` of `show`.
#[track_caller]
pub fn disk_of<'a>(disks: &'a Value, id: &str) -> &'a Value {
    disks
        .as_array()
        .unwrap()
        .iter()
        .find(|disk| disk["id"] == id)
        .unwrap_or_else(|| panic!("no {id}: {disks}"))
}

/// Whether some output holds these bytes.
pub fn mentions(outcome: &Outcome, secret: &str) -> bool {
    outcome.stdout_text().contains(secret) || outcome.stderr_text().contains(secret)
}

/// Copies a folder.
pub fn copy_folder(from: &Path, to: &Path) {
    let status =
        std::process::Command::new("cp").args([OsStr::new("-a"), from.as_os_str(), to.as_os_str()]).status();
    assert!(status.unwrap().success(), "cp of {}", from.display());
}
