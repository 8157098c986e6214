//! `mover doctor`: what this host and these paths allow, what will be used, and what it would take to get
//! the better thing. Looks only: nothing is written, and no zeroing or reflink is tried.

pub mod mounts;
pub mod path;
pub mod system;

use std::path::PathBuf;

use mover_model::error::ErrorRecord;
use serde::Serialize;

pub use path::PathReport;
pub use system::System;

/// The document of `mover doctor --json`. Version 1 only grows.
#[derive(Debug, Clone, Serialize)]
pub struct DoctorReport {
    /// `mover-doctor`.
    pub format: &'static str,
    /// 1.
    pub version: u32,
    /// The host.
    pub system: System,
    /// What would make the host better.
    pub advice: Vec<Advice>,
    /// One for each path that could be looked at.
    pub paths: Vec<PathReport>,
    /// One for each path that could not.
    pub errors: Vec<ErrorRecord>,
    /// The process exit code: 10 when a path could not be reached.
    pub exit_code: u8,
}

/// Something that could be better.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// `io_uring`, `direct`, `poll_queues`, …: as in events.
    pub about: String,
    /// What is used now.
    pub now: String,
    /// What could be.
    pub better: String,
    /// What it takes: a command where there is one.
    pub how: String,
}

impl Advice {
    pub(crate) fn new(about: &str, now: &str, better: &str, how: String) -> Self {
        Advice { about: about.into(), now: now.into(), better: better.into(), how }
    }
}

/// Looks at the host and at paths.
pub fn run(paths: &[PathBuf]) -> DoctorReport {
    let (system, _) = system::look();
    let mounts = mounts::mounts();
    let mut reports = Vec::new();
    let mut errors = Vec::new();
    let mut exit_code = 0;
    for path in paths {
        match path::look(path, &mounts, &system) {
            Ok(report) => reports.push(report),
            Err(error) => {
                exit_code = mover_model::error::most_severe(exit_code, error.exit_code());
                errors.push(error.record());
            }
        }
    }
    DoctorReport {
        format: "mover-doctor",
        version: 1,
        advice: system::advice(&system),
        system,
        paths: reports,
        errors,
        exit_code,
    }
}
