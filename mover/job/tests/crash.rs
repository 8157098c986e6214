//! The process dies, or the power goes, before and after every step of a backup, a prune and a gc: what was committed
//! restores bit for bit, and gc then leaves nothing that nobody needs.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

#[allow(dead_code)]
#[path = "../../repository/tests/support/cutting.rs"]
mod cutting;
#[path = "../../repository/tests/machine/mod.rs"]
mod machine;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cutting::{Cut, CuttingSteps, Side};
use machine::{Content, back_up, content, init_at, name, open, open_at, restore};
use mover_engine::Control;
use mover_engine::pattern::SplitMix;
use mover_job::repository::access::RepositoryOptions;
use mover_job::repository::gc::{GcOptions, run as run_gc};
use mover_model::event::GcResult;
use mover_model::manifest::Manifest;
use mover_model::{Name, Result};
use mover_repository::store::LocalStore;
use mover_repository::{Repository, gc, manifests};

/// What is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Backup,
    Prune,
    Gc,
}

/// The repository before the action, and what is in it.
struct Base {
    folder: PathBuf,
    points: BTreeMap<Name, Content>,
    /// The point that prune deletes.
    first: Manifest,
    newest: Content,
    added: Content,
}

fn change(content: &Content, from: usize, to: usize, seed: u64) -> Content {
    let mut changed = content.clone();
    (from..to).for_each(|number| changed[number] = seed + 2 * number as u64);
    changed
}

/// Even seeds compress well, so that copying the repository is quick.
fn even(first: u64, chunks: usize) -> Content {
    content(first, chunks).iter().map(|seed| seed * 2).collect()
}

