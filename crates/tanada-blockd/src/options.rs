//! What the programs take on their command lines.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use tanada_units::{GIB, KIB, MIB, TIB};
use uuid::Uuid;

/// Memory for the engine unless told otherwise, in bytes.
pub(crate) const MEMORY_BYTES_DEFAULT: u64 = 256 * MIB;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlockdOptions {
    pub(crate) store: PathBuf,
    pub(crate) runtime_dir: PathBuf,
    pub(crate) memory_bytes: u64,
    /// Descriptor that is told "ready" or "error: ..." once.
    pub(crate) ready_fd: Option<i32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeeperOptions {
    pub(crate) store: PathBuf,
    pub(crate) runtime_dir: PathBuf,
    pub(crate) memory_bytes: u64,
    /// Who else may connect to the NBD socket.
    pub(crate) socket_uid: Option<u32>,
    pub(crate) socket_gid: Option<u32>,
    pub(crate) daemonize: bool,
    pub(crate) ready_fd: Option<i32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FormatOptions {
    pub(crate) path: PathBuf,
    /// The store's own id; a random one unless told otherwise.
    pub(crate) store: Option<Uuid>,
    /// `None` where the device or file says it.
    pub(crate) size_bytes: Option<u64>,
    pub(crate) journal_bytes: Option<u64>,
    pub(crate) force: bool,
}

pub(crate) fn blockd(args: Vec<OsString>) -> anyhow::Result<BlockdOptions> {
    let mut words = Words::new(args);
    let (mut store, mut runtime_dir, mut memory_bytes, mut ready_fd) = (None, None, MEMORY_BYTES_DEFAULT, None);
    while let Some(word) = words.next()? {
        match word.as_str() {
            "--store" => store = Some(words.path("--store")?),
            "--runtime-dir" => runtime_dir = Some(words.path("--runtime-dir")?),
            "--memory" => memory_bytes = words.size("--memory")?,
            "--ready-fd" => ready_fd = Some(words.number("--ready-fd")?),
            other => bail!("unknown argument '{other}'; blockd takes --store, --runtime-dir and --memory"),
        }
    }
    Ok(BlockdOptions {
        store: store.context("--store PATH is missing")?,
        runtime_dir: runtime_dir.context("--runtime-dir DIR is missing")?,
        memory_bytes,
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
            "--socket-uid" => options.socket_uid = Some(words.number("--socket-uid")?),
            "--socket-group" | "--socket-gid" => options.socket_gid = Some(words.number("--socket-gid")?),
            "--daemonize" => options.daemonize = true,
            "--ready-fd" => options.ready_fd = Some(words.number("--ready-fd")?),
            other => bail!(
                "unknown argument '{other}'; blockd-keeper takes --store, --runtime-dir, --memory, --socket-uid, \
                 --socket-gid and --daemonize"
            ),
        }
    }
    options.store = store.context("--store PATH is missing")?;
    options.runtime_dir = runtime_dir.context("--runtime-dir DIR is missing")?;
    Ok(options)
}

pub(crate) fn format(args: Vec<OsString>) -> anyhow::Result<FormatOptions> {
    let mut words = Words::new(args);
    let mut path = None;
    let mut options =
        FormatOptions { path: PathBuf::new(), store: None, size_bytes: None, journal_bytes: None, force: false };
    while let Some(word) = words.next()? {
        match word.as_str() {
            "--size" => options.size_bytes = Some(words.size("--size")?),
            "--journal" => options.journal_bytes = Some(words.size("--journal")?),
            "--uuid" => options.store = Some(words.text("--uuid")?.parse().context("--uuid takes a uuid")?),
            "--force" => options.force = true,
            other if other.starts_with("--") => {
                bail!("unknown argument '{other}'; store format takes PATH, --uuid, --size, --journal and --force")
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

    fn number<T: std::str::FromStr>(&mut self, name: &str) -> anyhow::Result<T> {
        let text = self.text(name)?;
        text.parse().map_err(|_| anyhow!("'{text}' for {name} is no number in range"))
    }
}

#[cfg(test)]
mod tests {
    use super::{blockd, format, keeper, parse_size};
    use std::ffi::OsString;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn arguments_are_read() {
        let options = blockd(words("--store /s --runtime-dir=/r --memory 64M")).unwrap();
        assert_eq!((options.store.to_str(), options.memory_bytes), (Some("/s"), 64 << 20));
        let options = keeper(words("--store /s --runtime-dir /r --daemonize --socket-gid 7")).unwrap();
        assert!(options.daemonize && options.socket_gid == Some(7));
        assert!(format(words("/s --uuid 7")).is_err());
        let options = format(words("/s --size 10G --force")).unwrap();
        assert_eq!((options.size_bytes, options.journal_bytes, options.force), (Some(10 << 30), None, true));
    }

    #[test]
    fn mistakes_are_told() {
        assert!(blockd(words("--store /s")).unwrap_err().to_string().contains("--runtime-dir"));
        assert!(blockd(words("--stor /s")).unwrap_err().to_string().contains("--stor"));
        assert!(keeper(words("--store /s --runtime-dir /r --daemonize=yes")).is_err());
        assert!(format(words("/s /t")).unwrap_err().to_string().contains("/t"));
        assert!(parse_size("12X").is_err() && parse_size("99999999999T").is_err() && parse_size("").is_err());
    }
}
