//! Every event's schema is held by a file in `golden/events/`: names and types of all fields, nested ones too.
//!
//! Version 1 only grows. A field that is gone, or whose type is another, fails here, and so does one that was
//! always there and now can be absent: readers break by it. A new field fails too, but only until the file has it:
//!
//! ```text
//! MOVER_GOLDEN=update cargo test --package mover-tests --test events_golden
//! ```
//!
//! adds what is new and never takes anything out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use mover_tests::fault::Fault;
use mover_tests::faulty::FaultyFile;
use mover_tests::layout::{Content, Layout};
use mover_tests::outcome::Outcome;
use mover_tests::process::Run;
use mover_tests::scratch::ScratchDir;
use mover_tests::{need, skip};
use serde_json::{Map, Value, json};

const MIB: u64 = 1024 * 1024;
/// `update` adds new fields to the files.
const VARIABLE: &str = "MOVER_GOLDEN";

/// A field: the types it was seen with, and whether every event of the type had it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    types: BTreeSet<String>,
    always: bool,
}

/// Fields by path: `moved.read_bytes`, `pairs[].source`. A field is always there if each object that could hold
/// it does.
type Schema = BTreeMap<String, Field>;

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// All objects below a value, each with its path; the list of an event's own fields has the path "".
fn objects<'v>(path: &str, value: &'v Value, found: &mut Vec<(String, &'v Map<String, Value>)>) {
    match value {
        Value::Object(fields) => {
            found.push((path.to_owned(), fields));
            for (name, inner) in fields {
                objects(&join(path, name), inner, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| objects(&format!("{path}[]"), item, found)),
        _ => {}
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The schema that these events show.
fn schema(events: &[Value]) -> Schema {
    let mut found = Vec::new();
    events.iter().for_each(|event| objects("", event, &mut found));
    let mut holders: BTreeMap<String, usize> = BTreeMap::new();
    let mut seen: BTreeMap<String, (BTreeSet<String>, usize)> = BTreeMap::new();
    for (path, fields) in found {
        *holders.entry(path.clone()).or_default() += 1;
        for (name, value) in fields {
            let (types, count) = seen.entry(join(&path, name)).or_default();
            types.insert(type_of(value).to_owned());
            *count += 1;
        }
    }
    seen.into_iter()
        .map(|(path, (types, count))| {
            let holder = path.rfind('.').map_or("", |end| &path[..end]);
            (path.clone(), Field { types, always: holders[holder] == count })
        })
        .collect()
}

fn golden_path(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/events").join(format!("{kind}.json"))
}

fn read_golden(kind: &str) -> Schema {
    let Ok(text) = fs::read(golden_path(kind)) else { return Schema::new() };
    let value: BTreeMap<String, Value> = serde_json::from_slice(&text).expect("a golden file");
    let field = |value: &Value| Field {
        types: value["types"].as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned()).collect(),
        always: value["always"].as_bool().unwrap(),
    };
    value.iter().map(|(path, value)| (path.clone(), field(value))).collect()
}

fn write_golden(kind: &str, golden: &Schema) {
    let lines: Vec<_> = golden
        .iter()
        .map(|(path, field)| {
            format!("  {}: {}", json!(path), json!({"types": field.types, "always": field.always}))
        })
        .collect();
    fs::create_dir_all(golden_path(kind).parent().unwrap()).unwrap();
    fs::write(golden_path(kind), format!("{{\n{}\n}}\n", lines.join(",\n"))).unwrap();
}

/// Whether an object was seen in which the field could stand.
fn is_held(path: &str, seen: &Schema) -> bool {
    let Some(end) = path.rfind('.') else { return true };
    seen.keys().any(|other| other.starts_with(&path[..=end]))
}

/// What is wrong with what was seen, measured by the golden file. `complete`: the events show all that there is,
/// so a field that none of them has is gone.
fn judge(golden: &Schema, seen: &Schema, complete: bool) -> (Vec<String>, Vec<String>) {
    let (mut broken, mut new) = (Vec::new(), Vec::new());
    for (path, field) in golden {
        match seen.get(path) {
            None if complete || field.always && is_held(path, seen) => {
                broken.push(format!("`{path}` is gone"))
            }
            None => {}
            Some(now) if field.always && !now.always => {
                broken.push(format!("`{path}` was in every event and is not any more"));
            }
            Some(now) if complete && now.types.is_disjoint(&field.types) => {
                broken.push(format!("`{path}` was {:?} and is {:?}", field.types, now.types));
            }
            Some(_) => {}
        }
    }
    for (path, now) in seen {
        match golden.get(path) {
            None => new.push(format!("`{path}` ({:?})", now.types)),
            Some(field) => {
                for kind in now.types.difference(&field.types) {
                    // A value that may now be null breaks readers as much as another type does.
                    broken.push(format!("`{path}` was {:?} and is now {kind} too", field.types));
                }
            }
        }
    }
    (broken, new)
}

/// Tests run side by side, and two may update one file.
static UPDATES: Mutex<()> = Mutex::new(());

/// Compares all events of a type with their file.
fn hold(kind: &str, events: &[Value], complete: bool) {
    assert!(!events.is_empty(), "no event of type `{kind}` was seen");
    let _guard = UPDATES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let seen = schema(events);
    let mut golden = read_golden(kind);
    if std::env::var_os(VARIABLE).is_some_and(|value| value == "update") {
        for (path, field) in &seen {
            let known = golden.entry(path.clone()).or_insert_with(|| field.clone());
            known.types.extend(field.types.iter().cloned());
            known.always &= field.always;
        }
        for (path, field) in &mut golden {
            field.always &= seen.contains_key(path) || !is_held(path, &seen);
        }
        write_golden(kind, &golden);
        return;
    }
    let (broken, new) = judge(&golden, &seen, complete);
    assert!(broken.is_empty(), "events of type `{kind}` break their readers: {}", broken.join("; "));
    assert!(
        new.is_empty(),
        "events of type `{kind}` have new fields: {}. If that is meant, say so in docs/events.md and run this test \
         with {VARIABLE}=update",
        new.join("; ")
    );
}

/// What holds for all lines of a run.
fn envelope(outcome: &Outcome) -> Vec<Value> {
    let events = outcome.json_lines();
    for event in &events {
        assert_eq!(event["v"], 1, "{event}");
        assert_eq!(event["run"], events[0]["run"], "{event}");
        let time = event["time"].as_str().unwrap();
        // 2026-01-02T03:04:05.000000Z
        let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(shape, "0000-00-00T00:00:00.000000Z", "{event}");
    }
    assert!(events.is_sorted_by_key(|event| event["seq"].as_u64().unwrap()));
    outcome.result();
    events
}

fn copy(arguments: &[&str], folder: &ScratchDir) -> Run {
    Run::mover(["copy", "--json"]).arguments(arguments).folder(folder.path())
}

fn of_kind(events: &[Value], kind: &str) -> Vec<Value> {
    events.iter().filter(|event| event["type"] == kind).cloned().collect()
}

const KINDS: [&str; 8] = ["start", "plan", "choice", "degraded", "warning", "phase", "progress", "result"];

/// Waits until files' stamps are old enough to be trusted by the clock that they are judged by, which may be set
/// meanwhile: a common disk with younger ones is read again.
fn await_trusted_stamps(paths: &[PathBuf]) {
    use std::os::unix::fs::MetadataExt;
    let age_s = |path: &PathBuf| {
        let meta = fs::metadata(path).unwrap();
        let newest = meta.mtime().max(meta.ctime());
        std::time::UNIX_EPOCH.elapsed().map_or(0, |now| now.as_secs() as i64) - newest
    };
    let begin = Instant::now();
    while paths.iter().any(|path| age_s(path) < 4) {
        assert!(begin.elapsed() < Duration::from_secs(120), "the clock does not advance");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn events_of_runs_keep_to_their_schemas() {
    let scratch = ScratchDir::new();
    let pieces =
        [(2 * MIB, Content::Data), (MIB, Content::Zero), (MIB, Content::Hole), (5000, Content::Data)];
    Layout::of(1, &pieces).write(&scratch.file("disk")).unwrap();
    scratch.write("list", r#"[{"start":0,"length":65536,"data":true,"zero":false,"depth":0}]"#);
    let runs: [(Run, i32); 12] = [
        (copy(&["disk", "copy", "--offload", "never", "--verify"], &scratch), 0),
        (copy(&["disk", "auto"], &scratch), 0),
        (copy(&["disk", "forbidden"], &scratch).deny_io_uring(libc::EPERM), 0),
        (copy(&["disk", "buffered", "--direct", "off", "--journal", "journal", "--resume"], &scratch), 0),
        (copy(&["null:64M", "null:"], &scratch), 0),
        (copy(&["-", "null:"], &scratch).stdin(vec![1; 100_000]), 0),
        (copy(&["disk", "slow", "--rate", "2M", "--offload", "never", "--block-size", "64K"], &scratch), 0),
        (copy(&["disk", "copy", "--force", "--extents", "list"], &scratch), 0),
        (copy(&["disk", "copy"], &scratch), 5),
        (copy(&["nowhere", "x"], &scratch), 10),
        (copy(&["disk"], &scratch), 2),
        (copy(&["disk", "plan", "--dry-run"], &scratch), 0),
    ];
    let mut events = Vec::new();
    for (run, code) in runs {
        let outcome = run.run();
        outcome.assert_code(code);
        events.extend(envelope(&outcome));
    }
    // One that is stopped: a pair with an error of its own.
    let slow = ["disk", "stopped", "--rate", "256K", "--offload", "never", "--events", "seen"];
    let mut stopped = copy(&slow, &scratch).start();
    let begin = Instant::now();
    while !fs::read_to_string(scratch.file("seen")).is_ok_and(|seen| seen.contains("\"type\":\"phase\"")) {
        let ended = stopped.ended_within(Duration::from_millis(5));
        assert!(!ended && begin.elapsed() < Duration::from_secs(60), "no phase began (ended: {ended})");
    }
    stopped.signal(libc::SIGTERM);
    let outcome = stopped.wait();
    outcome.assert_code(1);
    events.extend(envelope(&outcome));

    for kind in KINDS {
        hold(kind, &of_kind(&events, kind), kind != "result" && kind != "degraded");
    }
    let known: BTreeSet<_> = KINDS.into_iter().chain(["bad_extent"]).collect();
    for event in &events {
        let kind = event["type"].as_str().unwrap();
        assert!(known.contains(kind), "a type of event without a golden file: {event}");
    }
}

/// Changes one byte of the largest pack; returns its path.
fn damage(repository: &Path) -> PathBuf {
    let folders = fs::read_dir(repository.join("packs")).unwrap();
    let packs = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
    let largest = packs.map(|pack| pack.unwrap().path()).max_by_key(|pack| fs::metadata(pack).unwrap().len());
    let largest = largest.expect("a pack");
    let mut bytes = fs::read(&largest).unwrap();
    bytes[5000] ^= 1;
    fs::write(&largest, bytes).unwrap();
    largest
}

#[test]
fn events_of_a_repository_keep_to_their_schemas() {
    let scratch = ScratchDir::new();
    let pieces = [(2 * MIB, Content::Data), (MIB, Content::Zero), (MIB, Content::Hole)];
    Layout::of(3, &pieces).write(&scratch.file("disk")).unwrap();
    Layout::of(4, &[(MIB, Content::Data)]).write(&scratch.file("base")).unwrap();
    let changes =
        r#"{"format":"mover-extents","version":1,"extents":[{"start":0,"length":65536,"kind":"data"}]}"#;
    scratch.write("changes", changes);
    await_trusted_stamps(&[scratch.file("base")]);
    let verb = |line: &str| {
        Run::mover(line.split(' '))
            .arguments(["--json", "--repo", "repo", "--state", "state"])
            .folder(scratch.path())
    };
    let disks = "--disk vda=disk --disk base=base,common=golden";
    let mut events = Vec::new();
    let mut ends = |line: &str, code: i32| {
        let outcome = verb(line).run();
        outcome.assert_code(code);
        let of_run = envelope(&outcome);
        events.extend(of_run.iter().cloned());
        of_run.last().cloned().unwrap()
    };
    let first = ends(&format!("backup one {disks} --run-key a"), 0);
    assert_eq!(first["point"]["committed"], true);
    assert_eq!(ends(&format!("backup one {disks} --run-key a"), 0)["point"]["repeated"], true);
    let second = ends(&format!("backup two {disks}"), 0);
    let common =
        second["point"]["disks"].as_array().unwrap().iter().find(|disk| disk["id"] == "base").unwrap();
    let both = (&common["status"], &common["common"]["id"]);
    assert_eq!(both, (&json!("referenced"), &json!("golden")), "{first}\n{second}");
    assert_eq!(common["common"]["vms"], json!(["one", "two"]));
    ends("backup one --disk vda=disk --extents vda=changes --since one@latest", 0);
    ends("backup one --disk vda=missing", 10);
    ends("restore two --into restored", 0);
    ends("restore two --into restored", 5);
    ends("restore two --into kept --keep-common", 0);
    ends("restore three --into x", 10);
    ends("prune one --keep-last 1 --dry-run", 0);
    let pruned = ends("prune one --keep-last 1", 0);
    assert!(pruned["prune"]["points"].is_array());
    assert!(ends("gc", 0)["gc"]["live_chunks"].as_u64().unwrap() > 0);
    assert_eq!(ends("verify", 0)["verify"]["damaged_chunks"], 0);
    let pack = damage(&scratch.file("repo"));
    let found = ends("verify", 6);
    fs::remove_file(pack).unwrap();
    assert!(!ends("verify", 6)["verify"]["damaged_objects"].as_array().unwrap().is_empty());
    assert!(!found["verify"]["touched"].as_array().unwrap().is_empty(), "{found}");
    for kind in KINDS {
        let of_kind = of_kind(&events, kind);
        if !of_kind.is_empty() {
            hold(kind, &of_kind, false);
        }
    }
    hold("prune_plan", &of_kind(&events, "prune_plan"), true);
    let known: BTreeSet<_> = KINDS.into_iter().chain(["bad_extent", "prune_plan"]).collect();
    for event in &events {
        let kind = event["type"].as_str().unwrap();
        assert!(known.contains(kind), "a type of event without a golden file: {event}");
    }
}

#[test]
fn bad_extents_keep_to_their_schema() {
    let faulty = need!(FaultyFile::memory(MIB));
    Layout::of(2, &[(MIB, Content::Data)]).write_to(faulty.backing(), false).unwrap();
    faulty.faults().add(Fault::errno(libc::EIO).on_reads().range(500_000..500_001));
    let scratch = ScratchDir::new();
    let run = Run::mover(["copy", "--json", "--on-read-error", "record"])
        .arguments([faulty.path(), scratch.file("x")]);
    let outcome = run.run();
    outcome.assert_code(3);
    let events = envelope(&outcome);
    hold("bad_extent", &of_kind(&events, "bad_extent"), true);
    hold("result", &of_kind(&events, "result"), false);
    let result = outcome.result();
    assert_eq!(result["status"], "done_with_bad_extents");
    assert_eq!(result["bad_extents"][0]["errno"], libc::EIO);
    // Where it ends the run instead, the error tells the same place.
    let outcome = Run::mover(["copy", "--json"]).arguments([faulty.path(), scratch.file("y")]).run();
    outcome.assert_code(1);
    envelope(&outcome);
    let result = outcome.result();
    hold("result", std::slice::from_ref(&result), false);
    for error in [&result["error"], &result["pairs"][0]["error"]] {
        assert_eq!((&error["kind"], &error["errno"]), (&json!("io"), &json!(libc::EIO)), "{outcome}");
        assert!(error["offset"].as_u64().is_some_and(|offset| offset <= 500_000), "{outcome}");
        assert_eq!(error["path"], faulty.path().to_string_lossy().as_ref());
    }
}

/// The files themselves hold what a suite was promised; a file made anew from fewer runs would not.
#[test]
fn the_fields_that_suites_rely_on_are_in_the_files() {
    if std::env::var_os(VARIABLE).is_some() {
        skip!("the files are being updated");
    }
    let result = read_golden("result");
    let contract = [
        ("status", "string"),
        ("exit_code", "integer"),
        ("verb", "string"),
        ("elapsed_seconds", "number"),
        ("cpu_seconds", "number"),
        ("peak_memory_bytes", "integer"),
        ("moved.read_bytes", "integer"),
        ("moved.written_bytes", "integer"),
        ("moved.zero_bytes", "integer"),
        ("moved.copied_bytes", "integer"),
        ("moved.offloaded_bytes", "integer"),
        ("moved.resumed_bytes", "integer"),
        ("moved.verified_bytes", "integer"),
        ("pairs[].source", "string"),
        ("pairs[].target", "string"),
        ("pairs[].status", "string"),
        ("pairs[].flushed", "boolean"),
        ("pairs[].verified", "boolean"),
        ("pairs[].error.kind", "string"),
        ("read_latency.p50_us", "integer"),
        ("read_latency.p99_us", "integer"),
        ("read_latency.p999_us", "integer"),
        ("write_latency.p50_us", "integer"),
        ("degraded[].about", "string"),
        ("degraded[].reason", "string"),
        ("bad_extents[].start", "integer"),
        ("bad_extents_count", "integer"),
        ("point.repository", "string"),
        ("point.vm", "string"),
        ("point.id", "string"),
        ("point.parent", "string"),
        ("point.committed", "boolean"),
        ("point.repeated", "boolean"),
        ("point.damaged", "boolean"),
        ("point.disks[].id", "string"),
        ("point.disks[].status", "string"),
        ("point.disks[].root", "string"),
        ("point.disks[].method", "string"),
        ("point.disks[].common.location", "string"),
        ("point.disks[].common.vms", "array"),
        ("point.stored.stored_bytes", "integer"),
        ("pairs[].disk", "string"),
        ("verify.damaged_objects[].key", "string"),
        ("verify.touched[].vm", "string"),
        ("verify.touched[].point", "string"),
        ("verify.touched[].disk", "string"),
        ("verify.touched[].extents", "array"),
        ("gc.freed_bytes", "integer"),
        ("gc.packs_waiting", "integer"),
        ("gc.waiting_for", "array"),
        ("prune.points[].keep", "boolean"),
        ("prune.points[].reasons", "array"),
        ("error.kind", "string"),
        ("error.retryable", "boolean"),
        ("error.disk", "string"),
        ("error.path", "string"),
        ("error.offset", "integer"),
        ("error.errno", "integer"),
        ("error.message", "string"),
        ("error.hint", "string"),
    ];
    for (path, kind) in contract {
        let field = result.get(path).unwrap_or_else(|| panic!("`{path}` is in no result"));
        assert!(field.types.contains(kind), "`{path}` is {:?}, not {kind}", field.types);
    }
}

#[test]
fn the_judge_lets_version_1_grow_and_nothing_else() {
    let events = |text: &str| schema(&serde_json::from_str::<Vec<Value>>(text).unwrap());
    let golden = events(r#"[{"a":1,"b":{"c":"x"},"d":[{"e":1.5}]},{"a":2,"b":null,"d":[],"f":true}]"#);
    assert_eq!(golden["f"], Field { types: BTreeSet::from(["boolean".into()]), always: false });
    assert!(golden["b.c"].always && golden["d[].e"].types.contains("number"));
    let judged = |text: &str| judge(&golden, &events(text), true);
    let same = r#"[{"a":7,"b":{"c":""},"d":[{"e":0.5}],"f":false},{"a":1,"b":null,"d":[]}]"#;
    assert_eq!(judged(same), (vec![], vec![]));
    for (text, broken, new) in [
        (r#"[{"b":{"c":""},"d":[{"e":0.5}],"f":true}]"#, "`a` is gone", ""),
        (r#"[{"a":"1","b":{"c":""},"d":[{"e":0.5}],"f":true}]"#, "`a` was", ""),
        (r#"[{"a":null,"b":{"c":""},"d":[{"e":0.5}],"f":true}]"#, "`a` was", ""),
        (r#"[{"a":1,"b":{"c":""},"d":[{"e":0.5}],"f":true},{"b":null,"d":[]}]"#, "in every event", ""),
        (r#"[{"a":1,"b":{"c":"","g":1},"d":[{"e":0.5}],"f":true}]"#, "", "`b.g`"),
    ] {
        let (is_broken, is_new) = judged(text);
        assert_eq!(is_broken.is_empty(), broken.is_empty(), "{is_broken:?}");
        assert_eq!(is_new.is_empty(), new.is_empty(), "{is_new:?}");
        assert!(
            is_broken.concat().contains(broken) && is_new.concat().contains(new),
            "{is_broken:?} {is_new:?}"
        );
    }
}
