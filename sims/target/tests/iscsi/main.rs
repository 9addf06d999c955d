//! What the target and the router show, as other programs see it.

mod array;
mod instant;
mod witnesses;
