//! Machines as records: made, copied, turned back, ended. Running them is another part's business.
//!
//! | module | messages |
//! |---|---|
//! | [`create`] | `VM.create`, templates, `VM.destroy` |
//! | [`copy`] | what snapshots, clones and copies have in common: the new records |
//! | [`snapshot`] | `VM.snapshot`, `VM.snapshot_with_quiesce` |
//! | [`cut`] | the instant of a snapshot |
//! | [`certify`] | its certificate, and the messages about it |
//! | [`clone`] | `VM.clone`, `VM.copy` |
//! | [`checkpoint`] | `VM.checkpoint` |
//! | [`suspend`] | `VM.suspend`, `VM.resume`, `VM.resume_on` |
//! | [`revert`] | `VM.revert` |
//! | [`discard`] | the end of a snapshot with its disks |
//! | [`provision`] | `VM.provision` |
//! | [`quiesce`] | freezing and thawing guests |
//! | [`trial`] | freezing and thawing tried out: a function of `VM.call_plugin` |
//! | [`turn`] | one cut of a machine at a time |

use crate::context::Handlers;

pub mod certify;
pub mod checkpoint;
pub mod clone;
pub mod copy;
pub mod create;
pub mod cut;
pub mod discard;
pub mod provision;
pub mod quiesce;
pub mod revert;
pub mod snapshot;
pub mod suspend;
pub mod trial;
pub mod turn;

pub fn handlers() -> Handlers {
    let mut all = Handlers::new();
    all.extend(create::handlers());
    all.extend(snapshot::handlers());
    all.extend(checkpoint::handlers());
    all.extend(suspend::handlers());
    all.extend(clone::handlers());
    all.extend(revert::handlers());
    all.extend(provision::handlers());
    all
}
