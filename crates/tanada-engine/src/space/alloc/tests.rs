use super::{Allocator, Stream};
use tanada_format::geometry::SEGMENT_BLOCKS;
use tanada_format::{BitmapPage, Geometry};

fn small() -> Allocator {
    Allocator::new(Geometry::new(5 * SEGMENT_BLOCKS, 64).expect("valid"), 100)
}

#[test]
fn every_block_is_handed_out_once_and_pages_never() {
    let mut allocator = small();
    let total = allocator.free();
    let mut seen = std::collections::BTreeSet::new();
    while let Some((block, count)) = allocator.allocate(Stream::Data, 100) {
        for block in block..block + count {
            assert!(allocator.geometry().is_allocatable(block));
            assert!(seen.insert(block));
        }
    }
    assert_eq!((seen.len() as u64, allocator.free()), (total, 0));
    for block in &seen {
        allocator.release(*block);
    }
    assert_eq!(allocator.free(), total);
}

#[test]
fn holes_are_found_again() {
    let mut allocator = small();
    while allocator.allocate(Stream::Map, 1024).is_some() {}
    let start = allocator.geometry().regions_start();
    for block in [start + 7, start + 8, start + 2000] {
        allocator.release(block);
    }
    let mut found = vec![allocator.allocate(Stream::Data, 9), allocator.allocate(Stream::Data, 9)];
    found.sort();
    assert_eq!(found, [Some((start + 7, 2)), Some((start + 2000, 1))]);
    assert_eq!(allocator.allocate(Stream::Data, 1), None);
}

/// The last segment is in the line of data, and its page is not read yet: a map node must not do without.
#[test]
fn what_the_other_stream_has_in_line_is_read_for_both() {
    let mut allocator = Allocator::new(Geometry::new(3 * SEGMENT_BLOCKS, 64).expect("valid"), 0);
    let page = BitmapPage::fresh();
    allocator.load(0, page.entry(0), page);
    let for_data = allocator.line_up(Stream::Data, 8);
    assert_eq!(for_data.len(), 1);
    assert_eq!(allocator.line_up(Stream::Map, 1), for_data);
    allocator.install(for_data[0], BitmapPage::fresh());
    assert_eq!(allocator.line_up(Stream::Map, 1), []);
    assert!(allocator.allocate(Stream::Map, 1).is_some());
}

/// A read of a bitmap page that takes longer than the checkpoint that saves the page anew: what it brings is the page of
/// the checkpoint before, in which the new blocks are free.
#[test]
fn a_page_that_was_saved_while_it_was_read_is_not_taken_for_what_is_used() {
    let mut allocator = Allocator::new(Geometry::new(3 * SEGMENT_BLOCKS, 64).expect("valid"), 0);
    let old = BitmapPage::fresh();
    allocator.load(0, old.entry(0), old.clone());
    let slow = allocator.page_of(0).expect("not in memory");
    // The checkpoint does not wait for it.
    allocator.hold(0);
    allocator.install(slow, old.clone());
    let (block, _) = allocator.allocate(Stream::Map, 1).expect("free");
    allocator.adopt(block);
    assert_eq!(allocator.save().len(), 1);
    // The rest of the segment goes too, so that no line needs the region any more.
    while allocator.allocate(Stream::Map, 1024).is_some() {}
    let taken = allocator.geometry().region_start(0) + 2..allocator.geometry().store_blocks();
    taken.filter(|other| *other != block).for_each(|other| allocator.release(other));
    allocator.pages_written();
    let again = allocator.page_of(0).expect("cold again");
    assert_ne!(again, slow);
    allocator.hold(0);
    allocator.install(slow, old);
    assert_eq!(allocator.page_of(0), Some(again), "the slow read brought nothing");
    allocator.give_up(slow);
    assert!(!allocator.is_broken(0), "nor does it matter that it fails");
    let mut page = BitmapPage::fresh();
    page.set(block - allocator.geometry().region_start(0));
    allocator.install(again, page);
    while let Some((first, count)) = allocator.allocate(Stream::Data, 1024) {
        assert!(!(first..first + count).contains(&block), "block {block} has two owners");
    }
}

#[test]
fn idle_segments_are_handed_back_but_a_few() {
    let mut allocator = Allocator::new(Geometry::new(66 * SEGMENT_BLOCKS, 64).expect("valid"), 100);
    let mut blocks = Vec::new();
    while let Some((block, count)) = allocator.allocate(Stream::Data, 1024) {
        blocks.extend(block..block + count);
    }
    assert_eq!(allocator.take_idle_segment(), None);
    blocks.into_iter().for_each(|block| allocator.release(block));
    let mut handed_back = 0;
    while let Some((block, count)) = allocator.take_idle_segment() {
        handed_back += 1;
        assert!(allocator.is_busy(block), "not to be allocated while it is punched (B2)");
        (block..block + count).for_each(|block| allocator.release(block));
    }
    assert_eq!(handed_back, 64 - 64 / 20);
}

#[test]
fn segments_are_written_ahead_but_a_few() {
    let mut allocator = Allocator::new(Geometry::new(66 * SEGMENT_BLOCKS, 64).expect("valid"), 100);
    let mut prepared = Vec::new();
    while let Some((block, count)) = allocator.take_cold_segment(2) {
        assert!(allocator.is_busy(block), "not to be allocated while zeros are written over it");
        (block..block + count).for_each(|block| allocator.release(block));
        prepared.push(block);
    }
    assert_eq!(prepared.len(), 2);
    let (first, _) = allocator.allocate(Stream::Data, 1).expect("free");
    assert!(prepared.contains(&first), "what is written goes first");
    assert!(allocator.take_cold_segment(2).is_some(), "one was opened, another takes its place");
    allocator.mark_all_warm();
    assert_eq!(allocator.take_cold_segment(2), None);
}

#[test]
#[should_panic(expected = "while the checkpoint refers to it")]
fn releasing_a_used_block_is_a_bug() {
    let mut allocator = small();
    let (block, _) = allocator.allocate(Stream::Data, 1).expect("room");
    allocator.adopt(block);
    allocator.release(block);
}

#[test]
fn a_block_that_is_free_in_its_bitmap_is_not_dropped() {
    let mut allocator = small();
    let (block, _) = allocator.allocate(Stream::Data, 1).expect("room");
    assert!(allocator.disown(block).is_err(), "the map refers to what its bitmap calls free");
    allocator.adopt(block);
    assert!(allocator.disown(block).is_ok());
    assert!(allocator.disown(block).is_err(), "the map refers to it twice");
}
