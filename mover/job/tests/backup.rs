//! Backups of real files through the library: content comes back bit for bit, and no more is read and stored than said.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

mod backup_support;

use std::io::Write;

use backup_support::{K, M, Random, Rig, name, workers};
use mover_engine::{Backend, Control};
use mover_job::options::EngineOptions;
use mover_job::repository::backup::{CommonRequest, DiskSpec};
use mover_model::event::{DiskStatus, Event, Status};
use mover_model::manifest::Method;
use mover_model::{ErrorKind, Locator};
use mover_repository::Secret;
use mover_repository::config::Compression;

fn latest(rig: &Rig) -> String {
    format!("vm1@{}", rig.points().last().expect("a point").point)
}

#[test]
fn the_first_backup_stores_all_the_second_nothing() {
    let rig = Rig::new();
    let mut random = Random::new(1);
    rig.write("vda", &random.content(40 * M));
    let options = rig.options(&["vda"]);
    let first = rig.backup(&options);
    assert_eq!((first.sequence, &first.parent, first.disks[0].method), (1, &None, Method::Full));
    assert!(first.stored.new_bytes > 20 * M && first.stored.new_bytes <= 41 * M, "{:?}", first.stored);
    assert!(first.stored.stored_bytes > 0 && first.disks[0].read_bytes >= 40 * M);
    let packs = rig.keys("packs/").len();
    let second = rig.backup(&options);
    assert_eq!((second.sequence, second.disks[0].method), (2, Method::Scan));
    assert_eq!(second.parent.as_ref(), Some(&first.point));
    assert_eq!(second.disks[0].root, first.disks[0].root);
    assert_eq!(second.stored, Default::default(), "nothing is new");
    assert_eq!(rig.keys("packs/").len(), packs);
    assert_eq!(rig.keys("index/").len(), 1);
}

#[test]
fn little_data_makes_few_objects() {
    let rig = Rig::new();
    rig.write("vda", &Random::new(2).noise(3 * M));
    rig.backup(&rig.options(&["vda"]));
    let count = |prefix| rig.keys(prefix).len();
    assert_eq!((count("packs/"), count("index/"), count("manifests/"), count("sessions/")), (2, 1, 1, 0));
}

