//! A folder with a repository and images, backups into it, and their content read back chunk by chunk.
#![allow(dead_code)] // each test binary uses a part of it
#![allow(clippy::print_stdout, reason = "captured, and shown when a test fails")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use mover_engine::Control;
use mover_job::options::EngineOptions;
use mover_job::repository::access::RepositoryOptions;
use mover_job::repository::backup::{BackupOptions, CommonRequest, DiskSpec, run};
use mover_model::event::{Event, RunResult};
use mover_model::manifest::{Disk, Manifest};
use mover_model::{Locator, Name};
use mover_repository::config::{Compression, InitOptions};
use mover_repository::index::Index;
use mover_repository::keys::ChunkKind;
use mover_repository::read::Chunks;
use mover_repository::store::{LocalStore, Store};
use mover_repository::tree::Nodes;
use mover_repository::{Repository, Secret, manifests};

pub const K: u64 = 1 << 10;
pub const M: u64 = 1 << 20;

/// A generator of the same numbers for the same seed (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        println!("seed {seed}");
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Noise, text and zeros in turns of odd lengths: chunks of every kind, and chunks that mix them.
    pub fn content(&mut self, length: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length as usize);
        while (bytes.len() as u64) < length {
            let run = 1 + self.below(300 * K) as usize;
            match self.below(3) {
                0 => bytes.extend((0..run.div_ceil(8)).flat_map(|_| self.next().to_le_bytes())),
                1 => bytes.extend(b"all work and no play makes the disk dull ".iter().cycle().take(run)),
                _ => bytes.resize(bytes.len() + run, 0),
            }
        }
        bytes.truncate(length as usize);
        bytes
    }

    pub fn noise(&mut self, length: u64) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(length as usize);
        bytes
    }
}

pub struct Rig {
    pub folder: tempfile::TempDir,
    pub secret: Secret,
    pub events: Mutex<Vec<Event>>,
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

impl Rig {
    pub fn new() -> Self {
        // On a disk, where there is one: direct I/O is part of what is tested.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Rig { folder, secret: Secret::None, events: Mutex::default() }
    }

    pub fn with(compression: Compression, chunk_size: u32, secret: Secret) -> Self {
        let rig = Rig { secret, ..Rig::new() };
        let options = InitOptions { chunk_size, compression, ..InitOptions::default() };
        Repository::init(Arc::new(LocalStore::new(rig.repo())), &options, &rig.secret).unwrap();
        rig
    }

    pub fn repo(&self) -> PathBuf {
        self.folder.path().join("repo")
    }

    pub fn image(&self, id: &str) -> PathBuf {
        self.folder.path().join(format!("{id}.raw"))
    }

    pub fn write(&self, id: &str, bytes: &[u8]) {
        std::fs::write(self.image(id), bytes).unwrap();
    }

    pub fn write_at(&self, id: &str, offset: u64, bytes: &[u8]) {
        File::options().write(true).open(self.image(id)).unwrap().write_all_at(bytes, offset).unwrap();
    }

    pub fn disk(&self, id: &str) -> DiskSpec {
        DiskSpec { id: name(id), locator: Locator::Path(self.image(id)), common: CommonRequest::No }
    }

    pub fn options(&self, ids: &[&str]) -> BackupOptions {
        let repository = RepositoryOptions {
            folder: self.repo(),
            secret: self.secret.clone(),
            state: Some(self.folder.path().join("state")),
            ..RepositoryOptions::default()
        };
        let disks = ids.iter().map(|id| self.disk(id)).collect();
        BackupOptions::new(repository, name("vm1"), disks)
    }

    /// With a list of extents for one disk, and what it counts from.
    pub fn list(&self, options: &mut BackupOptions, id: &str, since: &str, extents: &str) {
        let path = self.folder.path().join(format!("{id}.json"));
        std::fs::write(&path, extents).unwrap();
        options.extents.push((name(id), path));
        options.since = Some(since.to_owned());
    }

    pub fn run(&self, options: &BackupOptions) -> RunResult {
        self.run_with(options, &Control::new(), |_| {})
    }

