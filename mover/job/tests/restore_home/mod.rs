//! A repository with restore points, and `restore` with its options.
#![allow(dead_code)] // several test crates use it, each in part

#[path = "../../../repository/tests/disks/mod.rs"]
pub mod disks;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use mover_engine::Control;
use mover_job::copy::Sparse;
use mover_job::options::EngineOptions;
use mover_job::repository::access::RepositoryOptions;
use mover_job::repository::restore::{self, RestoreOptions};
use mover_model::event::{DiskStatus, Event, RunResult};
use mover_model::manifest::{Common, Disk, MANIFEST_VERSION, Manifest, Method, Stored};
use mover_model::{Locator, Name, PointSelector};
use mover_repository::index::Index;
use mover_repository::manifests;
use mover_repository::read::Chunks;
use mover_repository::store::LocalStore;
use mover_repository::tree::{IdFile, Nodes, build};
use mover_repository::write::Writer;
use mover_repository::{Compression, InitOptions, Repository, Secret};

use disks::Content;

pub const CHUNK: u32 = 64 << 10;

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A disk of a restore point to be made.
pub struct Given {
    pub id: &'static str,
    pub size: u64,
    pub content: Content,
    pub common: Option<Common>,
}

impl Given {
    pub fn new(id: &'static str, size: u64, content: Content) -> Given {
        Given { id, size, content, common: None }
    }

    pub fn bytes(&self) -> Vec<u8> {
        disks::flat(self.size, CHUNK, &self.content)
    }
}

/// A repository in a scratch folder, with room for targets beside it.
pub struct Home {
    folder: tempfile::TempDir,
    pub repository: Arc<Repository>,
    pub secret: Secret,
}

/// What a restore did.
pub struct Done {
    pub result: RunResult,
    pub events: Vec<Event>,
}

impl Done {
    pub fn expect(&self, code: u8) -> &Self {
        assert_eq!(self.result.exit_code, code, "{:?}\n{:#?}", self.result.error, self.result.pairs);
        self
    }

    pub fn statuses(&self) -> Vec<(&str, DiskStatus)> {
        let point = self.result.point.as_ref().expect("a restore point");
        point.disks.iter().map(|disk| (disk.id.as_str(), disk.status)).collect()
    }

    pub fn warnings(&self) -> Vec<&str> {
        let warnings = self.events.iter().filter_map(|event| match event {
            Event::Warning { message } => Some(message.as_str()),
            _ => None,
        });
        warnings.collect()
    }

    pub fn message(&self) -> String {
        let error = self.result.error.as_ref().expect("an error");
        format!("{:?} {:?} {} {:?}", error.kind, error.path, error.message, error.hint)
    }
}

