//! `--spec FILE|-`: all arguments as one JSON document, for names that no shell line can carry.
//!
//! The document becomes the command line that says the same, so both are checked in one place: a field `run_key` is
//! the flag `--run-key`, `disks` are `--disk`, `vm` (and `point`) the name. A path may be an array of its bytes, where
//! it is not UTF-8.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use mover_model::{Error, Operation, Result};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

/// Longest document.
const SPEC_BYTES_MAX: u64 = 16 << 20;

/// The fields of a document in their order, each once.
struct Document(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Document;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of arguments")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
                let mut fields: Vec<(String, Value)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if fields.iter().any(|(other, _)| *other == name) {
                        return Err(serde::de::Error::custom(format_args!("`{name}` is there twice")));
                    }
                    fields.push((name, value));
                }
                Ok(Document(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// An entry of `disks`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Disk {
    id: String,
    /// Of a backup.
    #[serde(default)]
    source: Option<Text>,
    /// Of a restore.
    #[serde(default)]
    target: Option<Text>,
    #[serde(default)]
    common: Option<Common>,
    #[serde(default)]
    extents: Option<Text>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Common {
    Flag(bool),
    Id(String),
}

/// Text, or bytes that need not be UTF-8.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Utf8(String),
    Bytes(Vec<u8>),
}

impl Text {
    fn bytes(&self) -> &[u8] {
        match self {
            Text::Utf8(text) => text.as_bytes(),
            Text::Bytes(bytes) => bytes,
        }
    }
}

/// The command line that a document and the rest of the one that names it mean together.
///
/// `args` is the whole command line, `command` its verb as clap knows it, `file` what `--spec` names.
///
/// # Errors
/// `Usage` for a document that makes no sense or says what the command line says too; those of reading it.
pub fn expand(args: &[OsString], command: &clap::Command, file: &Path) -> Result<Vec<OsString>> {
    let label = if is_stdin(file) { "standard input".to_owned() } else { file.display().to_string() };
    let document = read(file).map_err(|error| error.at(&label))?;
    let rest = without_spec(args);
    let words = words(&document, &rest, command).map_err(|error| {
        let hint = error.record().hint;
        let error = error.at(&label);
        if hint.is_some() { error } else { error.hint("docs/cli.md tells the fields") }
    })?;
    if is_stdin(file) && words.flags.iter().any(|flag| reads_stdin(flag)) {
        return Err(
            Error::usage("the spec and a disk both come from standard input").hint("name a file with --spec")
        );
    }
    // In front of a `--`, behind which there are only names.
    let end = rest.iter().position(|arg| arg == "--").unwrap_or(rest.len());
    let mut line = rest[..end].to_vec();
    line.extend(words.flags);
    if words.name.is_some() || end < rest.len() {
        line.push("--".into());
        line.extend(words.name);
        line.extend(rest.iter().skip(end + 1).cloned());
    }
    Ok(line)
}

/// What a document says, as arguments.
#[derive(Default)]
struct Words {
    flags: Vec<OsString>,
    name: Option<OsString>,
}

fn words(document: &Document, rest: &[OsString], command: &clap::Command) -> Result<Words> {
    let mut words = Words::default();
    let restore = command.get_name() == "restore";
    let field = |name: &str| document.0.iter().find(|(other, _)| other == name).map(|(_, value)| value);
    for (name, value) in &document.0 {
        let flag = match name.as_str() {
            "vm" | "point" => continue,
            "disks" => "disk".to_owned(),
            "labels" => "label".to_owned(),
            "documents" => "document".to_owned(),
            "spec" | "help" | "disk" | "label" | "document" | "extents" => return Err(unknown(name)),
            other if other.contains('-') => return Err(unknown(name)),
            other => other.replace('_', "-"),
        };
        let known = command.get_arguments().find(|argument| argument.get_long() == Some(flag.as_str()));
        let known = known.ok_or_else(|| unknown(name))?;
        refuse_both(name, &flag, rest)?;
        match (name.as_str(), value) {
            (_, Value::Null) => {}
            ("disks", value) => disks(value, restore, rest, &mut words)?,
            ("labels" | "documents", Value::Object(map)) => {
                for (key, value) in map {
                    let value = text(name, value)?;
                    let word = [key.as_bytes(), b"=", value.as_bytes()].concat();
                    words.flags.push(flag_with(&flag, &OsString::from_vec(word)));
                }
            }
            (_, Value::Bool(said)) if !known.get_action().takes_values() => {
                if *said {
                    words.flags.push(format!("--{flag}").into());
                }
            }
            (_, Value::Bool(_)) => return Err(Error::usage(format!("`{name}` is no yes or no"))),
            (_, value) if known.get_action().takes_values() => {
                words.flags.push(flag_with(&flag, &text(name, value)?));
            }
            _ => return Err(Error::usage(format!("`{name}` is true or false"))),
        }
    }
    words.name = match (field("vm"), field("point")) {
        (Some(vm), None) => Some(text("vm", vm)?),
        (Some(vm), Some(point)) if restore => {
            let (vm, point) = (text("vm", vm)?, text("point", point)?);
            Some(OsString::from_vec([vm.as_bytes(), b"@", point.as_bytes()].concat()))
        }
        (_, Some(_)) if !restore => return Err(unknown("point")),
        (None, Some(_)) => return Err(Error::usage("`point` is there, and `vm` is not")),
        _ => None,
    };
    Ok(words)
}

fn disks(value: &Value, restore: bool, rest: &[OsString], words: &mut Words) -> Result<()> {
    let disks: Vec<Disk> =
        Vec::deserialize(value).map_err(|error| Error::usage(format!("`disks`: {error}")))?;
    for disk in disks {
        let bad = |what: &str| Error::usage(format!("disk `{}` {what}", disk.id.escape_debug()));
        let place = match (&disk.source, &disk.target) {
            (Some(source), None) if !restore => source,
            (None, Some(target)) if restore => target,
            _ if restore => return Err(bad("needs `target`, and has no `source`")),
            _ => return Err(bad("needs `source`, and has no `target`")),
        };
        // Behind the first `=` everything is the place, so an id must not bring one of its own.
        if disk.id.contains('=') {
            return Err(bad("has an id that is no name"));
        }
        let mut word = disk.id.as_bytes().to_vec();
        word.push(b'=');
        for &byte in place.bytes() {
            word.extend(std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 }));
        }
        match &disk.common {
            Some(_) if restore => return Err(bad("has `common`, which is for a backup")),
            Some(Common::Flag(true)) => word.extend(b",common"),
            Some(Common::Id(id)) if id.contains(',') => return Err(bad("has a `common` that is no name")),
            Some(Common::Id(id)) => word.extend([b",common=", id.as_bytes()].concat()),
            Some(Common::Flag(false)) | None => {}
        }
        words.flags.push(flag_with("disk", &checked("disks", word)?));
        match &disk.extents {
            Some(_) if restore => return Err(bad("has `extents`, which are for a backup")),
            Some(file) => {
                refuse_both("disks[].extents", "extents", rest)?;
                let word = [disk.id.as_bytes(), b"=", file.bytes()].concat();
                words.flags.push(flag_with("extents", &checked("extents", word)?));
            }
            None => {}
        }
    }
    Ok(())
}

