//! What must hold for any bytes given to the parser of qcow2 heads. Shared by the seeded test and the fuzz target.

use std::cell::Cell;
use std::io::{Error, ErrorKind};

use mover_endpoints::Qcow2Header;

/// Most reads of a head: two for the head, one for the name, two for each extension.
const READS_MAX: usize = 3 + 2 * 64;

/// A version 3 image's first 512 bytes with a backing file of up to 256 bytes, and its format of up to 128.
pub fn image(name: &[u8], format: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    put(8, &256u64.to_be_bytes());
    put(16, &(name.len() as u32).to_be_bytes());
    put(24, &(1u64 << 30).to_be_bytes());
    put(100, &104u32.to_be_bytes());
    put(104, &0x6803_f857_u32.to_be_bytes());
    put(108, &3u32.to_be_bytes());
    put(120, &0xe279_2aca_u32.to_be_bytes());
    put(124, &(format.len() as u32).to_be_bytes());
    put(128, format);
    put(256, name);
    bytes
}

/// Reads a head, and checks all that is promised. Returns whether it is that of an image.
///
/// # Panics
/// If a promise is broken.
pub fn check(bytes: &[u8]) -> bool {
    let reads = Cell::new(0);
    let read = |offset: u64, buffer: &mut [u8]| {
        reads.set(reads.get() + 1);
        assert!(buffer.len() <= 4096, "a read of {} bytes", buffer.len());
        let from = usize::try_from(offset).unwrap();
        let part = bytes.get(from..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(part.ok_or(Error::from(ErrorKind::UnexpectedEof))?);
        Ok(())
    };
    let header = Qcow2Header::read(&read);
    assert!(reads.get() <= READS_MAX, "{} reads", reads.get());
    match header {
        Ok(Some(header)) => {
            assert!(bytes.starts_with(b"QFI\xfb") && (2..=3).contains(&header.version));
            if let Some(backing) = header.backing {
                assert!((1..=1023).contains(&backing.file.len()), "{backing:?}");
            }
            true
        }
        Ok(None) => false,
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof), "{error}");
            false
        }
    }
}
