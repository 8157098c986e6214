//! Names of objects that are made once and never again: 128 random bits.

use std::fmt;
use std::str::FromStr;

use mover_model::{Error, ErrorKind, Result};

/// The name of a pack, an index segment, a session, a doom list or a note; 32 hex digits in a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ObjectName(pub [u8; 16]);

impl ObjectName {
    /// A new one, from the system's random source.
    ///
    /// # Errors
    /// `Internal` when the system has no randomness to give.
    pub fn random() -> Result<Self> {
        let mut name = [0; 16];
        getrandom::fill(&mut name)
            .map_err(|_| Error::new(ErrorKind::Internal, "the system gives no random bytes"))?;
        Ok(ObjectName(name))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Text that is not 32 lower-case hex digits.
#[derive(Debug, PartialEq, Eq)]
pub struct NotAnObjectName;

impl FromStr for ObjectName {
    type Err = NotAnObjectName;

    fn from_str(text: &str) -> Result<Self, NotAnObjectName> {
        let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 32 || !text.bytes().all(lower) {
            return Err(NotAnObjectName);
        }
        let number = u128::from_str_radix(text, 16).map_err(|_| NotAnObjectName)?;
        Ok(ObjectName(number.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_rejects_other_text() {
        let name = ObjectName::random().unwrap();
        assert_eq!(name.to_string().parse(), Ok(name));
        assert_ne!(name, ObjectName::random().unwrap());
        for bad in ["", "+0000000000000000000000000000000", &"A".repeat(32), &"0".repeat(33)] {
            assert_eq!(bad.parse::<ObjectName>(), Err(NotAnObjectName), "{bad}");
        }
    }
}
