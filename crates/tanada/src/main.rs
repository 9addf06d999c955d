//! The one installed binary: each program by its words.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = args.iter().take(2).map(|arg| arg.to_str().unwrap_or_default()).collect();
    match words.as_slice() {
        ["blockd", ..] => tanada_blockd::main_blockd(args.into_iter().skip(1)),
        ["blockd-keeper", ..] => tanada_blockd::main_keeper(args.into_iter().skip(1)),
        ["store", "format"] => tanada_blockd::main_format(args.into_iter().skip(2)),
        _ => {
            eprintln!("tanada: say 'blockd', 'blockd-keeper' or 'store format'");
            ExitCode::FAILURE
        }
    }
}
