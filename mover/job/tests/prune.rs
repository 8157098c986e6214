//! `prune`, `list`, `show` and `catalog` on repositories of manifests.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use mover_engine::Control;
use mover_job::repository::access::RepositoryOptions;
use mover_job::repository::{catalog, list, prune, show};
use mover_model::event::{Event, RunResult};
use mover_model::manifest::{Disk, MANIFEST_VERSION, Manifest, Method, Stored};
use mover_model::{ChunkId, ErrorKind, Name, PointSelector};
use mover_repository::index::doom::{self, DoomList};
use mover_repository::notes::{self, PointNote};
use mover_repository::session::{Purpose, Session};
use mover_repository::store::{LocalStore, Put};
use mover_repository::{InitOptions, ObjectName, Repository, Secret, manifests};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

struct Bench {
    folder: tempfile::TempDir,
    repository: Arc<Repository>,
    events: Mutex<Vec<Event>>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::new(folder.path().join("repo")));
        let repository = Arc::new(Repository::init(store, &InitOptions::default(), &Secret::None).unwrap());
        Bench { folder, repository, events: Mutex::default() }
    }

    fn options(&self) -> RepositoryOptions {
        let at = |name: &str| -> PathBuf { self.folder.path().join(name) };
        RepositoryOptions { folder: at("repo"), state: Some(at("state")), ..RepositoryOptions::default() }
    }

    /// A point a day.
    fn points(&self, vm: &str, days: std::ops::RangeInclusive<u64>) {
        for day in days {
            let time = jiff::Timestamp::from_second(1_700_000_000 + day as i64 * 86_400).unwrap().to_string();
            let manifest = Manifest {
                version: MANIFEST_VERSION,
                repository: self.repository.config().id.clone(),
                namespace: String::new(),
                vm: name(vm),
                vm_uuid: None,
                point: name(&format!("p{day}")),
                parent: None,
                sequence: day,
                run_key: None,
                labels: Default::default(),
                started: time.clone(),
                finished: time,
                host: "host".into(),
                mover: "0".into(),
                damaged: false,
                disks: vec![Disk {
                    id: name("vda"),
                    size: 1 << 30,
                    chunk_size: 128 << 10,
                    root: ChunkId([1; 32]),
                    data_bytes: 0,
                    method: Method::Full,
                    reason: None,
                    base: None,
                    checkpoint: None,
                    source: "x".into(),
                    path: None,
                    identity: None,
                    common: None,
                    bad_extents: vec![],
                    read_bytes: 0,
                    stored: Stored::default(),
                }],
                stored: Stored::default(),
                quiesce: None,
                time_point: None,
                documents: [("domain.xml".to_owned(), "<domain/>".to_owned())].into(),
            };
            assert_eq!(manifests::commit(&self.repository, &manifest).unwrap(), Put::Done);
        }
    }

    fn note(&self, vm: &str, point: &str, damaged: bool) {
        let note = match damaged {
            true => {
                PointNote::Damaged { time: "2026-01-01T00:00:00Z".into(), extents: vec![(name("vda"), 0, 1)] }
            }
            false => PointNote::Verified { time: "2026-01-01T00:00:00Z".into() },
        };
        notes::put_point(&self.repository, &name(vm), &name(point), &note).unwrap();
    }

    fn prune(&self, change: impl FnOnce(&mut prune::PruneOptions)) -> RunResult {
        let mut options =
            prune::PruneOptions { repository: self.options(), ..prune::PruneOptions::default() };
        change(&mut options);
        prune::run(&options, &Control::new(), &|event| self.events.lock().unwrap().push(event))
    }

    fn left(&self, vm: &str) -> Vec<String> {
        let all = manifests::all(&self.repository, &name(vm)).unwrap();
        all.points.iter().map(|manifest| manifest.point.to_string()).collect()
    }
}

fn kind(result: &RunResult) -> (u8, ErrorKind) {
    (result.exit_code, result.error.as_ref().unwrap().kind)
}

#[test]
fn a_dry_run_says_what_the_run_does() {
    let bench = Bench::new();
    bench.points("web", 1..=10);
    bench.points("db", 1..=3);
    bench.note("web", "p1", false);
    let keep_two = |options: &mut prune::PruneOptions| options.keep_last = Some(2);
    let dry = bench.prune(|options| {
        keep_two(options);
        options.dry_run = true;
    });
    assert_eq!((dry.exit_code, bench.left("web").len()), (0, 10));
    let plan = dry.prune.unwrap();
    assert!(plan.dry_run);
    assert_eq!(plan.points.iter().filter(|point| point.keep).count(), 4);
    assert_eq!(*bench.events.lock().unwrap(), [Event::PrunePlan(plan.clone())]);

    // The plan is told while everything is still there.
    let told = Mutex::new(Vec::new());
    let mut options = prune::PruneOptions { repository: bench.options(), ..prune::PruneOptions::default() };
    keep_two(&mut options);
    let done = prune::run(&options, &Control::new(), &|event| {
        if let Event::PrunePlan(plan) = &event {
            told.lock().unwrap().push((plan.points.clone(), bench.left("web").len(), bench.left("db").len()));
        }
        bench.events.lock().unwrap().push(event);
    });
    assert_eq!(done.exit_code, 0, "{:?}", done.error);
    assert_eq!(told.into_inner().unwrap(), [(plan.points.clone(), 10, 3)]);
    assert_eq!(done.prune.unwrap().points, plan.points);
    assert_eq!(
        (bench.left("web"), bench.left("db")),
        (vec!["p9".into(), "p10".into()], vec!["p2".into(), "p3".into()])
    );
    assert!(bench.repository.store().list("notes/").unwrap().is_empty());
    assert!(format!("{:?}", bench.events.lock().unwrap()).contains("mover gc"));
    assert!(bench.repository.store().list("sessions/").unwrap().is_empty());
    // One machine only.
    let one = bench.prune(|options| {
        options.keep_last = Some(1);
        options.vm = Some(name("db"));
    });
    assert_eq!((one.exit_code, bench.left("web").len(), bench.left("db").len()), (0, 2, 1));
}

