//! `xe`: the command line of XenAPI. Syntax, output layout and exit status are those that scripts have relied on for
//! twenty years; the calls go straight to the API.
//!
//! | module | holds |
//! |---|---|
//! | [`args`], [`params`], [`scalar`] | the grammar, a command's parameters, booleans and sizes |
//! | [`command`] | one definition per command: parameters, help, completion and run |
//! | [`record`] | one table per class: fields, their order, flags and formatting |
//! | [`context`], [`api`], [`transport`], [`trust`], [`stream`] | a run, its calls, its connection, whom it trusts, its files |
//! | [`print`], [`progress`], [`failure`], [`texts`], [`nearest`] | what people and scripts see |
//! | [`complete`] | words for the shell |

mod api;
mod args;
mod command;
mod complete;
mod context;
mod failure;
mod nearest;
mod params;
mod print;
mod progress;
mod record;
mod scalar;
mod stream;
mod texts;
mod transport;
mod trust;

#[cfg(test)]
mod tests;

use crate::args::{ClientOptions, Invocation, Request, Sources};
use crate::context::{Ctx, Surroundings};
use crate::failure::Failure;
use crate::params::Params;
use std::ffi::OsString;
use std::io::{stderr, stdin, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

/// Where a daemon of this machine listens, unless `TANADA_SOCKET` says otherwise.
pub const SOCKET_DEFAULT: &str = "/run/tanada/xapi";

/// Runs one command. `args` are those after the program's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let rc_file =
        std::env::var_os("HOME").and_then(|home| std::fs::read_to_string(PathBuf::from(home).join(".xe")).ok());
    let (extra_args, ca) = (std::env::var("XE_EXTRA_ARGS").ok(), std::env::var("XE_CA").ok());
    let socket = std::env::var_os("TANADA_SOCKET").map_or_else(|| PathBuf::from(SOCKET_DEFAULT), PathBuf::from);
    let (rc_file, ca, extra_args) = (rc_file.as_deref(), ca.as_deref(), extra_args.as_deref());
    let sources = Sources { rc_file, ca, extra_args, command_line: args };
    let around =
        Surroundings { socket, input: &mut stdin().lock(), out: &mut stdout().lock(), err: &mut stderr().lock() };
    ExitCode::from(run(sources, around))
}

/// The exit status.
fn run(sources: Sources<'_>, around: Surroundings<'_>) -> u8 {
    if let Some((first, words)) = sources.command_line.split_first()
        && first == "__complete"
    {
        let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        return complete_words(&words, around);
    }
    match args::parse(sources) {
        Ok((_, Request::Usage)) => u8::from(around.err.write_all(command::USAGE.as_bytes()).is_err()),
        Ok((_, Request::Version)) => u8::from(writeln!(around.out, "{}", env!("CARGO_PKG_VERSION")).is_err()),
        Ok((options, Request::Command(invocation))) => run_command(invocation, options, around),
        Err(failure) => tell(&failure, around),
    }
}

/// Prints candidates for the shell. Values are asked of the local server alone.
fn complete_words(words: &[String], around: Surroundings<'_>) -> u8 {
    let values = |class: &str, field: &str| {
        let (socket, class, field) = (around.socket.clone(), class.to_owned(), field.to_owned());
        complete::within_patience(move || {
            let Ok(api) = api::Api::login(transport::Endpoint::Unix(socket), "root", "", false) else {
                return Vec::new();
            };
            let objects = api.all(&class).unwrap_or_default();
            api.logout();
            objects.iter().filter_map(|object| object.record.get(&field).map(record::field::scalar)).collect()
        })
    };
    let text =
        if words == ["--bash"] { complete::BASH.to_owned() } else { complete::candidates(words, values).join("\n") };
    u8::from(writeln!(around.out, "{}", text.trim_end()).is_err())
}

/// A failure before there is anything to ask a server.
fn tell(failure: &Failure, around: Surroundings<'_>) -> u8 {
    for line in failure::lines(failure, |_, value| value.to_owned()) {
        // There is nowhere left to complain.
        let _ = writeln!(around.err, "{line}");
    }
    1
}

fn run_command(invocation: Invocation, options: ClientOptions, around: Surroundings<'_>) -> u8 {
    let Some(command) = command::find(&invocation.name) else {
        return tell(&command::unknown(&invocation.name), around);
    };
    let params = Params(invocation.params);
    if let Err(failure) = command.check(&params) {
        return tell(&failure, around);
    }
    let mut ctx = Ctx::new(command.clone(), params, options, around);
    let outcome = command.run(&mut ctx);
    if let Err(failure) = &outcome {
        ctx.report(failure);
    }
    ctx.close();
    u8::from(outcome.is_err())
}
