//! What every driver must do, as one suite that runs over any of them: the embedded store, simulated arrays in the tests,
//! and an administrator's own array.
//!
//! ```text
//!   cases/*   what is asked, one subject each       run    plays them, cleans up after each, and looks that nothing is left
//!   scratch   the SR under test, disks, patterns    report what came of it: verdicts, and what the storage does by itself
//! ```
//! A case knows nothing of the storage behind the trait. What a driver says that it cannot do ([`Capabilities`]) is not asked
//! for, but then it must refuse it with the right error. Contents are written and read through whatever
//! [`Driver::attach`] answers, as a hypervisor would.
//!
//! [`Capabilities`]: tanada_driver::Capabilities
//! [`Driver::attach`]: tanada_driver::Driver::attach

mod cases;
mod pattern;
mod report;
mod run;
mod scratch;

pub use report::{CaseReport, Report, Verdict};
pub use run::{Scale, Subject, names, run};
