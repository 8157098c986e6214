//! From what the user said to an open repository.

use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mover_model::event::{Degradation, Event};
use mover_model::units::format_size;
use mover_model::{Error, ErrorKind, Operation, Result};
use mover_repository::session::{Purpose, Session};
use mover_repository::store::{LocalStore, Store};
use mover_repository::{Config, InitOptions, Repository, Secret, catalog};

use crate::Emit;

/// Time from the making of a repository's folder to its config's put, with an argon2id and some slow fsyncs between.
const INIT_TAKES: Duration = Duration::from_secs(3);

/// Which repository, and how it is opened. Every verb that works on one takes it.
#[derive(Debug, Clone, Default)]
pub struct RepositoryOptions {
    /// The folder (`--repo`, or `MOVER_REPO`).
    pub folder: PathBuf,
    /// `--repo-id`: any other one is refused (`WrongIdentity`).
    pub id: Option<String>,
    /// What opens it.
    pub secret: Secret,
    /// `--state DIR`: where the catalog is; `None`: the host's state folder.
    pub state: Option<PathBuf>,
}

/// Opens the repository.
///
/// # Errors
/// `NotFound`, `WrongIdentity`, `Unsupported`, `Corruption`, `Key`, and the store's.
pub fn open(options: &RepositoryOptions) -> Result<Arc<Repository>> {
    match find(&options.folder)? {
        // Whoever needs the catalog hears from it what is wrong with it.
        Place::Folder(folder) => open_at(options, folder, &|_| ()),
        Place::Missing(folder) => Err(missing(options, &folder)),
    }
}

/// Begins the session of a verb that only reads. Where nothing can be put (the filesystem is full or read-only, or the
/// user may not write there) the verb goes on without one, and the degradation says so: what is there can be read all
/// the same, and what a gc deletes meanwhile is an error of the read, never wrong content.
///
/// # Errors
/// The store's, but for those.
pub fn begin_reading(
    repository: &Arc<Repository>,
    verb: &str,
) -> Result<(Option<Session>, Option<Degradation>)> {
    let error = match Session::begin(repository, Purpose::Read { verb: verb.to_owned() }) {
        Ok(session) => return Ok((Some(session), None)),
        Err(error) => error,
    };
    let cannot_put = [libc::ENOSPC, libc::EDQUOT, libc::EROFS, libc::EACCES, libc::EPERM];
    if !error.errno().is_some_and(|errno| cannot_put.contains(&errno)) {
        return Err(error);
    }
    let degradation = Degradation {
        about: "session".into(),
        wanted: "a session, so that gc leaves what is read".into(),
        used: "none (run no gc meanwhile), and nothing is put on record".into(),
        reason: error.to_string(),
        path: Some(repository.store().label()),
    };
    Ok((None, Some(degradation)))
}

/// Ends it. A session that cannot be ended is told: gc ends it when its process is gone.
pub fn end_reading(session: Option<Session>, emit: Emit<'_>) {
    if let Some(Err(error)) = session.map(Session::end) {
        emit(Event::Warning { message: format!("the session could not be ended, gc will: {error}") });
    }
}

/// What the repository says of itself, read without a secret: whether one is needed, above all.
///
/// # Errors
/// As for [`open`], but for `Key`.
pub fn config(options: &RepositoryOptions) -> Result<(Arc<dyn Store>, Config)> {
    match find(&options.folder)? {
        Place::Folder(folder) => {
            let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder));
            let config = Repository::read_config(&*store)?;
            check_id(options, &*store, &config)?;
            Ok((store, config))
        }
        Place::Missing(folder) => Err(missing(options, &folder)),
    }
}

