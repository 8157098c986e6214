//! The host's state folder, where the catalog is.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mover_engine::sys::{filesystem_magic, filesystem_name, whole_file};
use mover_model::{Error, ErrorKind, Operation, Result};
use nix::fcntl::{FcntlArg, fcntl};

/// The file in the state folder.
const CATALOG: &str = "catalog.sqlite";

/// The state folder: what was given, else `MOVER_STATE`, else `XDG_STATE_HOME/mover`, else `/var/lib/mover` for root and
/// `~/.local/state/mover` for others.
///
/// # Errors
/// `Usage` where none of these tells.
pub fn state_folder(given: Option<&Path>) -> Result<PathBuf> {
    // An empty variable counts as unset, as the XDG base directory specification has it.
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = given.map(Path::to_owned).or_else(|| variable("MOVER_STATE")) {
        return Ok(folder);
    }
    if let Some(folder) = variable("XDG_STATE_HOME").filter(|folder| folder.is_absolute()) {
        return Ok(folder.join("mover"));
    }
    if nix::unistd::geteuid().is_root() {
        return Ok("/var/lib/mover".into());
    }
    variable("HOME").map(|home| home.join(".local/state/mover")).ok_or_else(|| {
        Error::usage("there is no state folder: HOME is not set")
            .hint("name one with --state DIR or MOVER_STATE")
    })
}

/// Where the catalog is, or would be.
///
/// # Errors
/// As for [`state_folder`].
pub fn catalog_path(state: Option<&Path>) -> Result<PathBuf> {
    Ok(state_folder(state)?.join(CATALOG))
}

/// The same, with the folder made and the file made empty where they were not there, for the owner only.
pub(super) fn make_catalog_path(state: Option<&Path>) -> Result<PathBuf> {
    let folder = state_folder(state)?;
    let label = folder.display().to_string();
    DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|error| {
        Error::io(Operation::Open, &label, &error).hint("name another one with --state DIR")
    })?;
    let open = File::open(&folder).map_err(|error| Error::io(Operation::Open, &label, &error))?;
    // SQLite's WAL needs memory that all its users share, which two hosts do not.
    if let Ok(magic) = filesystem_magic(&open)
        && is_network_filesystem(magic)
    {
        let name = filesystem_name(magic);
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the state folder lies on a network filesystem ({name}, {magic:#x})"),
        )
        .at(label)
        .hint("name a local one with --state DIR or MOVER_STATE"));
    }
    let path = folder.join(CATALOG);
    // The files that SQLite makes beside it get the same permissions.
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::io(Operation::Open, path.display().to_string(), &error)),
    }
    refuse_others(&path)?;
    Ok(path)
}

/// Refuses a catalog that somebody else could have written.
fn refuse_others(path: &Path) -> Result<()> {
    let label = path.display().to_string();
    let meta = fs::symlink_metadata(path).map_err(|error| Error::io(Operation::Stat, &label, &error))?;
    let ours = meta.uid() == nix::unistd::geteuid().as_raw() || meta.uid() == 0;
    if meta.is_file() && ours && meta.permissions().mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(Error::refused(label, "it is no file of yours that only you can write")
        .hint("name another state folder with --state DIR"))
}

/// Whether a filesystem, by statfs(2)'s number, is one that several hosts may write.
pub fn is_network_filesystem(magic: i64) -> bool {
    matches!(
        // Some kernels sign-extend the 32-bit number.
        magic & 0xffff_ffff,
        0x6969 // NFS
            | 0x517b | 0xff53_4d42 | 0xfe53_4d42 // SMB
            | 0x0102_1997 // 9P
            | 0x00c3_6400 // Ceph
            | 0x6573_5546 // FUSE: sshfs, GlusterFS, s3fs; which one is not told
            | 0x5346_414f // AFS
            | 0x7375_7245 // Coda
            | 0x0116_1970 // GFS2
            | 0x7461_636f // OCFS2
            | 0x0bd0_0bd0 // Lustre
            | 0x4750_4653 // GPFS
            | 0xa501_fcf5 // VxFS
    )
}

/// The names by which a folder is known: as it was said and as it is without links, whether or not it exists. A link
/// that leads to an unmounted share is still known by its own name.
pub(super) fn places_of(folder: &Path) -> Vec<String> {
    let said = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let mut rest = Vec::new();
    let mut there = said.as_path();
    let real = loop {
        if let Ok(real) = fs::canonicalize(there) {
            break rest.iter().rev().fold(real, |path, name| path.join(name));
        }
        match (there.parent(), there.file_name()) {
            (Some(parent), Some(name)) => {
                rest.push(name.to_owned());
                there = parent;
            }
            _ => break said.clone(),
        }
    };
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut places = vec![text(&real)];
    if said != real {
        places.push(text(&said));
    }
    places
}

/// Moves a damaged catalog, with what belongs to it, to a name of its own; `None` when another process did so before.
pub(super) fn set_aside(path: &Path) -> Result<Option<PathBuf>> {
    let label = path.display().to_string();
    let failed = |error: &std::io::Error| Error::io(Operation::Link, &label, error);
    // Two processes that find it damaged must not move the second one's new file away.
    let lock = path.with_extension("lock");
    let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock);
    let lock = lock.map_err(|error| failed(&error))?;
    fcntl(&lock, FcntlArg::F_OFD_SETLKW(&whole_file(libc::F_WRLCK)))
        .map_err(|errno| Error::os(Operation::Lock, &label, errno as i32))?;
    if super::SqliteCatalog::open(path).and_then(|catalog| catalog.check()).is_ok() || !path.exists() {
        return Ok(None);
    }
    let now = jiff::Timestamp::now().as_millisecond();
    let aside = path.with_extension(format!("damaged-{now}"));
    fs::rename(path, &aside).map_err(|error| failed(&error))?;
    for suffix in ["-wal", "-shm"] {
        let mut beside = path.as_os_str().to_owned();
        beside.push(suffix);
        let mut target = aside.as_os_str().to_owned();
        target.push(suffix);
        // Not there after a clean end.
        let _ = fs::rename(beside, target);
    }
    Ok(Some(aside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_the_same_with_and_without_what_is_mounted_there() {
        let folder = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(folder.path()).unwrap();
        fs::create_dir_all(real.join("share/repo")).unwrap();
        std::os::unix::fs::symlink(real.join("share/repo"), real.join("link")).unwrap();
        let direct = places_of(&real.join("share/repo"));
        let by_link = places_of(&real.join("link"));
        assert_eq!(direct, [real.join("share/repo").display().to_string()]);
        assert_eq!(by_link, [direct[0].clone(), real.join("link").display().to_string()]);
        fs::remove_dir_all(real.join("share/repo")).unwrap();
        assert_eq!(places_of(&real.join("share/repo")), direct);
        assert!(places_of(&real.join("link")).contains(&by_link[1]));
    }

    #[test]
    fn network_filesystems_are_told_by_their_numbers() {
        for magic in [0x6969, 0xff53_4d42, i64::from(0xff53_4d42_u32 as i32), 0x6573_5546] {
            assert!(is_network_filesystem(magic), "{magic:#x}");
        }
        for magic in [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630] {
            assert!(!is_network_filesystem(magic), "{magic:#x}");
        }
    }

    #[test]
    fn folder_and_file_are_for_the_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a/b");
        let path = make_catalog_path(Some(&state)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&state), mode(&path)), (0o700, 0o600));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(make_catalog_path(Some(&state)).unwrap_err().kind(), ErrorKind::Refused);
    }
}
