//! What goes on beside guests: checkpoints, deletion walks, scrubbing, re-layout; and how they read ahead and give way.
//!
//! What may overlap, and what keeps it right (rules of `docs/store-rules.md`):
//!
//! | | a checkpoint is written | a deletion walk | snapshot, clone, revert | a crash |
//! |---|---|---|---|---|
//! | guest's write | goes into the new delta, the next era | is judged by the walk's cursor (V6) | is born when applied (V1) | prefix of the journal (J2) |
//! | guest's read | delta, frozen delta, tree; its round keeps blocks (B3) | what dies is not open (V7) | pointers go on meaning the same | - |
//! | write and record as a pair (J1) | the cut waits for its end | - | waits for its end | last in the journal, or void |
//! | snapshot, clone, revert | is not in this one; whoever has the tree at its end gets the new one (V3) | splits the child: the generation takes its place | the epoch moves once per record | one record, one block (J5) |
//! | deletion | is marked, acts at the next cut | waits: one at a time in a family (V7) | what dies takes no new children | cursor and frees are in one checkpoint (V6) |
//! | move of blocks (V12) | a record like others | like a write | is dropped if it comes late | like a write |
//! | growth | the superblock has the size as of its end | - | - | applied before all other records |
//! | scrub | a page that changes is looked at again | children answer for what they share with what dies | content moves between versions, never between places | goes on from its mark |
//! | punch | is not begun beside one | - | - | a lost one is harmless (B2) |

pub mod ahead;
pub mod checkpoint;
pub mod merging;
pub mod relayout;
pub mod scrub;
pub mod walker;