/// Opens the repository, or makes one with the defaults where its folder does not exist and no catalog of this host
/// knows a repository there (an unmounted share must not become one); said in an event. It is encrypted where a secret
/// was given.
///
/// # Errors
/// As for [`open`]; `Refused` where none may be made.
pub fn open_or_init(options: &RepositoryOptions, emit: Emit<'_>) -> Result<Arc<Repository>> {
    let folder = match find(&options.folder)? {
        Place::Folder(folder) => {
            await_config(&folder);
            return open_at(options, folder, emit).map_err(|error| match error.kind() {
                // It exists and is none: a mount point without its share looks so too.
                ErrorKind::NotFound => {
                    let label = options.folder.display();
                    let hint =
                        format!("make one with `mover init {label}`, if no share is to be mounted there");
                    Error::refused(label.to_string(), error.message()).hint(hint)
                }
                _ => error,
            });
        }
        Place::Missing(folder) => folder,
    };
    let label = folder.display().to_string();
    if let Some(id) = &options.id {
        let message = format!("there is no such folder, and a new repository would not be {id}");
        return Err(Error::refused(label, message).hint("is its share mounted?"));
    }
    let known = catalog::known_repository_at(options.state.as_deref(), &folder).map_err(|error| {
        let hint = "it has to say that no repository is known at this folder; `mover init` makes one without asking it";
        error.hint(hint)
    })?;
    if let Some(id) = known {
        return Err(was_known(ErrorKind::Refused, &label, &id));
    }

    let defaults = InitOptions::default();
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(&folder));
    match Repository::init(store.clone(), &defaults, &options.secret) {
        Ok(repository) => {
            remember(options.state.as_deref(), &folder, &repository, emit);
            emit(Event::Choice {
                about: "repository".into(),
                chosen: format!(
                    "a new one with the defaults: chunks of {}, {}, {}",
                    format_size(defaults.chunk_size.into()),
                    defaults.compression,
                    if repository.config().encrypted { "encrypted" } else { "not encrypted" },
                ),
                reason: format!("{label} did not exist, and no repository is known to have been there"),
                pair: None,
            });
            Ok(Arc::new(repository))
        }
        // Another first backup made it meanwhile.
        Err(error) if error.kind() == ErrorKind::Refused && Repository::exists(&*store)? => {
            open_at(options, folder, emit)
        }
        Err(error) => Err(error),
    }
}