/// A value as an argument.
fn text(name: &str, value: &Value) -> Result<OsString> {
    match value {
        Value::Number(number) => Ok(number.to_string().into()),
        value => {
            let text = Text::deserialize(value).map_err(|_| {
                Error::usage(format!("`{name}` is neither text nor a number nor an array of bytes"))
            })?;
            checked(name, text.bytes().to_vec())
        }
    }
}

fn checked(name: &str, bytes: Vec<u8>) -> Result<OsString> {
    if bytes.contains(&0) {
        return Err(Error::usage(format!("`{name}` holds a zero byte, which no name can")));
    }
    Ok(OsString::from_vec(bytes))
}

fn flag_with(flag: &str, value: &OsStr) -> OsString {
    OsString::from_vec([format!("--{flag}=").as_bytes(), value.as_bytes()].concat())
}

fn unknown(name: &str) -> Error {
    Error::usage(format!("`{}` is no field of a spec", name.escape_debug()))
}

/// Refuses what the document and the command line both say.
fn refuse_both(name: &str, flag: &str, rest: &[OsString]) -> Result<()> {
    let (alone, with_value) = (format!("--{flag}"), format!("--{flag}="));
    let said = rest
        .iter()
        .take_while(|arg| *arg != "--")
        .any(|arg| arg.as_bytes() == alone.as_bytes() || arg.as_bytes().starts_with(with_value.as_bytes()));
    if said {
        return Err(Error::usage(format!("`{name}` is in the spec, and --{flag} on the command line"))
            .hint("say it in one place"));
    }
    Ok(())
}

fn reads_stdin(flag: &OsStr) -> bool {
    let bytes = flag.as_bytes();
    bytes.starts_with(b"--disk=") && (bytes.ends_with(b"=-") || bytes.windows(3).any(|part| part == b"=-,"))
}

fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}

fn read(file: &Path) -> Result<Document> {
    let failed = |error: &io::Error| {
        Error::io(Operation::Open, "", error).hint("name the JSON document of the arguments, or - for stdin")
    };
    let mut bytes = Vec::new();
    let reader: Box<dyn Read> = if is_stdin(file) {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(file).map_err(|error| failed(&error))?)
    };
    reader.take(SPEC_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    if bytes.len() as u64 > SPEC_BYTES_MAX {
        return Err(
            Error::usage("the spec is longer than 16 MiB").hint("name the JSON document of the arguments")
        );
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::usage(format!("is no spec: {error}")).hint("docs/cli.md tells the fields"))
}

