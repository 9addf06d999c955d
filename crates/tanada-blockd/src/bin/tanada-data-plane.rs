//! The data plane's programs without the rest: what the tests of this crate run. Installed is `tanada`, which has them
//! all.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = args.iter().map_while(|arg| arg.to_str()).take(2).collect();
    let rest = |count: usize| args[count..].to_vec();
    match words.as_slice() {
        ["blockd", ..] => tanada_blockd::main_blockd(rest(1)),
        ["blockd-keeper", ..] => tanada_blockd::main_keeper(rest(1)),
        ["store", "format"] => tanada_blockd::main_format(rest(2)),
        ["store", "scrub"] => tanada_blockd::main_scrub(rest(2)),
        ["store", "grow"] => tanada_blockd::main_grow(rest(2)),
        _ => {
            eprintln!("usage: tanada-data-plane blockd|blockd-keeper|store format|store scrub|store grow ...");
            ExitCode::FAILURE
        }
    }
}
