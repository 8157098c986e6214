//! Lists of changed extents, as backup suites and tools write them.
//!
//! Five kinds of list are read, told apart by the fields of their entries: our own, and the JSON output of
//! `qemu-img map`, nbdinfo and oVirt imageio. What each field means to us is in docs/formats/extents.md.
//!
//! A list is read in one pass and never held as JSON: an entry becomes 16 bytes of an [`ExtentList`] or nothing.
//! Text that would make the JSON reader itself grow (deep nesting, endless strings) is stopped before it by
//! `Guard`, so memory is bounded by the number of extents alone.

mod entry;
mod guard;

use std::cell::Cell;
use std::fmt;
use std::io::{self, BufReader, BufWriter, Read, Write};

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use self::entry::{Entry, Name, Number, shown};
use self::guard::{Guard, TOKEN_BYTES_MAX};
use crate::error::{Error, Operation, Result};
use crate::extent::{Extent, ExtentError, ExtentKind, ExtentList};
use crate::limits::EXTENTS_MAX;

/// `format` of our own lists.
pub const FORMAT: &str = "mover-extents";
/// The version of our own lists that is read and written.
pub const VERSION: u64 = 1;

/// QEMU counts a disk whose size is no multiple of this as if it were, and says so in its maps.
const SECTOR: u64 = 512;

/// A list of extents from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentsFile {
    /// What changed, and what it is now. What the list does not name is as in the base.
    pub extents: ExtentList,
    /// Token of the checkpoint or `NAME@POINT` that the changes count from, where the list says so.
    pub base: Option<String>,
    /// Bytes of the disk, where the list says so.
    pub size: Option<u64>,
    /// Who wrote it.
    pub dialect: Dialect,
}

/// Who wrote a list, as seen from the fields of its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Our own, in its envelope or as a bare array; an empty array counts as ours.
    Mover,
    /// `qemu-img map --output=json`.
    QemuImg,
    /// `nbdinfo --map --json`, context `base:allocation`.
    NbdAllocation,
    /// `nbdinfo --map=qemu:dirty-bitmap:NAME --json`.
    NbdDirtyBitmap,
    /// imageio's extents with `context=zero`.
    ImageioZero,
    /// imageio's extents with `context=dirty`.
    ImageioDirty,
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dialect::Mover => "mover-extents",
            Dialect::QemuImg => "qemu-img map",
            Dialect::NbdAllocation => "nbdinfo (base:allocation)",
            Dialect::NbdDirtyBitmap => "nbdinfo (qemu:dirty-bitmap)",
            Dialect::ImageioZero => "imageio (zero)",
            Dialect::ImageioDirty => "imageio (dirty)",
        })
    }
}

/// Reads a list of extents for a disk of `size` bytes.
///
/// # Errors
/// `Usage` for anything that is no valid list, with the entry (counted from 1), line and column where they are
/// known; `Io` when the reader fails. Both without a path, which the caller adds.
pub fn parse(reader: impl Read, size: Option<u64>) -> Result<ExtentsFile> {
    parse_bounded(reader, size, EXTENTS_MAX)
}

fn parse_bounded(reader: impl Read, size: Option<u64>, entries_max: usize) -> Result<ExtentsFile> {
    let progress = Progress::default();
    let mut json =
        serde_json::Deserializer::from_reader(BufReader::with_capacity(64 << 10, Guard::new(reader)));
    let document = json
        .deserialize_any(DocumentVisitor { size, entries_max, progress: &progress })
        .and_then(|document| json.end().map(|()| document))
        .map_err(|error| progress.explain(error))?;
    let extents = document.extents.map_err(|error| match error {
        // Found after sorting, where the entry's number is lost; its start is as good a name.
        ExtentError::Overlap(start) => {
            Error::usage(format!("the entry that starts at offset {start} overlaps another"))
        }
        other => Error::usage(other.to_string()),
    })?;
    // A size that stood behind the extents could not be held against each of them.
    if let (Some(size), Some(last)) = (document.size, extents.iter().last())
        && last.end() > size
    {
        let error = ExtentError::PastEnd { start: last.start, length: last.length, size };
        return Err(Error::usage(error.to_string()));
    }
    Ok(ExtentsFile { extents, base: document.base, size: document.size, dialect: document.dialect })
}

