//! Lower-case hex digits, in which JSON documents carry bytes.

use std::fmt::Write;

/// Bytes as hex digits.
pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string has no way to fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes that lower-case hex digits stand for, if they are exactly `N`.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if text.len() != N * 2 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_rejects_other_text() {
        let bytes: [u8; 32] = std::array::from_fn(|i| (i as u8).wrapping_mul(9));
        assert_eq!(decode(&encode(&bytes)), Some(bytes));
        for bad in ["", "0", "000", "0G", "AB", "é", "0000"] {
            assert_eq!(decode::<1>(bad), None, "{bad}");
        }
    }
}