fn prepare(folder: &Path, pruned: bool) -> Base {
    let repository = init_at(folder);
    let one = even(1000, 300);
    let two = change(&one, 20, 300, 800_000);
    let other = even(5000, 40);
    let first = back_up(&repository, "a", &one, None).unwrap();
    let second = back_up(&repository, "a", &two, Some(&one)).unwrap();
    let third = back_up(&repository, "b", &other, None).unwrap();
    let mut points = BTreeMap::from([(second.point.clone(), two.clone()), (third.point, other)]);
    if pruned {
        machine::prune(&repository, &first);
    } else {
        points.insert(first.point.clone(), one);
    }
    let added = change(&two, 100, 130, 900_000);
    Base { folder: folder.to_owned(), points, first, newest: two, added }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The action, in a process that may die. Says whether it was told that it was done.
fn act(action: Action, base: &Base, store: LocalStore) -> Result<()> {
    let repository = open(Arc::new(store))?;
    match action {
        Action::Backup => back_up(&repository, "a", &base.added, Some(&base.newest)).map(drop),
        Action::Prune => {
            let key = manifests::manifest_key(&base.first.vm, &base.first.point);
            repository.store().delete(&key)
        }
        Action::Gc => collect(&repository).map(drop),
    }
}

fn collect(repository: &Arc<Repository>) -> Result<GcResult> {
    let options = gc::Options { wait: Duration::ZERO, repack_below: 0.7, dry_run: false };
    let mut result = GcResult::default();
    gc::collect(repository, &options, &Control::new(), &|_| {}, &mut result)?;
    Ok(result)
}

/// Every point that is there restores; those that must be there are.
fn check_points(repository: &Arc<Repository>, base: &Base, action: Action, done: bool) {
    let mut found = 0;
    for vm in [name("a"), name("b")] {
        let points = manifests::all(repository, &vm).unwrap();
        assert!(points.unreadable.is_empty(), "{:?}", points.unreadable);
        for manifest in points.points {
            let content = base.points.get(&manifest.point).unwrap_or(&base.added);
            restore(repository, &manifest, content).unwrap();
            found += 1;
        }
    }
    let (least, most) = match (action, done) {
        (Action::Backup, true) => (base.points.len() + 1, base.points.len() + 1),
        (Action::Backup, false) => (base.points.len(), base.points.len() + 1),
        (Action::Prune, true) => (base.points.len() - 1, base.points.len() - 1),
        (Action::Prune, false) => (base.points.len() - 1, base.points.len()),
        (Action::Gc, _) => (base.points.len(), base.points.len()),
    };
    assert!((least..=most).contains(&found), "{found} points of {least} to {most}");
}

fn check(folder: &Path, base: &Base, action: Action, done: bool) {
    let repository = open_at(folder);
    check_points(&repository, base, action, done);
    // As the command does it.
    let options = GcOptions {
        repository: RepositoryOptions { folder: folder.to_owned(), ..RepositoryOptions::default() },
        wait: Duration::ZERO,
        ..GcOptions::default()
    };
    let result = run_gc(&options, &Control::new(), &|_| {});
    assert_eq!(result.exit_code, 0, "{:?}", result.error);
    check_points(&repository, base, action, done);
    let again = collect(&repository).unwrap();
    assert_eq!(
        (again.packs_deleted, again.packs_rewritten, again.packs_waiting, again.objects_deleted),
        (0, 0, 0, 0),
        "gc leaves orphans: {again:?}"
    );
    for prefix in ["doom/", "sessions/"] {
        assert!(repository.store().list(prefix).unwrap().is_empty(), "{prefix} is not empty");
    }
    let tmp = folder.join("tmp");
    assert!(!tmp.exists() || std::fs::read_dir(tmp).unwrap().next().is_none(), "temporary files are left");
    // And it works.
    let next = even(70_000, 10);
    let manifest = back_up(&repository, "c", &next, None).unwrap();
    restore(&repository, &manifest, &next).unwrap();
}

fn seed() -> u64 {
    let given = std::env::var("MOVER_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or(0x6d6f_7665_7231);
    println!("MOVER_SEED={seed}");
    seed
}

fn cut_everywhere(action: Action) {
    let work = tempfile::tempdir().unwrap();
    let base = prepare(&work.path().join("base"), action == Action::Gc);
    let count = |folder: &Path| {
        copy(&base.folder, folder);
        let counting = CuttingSteps::new(None);
        act(action, &base, LocalStore::with_steps(folder, counting.clone())).unwrap();
        check(folder, &base, action, true);
        counting.steps()
    };
    let steps = count(&work.path().join("whole"));
    println!("{action:?}: {steps} steps");
    let mut cases: Vec<(usize, Side, bool)> = (0..steps)
        .flat_map(|at| [Side::Before, Side::After].map(move |side| (at, side)))
        .flat_map(|(at, side)| [false, true].map(move |power| (at, side, power)))
        .collect();
    let seed = seed();
    let mut random = SplitMix::new(seed);
    for at in (1..cases.len()).rev() {
        cases.swap(at, random.below(at as u64 + 1) as usize);
    }
    let all = std::env::var_os("MOVER_LARGE").is_some();
    let begun = Instant::now();
    let mut done_cases = 0;
    for (at, side, power) in cases {
        if !all && begun.elapsed() > Duration::from_secs(6) {
            break;
        }
        let folder = work.path().join("cut");
        copy(&base.folder, &folder);
        let cutting = CuttingSteps::new(Some(Cut { at, side }));
        let ended = act(action, &base, LocalStore::with_steps(&folder, cutting.clone()));
        let lost = if power { cutting.power_cut(seed ^ at as u64) } else { Vec::new() };
        println!("{action:?} cut {side:?} step {at}, power {power}: {:?} {lost:?}", cutting.trace().last());
        check(&folder, &base, action, ended.is_ok());
        std::fs::remove_dir_all(&folder).unwrap();
        done_cases += 1;
    }
    assert!(done_cases > 3, "only {done_cases} cuts were tried");
}

#[test]
fn a_backup_is_cut_at_every_step() {
    cut_everywhere(Action::Backup);
}

#[test]
fn a_prune_is_cut_at_every_step() {
    cut_everywhere(Action::Prune);
}

#[test]
fn a_gc_is_cut_at_every_step() {
    cut_everywhere(Action::Gc);
}
