//! What must hold for any bytes given to the parser of extent lists. Shared by the seeded test and the fuzz target.

use std::io::{self, Read};

use mover_model::ErrorKind;
use mover_model::extents_file::{ExtentsFile, parse, write};

/// Gives a few bytes at a time, so that every boundary falls everywhere.
struct Dribble<'a>(&'a [u8]);

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(1 + self.0.len() % 3);
        self.0.read(&mut buffer[..count])
    }
}

/// Parses, with and without a size, and checks all that is promised. Returns whether the input is a list.
///
/// # Panics
/// If a promise is broken.
pub fn check(input: &[u8], size: u64) -> bool {
    let sized = check_once(input, Some(size));
    check_once(input, None) || sized
}

fn check_once(input: &[u8], size: Option<u64>) -> bool {
    let parsed = parse(input, size);
    let dribbled = parse(Dribble(input), size);
    let ExtentsFile { extents, base, size: listed, dialect } = match (parsed, dribbled) {
        (Ok(parsed), Ok(dribbled)) => {
            assert_eq!(parsed, dribbled, "depends on how the bytes come");
            parsed
        }
        (Err(error), Err(dribbled)) => {
            assert_eq!(error.to_string(), dribbled.to_string(), "depends on how the bytes come");
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.message().len() < 16 << 10, "a message of {} bytes", error.message().len());
            return false;
        }
        (parsed, dribbled) => panic!("depends on how the bytes come: {parsed:?} {dribbled:?}"),
    };
    let mut position = 0;
    for extent in extents.iter() {
        assert!(extent.length > 0 && extent.start >= position, "{dialect}: {extents:?}");
        position = extent.start.checked_add(extent.length).expect("an end past 2^64");
    }
    assert!(position <= i64::MAX as u64);
    assert!(
        [size, listed].into_iter().flatten().all(|size| position <= size),
        "{extents:?} of {size:?} {listed:?}"
    );
    assert!(size.is_none() || listed.is_none() || size == listed);

    let mut text = Vec::new();
    write(&mut text, &extents, listed, base.as_deref()).expect("a list that was read can be written");
    let again = parse(text.as_slice(), size).expect("what was written can be read");
    assert_eq!((again.extents, again.base, again.size), (extents, base, listed));
    true
}
