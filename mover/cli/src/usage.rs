//! What clap found wrong with the command line: its message for people, and a `result` event for programs.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::CommandFactory;
use clap::error::ErrorKind as ClapKind;
use mover_model::Error;
use mover_model::event::RunResult;

use crate::Cli;
use crate::events::{Outputs, Reporter};
use crate::output;
use crate::people::print_error;
use crate::roles::same_file;

/// Exit code of a command line that makes no sense.
const EXIT_USAGE: u8 = 2;

/// Prints help, version or what is wrong, and returns the exit code.
pub fn report(error: &clap::Error, args: &[OsString]) -> u8 {
    let help = matches!(error.kind(), ClapKind::DisplayHelp | ClapKind::DisplayVersion);
    let outputs = outputs(args);
    if help || !(outputs.json && outputs.stdout_is_data) {
        // A reader that has gone does not change what the command line was.
        let _ = error.print();
    }
    if help {
        return 0;
    }
    let verb = verb(args);
    let help =
        ["see mover", verb, "--help"].iter().filter(|word| !word.is_empty()).copied().collect::<Vec<_>>();
    tell(outputs, output::failure(verb, &Error::usage(message(error)).hint(help.join(" "))));
    EXIT_USAGE
}

/// Sends the `result` of a run that has not begun to every output that can be opened.
pub fn tell(outputs: Outputs, result: RunResult) {
    // Where one of the outputs is what is wrong, the others still tell it.
    let reporter = Reporter::open(outputs.clone(), None)
        .or_else(|_| Reporter::open(Outputs { events: None, ..outputs.clone() }, None))
        .or_else(|_| Reporter::open(Outputs { result: None, ..outputs.clone() }, None))
        .or_else(|_| Reporter::open(Outputs { events: None, result: None, ..outputs }, None));
    if let Ok(reporter) = reporter {
        reporter.finish(result);
    }
}

/// clap's message without its label, its usage lines and its styles.
fn message(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    first.strip_prefix("error: ").unwrap_or(first).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Says what is wrong with a command line that clap found nothing wrong with; returns the exit code.
pub fn reject(error: &Error, args: &[OsString]) -> u8 {
    let outputs = outputs(args);
    let result = output::failure(verb(args), error);
    if let (Some(error), false) = (&result.error, outputs.json && outputs.stdout_is_data) {
        print_error(error);
    }
    tell(outputs, result);
    error.exit_code()
}

/// The verb of a command line; empty where it names none.
pub fn verb(args: &[OsString]) -> &str {
    let command = Cli::command();
    let is_verb = |name: &str| command.get_subcommands().any(|verb| verb.get_name() == name);
    let named = args.iter().skip(1).filter_map(|arg| arg.to_str()).find(|arg| !arg.starts_with('-'));
    named.filter(|name| is_verb(name)).unwrap_or_default()
}

/// Where events were asked to go, as far as it can be recognised in a command line that did not parse.
fn outputs(args: &[OsString]) -> Outputs {
    let flags = || args.iter().skip(1).map(OsString::as_os_str).take_while(|arg| *arg != "--");
    // A backup's `-` is standard input, and so is that of `--spec`.
    let verb = verb(args);
    let is_data = |arg: &OsStr| match verb {
        "copy" => arg == "-",
        "restore" => arg.as_bytes().ends_with(b"=-") && !arg.as_bytes().starts_with(b"--spec="),
        _ => false,
    };
    Outputs {
        json: flags().any(|arg| arg == "--json"),
        stdout_is_data: flags().any(is_data),
        events: value(flags(), "--events").filter(|file| alone(file, args)).map(|file| file.name),
        result: value(flags(), "--result").filter(|file| alone(file, args)).map(|file| file.name.into()),
    }
}

/// What follows `--flag` or `--flag=`.
struct Value {
    name: OsString,
    /// How many arguments it fills.
    arguments: usize,
}

fn value<'a>(mut args: impl Iterator<Item = &'a OsStr>, flag: &str) -> Option<Value> {
    while let Some(arg) = args.next() {
        if arg == flag {
            return args.next().map(|value| Value { name: value.to_owned(), arguments: 1 });
        }
        if let Some(value) = arg.to_str().and_then(|text| text.strip_prefix(flag)?.strip_prefix('=')) {
            return Some(Value { name: value.into(), arguments: 0 });
        }
    }
    None
}

/// Whether no other argument names the same file, which may then be a disk.
fn alone(file: &Value, args: &[OsString]) -> bool {
    let same = |arg: &&OsString| **arg == file.name || same_file(arg.as_ref(), file.name.as_ref());
    args.iter().skip(1).filter(same).count() <= file.arguments
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
        for shared in ["copy a r --bogus --result r", "copy a ./r --result=r", "copy --result r --x -- r b"] {
            assert_eq!(outputs(&args(shared)).result, None, "{shared}");
        }
        assert!(outputs(&args("restore a --disk=vda=- --bogus")).stdout_is_data);
        assert!(!outputs(&args("backup a --disk vda=- --bogus")).stdout_is_data);
        let none = outputs(&args("copy a b -- --json"));
        assert!(!none.json);
        assert_eq!(verb(&args("--json copy a")), "copy");
        assert_eq!(verb(&args("frob a")), "");
    }
}
