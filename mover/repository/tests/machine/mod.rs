//! A machine whose disks tests make up chunk by chunk, backed up and restored through the library itself.
#![allow(dead_code)]

use std::path::Path;
use std::sync::Arc;

use mover_engine::pattern::SplitMix;
use mover_model::manifest::{Disk, MANIFEST_VERSION, Manifest, Method, Stored};
use mover_model::{ChunkId, Error, ErrorKind, Extent, ExtentKind, ExtentList, Name, Result};
use mover_repository::index::Index;
use mover_repository::keys::ChunkKind;
use mover_repository::read::Chunks;
use mover_repository::session::{Purpose, Session};
use mover_repository::store::{LocalStore, Put, Store};
use mover_repository::tree::{Base, IdFile, Nodes, build};
use mover_repository::write::Writer;
use mover_repository::{Config, InitOptions, Repository, Secret, manifests};

/// Bytes of a chunk: small, so that trees are deep and tests quick.
pub const CHUNK: usize = 16 << 10;

/// A disk: a seed for each chunk, 0 for zeros. Equal seeds are equal content.
pub type Content = Vec<u64>;

/// A name that is one.
pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// The bytes of a chunk: of odd seeds such that do not compress.
pub fn chunk(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; CHUNK];
    match seed {
        0 => {}
        _ if seed % 2 == 1 => SplitMix::new(seed).fill(&mut bytes),
        _ => {
            let mut random = SplitMix::new(seed);
            let word: Vec<u8> = (0..64).map(|_| random.below(255) as u8 + 1).collect();
            bytes.chunks_mut(64).for_each(|part| part.copy_from_slice(&word));
        }
    }
    bytes
}

/// A new repository with small chunks.
pub fn init(store: Arc<dyn Store>) -> Result<Arc<Repository>> {
    let options = InitOptions { chunk_size: CHUNK as u32, ..InitOptions::default() };
    Repository::init(store, &options, &Secret::None).map(Arc::new)
}

/// One in a folder.
pub fn init_at(folder: &Path) -> Arc<Repository> {
    init(Arc::new(LocalStore::new(folder))).unwrap()
}

/// Opens it.
pub fn open(store: Arc<dyn Store>) -> Result<Arc<Repository>> {
    Repository::open(store, &Secret::None).map(Arc::new)
}

/// Opens one in a folder.
pub fn open_at(folder: &Path) -> Arc<Repository> {
    open(Arc::new(LocalStore::new(folder))).unwrap()
}

/// A backup that is made step by step.
pub struct Backup {
    pub repository: Arc<Repository>,
    pub session: Session,
    pub index: Arc<Index>,
    pub vm: Name,
    pub point: Name,
    pub parent: Option<Manifest>,
}

impl Backup {
    /// Session, index, parent: in this order.
    pub fn begin(repository: &Arc<Repository>, vm: &str) -> Result<Self> {
        let (vm, point) = (name(vm), manifests::new_point()?);
        let session = Session::begin(repository, Purpose::Backup { vm: vm.clone(), point: point.clone() })?;
        let index = Arc::new(Index::open(repository)?);
        let parent = manifests::all(repository, &vm)?.points.pop();
        Ok(Backup { repository: repository.clone(), session, index, vm, point, parent })
    }

    /// Stores the chunks and the tree of a disk. With `before`, what the parent has, only chunks that differ are looked at.
    pub fn store(&self, content: &Content, before: Option<&Content>) -> Result<Manifest> {
        let writer = Writer::new(self.repository.clone(), self.index.clone())?;
        let ids = IdFile::new()?;
        let base = self.parent.as_ref().zip(before).filter(|(_, before)| before.len() == content.len());
        let mut changed = ExtentList::new();
        for (number, seed) in content.iter().enumerate() {
            if base.is_some_and(|(_, before)| before[number] == *seed) {
                continue;
            }
            changed.push(Extent::new((number * CHUNK) as u64, CHUNK as u64, ExtentKind::Data));
            if *seed != 0 {
                let id = writer.put_data(0, &chunk(*seed))?;
                ids.set(number as u64, &[id])?;
            }
        }
        let size = (content.len() * CHUNK) as u64;
        let chunks = Arc::new(Chunks::new(self.repository.clone(), self.index.clone()));
        writer.finish()?;
        let base = base.map(|(parent, _)| Base {
            root: &parent.disks[0].root,
            changed: &changed,
            data_bytes: parent.disks[0].data_bytes,
        });
        let (root, _, data_bytes) =
            build(&Nodes::new(chunks), &mut &*writer, base, &ids, size, CHUNK as u32)?;
        let stored = writer.finish()?;
        Ok(self.manifest(size, root, data_bytes, stored))
    }

