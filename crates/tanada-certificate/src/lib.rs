//! What a snapshot says about its consistency. Plain data and text: whoever shows, keeps or judges certificates needs
//! nothing else of ours.
//!
//! | module | what |
//! |---|---|
//! | [`certificate`] | what a snapshot knows about its consistency |
//! | [`keys`] | the certificate as the flat map of `snapshot_info`, both ways |
//! | [`text`] | the certificate for people |
//! | [`check`] | what was seen when a freeze was tried out |
//! | [`cause`] | why a snapshot is no better than crash-consistent, and what to do about it |

pub mod cause;
pub mod certificate;
pub mod check;
pub mod keys;
pub mod text;

pub use cause::{Cause, Downgrade};
pub use certificate::{Certificate, Cut, DiskEntry, Freeze, GuestFacts, Held, Level, Method, Participant};