impl Home {
    pub fn new(compression: Compression, secret: &Secret) -> Home {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::new(folder.path().join("repo")));
        let init = InitOptions { chunk_size: CHUNK, compression, ..InitOptions::default() };
        let repository = Arc::new(Repository::init(store, &init, secret).unwrap());
        Home { folder, repository, secret: secret.clone() }
    }

    pub fn plain() -> Home {
        Home::new(Compression::Lz4, &Secret::None)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn target(&self, name: &str) -> Locator {
        Locator::Path(self.path(name))
    }

    /// Commits a restore point of these disks.
    pub fn commit(&self, vm: &str, given: &[Given], documents: &[(&str, &str)]) -> Name {
        self.commit_as(vm, given, documents, |_| {})
    }

    /// Likewise, with the manifest's disks changed.
    pub fn commit_with(&self, vm: &str, given: &[Given], change: impl Fn(&mut Disk)) -> Name {
        self.commit_as(vm, given, &[], change)
    }

    fn commit_as(
        &self,
        vm: &str,
        given: &[Given],
        documents: &[(&str, &str)],
        change: impl Fn(&mut Disk),
    ) -> Name {
        let index = Arc::new(Index::open(&self.repository).unwrap());
        let writer = Writer::new(self.repository.clone(), index.clone()).unwrap();
        let nodes = Nodes::new(Arc::new(Chunks::new(self.repository.clone(), index)));
        let disks = given.iter().enumerate().map(|(at, given)| {
            let ids = IdFile::new().unwrap();
            for (number, bytes) in &given.content {
                ids.set(*number, &[writer.put_data(at, bytes).unwrap()]).unwrap();
            }
            let (root, _, data_bytes) = build(&nodes, &mut &*writer, None, &ids, given.size, CHUNK).unwrap();
            Disk {
                id: name(given.id),
                size: given.size,
                chunk_size: CHUNK,
                root,
                data_bytes,
                method: Method::Full,
                reason: None,
                base: None,
                checkpoint: None,
                source: format!("/images/{}", given.id),
                path: None,
                identity: None,
                common: given.common.clone(),
                bad_extents: Vec::new(),
                read_bytes: given.size,
                stored: Stored::default(),
            }
        });
        let mut disks: Vec<_> = disks.collect();
        disks.iter_mut().for_each(change);
        writer.finish().unwrap();
        let points = manifests::all(&self.repository, &name(vm)).unwrap();
        let point = manifests::new_point().unwrap();
        let documents: BTreeMap<_, _> =
            documents.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let manifest = Manifest {
            version: MANIFEST_VERSION,
            repository: self.repository.config().id.clone(),
            namespace: String::new(),
            vm: name(vm),
            vm_uuid: None,
            point: point.clone(),
            parent: points.points.last().map(|last| last.point.clone()),
            sequence: points.points.last().map_or(1, |last| last.sequence + 1),
            run_key: None,
            labels: BTreeMap::new(),
            started: "2026-01-02T03:04:05Z".into(),
            finished: "2026-01-02T03:04:06Z".into(),
            host: "host".into(),
            mover: "0".into(),
            damaged: false,
            disks,
            stored: Stored::default(),
            quiesce: None,
            time_point: None,
            documents,
        };
        assert_eq!(
            manifests::commit(&self.repository, &manifest).unwrap(),
            mover_repository::store::Put::Done
        );
        point
    }

    pub fn repository_options(&self) -> RepositoryOptions {
        RepositoryOptions {
            folder: self.path("repo"),
            id: None,
            secret: self.secret.clone(),
            state: Some(self.path("state")),
        }
    }

    pub fn options(&self, vm: &str, disks: &[(&str, Locator)]) -> RestoreOptions {
        RestoreOptions {
            repository: self.repository_options(),
            vm: name(vm),
            point: PointSelector::Latest,
            disks: disks.iter().map(|(id, target)| (name(id), target.clone())).collect(),
            into: None,
            force: false,
            delta: false,
            resume: false,
            keep_common: false,
            engine: EngineOptions::default(),
            sparse: Sparse::default(),
            strict: false,
            dry_run: false,
        }
    }

    /// Every pack, the largest first.
    pub fn packs(&self) -> Vec<PathBuf> {
        let mut packs = Vec::new();
        for folder in std::fs::read_dir(self.path("repo/packs")).unwrap() {
            let files = std::fs::read_dir(folder.unwrap().path()).unwrap();
            packs.extend(files.map(|file| file.unwrap().path()));
        }
        packs.sort_by_key(|path| std::cmp::Reverse(std::fs::metadata(path).unwrap().len()));
        packs
    }
}

pub fn run(options: &RestoreOptions) -> Done {
    run_with(options, &Control::new(), |_| {})
}

/// Runs a restore; `see` is called with every event as it comes.
pub fn run_with(options: &RestoreOptions, control: &Control, see: impl Fn(&Event) + Sync) -> Done {
    let events = Mutex::new(Vec::new());
    let emit = |event: Event| {
        see(&event);
        events.lock().unwrap().push(event);
    };
    let result = restore::run(options, control, &emit);
    Done { result, events: events.into_inner().unwrap() }
}

pub fn change(path: &Path, how: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    how(&mut bytes);
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

pub fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().blocks() * 512
}
