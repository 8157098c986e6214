//! Saying why a test cannot run here.
//!
//! A test that lacks root, a tool or a device prints `SKIP test: reason` and returns. With
//! `MOVER_TESTS_NO_SKIP=1` (set where everything is expected to be there) a skip is a failure.

use std::env;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::sys;

/// The variable that turns every skip into a failure.
pub const NO_SKIP_VARIABLE: &str = "MOVER_TESTS_NO_SKIP";

/// Why something cannot be set up on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a skip has to be reported: use need! or skip!"]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

impl Skip {
    /// A skip with its reason.
    pub fn because(reason: impl Into<String>) -> Skip {
        Skip(reason.into())
    }

    /// Prints `SKIP test: reason`, or panics where skips are not allowed.
    ///
    /// The line goes to the descriptor itself: the test harness captures what the printing macros write and
    /// shows it for failed tests only, and a skipped test counts as passed.
    pub fn report(&self) {
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("unnamed");
        assert!(!no_skip(), "{test} must not be skipped here ({NO_SKIP_VARIABLE} is set), but: {self}");
        // One write, so that lines of parallel tests do not mix. Nothing to do about a closed stderr.
        let _ = std::io::stderr().write_all(format!("SKIP {test}: {self}\n").as_bytes());
    }
}

fn no_skip() -> bool {
    env::var_os(NO_SKIP_VARIABLE).is_some_and(|value| !value.is_empty() && value != "0")
}

/// Unwraps a `Result<T, Skip>`, or reports the skip and returns from the test.
#[macro_export]
macro_rules! need {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(skip) => {
                $crate::Skip::report(&skip);
                return;
            }
        }
    };
}

/// Reports a skip with a formatted reason and returns from the test.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {{
        $crate::Skip::because(format!($($reason)+)).report();
        return;
    }};
}

/// Passes for root only.
pub fn require_root() -> Result<(), Skip> {
    if sys::is_root() { Ok(()) } else { Err(Skip::because("needs root")) }
}

/// Finds a program in `PATH` or in the system folders that an ordinary `PATH` leaves out.
pub fn require_tool(name: &str) -> Result<PathBuf, Skip> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| Skip::because(format!("needs the program {name}")))
}

/// Passes where a path (a device node, a file in /sys) exists.
pub fn require_path(path: impl AsRef<Path>) -> Result<(), Skip> {
    let path = path.as_ref();
    if path.exists() { Ok(()) } else { Err(Skip::because(format!("needs {}", path.display()))) }
}
