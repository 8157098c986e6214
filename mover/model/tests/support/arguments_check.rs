//! What must hold for any bytes given as an argument: disks, targets, points, times, labels, documents, names, and
//! lists of extents as `diff` writes them. Shared by the seeded test and the fuzz target.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use mover_model::disk_arg::{
    LABEL_KEY_MAX, LABEL_VALUE_MAX, common_id, document, label, point_selector, time,
};
use mover_model::extents_file::{parse, write};
use mover_model::{
    ChunkId, CommonArg, Digest, DiskArg, Error, ErrorKind, Extent, ExtentKind, ExtentList, FileOfDisk,
    Locator, Name, PointArg, PointSelector, TargetArg,
};

/// Reads the bytes as everything that an argument can be. Returns whether they are something.
///
/// # Panics
/// If a promise is broken.
pub fn check(input: &[u8]) -> bool {
    let raw = OsStr::from_bytes(input);
    let mut found = false;
    let mut usage = |error: Option<Error>| match error {
        None => found = true,
        Some(error) => {
            assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
            // What is shown is escaped: no control character gets to the terminal.
            assert!(!error.to_string().chars().any(|char| char.is_control() && char != '\n'), "{error:?}");
        }
    };
    let disk = DiskArg::parse(raw);
    if let Ok(DiskArg { id, common, .. }) = &disk {
        assert!(input.starts_with(id.as_str().as_bytes()) && input[id.as_str().len()] == b'=');
        if let CommonArg::Id(id) = common {
            id.parse::<Name>().expect("an ID of a common disk is a name");
        }
    }
    let target = TargetArg::parse(raw);
    if let Ok(TargetArg { id, locator }) = &target {
        let disk = disk.as_ref().expect("what is a target is a source too");
        assert_eq!((id, locator, &CommonArg::No), (&disk.id, &disk.locator, &disk.common));
    }
    usage(disk.err());
    usage(target.err());
    let file = FileOfDisk::parse(raw);
    if let Ok(FileOfDisk { file, .. }) = &file {
        assert!(input.ends_with(file.as_os_str().as_bytes()) && !file.as_os_str().is_empty());
    }
    // Nearly everything is a file, so it counts for nothing.
    file.err().into_iter().for_each(|error| usage(Some(error)));
    Locator::parse(raw).err().into_iter().for_each(|error| usage(Some(error)));
    let named = document(raw);
    if let Ok((name, file)) = &named {
        assert_eq!([name.as_str().as_bytes(), b"=", file.as_os_str().as_bytes()].concat(), input);
    }
    usage(named.err());
    let labelled = label(raw);
    if let Ok((key, value)) = &labelled {
        assert_eq!(format!("{key}={value}").as_bytes(), input);
        assert!((1..=LABEL_KEY_MAX).contains(&key.len()) && value.len() <= LABEL_VALUE_MAX);
    }
    usage(labelled.err());
    usage(common_id(raw).err());

    let text = String::from_utf8_lossy(input);
    usage(PointArg::parse(&text).err());
    match point_selector(&text) {
        Ok(PointSelector::Id(id)) => assert_eq!(id.as_str(), text),
        Ok(PointSelector::At(at)) => assert_eq!(time(&text).unwrap(), at),
        Ok(PointSelector::Latest) => assert_eq!(text, "latest"),
        Err(error) => usage(Some(error)),
    }
    if let Ok(name) = text.parse::<Name>() {
        assert!(name.as_str() == text && !text.starts_with(['.', '-']) && !text.contains('/'));
    }
    if let Ok(id) = text.parse::<ChunkId>() {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text.to_ascii_lowercase());
    }
    extents(input);
    found
}

/// A list as `diff` writes it comes back as it was.
fn extents(input: &[u8]) {
    let mut list = ExtentList::new();
    let mut position = 0;
    for entry in input.chunks_exact(3) {
        let (gap, length) = (u64::from(entry[0]) << (entry[2] % 40), u64::from(entry[1]) + 1);
        let kind = [ExtentKind::Data, ExtentKind::Zero, ExtentKind::Hole][usize::from(entry[2] % 3)];
        list.push(Extent::new(position + gap, length, kind));
        position += gap + length;
    }
    let base = String::from_utf8_lossy(&input[..input.len().min(64)]).into_owned();
    let base = (!base.is_empty()).then_some(base);
    let mut text = Vec::new();
    write(&mut text, &list, Some(position), base.as_deref()).unwrap();
    let read = parse(text.as_slice(), Some(position)).unwrap();
    assert_eq!((read.extents, read.base, read.size), (list, base, Some(position)));
}
