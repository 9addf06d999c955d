//! What the programs take on their command lines.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tanada_units::{GIB, KIB, MIB, TIB};
use uuid::Uuid;

use crate::shell::scrub::Schedule;

/// Memory for the engine unless told otherwise, in bytes.
pub(crate) const MEMORY_BYTES_DEFAULT: u64 = 256 * MIB;

/// A scrub reads so many bytes per second unless told otherwise: a terabyte in six hours, and little beside any guest.
pub(crate) const SCRUB_RATE_DEFAULT: u64 = 50 * MIB;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlockdOptions {
    pub(crate) store: PathBuf,
    pub(crate) runtime_dir: PathBuf,
    pub(crate) memory_bytes: u64,
    /// Where what outlives a boot is kept; the runtime directory where there is none.
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) schedule: Schedule,
    /// Scattered data is brought together at this rate; 0 is never, `None` the engine's own default.
    pub(crate) relayout_bytes_per_second: Option<u64>,
    /// Completions are looked for so long before blockd sleeps.
    pub(crate) spin: Duration,
    /// Descriptor that is told "ready" or "error: ..." once.
    pub(crate) ready_fd: Option<i32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeeperOptions {
    pub(crate) store: PathBuf,
    pub(crate) runtime_dir: PathBuf,
    pub(crate) memory_bytes: u64,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) schedule: Schedule,
    /// Passed on to blockd.
    pub(crate) relayout_bytes_per_second: Option<u64>,
    /// Completions are looked for so long before blockd sleeps.
    pub(crate) spin: Duration,
    /// Who else may connect to the NBD socket.
    pub(crate) socket_uid: Option<u32>,
    pub(crate) socket_gid: Option<u32>,
    pub(crate) daemonize: bool,
    pub(crate) ready_fd: Option<i32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScrubOptions {
    pub(crate) runtime_dir: PathBuf,
    pub(crate) verb: ScrubVerb,
    /// Until nothing runs any more.
    pub(crate) wait: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScrubVerb {
    /// `rate` in bytes per second.
    Start {
        rate: u64,
        anew: bool,
    },
    Stop,
    Status,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GrowOptions {
    pub(crate) runtime_dir: PathBuf,
    pub(crate) size_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FormatOptions {
    pub(crate) path: PathBuf,
    /// The store's own id; a random one unless told otherwise.
    pub(crate) store: Option<Uuid>,
    /// `None` where the device or file says it.
    pub(crate) size_bytes: Option<u64>,
    pub(crate) journal_bytes: Option<u64>,
    /// Writes over all of the space, and keeps it.
    pub(crate) preallocate: bool,
    pub(crate) force: bool,
}

pub(crate) fn blockd(args: Vec<OsString>) -> anyhow::Result<BlockdOptions> {
    let mut words = Words::new(args);
    let (mut store, mut runtime_dir, mut memory_bytes, mut ready_fd) = (None, None, MEMORY_BYTES_DEFAULT, None);
    let (mut state_dir, mut schedule) = (None, NO_SCHEDULE);
    let (mut relayout_bytes_per_second, mut spin) = (None, Duration::ZERO);
    while let Some(word) = words.next()? {
        match word.as_str() {
            "--store" => store = Some(words.path("--store")?),
            "--runtime-dir" => runtime_dir = Some(words.path("--runtime-dir")?),
            "--memory" => memory_bytes = words.size("--memory")?,
            "--relayout" => relayout_bytes_per_second = Some(words.size("--relayout")?),
            "--spin" => spin = words.spin("--spin")?,
            "--ready-fd" => ready_fd = Some(words.number("--ready-fd")?),
            "--state-dir" => state_dir = Some(words.path("--state-dir")?),
            "--scrub-every" => schedule.every = Some(words.days("--scrub-every")?),
            "--scrub-rate" => schedule.rate = words.size("--scrub-rate")?,
            other => bail!(
                "unknown argument '{other}'; blockd takes --store, --runtime-dir, --memory, --relayout, --spin, \
                 --state-dir, \
                 --scrub-every and --scrub-rate"
            ),
        }
    }
    Ok(BlockdOptions {
        store: store.context("--store PATH is missing")?,
        runtime_dir: runtime_dir.context("--runtime-dir DIR is missing")?,
        memory_bytes,
        state_dir,
        schedule,
        relayout_bytes_per_second,
        spin,
        ready_fd,
    })
}

pub(crate) fn keeper(args: Vec<OsString>) -> anyhow::Result<KeeperOptions> {
    let mut words = Words::new(args);
    let (mut store, mut runtime_dir) = (None, None);
    let mut options = KeeperOptions {
        store: PathBuf::new(),
        runtime_dir: PathBuf::new(),
        memory_bytes: MEMORY_BYTES_DEFAULT,
        state_dir: None,
        schedule: NO_SCHEDULE,
        relayout_bytes_per_second: None,
        spin: Duration::ZERO,
        socket_uid: None,
        socket_gid: None,
        daemonize: false,
        ready_fd: None,
    };
    while let Some(word) = words.next()? {
        match word.as_str() {
            "--store" => store = Some(words.path("--store")?),
            "--runtime-dir" => runtime_dir = Some(words.path("--runtime-dir")?),
            "--memory" => options.memory_bytes = words.size("--memory")?,
            "--state-dir" => options.state_dir = Some(words.path("--state-dir")?),
            "--scrub-every" => options.schedule.every = Some(words.days("--scrub-every")?),
            "--scrub-rate" => options.schedule.rate = words.size("--scrub-rate")?,
            "--relayout" => options.relayout_bytes_per_second = Some(words.size("--relayout")?),
            "--spin" => options.spin = words.spin("--spin")?,
            "--socket-uid" => options.socket_uid = Some(words.number("--socket-uid")?),
            "--socket-group" | "--socket-gid" => options.socket_gid = Some(words.number("--socket-gid")?),
            "--daemonize" => options.daemonize = true,
            "--ready-fd" => options.ready_fd = Some(words.number("--ready-fd")?),
            other => bail!(
                "unknown argument '{other}'; blockd-keeper takes --store, --runtime-dir, --memory, --relayout, --spin, \
                 --state-dir, \
                 --scrub-every, --scrub-rate, --socket-uid, --socket-gid and --daemonize"
            ),
        }
    }
    options.store = store.context("--store PATH is missing")?;
    options.runtime_dir = runtime_dir.context("--runtime-dir DIR is missing")?;
    Ok(options)
}

/// No scrub begins by itself.
const NO_SCHEDULE: Schedule = Schedule { every: None, rate: SCRUB_RATE_DEFAULT };

pub(crate) fn scrub(args: Vec<OsString>) -> anyhow::Result<ScrubOptions> {
    let mut words = Words::new(args);
    let (mut runtime_dir, mut rate, mut anew, mut wait, mut verb) = (None, None, false, false, None);
    while let Some(word) = words.next()? {
        match word.as_str() {
            "--runtime-dir" => runtime_dir = Some(words.path("--runtime-dir")?),
            "--rate" => rate = Some(words.size("--rate")?),
            "--anew" => anew = true,
            "--wait" => wait = true,
            "--status" if verb.is_none() => verb = Some(ScrubVerb::Status),
            "--stop" if verb.is_none() => verb = Some(ScrubVerb::Stop),
            other => bail!(
                "unknown argument '{other}'; store scrub takes --runtime-dir, --rate, --anew and --wait, or --status, \
                 or --stop"
            ),
        }
    }
    if verb.is_some() && (rate.is_some() || anew) {
        bail!("--rate and --anew belong to a start; leave them out with --status and --stop");
    }
    let start = ScrubVerb::Start { rate: rate.unwrap_or(SCRUB_RATE_DEFAULT), anew };
    let runtime_dir = runtime_dir.context("--runtime-dir DIR is missing")?;
    Ok(ScrubOptions { runtime_dir, verb: verb.unwrap_or(start), wait })
}

pub(crate) fn grow(args: Vec<OsString>) -> anyhow::Result<GrowOptions> {
    let mut words = Words::new(args);
    let (mut runtime_dir, mut size_bytes) = (None, None);
    while let Some(word) = words.next()? {
        match word.as_str() {
            "--runtime-dir" => runtime_dir = Some(words.path("--runtime-dir")?),
            "--size" => size_bytes = Some(words.size("--size")?),
            other => bail!("unknown argument '{other}'; store grow takes --runtime-dir and --size"),
        }
    }
    Ok(GrowOptions {
        runtime_dir: runtime_dir.context("--runtime-dir DIR is missing")?,
        size_bytes: size_bytes.context("--size SIZE is missing")?,
    })
}

pub(crate) fn format(args: Vec<OsString>) -> anyhow::Result<FormatOptions> {
    let mut words = Words::new(args);
    let mut path = None;
    let mut options = FormatOptions {
        path: PathBuf::new(),
        store: None,
        size_bytes: None,
        journal_bytes: None,
        preallocate: false,
        force: false,
    };
    while let Some(word) = words.next()? {
        match word.as_str() {
            "--size" => options.size_bytes = Some(words.size("--size")?),
            "--journal" => options.journal_bytes = Some(words.size("--journal")?),
            "--uuid" => options.store = Some(words.text("--uuid")?.parse().context("--uuid takes a uuid")?),
            "--preallocate" => options.preallocate = true,
            "--force" => options.force = true,
            other if other.starts_with("--") => {
                bail!(
                    "unknown argument '{other}'; store format takes PATH, --uuid, --size, --journal, --preallocate \
                     and --force"
                )
            }
            other if path.is_none() => path = Some(PathBuf::from(other)),
            other => bail!("'{other}' is a second path; store format takes one"),
        }
    }
    options.path = path.context("the PATH of the store is missing")?;
    Ok(options)
}

/// Bytes from a number with an optional K, M, G or T (powers of 1024).
fn parse_size(text: &str) -> anyhow::Result<u64> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], KIB),
        Some((at, 'M' | 'm')) => (&text[..at], MIB),
        Some((at, 'G' | 'g')) => (&text[..at], GIB),
        Some((at, 'T' | 't')) => (&text[..at], TIB),
        _ => (text, 1),
    };
    let count: u64 =
        digits.parse().ok().with_context(|| format!("'{text}' is no size; say for instance 256M or 10G"))?;
    count.checked_mul(unit).ok_or_else(|| anyhow!("the size '{text}' is too large"))
}

