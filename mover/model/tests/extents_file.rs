//! Lists of extents: what each tool writes, what is refused and in which words, and the way there and back.
//!
//! The files in golden/ are the tools' own output (QEMU 10.0, libnbd 1.14, nbdkit), those of imageio after its manual.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use mover_model::extents_file::{Dialect, ExtentsFile, parse, write};
use mover_model::{ErrorKind, Extent, ExtentKind, ExtentList};
use proptest::prelude::*;

use ExtentKind::{Data, Hole, Zero};

const K64: u64 = 64 << 10;

fn list(extents: &[(u64, u64, ExtentKind)]) -> ExtentList {
    extents.iter().map(|&(start, length, kind)| Extent::new(start, length, kind)).collect()
}

fn refused(text: &str, size: Option<u64>) -> String {
    let error = parse(text.as_bytes(), size).expect_err(text);
    assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Usage, 2), "{text}");
    error.to_string()
}

#[track_caller]
fn golden(text: &str, size: u64, dialect: Dialect, extents: &[(u64, u64, ExtentKind)]) {
    let parsed = parse(text.as_bytes(), Some(size)).unwrap();
    assert_eq!(parsed.dialect, dialect);
    assert_eq!(parsed.extents, list(extents));
    assert_eq!(parse(text.as_bytes(), None).unwrap().dialect, dialect, "without a size too");
}

#[test]
fn qemu_img_map() {
    golden(
        include_str!("golden/qemu-img-raw.json"),
        8 << 20,
        Dialect::QemuImg,
        &[(0, K64, Data), (K64, 15 * K64, Zero), (16 * K64, 2 * K64, Data), (18 * K64, 110 * K64, Zero)],
    );
    golden(
        include_str!("golden/qemu-img-qcow2.json"),
        4 << 20,
        Dialect::QemuImg,
        &[
            (0, K64, Data),
            (K64, 15 * K64, Hole),
            (16 * K64, K64, Data),
            (17 * K64, 15 * K64, Hole),
            (32 * K64, K64, Zero),
            (33 * K64, 31 * K64, Hole),
        ],
    );
    // Discarded in the overlay, written in it, read from its backing file, and compressed.
    golden(
        include_str!("golden/qemu-img-backing.json"),
        4 << 20,
        Dialect::QemuImg,
        &[
            (0, K64, Zero),
            (K64, K64, Data),
            (2 * K64, 2 * K64, Hole),
            (4 * K64, K64, Data),
            (5 * K64, 11 * K64, Hole),
            (16 * K64, K64, Zero),
            (17 * K64, 15 * K64, Hole),
            (32 * K64, K64, Zero),
            (33 * K64, 15 * K64, Hole),
            (48 * K64, K64, Data),
            (49 * K64, 15 * K64, Hole),
        ],
    );
    golden(
        include_str!("golden/qemu-img-preallocated.json"),
        1 << 20,
        Dialect::QemuImg,
        &[(0, 1 << 20, Zero)],
    );
    golden(include_str!("golden/qemu-img-empty-disk.json"), 0, Dialect::QemuImg, &[]);
}

#[test]
fn qemu_rounds_an_odd_size_up_and_we_cut_it_back() {
    let text = include_str!("golden/qemu-img-odd-size.json");
    golden(text, 1000, Dialect::QemuImg, &[(0, 1000, Data)]);
    golden(text, 1010, Dialect::QemuImg, &[(0, 1000, Data), (1000, 10, Zero)]);
    golden(text, 1024, Dialect::QemuImg, &[(0, 1000, Data), (1000, 24, Zero)]);
    assert!(refused(text, Some(512)).contains("ends past the disk's size of 512 bytes"));
    let ours = r#"[{"start":0,"length":1024,"kind":"data"}]"#;
    assert!(refused(ours, Some(1000)).contains("ends past the disk's size of 1000 bytes"));
}

