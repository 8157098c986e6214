//! What the engine asks of its two ends, to the last operation: planner and worker over a recording source
//! and sink.
#![expect(clippy::single_range_in_vec_init, reason = "a list with one range of zeros is meant")]

mod recording;

use mover_engine::{Alignment, Order, ReadErrors};
use mover_model::ExtentKind::{Hole, Zero};
use mover_model::{ErrorKind, Extent, limits};
use recording::{Ending, K, M, Rig, Verbs, backends, data, empty, hole, read, write, zero};

#[test]
fn an_extent_is_cut_at_the_grid_of_blocks() {
    let ended = Rig::new(16 * K).run(&[data(4 * K, 36 * K)]).good();
    assert_eq!(
        ended.ops(),
        [
            read(4 * K, 12 * K),
            write(4 * K, 12 * K),
            read(16 * K, 16 * K),
            write(16 * K, 16 * K),
            read(32 * K, 8 * K),
            write(32 * K, 8 * K),
        ]
    );
    let moved = ended.outcome.moved;
    assert_eq!((moved.read_bytes, moved.written_bytes, moved.zero_bytes), (36 * K, 36 * K, 0));
    assert_eq!((moved.reads, moved.writes, moved.zeroes, moved.copied_bytes), (3, 3, 0, 0));
    let segments: Vec<_> = ended.outcome.segments.iter().map(|s| (s.start, s.length, s.zero)).collect();
    assert_eq!(segments, [(4 * K, 12 * K, false), (16 * K, 16 * K, false), (32 * K, 8 * K, false)]);
}

#[test]
fn as_many_reads_begin_as_there_are_slots_before_the_first_write() {
    let mut rig = Rig::new(4 * K);
    rig.settings.queue_depth = 3;
    let ended = rig.run(&[data(0, 16 * K)]).good();
    assert_eq!(
        ended.ops(),
        [
            read(0, 4 * K),
            read(4 * K, 4 * K),
            read(8 * K, 4 * K),
            write(0, 4 * K),
            write(4 * K, 4 * K),
            write(8 * K, 4 * K),
            read(12 * K, 4 * K),
            write(12 * K, 4 * K),
        ]
    );
}

#[test]
fn nothing_is_asked_for_an_empty_list() {
    assert_eq!(Rig::new(4 * K).run(&[]).good().ops(), []);
}

const MIXED: [Extent; 4] =
    [empty(0, 8 * K, Hole), data(8 * K, 4 * K), empty(12 * K, 20 * K, Zero), data(32 * K, 4 * K)];

#[test]
fn holes_and_zeros_become_holes() {
    let ended = Rig::new(16 * K).run(&MIXED).good();
    assert_eq!(
        ended.ops(),
        [
            hole(0, 8 * K),
            read(8 * K, 4 * K),
            write(8 * K, 4 * K),
            hole(12 * K, 20 * K),
            read(32 * K, 4 * K),
            write(32 * K, 4 * K),
        ]
    );
    assert_eq!(ended.outcome.moved.zero_bytes, 28 * K);
    assert_eq!(ended.outcome.moved.zeroes, 2);
}

#[test]
fn zeros_that_stay_allocated_are_asked_for_as_such() {
    let mut rig = Rig::new(16 * K);
    rig.options.keep_allocated = true;
    let ended = rig.run(&MIXED).good();
    assert_eq!(ended.state.ops_of(Verbs::Hole), []);
    assert_eq!(ended.state.ops_of(Verbs::Zero), [zero(0, 8 * K), zero(12 * K, 20 * K)]);
}

#[test]
fn zeros_are_left_out_where_the_sink_reads_as_zeros_and_counted_all_the_same() {
    let mut rig = Rig::new(16 * K);
    rig.options.skip_zeros = true;
    let ended = rig.run(&MIXED).good();
    assert_eq!(
        ended.ops(),
        [read(8 * K, 4 * K), write(8 * K, 4 * K), read(32 * K, 4 * K), write(32 * K, 4 * K)]
    );
    assert_eq!((ended.outcome.moved.zero_bytes, ended.outcome.moved.zeroes), (28 * K, 0));
    let zeros: Vec<_> = ended.outcome.segments.iter().filter(|s| s.zero).map(|s| s.start).collect();
    assert_eq!(zeros, [0, 12 * K]);
}

