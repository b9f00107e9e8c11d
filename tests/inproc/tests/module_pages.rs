//! `vmbus_disk`'s list of a request's pages, outside of the kernel: against a list made byte by byte.

use std::cell::Cell;

use proptest::prelude::*;

#[path = "../../../linux-module/disk/pages.rs"]
mod pages;

use pages::Pages;

const PAGE: u64 = 4096;

/// Frame numbers, and whether there was a gap.
fn listed(pieces: &[(u64, u32)]) -> (Vec<u64>, bool) {
    let has_gap = Cell::new(false);
    let pfns = Pages::new(pieces.iter().copied(), &has_gap).collect();
    (pfns, has_gap.get())
}

#[test]
fn pieces_that_touch_share_a_page() {
    assert_eq!(
        listed(&[(0x1200, 0x600), (0x1800, 0x800), (0x5000, 0x200)]),
        (vec![1, 5], false)
    );
    assert_eq!(
        listed(&[(0x1200, 0x1e00), (0x9000, 0x1001)]),
        (vec![1, 2, 9, 10], false)
    );
    assert_eq!(
        listed(&[(0x1e00, 0x100), (0x1f00, 0x100)]),
        (vec![1], false)
    );
    assert_eq!(listed(&[]), (vec![], false));
}

#[test]
fn gaps_are_seen() {
    for pieces in [
        [(0x1000, 0x200), (0x2000, 0x200)],
        [(0x1000, 0x1000), (0x2200, 0x200)],
        [(0x1000, 0x200), (0x1400, 0x200)],
    ] {
        assert!(listed(&pieces).1, "{pieces:x?}");
    }
}

proptest! {
    /// A range of memory, cut anywhere, is the pages that its bytes are in, as often as the range has
    /// them.
    #[test]
    fn any_cut_of_a_range(
        frames in prop::collection::vec(0_u64..1000, 1..20),
        offset in 0_u64..PAGE,
        short in 0_u64..PAGE,
        mut cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let length = (frames.len() as u64 * PAGE).saturating_sub(offset + short);
        prop_assume!(length > 0);
        let wanted = (offset + length).div_ceil(PAGE) as usize;
        // Where its bytes are.
        let address = |at: u64| {
            let at = offset + at;
            frames[(at / PAGE) as usize] * PAGE + at % PAGE
        };
        let mut ends: Vec<u64> = cuts
            .drain(..)
            .map(|cut| cut.index(length as usize) as u64)
            .chain((1..frames.len() as u64).map(|page| (page * PAGE).saturating_sub(offset)))
            .filter(|end| (1..length).contains(end))
            .chain([length])
            .collect();
        ends.sort_unstable();
        ends.dedup();
        let mut from = 0;
        let pieces: Vec<(u64, u32)> = ends
            .into_iter()
            .map(|end| {
                let piece = (address(from), (end - from) as u32);
                from = end;
                piece
            })
            .collect();
        let (pfns, has_gap) = listed(&pieces);
        prop_assert!(!has_gap);
        prop_assert_eq!(&pfns[..], &frames[..wanted]);
    }
}