#[test]
fn listed_changes_alone_are_read() {
    let rig = Rig::new();
    let mut random = Random::new(3);
    rig.write("vda", &random.noise(64 * M + 1000));
    let options = rig.options(&["vda"]);
    rig.backup(&options);
    for round in 0..3 {
        let mut extents = Vec::new();
        for eighth in 0..8 {
            let (start, length) = (eighth * 8 * M + random.below(7 * M), 1 + random.below(40 * K));
            rig.write_at("vda", start, &random.noise(length));
            extents.push((start, length));
        }
        let json: Vec<_> = extents
            .iter()
            .map(|(start, length)| format!(r#"{{"start":{start},"length":{length},"zero":false}}"#))
            .collect();
        let full = std::fs::read(rig.image("vda")).unwrap();
        let mut changed = options.clone();
        rig.list(&mut changed, "vda", &latest(&rig), &format!("[{}]", json.join(",")));
        let base = rig.points().pop().unwrap();
        let result = rig.run(&changed);
        assert_eq!(result.exit_code, 0, "{result:#?}");
        let manifest = rig.points().pop().unwrap();
        let disk = &manifest.disks[0];
        assert_eq!((disk.method, disk.base.as_ref()), (Method::Changed, Some(&base.point)));
        assert!(disk.read_bytes <= 8 * 3 * 128 * K, "{}", disk.read_bytes);
        assert!(disk.stored.new_bytes <= disk.read_bytes && disk.stored.new_bytes > 0);
        let mut differs = 0;
        let content = rig.content(disk);
        for (at, (is, should)) in content.chunks(128 << 10).zip(full.chunks(128 << 10)).enumerate() {
            if is != should {
                differs += 1;
                println!("round {round}: chunk {at} differs");
            }
        }
        assert_eq!(differs, 0);
        // The content's name does not tell how it was found.
        let scanned = rig.backup(&options);
        assert_eq!(scanned.disks[0].root, disk.root);
        assert_eq!(scanned.disks[0].data_bytes, disk.data_bytes);
        assert_eq!(scanned.stored.new_chunks, 0);
    }
}

#[test]
fn an_empty_list_reads_nothing() {
    let rig = Rig::new();
    rig.write("vda", &Random::new(4).content(20 * M));
    let options = rig.options(&["vda"]);
    let first = rig.backup(&options);
    let mut changed = options.clone();
    rig.list(&mut changed, "vda", "vm1@latest", "[]");
    let second = rig.backup(&changed);
    assert_eq!(second.disks[0].root, first.disks[0].root);
    assert_eq!((second.disks[0].read_bytes, second.stored), (0, Default::default()));
    assert_eq!(second.disks[0].data_bytes, first.disks[0].data_bytes);
}

#[test]
fn listed_zeros_are_not_read_but_where_a_chunk_is_touched_in_part() {
    let rig = Rig::new();
    rig.write("vda", &Random::new(5).noise(8 * M + 5));
    let options = rig.options(&["vda"]);
    rig.backup(&options);
    let (start, end) = (128 * K + 7, 3 * M + 9);
    rig.write_at("vda", start, &vec![0; (end - start) as usize]);
    rig.write_at("vda", 8 * M, &[0; 5]);
    let mut changed = options.clone();
    let list = format!(
        r#"[{{"start":{start},"length":{},"zero":true}},{{"start":{},"length":5,"hole":true,"zero":true}}]"#,
        end - start,
        8 * M
    );
    rig.list(&mut changed, "vda", &latest(&rig), &list);
    let manifest = rig.backup(&changed);
    assert_eq!(manifest.disks[0].read_bytes, 256 * K, "the first and the last chunk of the run");
    assert_eq!(rig.backup(&options).disks[0].root, manifest.disks[0].root);
}

#[test]
fn odd_sizes_in_every_repository() {
    let mut random = Random::new(6);
    let secrets = [Secret::None, Secret::KeyFile(vec![7; 32])];
    for (round, compression) in
        [Compression::None, Compression::Lz4, Compression::Zstd(1), Compression::Zstd(19)]
            .into_iter()
            .enumerate()
    {
        let secret = secrets[round % 2].clone();
        let chunk = [16 * K, 128 * K, 64 * K, 4 * M][round];
        println!("{compression} {chunk}");
        let rig = Rig::with(compression, chunk as u32, secret);
        let sizes =
            [0, 1, 511, chunk - 1, chunk, chunk + 1, 3 * chunk + 512, 3 * chunk + 4096, 5 * chunk - 4097];
        let ids: Vec<_> = (0..sizes.len()).map(|at| format!("vd{at}")).collect();
        for (id, size) in ids.iter().zip(sizes) {
            rig.write(id, &random.content(size));
        }
        let ids: Vec<_> = ids.iter().map(String::as_str).collect();
        let mut options = rig.options(&ids);
        let first = rig.backup(&options);
        assert_eq!(first.disks.len(), sizes.len());
        options.engine =
            EngineOptions { backend: Some(Backend::Sync), workers: Some(3), ..EngineOptions::default() };
        let second = rig.backup(&options);
        for (a, b) in first.disks.iter().zip(&second.disks) {
            assert_eq!(a.root, b.root);
        }
        assert_eq!(second.stored.new_chunks, 0);
    }
}

#[test]
fn both_backends_fill_many_packs_encrypted_or_not() {
    let mut random = Random::new(7);
    // More chunks than a pack takes, and more bytes.
    let content = random.noise(150 * M);
    for (backend, secret) in [(Backend::Uring, Secret::KeyFile(vec![1; 64])), (Backend::Sync, Secret::None)] {
        let rig = Rig::with(Compression::Lz4, 16 << 10, secret);
        rig.write("vda", &content);
        rig.write("vdb", &content[..30 << 20]);
        let mut options = rig.options(&["vda", "vdb"]);
        options.engine = EngineOptions { backend: Some(backend), ..workers(2) };
        let manifest = rig.backup(&options);
        // Equal content is stored once, whoever comes first.
        assert_eq!(manifest.stored.new_bytes / M, 150, "{:?}", manifest.stored);
        assert!(rig.keys("packs/").len() >= 4);
        // Noise goes to the packs from where it was read to.
        let result = rig.run(&options);
        assert_eq!(result.moved.copied_bytes, 0);
    }
}

#[test]
fn incompressible_chunks_are_not_copied() {
    let rig = Rig::new();
    rig.write("vda", &Random::new(8).noise(32 * M));
    let result = rig.run(&rig.options(&["vda"]));
    assert_eq!((result.exit_code, result.moved.copied_bytes), (0, 0), "{result:#?}");
    let point = result.point.unwrap();
    assert_eq!(point.disks[0].stored.stored_bytes, 32 * M);
    assert!(point.stored.stored_bytes < 33 * M, "{:?}", point.stored);
}

#[test]
fn a_sparse_disk_costs_what_it_holds() {
    let rig = Rig::new();
    let file = std::fs::File::create(rig.image("vda")).unwrap();
    file.set_len(1 << 40).unwrap();
    let mut random = Random::new(9);
    for offset in [0, 77 * M + 3, 1 << 39, (1 << 40) - 5000] {
        rig.write_at("vda", offset, &random.noise(5000));
    }
    let options = rig.options(&["vda"]);
    let begin = std::time::Instant::now();
    let result = rig.run(&options);
    println!("{:?}", begin.elapsed());
    assert_eq!(result.exit_code, 0, "{result:#?}");
    let first = rig.points().pop().unwrap();
    assert!(first.disks[0].read_bytes <= 8 * 128 * K && first.disks[0].data_bytes <= 8 * 128 * K);
    assert!(first.stored.stored_bytes < M, "{:?}", first.stored);
    // All of it was discarded: the tree is walked where there was something, and nowhere else.
    let mut changed = options.clone();
    rig.list(
        &mut changed,
        "vda",
        &latest(&rig),
        &format!(r#"[{{"start":4096,"length":{},"zero":true}}]"#, (1u64 << 40) - 8192),
    );
    let result = rig.run(&changed);
    assert_eq!(result.exit_code, 0, "{result:#?}");
    let second = rig.points().pop().unwrap();
    assert_eq!(second.disks[0].read_bytes, 256 * K);
    assert_eq!(second.disks[0].data_bytes, 256 * K);
}

#[test]
fn several_disks_are_one_point_or_none() {
    let rig = Rig::new();
    let mut random = Random::new(10);
    rig.write("vda", &random.noise(20 * M));
    rig.write("vdb", &random.noise(3 * M));
    let mut options = rig.options(&["vdb", "vda"]);
    options.labels.insert("site".into(), "a".into());
    let manifest = rig.backup(&options);
    assert_eq!(manifest.disks.iter().map(|disk| disk.id.as_str()).collect::<Vec<_>>(), ["vda", "vdb"]);
    assert_eq!(manifest.labels["site"], "a");
    // One of them is not there: nothing is made.
    options.disks.push(rig.disk("gone"));
    let result = rig.run(&options);
    assert_eq!((result.exit_code, result.error.unwrap().kind), (10, ErrorKind::Unreachable));
    assert_eq!(rig.points().len(), 1);
    rig.expect_clean();
}

#[test]
fn a_disk_that_shrinks_fails_the_backup_and_the_others_with_it() {
    let rig = Rig::new();
    let mut random = Random::new(11);
    rig.write("vda", &random.noise(64 * M));
    rig.write("vdb", &random.noise(64 * M));
    let mut options = rig.options(&["vda", "vdb"]);
    options.engine.rate = Some(64 * M);
    let shrink = |event: &Event| {
        if matches!(event, Event::Phase { phase } if phase == "backup") {
            std::fs::File::options().write(true).open(rig.image("vdb")).unwrap().set_len(4 * M).unwrap();
        }
    };
    let result = rig.run_with(&options, &Control::new(), shrink);
    assert_eq!((result.exit_code, result.status), (1, Status::Failed));
    let error = result.error.unwrap();
    assert_eq!((error.kind, error.disk.as_deref()), (ErrorKind::SourceShrank, Some("vdb")), "{error:?}");
    let point = result.point.unwrap();
    assert!(!point.committed);
    assert_eq!(
        point.disks.iter().map(|disk| disk.status).collect::<Vec<_>>(),
        [DiskStatus::Skipped, DiskStatus::Failed]
    );
    assert_eq!(rig.points().len(), 0);
    rig.expect_clean();
}

#[test]
fn a_stream_is_read_to_its_end() {
    let rig = Rig::new();
    let mut random = Random::new(12);
    for (at, size) in [0, 1, 128 * K, 5 * M + 77].into_iter().enumerate() {
        let content = random.content(size);
        let id = format!("pipe{at}");
        nix::unistd::mkfifo(&rig.image(&id), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let manifest = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::fs::File::options().write(true).open(rig.image(&id)).unwrap().write_all(&content)
            });
            let mut options = rig.options(&[]);
            options.disks.push(DiskSpec {
                id: name(&id),
                locator: Locator::Path(rig.image(&id)),
                common: CommonRequest::No,
            });
            rig.backup(&options)
        });
        assert_eq!(manifest.disks[0].size, size);
        assert!(rig.content(&manifest.disks[0]) == content);
    }
}

#[test]
fn null_is_a_hole_of_any_size() {
    let rig = Rig::new();
    let mut options = rig.options(&[]);
    let locator = Locator::Null { size: Some(1 << 50) };
    options.disks.push(DiskSpec { id: name("vda"), locator, common: CommonRequest::No });
    let first = rig.run(&options);
    assert_eq!(first.exit_code, 0, "{first:#?}");
    assert_eq!(first.point.unwrap().disks[0].read_bytes, 0);
    assert_eq!(rig.run(&options).point.unwrap().stored.new_chunks, 0);
}
