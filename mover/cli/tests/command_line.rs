//! The binary from outside: exit codes of usage errors, where output goes, and readers that do not read.

use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

fn mover(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mover"));
    command.args(args).stdin(Stdio::null()).env_remove("NO_COLOR");
    command
}

fn output(args: &[&str]) -> Output {
    mover(args).output().unwrap()
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    std::str::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A pipe that is full to the last byte.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
    for size in [4096, 1] {
        while writer.write(&vec![b'x'; size]).is_ok() {}
    }
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).unwrap();
    (reader, writer)
}

const USAGE: [&[&str]; 12] = [
    &["copy"],
    &["copy", "a"],
    &["copy", "a", "b", "c"],
    &["copy", "a", "b", "--bogus"],
    &["copy", "a", "b", "--resume"],
    &["copy", "a", "b", "--block-size", "1X"],
    &["copy", "a", "b", "--block-size", "5000"],
    &["copy", "a", "b", "--direct", "maybe"],
    &["copy", "a", "s3://bucket/x"],
    &["copy", "a", "b", "--events", "fd:900"],
    &["copy", "a", "b", "--result", "/nonexistent/folder/result"],
    &["copy", "a", "b", "--journal", "b"],
];

#[test]
fn usage_errors_exit_2_and_say_what_to_do() {
    for args in USAGE {
        let out = output(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        let said = text(&out.stderr);
        assert!(said.starts_with("error: "), "{args:?}: {said}");
        assert!(said.contains("hint: ") || said.contains("--help"), "{args:?}: {said}");
        assert!(out.stdout.is_empty() && !said.contains('\x1b'), "{args:?}");
    }
    for args in [&[][..], &["frob"], &["completions", "tcsh"], &["version", "x"]] {
        assert_eq!(output(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn usage_errors_are_a_result_for_programs_too() {
    for args in USAGE {
        let mut args = args.to_vec();
        args.push("--json");
        let out = output(&args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        let lines = lines(&out.stdout);
        assert_eq!(lines.len(), 1, "{args:?}");
        let result = &lines[0];
        assert_eq!((&result["v"], &result["seq"], &result["type"]), (&1.into(), &0.into(), &"result".into()));
        assert_eq!((&result["exit_code"], &result["verb"]), (&2.into(), &"copy".into()));
        assert_eq!(result["error"]["kind"], "usage");
        assert!(!result["error"]["message"].as_str().unwrap().contains('\n'));
    }
    // Standard output is for data: the event goes to stderr, alone.
    let out = output(&["copy", "a", "-", "--bogus", "--json"]);
    assert!(out.stdout.is_empty());
    assert_eq!(lines(&out.stderr)[0]["type"], "result");
    let out = output(&["copy", "a", "-", "--json", "--workers", "0"]);
    assert!(out.stdout.is_empty());
    assert_eq!(lines(&out.stderr)[0]["exit_code"], 2);
}

#[test]
fn a_usage_error_never_touches_a_file_with_two_roles() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::write(&disk, "data").unwrap();
    let disk_name = disk.to_str().unwrap();
    for flag in ["--events", "--result", "--journal"] {
        for more in [&[][..], &["--bogus"]] {
            let mut args = vec!["copy", disk_name, "x", flag, disk_name];
            args.extend(more);
            assert_eq!(output(&args).status.code(), Some(2), "{args:?}");
            assert_eq!(std::fs::read(&disk).unwrap(), b"data", "{args:?}");
        }
    }
    let result = folder.path().join("result");
    output(&["copy", disk_name, "x", "y", "--result", result.to_str().unwrap()]);
    assert_eq!(lines(&std::fs::read(result).unwrap())[0]["exit_code"], 2);
}

#[test]
fn messages_never_mix_with_data_on_standard_output() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = mover(&["copy", "null:64M", "-"]);
    let mut child = command.stdout(writer.try_clone().unwrap()).stderr(writer).spawn().unwrap();
    drop(command);
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(2));
    assert!(said.contains("standard error goes to standard output"), "{said}");
    for to in ["/dev/stdout", "fd:1"] {
        let out = output(&["copy", "null:64M", "-", "--events", to]);
        assert_eq!((out.status.code(), out.stdout.len()), (Some(2), 0), "{to}");
    }
    let out = output(&["copy", "null:8M", "-", "--json"]);
    assert_eq!((out.status.code(), out.stdout.len()), (Some(0), 8 << 20), "{}", text(&out.stderr));
    assert_eq!(lines(&out.stderr).last().unwrap()["type"], "result");
}

#[test]
fn a_run_begins_with_start_and_ends_with_one_result() {
    let folder = tempfile::tempdir().unwrap();
    let name = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (events, result) = (name("events"), name("result"));
    let out = output(&["copy", "null:64M", "null:", "--json", "--events", &events, "--result", &result]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(out.stderr.is_empty(), "{}", text(&out.stderr));
    let stdout = lines(&out.stdout);
    assert_eq!((&stdout[0]["type"], &stdout[0]["verb"]), (&"start".into(), &"copy".into()));
    assert_eq!(stdout.iter().filter(|line| line["type"] == "result").count(), 1);
    let last = stdout.last().unwrap();
    assert_eq!((&last["type"], &last["status"]), (&"result".into(), &"done".into()));
    assert!(
        last["elapsed_seconds"].as_f64().unwrap() > 0.0 && last["peak_memory_bytes"].as_u64().unwrap() > 0
    );
    assert!(stdout.iter().all(|line| line["run"] == last["run"]));
    assert!(stdout.is_sorted_by_key(|line| line["seq"].as_u64()));
    assert_eq!(lines(&std::fs::read(events).unwrap()), stdout);
    assert_eq!(lines(&std::fs::read(result).unwrap()), std::slice::from_ref(last));
}

#[test]
fn people_get_their_lines_on_stderr_only() {
    let out = output(&["copy", "null:64M", "null:"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(out.stdout.is_empty());
    assert!(text(&out.stderr).contains("copied "), "{}", text(&out.stderr));
    let out = output(&["copy", "null:64M", "null:", "--dry-run"]);
    assert!(text(&out.stderr).ends_with("dry run: nothing was written\n"));
    assert!(text(&out.stdout).contains("\nsize       64 MiB"));
}

#[test]
fn a_reader_that_does_not_read_blocks_nothing() {
    let begin = Instant::now();
    let (reader, writer) = full_pipe();
    let status = mover(&["copy", "null:64M", "null:", "--json"]).stdout(writer).status().unwrap();
    assert_eq!(status.code(), Some(0));
    let (reader2, writer) = full_pipe();
    let status = mover(&["copy", "null:64M", "null:", "--events", "fd:2"]).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    drop((reader, reader2));
}

#[test]
fn a_reader_that_has_gone_changes_nothing() {
    for args in [
        &["copy", "null:64M", "null:", "--json"][..],
        &["copy", "null:64M", "null:", "--events", "fd:1"],
        &["copy", "null:64M", "null:", "--dry-run"],
        &["version"],
        &["completions", "bash"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (gone, stderr) = std::io::pipe().unwrap();
        drop(gone);
        let begin = Instant::now();
        let status = mover(args).stdout(writer).stderr(stderr).status().unwrap();
        assert_eq!(status.code(), Some(0), "{args:?}");
        assert!(begin.elapsed() < Duration::from_secs(10), "{args:?}");
    }
}

#[test]
fn documents() {
    let out = output(&["version", "--json"]);
    let version = &lines(&out.stdout)[0];
    assert_eq!((&version["name"], &version["event_version"]), (&"mover".into(), &1.into()));
    assert!(text(&output(&["version"]).stdout).starts_with("mover "));
    assert!(text(&output(&["completions", "bash"]).stdout).contains("_mover"));
    let help = output(&["copy", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    for flag in ["--block-size", "--journal", "--events", "Engine:", "Safety:"] {
        assert!(text(&help.stdout).contains(flag), "{flag}");
    }
    assert!(!text(&help.stdout).contains("--no-register"));
}

/// Starts a run that takes minutes and waits for its first event.
fn long_run(folder: &Path, more: &[&str]) -> (Child, BufReader<ChildStdout>) {
    let (source, target) = (folder.join("source"), folder.join("target"));
    std::fs::write(&source, vec![1; 64 << 20]).unwrap();
    let mut args = vec!["copy", source.to_str().unwrap(), target.to_str().unwrap(), "--json"];
    args.extend(["--rate", "1M", "--offload", "never"]);
    args.extend(more);
    let mut child = mover(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    // The first progress event, whole: data moves, so that there is something to interrupt.
    let mut line = String::new();
    while !line.contains("\"type\":\"progress\"") {
        line.clear();
        assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "the run ended");
    }
    (child, stdout)
}

fn term(child: &Child) {
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
}

#[test]
fn a_signal_ends_a_run_soon_and_a_journal_makes_the_code_7() {
    for (journal, code, kind) in [(false, 1, "stopped"), (true, 7, "interrupted")] {
        let folder = tempfile::tempdir().unwrap();
        let ledger = folder.path().join("journal");
        let more = if journal { vec!["--journal", ledger.to_str().unwrap()] } else { vec![] };
        let (mut child, mut stdout) = long_run(folder.path(), &more);
        let begin = Instant::now();
        term(&child);
        let mut rest = Vec::new();
        stdout.read_to_end(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert!(begin.elapsed() < Duration::from_secs(24), "{:?}", begin.elapsed());
        let last = lines(&rest).pop().unwrap();
        assert_eq!((&last["type"], &last["error"]["kind"]), (&"result".into(), &kind.into()));
    }
}

#[test]
fn a_second_signal_ends_a_run_that_is_stuck() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("target");
    let (silent, keep_open) = std::io::pipe().unwrap();
    let mut command = mover(&["copy", "-", target.to_str().unwrap(), "--json"]);
    let mut child = command.stdin(silent).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    while !text.contains("\"type\":\"phase\"") {
        assert_ne!(stdout.read_line(&mut text).unwrap(), 0, "the run ended: {text}");
    }
    let begin = Instant::now();
    term(&child);
    // The first one is told before the second comes, since two pending signals are one.
    std::thread::sleep(Duration::from_millis(300));
    term(&child);
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(begin.elapsed() < Duration::from_secs(12), "{:?}", begin.elapsed());
    let last = lines(text.as_bytes()).pop().unwrap();
    assert_eq!((&last["type"], &last["error"]["kind"]), (&"result".into(), &"stopped".into()), "{text}");
    drop(keep_open);
}
