//! What a user writes to name disks, restore points, labels and documents: `ID=LOCATOR[,option…]`, `NAME[@POINT]`,
//! `KEY=VALUE`, `NAME=FILE`.
//!
//! The first `=` splits, so a path may hold more of them. `,,` is a comma in a path. Names need not be UTF-8 where they
//! name files; everything else is text.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::locator::Locator;
use crate::name::{Name, PointSelector};

/// Longest key of a label, in bytes.
pub const LABEL_KEY_MAX: usize = 128;
/// Longest value of a label, in bytes.
pub const LABEL_VALUE_MAX: usize = 4096;

/// A disk of a backup: `ID=LOCATOR[,common][,common=ID]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskArg {
    /// The disk's id.
    pub id: Name,
    /// Where it is.
    pub locator: Locator,
    /// Whether it is common to several machines.
    pub common: CommonArg,
}

/// What the user says of a disk's being common to several machines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CommonArg {
    /// Nothing.
    #[default]
    No,
    /// `common`: known by the identity of its file.
    ByIdentity,
    /// `common=ID`: known by this name, which the user vouches for.
    Id(String),
}

/// A disk of a restore: `ID=TARGET`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetArg {
    /// The disk's id.
    pub id: Name,
    /// Where it goes.
    pub locator: Locator,
}

/// `ID=FILE`, or `FILE` alone where there is one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOfDisk {
    /// The disk's id, where it was said.
    pub id: Option<Name>,
    /// The file.
    pub file: PathBuf,
}

/// A restore point: `NAME[@POINT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointArg {
    /// The machine.
    pub vm: Name,
    /// The point; `None` where none was said.
    pub point: Option<PointSelector>,
}

impl DiskArg {
    /// Reads `ID=LOCATOR[,option…]`.
    ///
    /// # Errors
    /// `Usage`.
    pub fn parse(text: &OsStr) -> Result<Self> {
        let (id, rest) = id_and_rest(text, "ID=SOURCE")?;
        let mut fields = fields(rest).into_iter();
        let locator = Locator::parse(&fields.next().unwrap_or_default())?;
        let mut common = CommonArg::No;
        for option in fields {
            let said = match option.as_bytes() {
                b"common" => CommonArg::ByIdentity,
                bytes => match bytes.strip_prefix(b"common=") {
                    Some(name) => CommonArg::Id(common_id(OsStr::from_bytes(name))?),
                    None => {
                        return Err(no_option(
                            &option,
                            text,
                            "the options of a disk are common and common=ID",
                        ));
                    }
                },
            };
            if common != CommonArg::No {
                return Err(Error::usage(format!("{}: common is said twice", shown(text)))
                    .hint("say either common or common=ID, once"));
            }
            common = said;
        }
        Ok(DiskArg { id, locator, common })
    }
}

impl TargetArg {
    /// Reads `ID=TARGET`.
    ///
    /// # Errors
    /// `Usage`.
    pub fn parse(text: &OsStr) -> Result<Self> {
        let (id, rest) = id_and_rest(text, "ID=TARGET")?;
        let mut fields = fields(rest).into_iter();
        let locator = Locator::parse(&fields.next().unwrap_or_default())?;
        match fields.next() {
            Some(option) => Err(no_option(&option, text, "the target of a disk has no options")),
            None => Ok(TargetArg { id, locator }),
        }
    }
}

impl FileOfDisk {
    /// Reads `ID=FILE` or `FILE`: where what stands before the first `=` is no name, all of it is a file, so
    /// `./x=y` is one.
    ///
    /// # Errors
    /// `Usage` for an empty name.
    pub fn parse(text: &OsStr) -> Result<Self> {
        let named = split(text).and_then(|(id, file)| Some((id.to_str()?.parse::<Name>().ok()?, file)));
        let (id, file) = named.map_or((None, text), |(id, file)| (Some(id), file));
        if file.is_empty() {
            return Err(Error::usage(format!("`{}` names no file", shown(text))).hint("write ID=FILE"));
        }
        Ok(FileOfDisk { id, file: file.into() })
    }
}

