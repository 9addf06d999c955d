//! The functions over trees, pure: merge, walk, difference, count. Each is a page; where nodes come from and where
//! freed blocks go is behind [`NodeSource`] and the traits beside it, so that tests run them on trees in memory.

pub mod count;
pub mod diff;
pub mod merge;
pub mod walk;

use std::rc::Rc;

use tanada_format::{Node, Pointer};

use crate::failure::Failure;

/// Where nodes are read.
pub trait NodeSource {
    /// The node behind a pointer that has a block.
    fn node(&self, pointer: Pointer) -> impl Future<Output = Result<Rc<Node>, Failure>>;

    /// Says which nodes of `level` will be asked for next, in this order or another: they may be read together. What
    /// was said before is forgotten.
    fn prefetch(&self, level: u8, pointers: Vec<Pointer>) -> impl Future<Output = ()> {
        let _ = (level, pointers);
        async {}
    }
}

/// The node behind `pointer`; behind the null pointer one without anything, behind a lost one all is lost.
pub async fn node_behind(source: &impl NodeSource, pointer: Pointer) -> Result<Rc<Node>, Failure> {
    if pointer.has_block() { source.node(pointer).await } else { Ok(Rc::new(Node::filled(pointer))) }
}
