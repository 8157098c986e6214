//! The extent algebra against a slow oracle: one entry for each byte of a small disk.
//!
//! Near 2⁶³ no such array can be; there the same disks are moved up, so that their last byte is the last one that a
//! disk can have, or stretched by a power of two.

use mover_model::extent::{Aligned, ExtentError, Subtract};
use mover_model::{Extent, ExtentKind, ExtentList};
use proptest::prelude::*;

use ExtentKind::{Data, Hole, Zero};

/// Bytes of the small disks.
const DISK: u64 = 96;
/// What is added to every offset so that a small disk ends at 2⁶³ - 1.
const TOP: u64 = i64::MAX as u64 - DISK;
/// What every offset is shifted by so that a small disk reaches past 2⁶², where one extent becomes several.
const STRETCH: u32 = 56;

/// The slow truth: what each byte is.
type Bytes = Vec<Option<ExtentKind>>;

fn kinds() -> impl Strategy<Value = ExtentKind> {
    prop_oneof![Just(Data), Just(Zero), Just(Hole)]
}

/// Disks with runs, so that neighbours of one kind and of two, and gaps, are all common.
fn disks() -> impl Strategy<Value = Bytes> {
    prop::collection::vec((1usize..12, prop::option::weighted(0.7, kinds())), 0..24).prop_map(|runs| {
        let mut bytes: Bytes =
            runs.into_iter().flat_map(|(length, kind)| std::iter::repeat_n(kind, length)).collect();
        bytes.resize(DISK as usize, None);
        bytes
    })
}

/// Where a small disk lies in the large one.
#[derive(Debug, Clone, Copy)]
enum Place {
    Bottom,
    Top,
    Stretched,
}

fn places() -> impl Strategy<Value = Place> {
    prop_oneof![Just(Place::Bottom), Just(Place::Top), Just(Place::Stretched)]
}

impl Place {
    fn up(self, offset: u64) -> u64 {
        match self {
            Place::Bottom => offset,
            Place::Top => offset + TOP,
            Place::Stretched => offset << STRETCH,
        }
    }

    fn down(self, offset: u64) -> u64 {
        match self {
            Place::Bottom => offset,
            Place::Top => offset - TOP,
            // Extents of 2⁶² bytes are cut where the oracle has no boundary: rounding finds the same bytes.
            Place::Stretched => (offset + (1 << (STRETCH - 1))) >> STRETCH,
        }
    }

    fn extent(self, start: u64, end: u64, kind: ExtentKind) -> Extent {
        Extent::new(self.up(start), self.up(end) - self.up(start), kind)
    }
}

/// Runs of equal bytes as (start, end, kind).
fn runs(bytes: &Bytes) -> Vec<(u64, u64, ExtentKind)> {
    let mut runs: Vec<(u64, u64, ExtentKind)> = Vec::new();
    for (at, kind) in (0u64..).zip(bytes) {
        match (runs.last_mut(), kind) {
            (Some((_, end, last)), Some(kind)) if *end == at && last == kind => *end += 1,
            (_, Some(kind)) => runs.push((at, at + 1, *kind)),
            _ => {}
        }
    }
    runs
}

fn list(bytes: &Bytes, place: Place) -> ExtentList {
    runs(bytes).into_iter().map(|(start, end, kind)| place.extent(start, end, kind)).collect()
}

/// What a list says of each byte; fails where the list is not in order, overlaps, or is not joined.
fn bytes(list: &ExtentList, place: Place) -> Bytes {
    let mut bytes = vec![None; DISK as usize];
    let mut last: Option<Extent> = None;
    for extent in list.iter() {
        assert!(extent.length > 0);
        if let Some(last) = last {
            assert!(last.end() <= extent.start, "out of order: {last:?} {extent:?}");
            let joinable = last.end() == extent.start && last.kind == extent.kind;
            assert!(!joinable || last.length + extent.length >= 1 << 62, "not joined: {last:?} {extent:?}");
        }
        last = Some(extent);
        for at in place.down(extent.start)..place.down(extent.end()) {
            bytes[at as usize] = Some(extent.kind);
        }
    }
    assert_eq!(list.end(), last.map(|last| last.end()));
    assert_eq!(list.iter().count(), list.len());
    assert_eq!(list.is_empty(), last.is_none());
    assert_eq!(list.get(list.len()), None);
    bytes
}

