//! Real daemons for tests: a scratch world that starts them, and ends what it started.
//!
//! ```text
//!  Scratch::start ─▶ directory, password, `tanada daemon` ─▶ answers `xe host-list` ─▶ the test ─▶ drop
//!                                                                                       ends every process of the
//!                                                                                       directory; removes it, or keeps
//!                                                                                       it and shows logs after a panic
//! ```
//! The program under test is `$TANADA_BIN`, else `tanada` beside the test in the target directory. A test that finds
//! none fails: it never skips itself. Nothing here waits for a time to pass; it asks until an answer comes or the deadline
//! of [`DEADLINE`] has passed.
//!
//! [`guest`] starts machines of the small test guest in such a world.
//!
//! [`store`] is smaller: one store with its keeper, without a control plane.

pub mod guest;
mod processes;
mod scratch;
pub mod store;

pub use scratch::{Ran, Scratch};

use std::path::PathBuf;
use std::time::Duration;

/// Far more than anything takes here, so that only what hangs fails.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// The program under test.
pub fn tanada() -> PathBuf {
    store::tanada_binary().expect("the program under test")
}

/// A Python that has the XenAPI SDK.
pub fn python() -> PathBuf {
    let path = std::env::var_os("TANADA_PYTHON").map_or_else(venv_python, PathBuf::from);
    assert!(
        path.is_file(),
        "{} is missing: `cargo xtask test` makes it, or set TANADA_PYTHON to a Python with the package XenAPI",
        path.display()
    );
    path
}

/// In the target directory, three levels above this test's executable.
fn venv_python() -> PathBuf {
    let executable = std::env::current_exe().expect("a test knows its executable");
    executable.ancestors().nth(3).expect("the executable is in <target>/<profile>/deps").join("venv/bin/python")
}
