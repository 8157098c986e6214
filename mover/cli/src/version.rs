//! `mover version`.

use std::fmt::Write;

use clap::CommandFactory;
use mover_model::event::EVENT_VERSION;
use mover_repository::config::FORMAT_VERSION;
use serde::Serialize;

use crate::{Cli, output};

/// Arguments of `mover version`.
#[derive(clap::Args)]
pub struct Args {}

/// What this build is and speaks.
#[derive(Serialize)]
struct Version {
    name: &'static str,
    version: &'static str,
    target: String,
    event_version: u32,
    verbs: Vec<String>,
    repository_version: u32,
    endpoints: &'static [&'static str],
    backends: &'static [&'static str],
    digests: &'static [&'static str],
}

/// Prints version and features.
pub fn run(_args: Args, output: output::Options) -> u8 {
    let version = Version {
        name: "mover",
        version: env!("CARGO_PKG_VERSION"),
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        event_version: EVENT_VERSION,
        verbs: Cli::command().get_subcommands().map(|verb| verb.get_name().to_owned()).collect(),
        repository_version: FORMAT_VERSION,
        endpoints: &["file", "block-device", "null", "stream"],
        backends: &["io_uring", "sync"],
        digests: &["xxh3-128"],
    };
    if output.json {
        return output::document(&version);
    }
    let mut text = format!("mover {} ({})\n", version.version, version.target);
    let mut line = |name: &str, list: &[&str]| {
        let _ = writeln!(text, "{name:<10} {}", list.join(", "));
    };
    line("endpoints", version.endpoints);
    line("backends", version.backends);
    line("digests", version.digests);
    line("events", &[&format!("version {EVENT_VERSION}")]);
    line("repository", &[&format!("version {FORMAT_VERSION}")]);
    output::text(&text)
}