fn zip(
    a: &Bytes,
    b: &Bytes,
    f: impl Fn(Option<ExtentKind>, Option<ExtentKind>) -> Option<ExtentKind>,
) -> Bytes {
    a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn a_list_holds_what_was_pushed(disk in disks(), place in places()) {
        let list = list(&disk, place);
        prop_assert_eq!(bytes(&list, place), disk.clone());
        let count = |kind| disk.iter().filter(|&&byte| byte == Some(kind)).count() as u64;
        let scale = if matches!(place, Place::Stretched) { 1 << STRETCH } else { 1 };
        for kind in [Data, Zero, Hole] {
            prop_assert_eq!(list.bytes_of(kind), count(kind) * scale);
        }
        prop_assert_eq!(list.bytes(), (count(Data) + count(Zero) + count(Hole)) * scale);
    }

    #[test]
    fn any_order_gives_the_same_list(
        disk in disks(),
        place in places(),
        seed in any::<u64>(),
        step in 1u64..8,
    ) {
        // Runs cut in pieces of `step` bytes, in the order of a hash.
        let mut pieces: Vec<Extent> = runs(&disk)
            .into_iter()
            .flat_map(|(start, end, kind)| {
                (start..end)
                    .step_by(step as usize)
                    .map(move |from| place.extent(from, (from + step).min(end), kind))
            })
            .collect();
        pieces.sort_by_key(|piece| place.down(piece.start).wrapping_mul(seed | 1));
        let size = Some(place.up(DISK));
        let unordered = ExtentList::from_unordered(pieces, size).unwrap();
        prop_assert_eq!(bytes(&unordered, place), disk);
    }

    #[test]
    fn bad_extents_are_found_wherever_they_stand(
        mut extents in prop::collection::vec((0..DISK + 8, 0u64..12, kinds()), 1..6),
        place in prop_oneof![Just(Place::Bottom), Just(Place::Top)],
        sized in any::<bool>(),
    ) {
        extents.dedup();
        let size = sized.then_some(place.up(DISK));
        let limit = if sized { place.up(DISK) } else { i64::MAX as u64 };
        let list: Vec<Extent> =
            extents.iter().map(|&(start, length, kind)| Extent::new(place.up(start), length, kind)).collect();
        let mut counts = vec![0; 2 * DISK as usize];
        for &(start, length, _) in &extents {
            for at in start..start + length {
                counts[at as usize] += 1;
            }
        }
        let empty = list.iter().any(|extent| extent.length == 0);
        let past = list.iter().any(|extent| extent.end() > limit);
        let overlap = counts.iter().any(|&count| count > 1);
        match ExtentList::from_unordered(list, size) {
            Ok(_) => prop_assert!(!empty && !past && !overlap),
            Err(ExtentError::Empty(_)) => prop_assert!(empty),
            Err(ExtentError::PastEnd { start, length, size }) => {
                prop_assert!(sized && size == limit && start + length > limit);
            }
            Err(ExtentError::TooLarge(start)) => prop_assert!(past && start >= TOP),
            Err(ExtentError::Overlap(at)) => {
                prop_assert!(overlap && !empty && !past);
                prop_assert!(counts[place.down(at) as usize] > 1, "no overlap at {}", at);
            }
        }
    }

    #[test]
    fn clip_and_first_after(disk in disks(), place in places(), a in 0..=DISK, b in 0..=DISK) {
        let list = list(&disk, place);
        let expected: Bytes =
            (0u64..).zip(&disk).map(|(at, byte)| byte.filter(|_| a <= at && at < b)).collect();
        prop_assert_eq!(bytes(&list.clip(place.up(a), place.up(b)), place), expected);
        let first = list.first_after(place.up(a));
        prop_assert!(list.iter().take(first).all(|extent| extent.end() <= place.up(a)));
        prop_assert!(list.get(first).is_none_or(|extent| extent.end() > place.up(a)));
    }

    #[test]
    fn sets(a in disks(), b in disks(), place in places()) {
        let (x, y) = (list(&a, place), list(&b, place));
        let subtracted = zip(&a, &b, |a, b| if b.is_some() { None } else { a });
        prop_assert_eq!(bytes(&x.subtract(&y), place), subtracted);
        let intersected = zip(&a, &b, |a, b| a.filter(|_| b.is_some()));
        prop_assert_eq!(bytes(&x.intersect(&y), place), intersected);
        let united = zip(&a, &b, |a, b| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        });
        prop_assert_eq!(bytes(&x.union(&y), place), united);
        prop_assert!(Data < Zero && Zero < Hole);
    }

    #[test]
    fn gaps_are_filled_up_to_the_size_and_not_behind_it(
        disk in disks(),
        place in prop_oneof![Just(Place::Bottom), Just(Place::Stretched)],
        size in 0..=DISK,
        kind in kinds(),
    ) {
        let expected: Bytes =
            (0u64..).zip(&disk).map(|(at, byte)| byte.or((at < size).then_some(kind))).collect();
        let filled = list(&disk, place).fill_gaps(place.up(size), kind);
        prop_assert_eq!(bytes(&filled, place), expected);
    }

    #[test]
    fn streaming_subtraction_keeps_order_and_boundaries(a in disks(), b in disks(), place in places(), step in 1u64..9) {
        let covered = list(&b, place);
        let mut subtract = Subtract::new(&covered);
        let mut left = vec![None; DISK as usize];
        for (start, end, kind) in runs(&a) {
            for from in (start..end).step_by(step as usize) {
                let whole = place.extent(from, (from + step).min(end), kind);
                let mut position = whole.start;
                subtract.apply(whole, |part| {
                    assert!(part.length > 0 && part.start >= position && part.end() <= whole.end());
                    assert_eq!(part.kind, kind);
                    position = part.end();
                    for at in place.down(part.start)..place.down(part.end()) {
                        left[at as usize] = Some(kind);
                    }
                });
            }
        }
        prop_assert_eq!(left, zip(&a, &b, |a, b| if b.is_some() { None } else { a }));
    }

    #[test]
    fn alignment(start in 0..DISK, length in 1..=DISK, shift in 0u32..7, top in any::<bool>()) {
        let granule = 1u64 << shift;
        // A multiple of every granule, so that the small disk tells what is aligned.
        let base = if top { (1u64 << 63) - 256 } else { 0 };
        let whole = Extent::new(base + start, length, Zero);
        let Aligned { head, middle, tail } = whole.split_aligned(granule);
        let mut position = whole.start;
        for part in [head, middle, tail].into_iter().flatten() {
            prop_assert!(part.start == position && part.length > 0 && part.kind == Zero);
            position = part.end();
        }
        prop_assert_eq!(position, whole.end());
        let granules = |range: std::ops::Range<u64>| {
            range.filter(|at| at % granule == 0 && at + granule <= start + length).count() as u64
        };
        prop_assert_eq!(middle.map_or(0, |middle| middle.length), granules(start..start + length) * granule);
        prop_assert!(middle.is_none_or(|middle| middle.start % granule == 0 && middle.length % granule == 0));
        prop_assert!(head.is_none_or(|head| middle.is_none() || head.length < granule));
        prop_assert!(tail.is_none_or(|tail| tail.length < granule && middle.is_some()));
    }
}
