//! The head of a qcow2 image, as far as it names other files (docs/interop/qcow2 of QEMU). Nothing is followed here:
//! a guest may write such a head into a raw disk of its own.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;

const MAGIC: u32 = 0x5146_49fb;
/// Bytes of a version 2 head; version 3 tells its own.
const HEAD_V2: u64 = 72;
/// Longest head that makes sense: the format has 112 bytes today.
const HEAD_MAX: u64 = 4096;
/// Longest name of a backing image.
const NAME_MAX: u32 = 1023;
/// The name has to stand in the first cluster, and no cluster is larger.
const CLUSTER_MAX: u64 = 2 << 20;
/// Header extensions that are looked at before giving up: QEMU writes five.
const EXTENSIONS_MAX: usize = 64;
const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
/// Incompatible feature bit 2: data in another file.
const EXTERNAL_DATA: u64 = 1 << 2;

/// What the head of a qcow2 image says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Header {
    /// 2 or 3.
    pub version: u32,
    /// Bytes of the disk that a guest sees.
    pub virtual_size: u64,
    /// The image below it.
    pub backing: Option<Backing>,
    /// Whether its data are in another file.
    pub external_data: bool,
}

/// The backing image of a qcow2 image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// The field, as it stands there: a path, from the image's folder where it is relative, or something of QEMU's own
    /// (`json:…`, `nbd:…`).
    pub file: OsString,
    /// Its format, where the image tells.
    pub format: Option<String>,
}

impl Qcow2Header {
    /// Of an open file; `None` when it is no qcow2 image.
    ///
    /// # Errors
    /// Of reading; `InvalidData` for a head that contradicts itself.
    pub fn of(file: &File) -> Result<Option<Self>> {
        Qcow2Header::read(&|offset, buffer| file.read_exact_at(buffer, offset))
    }

    /// Of bytes that `read` gives: it fills the buffer from an offset on, or answers `UnexpectedEof`.
    ///
    /// # Errors
    /// As for [`Qcow2Header::of`].
    pub fn read(read: &dyn Fn(u64, &mut [u8]) -> Result<()>) -> Result<Option<Self>> {
        let mut head = [0; HEAD_V2 as usize];
        match read(0, &mut head) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let (magic, version) = (be32(&head, 0), be32(&head, 4));
        if magic != MAGIC || !(2..=3).contains(&version) {
            return Ok(None);
        }
        let (mut length, mut features) = (HEAD_V2, 0);
        if version == 3 {
            let mut more = [0; 32];
            read(HEAD_V2, &mut more)?;
            features = be64(&more, 0);
            length = u64::from(be32(&more, 28));
            if !(104..=HEAD_MAX).contains(&length) || length % 8 != 0 {
                return Err(bad(format!("its head has {length} bytes")));
            }
        }
        let (offset, bytes) = (be64(&head, 8), be32(&head, 16));
        let backing = match offset {
            0 => None,
            _ if bytes == 0 || bytes > NAME_MAX => {
                return Err(bad(format!("its backing file's name has {bytes} bytes")));
            }
            _ if offset < length || offset > CLUSTER_MAX - u64::from(bytes) => {
                return Err(bad(format!("its backing file's name stands at offset {offset}")));
            }
            _ => {
                let mut name = vec![0; bytes as usize];
                read(offset, &mut name)?;
                if name.contains(&0) {
                    return Err(bad("its backing file's name has a zero byte".into()));
                }
                Some(Backing {
                    file: OsString::from_vec(name),
                    format: backing_format(read, length, offset)?,
                })
            }
        };
        let external_data = features & EXTERNAL_DATA != 0;
        Ok(Some(Qcow2Header { version, virtual_size: be64(&head, 24), backing, external_data }))
    }
}

/// The extension that tells the backing image's format, between the head and the name.
fn backing_format(
    read: &dyn Fn(u64, &mut [u8]) -> Result<()>,
    from: u64,
    end: u64,
) -> Result<Option<String>> {
    let mut at = from;
    for _ in 0..EXTENSIONS_MAX {
        if at + 8 > end {
            break;
        }
        let mut head = [0; 8];
        read(at, &mut head)?;
        let (kind, bytes) = (be32(&head, 0), u64::from(be32(&head, 4)));
        if kind == EXTENSION_END {
            break;
        }
        if bytes > end - at - 8 {
            return Err(bad(format!("an extension of its head at offset {at} has {bytes} bytes")));
        }
        if kind == EXTENSION_BACKING_FORMAT && bytes <= 64 {
            let mut text = vec![0; bytes as usize];
            read(at + 8, &mut text)?;
            return Ok(String::from_utf8(text).ok());
        }
        at += 8 + bytes.next_multiple_of(8);
    }
    Ok(None)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

fn bad(what: String) -> Error {
    Error::new(ErrorKind::InvalidData, format!("no sound qcow2 image: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Option<Qcow2Header>> {
        Qcow2Header::read(&|offset, buffer| {
            let from = usize::try_from(offset).unwrap();
            let part = bytes.get(from..).and_then(|rest| rest.get(..buffer.len()));
            buffer.copy_from_slice(part.ok_or(Error::from(ErrorKind::UnexpectedEof))?);
            Ok(())
        })
    }

    /// A version 3 image's first 512 bytes with a backing file and its format.
    fn image(name: &[u8], format: &[u8]) -> Vec<u8> {
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
        put(120, &EXTENSION_BACKING_FORMAT.to_be_bytes());
        put(124, &(format.len() as u32).to_be_bytes());
        put(128, format);
        put(256, &name[..name.len().min(256)]);
        bytes
    }

    #[test]
    fn names_the_backing_image_and_its_format() {
        let header = parse(&image(b"base.img", b"raw")).unwrap().unwrap();
        assert_eq!((header.version, header.virtual_size, header.external_data), (3, 1 << 30, false));
        assert_eq!(header.backing, Some(Backing { file: "base.img".into(), format: Some("raw".into()) }));
        let mut none = image(b"base.img", b"raw");
        none[8..16].fill(0);
        assert_eq!(parse(&none).unwrap().unwrap().backing, None);
        assert_eq!(parse(&[0; 4096]).unwrap(), None);
        assert_eq!(parse(b"QFI\xfb").unwrap(), None);
    }

    #[test]
    fn a_head_that_contradicts_itself_is_an_error() {
        let good = image(b"base.img", b"raw");
        let with = |at: usize, value: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + value.len()].copy_from_slice(value);
            parse(&bytes)
        };
        for (at, value) in [
            (16, 1024u32.to_be_bytes()),
            (16, 0u32.to_be_bytes()),
            (12, 8u32.to_be_bytes()),
            (8, u32::MAX.to_be_bytes()),
            (100, 0u32.to_be_bytes()),
            (100, 1_000_000u32.to_be_bytes()),
            (124, u32::MAX.to_be_bytes()),
            (256, *b"a\0bc"),
        ] {
            assert!(with(at, &value).is_err(), "{at} {value:?}");
        }
    }
}
