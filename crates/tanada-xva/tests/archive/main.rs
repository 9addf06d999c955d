//! Whole archives: ours both ways, other programs' as they are, damaged ones refused.

mod common;
mod foreign;
mod generations;
mod others;
mod round_trip;
