//! One binary for all programs. They stay apart as processes: the control plane, one data plane per store with its keeper,
//! the offline tools, the command line. Called by the name `xe` it is that command line.

mod driver_test;
mod store;

use std::env::args_os;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "\
usage: tanada COMMAND
  daemon ...          the control plane: XenAPI, machines, storage
  xe ...              the XenAPI command line (also under the name xe)
  blockd ...          serves one store
  blockd-keeper ...   holds the sockets of one store and keeps its blockd alive
  store format ...    makes an empty store
  store scrub ...     has a store that is served verify everything it holds
  store grow ...      gives a store that is served more space
  store check|dump|stat|id FILE   looks at a store from outside, without writing
  driver-test ...     plays the conformance suite over a storage of one's own
  doctor quiesce vm=...   freezes and thaws a VM's guest once and tells every step, and what a snapshot would get
  version             prints the version
  help                prints this";

fn main() -> ExitCode {
    let mut args = args_os();
    let called_as = args.next().unwrap_or_default();
    let args: Vec<OsString> = args.collect();
    if Path::new(&called_as).file_name().is_some_and(|name| name == "xe") {
        return xe::main(args);
    }
    let words: Vec<&str> = args.iter().map_while(|word| word.to_str()).take(2).collect();
    let rest = |count: usize| args[count..].to_vec();
    match words.as_slice() {
        ["xe", ..] => xe::main(rest(1)),
        ["daemon", ..] => tanadad::main(rest(1)),
        // Started by the daemon alone, around a freeze.
        ["quiesce-guard", ..] => tanada_quiesce::guard::process::main(rest(1)),
        ["blockd", ..] => tanada_blockd::main_blockd(rest(1)),
        ["blockd-keeper", ..] => tanada_blockd::main_keeper(rest(1)),
        ["store", "format"] => tanada_blockd::main_format(rest(2)),
        ["store", "scrub"] => tanada_blockd::main_scrub(rest(2)),
        ["store", "grow"] => tanada_blockd::main_grow(rest(2)),
        ["store", verb @ ("check" | "dump" | "stat" | "id")] => store::main(verb, rest(2)),
        ["driver-test", ..] => driver_test::main(rest(1)),
        ["doctor", "quiesce"] => xe::main(doctor(rest(2))),
        ["version" | "--version" | "-V"] => {
            println!("tanada {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        [] => wrong("no command given"),
        ["doctor", ..] => wrong("of the doctor only 'doctor quiesce vm=...' is known"),
        ["store", what] => wrong(&format!("'store {what}' is not known")),
        [command, ..] => wrong(&format!("'{command}' is not a command")),
    }
}

/// The command line's own command, with its options for where and as whom to connect.
fn doctor(rest: Vec<OsString>) -> Vec<OsString> {
    std::iter::once(OsString::from("vm-quiesce-check")).chain(rest).collect()
}

fn wrong(what: &str) -> ExitCode {
    eprintln!("tanada: {what}\n{USAGE}");
    ExitCode::FAILURE
}
