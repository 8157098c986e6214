//! The `mover` binary: arguments, rendering, events, signals and exit codes. The only crate that prints.
//!
//! A verb is one file with two names in it:
//!
//! ```text
//! #[derive(clap::Args)] pub struct Args { … }
//! pub fn run(args: Args, output: output::Options) -> u8    // the process exit code
//! ```
//!
//! Verbs that take their time (`copy`, `backup`, `restore`, `verify`, `prune`, `gc`) report by events: [`run::Run`] is
//! what happens around their jobs. The other verbs print one document with [`output::document`] (`--json`) or
//! [`output::text`], and end with [`output::fail`] when they fail. A verb that moves data flattens
//! [`engine_args::EngineArgs`] into its `Args`. Those that work on a repository are in [`repository`].
//!
//! SIGPIPE is ignored from the start (the standard library does so): a reader that vanishes shows as EPIPE.
#![deny(unsafe_code)]

mod bare;
mod bench;
mod copy;
#[cfg(test)]
mod docs_test;
mod doctor;
mod engine_args;
mod events;
mod measure;
mod output;
mod people;
mod repository;
mod roles;
mod run;
mod signals;
mod spec;
mod tune;
mod usage;
mod version;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::builder::Resettable;
use clap::{CommandFactory, Parser, Subcommand};

/// Moves disks and disk images at the speed of the device.
#[derive(Parser)]
#[command(name = "mover", version, arg_required_else_help = true)]
#[command(
    after_help = "Sizes are written 4K, 1M, 2GiB. Exit codes: 0 done, 2 usage, 5 refused; all of them \
                        are in docs/exit-codes.md."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

/// The verbs.
#[derive(Subcommand)]
#[allow(clippy::large_enum_variant)] // one value per process
enum Verb {
    /// Copy disks, images and streams
    Copy(With<copy::Args>),
    /// Make a repository for backups
    Init(With<repository::init::Args>),
    /// Back up the disks of a machine: a restore point
    Backup(With<repository::backup::Args>),
    /// Bring disks back from a restore point
    Restore(With<repository::restore::Args>),
    /// List machines, or the restore points of one
    List(With<repository::list::Args>),
    /// Show a restore point
    Show(With<repository::show::Args>),
    /// Show what changed between two restore points, as a list of extents
    Diff(With<repository::diff::Args>),
    /// Read every chunk of restore points and prove it whole
    Verify(With<repository::verify::Args>),
    /// Delete restore points by rules
    Prune(With<repository::prune::Args>),
    /// Give back the space that no restore point needs
    Gc(With<repository::gc::Args>),
    /// Add, remove and list what opens an encrypted repository
    Key(repository::key::Args),
    /// Rebuild or show this host's cache of repositories
    Catalog(repository::catalog::Args),
    /// Find the fastest block size, queue depth and number of workers for a path
    Tune(With<tune::Args>),
    /// Measure devices or files: IOPS, GB/s, latency, CPU per GB
    Bench(With<bench::Args>),
    /// Show what this host and these paths allow, and what would make them faster
    Doctor(With<doctor::Args>),
    /// Show version and features
    Version(With<version::Args>),
    /// Print a completion script for a shell
    Completions(Completions),
}

/// A verb's own arguments, and those that all verbs share.
struct With<A: clap::Args> {
    args: A,
    output: output::Options,
}

impl<A: clap::Args> clap::FromArgMatches for With<A> {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let (args, output) = (A::from_arg_matches(matches)?, output::Options::from_arg_matches(matches)?);
        Ok(With { args, output })
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        self.args.update_from_arg_matches(matches)?;
        self.output.update_from_arg_matches(matches)
    }
}

/// Put together only for the verb that is asked for: all of them together take a megabyte and some milliseconds.
impl<A: clap::Args> clap::Args for With<A> {
    fn augment_args(verb: clap::Command) -> clap::Command {
        verb.defer(|verb| {
            // The verb's own line stands in the list of verbs, and is not that of its arguments.
            let (about, long) = (verb.get_about().cloned(), verb.get_long_about().cloned());
            let verb = output::Options::augment_args(A::augment_args(verb));
            verb.about(Resettable::from(about)).long_about(Resettable::from(long))
        })
    }

