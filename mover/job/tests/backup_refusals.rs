//! What a backup refuses, gives up, or finds done already: nothing is committed then, and nothing is left behind.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

mod backup_support;

use backup_support::{M, Random, Rig, name};
use mover_engine::Control;
use mover_job::repository::backup::BackupOptions;
use mover_model::event::Event;
use mover_model::manifest::Method;
use mover_model::{ErrorKind, Locator};
use mover_repository::notes::{self, PointNote};

fn rig() -> (Rig, BackupOptions) {
    let rig = Rig::new();
    rig.write("vda", &Random::new(1).noise(10 * M));
    let options = rig.options(&["vda"]);
    (rig, options)
}

fn refused(rig: &Rig, options: &BackupOptions, kind: ErrorKind) -> String {
    let before = rig.points().len();
    let result = rig.run(options);
    let error = result.error.clone().unwrap_or_else(|| panic!("{kind:?} was expected: {result:#?}"));
    assert_eq!((error.kind, result.exit_code), (kind, kind.exit_code()), "{error:?}");
    assert_eq!(rig.points().len(), before);
    rig.expect_clean();
    format!("{} {}", error.message, error.hint.unwrap_or_default())
}

#[test]
fn a_list_needs_its_base() {
    let (rig, options) = rig();
    let point = rig.backup(&options).point;
    let with = |since: &str, list: &str| {
        let mut options = options.clone();
        rig.list(&mut options, "vda", since, list);
        options
    };
    let some = r#"[{"start":0,"length":4096,"zero":false}]"#;
    let mut without = with("vm1@latest", some);
    without.since = None;
    assert!(refused(&rig, &without, ErrorKind::Usage).contains("--since"));
    let mut alone = options.clone();
    alone.since = Some("vm1@latest".into());
    refused(&rig, &alone, ErrorKind::Usage);
    let text = refused(&rig, &with("vm1@20200101T000000Z-00000000", some), ErrorKind::NotFound);
    assert!(text.contains("20200101T000000Z"), "{text}");
    assert!(refused(&rig, &with(&format!("vm2@{point}"), some), ErrorKind::Refused).contains("vm2"));
    refused(&rig, &with("vm1", some), ErrorKind::Usage);
    refused(&rig, &with("no point", some), ErrorKind::Usage);
    let past = format!(r#"[{{"start":{},"length":2,"zero":false}}]"#, 10 * M - 1);
    refused(&rig, &with("vm1@latest", &past), ErrorKind::Usage);
    // A list that names another base than --since.
    let other =
        r#"{"format":"mover-extents","version":1,"base":"vm1@20200101T000000Z-00000000","extents":[]}"#;
    assert!(refused(&rig, &with("vm1@latest", other), ErrorKind::Refused).contains("counts from"));
    // A disk that the point does not have.
    rig.write("vdb", &[1; 4096]);
    let mut new = rig.options(&["vda", "vdb"]);
    rig.list(&mut new, "vdb", "vm1@latest", some);
    assert!(refused(&rig, &new, ErrorKind::NotFound).contains("vdb"));
    // And the one that is right.
    let result = rig.run(&with(&format!("vm1@{point}"), some));
    assert_eq!(result.exit_code, 0, "{result:#?}");
}

#[test]
fn a_base_that_cannot_be_built_on_means_reading_all() {
    let (rig, options) = rig();
    let first = rig.backup(&options);
    let mut changed = options.clone();
    rig.list(&mut changed, "vda", "vm1@latest", "[]");
    // Another size.
    let bytes = std::fs::read(rig.image("vda")).unwrap();
    rig.write("vda", &bytes[..(9 * M) as usize]);
    let result = rig.run(&changed);
    assert_eq!(result.exit_code, 0);
    assert_eq!(result.degraded.iter().filter(|degraded| degraded.about == "incremental").count(), 1);
    let manifest = rig.points().pop().unwrap();
    assert_eq!(manifest.disks[0].method, Method::Scan);
    assert!(
        manifest.disks[0].reason.as_ref().unwrap().contains("bytes now"),
        "{:?}",
        manifest.disks[0].reason
    );
    rig.expect_content(&manifest.disks[0], &rig.image("vda"));
    // Found damaged.
    let note =
        PointNote::Damaged { time: "2026-11-20T00:00:00Z".into(), extents: vec![(name("vda"), 0, 4096)] };
    notes::put_point(&rig.repository(), &name("vm1"), &manifest.point, &note).unwrap();
    changed.since = Some(format!("vm1@{}", manifest.point));
    let third = rig.run(&changed);
    assert!(
        third.degraded.iter().any(|degraded| degraded.reason.contains("damaged")),
        "{:?}",
        third.degraded
    );
    assert_eq!(rig.points().len(), 3);
    // It is not the newest any more: what was changed between the two is in no list.
    assert!(refused(&rig, &changed, ErrorKind::Refused).contains("is newer"));
    // Under --strict it is an error, before anything is read.
    let newest = rig.points().pop().unwrap().point;
    notes::put_point(&rig.repository(), &name("vm1"), &newest, &note).unwrap();
    changed.since = Some(format!("vm1@{newest}"));
    changed.strict = true;
    refused(&rig, &changed, ErrorKind::Downgrade);
    assert_eq!(first.sequence, 1);
}

#[test]
fn another_machine_of_the_same_name_is_refused() {
    let (rig, mut options) = rig();
    options.vm_uuid = Some("11111111-1111-1111-1111-111111111111".into());
    rig.backup(&options);
    options.vm_uuid = None;
    assert_eq!(rig.backup(&options).vm_uuid.as_deref(), Some("11111111-1111-1111-1111-111111111111"));
    options.vm_uuid = Some("22222222-2222-2222-2222-222222222222".into());
    refused(&rig, &options, ErrorKind::WrongIdentity);
}

#[test]
fn a_repeated_run_returns_the_first_ones_point() {
    let (rig, mut options) = rig();
    options.run_key = Some("nightly 2026-11-20/1".into());
    let first = rig.run(&options);
    assert_eq!(first.exit_code, 0, "{first:#?}");
    let first = first.point.unwrap();
    assert!(first.committed && !first.repeated && first.id.starts_with("rk-"));
    rig.write("vda", &[1; 4096]);
    let second = rig.run(&options);
    let point = second.point.unwrap();
    assert_eq!((second.exit_code, &point.id, point.repeated), (0, &first.id, true));
    assert_eq!(rig.points().len(), 1);
    // Two at once: one makes it, the other finds it or is told to wait.
    options.run_key = Some("nightly 2".into());
    let results = std::thread::scope(|scope| {
        let runs = [scope.spawn(|| rig.run(&options)), scope.spawn(|| rig.run(&options))];
        runs.map(|run| run.join().unwrap())
    });
    assert_eq!(rig.points().len(), 2);
    assert!(results.iter().all(|result| matches!(result.exit_code, 0 | 9)), "{results:#?}");
    assert!(results.iter().any(|result| result.exit_code == 0));
    rig.expect_clean();
}

#[test]
fn a_run_key_survives_a_run_that_was_given_up() {
    let (rig, mut options) = rig();
    options.run_key = Some("k".into());
    let first = rig.run(&options).point.unwrap();
    // As if the first had died and gc had ended it.
    let key = mover_repository::manifests::manifest_key(&name("vm1"), &name(&first.id));
    rig.repository().store().delete(&key).unwrap();
    mover_repository::manifests::abort(&rig.repository(), &key).unwrap();
    let second = rig.run(&options).point.unwrap();
    assert!(
        second.committed && !second.repeated && second.id.starts_with(&first.id) && second.id != first.id
    );
    assert!(rig.run(&options).point.unwrap().repeated);
}

#[test]
fn a_session_that_was_ended_commits_nothing() {
    let (rig, options) = rig();
    let abort = |event: &Event| {
        if matches!(event, Event::Phase { phase } if phase == "commit") {
            let point = rig.keys("sessions/");
            assert!(!point.is_empty());
            let repository = rig.repository();
            for seen in mover_repository::session::others(&repository, None).unwrap() {
                if let mover_repository::session::Purpose::Backup { vm, point } = &seen.record.purpose {
                    let key = mover_repository::manifests::manifest_key(vm, point);
                    mover_repository::manifests::abort(&repository, &key).unwrap();
                }
            }
        }
    };
    let result = rig.run_with(&options, &Control::new(), abort);
    assert_eq!(result.exit_code, 9, "{result:#?}");
    assert!(!result.point.unwrap().committed);
    assert_eq!(rig.points().len(), 0);
    rig.expect_clean();
    rig.backup(&options);
}

#[test]
fn a_dry_run_writes_nothing() {
    let (rig, mut options) = rig();
    options.dry_run = true;
    let result = rig.run(&options);
    assert_eq!(result.exit_code, 0, "{result:#?}");
    assert!(!rig.repo().exists());
    let planned =
        |rig: &Rig| rig.events.lock().unwrap().iter().filter(|event| matches!(event, Event::Plan(_))).count();
    assert_eq!(planned(&rig), 1);
    options.dry_run = false;
    rig.backup(&options);
    let (keys, plans) = (rig.keys(""), planned(&rig));
    options.dry_run = true;
    let result = rig.run(&options);
    assert_eq!((result.exit_code, planned(&rig)), (0, plans + 1));
    assert!(!result.point.unwrap().committed);
    assert_eq!(rig.keys(""), keys);
}

#[test]
fn a_stopped_run_leaves_nothing() {
    let (rig, mut options) = rig();
    rig.write("vda", &Random::new(2).noise(100 * M));
    options.engine.rate = Some(50 * M);
    let control = Control::new();
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(500));
            control.stop();
        });
        rig.run_with(&options, &control, |_| {})
    });
    assert_eq!((result.exit_code, result.error.unwrap().kind), (1, ErrorKind::Stopped));
    assert_eq!(rig.points().len(), 0);
    rig.expect_clean();
}

#[test]
fn arguments_that_contradict_each_other() {
    let (rig, options) = rig();
    rig.backup(&options);
    let mut twice = rig.options(&["vda", "vda"]);
    refused(&rig, &twice, ErrorKind::Usage);
    twice.disks.clear();
    refused(&rig, &twice, ErrorKind::Usage);
    let mut stream = options.clone();
    stream.disks[0].locator = Locator::Stream;
    stream.record_read_errors = true;
    refused(&rig, &stream, ErrorKind::Usage);
    let mut document = options.clone();
    document.documents.push(("domain.xml".into(), rig.folder.path().join("none")));
    refused(&rig, &document, ErrorKind::Unreachable);
    std::fs::write(rig.folder.path().join("domain.xml"), "<domain/>").unwrap();
    document.documents[0].1 = rig.folder.path().join("domain.xml");
    assert_eq!(rig.backup(&document).documents["domain.xml"], "<domain/>");
}