/// The words of a command line; `--name=value` counts as two.
struct Words {
    rest: std::vec::IntoIter<OsString>,
    value: Option<String>,
}

impl Words {
    fn new(args: Vec<OsString>) -> Words {
        Words { rest: args.into_iter(), value: None }
    }

    fn next(&mut self) -> anyhow::Result<Option<String>> {
        if let Some(value) = self.value.take() {
            bail!("'{value}' belongs to an argument that takes no value");
        }
        let Some(word) = self.rest.next() else { return Ok(None) };
        let word = word.into_string().map_err(|word| anyhow!("the argument {word:?} is not UTF-8"))?;
        match word.split_once('=') {
            Some((name, value)) if name.starts_with("--") => {
                self.value = Some(value.to_owned());
                Ok(Some(name.to_owned()))
            }
            _ => Ok(Some(word)),
        }
    }

    fn text(&mut self, name: &str) -> anyhow::Result<String> {
        if let Some(value) = self.value.take() {
            return Ok(value);
        }
        let word = self.rest.next().with_context(|| format!("{name} needs a value"))?;
        word.into_string().map_err(|word| anyhow!("the value {word:?} of {name} is not UTF-8"))
    }

    fn path(&mut self, name: &str) -> anyhow::Result<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    fn size(&mut self, name: &str) -> anyhow::Result<u64> {
        let text = self.text(name)?;
        parse_size(&text).with_context(|| format!("value of {name}"))
    }

