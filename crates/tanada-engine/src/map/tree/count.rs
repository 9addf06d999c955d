//! Counting what a version holds: the deletion walk, counting instead of freeing.

use tanada_format::{FANOUT, Pointer, ROOT_LEVEL};

use super::{NodeSource, node_behind};
use crate::failure::Failure;

/// Blocks held by one version alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exclusive {
    pub data: u64,
    pub nodes: u64,
}

/// Blocks that `tree` holds and neither its parent (born at or before `parent_cut`) nor any of `children` does.
pub async fn exclusive<S: NodeSource>(
    source: &S,
    tree: Pointer,
    children: &[Pointer],
    parent_cut: u64,
) -> Result<Exclusive, Failure> {
    let mut found = Exclusive::default();
    exclusive_below(source, tree, children, parent_cut, ROOT_LEVEL, &mut found).await?;
    Ok(found)
}

async fn exclusive_below<S: NodeSource>(
    source: &S,
    tree: Pointer,
    children: &[Pointer],
    parent_cut: u64,
    level: u8,
    found: &mut Exclusive,
) -> Result<(), Failure> {
    if !tree.has_block() || tree.birth() <= parent_cut || children.contains(&tree) {
        return Ok(());
    }
    let ours = source.node(tree).await?;
    let mut theirs = Vec::with_capacity(children.len());
    for child in children.iter().filter(|child| !child.is_null()) {
        theirs.push(node_behind(source, *child).await?);
    }
    found.nodes += 1;
    for slot in 0..FANOUT {
        let pointer = ours.pointers[slot];
        let children: Vec<Pointer> = theirs.iter().map(|node| node.pointers[slot]).collect();
        if level > 0 {
            Box::pin(exclusive_below(source, pointer, &children, parent_cut, level - 1, found)).await?;
        } else if pointer.has_block() && pointer.birth() > parent_cut && !children.contains(&pointer) {
            found.data += 1;
        }
    }
    Ok(())
}

/// Blocks that `tree` maps.
pub async fn mapped<S: NodeSource>(source: &S, tree: Pointer) -> Result<u64, Failure> {
    mapped_below(source, tree, ROOT_LEVEL).await
}

async fn mapped_below<S: NodeSource>(source: &S, tree: Pointer, level: u8) -> Result<u64, Failure> {
    let node = node_behind(source, tree).await?;
    if level == 0 {
        return Ok(node.pointers.iter().filter(|pointer| pointer.has_block()).count() as u64);
    }
    let mut found = 0;
    for child in node.pointers.iter().filter(|child| child.has_block()) {
        found += Box::pin(mapped_below(source, *child, level - 1)).await?;
    }
    Ok(found)
}
