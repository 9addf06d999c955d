//! Dell EqualLogic PS groups: SRs of type `equal`.
//!
//! An administrator sets up RAID and a pool, nothing else. Every virtual disk is a thin volume made on demand, a snapshot
//! an array snapshot, a copy an array clone, reached over iSCSI with CHAP. All of it through the group's command line over
//! SSH, since there is no other interface for programs.
//!
//! ```text
//!   backend    the SR type: create, open, erase, probe
//!   driver     the verbs; volumes, cut, clones, revert, access, reserve, facts hold one subject each
//!   names      how what is ours is known on the group
//!   array      commands, and their answers as values
//!   text, size the two layouts of answers, and numbers in them
//!   session    conversations, settings, the limit of sessions
//!   screen     what a session shows, as a pure function of bytes
//!   ssh        bytes
//! ```

mod access;
mod array;
mod backend;
mod clones;
mod cut;
mod driver;
mod error;
mod facts;
mod names;
mod options;
mod reserve;
mod revert;
mod screen;
mod session;
mod size;
mod ssh;
mod text;
mod volumes;

use tanada_driver::{DriverError, DriverErrorKind};

pub use backend::{EqualBackend, FACTS};
pub use driver::EqualDriver;

fn error_with(kind: DriverErrorKind, message: String, number: Option<u32>) -> DriverError {
    let failure = DriverError::new(kind, message);
    match number {
        Some(number) => failure.with_sm(number),
        None => failure,
    }
}