#[test]
fn a_large_hole_is_cut_so_that_it_can_be_interrupted() {
    const CUT: u64 = limits::ZERO_REQUEST_BYTES;
    let ended = Rig::new(16 * K).run(&[empty(M, 2 * CUT, Hole)]).good();
    assert_eq!(ended.ops(), [hole(M, CUT - M), hole(CUT, CUT), hole(2 * CUT, M)]);
}

#[test]
fn a_disk_of_the_largest_size_takes_its_last_byte() {
    const END: u64 = i64::MAX as u64;
    let last = END / (64 * K) * (64 * K);
    let mut rig = Rig::new(64 * K);
    rig.options.skip_zeros = true;
    rig.source.alignment = Alignment::NONE;
    rig.sink.alignment = Alignment::NONE;
    let ended = rig.run(&[empty(last - 10 * M, 10 * M, Hole), data(last, END - last)]).good();
    assert_eq!(ended.ops(), [read(last, END - last), write(last, END - last)]);
}

// ---- zeros in data --------------------------------------------------------------------------------------

#[test]
fn runs_of_zeros_in_data_become_holes() {
    let mut rig = Rig::zeros(64 * K, &[(16 * K)..(32 * K), (40 * K)..(44 * K)]);
    rig.options.zero_run = Some(8 * K as u32);
    let ended = rig.run(&[data(0, 64 * K)]).good();
    assert_eq!(ended.ops(), [read(0, 64 * K), write(0, 16 * K), hole(16 * K, 16 * K), write(32 * K, 32 * K)]);
    let moved = ended.outcome.moved;
    assert_eq!((moved.read_bytes, moved.written_bytes), (64 * K, 48 * K));
    assert_eq!((moved.zero_bytes, moved.zero_found_bytes), (16 * K, 16 * K));
    // The ledger's unit is the request, zeros found in it or not.
    assert_eq!(ended.outcome.segments.len(), 1);
    assert!(!ended.outcome.segments[0].zero);
}

#[test]
fn runs_of_zeros_lie_on_the_disks_grid_and_not_on_the_requests() {
    let mut rig = Rig::zeros(64 * K, &[(4 * K)..(32 * K)]);
    rig.options.zero_run = Some(8 * K as u32);
    let ended = rig.run(&[data(4 * K, 60 * K)]).good();
    assert_eq!(
        ended.ops(),
        [read(4 * K, 60 * K), write(4 * K, 4 * K), hole(8 * K, 24 * K), write(32 * K, 32 * K)]
    );
}

#[test]
fn found_zeros_are_left_out_where_the_sink_reads_as_zeros() {
    let mut rig = Rig::zeros(64 * K, &[0..(64 * K), (80 * K)..(96 * K)]);
    rig.options.zero_run = Some(4 * K as u32);
    rig.options.skip_zeros = true;
    let ended = rig.run(&[data(0, 128 * K)]).good();
    assert_eq!(
        ended.ops(),
        [read(0, 64 * K), read(64 * K, 64 * K), write(64 * K, 16 * K), write(96 * K, 32 * K)]
    );
    assert_eq!(ended.outcome.segments.len(), 2);
}

#[test]
fn without_being_told_nobody_looks_for_zeros() {
    let ended = Rig::zeros(64 * K, &[0..(64 * K)]).run(&[data(0, 64 * K)]).good();
    assert_eq!(ended.ops(), [read(0, 64 * K), write(0, 64 * K)]);
}

