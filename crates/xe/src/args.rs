//! The grammar of the command line.
//!
//! ```text
//! xe [client options] COMMAND [key=value | key | --switch]...
//! ```
//! Client options say where and as whom to connect; they may stand anywhere. Each may also come from `~/.xe` (lines
//! `key=value`) and from `XE_EXTRA_ARGS` (the same, comma-separated, a backslash escapes a comma); the command line wins,
//! then the variable, then the file. `XE_CA` alone is as `ca=` in the file, and wins over it. Everything else belongs to the command.

use crate::failure::Failure;
use crate::scalar::parse_bool;
use std::ffi::OsString;

/// Where and as whom to connect.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientOptions {
    /// Host name or address; a path means a unix socket. `None`: this machine.
    pub server: Option<String>,
    pub port: Option<u16>,
    pub username: Option<String>,
    pub password: Option<String>,
    pub password_file: Option<String>,
    /// Plain HTTP.
    pub no_tls: bool,
    /// PEM file with the certificates that vouch for the server. `None`: any server will do.
    pub ca: Option<String>,
    pub debug: bool,
    pub debug_on_fail: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// No arguments, `-help` or `--help`.
    Usage,
    Version,
    Command(Invocation),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    pub name: String,
    /// In the order given; a key may occur several times.
    pub params: Vec<(String, String)>,
}

/// Raw sources in rising precedence.
pub struct Sources<'a> {
    pub rc_file: Option<&'a str>,
    /// What `XE_CA` says; empty says nothing.
    pub ca: Option<&'a str>,
    pub extra_args: Option<&'a str>,
    pub command_line: Vec<OsString>,
}

pub fn parse(sources: Sources<'_>) -> Result<(ClientOptions, Request), Failure> {
    let mut options = ClientOptions::default();
    for line in sources.rc_file.unwrap_or_default().lines() {
        set_from_pair(&mut options, line.trim())?;
    }
    if let Some(ca) = sources.ca.filter(|ca| !ca.is_empty()) {
        options.ca = Some(ca.to_owned());
    }
    for item in split_commas(sources.extra_args.unwrap_or_default()) {
        set_from_pair(&mut options, item.trim())?;
    }
    let mut words = Vec::new();
    for word in sources.command_line {
        words.push(word.into_string().map_err(|w| Failure::Syntax(format!("argument {w:?} is not valid UTF-8")))?);
    }
    let request = parse_words(&mut options, words)?;
    Ok((options, request))
}

fn parse_words(options: &mut ClientOptions, words: Vec<String>) -> Result<Request, Failure> {
    if words.is_empty() {
        return Ok(Request::Usage);
    }
    let mut name: Option<String> = None;
    let mut params = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let mut argument = |what: &str| words.next().ok_or_else(|| Failure::Syntax(format!("{word} needs {what}")));
        match word.as_str() {
            "-s" | "-h" => options.server = Some(argument("a server")?),
            "-p" => options.port = Some(parse_port(&argument("a port number")?)?),
            "-u" => options.username = Some(argument("a user name")?),
            "-pw" => options.password = Some(argument("a password")?),
            "-pwf" => options.password_file = Some(argument("a file name")?),
            "--nossl" => options.no_tls = true,
            "--ca" => options.ca = Some(argument("a file name")?),
            "--debug" => options.debug = true,
            "--debug-on-fail" => options.debug_on_fail = true,
            // Traces are not kept here; the argument is taken so that scripts written for it work.
            "--traceparent" => drop(argument("a value")?),
            "-help" | "--help" if name.is_none() => return Ok(Request::Usage),
            "-version" => return Ok(Request::Version),
            _ => match word.strip_prefix("--") {
                Some(switch) if switch.starts_with("ca=") => set_from_pair(options, switch)?,
                Some(switch) => {
                    let (key, value) = switch.split_once('=').unwrap_or((switch, "true"));
                    params.push((key.to_owned(), value.to_owned()));
                }
                None if word.starts_with('-') && word.len() > 1 => {
                    return Err(Failure::Syntax(format!("Unknown switch: {word}")));
                }
                None => {
                    let (key, value) = word.split_once('=').unwrap_or((&word, ""));
                    if is_client_option(key) && word.contains('=') {
                        set_option(options, key, value)?;
                    } else if name.is_none() {
                        if word.contains('=') {
                            return Err(Failure::Syntax(format!("'{word}' stands where the command should")));
                        }
                        name = Some(word);
                    } else {
                        params.push((key.to_owned(), value.to_owned()));
                    }
                }
            },
        }
    }
    match name {
        Some(name) => Ok(Request::Command(Invocation { name, params })),
        None if params.iter().any(|(key, _)| key == "version") => Ok(Request::Version),
        None => Err(Failure::Syntax("no command given".to_owned())),
    }
}

const CLIENT_OPTIONS: &[&str] =
    &["server", "port", "username", "password", "passwordfile", "nossl", "ca", "debug", "debug-on-fail"];

fn is_client_option(key: &str) -> bool {
    CLIENT_OPTIONS.contains(&key)
}