#[test]
fn no_rule_is_an_error_and_the_last_point_stays() {
    let bench = Bench::new();
    bench.points("web", 1..=2);
    assert_eq!(kind(&bench.prune(|_| ())), (2, ErrorKind::Usage));
    assert_eq!(kind(&bench.prune(|options| options.keep_last = Some(0))), (5, ErrorKind::Refused));
    let none = bench.prune(|options| {
        options.keep_last = Some(1);
        options.vm = Some(name("nobody"));
    });
    assert_eq!(kind(&none), (10, ErrorKind::NotFound));
    assert!(none.error.unwrap().hint.unwrap().contains("web"));
    assert_eq!(bench.left("web").len(), 2);
    // The newest is damaged: the whole one stays.
    bench.note("web", "p2", true);
    assert_eq!(bench.prune(|options| options.keep_daily = Some(1)).exit_code, 0);
    assert_eq!(bench.left("web"), ["p1"]);
}

#[test]
fn points_newer_than_a_mark_wait() {
    let bench = Bench::new();
    bench.points("web", 1..=2);
    let gc = Session::begin(&bench.repository, Purpose::Gc).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    bench.points("web", 3..=5);
    let keep_one = |options: &mut prune::PruneOptions| options.keep_last = Some(1);
    let result = bench.prune(keep_one);
    assert_eq!(bench.left("web"), ["p3", "p4", "p5"]);
    let plan = result.prune.unwrap().points;
    assert!(plan[2].keep && plan[2].reasons[0].contains("gc"), "{plan:?}");
    // Its list outlives it.
    let list = DoomList::new(ObjectName::random().unwrap(), gc.began(), &[]);
    doom::put(&bench.repository, &list).unwrap();
    gc.end().unwrap();
    assert_eq!(bench.prune(keep_one).exit_code, 0);
    assert_eq!(bench.left("web").len(), 3);
    doom::delete(&bench.repository, &list).unwrap();
    assert_eq!(bench.prune(keep_one).exit_code, 0);
    assert_eq!(bench.left("web"), ["p5"]);
}

#[test]
fn two_prunes_do_not_run_at_once() {
    let bench = Bench::new();
    bench.points("web", 1..=2);
    let other = Session::begin(&bench.repository, Purpose::Prune).unwrap();
    assert_eq!(kind(&bench.prune(|options| options.keep_last = Some(1))), (9, ErrorKind::Busy));
    assert_eq!(bench.left("web").len(), 2);
    other.end().unwrap();
    assert_eq!(bench.prune(|options| options.keep_last = Some(1)).exit_code, 0);
}

#[test]
fn lists_and_shows_what_is_there() {
    let bench = Bench::new();
    bench.points("web", 1..=3);
    bench.points("db", 1..=1);
    bench.note("web", "p2", false);
    let emit = |event| bench.events.lock().unwrap().push(event);
    let of = |vm: Option<&str>| list::ListOptions { repository: bench.options(), vm: vm.map(name) };
    let all = list::run(&of(None), &emit).unwrap();
    let machines = all.machines.as_ref().unwrap();
    assert_eq!((machines.len(), machines[1].vm.as_str(), machines[1].points), (2, "web", 3));
    assert_eq!((machines[1].latest.as_deref(), machines[1].size), (Some("p3"), 1 << 30));
    assert_eq!(serde_json::to_value(&all).unwrap()["points"], serde_json::Value::Null);
    let web = list::run(&of(Some("web")), &emit).unwrap().points.unwrap();
    assert_eq!(web.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["p1", "p2", "p3"]);
    assert_eq!((web[1].verified_at.is_some(), web[2].verified_at.is_some()), (true, false));
    assert_eq!(list::run(&of(Some("nobody")), &emit).unwrap_err().kind(), ErrorKind::NotFound);

    let shown = |point: PointSelector| {
        show::run(&show::ShowOptions { repository: bench.options(), vm: name("web"), point }, &emit)
    };
    let latest = shown(PointSelector::Latest).unwrap();
    assert_eq!((latest.id.as_str(), latest.disks[0].checkpoint.as_str()), ("p3", "web@p3"));
    assert_eq!(latest.documents["domain.xml"], 9);
    assert!(shown(PointSelector::Id(name("p2"))).unwrap().verified_at.is_some());
    assert_eq!(shown(PointSelector::Id(name("p9"))).unwrap_err().kind(), ErrorKind::NotFound);

    let rebuilt = catalog::rebuild(&bench.options(), &emit).unwrap();
    assert_eq!((rebuilt.repositories.len(), rebuilt.repositories[0].points), (1, 4));
    let status = catalog::status(bench.options().state.as_ref()).unwrap();
    assert_eq!(status.repositories[0].machines, 2);
    assert!(bench.events.lock().unwrap().is_empty());
    // A damaged catalog: said, and the list is right.
    std::fs::write(&status.path, b"not a database".repeat(400)).unwrap();
    assert_eq!(list::run(&of(None), &emit).unwrap(), all);
    assert!(format!("{:?}", bench.events.lock().unwrap()).contains("made anew"));
}