#[test]
fn a_digest_is_that_of_the_segment_with_its_zeros() {
    let mut rig = Rig::zeros(64 * K, &[(16 * K)..(32 * K)]);
    rig.options.zero_run = Some(4 * K as u32);
    rig.options.digest = true;
    rig.options.join_gap = 32 * K as u32;
    let ended = rig.run(&[data(0, 64 * K), data(68 * K, 4 * K), data(80 * K, 4 * K)]).good();
    assert_eq!(ended.outcome.segments.len(), 3);
    for segment in &ended.outcome.segments {
        let bytes = ended.state.content.bytes(segment.start, segment.length);
        assert_eq!(segment.digest, Some(mover_engine::transform::digest(&bytes)), "at {}", segment.start);
    }
}

// ---- joining --------------------------------------------------------------------------------------------

#[test]
fn near_neighbours_are_read_at_once_and_written_apart() {
    let mut rig = Rig::new(64 * K);
    rig.options.join_gap = 8 * K as u32;
    let ended = rig.run(&[data(0, 4 * K), data(12 * K, 4 * K), data(32 * K, 4 * K)]).good();
    assert_eq!(
        ended.ops(),
        [
            read(0, 16 * K),
            write(0, 4 * K),
            write(12 * K, 4 * K),
            // 16 KiB further: too far.
            read(32 * K, 4 * K),
            write(32 * K, 4 * K),
        ]
    );
    assert_eq!((ended.outcome.moved.reads, ended.outcome.moved.writes), (2, 3));
    assert_eq!((ended.outcome.moved.read_bytes, ended.outcome.moved.written_bytes), (20 * K, 12 * K));
}

#[test]
fn a_request_never_crosses_a_block_to_join() {
    let mut rig = Rig::new(16 * K);
    rig.options.join_gap = 32 * K as u32;
    let ended = rig.run(&[data(12 * K, 4 * K), data(16 * K + 512, 512), data(20 * K, 20 * K)]).good();
    assert_eq!(
        ended.ops(),
        [
            read(12 * K, 4 * K),
            write(12 * K, 4 * K),
            read(16 * K + 512, 15 * K + 512),
            write(16 * K + 512, 512),
            write(20 * K, 12 * K),
            read(32 * K, 8 * K),
            write(32 * K, 8 * K),
        ]
    );
}

#[test]
fn a_hole_between_joined_pieces_is_still_made() {
    let mut rig = Rig::new(64 * K);
    rig.options.join_gap = 8 * K as u32;
    let ended = rig.run(&[data(0, 4 * K), empty(4 * K, 4 * K, Hole), data(8 * K, 4 * K)]).good();
    assert_eq!(ended.ops(), [hole(4 * K, 4 * K), read(0, 12 * K), write(0, 4 * K), write(8 * K, 4 * K)]);
}

#[test]
fn a_request_has_no_more_pieces_than_the_limit() {
    let mut rig = Rig::new(M);
    rig.options.join_gap = 4 * K as u32;
    let pieces = limits::PIECES_MAX as u64 + 2;
    let extents: Vec<_> = (0..pieces).map(|n| data(n * 4 * K, 2 * K)).collect();
    let ended = rig.run(&extents).good();
    let whole = limits::PIECES_MAX as u64 * 4 * K;
    assert_eq!(ended.state.ops_of(Verbs::Read), [read(0, whole - 2 * K), read(whole, 6 * K)]);
    assert_eq!(ended.state.ops_of(Verbs::Write).len() as u64, pieces);
}

#[test]
fn without_a_gap_to_join_over_only_what_is_listed_is_read() {
    let ended = Rig::new(64 * K).run(&[data(0, 512), data(1024, 512)]).good();
    assert_eq!(ended.state.ops_of(Verbs::Read), [read(0, 512), read(1024, 512)]);
}

// ---- read errors ----------------------------------------------------------------------------------------

#[test]
fn a_read_error_fails_the_task_and_names_where() {
    let mut rig = Rig::new(16 * K);
    rig.source.faults.push((20 * K..21 * K, libc::EIO));
    let ended = rig.run(&[data(0, 64 * K)]);
    assert_eq!(ended.ops(), [read(0, 16 * K), write(0, 16 * K), read(16 * K, 16 * K)]);
    let error = ended.outcome.error().expect("the task fails");
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Io, Some(libc::EIO)));
    assert_eq!(error.at_offset(), Some(20 * K));
    assert!(error.to_string().starts_with("read source at offset 20480: "), "{error}");
}

