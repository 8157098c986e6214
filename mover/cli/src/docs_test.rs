//! The pages in docs/ say what the code does.

use clap::CommandFactory;
use mover_model::ErrorKind;
use mover_model::event::Envelope;

const EVENTS: &str = include_str!("../../../docs/events.md");
const EXIT_CODES: &str = include_str!("../../../docs/exit-codes.md");
const CLI: &str = include_str!("../../../docs/cli.md");

#[test]
fn every_example_of_an_event_is_what_mover_writes() {
    let mut types = Vec::new();
    for line in EVENTS.lines().filter(|line| line.starts_with('{')) {
        let event: Envelope = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(serde_json::to_string(&event).unwrap(), line);
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        let name = value["type"].as_str().unwrap().to_owned();
        let section = EVENTS.split("\n## ").find(|part| part.starts_with(&format!("`{name}`"))).unwrap();
        for field in fields(&value) {
            let told = section.contains(&format!("`{field}`")) || EVENTS.contains(&format!("| `{field}` |"));
            assert!(told, "{name}.{field}");
        }
        types.push(name);
    }
    types.dedup();
    let all = [
        "start",
        "plan",
        "choice",
        "degraded",
        "warning",
        "phase",
        "progress",
        "bad_extent",
        "prune_plan",
        "result",
    ];
    assert_eq!(types, all);
}

fn fields(value: &serde_json::Value) -> Vec<String> {
    match value {
        serde_json::Value::Object(map) => {
            map.iter().flat_map(|(name, value)| [vec![name.clone()], fields(value)].concat()).collect()
        }
        serde_json::Value::Array(list) => list.iter().flat_map(fields).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn every_kind_has_its_code_in_the_table() {
    use ErrorKind::*;
    let kinds = [
        Usage,
        Unreachable,
        Full,
        Refused,
        WrongIdentity,
        Busy,
        Io,
        SourceShrank,
        Corruption,
        NotFound,
        Key,
        Unsupported,
        CommonChanged,
        Interrupted,
        Stopped,
        Downgrade,
        Internal,
    ];
    for kind in kinds {
        let name = serde_json::to_value(kind).unwrap();
        let retryable = if kind.retryable() { "yes" } else { "no" };
        let row = format!("| `{}` | {} | {retryable} |", name.as_str().unwrap(), kind.exit_code());
        assert!(EXIT_CODES.contains(&row), "{row}");
        let row =
            EXIT_CODES.lines().find(|line| line.starts_with(&format!("| {} |", kind.exit_code()))).unwrap();
        assert!(row.contains(&format!("`{}`", name.as_str().unwrap())), "{row}");
    }
    let order = EXIT_CODES.lines().find(|line| line.starts_with("6, ")).unwrap();
    let order: Vec<u8> = order.split(", ").map(|code| code.parse().unwrap()).collect();
    assert_eq!(order.len(), 12);
    for pair in order.windows(2) {
        assert_eq!(mover_model::error::most_severe(pair[1], pair[0]), pair[0]);
    }
}

#[test]
fn every_verb_and_flag_is_in_the_page() {
    let mut command = crate::Cli::command();
    command.build();
    let mut verbs: Vec<(String, clap::Command)> =
        command.get_subcommands().map(|verb| (verb.get_name().to_owned(), verb.clone())).collect();
    while let Some((name, verb)) = verbs.pop() {
        if verb.get_name() == "help" {
            continue;
        }
        let first = name.split(' ').next().unwrap();
        assert!(CLI.contains(&format!("mover {first}")), "{name}");
        for flag in verb.get_arguments().filter(|arg| !arg.is_hide_set()).filter_map(|arg| arg.get_long()) {
            let told = [format!("`--{flag}`"), format!("`--{flag} ")].iter().any(|text| CLI.contains(text));
            assert!(told || flag == "help", "{name} --{flag} is not in docs/cli.md");
        }
        verbs.extend(
            verb.get_subcommands().map(|inner| (format!("{name} {}", inner.get_name()), inner.clone())),
        );
    }
}