    pub fn run_with(
        &self,
        options: &BackupOptions,
        control: &Control,
        hook: impl Fn(&Event) + Sync,
    ) -> RunResult {
        let emit = |event: Event| {
            hook(&event);
            self.events.lock().unwrap().push(event);
        };
        run(options, control, &emit)
    }

    /// A backup that must come to a good end, and whose content must be that of the images.
    pub fn backup(&self, options: &BackupOptions) -> Manifest {
        let result = self.run(options);
        assert_eq!(result.exit_code, 0, "{result:#?}");
        let point = result.point.expect("a point");
        assert!(point.committed);
        let manifest = self.manifest(&point.id);
        for spec in &options.disks {
            let Locator::Path(path) = &spec.locator else { continue };
            let disk = manifest.disks.iter().find(|disk| disk.id == spec.id).expect("the disk");
            if std::fs::metadata(path).unwrap().is_file() {
                self.expect_content(disk, path);
            }
        }
        self.expect_clean();
        manifest
    }

    pub fn repository(&self) -> Arc<Repository> {
        Arc::new(Repository::open(Arc::new(LocalStore::new(self.repo())), &self.secret).unwrap())
    }

    pub fn manifest(&self, point: &str) -> Manifest {
        manifests::get(&self.repository(), &name("vm1"), &name(point)).unwrap().expect("a manifest")
    }

    pub fn points(&self) -> Vec<Manifest> {
        manifests::all(&self.repository(), &name("vm1")).unwrap().points
    }

    /// Keys of objects below a prefix.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let listed = LocalStore::new(self.repo()).list(prefix).unwrap();
        listed.into_iter().map(|object| object.key.to_string()).collect()
    }

    /// No session and no file on its way is left.
    pub fn expect_clean(&self) {
        assert_eq!(self.keys("sessions/"), [""; 0]);
        let left: Vec<_> = std::fs::read_dir(self.repo().join("tmp"))
            .map(|entries| entries.map(|entry| entry.unwrap().file_name()).collect())
            .unwrap_or_default();
        assert!(left.is_empty(), "{left:?}");
    }

    pub fn content(&self, disk: &Disk) -> Vec<u8> {
        let mut content = Vec::new();
        self.read(disk, |_, bytes| content.extend_from_slice(bytes));
        content
    }

    /// Every chunk of a disk in order, checked against its name on the way.
    pub fn read(&self, disk: &Disk, mut chunk: impl FnMut(u64, &[u8])) {
        let repository = self.repository();
        let index = Arc::new(Index::open(&repository).unwrap());
        let chunks = Arc::new(Chunks::new(repository, index));
        let nodes = Nodes::new(chunks.clone());
        let root = nodes.root(&disk.root).unwrap();
        assert_eq!((root.size, root.chunk_size), (disk.size, disk.chunk_size));
        let count = disk.size.div_ceil(u64::from(disk.chunk_size));
        let mut data = 0;
        for (number, id) in (0..).zip(nodes.chunk_ids(&root, 0, count).unwrap()) {
            let start = number * u64::from(disk.chunk_size);
            let length = u64::from(disk.chunk_size).min(disk.size - start);
            if id.is_hole() {
                chunk(start, &vec![0; length as usize]);
                continue;
            }
            let bytes = chunks.get(&id, ChunkKind::Data).unwrap();
            assert_eq!(bytes.len() as u64, length);
            assert!(bytes.iter().any(|&byte| byte != 0), "zeros are holes, at {start}");
            data += length;
            chunk(start, &bytes);
        }
        assert_eq!(data, disk.data_bytes);
    }

    pub fn expect_content(&self, disk: &Disk, path: &Path) {
        let file = File::open(path).unwrap();
        assert_eq!(file.metadata().unwrap().len(), disk.size);
        self.read(disk, |start, bytes| {
            let mut expected = vec![0; bytes.len()];
            file.read_exact_at(&mut expected, start).unwrap();
            assert!(bytes == expected, "chunk at {start} of {}", path.display());
        });
    }
}

pub fn workers(workers: usize) -> EngineOptions {
    EngineOptions { workers: Some(workers), ..EngineOptions::default() }
}