#[test]
fn what_can_be_read_around_a_bad_sector_is_moved_and_the_rest_recorded() {
    let mut rig = Rig::new(16 * K);
    rig.options.read_errors = ReadErrors::Record;
    rig.source.faults.push((5000..5001, libc::EIO));
    let ended = rig.run(&[data(0, 32 * K)]).good();
    assert_eq!(
        ended.ops(),
        [
            read(0, 16 * K),
            read(0, 4 * K),
            read(4 * K, 4 * K),
            read(8 * K, 4 * K),
            read(12 * K, 4 * K),
            write(0, 4 * K),
            write(8 * K, 8 * K),
            read(16 * K, 16 * K),
            write(16 * K, 16 * K),
        ]
    );
    assert_eq!(ended.outcome.bad, [(4 * K, 4 * K, libc::EIO)]);
    let segments: Vec<_> = ended.outcome.segments.iter().map(|s| (s.start, s.length)).collect();
    assert_eq!(segments, [(0, 4 * K), (8 * K, 8 * K), (16 * K, 16 * K)]);
    assert_eq!(ended.outcome.moved.read_bytes, 28 * K);
}

#[test]
fn salvage_keeps_to_the_grid_of_the_disk() {
    let mut rig = Rig::new(16 * K);
    rig.options.read_errors = ReadErrors::Record;
    rig.options.digest = true;
    rig.source.faults.push((6 * K..6 * K + 1, libc::EIO));
    let ended = rig.run(&[data(512, 8 * K)]).good();
    assert_eq!(
        ended.ops(),
        [
            read(512, 8 * K),
            read(512, 3584),
            read(4 * K, 4 * K),
            read(8 * K, 512),
            write(512, 3584),
            write(8 * K, 512),
        ]
    );
    for segment in &ended.outcome.segments {
        let bytes = ended.state.content.bytes(segment.start, segment.length);
        assert_eq!(segment.digest, Some(mover_engine::transform::digest(&bytes)));
    }
}

#[test]
fn salvage_of_a_joined_request_reads_its_pieces_only() {
    let mut rig = Rig::new(64 * K);
    rig.options.read_errors = ReadErrors::Record;
    rig.options.join_gap = 16 * K as u32;
    // In the gap: nothing that anybody wanted is lost.
    rig.source.faults.push((10 * K..11 * K, libc::EIO));
    let ended = rig.run(&[data(0, 8 * K), data(16 * K, 4 * K)]).good();
    assert_eq!(
        ended.ops(),
        [
            read(0, 20 * K),
            read(0, 4 * K),
            read(4 * K, 4 * K),
            read(16 * K, 4 * K),
            write(0, 8 * K),
            write(16 * K, 4 * K),
        ]
    );
    assert_eq!(ended.outcome.bad, []);
}

#[test]
fn a_block_of_which_nothing_can_be_read_is_not_written() {
    let mut rig = Rig::new(8 * K);
    rig.options.read_errors = ReadErrors::Record;
    rig.source.faults.push((0..8 * K, libc::EIO));
    let ended = rig.run(&[data(0, 16 * K)]).good();
    assert_eq!(ended.state.ops_of(Verbs::Write), [write(8 * K, 8 * K)]);
    assert_eq!(ended.outcome.bad, [(0, 4 * K, libc::EIO), (4 * K, 4 * K, libc::EIO)]);
    assert_eq!(ended.outcome.segments.len(), 1);
}

#[test]
fn an_error_that_is_not_the_mediums_is_never_recorded_as_a_bad_extent() {
    let mut rig = Rig::new(8 * K);
    rig.options.read_errors = ReadErrors::Record;
    rig.source.faults.push((0..1, libc::EACCES));
    let ended = rig.run(&[data(0, 8 * K)]);
    assert_eq!(ended.ops(), [read(0, 8 * K)]);
    assert_eq!(ended.outcome.error().and_then(|error| error.errno()), Some(libc::EACCES));
    assert_eq!(ended.outcome.bad, []);
}

