//! A process that dies, and a power cut, at every step of a local store.
//!
//! ```ignore
//! // How many steps does it take?
//! let counting = CuttingSteps::new(None);
//! work(LocalStore::with_steps(&folder, counting.clone()));
//! for at in 0..counting.steps() {
//!     for side in [Side::Before, Side::After] {
//!         let cutting = CuttingSteps::new(Some(Cut { at, side }));
//!         work(LocalStore::with_steps(&fresh_folder, cutting.clone())); // fails: nothing works after the cut
//!         cutting.power_cut(seed);     // or leave it out: then it is only the process that died
//!         check(LocalStore::new(&fresh_folder));
//!     }
//! }
//! ```
//! All stores that take part must share one `CuttingSteps`; everything must be dropped before [`CuttingSteps::power_cut`].
//! What a ring writes is not seen: a file that was made and not synced counts as not written.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::SystemTime;

use mover_engine::pattern::SplitMix;
use mover_repository::store::{Step, Steps};

/// On which side of a step the process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The step does not happen.
    Before,
    /// It happens, and nobody is told.
    After,
}

/// Where the process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Number of the step, from 0, in the order in which they begin.
    pub at: usize,
    /// Before or after it.
    pub side: Side,
}

/// Counts the steps of a local store, and ends the process, as it were, at one of them: that step and all later ones
/// answer with an error.
pub struct CuttingSteps {
    cut: Option<Cut>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    begun: usize,
    dead: bool,
    /// What each thread's step is, and what it will need to be undone.
    current: HashMap<ThreadId, (usize, Option<Removed>)>,
    trace: Vec<Step>,
    /// Files whose last write was not followed by a sync, by their temporary names; and where those names lead.
    unsynced: BTreeMap<PathBuf, Vec<PathBuf>>,
    /// Changes of a folder's names since it was synced.
    pending: Vec<Change>,
}

/// A name as it was before it was removed.
#[derive(Clone)]
enum Removed {
    Folder,
    File { content: Vec<u8>, modified: SystemTime },
}

enum Change {
    Added(PathBuf),
    Removed(PathBuf, Removed),
}

impl Change {
    fn path(&self) -> &Path {
        match self {
            Change::Added(path) | Change::Removed(path, _) => path,
        }
    }
}

impl CuttingSteps {
    /// Counts, and cuts where that is said.
    pub fn new(cut: Option<Cut>) -> Arc<Self> {
        Arc::new(CuttingSteps { cut, state: Mutex::default() })
    }

    /// Steps that were begun.
    pub fn steps(&self) -> usize {
        self.state.lock().unwrap().begun
    }

    /// Whether the cut has come.
    pub fn is_dead(&self) -> bool {
        self.state.lock().unwrap().dead
    }

    /// The process dies now, if it has not before.
    pub fn die(&self) {
        self.state.lock().unwrap().dead = true;
    }

    /// The steps that happened, in the order in which they ended.
    pub fn trace(&self) -> Vec<Step> {
        self.state.lock().unwrap().trace.clone()
    }

    /// What a power cut leaves: each name whose folder was not synced since it was added or removed, and each content that
    /// was not synced since it was written, is either there or not, as the seed has it. Both are allowed to a
    /// filesystem, in any mixture. Returns what it did, for messages.
    ///
    /// Temporary names that were removed come back with a stump of their content.
    pub fn power_cut(&self, seed: u64) -> Vec<String> {
        let mut state = self.state.lock().unwrap();
        state.dead = true;
        let mut random = SplitMix::new(seed);
        let mut done = Vec::new();
        for names in std::mem::take(&mut state.unsynced).into_values() {
            let Some(name) = names.iter().find(|name| name.is_file()) else { continue };
            let length = std::fs::metadata(name).unwrap().len();
            let fate = random.below(4);
            let keep = if length == 0 { 0 } else { random.below(length + 1) };
            match fate {
                0 => done.push(format!("{} survives unsynced", name.display())),
                1 => {
                    let file = std::fs::OpenOptions::new().write(true).open(name).unwrap();
                    file.set_len(keep).unwrap();
                    done.push(format!("{} is cut to {keep} of {length} bytes", name.display()));
                }
                _ => {
                    // Blocks that never reached the disk read as zeros, or as what was there before.
                    let mut content = std::fs::read(name).unwrap();
                    for block in content.chunks_mut(4096) {
                        match random.below(3) {
                            0 => block.fill(0),
                            1 => random.fill(block),
                            _ => {}
                        }
                    }
                    overwrite(name, &content);
                    done.push(format!("{} has lost blocks", name.display()));
                }
            }
        }
        // Backwards: a name that was added and removed again is undone in the order that makes sense.
        for change in std::mem::take(&mut state.pending).into_iter().rev() {
            if random.below(2) == 0 {
                continue;
            }
            match change {
                Change::Added(path) if path.is_dir() => {
                    // Nothing finds what lies in a folder without a name.
                    std::fs::remove_dir_all(&path).unwrap();
                    done.push(format!("{} was never made", path.display()));
                }
                Change::Added(path) => {
                    if std::fs::remove_file(&path).is_ok() {
                        done.push(format!("{} was never there", path.display()));
                    }
                }
                Change::Removed(path, Removed::Folder) => {
                    if std::fs::create_dir(&path).is_ok() {
                        done.push(format!("{} is back", path.display()));
                    }
                }
                Change::Removed(path, Removed::File { content, modified }) => {
                    // Not where the folder is gone, or another has the name.
                    if path.parent().is_some_and(Path::is_dir) && !path.exists() {
                        std::fs::write(&path, &content).unwrap();
                        std::fs::File::open(&path).unwrap().set_modified(modified).unwrap();
                        done.push(format!("{} is back", path.display()));
                    }
                }
            }
        }
        done
    }

