//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::config::Config;

pub const USAGE: &str = "\
usage: tanada daemon [options]

  --state-dir DIR            durable state: database, certificate, logs (default /var/lib/tanada)
  --runtime-dir DIR          sockets and locks (default /run/tanada)
  --unix-socket PATH         the API for local root (default <runtime-dir>/xapi)
  --listen ADDR:PORT         HTTPS, with a certificate made on the first start (default: none)
  --listen-plain ADDR:PORT   HTTP on a loopback address, without encryption (default: none)
  --nbd-listen ADDR:PORT     disks over NBD and TLS for backup programs, as 0.0.0.0:10809 (default: none)
  --probe-kernel FILE        Linux kernel that finds out whether KVM works (default: the newest in /boot)
  --root-password-file FILE  set root's password for remote logins to the first line of FILE
  --scrub-every DAYS         embedded stores verify all they hold by themselves, at 50 MiB/s at most, so many
                             days after the last time (default 30; 0 for never)
  --log LEVEL                error, warn, info, debug or trace (default info)
  --help                     this text
";

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    Run(Box<Config>),
    Help,
}

/// The error says which option is wrong and what is accepted.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let mut config = Config::default();
    let mut unix_socket = None;
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let option = arg.to_str().ok_or_else(|| format!("{} is not an option", arg.display()))?.to_owned();
        if matches!(option.as_str(), "--help" | "-h") {
            return Ok(Command::Help);
        }
        let (option, inline) = match option.split_once('=') {
            Some((option, value)) => (option.to_owned(), Some(OsString::from(value))),
            None => (option, None),
        };
        let mut value = || inline.clone().or_else(|| args.next()).ok_or_else(|| format!("{option} needs a value"));
        match option.as_str() {
            "--state-dir" => config.state_dir = PathBuf::from(value()?),
            "--runtime-dir" => config.runtime_dir = PathBuf::from(value()?),
            "--unix-socket" => unix_socket = Some(PathBuf::from(value()?)),
            "--probe-kernel" => config.machines.probe_kernel = Some(PathBuf::from(value()?)),
            "--root-password-file" => config.root_password_file = Some(PathBuf::from(value()?)),
            "--listen" => config.listen = Some(parsed(&option, value()?, "an address and port as 0.0.0.0:443")?),
            "--listen-plain" => {
                config.listen_plain = Some(parsed(&option, value()?, "a loopback address and port as 127.0.0.1:80")?);
            }
            "--nbd-listen" => {
                config.nbd_listen = Some(parsed(&option, value()?, "an address and port as 0.0.0.0:10809")?);
            }
            "--scrub-every" => config.scrub_every_days = parsed(&option, value()?, "a number of days, or 0 for never")?,
            // Not in the usage: nobody runs a host by hand-moved time.
            "--clock" => config.clock = Some(PathBuf::from(value()?)),
            "--log" => config.log = parsed(&option, value()?, "error, warn, info, debug or trace")?,
            _ => return Err(format!("unknown option {option}; see --help")),
        }
    }
    config.unix_socket = unix_socket.unwrap_or_else(|| config.runtime_dir.join("xapi"));
    Ok(Command::Run(Box::new(config)))
}

fn parsed<T: std::str::FromStr>(option: &str, value: OsString, accepted: &str) -> Result<T, String> {
    let parsed = value.to_str().and_then(|v| v.parse().ok());
    parsed.ok_or_else(|| format!("{option}: {:?} is not accepted; give {accepted}", value.display()))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::{Command, Config, parse};

    fn parse_text(text: &str) -> Result<Command, String> {
        parse(text.split_whitespace().map(OsString::from))
    }

    #[test]
    fn options_are_read_and_wrong_ones_named() {
        let Ok(Command::Run(config)) =
            parse_text("--state-dir /s --runtime-dir=/r --listen 127.0.0.1:4443 --log debug --scrub-every 7")
        else {
            panic!("a valid command line was refused");
        };
        assert_eq!(config.unix_socket, std::path::Path::new("/r/xapi"));
        assert_eq!(config.listen.map(|a| a.port()), Some(4443));
        assert_eq!(config.scrub_every_days, 7);
        assert_eq!(Config::default().scrub_every_days, 30);
        assert!(matches!(parse_text("--help"), Ok(Command::Help)));
        for (text, part) in [
            ("--colour", "--colour"),
            ("--listen nowhere", "nowhere"),
            ("--log", "needs a value"),
            ("--scrub-every weekly", "0 for never"),
        ] {
            assert!(parse_text(text).unwrap_err().contains(part), "{text}");
        }
    }
}
