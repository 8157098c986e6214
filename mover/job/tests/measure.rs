//! bench, tune and doctor on small files, for a fifth of a second each: so that they cannot rot.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mover_engine::Control;
use mover_engine::pattern::SplitMix;
use mover_job::bench::{self, BenchOptions};
use mover_job::doctor;
use mover_job::options::{EngineOptions, Profile};
use mover_job::tune::{self, TuneOptions};
use mover_model::event::Event;

const SHORT: Duration = Duration::from_millis(200);

fn ignore(_: Event) {}

fn noise(path: &Path, bytes: usize) {
    let mut data = vec![0; bytes];
    SplitMix::new(1).fill(&mut data);
    std::fs::write(path, &data).unwrap();
    std::fs::File::open(path).unwrap().sync_all().unwrap();
}

fn bench_options(paths: &[&Path]) -> BenchOptions {
    BenchOptions {
        paths: paths.iter().map(PathBuf::from).collect(),
        write: false,
        sequential: false,
        curve: false,
        runtime: SHORT,
        size: None,
        seed: 1,
        engine: EngineOptions::default(),
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn reads_of_two_files_add_up() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    noise(&a, 4 << 20);
    noise(&b, 1 << 20);
    let before = std::fs::read(&a).unwrap();
    for sequential in [false, true] {
        let options = BenchOptions { sequential, ..bench_options(&[&a, &b]) };
        let report = bench::run(&options, &Control::new(), &ignore).unwrap();
        assert_eq!((report.block_size, report.queue_depth, report.points.len()), (4096, 32, 1));
        let point = &report.points[0];
        assert_eq!((point.workers, point.paths.len()), (1, 2));
        let sum: f64 = point.paths.iter().map(|path| path.iops).sum();
        assert!(point.paths.iter().all(|path| path.iops > 0.0 && path.latency.is_some()), "{report:?}");
        assert!((sum - point.total.iops).abs() < 1.0, "{sum} {}", point.total.iops);
        assert!((point.total.gb_per_second * 1e9 / point.total.iops - 4096.0).abs() < 0.01);
        assert!(point.total.seconds >= 0.2 && point.total.seconds < 5.0);
        assert!(serde_json::to_string(&report).unwrap().contains("\"mover-bench\""));
    }
    assert_eq!(std::fs::read(&a).unwrap(), before);
}

#[test]
fn a_curve_has_a_point_for_each_count() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    noise(&path, 1 << 20);
    let mut options = BenchOptions { curve: true, ..bench_options(&[&path]) };
    options.engine.workers = Some(3);
    let report = bench::run(&options, &Control::new(), &ignore).unwrap();
    assert_eq!(report.points.iter().map(|point| point.workers).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn holes_are_not_measured() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sparse");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    let error = bench::run(&bench_options(&[&path]), &Control::new(), &ignore).unwrap_err();
    assert_eq!(error.exit_code(), 5, "{error}");
    let mut data = vec![0; 1 << 20];
    SplitMix::new(2).fill(&mut data);
    file.write_all_at(&data, 32 << 20).unwrap();
    file.sync_all().unwrap();
    let report = bench::run(&bench_options(&[&path]), &Control::new(), &ignore).unwrap();
    assert_eq!(report.paths[0].measured_bytes, 1 << 20);
    assert!(report.notes.iter().any(|note| note.contains("sparse")), "{:?}", report.notes);
}

#[test]
fn writes_go_only_into_a_file_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let existing = folder.path().join("existing");
    std::fs::write(&existing, b"precious").unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(folder.path().join("nowhere"), &link).unwrap();
    let write = |path: &Path| {
        let options = BenchOptions { write: true, size: Some(1 << 20), ..bench_options(&[path]) };
        bench::run(&options, &Control::new(), &ignore)
    };
    for refused in [&existing, &link, Path::new("/dev/null")] {
        assert_eq!(write(refused).unwrap_err().exit_code(), 5, "{}", refused.display());
    }
    for made in [folder.path().to_owned(), folder.path().join("new")] {
        let report = write(&made).unwrap();
        let figures = report.points[0].total;
        assert!(figures.iops > 0.0 && figures.latency.is_some(), "{report:?}");
    }
    assert_eq!(write(&folder.path().join("no/such")).unwrap_err().exit_code(), 10);
    // Nothing is left, after an end and after an error alike.
    let huge = BenchOptions { write: true, size: Some(1 << 60), ..bench_options(&[folder.path()]) };
    assert_eq!(bench::run(&huge, &Control::new(), &ignore).unwrap_err().exit_code(), 10);
    let stopped = Control::new();
    stopped.stop();
    let options = BenchOptions { write: true, size: Some(1 << 20), ..bench_options(&[folder.path()]) };
    assert!(bench::run(&options, &stopped, &ignore).is_err());
    assert_eq!(names(folder.path()), ["existing", "link"]);
    assert_eq!(std::fs::read(&existing).unwrap(), b"precious");
}

