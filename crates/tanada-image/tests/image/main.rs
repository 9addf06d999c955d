//! Images against themselves, against QEMU's tools, and against whoever means harm.

mod disk;
mod fixtures;
mod hostile;
mod others;
mod qemu;
mod readers;
mod round_trip;