    fn augment_args_for_update(verb: clap::Command) -> clap::Command {
        Self::augment_args(verb)
    }
}

#[derive(clap::Args)]
struct Completions {
    /// bash, elvish, fish, powershell or zsh
    #[arg(value_name = "SHELL")]
    shell: clap_complete::Shell,
}

fn main() -> ExitCode {
    let args = bare::fill(std::env::args_os());
    ExitCode::from(parse(&args).map_or_else(|code| code, |cli| dispatch(cli.verb)))
}

/// The command line, with what `--spec` adds; where it makes no sense, that is told, and the exit code comes back.
fn parse(args: &[OsString]) -> Result<Cli, u8> {
    let report = |args: &[OsString], error: &clap::Error| usage::report(error, args);
    let cli = Cli::try_parse_from(args).map_err(|error| report(args, &error))?;
    let spec = match &cli.verb {
        Verb::Backup(with) => with.args.spec(),
        Verb::Restore(with) => with.args.spec(),
        _ => None,
    };
    let Some(file) = spec else { return Ok(cli) };
    let mut command = Cli::command();
    command.build();
    let verb = command.find_subcommand(usage::verb(args)).unwrap_or(&command);
    let line = spec::expand(args, verb, file).map_err(|error| usage::reject(&error, args))?;
    Cli::try_parse_from(&line).map_err(|error| report(&line, &error))
}

fn dispatch(verb: Verb) -> u8 {
    match verb {
        Verb::Copy(with) => copy::run(with.args, with.output),
        Verb::Init(with) => repository::init::run(with.args, with.output),
        Verb::Backup(with) => repository::backup::run(with.args, with.output),
        Verb::Restore(with) => repository::restore::run(with.args, with.output),
        Verb::List(with) => repository::list::run(with.args, with.output),
        Verb::Show(with) => repository::show::run(with.args, with.output),
        Verb::Diff(with) => repository::diff::run(with.args, with.output),
        Verb::Verify(with) => repository::verify::run(with.args, with.output),
        Verb::Prune(with) => repository::prune::run(with.args, with.output),
        Verb::Gc(with) => repository::gc::run(with.args, with.output),
        Verb::Key(args) => repository::key::run(args),
        Verb::Catalog(args) => repository::catalog::run(args),
        Verb::Tune(with) => tune::run(with.args, with.output),
        Verb::Bench(with) => bench::run(with.args, with.output),
        Verb::Doctor(with) => doctor::run(with.args, with.output),
        Verb::Version(with) => version::run(with.args, with.output),
        Verb::Completions(completions) => {
            let mut script = Vec::new();
            clap_complete::generate(completions.shell, &mut Cli::command(), "mover", &mut script);
            output::bytes(&script)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Parses a `copy` command line.
    pub(crate) fn copy_args(args: &[&str]) -> Result<(copy::Args, output::Options), clap::Error> {
        let line = ["mover", "copy"].iter().chain(args).map(OsString::from);
        match Cli::try_parse_from(line)?.verb {
            Verb::Copy(with) => Ok((with.args, with.output)),
            _ => unreachable!(),
        }
    }

    #[test]
    fn clap_refuses_what_makes_no_sense() {
        for bad in [
            &["a", "b", "--resume"][..],
            &["a", "b", "--direct", "maybe"],
            &["a", "b", "--block-size", "1X"],
            &["a", "b", "--block-size", "8G"],
            &["a", "b", "--queue-depth", "70000"],
            &["a", "b", "--cpus", "3-1"],
            &["a", "b", "--numa", "here"],
            &["a", "b", "--backend", "aio"],
            &["a", "b", "--unknown"],
            &[],
        ] {
            assert!(copy_args(bad).is_err(), "{bad:?}");
        }
    }
}
