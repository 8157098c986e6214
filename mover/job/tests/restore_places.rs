//! Restores to block devices, and past disks that other machines have in common.

#![allow(clippy::print_stderr)] // a skip and a seed are told

mod restore_home;

use std::path::{Path, PathBuf};
use std::process::Command;

use mover_engine::pattern::SplitMix;
use mover_model::event::DiskStatus;
use mover_model::manifest::Common;
use mover_model::{ErrorKind, Locator};
use restore_home::disks::{Fill, disk};
use restore_home::{CHUNK, Given, Home, run};

/// A loop device over a file; detached on drop.
struct Loop(PathBuf);

impl Loop {
    /// `None`, with the reason on standard error, where this machine gives none.
    fn over(file: &Path) -> Option<Loop> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        match output {
            Ok(output) if output.status.success() => {
                Some(Loop(String::from_utf8(output.stdout).unwrap().trim().into()))
            }
            Ok(output) => {
                eprintln!("skipped: losetup: {}", String::from_utf8_lossy(&output.stderr).trim());
                None
            }
            Err(error) => {
                eprintln!("skipped: losetup: {error}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_block_device_may_be_larger_never_smaller_and_is_compared_in_place() {
    let seed = 0x100b;
    eprintln!("seed {seed:#x}");
    let mut random = SplitMix::new(seed);
    let home = Home::plain();
    let size = (4 << 20) + 512;
    let vda = Given::new("vda", size, disk(&mut random, Fill::Mixed, size, CHUNK, 60));
    home.commit("vm1", std::slice::from_ref(&vda), &[]);
    let backing = home.path("device.img");
    // What is there must be gone where the disk has holes, and stay behind the disk's end.
    std::fs::write(&backing, vec![0x5a; 6 << 20]).unwrap();
    let Some(device) = Loop::over(&backing) else { return };
    let target = Locator::Path(device.0.clone());
    let options = home.options("vm1", &[("vda", target.clone())]);
    run(&options).expect(0);
    let found = std::fs::read(&device.0).unwrap();
    assert!(found[..size as usize] == vda.bytes());
    assert!(found[size as usize..].iter().all(|&byte| byte == 0x5a), "behind the end nothing is touched");
    let mut delta = options.clone();
    delta.delta = true;
    let done = run(&delta);
    done.expect(0);
    let moved = done.result.pairs[0].moved;
    assert_eq!((moved.written_bytes, moved.verified_bytes), (0, size));
    assert_eq!(
        std::fs::read_dir(home.path("state")).map_or(0, |files| {
            files
                .filter(|file| file.as_ref().unwrap().path().extension() == Some("mover-restore".as_ref()))
                .count()
        }),
        0,
        "no mark stays"
    );
    drop(device);
    std::fs::write(&backing, vec![0x5a; 2 << 20]).unwrap();
    let Some(device) = Loop::over(&backing) else { return };
    run(&home.options("vm1", &[("vda", Locator::Path(device.0.clone()))])).expect(5);
    assert!(std::fs::read(&device.0).unwrap().iter().all(|&byte| byte == 0x5a));
}

#[test]
fn a_common_disk_is_warned_of_kept_or_told_as_changed() {
    let seed = 0xc0330;
    eprintln!("seed {seed:#x}");
    let mut random = SplitMix::new(seed);
    let home = Home::plain();
    let base = disk(&mut random, Fill::Text, 1 << 20, CHUNK, 80);
    let own = Given::new("vda", 2 << 20, disk(&mut random, Fill::Noise, 2 << 20, CHUNK, 80));
    let common = || Common { id: "base".into(), location: "nbd://store/base".into(), pointer: None };
    let shared = || Given { common: Some(common()), ..Given::new("vdb", 1 << 20, base.clone()) };
    home.commit("vm2", &[shared()], &[]);
    home.commit("vm1", &[Given::new("vda", own.size, own.content.clone()), shared()], &[]);
    let mut options = home.options("vm1", &[("vda", home.target("a")), ("vdb", home.target("b"))]);
    let done = run(&options);
    done.expect(0);
    assert!(done.warnings().iter().any(|warning| warning.contains("vm2")), "{:?}", done.warnings());
    assert!(std::fs::read(home.path("b")).unwrap() == shared().bytes());
    let shown = done.result.point.as_ref().unwrap().disks[1].common.clone().unwrap();
    assert_eq!((shown.id.as_str(), shown.vms), ("base", vec!["vm1".to_owned(), "vm2".to_owned()]));
    (options.keep_common, options.force) = (true, true);
    std::fs::write(home.path("b"), b"as it is").unwrap();
    let done = run(&options);
    done.expect(0);
    assert_eq!(done.statuses(), [("vda", DiskStatus::Restored), ("vdb", DiskStatus::Kept)]);
    assert_eq!(std::fs::read(home.path("b")).unwrap(), b"as it is");
    // One that was known by its own path, and is another file now.
    let place = home.path("shared.img");
    std::fs::write(&place, b"another").unwrap();
    let common = Common { id: "image".into(), location: place.display().to_string(), pointer: None };
    let changed = || Given { common: Some(common.clone()), ..Given::new("vdb", 1 << 20, base.clone()) };
    home.commit("vm3", &[changed()], &[]);
    let own = Given::new("vda", own.size, own.content.clone());
    home.commit_with("vm1", &[own, changed()], |disk| {
        if disk.common.is_some() {
            disk.path = Some(place.display().to_string());
            disk.identity = Some(mover_model::manifest::FileIdentity {
                device: "0:0".into(),
                inode: 1,
                size: 7,
                mtime_ns: 1,
                ctime_ns: 1,
                birth_ns: None,
            });
        }
    });
    let done = run(&options);
    done.expect(8);
    assert_eq!(done.statuses(), [("vda", DiskStatus::Restored), ("vdb", DiskStatus::Failed)]);
    let error = done.result.error.as_ref().unwrap();
    assert_eq!((error.kind, error.disk.as_deref()), (ErrorKind::CommonChanged, Some("vdb")));
    assert!(error.message.contains("inode 1"), "{}", error.message);
    assert_eq!(std::fs::read(home.path("b")).unwrap(), b"as it is");
    assert_eq!(std::fs::read(&place).unwrap(), b"another");
}