#[test]
fn a_sink_that_is_written_in_order_takes_no_recorded_bad_extents() {
    let mut rig = Rig::new(8 * K);
    rig.options.read_errors = ReadErrors::Record;
    rig.sink.order = Order::Sequential;
    rig.source.faults.push((0..1, libc::EIO));
    let ended = rig.run(&[data(0, 16 * K)]);
    assert_eq!(ended.outcome.error().and_then(|error| error.errno()), Some(libc::EIO));
    assert_eq!(ended.ops(), [read(0, 8 * K)]);
}

#[test]
fn a_source_that_is_gone_ends_the_salvage() {
    let mut rig = Rig::new(M);
    rig.options.read_errors = ReadErrors::Record;
    rig.source.faults.push((0..u64::MAX, libc::EIO));
    let ended = rig.run(&[data(0, 1 << 40)]);
    assert!(ended.outcome.error().is_some());
    assert_eq!(ended.outcome.bad.len(), limits::BAD_EXTENTS_MAX + 1);
}

#[test]
fn a_source_that_ends_early_fails_the_task() {
    for policy in [ReadErrors::Fail, ReadErrors::Record] {
        let mut rig = Rig::new(16 * K);
        rig.options.read_errors = policy;
        rig.source.cut = Some(20 * K);
        let ended = rig.run(&[data(0, 64 * K)]);
        assert_eq!(ended.ops(), [read(0, 16 * K), write(0, 16 * K), read(16 * K, 16 * K)]);
        let error = ended.outcome.error().expect("the task fails");
        assert_eq!((error.kind(), error.at_offset()), (ErrorKind::SourceShrank, Some(20 * K)));
    }
}

// ---- write errors ---------------------------------------------------------------------------------------

#[test]
fn a_write_error_fails_the_task_and_is_told_with_its_kind() {
    for (errno, kind) in [(libc::ENOSPC, ErrorKind::Full), (libc::EIO, ErrorKind::Io)] {
        let mut rig = Rig::new(16 * K);
        rig.sink.faults.push((16 * K..17 * K, errno));
        let ended = rig.run(&[data(0, 64 * K)]);
        assert_eq!(
            ended.ops(),
            [read(0, 16 * K), write(0, 16 * K), read(16 * K, 16 * K), write(16 * K, 16 * K)]
        );
        let error = ended.outcome.error().expect("the task fails");
        assert_eq!((error.kind(), error.at_offset()), (kind, Some(16 * K)));
        assert!(error.to_string().starts_with("write sink at offset 16384: "), "{error}");
        assert_eq!(ended.outcome.segments.len(), 1, "what was not written is not recorded");
    }
}

#[test]
fn a_zeroing_that_fails_says_so() {
    let mut rig = Rig::new(16 * K);
    rig.sink.faults.push((0..1, libc::EIO));
    let ended = rig.run(&[empty(0, 64 * K, Hole)]);
    let error = ended.outcome.error().expect("the task fails");
    assert!(error.to_string().starts_with("zero sink at offset 0: "), "{error}");
    assert!(ended.outcome.segments.is_empty());
}

#[test]
fn the_first_error_is_the_one_that_is_told() {
    let mut rig = Rig::new(4 * K);
    rig.settings.queue_depth = 8;
    rig.sink.faults.push((0..u64::MAX, libc::ENOSPC));
    let ended = rig.run(&[data(0, 320 * K)]);
    assert_eq!(ended.outcome.error().and_then(|error| error.at_offset()), Some(0));
    // What had been read when the error came is all that is written.
    assert_eq!(ended.state.ops_of(Verbs::Write).len(), 8);
    assert_eq!(ended.state.ops_of(Verbs::Read).len(), 8);
}

// ---- order ----------------------------------------------------------------------------------------------

