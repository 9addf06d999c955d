//! QEMU as a supervised program: its process, its machine protocol and the guest's agent. Knows nothing of XenAPI.
//!
//! | module | what |
//! |---|---|
//! | [`machine`] | a machine's description and the command line it becomes |
//! | [`source`] | where a disk's blocks come from |
//! | [`launch`] | starting a machine, finding one again |
//! | [`process`] | the process: user, session, cgroup, state directory, end |
//! | [`qmp`] | QEMU's protocol: commands by id, events |
//! | [`agent`] | the guest agent: sync, commands, programs, files |
//! | [`hotplug`] | disks added and taken away |
//! | [`memory`] | a machine's memory written out, and read into a new machine |
//! | [`resume`] | when a machine stopped by a disk fault goes on |
//! | [`text`] | words of a guest, bounded and printable |
//! | [`accel`] | whether KVM works here, proven by a kernel that boots |

pub mod accel;
pub mod agent;
pub mod error;
pub mod hotplug;
pub mod launch;
pub mod machine;
pub mod memory;
pub mod process;
pub mod qmp;
pub mod resume;
pub mod source;
pub mod text;

pub use error::{QemuError, Result};
