//! What the array simulators share: real blocks behind real iSCSI.
//!
//! ```text
//!  initiator --login--> router --rewritten login--> tgtd (one per simulator) --> sparse files
//!                         |                          ^
//!                         +-- asks the array: who    +-- management socket: targets, LUNs, accounts
//!                             is this, what may it see
//! ```
//! - [`blocks`]: disks are sparse files; copies of several at one instant.
//! - [`Target`]: a `tgtd` of its own that dies with us. LUN numbers here are the array's (0 is a disk's).
//! - [`router`]: the array's portals. One IQN can show every initiator other LUNs.
//! - [`faults`]: rules by which calls are slow, fail, or take effect and then lose their answer.
//!
//! Nothing here is shared with the drivers: it imitates arrays.

pub mod blocks;
mod discovery;
mod error;
pub mod faults;
mod mgmt;
mod pdu;
pub mod router;
mod target;
mod tgtd;

pub use error::{Result, TargetError};
pub use target::{Chap, Identity, Target};
pub use tgtd::{ISCSI_PORT, free_loopback};
