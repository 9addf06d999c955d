//! How a guest is brought to rest for a snapshot, and what proves that it was.
//!
//! | module | what |
//! |---|---|
//! | [`sequence`] | probe, freeze, cut, thaw: the state machine |
//! | [`verdict`] | from evidence to level: a pure function and its table |
//! | [`policy`] | what an administrator asks for, per VM |
//! | [`probe`] | what can be known of a guest before it is asked to freeze |
//! | [`pace`] | how long the storage will need |
//! | [`vss`] | what a Windows guest tells about its writers |
//! | [`trial`] | a freeze tried out without a cut |
//! | [`guard`] | the process that thaws whatever becomes of the daemon |
//!
//! What a snapshot then says about itself is [`Certificate`], of a crate of its own.

pub mod guard;
pub mod pace;
pub mod policy;
pub mod probe;
pub mod sequence;
pub mod trial;
pub mod verdict;
pub mod vss;

pub use policy::{Policy, Settings};
pub use tanada_certificate::{
    Cause, Certificate, Cut, DiskEntry, Downgrade, Freeze, GuestFacts, Held, Level, Method, Participant, cause,
};
