//! `mover diff A B`: what changed on a disk between two restore points, as a list that `mover copy --extents` takes.

use std::io::{self, Write};
use std::sync::Arc;

use mover_model::extents_file;
use mover_model::manifest::{Disk, Manifest};
use mover_model::{Error, ErrorKind, ExtentList, Name, PointSelector, Result};
use mover_repository::index::Index;
use mover_repository::read::Chunks;
use mover_repository::tree::{self, Nodes};
use mover_repository::{Repository, manifests};
use serde::ser::{Serialize, SerializeSeq, SerializeStruct, Serializer};

use super::access::{self, RepositoryOptions};

/// What `mover diff` is told.
#[derive(Debug, Clone)]
pub struct DiffOptions {
    /// The repository.
    pub repository: RepositoryOptions,
    /// The older restore point: the machine, and which of its points.
    pub old: (Name, PointSelector),
    /// The newer one. It may be of another machine.
    pub new: (Name, PointSelector),
    /// The disk; needed where the newer point has several.
    pub disk: Option<Name>,
}

/// The answer: a `mover-extents` list (docs/formats/extents.md) with the restore points' names in fields of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiffDocument {
    /// Bytes of the disk in the newer point.
    pub size: u64,
    /// The older point, as `NAME@POINT`: what the changes count from.
    pub base: String,
    /// The newer point, as `NAME@POINT`.
    pub point: String,
    /// The disk's id.
    pub disk: String,
    /// The extents of the newer disk that differ: data, and holes where it has none.
    pub extents: ExtentList,
}

impl DiffDocument {
    /// Writes the list one entry a line, without the fields that `mover-extents` does not name.
    ///
    /// # Errors
    /// The writer's.
    pub fn write(&self, writer: impl Write) -> io::Result<()> {
        extents_file::write(writer, &self.extents, Some(self.size), Some(&self.base))
    }
}

impl Serialize for DiffDocument {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut document = serializer.serialize_struct("DiffDocument", 7)?;
        document.serialize_field("format", "mover-extents")?;
        document.serialize_field("version", &1)?;
        document.serialize_field("size", &self.size)?;
        document.serialize_field("base", &self.base)?;
        document.serialize_field("point", &self.point)?;
        document.serialize_field("disk", &self.disk)?;
        document.serialize_field("extents", &Entries(&self.extents))?;
        document.end()
    }
}

struct Entries<'a>(&'a ExtentList);

#[derive(serde::Serialize)]
struct Entry {
    start: u64,
    length: u64,
    kind: mover_model::ExtentKind,
}

impl Serialize for Entries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for extent in self.0.iter() {
            list.serialize_element(&Entry { start: extent.start, length: extent.length, kind: extent.kind })?;
        }
        list.end()
    }
}

/// Finds what differs.
///
/// # Errors
/// `NotFound` for a machine, point or disk that is not there; `Usage` where several disks are possible and none is named,
/// or the two have different chunk sizes; `Corruption` of a tree; the repository's and the store's.
pub fn run(options: &DiffOptions) -> Result<DiffDocument> {
    let repository = access::open(&options.repository)?;
    // A document has no place for events, and without a session a node that gc deletes is an error.
    let (session, _) = access::begin_reading(&repository, "diff")?;
    let compared = compare(&repository, options);
    access::end_reading(session, &|_| ());
    compared
}

fn compare(repository: &Arc<Repository>, options: &DiffOptions) -> Result<DiffDocument> {
    let index = Arc::new(Index::open(repository)?);
    let old = select(repository, &options.old)?;
    let new = select(repository, &options.new)?;
    let disk = match &options.disk {
        Some(id) => find_disk(&new, id)?,
        None => only_disk(&new)?,
    };
    let before = find_disk(&old, &disk.id)?;
    let nodes = Nodes::new(Arc::new(Chunks::new(repository.clone(), index)));
    let (old_root, new_root) = (nodes.root(&before.root)?, nodes.root(&disk.root)?);
    Ok(DiffDocument {
        size: new_root.size,
        base: format!("{}@{}", old.vm, old.point),
        point: format!("{}@{}", new.vm, new.point),
        disk: disk.id.to_string(),
        extents: tree::diff(&nodes, &old_root, &new_root)?,
    })
}

fn select(repository: &Repository, (vm, selector): &(Name, PointSelector)) -> Result<Manifest> {
    manifests::all(repository, vm)?.select(vm, selector).cloned()
}

/// The disk of an id.
///
/// # Errors
/// `NotFound`, naming the disks that there are.
pub(super) fn find_disk<'a>(manifest: &'a Manifest, id: &Name) -> Result<&'a Disk> {
    manifest.disks.iter().find(|disk| disk.id == *id).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("the restore point has no disk `{id}`"))
            .at(format!("{}@{}", manifest.vm, manifest.point))
            .hint(format!("it has {}", disk_ids(manifest)))
    })
}

fn only_disk(manifest: &Manifest) -> Result<&Disk> {
    match manifest.disks.as_slice() {
        [disk] => Ok(disk),
        _ => Err(Error::usage("the restore point has several disks, and the answer is about one")
            .at(format!("{}@{}", manifest.vm, manifest.point))
            .hint(format!("name one of them with --disk: {}", disk_ids(manifest)))),
    }
}

/// The ids of a restore point's disks, in words.
pub(super) fn disk_ids(manifest: &Manifest) -> String {
    match manifest.disks.as_slice() {
        [] => "no disks".into(),
        disks => disks.iter().map(|disk| disk.id.as_str()).collect::<Vec<_>>().join(", "),
    }
}