/// Waits for the config of a folder that was made a moment ago: another first backup is making a repository of it, and
/// the config is what it puts last. A mount point without its share is older, so nobody waits there.
fn await_config(folder: &Path) {
    let is_young = || {
        let modified = folder.metadata().and_then(|meta| meta.modified()).ok()?;
        modified.elapsed().ok().map(|age| age < INIT_TAKES)
    };
    let holds_others = || {
        let mut entries = folder.read_dir().into_iter().flatten().flatten();
        entries.any(|entry| !["tmp", "keys"].iter().any(|name| entry.file_name() == *name))
    };
    while is_young() == Some(true) && !holds_others() {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn open_at(options: &RepositoryOptions, folder: PathBuf, emit: Emit<'_>) -> Result<Arc<Repository>> {
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(&folder));
    if options.id.is_some() {
        // Before the secret: that of the right repository does not open the wrong one.
        check_id(options, &*store, &Repository::read_config(&*store)?)?;
    }
    let repository = Repository::open(store, &options.secret)?;
    remember(options.state.as_deref(), &folder, &repository, emit);
    Ok(Arc::new(repository))
}

/// Lets the host's catalog know that there is a repository here, for the day when its share is not mounted.
pub(super) fn remember(state: Option<&Path>, folder: &Path, repository: &Repository, emit: Emit<'_>) {
    for message in catalog::remember(state, folder, &repository.config().id) {
        emit(Event::Warning { message });
    }
}

fn check_id(options: &RepositoryOptions, store: &dyn Store, config: &Config) -> Result<()> {
    match &options.id {
        Some(id) if !id.eq_ignore_ascii_case(&config.id) => {
            let message = format!("it is repository {}, and {id} was asked for", config.id);
            Err(Error::new(ErrorKind::WrongIdentity, message)
                .at(store.label())
                .hint("is another share mounted there? Leave out --repo-id to use it all the same"))
        }
        _ => Ok(()),
    }
}

fn missing(options: &RepositoryOptions, folder: &Path) -> Error {
    let label = folder.display().to_string();
    // Only the wording depends on the catalog here: without one the message says less.
    match catalog::known_repository_at(options.state.as_deref(), folder) {
        Ok(Some(id)) => was_known(ErrorKind::NotFound, &label, &id),
        _ => Error::new(ErrorKind::NotFound, "there is no such folder")
            .at(&label)
            .hint(format!("make a repository with `mover init {label}`, or check --repo and MOVER_REPO")),
    }
}

fn was_known(kind: ErrorKind, label: &str, id: &str) -> Error {
    Error::new(kind, format!("there is no such folder; it was the repository {id}"))
        .at(label)
        .hint(format!("is its share mounted? `mover init {label}` makes a new one all the same"))
}

/// Where a repository is, or would be: an absolute path without symbolic links, as the catalog knows it.
pub(super) enum Place {
    /// There is a folder.
    Folder(PathBuf),
    /// There is nothing.
    Missing(PathBuf),
}

/// Looks where a folder is.
pub(super) fn find(folder: &Path) -> Result<Place> {
    let label = folder.display().to_string();
    if folder.as_os_str().is_empty() {
        return Err(Error::usage("no repository was named").hint("give --repo DIR, or set MOVER_REPO"));
    }
    let failed = |error: io::Error| Error::io(Operation::Open, &label, &error);
    match folder.canonicalize() {
        Ok(path) if path.is_dir() => Ok(Place::Folder(path)),
        Ok(_) => Err(Error::refused(&label, "it is no folder").hint("a repository is a folder of its own")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            missing_path(folder, &label).map(Place::Missing)
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(Error::refused(&label, "a part of this path is no folder")
                .hint("check --repo and MOVER_REPO"))
        }
        Err(error) => Err(failed(error)),
    }
}

/// The path that a folder would have: what is there of it without symbolic links, then the rest.
fn missing_path(folder: &Path, label: &str) -> Result<PathBuf> {
    let absolute = std::path::absolute(folder).map_err(|error| Error::io(Operation::Open, label, &error))?;
    for ancestor in absolute.ancestors() {
        match ancestor.canonicalize() {
            Ok(there) => {
                let rest = absolute.strip_prefix(ancestor).unwrap_or(Path::new(""));
                if rest.components().any(|part| part == Component::ParentDir) {
                    return Err(
                        Error::usage("the path leads back out of a folder that does not exist").at(label)
                    );
                }
                return Ok(there.join(rest));
            }
            // A link to nowhere is most likely a share that is not mounted.
            Err(_) if ancestor.symlink_metadata().is_ok() => {
                return Err(Error::refused(
                    ancestor.display().to_string(),
                    "it is a symbolic link to a place that does not exist",
                )
                .hint("is its share mounted?"));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(Operation::Open, label, &error)),
        }
    }
    Ok(absolute)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    struct Bench {
        folder: tempfile::TempDir,
        events: Mutex<Vec<Event>>,
    }

    impl Bench {
        fn new() -> Self {
            Bench { folder: tempfile::tempdir().unwrap(), events: Mutex::default() }
        }

        fn options(&self, name: &str) -> RepositoryOptions {
            RepositoryOptions {
                folder: self.folder.path().join(name),
                state: Some(self.folder.path().join("state")),
                ..RepositoryOptions::default()
            }
        }

        fn open_or_init(&self, options: &RepositoryOptions) -> Result<Arc<Repository>> {
            open_or_init(options, &|event| self.events.lock().unwrap().push(event))
        }
    }

    fn kind<T>(result: Result<T>) -> ErrorKind {
        result.map(|_| ()).unwrap_err().kind()
    }

    #[test]
    fn a_missing_folder_becomes_a_repository_once_and_an_event_says_so() {
        let bench = Bench::new();
        let options = bench.options("deep/er/repo");
        assert_eq!(kind(open(&options)), ErrorKind::NotFound);
        let made = bench.open_or_init(&options).unwrap();
        let events = std::mem::take(&mut *bench.events.lock().unwrap());
        assert!(
            matches!(&events[..], [Event::Choice { about, chosen, .. }]
            if about == "repository" && chosen.contains("not encrypted")),
            "{events:?}"
        );
        assert_eq!(bench.open_or_init(&options).unwrap().id(), made.id());
        assert_eq!(open(&options).unwrap().id(), made.id());
        assert!(bench.events.lock().unwrap().is_empty());
    }

    #[test]
    fn what_exists_and_is_no_repository_does_not_become_one() {
        let bench = Bench::new();
        for (name, content) in [("empty", None), ("full", Some("x"))] {
            let options = bench.options(name);
            std::fs::create_dir(&options.folder).unwrap();
            content.inspect(|content| std::fs::write(options.folder.join("file"), content).unwrap());
            // As old as a mount point is: a young one is waited for.
            let old = std::time::SystemTime::now() - 2 * INIT_TAKES;
            std::fs::File::open(&options.folder).unwrap().set_modified(old).unwrap();
            let error = bench.open_or_init(&options).map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(error.to_string().contains("mover init"), "{error}");
            assert_eq!(kind(open(&options)), ErrorKind::NotFound);
            assert_eq!(std::fs::read_dir(&options.folder).unwrap().count(), content.iter().count());
        }
        let options = bench.options("file");
        std::fs::write(&options.folder, "x").unwrap();
        assert_eq!(kind(bench.open_or_init(&options)), ErrorKind::Refused);
        assert_eq!(kind(bench.open_or_init(&bench.options("file/below"))), ErrorKind::Refused);
        let options = bench.options("link");
        std::os::unix::fs::symlink(bench.folder.path().join("nowhere"), &options.folder).unwrap();
        assert_eq!(kind(bench.open_or_init(&options)), ErrorKind::Refused);
        assert_eq!(kind(bench.open_or_init(&bench.options("link/repo"))), ErrorKind::Refused);
        assert_eq!(kind(bench.open_or_init(&RepositoryOptions::default())), ErrorKind::Usage);
    }

    #[test]
    fn another_repository_than_the_pinned_one_is_refused() {
        let bench = Bench::new();
        let mut options = bench.options("repo");
        options.id = Some("00000000-0000-0000-0000-000000000000".into());
        assert_eq!(kind(bench.open_or_init(&options)), ErrorKind::Refused);
        assert!(!options.folder.exists());
        options.id = None;
        let made = bench.open_or_init(&options).unwrap();
        options.id = Some(made.config().id.to_uppercase());
        assert_eq!(open(&options).unwrap().id(), made.id());
        options.id = Some("00000000-0000-0000-0000-000000000000".into());
        assert_eq!(kind(open(&options)), ErrorKind::WrongIdentity);
        // The wrong repository is said, not the wrong secret.
        options.secret = Secret::Passphrase(b"x".to_vec());
        assert_eq!(kind(open(&options)), ErrorKind::WrongIdentity);
    }

    #[test]
    fn a_place_where_a_repository_was_does_not_become_a_new_one() {
        let bench = Bench::new();
        let options = bench.options("share/repo");
        let made = bench.open_or_init(&options).unwrap();
        let folder = options.folder.canonicalize().unwrap();
        assert_eq!(
            catalog::known_repository_at(options.state.as_deref(), &folder).unwrap(),
            Some(made.config().id.clone())
        );
        std::fs::rename(bench.folder.path().join("share"), bench.folder.path().join("elsewhere")).unwrap();
        let error = bench.open_or_init(&options).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(
            error.to_string().contains(&made.config().id) && error.to_string().contains("mounted"),
            "{error}"
        );
        let error = open(&options).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("mounted"), "{error}");
        assert!(!options.folder.exists());
    }

    #[test]
    fn many_first_backups_at_once_agree_on_one_repository() {
        let bench = Bench::new();
        let options = bench.options("repo");
        let ids: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| bench.open_or_init(&options).unwrap().id())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]));
        let made = bench.events.lock().unwrap().len();
        assert_eq!(made, 1);
    }
}