/// The command line without `--spec` and its value.
fn without_spec(args: &[OsString]) -> Vec<OsString> {
    let mut rest = Vec::with_capacity(args.len());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            rest.push(arg.clone());
            rest.extend(args.cloned());
            break;
        }
        if arg == "--spec" {
            args.next();
        } else if !arg.as_bytes().starts_with(b"--spec=") {
            rest.push(arg.clone());
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn expanded(verb: &str, line: &str, json: &str) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("spec.json");
        std::fs::write(&file, json).unwrap();
        let mut command = crate::Cli::command();
        command.build();
        let command = command.find_subcommand(verb).unwrap();
        let args: Vec<OsString> = ["mover", verb, "--spec", file.to_str().unwrap()]
            .into_iter()
            .chain(line.split_whitespace())
            .map(OsString::from)
            .collect();
        let line = expand(&args, command, &file)?;
        Ok(line.iter().skip(2).map(|arg| arg.to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn a_document_becomes_the_command_line_that_says_the_same() {
        let json = r#"{"vm":"web01","disks":[
            {"id":"vda","source":"a,b.raw","common":true,"extents":"x.json"},
            {"id":"vdb","source":"-dash","common":"win11"},{"id":"vdc","source":[47,255]}],
            "since":"web01@latest","run_key":"7","labels":{"a":"b=c"},"documents":{"domain.xml":"d.xml"},
            "strict":true,"dry_run":false,"workers":2,"block_size":"1M","on_read_error":"record"}"#;
        let line = expanded("backup", "--repo r --json", json).unwrap();
        let expected = [
            "--repo",
            "r",
            "--json",
            "--disk=vda=a,,b.raw,common",
            "--extents=vda=x.json",
            "--disk=vdb=-dash,common=win11",
            "--disk=vdc=/\u{fffd}",
            "--since=web01@latest",
            "--run-key=7",
            "--label=a=b=c",
            "--document=domain.xml=d.xml",
            "--strict",
            "--workers=2",
            "--block-size=1M",
            "--on-read-error=record",
            "--",
            "web01",
        ];
        assert_eq!(line, expected);
        let line = ["mover", "backup"].into_iter().map(str::to_owned).chain(line);
        assert!(<crate::Cli as clap::Parser>::try_parse_from(line).is_ok());
        let json = r#"{"vm":"web01","point":"2026-11-20T03:00:00Z","disks":[{"id":"vda","target":"-"}],"force":true}"#;
        assert_eq!(
            expanded("restore", "", json).unwrap(),
            ["--disk=vda=-", "--force", "--", "web01@2026-11-20T03:00:00Z"]
        );
        assert_eq!(expanded("restore", "-- web01", r#"{"into":"d"}"#).unwrap(), ["--into=d", "--", "web01"]);
    }

    #[test]
    fn documents_that_make_no_sense() {
        for (verb, line, json) in [
            ("backup", "", "[]"),
            ("backup", "", "{"),
            ("backup", "", r#"{"frob":1}"#),
            ("backup", "", r#"{"run-key":"x"}"#),
            ("backup", "", r#"{"spec":"x"}"#),
            ("backup", "", r#"{"strict":true,"strict":true}"#),
            ("backup", "", r#"{"strict":"yes"}"#),
            ("backup", "", r#"{"run_key":true}"#),
            ("backup", "", r#"{"run_key":{"a":1}}"#),
            ("backup", "", r#"{"run_key":"a\u0000b"}"#),
            ("backup", "", r#"{"point":"latest","vm":"a"}"#),
            ("backup", "", r#"{"disks":[{"id":"vda"}]}"#),
            ("backup", "", r#"{"disks":[{"id":"vda","source":"x","frob":1}]}"#),
            ("backup", "", r#"{"disks":[{"id":"vda","target":"x"}]}"#),
            ("backup", "", r#"{"disks":[{"id":"vda","source":"x","common":"a,b"}]}"#),
            ("backup", "", r#"{"disks":[{"id":"a=b","source":"x"}]}"#),
            ("restore", "", r#"{"disks":[{"id":"vda","target":"x","common":true}]}"#),
            ("restore", "", r#"{"point":"latest"}"#),
            ("backup", "--label a=b", r#"{"labels":{"c":"d"}}"#),
            ("backup", "--strict", r#"{"strict":true}"#),
            ("backup", "--disk=vda=x", r#"{"disks":[]}"#),
            ("backup", "--extents vda=x", r#"{"disks":[{"id":"vda","source":"x","extents":"y"}]}"#),
        ] {
            let error = expanded(verb, line, json).unwrap_err();
            assert_eq!(error.kind(), mover_model::ErrorKind::Usage, "{json}");
            assert!(error.record().hint.is_some(), "{json}");
        }
    }
}
