//! Locators: what a user writes to name an endpoint.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::error::{Error, ErrorKind};
use crate::units::parse_size;

/// The name of an endpoint, parsed. `endpoints::open` is the one door from here to an open endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Locator {
    /// A regular file or a block device.
    Path(PathBuf),
    /// `null:SIZE`: a source of SIZE zero bytes, or a sink that takes anything up to SIZE; `null:` is a sink
    /// without a bound.
    Null {
        /// Bytes; a source must have it.
        size: Option<u64>,
    },
    /// `-`: standard input as a source, standard output as a target; read and written in order.
    Stream,
}

/// Schemes that mean something else than a path, now or in a later version: a file of such a name is
/// reached as `./nbd:x`.
const RESERVED: [&str; 12] = [
    "nbd://",
    "nbds://",
    "nbd+unix://",
    "nbds+unix://",
    "s3://",
    "repo:",
    "track:",
    "reflink:",
    "qmp:",
    "libvirt:",
    "http://",
    "https://",
];

impl Locator {
    /// Reads a locator from a command-line argument.
    ///
    /// # Errors
    /// `Usage` for an empty name, a bad size, or a scheme that this version does not speak.
    pub fn parse(text: &OsStr) -> Result<Self, Error> {
        let bytes = text.as_bytes();
        if bytes.is_empty() {
            return Err(Error::usage("an endpoint's name is empty"));
        }
        if bytes == b"-" {
            return Ok(Locator::Stream);
        }
        if let Some(size) = bytes.strip_prefix(b"null:") {
            let size = std::str::from_utf8(size).map_err(|_| Error::usage("null:SIZE needs a size"))?;
            if size.is_empty() {
                return Ok(Locator::Null { size: None });
            }
            let size =
                parse_size(size).map_err(|e| Error::usage(format!("null:{}: {e}", size.escape_debug())))?;
            return Ok(Locator::Null { size: Some(size) });
        }
        for scheme in RESERVED {
            if bytes.len() >= scheme.len() && bytes[..scheme.len()].eq_ignore_ascii_case(scheme.as_bytes()) {
                let text = text.to_string_lossy();
                let shown = text.escape_debug();
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("this version has no `{scheme}` endpoints; a file of that name is ./{shown}"),
                ));
            }
        }
        Ok(Locator::Path(PathBuf::from(text)))
    }
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Locator::Path(path) => write!(f, "{}", path.display()),
            Locator::Null { size: Some(size) } => write!(f, "null:{size}"),
            Locator::Null { size: None } => f.write_str("null:"),
            Locator::Stream => f.write_str("-"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Locator, Error> {
        Locator::parse(OsStr::new(text))
    }

    #[test]
    fn names_of_endpoints() {
        assert_eq!(parse("disk.raw").unwrap(), Locator::Path("disk.raw".into()));
        assert_eq!(parse("-").unwrap(), Locator::Stream);
        assert_eq!(parse("./-").unwrap(), Locator::Path("./-".into()));
        assert_eq!(parse("null:1G").unwrap(), Locator::Null { size: Some(1 << 30) });
        assert_eq!(parse("null:").unwrap(), Locator::Null { size: None });
        assert_eq!(parse("./null:1G").unwrap(), Locator::Path("./null:1G".into()));
        assert_eq!(parse("a:b").unwrap(), Locator::Path("a:b".into()));
        for bad in ["", "null:x", "nbd://localhost", "NBD+UNIX:///x", "repo:/x"] {
            assert_eq!(parse(bad).unwrap_err().kind(), ErrorKind::Usage, "{bad}");
        }
    }
}
