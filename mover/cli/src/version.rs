//! `mover version`.

use std::fmt::Write;

use mover_model::event::EVENT_VERSION;
use serde::Serialize;

use crate::output;

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
    verbs: &'static [&'static str],
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
        verbs: &["copy", "tune", "bench", "doctor", "version", "completions"],
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
    output::text(&text)
}
