//! A simulated group as outsiders see it: OpenSSH's client, QEMU's and libiscsi's initiators.

mod bench;
mod faults;
mod iscsi;
mod program;
mod reserve;
mod ssh;