impl PointArg {
    /// Reads `NAME[@POINT]`; POINT is an id, `latest` or a time (RFC 3339, any offset).
    ///
    /// # Errors
    /// `Usage`.
    pub fn parse(text: &str) -> Result<Self> {
        let (vm, point) = match text.split_once('@') {
            Some((vm, point)) => (vm, Some(point)),
            None => (text, None),
        };
        Ok(PointArg { vm: vm.parse()?, point: point.map(point_selector).transpose()? })
    }

    /// The point, which is the newest one where none was said.
    pub fn or_latest(self) -> (Name, PointSelector) {
        (self.vm, self.point.unwrap_or(PointSelector::Latest))
    }
}

/// Reads POINT: an id, `latest` or a time.
///
/// # Errors
/// `Usage`.
pub fn point_selector(text: &str) -> Result<PointSelector> {
    if text == "latest" {
        return Ok(PointSelector::Latest);
    }
    // No name holds a colon, and every time does. A bare date would be a name, but nobody means one.
    if text.contains(':') || is_date(text) {
        return time(text).map(PointSelector::At);
    }
    text.parse().map(PointSelector::Id).map_err(|_| {
        Error::usage(format!("`{}` is no restore point", text.escape_debug()))
            .hint("write NAME@ID, NAME@latest or NAME@TIME, such as vm1@2026-11-20T03:00:00Z")
    })
}

/// Reads a time of RFC 3339 with any offset: nanoseconds since 1970, UTC.
///
/// # Errors
/// `Usage`.
pub fn time(text: &str) -> Result<i128> {
    let parsed = text.parse::<jiff::Timestamp>();
    parsed.map(|time| time.as_nanosecond()).map_err(|_| {
        Error::usage(format!("`{}` is no time", text.escape_debug()))
            .hint("write date, time and offset, such as 2026-11-20T03:00:00Z or 2026-11-20T04:00:00+01:00")
    })
}

/// Reads `KEY=VALUE`.
///
/// # Errors
/// `Usage` for a key or value that is empty, too long, not UTF-8 or holds control characters.
pub fn label(text: &OsStr) -> Result<(String, String)> {
    let bad = |why: &str| {
        Error::usage(format!("--label {}: {why}", shown(text)))
            .hint("write --label KEY=VALUE, such as --label owner=finance")
    };
    let text = text.to_str().ok_or_else(|| bad("is not UTF-8"))?;
    let (key, value) = text.split_once('=').ok_or_else(|| bad("has no `=`"))?;
    check_label(key, value).map_err(bad)?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Whether a label can be kept; else why not.
///
/// # Errors
/// Why not, as the end of a sentence.
pub fn check_label(key: &str, value: &str) -> Result<(), &'static str> {
    match () {
        () if key.is_empty() => Err("its key is empty"),
        () if key.len() > LABEL_KEY_MAX => Err("its key is longer than 128 bytes"),
        () if value.len() > LABEL_VALUE_MAX => Err("its value is longer than 4096 bytes"),
        () if key.chars().chain(value.chars()).any(char::is_control) => Err("holds control characters"),
        () => Ok(()),
    }
}

/// Reads `NAME=FILE`.
///
/// # Errors
/// `Usage`.
pub fn document(text: &OsStr) -> Result<(Name, PathBuf)> {
    let (name, file) = id_and_rest(text, "NAME=FILE")?;
    if file.is_empty() {
        return Err(Error::usage(format!("`{}` names no file", shown(text))).hint("write NAME=FILE"));
    }
    Ok((name, file.into()))
}