fn set_from_pair(options: &mut ClientOptions, pair: &str) -> Result<(), Failure> {
    if pair.is_empty() || pair.starts_with('#') {
        return Ok(());
    }
    let (key, value) = pair.split_once('=').unwrap_or((pair, "true"));
    // Unknown keys of the file and the variable are left alone: they may be meant for other versions.
    if is_client_option(key.trim()) { set_option(options, key.trim(), value.trim()) } else { Ok(()) }
}

fn set_option(options: &mut ClientOptions, key: &str, value: &str) -> Result<(), Failure> {
    match key {
        "server" => options.server = Some(value.to_owned()),
        "port" => options.port = Some(parse_port(value)?),
        "username" => options.username = Some(value.to_owned()),
        "password" => options.password = Some(value.to_owned()),
        "passwordfile" => options.password_file = Some(value.to_owned()),
        "ca" => options.ca = Some(value.to_owned()),
        "nossl" => options.no_tls = parse_bool(key, value)?,
        "debug" => options.debug = parse_bool(key, value)?,
        "debug-on-fail" => options.debug_on_fail = parse_bool(key, value)?,
        _ => {}
    }
    Ok(())
}

fn parse_port(text: &str) -> Result<u16, Failure> {
    text.parse().map_err(|_| Failure::Syntax(format!("'{text}' is not a port number (1 to 65535)")))
}

/// Splits at commas; `\,` is a comma and `\\` a backslash.
pub fn split_commas(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let last = items.len() - 1;
        match c {
            '\\' => items[last].extend(chars.next()),
            ',' => items.push(String::new()),
            _ => items[last].push(c),
        }
    }
    items.retain(|item| !item.is_empty());
    items
}

#[cfg(test)]
mod tests {
    use super::{Failure, Request, Sources, parse, split_commas};

    fn run(rc: &str, extra: &str, words: &str) -> Result<(super::ClientOptions, Request), Failure> {
        let command_line = words.split_whitespace().map(Into::into).collect();
        parse(Sources { rc_file: Some(rc), ca: None, extra_args: Some(extra), command_line })
    }

    #[test]
    fn whom_to_trust_is_said_as_everything_else_and_by_a_variable() {
        let ca = |rc: &str, ca: Option<&str>, extra: &str, words: &str| {
            let command_line = words.split_whitespace().map(Into::into).collect();
            let sources = Sources { rc_file: Some(rc), ca, extra_args: Some(extra), command_line };
            parse(sources).unwrap().0.ca.unwrap_or_default()
        };
        assert_eq!(ca("", None, "", "vm-list"), "");
        assert_eq!(ca("ca=file", Some(""), "", "vm-list"), "file");
        assert_eq!(ca("ca=file", Some("variable"), "", "vm-list"), "variable");
        assert_eq!(ca("ca=file", Some("variable"), "ca=extra", "vm-list"), "extra");
        for words in ["--ca word vm-list", "vm-list --ca=word", "vm-list ca=word"] {
            assert_eq!(ca("ca=file", Some("variable"), "ca=extra", words), "word", "{words}");
        }
    }

    fn check(words: &str, expected: &str) {
        let shown = match run("", "", words) {
            Ok((_, Request::Command(invocation))) => {
                let params: Vec<_> = invocation.params.iter().map(|(k, v)| format!("{k}={v}")).collect();
                format!("{}: {}", invocation.name, params.join(" "))
            }
            Ok((_, request)) => format!("{request:?}"),
            Err(failure) => format!("{failure:?}"),
        };
        assert_eq!(shown, expected, "{words}");
    }

    #[test]
    fn commands_and_parameters() {
        check("", "Usage");
        check("--help", "Usage");
        check("-version", "Version");
        check("vm-list", "vm-list: ");
        check("vm-list params=all --minimal", "vm-list: params=all minimal=true");
        check("vm-start vm=a=b force", "vm-start: vm=a=b force=");
        check("-s host -u root -pw secret vm-list x=1", "vm-list: x=1");
        check("vm-list server=h username=u password=p y=2", "vm-list: y=2");
        check("help --all", "help: all=true");
        check("a=b vm-list", "Syntax(\"'a=b' stands where the command should\")");
        check("vm-list -x", "Syntax(\"Unknown switch: -x\")");
        check("vm-list -s", "Syntax(\"-s needs a server\")");
        check("-p many vm-list", "Syntax(\"'many' is not a port number (1 to 65535)\")");
    }

    #[test]
    fn the_command_line_wins_over_the_variable_and_that_over_the_file() {
        let (options, _) =
            run("server=file\nport=1\nusername=file\n", "port=2,username=va\\,r", "-u me vm-list").unwrap();
        assert_eq!(options.server.as_deref(), Some("file"));
        assert_eq!(options.port, Some(2));
        assert_eq!(options.username.as_deref(), Some("me"));
        let (options, _) = run("username=file", "username=va\\,r", "vm-list").unwrap();
        assert_eq!(options.username.as_deref(), Some("va,r"));
    }

    #[test]
    fn commas_can_be_escaped() {
        assert_eq!(split_commas(r"a\,b,c\\d,,"), ["a,b", r"c\d"]);
    }
}