/// Writes our own kind of list, one extent a line, so that `diff` and `grep` work on it.
///
/// # Errors
/// The writer's, and `InvalidInput` for a base that [`parse`] would not read back.
pub fn write(
    writer: impl Write,
    extents: &ExtentList,
    size: Option<u64>,
    base: Option<&str>,
) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(64 << 10, writer);
    write!(out, "{{\"format\":\"{FORMAT}\",\"version\":{VERSION}")?;
    if let Some(size) = size {
        write!(out, ",\"size\":{size}")?;
    }
    if let Some(base) = base {
        let quoted = serde_json::to_string(base)?;
        if base.is_empty() || quoted.len() > TOKEN_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the base's token is empty or too long"));
        }
        write!(out, ",\"base\":{quoted}")?;
    }
    out.write_all(b",\"extents\":[")?;
    let mut separator = "\n";
    for Extent { start, length, kind } in extents.iter() {
        let kind = kind_name(kind);
        write!(out, "{separator}{{\"start\":{start},\"length\":{length},\"kind\":\"{kind}\"}}")?;
        separator = ",\n";
    }
    out.write_all(b"\n]}\n")?;
    out.flush()
}

fn kind_name(kind: ExtentKind) -> &'static str {
    match kind {
        ExtentKind::Data => "data",
        ExtentKind::Zero => "zero",
        ExtentKind::Hole => "hole",
    }
}

/// Where the pass stands, for messages.
#[derive(Default)]
struct Progress {
    /// The entry being read, from 1; 0 outside the list.
    entry: Cell<usize>,
}

impl Progress {
    fn explain(&self, error: serde_json::Error) -> Error {
        if error.is_io() {
            let error = io::Error::from(error);
            return match error.kind() {
                io::ErrorKind::InvalidData => Error::usage(error.to_string()),
                _ => Error::io(Operation::Read, "the list of extents", &error),
            };
        }
        let (line, column) = (error.line(), error.column());
        let place = format!(" at line {line} column {column}");
        let text = error.to_string();
        let text = text.strip_suffix(&place).unwrap_or(&text);
        Error::usage(match self.entry.get() {
            0 => format!("line {line} column {column}: {text}"),
            entry => format!("entry {entry} (line {line} column {column}): {text}"),
        })
    }
}

/// A whole list as read. The extents come with the verdict on their order, which is reached after the last one.
struct Document {
    extents: Result<ExtentList, ExtentError>,
    base: Option<String>,
    size: Option<u64>,
    dialect: Dialect,
}

/// Takes the top: a bare array, or our envelope.
struct DocumentVisitor<'a> {
    size: Option<u64>,
    entries_max: usize,
    progress: &'a Progress,
}

impl<'a> DocumentVisitor<'a> {
    fn list(&self, size: Option<u64>, dialect: Option<Dialect>) -> List<'a> {
        List { size, entries_max: self.entries_max, progress: self.progress, dialect, previous: None }
    }
}

impl<'de> Visitor<'de> for DocumentVisitor<'_> {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of extents")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Document, A::Error> {
        let list = self.list(self.size, None);
        let (extents, dialect) = list.visit_seq(seq)?;
        Ok(Document { extents, base: None, size: None, dialect })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let (mut format, mut version, mut extents) = (None, None, None);
        let (mut size, mut base) = (None, None);
        while let Some(key) = map.next_key_seed(Name(&["format", "version", "size", "base", "extents"]))? {
            match key {
                Some("format") => {
                    let text: String = once(&format, "format").and_then(|()| map.next_value())?;
                    if text != FORMAT {
                        let shown = shown(&text);
                        return Err(A::Error::custom(format!(
                            "`format` is {shown}, this reads \"{FORMAT}\""
                        )));
                    }
                    format = Some(text);
                }
                Some("version") => {
                    let number = once(&version, "version").and_then(|()| map.next_value_seed(Number))?;
                    if number != VERSION {
                        return Err(A::Error::custom(format!(
                            "version {number} of {FORMAT} is unknown, this reads version {VERSION}"
                        )));
                    }
                    version = Some(number);
                }
                Some("size") => {
                    let number = once(&size, "size").and_then(|()| map.next_value_seed(OptionalNumber))?;
                    if let (Some(listed), Some(disk)) = (number, self.size)
                        && listed != disk
                    {
                        return Err(A::Error::custom(format!(
                            "the list is for a disk of {listed} bytes, this one has {disk}"
                        )));
                    }
                    size = Some(number);
                }
                Some("base") => {
                    let text: Option<String> = once(&base, "base").and_then(|()| map.next_value())?;
                    if text.as_ref().is_some_and(String::is_empty) {
                        return Err(A::Error::custom("`base` is empty"));
                    }
                    base = Some(text);
                }
                Some(_) => {
                    once(&extents, "extents")?;
                    let list = self.list(self.size.or(size.flatten()), Some(Dialect::Mover));
                    extents = Some(map.next_value_seed(list)?.0);
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if format.is_none() {
            return Err(A::Error::custom(format!(
                "an object without \"format\":\"{FORMAT}\"; other lists are arrays"
            )));
        }
        if version.is_none() {
            return Err(A::Error::missing_field("version"));
        }
        let extents = extents.ok_or_else(|| A::Error::missing_field("extents"))?;
        Ok(Document { extents, base: base.flatten(), size: size.flatten(), dialect: Dialect::Mover })
    }
}

/// An error where a field of the envelope comes twice.
fn once<T, E: serde::de::Error>(seen: &Option<T>, field: &'static str) -> Result<(), E> {
    if seen.is_some() { Err(E::duplicate_field(field)) } else { Ok(()) }
}

/// Takes an array of entries.
struct List<'a> {
    size: Option<u64>,
    entries_max: usize,
    progress: &'a Progress,
    /// Known from the envelope, or from the first entry on.
    dialect: Option<Dialect>,
    /// The range of the entry before, whether or not anything is to be done with it.
    previous: Option<Extent>,
}

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = (Result<ExtentList, ExtentError>, Dialect);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = (Result<ExtentList, ExtentError>, Dialect);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of extents")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut failure = None;
        let mut next_extent = || -> Result<Option<Extent>, A::Error> {
            loop {
                self.progress.entry.set(self.progress.entry.get() + 1);
                match seq.next_element_seed(EntrySeed(&mut self))? {
                    Some(Some(extent)) => return Ok(Some(extent)),
                    Some(None) => {}
                    None => {
                        self.progress.entry.set(0);
                        return Ok(None);
                    }
                }
            }
        };
        let extents = std::iter::from_fn(|| {
            next_extent().unwrap_or_else(|error| {
                failure = Some(error);
                None
            })
        });
        let extents = ExtentList::from_unordered(extents, None);
        match failure {
            Some(error) => Err(error),
            None => Ok((extents, self.dialect.unwrap_or(Dialect::Mover))),
        }
    }
}

