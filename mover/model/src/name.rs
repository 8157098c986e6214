//! Names of virtual machines, disks and restore points.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::Error;

/// Longest name in bytes: it has to fit a file name with room for what is put around it.
pub const NAME_MAX: usize = 128;

/// A name: `[A-Za-z0-9._-]+`, not starting with `-` or `.`, so that it can stand in a path and on a command line
/// and never leave its folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Name(String);

impl Name {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if text.is_empty()
            || text.len() > NAME_MAX
            || !text.bytes().all(allowed)
            || text.starts_with(['-', '.'])
        {
            return Err(Error::usage(format!("`{}` is no name", text.escape_debug())).hint(format!(
                "names have 1 to {NAME_MAX} letters, digits, dots, dashes and underscores, and begin with a letter, \
                 digit or underscore"
            )));
        }
        Ok(Name(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(|error: Error| serde::de::Error::custom(error.message()))
    }
}

/// Which restore point of a machine is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PointSelector {
    /// The newest one that is not damaged.
    Latest,
    /// The one of this id.
    Id(Name),
    /// The newest one that was not begun after this time: nanoseconds since 1970, UTC.
    At(i128),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_never_leave_their_folder() {
        for good in ["vm1", "a", "web-01.example_x", "_", "0"] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in
            ["", ".", "..", "../x", "a/b", "-x", ".x", "a b", "a\0b", "ä", "a@b", "a=b", &"x".repeat(129)]
        {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }
}