    fn manifest(&self, size: u64, root: ChunkId, data_bytes: u64, stored: Stored) -> Manifest {
        let Config { id, .. } = self.repository.config();
        let now = "2026-11-20T19:30:00Z".to_owned();
        Manifest {
            version: MANIFEST_VERSION,
            repository: id.clone(),
            namespace: String::new(),
            vm: self.vm.clone(),
            vm_uuid: None,
            point: self.point.clone(),
            parent: self.parent.as_ref().map(|parent| parent.point.clone()),
            sequence: self.parent.as_ref().map_or(1, |parent| parent.sequence + 1),
            run_key: None,
            labels: Default::default(),
            started: now.clone(),
            finished: now,
            host: "test".into(),
            mover: "test".into(),
            damaged: false,
            disks: vec![Disk {
                id: name("vda"),
                size,
                chunk_size: CHUNK as u32,
                root,
                data_bytes,
                method: Method::Scan,
                reason: None,
                base: None,
                checkpoint: None,
                source: "test".into(),
                path: None,
                identity: None,
                common: None,
                bad_extents: Vec::new(),
                read_bytes: size,
                stored,
            }],
            stored,
            quiesce: None,
            time_point: None,
            documents: Default::default(),
        }
    }

    /// Commits, and ends the session.
    pub fn commit(self, manifest: &Manifest) -> Result<()> {
        self.session.check()?;
        match manifests::commit(&self.repository, manifest)? {
            Put::Done => self.session.end(),
            Put::Exists => Err(Error::new(ErrorKind::Busy, "the session was ended by another process")),
        }
    }
}

/// A whole backup.
pub fn back_up(
    repository: &Arc<Repository>,
    vm: &str,
    content: &Content,
    before: Option<&Content>,
) -> Result<Manifest> {
    let backup = Backup::begin(repository, vm)?;
    let manifest = backup.store(content, before)?;
    backup.commit(&manifest)?;
    Ok(manifest)
}

/// Deletes a restore point, as prune does once it may.
pub fn prune(repository: &Repository, manifest: &Manifest) {
    let key = manifests::manifest_key(&manifest.vm, &manifest.point);
    repository.store().delete(&key).unwrap();
}

/// Reads a restore point's disk and compares every chunk.
pub fn restore(repository: &Arc<Repository>, manifest: &Manifest, content: &Content) -> Result<()> {
    let session = Session::begin(repository, Purpose::Read { verb: "restore".into() })?;
    let compared = compare(repository, manifest, content);
    session.end()?;
    compared
}

fn compare(repository: &Arc<Repository>, manifest: &Manifest, content: &Content) -> Result<()> {
    let index = Arc::new(Index::open_for_reading(repository)?);
    let chunks = Arc::new(Chunks::new(repository.clone(), index));
    let nodes = Nodes::new(chunks.clone());
    let root = nodes.root(&manifest.disks[0].root)?;
    assert_eq!(root.size, (content.len() * CHUNK) as u64);
    let ids = nodes.chunk_ids(&root, 0, content.len() as u64)?;
    for (number, (id, seed)) in ids.iter().zip(content).enumerate() {
        assert_eq!(id.is_hole(), *seed == 0, "chunk {number}");
        if !id.is_hole() {
            assert!(chunks.get(id, ChunkKind::Data)? == chunk(*seed), "chunk {number} of {}", manifest.point);
        }
    }
    Ok(())
}

/// Content of `chunks` chunks with seeds from `first` on.
pub fn content(first: u64, chunks: usize) -> Content {
    (first..).take(chunks).collect()
}