impl List<'_> {
    /// The extent that an entry stands for, if any, checked against the disk and the entry before it.
    fn accept(&mut self, entry: &Entry) -> Result<Option<Extent>, String> {
        if self.progress.entry.get() > self.entries_max {
            return Err(format!("more than {} entries", self.entries_max));
        }
        let dialect = entry.dialect()?;
        match self.dialect {
            Some(expected) if expected != dialect => {
                return Err(format!("an entry of {dialect} in a list of {expected}"));
            }
            _ => self.dialect = Some(dialect),
        }
        let nbd = matches!(dialect, Dialect::NbdAllocation | Dialect::NbdDirtyBitmap);
        let start = if nbd { entry.offset } else { entry.start };
        let mut length = entry.length;
        if length == 0 {
            // The map of an empty disk is one empty entry.
            let empty_disk = dialect == Dialect::QemuImg && start == 0 && self.previous.is_none();
            return if empty_disk { Ok(None) } else { Err(ExtentError::Empty(start).to_string()) };
        }
        // Both fit 63 bits, so the sum fits 64.
        let end = start + length;
        if end > i64::MAX as u64 {
            return Err(ExtentError::TooLarge(start).to_string());
        }
        if let Some(size) = self.size.filter(|&size| end > size) {
            let rounded = size.checked_next_multiple_of(SECTOR).unwrap_or(size);
            if dialect == Dialect::Mover || end > rounded {
                return Err(ExtentError::PastEnd { start, length, size }.to_string());
            }
            if start >= size {
                return Ok(None);
            }
            length = size - start;
        }
        // Most overlaps stand side by side; naming the entry is possible for those alone.
        let whole = Extent::data(start, length);
        if let Some(before) = self.previous.replace(whole)
            && before.clip(whole.start, whole.end()).is_some()
        {
            let at = start.max(before.start);
            return Err(format!("overlaps the entry before it at offset {at}"));
        }
        Ok(entry.kind(dialect).map(|kind| Extent::new(start, length, kind)))
    }
}

/// Takes one entry, and gives what is to be done with it. The list judges it here, where the JSON reader still
/// knows its line and column.
struct EntrySeed<'l, 'a>(&'l mut List<'a>);

impl<'de> DeserializeSeed<'de> for EntrySeed<'_, '_> {
    type Value = Option<Extent>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EntrySeed<'_, '_> {
    type Value = Option<Extent>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an extent")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let entry = Entry::read(&mut map)?;
        self.0.accept(&entry).map_err(A::Error::custom)
    }
}

/// Takes a [`Number`] or null.
struct OptionalNumber;

impl<'de> DeserializeSeed<'de> for OptionalNumber {
    type Value = Option<u64>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for OptionalNumber {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Number.expecting(f)
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        Number.deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_entries_is_bounded() {
        let text = br#"[{"start":0,"length":1,"dirty":false},{"start":1,"length":1,"dirty":true}]"#;
        assert_eq!(parse_bounded(text.as_slice(), None, 2).unwrap().extents.len(), 1);
        let error = parse_bounded(text.as_slice(), None, 1).unwrap_err();
        assert_eq!(error.to_string(), "entry 2 (line 1 column 73): more than 1 entries");
    }
}