    fn killed() -> io::Error {
        io::Error::other("the process has died (a test's cut)")
    }
}

/// Overwrites a file under all its names, and leaves its time as it is.
fn overwrite(path: &Path, content: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(content, 0).unwrap();
    file.set_modified(modified).unwrap();
}

fn is_temporary(path: &Path) -> bool {
    path.parent().and_then(Path::file_name).is_some_and(|folder| folder == "tmp")
}

/// What is needed to bring a name back. Of temporary files a stump is enough: nobody reads them.
fn saved(path: &Path) -> Option<Removed> {
    let meta = std::fs::symlink_metadata(path).ok()?;
    if meta.is_dir() {
        return Some(Removed::Folder);
    }
    let modified = meta.modified().ok()?;
    let content = if is_temporary(path) { b"stump".to_vec() } else { std::fs::read(path).ok()? };
    Some(Removed::File { content, modified })
}

impl Steps for CuttingSteps {
    fn before(&self, step: &Step) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let number = state.begun;
        state.begun += 1;
        if self.cut == Some(Cut { at: number, side: Side::Before }) {
            state.dead = true;
        }
        if state.dead {
            return Err(CuttingSteps::killed());
        }
        let removed = if let Step::Remove(path) = step { saved(path) } else { None };
        let own = std::thread::current().id();
        let last = state.current.insert(own, (number, removed)).map(|(last, _)| last);
        if last.is_some() && last == self.cut.filter(|cut| cut.side == Side::After).map(|cut| cut.at) {
            // The system refused the step itself, so it had no other side: the process dies right behind it.
            state.current.remove(&own);
            state.dead = true;
            return Err(CuttingSteps::killed());
        }
        if let Step::Write(path) = step {
            // From the moment it begins.
            state.unsynced.entry(path.clone()).or_insert_with(|| vec![path.clone()]);
        }
        Ok(())
    }

    fn after(&self, step: &Step) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let (number, removed) =
            state.current.remove(&std::thread::current().id()).expect("a step begins before it ends");
        match step {
            Step::Create(path) => {
                state.unsynced.insert(path.clone(), vec![path.clone()]);
                state.pending.push(Change::Added(path.clone()));
            }
            Step::Write(_) => {}
            Step::SyncFile(path) => {
                state.unsynced.remove(path);
            }
            Step::Link(from, to) | Step::Rename(from, to) => {
                if let Some(names) = state.unsynced.get_mut(from) {
                    names.push(to.clone());
                }
                state.pending.push(Change::Added(to.clone()));
                if matches!(step, Step::Rename(..)) {
                    let modified = SystemTime::now();
                    let stump = Removed::File { content: b"stump".to_vec(), modified };
                    state.pending.push(Change::Removed(from.clone(), stump));
                }
            }
            Step::MakeFolder(path) => state.pending.push(Change::Added(path.clone())),
            Step::SyncFolder(folder) => {
                // `Path::new("x").parent()` is empty where the store says ".".
                let here = |path: &Path| match path.parent() {
                    Some(parent) if parent.as_os_str().is_empty() => folder == Path::new("."),
                    parent => parent == Some(folder),
                };
                state.pending.retain(|change| !here(change.path()));
            }
            Step::Remove(path) => {
                if let Some(removed) = removed {
                    state.pending.push(Change::Removed(path.clone(), removed));
                }
            }
        }
        state.trace.push(step.clone());
        if self.cut == Some(Cut { at: number, side: Side::After }) {
            state.dead = true;
        }
        if state.dead { Err(CuttingSteps::killed()) } else { Ok(()) }
    }
}
