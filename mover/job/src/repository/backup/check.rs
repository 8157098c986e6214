//! What can be refused before anything is opened, and what is read before anything is written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};

use mover_model::event::Event;
use mover_model::extents_file::{self, Dialect, ExtentsFile};
use mover_model::{Error, Locator, Name, Operation, Result};

use super::BackupOptions;
use crate::Emit;

/// Longest document: configuration, not content.
const DOCUMENT_MAX: u64 = 16 << 20;
/// Longest run key.
const RUN_KEY_MAX: usize = 1024;

/// Checks what was said against itself.
pub(super) fn check(options: &BackupOptions) -> Result<()> {
    options.engine.check()?;
    if options.disks.is_empty() {
        return Err(Error::usage("nothing to back up: name a disk").hint("--disk ID=LOCATOR"));
    }
    let mut ids = BTreeSet::new();
    for disk in &options.disks {
        if !ids.insert(&disk.id) {
            return Err(Error::usage(format!("the disk `{}` is named twice", disk.id)));
        }
        if options.record_read_errors && disk.locator == Locator::Stream {
            return Err(Error::usage(
                "--on-read-error record needs sources that can be read again, not a stream",
            ));
        }
    }
    if options.disks.iter().filter(|disk| disk.locator == Locator::Stream).count() > 1 {
        return Err(Error::usage("`-` can be the source of one disk only"));
    }
    let mut listed = BTreeSet::new();
    for (id, path) in &options.extents {
        let Some(disk) = options.disks.iter().find(|disk| disk.id == *id) else {
            return Err(Error::usage(format!(
                "--extents names the disk `{id}`, which is none of this backup"
            ))
            .hint("each list belongs to a --disk of the same id"));
        };
        if !listed.insert(id) {
            return Err(Error::usage(format!("there are two lists of extents for the disk `{id}`")));
        }
        if disk.locator == Locator::Stream {
            return Err(Error::usage(format!(
                "--extents {id}={}: a stream has to be read whole",
                path.display()
            )));
        }
    }
    match (&options.since, options.extents.is_empty()) {
        (None, false) => {
            Err(Error::usage("--extents needs --since: a list of changes counts from a restore point")
                .hint("name the point whose content the list counts from, --since NAME@POINT"))
        }
        (Some(since), true) => Err(Error::usage(format!("--since {since} belongs to --extents ID=FILE"))
            .hint("without a list everything is read, and only what is new is stored")),
        _ => Ok(()),
    }?;
    if let Some(key) = &options.run_key
        && (key.is_empty() || key.len() > RUN_KEY_MAX)
    {
        return Err(Error::usage(format!("--run-key must have 1 to {RUN_KEY_MAX} bytes")));
    }
    Ok(())
}

/// Reads the documents of the machine.
pub(super) fn documents(options: &BackupOptions) -> Result<BTreeMap<String, String>> {
    let mut documents = BTreeMap::new();
    for (name, path) in &options.documents {
        let label = path.display().to_string();
        let mut text = String::new();
        let file = File::open(path).map_err(|error| Error::io(Operation::Open, &label, &error))?;
        let read = file.take(DOCUMENT_MAX + 1).read_to_string(&mut text);
        match read {
            Ok(length) if length as u64 > DOCUMENT_MAX => {
                let message = format!("a document has at most {} MiB", DOCUMENT_MAX >> 20);
                return Err(Error::usage(message).at(label));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                return Err(Error::usage("is no text: documents are kept as UTF-8").at(label));
            }
            Err(error) => return Err(Error::io(Operation::Read, &label, &error)),
        }
        if documents.insert(name.clone(), text).is_some() {
            return Err(Error::usage(format!("there are two documents of the name `{name}`")));
        }
    }
    Ok(documents)
}

/// Reads a disk's list of changed extents.
pub(super) fn read_list(
    options: &BackupOptions,
    number: usize,
    id: &Name,
    size: u64,
    emit: Emit<'_>,
) -> Result<ExtentsFile> {
    let path = options.extents.iter().find(|(listed, _)| listed == id).map(|(_, path)| path);
    let path =
        path.ok_or_else(|| Error::usage(format!("there is no list of extents for the disk `{id}`")))?;
    let label = path.display().to_string();
    let file = File::open(path).map_err(|error| Error::io(Operation::Open, &label, &error))?;
    let parsed = extents_file::parse(BufReader::new(file), Some(size)).map_err(|error| error.at(&label))?;
    if let Some(listed) = parsed.size.filter(|&listed| listed != size) {
        let message = format!("the list is of a disk of {listed} bytes, and `{id}` has {size}");
        return Err(Error::usage(message)
            .at(label)
            .hint("make the list again, or leave it out to read everything"));
    }
    if parsed.dialect != Dialect::Mover {
        emit(Event::Choice {
            about: "extents".into(),
            chosen: parsed.dialect.to_string(),
            reason: "the list has the shape of that tool's output".into(),
            pair: Some(number),
        });
    }
    Ok(parsed)
}
