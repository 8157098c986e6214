//! Repositories of manifests without disks behind them: the catalog reads nothing else.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mover_model::manifest::{Common, Disk, FileIdentity, MANIFEST_VERSION, Manifest, Method, Stored};
use mover_model::{ChunkId, Name};
use mover_repository::catalog::{self, Opened, Scope};
use mover_repository::store::{LocalStore, Put};
use mover_repository::{InitOptions, Repository, Secret, manifests};

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A repository and a state folder, side by side.
pub struct Bench {
    pub folder: tempfile::TempDir,
    pub repository: Arc<Repository>,
}

impl Bench {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = init(&folder.path().join("repo"));
        Bench { folder, repository }
    }

    pub fn place(&self) -> PathBuf {
        self.folder.path().join("repo")
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub fn catalog_file(&self) -> PathBuf {
        self.state().join("catalog.sqlite")
    }

    pub fn id(&self) -> &str {
        &self.repository.config().id
    }

    pub fn open(&self) -> Opened {
        self.open_scope(&Scope::All)
    }

    pub fn open_scope(&self, scope: &Scope) -> Opened {
        catalog::open(Some(&self.state()), &self.repository, Some(&self.place()), scope, false).unwrap()
    }

    /// As [`Bench::open`], with nothing to complain of.
    pub fn open_well(&self) -> Opened {
        let opened = self.open();
        assert_eq!(opened.warnings, [""; 0]);
        assert!(opened.unreadable.is_empty() && opened.durable);
        opened
    }

    pub fn commit(&self, manifest: &Manifest) {
        assert_eq!(manifests::commit(&self.repository, manifest).unwrap(), Put::Done);
    }

    pub fn delete(&self, manifest: &Manifest) {
        let key = manifests::manifest_key(&manifest.vm, &manifest.point);
        self.repository.store().delete(&key).unwrap();
    }
}

pub fn init(place: &Path) -> Arc<Repository> {
    let store = Arc::new(LocalStore::new(place));
    Arc::new(Repository::init(store, &InitOptions::default(), &Secret::None).unwrap())
}

/// A restore point of one disk, whose content and times follow from its number.
pub fn point(repository: &Repository, vm: &str, sequence: u64) -> Manifest {
    let id = |sequence: u64| name(&format!("p{sequence:04}"));
    let time = jiff::Timestamp::from_second(1_700_000_000 + sequence as i64 * 86_400).unwrap().to_string();
    let stored = Stored { new_chunks: 3, new_bytes: 300 + sequence, stored_bytes: 100 };
    Manifest {
        version: MANIFEST_VERSION,
        repository: repository.config().id.clone(),
        namespace: String::new(),
        vm: name(vm),
        vm_uuid: None,
        point: id(sequence),
        parent: (sequence > 1).then(|| id(sequence - 1)),
        sequence,
        run_key: None,
        labels: Default::default(),
        started: time.clone(),
        finished: time,
        host: "host".into(),
        mover: "0".into(),
        damaged: false,
        disks: vec![disk("vda", sequence as u8)],
        stored,
        quiesce: None,
        time_point: None,
        documents: Default::default(),
    }
}

pub fn disk(id: &str, content: u8) -> Disk {
    Disk {
        id: name(id),
        size: 1 << 30,
        chunk_size: 128 << 10,
        root: ChunkId([content.max(1); 32]),
        data_bytes: 1 << 20,
        method: Method::Scan,
        reason: None,
        base: None,
        checkpoint: None,
        source: "/images/vda.raw".into(),
        path: Some("/images/vda.raw".into()),
        identity: None,
        common: None,
        bad_extents: Vec::new(),
        read_bytes: 1 << 20,
        stored: Stored::default(),
    }
}

/// The same, common to several machines.
pub fn common_disk(id: &str, content: u8, common: &str, inode: u64) -> Disk {
    let identity = FileIdentity {
        device: "8:1".into(),
        inode,
        size: 1 << 30,
        mtime_ns: 1,
        ctime_ns: 2,
        birth_ns: Some(0),
    };
    Disk {
        identity: Some(identity),
        common: Some(Common { id: common.into(), location: "/images/base.raw".into(), pointer: None }),
        ..disk(id, content)
    }
}

/// Waits until folders are old enough to be known again by their stamps.
pub fn wait_for_stamps(bench: &Bench, vm: &str) {
    let begin = Instant::now();
    while bench.repository.store().stamp(&format!("manifests/{vm}/")).unwrap().is_none() {
        assert!(begin.elapsed() < Duration::from_secs(30), "no stamp after 30 s");
        std::thread::sleep(Duration::from_millis(100));
    }
}
