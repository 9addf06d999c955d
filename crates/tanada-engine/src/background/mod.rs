//! What goes on beside guests: checkpoints, deletion walks, scrubbing; and how it reads ahead and gives way.

pub mod ahead;
pub mod checkpoint;
pub mod relayout;
pub mod scrub;
pub mod walker;
