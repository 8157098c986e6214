//! Mounts, swap and holders: who uses a device, read from /proc and sysfs.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mover_engine::sys::read_setting;
use nix::sys::stat::{major, minor};

/// One line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `major:minor` of the filesystem.
    pub device: String,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Its type.
    pub filesystem: String,
    /// What is mounted.
    pub source: String,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}

/// All mounts of this process.
pub fn mounts() -> Vec<Mount> {
    read_setting("/proc/self/mountinfo").unwrap_or_default().lines().filter_map(parse).collect()
}

fn parse(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ');
    let device = fields.nth(2)?.to_owned();
    let point = unescape(fields.nth(1)?);
    let options = fields.next()?;
    let mut rest = after.split(' ');
    let filesystem = rest.next()?.to_owned();
    let source = unescape(rest.next()?);
    let super_options = rest.next().unwrap_or_default();
    let read_only = options.split(',').chain(super_options.split(',')).any(|option| option == "ro");
    Some(Mount { device, point: point.into(), filesystem, source, read_only })
}

/// Undoes `\040` and its like.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).filter(|d| d.iter().all(|d| (b'0'..=b'7').contains(d)));
        match (bytes[at], octal) {
            (b'\\', Some(digits)) => {
                let value = digits.iter().fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                out.push(value as u8);
                at += 4;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The mount that a path lies on; the path is absolute and without links.
pub fn mount_of<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    // Of two at one place the later one covers the earlier.
    mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.as_os_str().len())
}

/// Who uses a block device or a partition of it, in words.
pub fn users_of_device(mounts: &[Mount], number: u64) -> Vec<String> {
    let Ok(node) = std::fs::canonicalize(format!("/sys/dev/block/{}:{}", major(number), minor(number)))
    else {
        return Vec::new();
    };
    let mut users = Vec::new();
    look_at(&node, mounts, &mut users);
    for entry in std::fs::read_dir(&node).into_iter().flatten().flatten() {
        if entry.path().join("partition").exists() {
            look_at(&entry.path(), mounts, &mut users);
        }
    }
    users.dedup();
    users
}

fn look_at(node: &Path, mounts: &[Mount], users: &mut Vec<String>) {
    let Some(number) = read_setting(node.join("dev")) else { return };
    let name = node.file_name().unwrap_or_default().to_string_lossy();
    for mount in mounts {
        // btrfs shows a number of its own there: its source tells.
        if mount.device == number || number_of(&mount.source) == Some(&number).cloned() {
            users.push(format!("{name} is mounted at {}", mount.point.display()));
        }
    }
    for holder in std::fs::read_dir(node.join("holders")).into_iter().flatten().flatten() {
        users.push(format!("{name} is held by {}", holder.file_name().to_string_lossy()));
    }
    let swaps = read_setting("/proc/swaps").unwrap_or_default();
    for swap in swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
        if number_of(swap) == Some(&number).cloned() {
            users.push(format!("{name} is swap"));
        }
    }
}

/// `major:minor` of a device by its path.
fn number_of(path: &str) -> Option<String> {
    let meta = std::fs::metadata(path).ok().filter(|_| path.starts_with("/dev/"))?;
    Some(format!("{}:{}", major(meta.rdev()), minor(meta.rdev())))
}

/// Loop devices that a regular file is behind.
pub fn loops_over(meta: &std::fs::Metadata) -> Vec<String> {
    let mut users = Vec::new();
    for entry in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let Some(backing) = read_setting(entry.path().join("loop/backing_file")) else { continue };
        if std::fs::metadata(&backing).is_ok_and(|o| (o.dev(), o.ino()) == (meta.dev(), meta.ino())) {
            users.push(format!("in use as the loop device /dev/{}", entry.file_name().to_string_lossy()));
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let line =
            r"36 35 98:0 /mnt1 /mnt/a\040b rw,noatime master:1 - ext4 /dev/root\134x rw,errors=continue";
        let mount = parse(line).unwrap();
        assert_eq!(
            mount,
            Mount {
                device: "98:0".into(),
                point: "/mnt/a b".into(),
                filesystem: "ext4".into(),
                source: r"/dev/root\x".into(),
                read_only: false,
            }
        );
        assert!(parse("36 35 0:1 / / ro - tmpfs tmpfs rw").unwrap().read_only);
        assert_eq!(parse("nonsense"), None);
        let root = Mount { point: "/".into(), ..mount.clone() };
        let list = [root, mount];
        assert_eq!(mount_of(&list, Path::new("/mnt/a b/c")), Some(&list[1]));
        assert_eq!(mount_of(&list, Path::new("/mnt/a")), Some(&list[0]));
    }

    #[test]
    fn this_process_has_a_root() {
        assert!(mount_of(&mounts(), Path::new("/")).is_some());
    }
}
