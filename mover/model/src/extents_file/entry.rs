//! One entry of a list: the fields of all dialects, which dialect they make, and what they mean.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::{Dialect, kind_name};
use crate::extent::ExtentKind;

/// The fields that entries of all dialects have, in the order of their bits in [`Entry::seen`].
const FIELDS: [&str; 13] = [
    "start",
    "length",
    "kind",
    "offset",
    "type",
    "description",
    "depth",
    "present",
    "zero",
    "data",
    "compressed",
    "hole",
    "dirty",
];
const START: u16 = 1;
const LENGTH: u16 = 1 << 1;
const KIND: u16 = 1 << 2;
const OFFSET: u16 = 1 << 3;
const TYPE: u16 = 1 << 4;
const DESCRIPTION: u16 = 1 << 5;
const DEPTH: u16 = 1 << 6;
const PRESENT: u16 = 1 << 7;
const ZERO: u16 = 1 << 8;
const DATA: u16 = 1 << 9;
const COMPRESSED: u16 = 1 << 10;
const HOLE: u16 = 1 << 11;
const DIRTY: u16 = 1 << 12;

/// What nbdinfo calls a range.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Description {
    Allocation(ExtentKind),
    Dirty,
    Clean,
}

/// One entry of a list of any dialect.
#[derive(Default)]
pub(super) struct Entry {
    /// Bits of the fields that it has.
    seen: u16,
    /// Those of its boolean fields that are true.
    truths: u16,
    pub(super) start: u64,
    pub(super) length: u64,
    pub(super) offset: u64,
    kind: Option<ExtentKind>,
    nbd_type: u64,
    description: Option<Description>,
}

impl Entry {
    /// Reads one from JSON: known fields once each and of their type, others skipped.
    pub(super) fn read<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Entry, A::Error> {
        let mut entry = Entry::default();
        let mut description = None;
        while let Some(key) = map.next_key_seed(Name(&FIELDS))? {
            let Some(name) = key else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let field = FIELDS.iter().position(|&known| known == name).map_or(0, |bit| 1 << bit);
            if entry.seen & field != 0 {
                return Err(A::Error::custom(format!("duplicate field `{name}`")));
            }
            entry.seen |= field;
            match field {
                START => entry.start = map.next_value_seed(Number)?,
                LENGTH => entry.length = map.next_value_seed(Number)?,
                OFFSET => entry.offset = map.next_value_seed(Number)?,
                TYPE => entry.nbd_type = map.next_value_seed(Number)?,
                DEPTH => drop(map.next_value_seed(Number)?),
                KIND => {
                    let text: String = map.next_value()?;
                    entry.kind = [ExtentKind::Data, ExtentKind::Zero, ExtentKind::Hole]
                        .into_iter()
                        .find(|&kind| kind_name(kind) == text);
                    if entry.kind.is_none() {
                        let shown = shown(&text);
                        return Err(A::Error::custom(format!("kind {shown} is none of data, zero, hole")));
                    }
                }
                DESCRIPTION => description = Some(map.next_value::<String>()?),
                _ => {
                    if map.next_value::<bool>()? {
                        entry.truths |= field;
                    }
                }
            }
        }
        if let Some(description) = description.filter(|_| entry.seen & TYPE != 0) {
            entry.description = Some(describe(entry.nbd_type, &description).map_err(A::Error::custom)?);
        }
        Ok(entry)
    }

    fn has(&self, required: u16, optional: u16) -> bool {
        self.seen & required == required && self.seen & !(required | optional) == 0
    }

    /// The one dialect whose fields it has: all that are needed and none of another's.
    pub(super) fn dialect(&self) -> Result<Dialect, String> {
        if self.has(START | LENGTH | KIND, 0) {
            return Ok(Dialect::Mover);
        }
        if self.has(START | LENGTH | DEPTH | ZERO | DATA, PRESENT | COMPRESSED | OFFSET) {
            return Ok(Dialect::QemuImg);
        }
        if self.has(START | LENGTH | ZERO, HOLE) {
            return Ok(Dialect::ImageioZero);
        }
        if self.has(START | LENGTH | DIRTY, ZERO) {
            return Ok(Dialect::ImageioDirty);
        }
        if self.has(OFFSET | LENGTH | TYPE, DESCRIPTION) {
            return match self.description {
                Some(Description::Allocation(_)) => Ok(Dialect::NbdAllocation),
                Some(_) => Ok(Dialect::NbdDirtyBitmap),
                None => {
                    Err("an NBD map of a context other than base:allocation and qemu:dirty-bitmap".into())
                }
            };
        }
        let fields: Vec<&str> =
            (0..FIELDS.len()).filter(|bit| self.seen >> bit & 1 == 1).map(|bit| FIELDS[bit]).collect();
        Err(match fields.as_slice() {
            [] => "no field of a known list of extents".into(),
            fields => {
                format!("the fields {} together are those of no known list of extents", fields.join(", "))
            }
        })
    }

