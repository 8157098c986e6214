//! The verbs of a repository from outside: usage errors, exit codes, documents, and a round trip.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A folder with a disk of data, zeros and a hole, and a state folder of its own.
struct Place {
    folder: tempfile::TempDir,
}

const MIB: usize = 1 << 20;

impl Place {
    fn new() -> Self {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        let mut disk: Vec<u8> =
            (0..3 * MIB as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        disk.resize(5 * MIB + 4096, 0);
        disk.extend(vec![7; MIB]);
        std::fs::write(place.path("vm.raw"), disk).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command in the folder; `line` is split at spaces.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mover"));
        command.args(line.split_whitespace()).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("MOVER_STATE", self.path("state")).env("MOVER_REPO", "repo");
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Runs a command that must succeed; what it printed.
    fn ok(&self, line: &str) -> String {
        let out = self.run(line);
        assert_eq!(out.status.code(), Some(0), "{line}: {}", text(&out.stderr));
        text(&out.stdout).to_owned()
    }

    /// Runs a command that must end with `code`; what it said on stderr.
    fn fails(&self, code: i32, line: &str) -> String {
        let out = self.run(line);
        let said = text(&out.stderr).to_owned();
        assert_eq!(out.status.code(), Some(code), "{line}: {said}");
        assert!(said.contains("error: "), "{line}: {said}");
        assert!(said.contains("hint: ") || said.contains("--help"), "{line}: {said}");
        said
    }

    fn document(&self, line: &str) -> Value {
        let printed = self.ok(line);
        let last = printed.lines().last().unwrap_or_else(|| panic!("{line} printed nothing"));
        serde_json::from_str(last).unwrap()
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn usage_errors_exit_2_with_a_next_step_and_touch_nothing() {
    let place = Place::new();
    for line in [
        "backup",
        "backup web01",
        "backup ../web01 --disk vda=vm.raw",
        "backup web01 --disk vm.raw",
        "backup web01 --disk ../vda=vm.raw",
        "backup web01 --disk vda=vm.raw,frob",
        "backup web01 --disk vda=vm.raw --disk vda=vm.raw",
        "backup web01 --disk vda=- --disk vdb=-",
        "backup web01 --disk vda=vm.raw --extents x.json",
        "backup web01 --disk vda=vm.raw --since web01@latest",
        "backup web01 --disk vda=vm.raw --extents vdb=x.json --since web01@latest",
        "backup web01 --disk vda=vm.raw --label frob",
        "backup web01 --disk vda=vm.raw --label a=1 --label a=2",
        "backup web01 --disk vda=vm.raw --document ../x=vm.raw",
        "backup web01 --disk vda=vm.raw --vm-uuid 12",
        "backup web01 --disk vda=vm.raw --events vm.raw",
        "backup web01 --disk vda=vm.raw --key-file a --passphrase-file b",
        "restore",
        "restore web01",
        "restore web01@../x --into d",
        "restore web01@2026-11-20 --into d",
        "restore web01 --disk vda=a,common",
        "restore web01 --disk vda=- --disk vdb=-",
        "restore web01 --into d --force --delta",
        "verify web01@",
        "verify --since yesterday",
        "verify --sample 0%",
        "diff web01 web01@latest",
        "diff web01@latest",
        "prune",
        "prune --keep-last 0",
        "prune ../x --keep-last 1",
        "gc --repack-below 200",
        "gc --wait soon",
        "init --chunk-size 3G",
        "init --compression gzip",
        "init a --repo b",
        "init --encrypt",
        "key",
        "key add --new-key-file a --new-passphrase-file b",
        "catalog",
        "list ../x",
        "show web01@a@b",
    ] {
        let out = place.run(line);
        assert_eq!(out.status.code(), Some(2), "{line}: {}", text(&out.stderr));
        let said = text(&out.stderr);
        assert!(
            said.contains("hint: ") || said.contains("--help") || said.contains("Usage:"),
            "{line}: {said}"
        );
        assert!(out.stdout.is_empty(), "{line}");
    }
    assert!(!place.path("repo").exists() && !place.path("d").exists());
    let mut none = place.command("list");
    let out = none.env_remove("MOVER_REPO").output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("MOVER_REPO"), "{}", text(&out.stderr));
}

#[test]
fn what_is_not_there_is_told() {
    let place = Place::new();
    for line in ["list", "show web01", "restore web01 --into d", "gc", "prune --keep-last 1", "key list"] {
        place.fails(10, line);
    }
    assert!(!place.path("repo").exists() && !place.path("d").exists());
    place.ok("init");
    place.fails(10, "list web01");
    place.fails(10, "restore web01 --into d");
    let said = place.fails(10, "backup web01 --disk vda=missing.raw");
    assert!(said.contains("missing.raw") && said.contains("--disk vda="), "{said}");
    let said = place.fails(10, "backup web01 --disk vda=vm.raw,common --disk vdb=missing.raw");
    assert!(said.contains("--disk vdb="), "{said}");
    place.fails(5, "init");
    assert!(text(&place.run("list").stdout).contains("no restore points"));
    // An error of a verb that prints a document is a result under --json.
    let out = place.run("show web01 --json");
    let result: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&result["type"], &result["verb"]), (&"result".into(), &"show".into()));
    assert_eq!((&result["exit_code"], &result["error"]["kind"]), (&10.into(), &"not_found".into()));
}

#[test]
fn a_disk_goes_in_and_comes_back() {
    let place = Place::new();
    let first = place.document("backup web01 --disk vda=vm.raw --label owner=x --json");
    let point = &first["point"];
    assert_eq!((&first["verb"], &point["committed"]), (&"backup".into(), &true.into()));
    assert_eq!(point["disks"][0]["method"], "full");
    let id = point["id"].as_str().unwrap().to_owned();

    let mut changed = std::fs::read(place.path("vm.raw")).unwrap();
    changed[MIB..MIB + 5000].fill(0xee);
    std::fs::write(place.path("vm.raw"), &changed).unwrap();
    let list =
        r#"{"format":"mover-extents","version":1,"extents":[{"start":1048576,"length":8192,"kind":"data"}]}"#;
    std::fs::write(place.path("changes.json"), list).unwrap();
    let second =
        place.document("backup web01 --disk vda=vm.raw --extents changes.json --since web01@latest --json");
    assert_eq!(second["point"]["disks"][0]["method"], "changed");
    assert_eq!(second["point"]["parent"].as_str(), Some(id.as_str()));
    assert!(second["moved"]["read_bytes"].as_u64().unwrap() <= 256 << 10, "{second}");

    let out = place.run("restore web01 --disk vda=-");
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(out.stdout == changed, "what came back differs");
    place.ok(&format!("restore web01@{id} --into old"));
    let old = std::fs::read(place.path("old/vda.raw")).unwrap();
    assert!(old.len() == changed.len() && old[MIB] != 0xee && old[..MIB] == changed[..MIB]);
    place.fails(5, "restore web01 --into old");
    place.ok("restore web01 --into old --delta");
    assert!(std::fs::read(place.path("old/vda.raw")).unwrap() == changed);

    let machines = place.document("list --json");
    assert_eq!(machines["machines"][0]["points"], 2);
    assert_eq!(place.document("list web01 --json")["points"].as_array().unwrap().len(), 2);
    assert_eq!(place.document(&format!("show web01@{id} --json"))["labels"]["owner"], "x");
    let page = place.ok("show web01");
    assert!(page.starts_with("web01@") && page.contains("disk vda"), "{page}");
    let diff: Value = serde_json::from_str(&place.ok(&format!("diff web01@{id} web01@latest"))).unwrap();
    let extents = diff["extents"].as_array().unwrap();
    assert!(!extents.is_empty() && extents[0]["start"].as_u64().unwrap() <= MIB as u64, "{diff}");

    let plan = place.ok("prune --keep-last 1 --dry-run");
    assert!(plan.contains("keep") && plan.contains("delete"), "{plan}");
    assert_eq!(place.document("list web01 --json")["points"].as_array().unwrap().len(), 2);
    let pruned = place.document("prune --keep-last 1 --json");
    assert_eq!(pruned["prune"]["points"].as_array().unwrap().len(), 2);
    assert_eq!(place.document("gc --json")["gc"]["dry_run"], false);
    let out = place.run("restore web01 --disk vda=-");
    assert!(out.status.success() && out.stdout == changed);
    place.fails(10, &format!("show web01@{id}"));
    assert!(place.ok("catalog status").contains("repo"));
    assert_eq!(place.document("catalog rebuild --json")["repositories"][0]["points"], 1);
}

#[test]
fn a_checkpoint_of_show_is_what_since_takes() {
    let place = Place::new();
    place.ok("backup web01 --disk vda=vm.raw");
    place.ok("backup db --disk vda=vm.raw");
    let list =
        r#"{"format":"mover-extents","version":1,"extents":[{"start":0,"length":4096,"kind":"data"}]}"#;
    std::fs::write(place.path("changes.json"), list).unwrap();
    let backup =
        |since: &str| format!("backup web01 --disk vda=vm.raw --extents changes.json --since {since}");
    let newest = || {
        let shown = place.document("show web01 --json");
        let token = shown["disks"][0]["checkpoint"].as_str().unwrap().to_owned();
        let point = shown["id"].as_str().unwrap().to_owned();
        assert_eq!(token, format!("web01@{point}"));
        (token, point)
    };
    let (token, point) = newest();
    for since in [0, 1, 2] {
        // A list counts from the newest point.
        let (token, point) = newest();
        let since = [token, format!("web01@{point}"), "web01@latest".to_owned()][since].clone();
        let result = place.document(&format!("{} --json", backup(&since)));
        let disk = &result["point"]["disks"][0];
        assert_eq!(
            (&disk["method"], &disk["read_bytes"]),
            (&"changed".into(), &(128 << 10).into()),
            "{since}"
        );
        let made = place.document("show web01 --json");
        assert!(made["disks"][0]["base"].is_string(), "{made}");
    }
    let said = place.fails(5, &backup(&token));
    assert!(said.contains("is newer"), "{said}");
    // Another machine's, one that there is not, none at all.
    let said = place.fails(5, &backup("db@latest"));
    assert!(said.contains("`db`") && said.contains("`web01`"), "{said}");
    let said = place.fails(10, &backup("web01@nowhere"));
    assert!(said.contains("nowhere") && said.contains(&point[..8]), "{said}");
    place.fails(10, &backup("web01@2001-01-01T00:00:00Z"));
    let said = place.fails(2, &backup("web01"));
    assert!(said.contains("web01@latest"), "{said}");
    let said = place.fails(2, "backup web01 --disk vda=vm.raw --extents changes.json");
    assert!(said.contains("--since"), "{said}");
    assert_eq!(place.document("list web01 --json")["points"].as_array().unwrap().len(), 4);
}

#[test]
fn a_prune_prints_its_plan_before_it_deletes() {
    let place = Place::new();
    for _ in 0..3 {
        place.ok("backup web01 --disk vda=vm.raw");
    }
    let out = place.run("prune --keep-last 1 --json");
    let lines: Vec<Value> =
        text(&out.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let plan = lines.iter().find(|line| line["type"] == "prune_plan").expect("a plan");
    let result = lines.last().unwrap();
    assert_eq!((plan["points"].as_array().unwrap().len(), &plan["dry_run"]), (3, &false.into()));
    assert_eq!(plan["points"], result["prune"]["points"]);
    // For people it is printed once.
    place.ok("backup web01 --disk vda=vm.raw");
    for line in ["prune --keep-last 1 --dry-run", "prune --keep-last 1"] {
        let printed = place.ok(line);
        assert_eq!(printed.matches("POINT").count(), 1, "{printed}");
        assert_eq!(printed.lines().count(), 3, "{printed}");
    }
    // Where there is no plan none is printed.
    let out = place.run("prune nobody --keep-last 1");
    assert!(out.stdout.is_empty() && out.status.code() == Some(10), "{}", text(&out.stdout));
}

#[test]
fn common_disks_name_their_machines_in_every_result() {
    let place = Place::new();
    let vms = |line: &str| {
        let result = place.document(&format!("{line} --json"));
        result["point"]["disks"][0]["common"]["vms"].clone()
    };
    let disk = "--disk base=vm.raw,common=golden";
    assert_eq!(vms(&format!("backup one {disk} --run-key a")), serde_json::json!(["one"]));
    assert_eq!(vms(&format!("backup two {disk}")), serde_json::json!(["one", "two"]));
    assert_eq!(vms(&format!("backup one {disk} --run-key a")), serde_json::json!(["one", "two"]), "repeated");
    assert_eq!(vms("restore one --into one"), serde_json::json!(["one", "two"]));
    assert_eq!(vms("restore one --into kept --keep-common"), serde_json::json!(["one", "two"]));
    std::thread::sleep(std::time::Duration::from_millis(3100));
    // Trusted by now: neither read nor, in a plan, stored.
    vms(&format!("backup three {disk}"));
    let plan = place.document(&format!("backup four {disk} --dry-run --json"));
    let told = &plan["point"]["disks"][0];
    assert_eq!(told["status"], "referenced", "{plan}");
    assert_eq!(told["common"]["vms"], serde_json::json!(["four", "one", "three", "two"]), "{plan}");
}

#[test]
fn verify_finds_what_was_changed_and_names_whom_it_touches() {
    let place = Place::new();
    place.ok("backup web01 --disk vda=vm.raw");
    assert_eq!(place.document("verify --json")["verify"]["damaged_chunks"], 0);
    let packs: Vec<PathBuf> = std::fs::read_dir(place.path("repo/packs"))
        .unwrap()
        .flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap())
        .map(|pack| pack.unwrap().path())
        .collect();
    let largest = packs.iter().max_by_key(|pack| std::fs::metadata(pack).unwrap().len()).unwrap();
    let mut bytes = std::fs::read(largest).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(largest, bytes).unwrap();
    let said = place.fails(6, "verify");
    assert!(said.contains("touched: web01@") && said.contains("disk vda"), "{said}");
    place.fails(6, "restore web01 --into d");
}

#[test]
fn secrets_open_and_never_show() {
    let place = Place::new();
    std::fs::write(place.path("passphrase"), "correct horse\n").unwrap();
    std::fs::write(place.path("wrong"), "battery").unwrap();
    std::fs::write(place.path("key"), [9; 32]).unwrap();
    place.ok("init --passphrase-file passphrase");
    let out = place.run("backup web01 --disk vda=vm.raw --passphrase-file passphrase --json");
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(!text(&out.stdout).contains("horse") && !text(&out.stderr).contains("horse"));
    for line in ["list", "list --passphrase-file wrong", "list --key-file key", "list --passphrase-file none"]
    {
        place.fails(11, line);
    }
    let mut command = place.command("list");
    let said = command.args(["--passphrase-command", "echo hunter2 >/dev/null; exit 1"]).output().unwrap();
    assert_eq!(said.status.code(), Some(11));
    assert!(!text(&said.stderr).contains("hunter2"), "{}", text(&said.stderr));
    let list = place.document("key list --json");
    let old = list["slots"][0]["id"].as_str().unwrap().to_owned();
    place.fails(5, &format!("key remove {old} --passphrase-file passphrase"));
    place.ok("key add --new-key-file key --label safe --passphrase-file passphrase");
    place.ok(&format!("key remove {old} --key-file key"));
    place.fails(11, "list --passphrase-file passphrase");
    assert!(place.ok("list --key-file key").contains("web01"));
}

#[test]
fn a_spec_says_what_a_command_line_says() {
    let place = Place::new();
    std::fs::rename(place.path("vm.raw"), place.path("a disk, new=1.raw")).unwrap();
    let with_spec = |verb: &str, spec: &str| {
        let mut command = place.command(&format!("{verb} --spec - --json"));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(spec.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let spec = r#"{"vm":"web01","disks":[{"id":"vda","source":"a disk, new=1.raw"}],"labels":{"a":"b"}}"#;
    let out = with_spec("backup", spec);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stdout));
    let spec = r#"{"vm":"web01","point":"latest","disks":[{"id":"vda","target":"back,.raw"}]}"#;
    let out = with_spec("restore", spec);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stdout));
    assert!(
        std::fs::read(place.path("back,.raw")).unwrap()
            == std::fs::read(place.path("a disk, new=1.raw")).unwrap()
    );
    for bad in ["", "{", "[]", r#"{"vm":"web01"}"#, r#"{"vm":"web01","frob":1}"#, r#"{"json":true}"#] {
        let out = with_spec("backup", bad);
        assert_eq!(out.status.code(), Some(2), "{bad}");
        let result: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!((&result["verb"], &result["error"]["kind"]), (&"backup".into(), &"usage".into()), "{bad}");
        assert!(result["error"]["hint"].is_string(), "{bad}");
    }
    place.fails(10, "backup --spec missing.json");
}