/// Reads the ID of `common=ID`: text that stands on a line.
///
/// # Errors
/// `Usage`.
pub fn common_id(text: &OsStr) -> Result<String> {
    let bad = |why: &str| {
        Error::usage(format!("common={}: {why}", shown(text)))
            .hint("give the common disk a name of up to 128 letters, digits, dots, dashes and underscores")
    };
    let id = text.to_str().ok_or_else(|| bad("is not UTF-8"))?;
    id.parse::<Name>().map_err(|_| bad("is no name"))?;
    Ok(id.to_owned())
}

fn id_and_rest<'a>(text: &'a OsStr, form: &str) -> Result<(Name, &'a OsStr)> {
    let (id, rest) = split(text).ok_or_else(|| {
        Error::usage(format!("`{}` has no `=`", shown(text)))
            .hint(format!("write {form}, such as vda=disk.raw"))
    })?;
    Ok((id.to_string_lossy().parse()?, rest))
}

/// What stands before and behind the first `=`.
fn split(text: &OsStr) -> Option<(&OsStr, &OsStr)> {
    let bytes = text.as_bytes();
    let at = bytes.iter().position(|&byte| byte == b'=')?;
    Some((OsStr::from_bytes(&bytes[..at]), OsStr::from_bytes(&bytes[at + 1..])))
}

/// Splits at commas; two of them are one in the text.
fn fields(text: &OsStr) -> Vec<OsString> {
    let mut fields = vec![Vec::new()];
    let mut bytes = text.as_bytes().iter().peekable();
    while let Some(&byte) = bytes.next() {
        match (byte, fields.last_mut()) {
            (b',', _) if bytes.peek() != Some(&&b',') => fields.push(Vec::new()),
            (byte, Some(field)) => {
                field.push(byte);
                if byte == b',' {
                    bytes.next();
                }
            }
            (_, None) => {}
        }
    }
    fields.into_iter().map(OsString::from_vec).collect()
}

fn no_option(option: &OsStr, text: &OsStr, known: &str) -> Error {
    Error::usage(format!("{}: `{}` is no option", shown(text), shown(option)))
        .hint(format!("{known}; a comma in a path is written `,,`"))
}

/// As it was written, but for control characters: nothing of an argument steers a terminal.
fn shown(text: &OsStr) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.to_string_lossy().chars() {
        match char.is_control() {
            true => shown.extend(char.escape_debug()),
            false => shown.push(char),
        }
    }
    shown
}

fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 10
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            4 | 7 => *byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn disk(text: &str) -> Result<DiskArg> {
        DiskArg::parse(OsStr::new(text))
    }

    fn path(text: &str) -> Locator {
        Locator::Path(text.into())
    }

    #[test]
    fn disks() {
        let plain = disk("vda=disk.raw").unwrap();
        assert_eq!(
            (plain.id.as_str(), &plain.locator, &plain.common),
            ("vda", &path("disk.raw"), &CommonArg::No)
        );
        assert_eq!(disk("vda=a=b").unwrap().locator, path("a=b"));
        assert_eq!(disk("vda=./-").unwrap().locator, path("./-"));
        assert_eq!(disk("vda=-").unwrap().locator, Locator::Stream);
        assert_eq!(disk("vda=null:1M").unwrap().locator, Locator::Null { size: Some(1 << 20) });
        assert_eq!(disk("vda=b.img,common").unwrap().common, CommonArg::ByIdentity);
        assert_eq!(disk("vda=/dev/x,common=win11").unwrap().common, CommonArg::Id("win11".into()));
    }

    #[test]
    fn commas_are_doubled_in_paths_only() {
        assert_eq!(disk("v=a,,b").unwrap().locator, path("a,b"));
        assert_eq!(disk("v=,,").unwrap().locator, path(","));
        let arg = disk("v=a,,,common").unwrap();
        assert_eq!((arg.locator, arg.common), (path("a,"), CommonArg::ByIdentity));
        let odd = OsString::from_vec(b"v=disk-\xff,,x.raw,common".to_vec());
        let arg = DiskArg::parse(&odd).unwrap();
        assert_eq!(arg.locator, Locator::Path(OsString::from_vec(b"disk-\xff,x.raw".to_vec()).into()));
    }

    #[test]
    fn what_is_no_disk() {
        for bad in [
            "",
            "vda",
            "=x",
            "vda=",
            "../x=y",
            ".a=y",
            "-a=y",
            "a b=y",
            "vda=x,",
            "vda=x,ro",
            "vda=x,common=",
            "vda=x,common=../y",
            "vda=x,common,common=y",
            "vda=x, common",
            "vda=nbd://h/x",
        ] {
            let error = disk(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{bad}");
        }
        assert!(disk("vda=a,b").unwrap_err().record().hint.unwrap().contains("`,,`"));
        let target = |text: &str| TargetArg::parse(OsStr::new(text));
        assert_eq!(target("vda=a,,b").unwrap().locator, path("a,b"));
        assert!(target("vda=a,common").is_err() && target("vda").is_err());
    }

    #[test]
    fn files_of_disks() {
        let parse = |text: &str| FileOfDisk::parse(OsStr::new(text));
        let file = |id: Option<&str>, file: &str| FileOfDisk {
            id: id.map(|id| id.parse().unwrap()),
            file: file.into(),
        };
        assert_eq!(parse("vda=x.json").unwrap(), file(Some("vda"), "x.json"));
        assert_eq!(parse("x.json").unwrap(), file(None, "x.json"));
        assert_eq!(parse("./a=b").unwrap(), file(None, "./a=b"));
        assert_eq!(parse("vda=a=b,c").unwrap(), file(Some("vda"), "a=b,c"));
        assert!(parse("").is_err() && parse("vda=").is_err());
    }

    #[test]
    fn points() {
        let parse = |text: &str| PointArg::parse(text).unwrap().or_latest();
        let vm = || "vm1".parse::<Name>().unwrap();
        assert_eq!(parse("vm1"), (vm(), PointSelector::Latest));
        assert_eq!(PointArg::parse("vm1").unwrap().point, None);
        assert_eq!(parse("vm1@latest"), (vm(), PointSelector::Latest));
        let id = "20261120T193000Z-01ab23cd";
        assert_eq!(parse(&format!("vm1@{id}")), (vm(), PointSelector::Id(id.parse().unwrap())));
        let hour = 3_600_000_000_000i128;
        for (text, at) in [
            ("1970-01-01T01:00:00Z", hour),
            ("1970-01-01T01:00:00+01:00", 0),
            ("1970-01-01T00:00:00.5-01:00", hour + 500_000_000),
        ] {
            assert_eq!(parse(&format!("vm1@{text}")), (vm(), PointSelector::At(at)), "{text}");
        }
        for bad in [
            "",
            "@latest",
            "vm1@",
            "../x",
            "vm1@../x",
            "vm1@a@b",
            "vm1@2026-11-20",
            "vm1@2026-11-20T03:00:00",
            "vm1@03:00",
            "vm1@2026-13-20T03:00:00Z",
        ] {
            let error = PointArg::parse(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{bad}");
            assert!(error.record().hint.is_some(), "{bad}");
        }
    }

    #[test]
    fn labels_and_documents() {
        assert_eq!(label(OsStr::new("a=b=c")).unwrap(), ("a".into(), "b=c".into()));
        assert_eq!(label(OsStr::new("a=")).unwrap(), ("a".into(), String::new()));
        for bad in
            ["", "a", "=b", "a=\n", &format!("{}=x", "k".repeat(129)), &format!("k={}", "v".repeat(4097))]
        {
            assert!(label(OsStr::new(bad)).is_err(), "{bad}");
        }
        let (name, file) = document(OsStr::new("domain.xml=/a/b=c,d")).unwrap();
        assert_eq!((name.as_str(), file), ("domain.xml", PathBuf::from("/a/b=c,d")));
        for bad in ["", "a", "a=", "../a=b", "=b"] {
            assert!(document(OsStr::new(bad)).is_err(), "{bad}");
        }
    }
}