    /// What is to be done with its range; nothing where the list says that it did not change.
    pub(super) fn kind(&self, dialect: Dialect) -> Option<ExtentKind> {
        let is = |field| self.truths & field != 0;
        // Reads as zeros, and no layer of the image holds it: as for NBD's hole,zero.
        let zeros = |hole: bool| if hole { ExtentKind::Hole } else { ExtentKind::Zero };
        match dialect {
            Dialect::Mover => self.kind,
            Dialect::QemuImg if is(COMPRESSED) => Some(ExtentKind::Data),
            Dialect::QemuImg if is(ZERO) => Some(zeros(self.seen & PRESENT != 0 && !is(PRESENT))),
            Dialect::QemuImg if is(DATA) => Some(ExtentKind::Data),
            // In no layer of the image, and not said to be zeros: what is there belongs to a deeper file.
            Dialect::QemuImg if self.seen & PRESENT != 0 && !is(PRESENT) => None,
            // Allocated, but not known to be written: only a read tells.
            Dialect::QemuImg => Some(ExtentKind::Data),
            Dialect::NbdAllocation | Dialect::NbdDirtyBitmap => match self.description {
                Some(Description::Allocation(kind)) => Some(kind),
                Some(Description::Dirty) => Some(ExtentKind::Data),
                Some(Description::Clean) | None => None,
            },
            Dialect::ImageioZero if is(ZERO) => Some(zeros(is(HOLE))),
            Dialect::ImageioZero => Some(ExtentKind::Data),
            Dialect::ImageioDirty if !is(DIRTY) => None,
            Dialect::ImageioDirty if is(ZERO) => Some(ExtentKind::Zero),
            Dialect::ImageioDirty => Some(ExtentKind::Data),
        }
    }
}

/// What an NBD server's number and nbdinfo's word for it say, if they say the same.
fn describe(nbd_type: u64, description: &str) -> Result<Description, String> {
    match (nbd_type, description) {
        (0, "data") => Ok(Description::Allocation(ExtentKind::Data)),
        // A hole that is not said to be zeros may hold anything: only a read tells.
        (1, "hole") => Ok(Description::Allocation(ExtentKind::Data)),
        (2, "zero") => Ok(Description::Allocation(ExtentKind::Zero)),
        (3, "hole,zero") => Ok(Description::Allocation(ExtentKind::Hole)),
        (0, "clean") => Ok(Description::Clean),
        (1, "dirty") => Ok(Description::Dirty),
        _ => Err(format!(
            "type {nbd_type} with description {} is neither of base:allocation nor of qemu:dirty-bitmap",
            shown(description)
        )),
    }
}

/// Text from outside as it may stand in a message: quoted, escaped, and cut.
pub(super) fn shown(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    format!("{short:?}{}", if short.len() < text.len() { "…" } else { "" })
}

/// Takes a field's name: one of those it knows, or nothing.
pub(super) struct Name(pub(super) &'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Option<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().find(|&&known| known == text).copied())
    }
}

/// Takes a whole number of 63 bits, and no text, fraction or sign.
pub(super) struct Number;

impl<'de> DeserializeSeed<'de> for Number {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_u64(self)
    }
}

impl Visitor<'_> for Number {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number from 0 to 2^63 - 1")
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<u64, E> {
        let too_large = || E::invalid_value(serde::de::Unexpected::Unsigned(number), &self);
        if number <= i64::MAX as u64 { Ok(number) } else { Err(too_large()) }
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<u64, E> {
        let what = serde::de::Unexpected::Other("number with a fraction, an exponent or too many digits");
        Err(E::invalid_type(what, &self))
    }
}