#[test]
fn qemu_img_states_that_this_host_does_not_show() {
    let entry = |fields: &str| {
        let text = format!(r#"[{{"start":0,"length":512,"depth":0,{fields}}}]"#);
        parse(text.as_bytes(), Some(512)).unwrap().extents.get(0).map(|extent| extent.kind)
    };
    assert_eq!(entry(r#""present":false,"zero":false,"data":false"#), None, "a deeper file's");
    assert_eq!(entry(r#""present":true,"zero":false,"data":false,"offset":9"#), Some(Data), "unwritten");
    assert_eq!(entry(r#""present":true,"zero":true,"data":true,"compressed":true"#), Some(Data));
    // Before QEMU 6.1 there was no `present`.
    assert_eq!(entry(r#""zero":true,"data":false"#), Some(Zero));
    assert_eq!(entry(r#""zero":false,"data":false"#), Some(Data));
    assert_eq!(entry(r#""zero":false,"data":true,"offset":0"#), Some(Data));
}

#[test]
fn nbdinfo_maps() {
    golden(
        include_str!("golden/nbdinfo-allocation.json"),
        8 << 20,
        Dialect::NbdAllocation,
        &[(0, K64, Data), (K64, 15 * K64, Hole), (16 * K64, 2 * K64, Data), (18 * K64, 110 * K64, Hole)],
    );
    golden(
        include_str!("golden/nbdinfo-all-types.json"),
        1 << 20,
        Dialect::NbdAllocation,
        &[
            (0, K64, Data),
            (K64, K64, Zero),
            (2 * K64, K64, Data),
            (3 * K64, K64, Hole),
            (4 * K64, 12 * K64, Data),
        ],
    );
    golden(
        include_str!("golden/nbdinfo-dirty-bitmap.json"),
        4 << 20,
        Dialect::NbdDirtyBitmap,
        &[(4 * K64, K64, Data)],
    );
    assert_eq!(
        refused(include_str!("golden/nbdinfo-allocation-depth.json"), None),
        "entry 1 (line 2 column 67): type 1 with description \"local\" is neither of base:allocation nor of \
         qemu:dirty-bitmap"
    );
    assert_eq!(
        refused(include_str!("golden/nbdinfo-totals.json"), None),
        "entry 1 (line 2 column 72): the fields type, description together are those of no known list of extents"
    );
    assert_eq!(
        refused(r#"[{"offset":0,"length":512,"type":4}]"#, None),
        "entry 1 (line 1 column 35): an NBD map of a context other than base:allocation and qemu:dirty-bitmap"
    );
}

#[test]
fn imageio_extents() {
    golden(
        include_str!("golden/imageio-zero.json"),
        100 << 30,
        Dialect::ImageioZero,
        &[(0, K64, Data), (K64, K64, Zero), (2 * K64, (100 << 30) - 2 * K64, Hole)],
    );
    golden(
        include_str!("golden/imageio-dirty.json"),
        2 << 30,
        Dialect::ImageioDirty,
        &[(0, K64, Data), (1 << 30, 1 << 30, Zero)],
    );
    // Servers before 2.2 left out `zero` of a dirty extent, the first ones `hole`.
    golden(
        r#"[{"start":0,"length":512,"dirty":true},{"start":512,"length":512,"dirty":false}]"#,
        1024,
        Dialect::ImageioDirty,
        &[(0, 512, Data)],
    );
    golden(r#"[{"start":0,"length":512,"zero":true}]"#, 512, Dialect::ImageioZero, &[(0, 512, Zero)]);
    golden(r#"[{"start":0,"length":9,"zero":false,"hole":true}]"#, 9, Dialect::ImageioZero, &[(0, 9, Data)]);
}

#[test]
fn our_own_lists() {
    let parsed = parse(include_str!("golden/mover.json").as_bytes(), Some(1 << 20)).unwrap();
    assert_eq!(
        parsed,
        ExtentsFile {
            extents: list(&[(0, K64, Data), (2 * K64, K64, Zero), (8 * K64, 8 * K64, Hole)]),
            base: Some("vm1@2026-01-02T03:04:05Z".into()),
            size: Some(1 << 20),
            dialect: Dialect::Mover,
        }
    );
    let parsed = parse(include_str!("golden/mover-unordered.json").as_bytes(), None).unwrap();
    assert_eq!(parsed.extents, list(&[(0, 8192, Data), (8 * K64, 8 * K64, Hole)]));
    assert_eq!((parsed.base, parsed.size), (None, Some(1 << 20)));
    golden(include_str!("golden/mover-bare.json"), 1024, Dialect::Mover, &[(0, 1024, Data)]);
    golden(" [\n] ", 0, Dialect::Mover, &[]);
    golden(r#"{"format":"mover-extents","version":1,"extents":[]}"#, 0, Dialect::Mover, &[]);
    golden(r#"[{"\u0073tart":1,"length":1,"kind":"\u0064ata"}]"#, 9, Dialect::Mover, &[(1, 1, Data)]);
}

#[test]
fn the_written_form_is_one_extent_a_line() {
    let parsed = parse(include_str!("golden/mover.json").as_bytes(), None).unwrap();
    let mut out = Vec::new();
    write(&mut out, &parsed.extents, parsed.size, parsed.base.as_deref()).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), include_str!("golden/mover.json"));
    let mut out = Vec::new();
    write(&mut out, &ExtentList::new(), None, None).unwrap();
    assert_eq!(out, b"{\"format\":\"mover-extents\",\"version\":1,\"extents\":[\n]}\n");
    for base in [String::new(), "x".repeat(5000)] {
        let error = write(io::sink(), &ExtentList::new(), None, Some(&base)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}

/// Each bad list with the exact words; `@` stands for a good entry at 0.
#[test]
fn bad_lists_are_refused_in_clear_words() {
    let mut wrong = String::new();
    const GOOD: &str = r#"{"start":0,"length":512,"kind":"data"}"#;
    for (text, message) in [
        // Where it lies.
        (
            r#"[@,{"start":512,"length":0,"kind":"data"}]"#,
            "entry 2 (line 1 column 78): the extent at offset 512 is empty",
        ),
        (
            r#"[@,{"start":511,"length":9,"kind":"zero"}]"#,
            "entry 2 (line 1 column 78): overlaps the entry before it at offset 511",
        ),
        (
            r#"[{"start":100,"length":9,"kind":"zero"},@]"#,
            "entry 2 (line 1 column 78): overlaps the entry before it at offset 100",
        ),
        (
            r#"[@,{"start":4000,"length":9,"kind":"hole"},{"start":8,"length":1,"kind":"data"}]"#,
            "the entry that starts at offset 8 overlaps another",
        ),
        (
            r#"[@,{"start":4090,"length":7,"kind":"data"}]"#,
            "entry 2 (line 1 column 79): the extent at offset 4090 of 7 bytes ends past the disk's size of 4096 bytes",
        ),
        (
            r#"[{"start":9223372036854775807,"length":1,"kind":"data"}]"#,
            "entry 1 (line 1 column 55): the extent at offset 9223372036854775807 ends past 2^63 - 1",
        ),
        // Numbers.
        (
            r#"[{"start":-1,"length":1,"kind":"data"}]"#,
            "entry 1 (line 1 column 13): invalid type: integer `-1`, expected a whole number from 0 to 2^63 - 1",
        ),
        (
            r#"[{"start":0,"length":1.5,"kind":"data"}]"#,
            "entry 1 (line 1 column 25): invalid type: number with a fraction, an exponent or too many digits, expected a whole number from 0 to 2^63 - 1",
        ),
        (
            r#"[{"start":"0","length":1,"kind":"data"}]"#,
            "entry 1 (line 1 column 13): invalid type: string \"0\", expected a whole number from 0 to 2^63 - 1",
        ),
        (
            r#"[{"start":9223372036854775808,"length":1,"kind":"data"}]"#,
            "entry 1 (line 1 column 30): invalid value: integer `9223372036854775808`, expected a whole number from 0 to \
             2^63 - 1",
        ),
        (
            r#"[{"start":99999999999999999999,"length":1,"kind":"data"}]"#,
            "entry 1 (line 1 column 31): invalid type: number with a fraction, an exponent or too many digits, expected a whole number from 0 to 2^63 - 1",
        ),
        (r#"[{"start":1e999,"length":1,"kind":"data"}]"#, "entry 1 (line 1 column 16): number out of range"),
        // Fields.
        (r#"[{"start":0,"start":0}]"#, "entry 1 (line 1 column 20): duplicate field `start`"),
        (
            r#"[@,{"start":600,"length":1,"kind":"da\nta"}]"#,
            "entry 2 (line 1 column 80): kind \"da\\nta\" is none of data, zero, hole",
        ),
        (
            r#"[{"start":0,"length":9,"zero":1}]"#,
            "entry 1 (line 1 column 32): invalid type: integer `1`, expected a boolean",
        ),
        (
            r#"[{"offset":0,"length":9,"type":0,"description":"hole"}]"#,
            "entry 1 (line 1 column 54): type 0 with description \"hole\" is neither of base:allocation nor of \
             qemu:dirty-bitmap",
        ),
        // Dialects.
        (r#"[{}]"#, "entry 1 (line 1 column 3): no field of a known list of extents"),
        (
            r#"[{"start":0,"length":9}]"#,
            "entry 1 (line 1 column 23): the fields start, length together are those of no known list of extents",
        ),
        (
            r#"[{"start":0,"length":9,"kind":"data","zero":true}]"#,
            "entry 1 (line 1 column 49): the fields start, length, kind, zero together are those of no known list of \
             extents",
        ),
        (
            r#"[@,{"start":600,"length":1,"zero":true}]"#,
            "entry 2 (line 1 column 76): an entry of imageio (zero) in a list of mover-extents",
        ),
        (
            r#"[{"start":0,"length":9,"zero":true},{"start":9,"length":9,"dirty":true}]"#,
            "entry 2 (line 1 column 71): an entry of imageio (dirty) in a list of imageio (zero)",
        ),
        (
            r#"{"format":"mover-extents","version":1,"extents":[{"start":0,"length":9,"dirty":true}]}"#,
            "entry 1 (line 1 column 84): an entry of imageio (dirty) in a list of mover-extents",
        ),
        ("[7]", "entry 1 (line 1 column 3): invalid type: integer `7`, expected an extent"),
        ("[[]]", "entry 1 (line 1 column 2): invalid type: sequence, expected an extent"),
        ("7", "line 1 column 1: invalid type: integer `7`, expected a list of extents"),
        // The envelope.
        (
            r#"{"format":"other","version":1,"extents":[]}"#,
            "line 1 column 18: `format` is \"other\", this reads \"mover-extents\"",
        ),
        (
            r#"{"format":"mover-extents","version":2,"extents":[]}"#,
            "line 1 column 38: version 2 of mover-extents is unknown, this reads version 1",
        ),
        (
            r#"{"version":1,"extents":[]}"#,
            "line 1 column 26: an object without \"format\":\"mover-extents\"; other lists are arrays",
        ),
        (r#"{"format":"mover-extents","extents":[]}"#, "line 1 column 39: missing field `version`"),
        (r#"{"format":"mover-extents","version":1}"#, "line 1 column 38: missing field `extents`"),
        (
            r#"{"format":"mover-extents","version":1,"extents":{}}"#,
            "line 1 column 49: invalid type: map, expected an array of extents",
        ),
        (
            r#"{"format":"mover-extents","version":1,"size":8192,"extents":[]}"#,
            "line 1 column 50: the list is for a disk of 8192 bytes, this one has 4096",
        ),
        (
            r#"{"format":"mover-extents","version":1,"base":"","extents":[]}"#,
            "line 1 column 48: `base` is empty",
        ),
        (
            r#"{"format":"mover-extents","version":1,"extents":[],"extents":[]}"#,
            "line 1 column 61: duplicate field `extents`",
        ),
        // No JSON.
        ("", "line 1 column 0: EOF while parsing a value"),
        ("[@", "entry 2 (line 1 column 39): EOF while parsing a list"),
        ("[@,\n]", "entry 2 (line 2 column 1): trailing comma"),
        (r#"[@,{"start":5"#, "entry 2 (line 1 column 50): EOF while parsing an object"),
        ("[@]]", "line 1 column 41: trailing characters"),
        ("[@]\n[@]", "line 2 column 1: trailing characters"),
        ("NaN", "line 1 column 1: expected value"),
    ] {
        let refusal = refused(&text.replace('@', GOOD), Some(4096));
        wrong += &if refusal == message {
            String::new()
        } else {
            format!(
                "{text}
  {refusal}
  not {message}
"
            )
        };
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_size_behind_the_extents_is_held_against_them_too() {
    let text = r#"{"format":"mover-extents","version":1,"extents":[{"start":0,"length":513,"kind":"data"}],"size":512}"#;
    assert_eq!(
        refused(text, None),
        "the extent at offset 0 of 513 bytes ends past the disk's size of 512 bytes"
    );
}

/// A reader of an endless text: `head`, then `tail` for ever, counting what was taken.
struct Endless {
    head: &'static [u8],
    tail: u8,
    taken: u64,
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.head.is_empty() {
            return self.head.read(buffer);
        }
        buffer.fill(self.tail);
        self.taken += buffer.len() as u64;
        Ok(buffer.len())
    }
}

#[test]
fn endless_tokens_and_nesting_are_stopped_early() {
    for (head, tail, what) in [
        (r#"{"x":"#, b'[', "nested too deep at byte 36"),
        (r#"[{"x":"#, b'[', "nested too deep at byte 36"),
        ("[\"", b'x', "a string or number is too long at byte 4097"),
        ("[{\"", b'x', "a string or number is too long at byte 4098"),
        (r#"[{"x":""#, b'\\', "a string or number is too long at byte 4102"),
        ("[", b'7', "a string or number is too long at byte 4097"),
    ] {
        let mut reader = Endless { head: head.as_bytes(), tail, taken: 0 };
        let error = parse(&mut reader, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert_eq!(error.to_string(), format!("no list of extents: {what}"), "{head}");
        assert!(reader.taken < 1 << 20);
    }
    // A fault before the endless part is what is told.
    let error = parse(Endless { head: b"[{} ", tail: b'[', taken: 0 }, None).unwrap_err();
    assert_eq!(error.to_string(), "entry 1 (line 1 column 3): no field of a known list of extents");
}

#[test]
fn a_failing_reader_is_an_io_error() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(5))
        }
    }
    let error = parse(b"[{".chain(Failing), None).unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Io, Some(5)));
    assert_eq!(error.at("list.json").to_string(), "read list.json: Input/output error (os error 5)");
}

/// A list as text that is made while it is read, so that only the parser's memory counts.
struct Generated<F> {
    next: F,
    text: Vec<u8>,
    position: usize,
}

impl<F: FnMut() -> Option<String>> Read for Generated<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position == self.text.len() {
            self.position = 0;
            self.text = (self.next)().unwrap_or_default().into_bytes();
        }
        let count = (&self.text[self.position..]).read(buffer)?;
        self.position += count;
        Ok(count)
    }
}

fn resident_bytes_max() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// A million extents, in order and in the order of a hash: 16 bytes each and the growth of a vector, twice where
/// it is sorted; as JSON values they would take some 500 MiB. Run beside other tests, so the bound has room.
#[test]
fn a_million_extents_are_read_in_little_memory_and_time() {
    const COUNT: u64 = 1 << 20;
    let before = resident_bytes_max();
    let started = Instant::now();
    for multiplier in [1, 0x9e37_79b1] {
        let mut index = 0;
        let generated = Generated {
            next: || {
                index += 1;
                let start = (index * multiplier) % COUNT * 8192;
                match index {
                    ..COUNT => Some(format!(
                        "{}{{\"start\":{start},\"length\":4096,\"kind\":\"data\"}}",
                        if index == 1 { "[" } else { ",\n" }
                    )),
                    COUNT => Some("]".into()),
                    _ => None,
                }
            },
            text: Vec::new(),
            position: 0,
        };
        let parsed = parse(generated, Some(COUNT * 8192)).unwrap();
        assert_eq!(parsed.extents.len() as u64, COUNT - 1);
        assert_eq!(parsed.extents.bytes(), (COUNT - 1) * 4096);
    }
    let grown = resident_bytes_max() - before;
    assert!(grown < 128 << 20, "memory rose by {grown} bytes");
    // Seconds in this build; the bound is for a broken algorithm, not for a slow machine.
    assert!(started.elapsed() < Duration::from_secs(120), "took {:?}", started.elapsed());
}

fn kinds() -> impl Strategy<Value = ExtentKind> {
    prop_oneof![Just(Data), Just(Zero), Just(Hole)]
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        pieces in prop::collection::vec((0u64..1 << 50, 1u64..1 << 50, kinds()), 0..50),
        base in prop::option::of("\\PC{1,40}"),
        with_size in any::<bool>(),
    ) {
        let mut extents = ExtentList::new();
        for (gap, length, kind) in pieces {
            let start = extents.end().unwrap_or(0) + gap;
            extents.push(Extent::new(start, length, kind));
        }
        let size = with_size.then(|| extents.end().unwrap_or(0));
        let mut text = Vec::new();
        write(&mut text, &extents, size, base.as_deref()).unwrap();
        let parsed = parse(text.as_slice(), size).unwrap();
        prop_assert_eq!(parsed, ExtentsFile { extents, base, size, dialect: Dialect::Mover });
    }

    #[test]
    fn the_order_of_entries_does_not_matter(
        pieces in prop::collection::vec((1u64..100, 1u64..100, kinds()), 0..30).prop_shuffle(),
        seed in any::<u64>(),
    ) {
        let mut end = 0;
        let mut entries: Vec<Extent> = pieces.into_iter().map(|(gap, length, kind)| {
            let extent = Extent::new(end + gap, length, kind);
            end = extent.end();
            extent
        }).collect();
        let ordered: ExtentList = entries.iter().copied().collect();
        entries.sort_by_key(|extent| extent.start.wrapping_mul(seed | 1));
        let entries: Vec<String> = entries.iter().map(|Extent { start, length, kind }| {
            let kind = format!("{kind:?}").to_lowercase();
            format!(r#"{{"kind":"{kind}","length":{length},"start":{start}}}"#)
        }).collect();
        let text = format!("[{}]", entries.join(","));
        prop_assert_eq!(parse(text.as_bytes(), Some(end)).unwrap().extents, ordered);
    }
}