#[test]
fn a_sequential_end_is_served_by_one_worker_in_order() {
    for source_is in [true, false] {
        let mut rig = Rig::new(4 * K);
        rig.settings.workers = 4;
        rig.settings.queue_depth = 4;
        let end = if source_is { &mut rig.source } else { &mut rig.sink };
        end.order = Order::Sequential;
        let ended = rig.run(&[data(0, 1000 * K), empty(1000 * K, 24 * K, Hole), data(M, 100 * K)]).good();
        let reads = ended.state.ops_of(Verbs::Read);
        assert_eq!(reads, ended.state.sorted(Verbs::Read));
        assert_eq!(reads.len(), 275);
        // What goes to a pipe is written, zeros too: they are cut at blocks as data is.
        let holes: Vec<_> = (0..6).map(|block| hole((1000 + 4 * block) * K, 4 * K)).collect();
        assert_eq!(ended.state.ops_of(Verbs::Hole), holes);
        let calls = ended.state.calls.lock().unwrap();
        assert!(calls.iter().all(|call| call.thread == calls[0].thread));
    }
}

#[test]
fn a_stream_ends_where_it_ends_and_its_last_block_is_padded_for_the_target() {
    let mut rig = Rig::new(16 * K);
    rig.source.order = Order::Sequential;
    rig.source.size = None;
    rig.source.cut = Some(16 * K + 700);
    rig.sink.alignment = Alignment { offset: 512, memory: 512 };
    let ended = rig.run(&[data(0, i64::MAX as u64)]);
    assert!(ended.outcome.error().is_none());
    assert_eq!(ended.outcome.report.outcomes[0].stream_end, Some(16 * K + 700));
    assert_eq!(ended.ops(), [read(0, 16 * K), write(0, 16 * K), read(16 * K, 16 * K), write(16 * K, 1024)]);
    let moved = ended.outcome.moved;
    assert_eq!((moved.read_bytes, moved.written_bytes), (16 * K + 700, 16 * K + 700));
    assert_eq!(ended.outcome.segments[1].length, 700);
}

#[test]
fn the_padding_of_a_streams_last_block_is_zeros() {
    for zero_run in [None, Some(4096)] {
        let mut rig = Rig::new(16 * K);
        *rig.source.state.stored.lock().unwrap() = Some(Vec::new());
        rig.source.order = Order::Sequential;
        rig.source.size = None;
        rig.source.cut = Some(20 * K + 100);
        rig.sink.alignment = Alignment { offset: 4096, memory: 4096 };
        rig.options.zero_run = zero_run;
        let ended = rig.run(&[data(0, i64::MAX as u64)]);
        let stored = ended.state.stored.lock().unwrap().take().unwrap();
        assert_eq!(stored.len() as u64, 24 * K);
        let (content, padding) = stored.split_at(20 * K as usize + 100);
        assert!(content == ended.state.content.bytes(0, 20 * K + 100));
        assert!(padding.iter().all(|&byte| byte == 0), "the buffer held the last block's end before");
    }
}

#[test]
fn an_empty_stream_is_a_stream() {
    let mut rig = Rig::new(16 * K);
    rig.settings.queue_depth = 4;
    rig.source.order = Order::Sequential;
    rig.source.size = None;
    rig.source.cut = Some(0);
    let ended = rig.run(&[data(0, i64::MAX as u64)]).good();
    assert_eq!(ended.outcome.report.outcomes[0].stream_end, Some(0));
    assert_eq!(ended.state.ops_of(Verbs::Write), []);
}

// ---- buffers --------------------------------------------------------------------------------------------

