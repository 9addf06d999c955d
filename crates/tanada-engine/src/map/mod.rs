//! Maps: what changed since the last cut, the trees under it, and the catalog, which is a tree too.

pub mod cache;
pub mod catalog;
pub mod delta;
pub mod tree;
