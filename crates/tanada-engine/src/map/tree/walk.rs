//! The deletion walk: frees what only a dying version holds, in order of place, with a cursor (rule V6).

use tanada_format::node::span_blocks;
use tanada_format::{FANOUT, Node, Pointer, ROOT_LEVEL};

use super::{NodeSource, node_behind};
use crate::failure::Failure;

/// What a walk does to the store.
pub trait WalkStore: NodeSource {
    /// The dying version was the last to refer to this block.
    fn free(&self, block: u64);
    /// All places before `cursor` are done. Called after the frees it covers, with nothing in between.
    fn advance(&self, cursor: u64);
}

/// Walks `dying` beside the tree of its only child (null for none), from `cursor` on. `parent_cut` is S(parent).
pub async fn walk<S: WalkStore>(
    store: &S,
    dying: Pointer,
    child: Pointer,
    parent_cut: u64,
    cursor: u64,
) -> Result<(), Failure> {
    subtree(store, dying, child, parent_cut, cursor, ROOT_LEVEL, 0).await?;
    store.advance(span_blocks(ROOT_LEVEL));
    Ok(())
}

async fn subtree<S: WalkStore>(
    store: &S,
    dying: Pointer,
    child: Pointer,
    parent_cut: u64,
    cursor: u64,
    level: u8,
    start: u64,
) -> Result<(), Failure> {
    let end = start + span_blocks(level);
    if end <= cursor || !dying.has_block() || dying.birth() <= parent_cut || dying == child {
        return Ok(());
    }
    let ours = store.node(dying).await?;
    let theirs = node_behind(store, child).await?;
    if level > 0 {
        let pairs = ours.pointers.iter().zip(&theirs.pointers).enumerate();
        let step = span_blocks(level - 1);
        let differing = pairs.filter(|(slot, (dying, child))| {
            let end = start + (*slot as u64 + 1) * step;
            end > cursor && dying.has_block() && dying.birth() > parent_cut && dying != child
        });
        let wanted = differing.flat_map(|(_, (dying, child))| [*dying, *child]).filter(|pointer| pointer.has_block());
        store.prefetch(level - 1, wanted.collect()).await;
    }
    if level == 0 {
        leaf(store, &ours, &theirs, parent_cut, cursor, start);
    } else {
        let step = span_blocks(level - 1);
        for slot in 0..FANOUT {
            let (dying, child) = (ours.pointers[slot], theirs.pointers[slot]);
            Box::pin(subtree(store, dying, child, parent_cut, cursor, level - 1, start + slot as u64 * step)).await?;
        }
    }
    // After its children, so that a resumed walk never reads a freed node.
    store.free(dying.block());
    store.advance(end);
    Ok(())
}

fn leaf(store: &impl WalkStore, ours: &Node, theirs: &Node, parent_cut: u64, cursor: u64, start: u64) {
    for (slot, (dying, child)) in ours.pointers.iter().zip(&theirs.pointers).enumerate() {
        let end = start + slot as u64 + 1;
        if end > cursor && dying.has_block() && dying.birth() > parent_cut && dying != child {
            store.free(dying.block());
            store.advance(end);
        }
    }
}