#[test]
fn a_stopped_run_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    noise(&path, 1 << 20);
    let control = Control::new();
    let begin = std::time::Instant::now();
    let options = BenchOptions { runtime: Duration::from_secs(60), ..bench_options(&[&path]) };
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(SHORT);
            control.stop();
        });
        bench::run(&options, &control, &ignore)
    });
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert!(report.unwrap().interrupted);
}

fn tune_options(path: &Path) -> TuneOptions {
    TuneOptions {
        path: path.to_owned(),
        write_test: false,
        save: None,
        runtime: Duration::from_millis(500),
        size: None,
        engine: EngineOptions::default(),
    }
}

#[test]
fn tune_names_flags_and_saves_a_profile() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    noise(&path, 8 << 20);
    let profile = folder.path().join("profile");
    let options = TuneOptions { save: Some(profile.clone()), ..tune_options(&path) };
    let report = tune::run(&options, &Control::new(), &ignore).unwrap();
    assert!(report.cells.len() > 3 && report.best.gb_per_second > 0.0, "{report:?}");
    assert!(report.flags.contains("--queue-depth"));
    let saved = Profile::read(&profile).unwrap();
    assert_eq!(saved.block_size, Some(report.best.block_size));
    let mut engine = EngineOptions::default();
    saved.apply(&mut engine);
    assert_eq!(
        (engine.workers, engine.queue_depth),
        (Some(report.best.workers), Some(report.best.queue_depth))
    );
    engine.check().unwrap();
}

#[test]
fn what_is_said_is_not_searched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    noise(&path, 8 << 20);
    let mut options = tune_options(&path);
    options.engine.block_size = Some(128 << 10);
    options.engine.workers = Some(1);
    let report = tune::run(&options, &Control::new(), &ignore).unwrap();
    assert!(report.cells.iter().all(|cell| (cell.block_size, cell.workers) == (128 << 10, 1)), "{report:?}");
}

#[test]
fn a_write_test_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let error = tune::run(&tune_options(folder.path()), &Control::new(), &ignore).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    let options = TuneOptions { write_test: true, size: Some(4 << 20), ..tune_options(folder.path()) };
    let report = tune::run(&options, &Control::new(), &ignore).unwrap();
    assert_eq!(report.operation, "write");
    assert!(names(folder.path()).is_empty());
    let device = TuneOptions { write_test: true, ..tune_options(Path::new("/dev/null")) };
    assert_eq!(tune::run(&device, &Control::new(), &ignore).unwrap_err().exit_code(), 5);
}

#[test]
fn doctor_reports_what_it_cannot_reach() {
    let folder = tempfile::tempdir().unwrap();
    let report = doctor::run(&[folder.path().to_owned(), folder.path().join("no/such")]);
    assert_eq!((report.paths.len(), report.errors.len(), report.exit_code), (1, 1, 10));
    assert!(!report.system.kernel.is_empty());
    assert!(serde_json::to_string(&report).unwrap().contains("\"mover-doctor\""));
    assert_eq!(doctor::run(&[]).exit_code, 0);
}