    fn days(&mut self, name: &str) -> anyhow::Result<Duration> {
        let days: u32 = self.number(name)?;
        if days == 0 {
            bail!("{name} takes a number of days, 1 or more");
        }
        Ok(Duration::from_secs(u64::from(days) * 86_400))
    }

    /// Microseconds, up to a thousand: who looks longer than a disk takes only burns the processor.
    fn spin(&mut self, name: &str) -> anyhow::Result<Duration> {
        match self.number(name)? {
            micros @ 0..=1000 => Ok(Duration::from_micros(micros)),
            other => bail!("{name} takes microseconds, 0 to 1000, not {other}"),
        }
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str) -> anyhow::Result<T> {
        let text = self.text(name)?;
        text.parse().map_err(|_| anyhow!("'{text}' for {name} is no number in range"))
    }
}

#[cfg(test)]
mod tests {
    use super::{ScrubVerb, blockd, format, grow, keeper, parse_size, scrub};
    use std::ffi::OsString;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn arguments_are_read() {
        let options = blockd(words("--store /s --runtime-dir=/r --memory 64M --relayout 0 --spin 50")).unwrap();
        assert_eq!((options.store.to_str(), options.memory_bytes), (Some("/s"), 64 << 20));
        assert_eq!((options.relayout_bytes_per_second, options.spin.as_micros()), (Some(0), 50));
        assert!(blockd(words("--store /s --runtime-dir /r --spin 5000")).unwrap_err().to_string().contains("1000"));
        let options = keeper(words("--store /s --runtime-dir /r --daemonize --socket-gid 7")).unwrap();
        assert!(options.daemonize && options.socket_gid == Some(7));
        assert!(format(words("/s --uuid 7")).is_err());
        assert_eq!(options.schedule.every, None);
        let options = blockd(words("--store /s --runtime-dir /r --scrub-every 30 --scrub-rate 1M")).unwrap();
        assert_eq!((options.schedule.every.unwrap().as_secs(), options.schedule.rate), (30 * 86_400, 1 << 20));
        let options = scrub(words("--runtime-dir /r --rate 8M --wait")).unwrap();
        assert_eq!((options.verb, options.wait), (ScrubVerb::Start { rate: 8 << 20, anew: false }, true));
        assert_eq!(grow(words("--runtime-dir /r --size 2G")).unwrap().size_bytes, 2 << 30);
        assert!(format(words("/s --preallocate")).unwrap().preallocate);
        let options = format(words("/s --size 10G --force")).unwrap();
        assert_eq!((options.size_bytes, options.journal_bytes, options.force), (Some(10 << 30), None, true));
    }

    #[test]
    fn mistakes_are_told() {
        assert!(blockd(words("--store /s")).unwrap_err().to_string().contains("--runtime-dir"));
        assert!(blockd(words("--stor /s")).unwrap_err().to_string().contains("--stor"));
        assert!(keeper(words("--store /s --runtime-dir /r --daemonize=yes")).is_err());
        assert!(scrub(words("--runtime-dir /r --status --rate 1M")).unwrap_err().to_string().contains("--rate"));
        assert!(
            keeper(words("--store /s --runtime-dir /r --scrub-every 0")).unwrap_err().to_string().contains("1 or more")
        );
        assert!(grow(words("--runtime-dir /r")).unwrap_err().to_string().contains("--size"));
        assert!(format(words("/s /t")).unwrap_err().to_string().contains("/t"));
        assert!(parse_size("12X").is_err() && parse_size("99999999999T").is_err() && parse_size("").is_err());
    }
}
