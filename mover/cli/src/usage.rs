//! What clap found wrong with the command line: its message for people, and a `result` event for programs.

use std::ffi::{OsStr, OsString};

use clap::error::ErrorKind as ClapKind;
use mover_model::Error;

use crate::events::{Outputs, Reporter};
use crate::output;

/// Exit code of a command line that makes no sense.
const EXIT_USAGE: u8 = 2;

/// Prints help, version or what is wrong, and returns the exit code.
pub fn report(error: &clap::Error, args: &[OsString]) -> u8 {
    // A reader that has gone does not change what the command line was.
    let _ = error.print();
    match error.kind() {
        ClapKind::DisplayHelp | ClapKind::DisplayVersion => return 0,
        _ => {}
    }
    let outputs = outputs(args);
    if outputs.wanted() {
        let verb = verb(args);
        let usage = Error::usage(message(error)).hint(if verb.is_empty() {
            "see mover --help".to_owned()
        } else {
            format!("see mover {verb} --help")
        });
        if let Ok(reporter) = Reporter::open(outputs, None) {
            reporter.finish(output::failure(verb, &usage));
        }
    }
    EXIT_USAGE
}

/// clap's message without its label, its usage lines and its styles.
fn message(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    first.strip_prefix("error: ").unwrap_or(first).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn verb(args: &[OsString]) -> &str {
    const VERBS: [&str; 6] = ["copy", "tune", "bench", "doctor", "version", "completions"];
    let named = args.iter().skip(1).filter_map(|arg| arg.to_str()).find(|arg| !arg.starts_with('-'));
    named.filter(|name| VERBS.contains(name)).unwrap_or_default()
}

/// Where events were asked to go, as far as it can be recognised in a command line that did not parse.
fn outputs(args: &[OsString]) -> Outputs {
    let args = || args.iter().skip(1).map(OsString::as_os_str).take_while(|arg| *arg != "--");
    Outputs {
        json: args().any(|arg| arg == "--json"),
        stdout_is_data: args().any(|arg| arg == "-"),
        events: value(args(), "--events"),
        result: value(args(), "--result").map(Into::into),
    }
}

fn value<'a>(args: impl Iterator<Item = &'a OsStr>, flag: &str) -> Option<OsString> {
    let mut args = args.peekable();
    while let Some(arg) = args.next() {
        if arg == flag {
            return args.peek().map(|value| (*value).to_owned());
        }
        if let Some(value) = arg.to_str().and_then(|text| text.strip_prefix(flag)?.strip_prefix('=')) {
            return Some(value.into());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Vec<OsString> {
        ["mover"].into_iter().chain(line.split_whitespace()).map(OsString::from).collect()
    }

    #[test]
    fn outputs_are_recognised_in_lines_that_do_not_parse() {
        let found = outputs(&args("copy a - --bogus --json --events fd:3 --result=r.json"));
        assert!(found.json && found.stdout_is_data);
        assert_eq!(found.events.unwrap(), "fd:3");
        assert_eq!(found.result.unwrap(), std::path::Path::new("r.json"));
        let none = outputs(&args("copy a b -- --json"));
        assert!(!none.wanted());
        assert_eq!(verb(&args("--json copy a")), "copy");
        assert_eq!(verb(&args("frob a")), "");
    }
}
