//! How fast a restore is beside a copy of the same bytes. It measures, so it runs only when asked for, in release mode.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

mod restore_home;

use std::os::unix::fs::FileExt;
use std::time::Instant;

use mover_engine::Control;
use mover_engine::pattern::SplitMix;
use mover_job::copy::{self, CopyOptions, Offload, Pair};
use mover_model::Locator;
use mover_repository::{Compression, Secret};
use restore_home::disks::{Fill, disk};
use restore_home::{CHUNK, Given, Home, run};

#[test]
#[ignore = "measures: run with --release -- --ignored --nocapture"]
fn a_restore_of_what_does_not_compress_is_as_fast_as_a_copy() {
    let size = 2u64 << 30;
    let secrets = [Secret::None, Secret::KeyFile(vec![1; 32])];
    for secret in secrets {
        let home = Home::new(Compression::Lz4, &secret);
        let content = disk(&mut SplitMix::new(1), Fill::Noise, size, CHUNK, 100);
        let raw = std::fs::File::create(home.path("source.raw")).unwrap();
        for (at, bytes) in &content {
            raw.write_all_at(bytes, at * u64::from(CHUNK)).unwrap();
        }
        raw.sync_all().unwrap();
        home.commit("vm1", &[Given::new("vda", size, content)], &[]);
        for round in 0..3 {
            let target = home.path("copied.raw");
            let options = CopyOptions {
                pairs: vec![Pair {
                    source: Locator::Path(home.path("source.raw")),
                    target: Locator::Path(target.clone()),
                }],
                offload: Offload::Never,
                ..CopyOptions::default()
            };
            let begin = Instant::now();
            assert_eq!(copy::run(&options, &Control::new(), &|_| {}).exit_code, 0);
            let copied = begin.elapsed().as_secs_f64();
            std::fs::remove_file(&target).unwrap();
            let target = home.path("restored.raw");
            let begin = Instant::now();
            let done = run(&home.options("vm1", &[("vda", Locator::Path(target.clone()))]));
            let restored = begin.elapsed().as_secs_f64();
            done.expect(0);
            std::fs::remove_file(&target).unwrap();
            let copied_bytes = done.result.moved.copied_bytes;
            println!(
                "{secret:?} {round}: copy {copied:.2} s, restore {restored:.2} s, ratio {:.2}, {copied_bytes} bytes copied, {:?} {:?}",
                copied / restored,
                done.result.read_latency,
                done.result.write_latency,
            );
        }
    }
}