#[test]
fn a_write_is_given_the_buffer_that_the_read_filled() {
    for backend in backends() {
        let mut rig = Rig::zeros(64 * K, &[(200 * K)..(232 * K)]);
        rig.settings.backend = backend;
        rig.settings.workers = 2;
        rig.settings.queue_depth = 5;
        rig.options.zero_run = Some(4 * K as u32);
        rig.options.join_gap = 16 * K as u32;
        rig.source.ending = Ending::Shuffled(7);
        rig.sink.ending = Ending::Shuffled(8);
        let ended =
            rig.run(&[data(0, M), data(M + 4 * K, 8 * K), data(M + 20 * K, 4 * K), data(2 * M, M)]).good();
        let calls = ended.state.calls.lock().unwrap();
        let mut writes = 0;
        for (index, call) in calls.iter().enumerate().filter(|(_, call)| call.op.0 == Verbs::Write) {
            writes += 1;
            let filled = calls[..index].iter().rfind(|earlier| {
                earlier.op.0 == Verbs::Read && (earlier.thread, earlier.slot) == (call.thread, call.slot)
            });
            let filled = filled.expect("a slot's write follows its read");
            let (start, length) = (filled.op.1, filled.op.2);
            assert!(start <= call.op.1 && call.op.1 + call.op.2 <= start + length);
            assert_eq!((call.address - filled.address) as u64, call.op.1 - start);
        }
        assert!(writes > 32);
        assert_eq!(ended.outcome.moved.copied_bytes, 0);
    }
}

#[test]
fn requests_and_bytes_in_flight_are_bounded() {
    for backend in backends() {
        let mut rig = Rig::new(16 * K);
        rig.settings.backend = backend;
        rig.settings.workers = 3;
        rig.settings.queue_depth = 6;
        rig.source.ending = Ending::Shuffled(1);
        rig.sink.ending = Ending::Shuffled(2);
        let ended = rig.run(&[data(0, 4 * M), empty(4 * M, M, Hole), data(5 * M, 4 * M)]).good();
        let peak = ended.state.peak();
        assert_eq!((peak.requests, peak.bytes), (6, 6 * 16 * K));
        let calls = ended.state.calls.lock().unwrap();
        assert!(calls.iter().all(|call| call.slot < 6));
    }
}

#[test]
fn small_requests_fill_the_depth_and_large_ones_the_bytes() {
    const BYTES: u64 = 4 * M;
    for (extent, stride, requests) in [(64 * K, M, 64), (M, M, 4), (600 * K, M, 4)] {
        let mut rig = Rig::new(M);
        rig.settings.queue_depth = 64;
        rig.settings.bytes_in_flight = Some(BYTES);
        rig.source.ending = Ending::Shuffled(1);
        rig.sink.ending = Ending::Shuffled(2);
        let extents: Vec<_> = (0..256).map(|n| data(n * stride, extent)).collect();
        let ended = rig.run(&extents).good();
        let peak = ended.state.peak();
        assert!(peak.bytes <= BYTES, "{} bytes", peak.bytes);
        assert!(peak.requests <= 64 && peak.requests >= requests, "{extent}: {} requests", peak.requests);
        assert_eq!(ended.state.ops_of(Verbs::Write).len(), ended.outcome.segments.len());
    }
}

#[test]
fn a_large_request_among_small_ones_is_not_passed_by_for_ever() {
    let mut rig = Rig::new(M);
    rig.settings.queue_depth = 32;
    rig.settings.bytes_in_flight = Some(2 * M);
    rig.source.ending = Ending::Shuffled(3);
    rig.sink.ending = Ending::Shuffled(4);
    let extents: Vec<_> = (0..500).map(|n| data(n * 2 * M, if n % 7 == 3 { M } else { 4 * K })).collect();
    let ended = rig.run(&extents).good();
    assert_eq!(ended.state.sorted(Verbs::Write).len(), 500);
    // Requests begin in the list's order: whoever does not fit holds up the rest, and is next.
    assert_eq!(ended.state.ops_of(Verbs::Read), ended.state.sorted(Verbs::Read));
}

#[test]
fn buffers_keep_to_the_page_whatever_the_block_size() {
    let mut rig = Rig::new(12 * K);
    rig.settings.queue_depth = 4;
    let ended = rig.run(&[data(0, 120 * K)]).good();
    let calls = ended.state.calls.lock().unwrap();
    assert!(calls.iter().all(|call| call.address.is_multiple_of(4096)));
}
