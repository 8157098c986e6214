//! The bound on what a JSON reader may keep.

use std::io::{self, Read};

/// Longest string or number of a list, in bytes of JSON text. The longest one that means something is the
/// token of a checkpoint, far below this; what is longer is no list of extents.
pub(super) const TOKEN_BYTES_MAX: usize = 4 << 10;
/// Deepest nesting of a list. Known fields need three; the rest is for unknown fields, which are skipped.
const DEPTH_MAX: usize = 32;

/// Passes bytes on while they can be part of a list: neither nested too deep nor with an endless token. Both
/// make a JSON reader keep what it has seen, before any visitor is asked.
pub(super) struct Guard<R> {
    inner: R,
    /// Bytes passed.
    position: u64,
    depth: usize,
    /// Bytes of the string, number or word that the position is in.
    token: usize,
    in_string: bool,
    escaped: bool,
    broken: Option<&'static str>,
}

impl<R: Read> Guard<R> {
    pub(super) fn new(inner: R) -> Self {
        Guard { inner, position: 0, depth: 0, token: 0, in_string: false, escaped: false, broken: None }
    }

    /// Follows one byte; an error is what is wrong with it.
    fn follow(&mut self, byte: u8) -> Result<(), &'static str> {
        self.token += 1;
        if self.in_string {
            if self.escaped {
                self.escaped = false;
            } else if byte == b'\\' {
                self.escaped = true;
            } else if byte == b'"' {
                self.in_string = false;
                self.token = 0;
            }
        } else {
            match byte {
                b'"' => {
                    self.in_string = true;
                    self.token = 1;
                }
                b'[' | b'{' => {
                    self.token = 0;
                    self.depth += 1;
                }
                b']' | b'}' => {
                    self.token = 0;
                    self.depth = self.depth.saturating_sub(1);
                }
                b' ' | b'\t' | b'\r' | b'\n' | b',' | b':' => self.token = 0,
                _ => {}
            }
        }
        if self.depth > DEPTH_MAX {
            return Err("nested too deep");
        }
        if self.token > TOKEN_BYTES_MAX {
            return Err("a string or number is too long");
        }
        Ok(())
    }
}

impl<R: Read> Read for Guard<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let broken = |what, position| {
            let text = format!("no list of extents: {what} at byte {position}");
            Err(io::Error::new(io::ErrorKind::InvalidData, text))
        };
        if let Some(what) = self.broken {
            return broken(what, self.position);
        }
        let count = self.inner.read(buffer)?;
        for (index, &byte) in buffer.iter().take(count).enumerate() {
            if let Err(what) = self.follow(byte) {
                // What came before goes on, so that an error in it is found first.
                self.broken = Some(what);
                return if index == 0 { broken(what, self.position) } else { Ok(index) };
            }
            self.position += 1;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_counts_only_what_a_reader_would_keep() {
        let follows = |text: &str| {
            let mut guard = Guard::new(io::empty());
            text.bytes().try_for_each(|byte| guard.follow(byte)).map(|()| (guard.depth, guard.in_string))
        };
        assert_eq!(follows(r#"{"a\"]]":[1,"[[["]"#), Ok((1, false)));
        assert_eq!(follows(&"[".repeat(DEPTH_MAX)), Ok((DEPTH_MAX, false)));
        assert_eq!(follows(&"[".repeat(DEPTH_MAX + 1)), Err("nested too deep"));
        assert_eq!(follows(&" ".repeat(2 * TOKEN_BYTES_MAX)), Ok((0, false)));
        assert_eq!(follows(&"1,".repeat(2 * TOKEN_BYTES_MAX)), Ok((0, false)));
        for long in ["\"", "1", "\"\\\\"] {
            let text = long.to_owned() + &"1".repeat(TOKEN_BYTES_MAX);
            assert_eq!(follows(&text), Err("a string or number is too long"), "{long}");
        }
    }
}
