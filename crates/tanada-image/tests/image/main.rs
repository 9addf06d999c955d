//! Images against themselves, against QEMU's tools, and against whoever means harm.

mod disk;
mod hostile;
mod others;
mod qemu;
mod round_trip;
