//! SR type `tanada`: volumes in one file or block device, served by a blockd of its own.
//!
//! `device_config:location` names the store. Each SR has a run directory with the sockets of its blockd. The keeper holds
//! those sockets and restarts blockd; it outlives the control plane, so opening an SR whose keeper runs is a connection
//! and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tanada_blockd_api as api;
use tanada_blockd_api::{Answer, Command, GROUP_MAX, VolumeKind, VolumeState};
use tanada_units::{BLOCK_BYTES, GIB, MIB, blocks_covering};
use tokio::process::Command as Process;
use tokio::sync::broadcast;
use uuid::Uuid;

use crate::bridge::Bridges;
use crate::control::{ControlClient, ControlError, Revive};
use crate::keeper::{START_DEADLINE, control_socket, ensure_keeper, nbd_socket, output, run, stop_keeper};
use crate::metadata;
use crate::registry::{Backend, ConfigKey, DriverType, Found, SrConfig};
use crate::{
    AttachRequest, Capabilities, CloneRequest, CreateRequest, CutPair, CutReport, Driver, DriverError, DriverErrorKind,
    DriverResult, Endpoint, Extent, METADATA_BYTES_MAX, Moved, ScanEntry, SpaceFacts, VolumeFacts,
};

/// Size of a new store file when SR.create names none.
const SIZE_DEFAULT: u64 = 64 * GIB;
/// Smallest store that is worth formatting.
const SIZE_MIN: u64 = 64 * MIB;
/// Extents asked for at a time.
const EXTENTS_PER_CALL: u32 = 4096;
/// A walk over a large volume may take its time.
const WALK_DEADLINE: Duration = Duration::from_secs(600);
const FORMAT_DEADLINE: Duration = Duration::from_secs(120);

pub static FACTS: DriverType = DriverType {
    name: "tanada",
    name_label: "Tanada store",
    description: "Thin volumes with constant-time snapshots and clones in a file or block device of this host",
    vendor: "Tanada",
    copyright: "The Tanada contributors",
    version: env!("CARGO_PKG_VERSION"),
    required_api_version: "1.0",
    shared: false,
    features: &[
        ("SR_CREATE", 1),
        ("SR_DELETE", 1),
        ("SR_ATTACH", 1),
        ("SR_DETACH", 1),
        ("SR_SCAN", 1),
        ("SR_PROBE", 1),
        ("SR_UPDATE", 1),
        ("VDI_CREATE", 1),
        ("VDI_DELETE", 1),
        ("VDI_ATTACH", 1),
        ("VDI_DETACH", 1),
        ("VDI_RESIZE", 1),
        ("VDI_CLONE", 1),
        ("VDI_SNAPSHOT", 1),
        ("VDI_UPDATE", 1),
        ("VDI_INTRODUCE", 1),
        ("VDI_REVERT", 1),
        ("VDI_CONFIG_CBT", 1),
        ("LARGE_VDI", 1),
        ("THIN_PROVISIONING", 1),
    ],
    configuration: &[
        ConfigKey::required("location", "path of the file or block device that holds the store", 94),
        ConfigKey::optional("size", "bytes, for a file that does not exist yet (KiB, MiB, GiB, TiB are understood)"),
    ],
    options: &[],
};

/// The volume that keeps the SR's metadata, the same in every store.
const METADATA: Uuid = Uuid::from_u128(0x7461_6e61_6461_4d45_8441_4441_5441_0001);
const METADATA_VOLUME_BYTES: u64 = 64 * MIB;
const _: () = assert!(metadata::volume_bytes(METADATA_BYTES_MAX) <= METADATA_VOLUME_BYTES);

fn metadata_attachment(writable: bool) -> AttachRequest {
    let token = format!("metadata-{}", Uuid::new_v4().simple());
    AttachRequest { token, target: METADATA, writable, initiator: String::new() }
}

/// Where the embedded store's programs and sockets are.
#[derive(Debug, Clone)]
pub struct EmbeddedPlaces {
    /// The program that has the `store` and `blockd-keeper` commands.
    pub program: PathBuf,
    /// One directory per SR is made in it, with the sockets.
    pub run_dir: PathBuf,
    /// One directory per SR is made in it, with what outlives a boot: how far the last scrub came.
    pub state_dir: PathBuf,
    /// A scrub begins by itself so many days after the last; 0 for never.
    pub scrub_every_days: u32,
}

impl EmbeddedPlaces {
    pub(crate) fn of(&self, sr: Uuid) -> PathBuf {
        self.run_dir.join(sr.to_string())
    }

    pub(crate) fn state_of(&self, sr: Uuid) -> PathBuf {
        self.state_dir.join(sr.to_string())
    }
}

pub struct EmbeddedBackend {
    places: EmbeddedPlaces,
}

impl EmbeddedBackend {
    pub fn new(places: EmbeddedPlaces) -> EmbeddedBackend {
        EmbeddedBackend { places }
    }
}

#[async_trait]
impl Backend for EmbeddedBackend {
    fn facts(&self) -> &'static DriverType {
        &FACTS
    }

    async fn create(&self, config: &SrConfig) -> DriverResult<()> {
        let location = location(&config.device_config)?;
        let new_file = match fs::metadata(&location) {
            Ok(found) if found.file_type().is_block_device() => false,
            Ok(found) if found.is_file() => {
                if found.len() > 0 {
                    return Err(refused_existing(&location, self.places.program.as_path()).await);
                }
                true
            }
            Ok(_) => return Err(invalid(format!("{} is neither a file nor a block device", location.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(io_error(&location, &error)),
        };
        let mut format = Process::new(&self.places.program);
        format.args(["store", "format"]).arg(&location).arg("--uuid").arg(config.sr.to_string());
        if new_file {
            let size = match config.device_config.get("size") {
                Some(text) => parse_size(text)?,
                None => config.physical_size.unwrap_or(SIZE_DEFAULT),
            };
            if size < SIZE_MIN {
                return Err(invalid(format!("a store of {size} bytes is too small; at least {SIZE_MIN} are needed")));
            }
            format.arg("--size").arg(size.to_string());
        }
        let done = run(format, FORMAT_DEADLINE, "store format").await;
        if done.is_err() && new_file {
            drop(fs::remove_file(&location));
        }
        done
    }

    async fn open(&self, config: &SrConfig) -> DriverResult<Arc<dyn Driver>> {
        let location = location(&config.device_config)?;
        if !location.exists() {
            return Err(error(DriverErrorKind::NotFound, format!("{} does not exist", location.display())));
        }
        let dir = self.places.of(config.sr);
        ensure_keeper(&self.places, config.sr, &location).await?;
        let revive: Revive = {
            let (places, sr, location) = (self.places.clone(), config.sr, location.clone());
            Arc::new(move || {
                let (places, location) = (places.clone(), location.clone());
                Box::pin(async move { ensure_keeper(&places, sr, &location).await.map_err(|error| error.message) })
            })
        };
        let control = ControlClient::start(control_socket(&dir), Some(revive));
        let greeting = control.greeted(START_DEADLINE).await.map_err(from_control)?;
        if greeting.store != config.sr {
            let words = format!("{} holds the store {}, not {}", location.display(), greeting.store, config.sr);
            return Err(error(DriverErrorKind::NotFound, words));
        }
        Ok(Arc::new(EmbeddedDriver::over(control, nbd_socket(&dir))))
    }

    async fn close(&self, config: &SrConfig) -> DriverResult<()> {
        stop_keeper(&self.places.of(config.sr)).await
    }

    async fn erase(&self, config: &SrConfig) -> DriverResult<()> {
        let location = location(&config.device_config)?;
        let dir = self.places.of(config.sr);
        stop_keeper(&dir).await?;
        drop(fs::remove_dir_all(&dir));
        drop(fs::remove_dir_all(self.places.state_of(config.sr)));
        let found = match fs::metadata(&location) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io_error(&location, &error)),
            Ok(found) => found,
        };
        if found.is_file() {
            return fs::remove_file(&location).map_err(|error| io_error(&location, &error));
        }
        wipe_head(&location).map_err(|error| io_error(&location, &error))
    }

    async fn probe(&self, device_config: &BTreeMap<String, String>) -> DriverResult<Vec<Found>> {
        let location = location(device_config)?;
        if !location.exists() {
            return Ok(Vec::new());
        }
        let mut id = Process::new(&self.places.program);
        id.args(["store", "id"]).arg(&location);
        let Ok(text) = output(id, FORMAT_DEADLINE, "store id").await else { return Ok(Vec::new()) };
        Ok(parse_id(&text).into_iter().collect())
    }
}

/// What `tanada store id` prints.
fn parse_id(text: &str) -> Option<Found> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let sr = Uuid::parse_str(value.get("store")?.as_str()?).ok()?;
    let size = value.get("physical")?.as_u64()?;
    Some(Found { sr, size, ..Found::default() })
}

async fn refused_existing(location: &Path, program: &Path) -> DriverError {
    let mut id = Process::new(program);
    id.args(["store", "id"]).arg(location);
    let what = match output(id, FORMAT_DEADLINE, "store id").await.ok().as_deref().and_then(parse_id) {
        Some(found) => format!("holds the store {}; introduce it, or remove the file", found.sr),
        None => String::from("exists and is not empty; name a new file, an empty one, or a block device"),
    };
    error(DriverErrorKind::Exists, format!("{} {what}", location.display()))
}

/// One open store.
pub struct EmbeddedDriver {
    control: ControlClient,
    nbd: PathBuf,
    bridges: Bridges,
}

impl EmbeddedDriver {
    /// A driver over sockets that are served already.
    pub fn over(control: ControlClient, nbd: PathBuf) -> EmbeddedDriver {
        // What it bridges is NBD already: nothing is ever made there.
        let bridges = Bridges::new(nbd.with_file_name("bridges"));
        EmbeddedDriver { control, nbd, bridges }
    }

    async fn changed(&self, command: Command) -> DriverResult<Moved> {
        match self.control.call(command).await.map_err(from_control)? {
            Answer::Changed { changed } => Ok(Moved { changed, ..Moved::default() }),
            other => Err(self.mismatch("a change", &other)),
        }
    }

    fn mismatch(&self, command: &'static str, answer: &Answer) -> DriverError {
        let socket = self.control.socket().to_path_buf();
        from_control(ControlError::Mismatch { socket, command, answer: format!("{answer:?}") })
    }
}

#[async_trait]
impl Driver for EmbeddedDriver {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            thin: true,
            offloaded: true,
            group_snapshot: true,
            constant_time: true,
            revert_in_place: true,
            exact_difference: true,
            // NBD has no message that tells a connected client of a new size.
            resize_online: false,
            shared: false,
            clone_is_copy: false,
        }
    }

    async fn create(&self, request: &CreateRequest) -> DriverResult<(u64, Moved)> {
        let real = rounded(request.size)?;
        Ok((real, self.changed(Command::CreateVolume { volume: request.volume, size: real }).await?))
    }

    async fn resize(&self, volume: Uuid, size: u64) -> DriverResult<(u64, Moved)> {
        let real = rounded(size)?;
        Ok((real, self.changed(Command::Resize { volume, size: real }).await?))
    }

    async fn destroy(&self, target: Uuid) -> DriverResult<Moved> {
        self.changed(Command::Destroy { target }).await
    }

    async fn snapshot(&self, group: &[CutPair]) -> DriverResult<CutReport> {
        if group.is_empty() {
            return Ok(CutReport::default());
        }
        if group.len() > GROUP_MAX {
            return Err(invalid(format!(
                "{} disks in one snapshot; at most {GROUP_MAX} are cut together",
                group.len()
            )));
        }
        let group =
            group.iter().map(|pair| api::CutPair { volume: pair.volume, generation: pair.generation }).collect();
        match self.control.call(Command::Snapshot { group }).await.map_err(from_control)? {
            Answer::Cut(report) => Ok(CutReport {
                moved: Moved { changed: report.changed, ..Moved::default() },
                total_us: report.total_us,
                slowest_write_us: report.slowest_write_us,
                writes_observed: report.writes_observed,
            }),
            other => Err(self.mismatch("a snapshot", &other)),
        }
    }

    async fn clone_volume(&self, request: &CloneRequest) -> DriverResult<Moved> {
        self.changed(Command::Clone { source: request.source, volume: request.volume }).await
    }

    async fn revert(&self, volume: Uuid, generation: Uuid) -> DriverResult<Moved> {
        self.changed(Command::Revert { volume, generation }).await
    }

    async fn difference(&self, from: Uuid, to: Uuid) -> DriverResult<Vec<Extent>> {
        let mut all = Vec::new();
        let mut offset = 0;
        loop {
            let command = Command::Difference { from, to, offset, extents_max: EXTENTS_PER_CALL };
            let answer = self.control.call_within(command, WALK_DEADLINE).await.map_err(from_control)?;
            let Answer::Extents { extents, next_offset } = answer else {
                return Err(self.mismatch("a difference", &answer));
            };
            all.extend(extents.iter().map(|extent| Extent {
                offset: extent.offset,
                length: extent.length,
                data: extent.kind == api::ExtentKind::Data,
            }));
            match next_offset {
                None => return Ok(all),
                Some(next) if next > offset => offset = next,
                Some(next) => {
                    return Err(error(
                        DriverErrorKind::Io,
                        format!("the difference does not go on after offset {next}"),
                    ));
                }
            }
        }
    }

    async fn attach(&self, request: &AttachRequest) -> DriverResult<Endpoint> {
        let command =
            Command::Attach { token: request.token.clone(), target: request.target, writable: request.writable };
        self.changed(command).await?;
        Ok(Endpoint::NbdUnix { socket: self.nbd.clone(), export: request.token.clone() })
    }

    async fn detach(&self, token: &str) -> DriverResult<Moved> {
        self.changed(Command::Detach { token: token.to_owned() }).await
    }

    async fn attachments(&self) -> DriverResult<Vec<String>> {
        match self.control.call(Command::Attachments).await.map_err(from_control)? {
            Answer::Attachments { attachments } => Ok(attachments.into_iter().map(|one| one.token).collect()),
            other => Err(self.mismatch("attachments", &other)),
        }
    }

    async fn stat(&self, target: Uuid) -> DriverResult<VolumeFacts> {
        let answer = self.control.call_within(Command::Usage { target }, WALK_DEADLINE).await.map_err(from_control)?;
        let Answer::Usage { info, usage } = answer else { return Err(self.mismatch("usage", &answer)) };
        Ok(VolumeFacts {
            id: info.id,
            is_generation: info.kind == VolumeKind::Generation,
            parent: info.parent,
            size: usage.size,
            mapped: usage.mapped,
            exclusive: usage.exclusive,
            shared: usage.shared,
            name_label: None,
        })
    }

    async fn space(&self) -> DriverResult<SpaceFacts> {
        match self.control.call(Command::StoreStat).await.map_err(from_control)? {
            Answer::Store(stat) => Ok(SpaceFacts {
                physical: stat.physical,
                used: stat.used,
                free: stat.free,
                virtual_size: stat.virtual_size,
                reserved: stat.reserved,
                unreleased: stat.unreleased,
                ghost_held: stat.ghost_held,
            }),
            other => Err(self.mismatch("store figures", &other)),
        }
    }

    async fn scan(&self) -> DriverResult<Vec<ScanEntry>> {
        let answer = self.control.call(Command::List).await.map_err(from_control)?;
        let Answer::List { volumes } = answer else { return Err(self.mismatch("a list", &answer)) };
        let live = volumes.into_iter().filter(|volume| volume.state == VolumeState::Live && volume.id != METADATA);
        Ok(live
            .map(|volume| ScanEntry {
                id: volume.id,
                is_generation: volume.kind == VolumeKind::Generation,
                parent: volume.parent,
                size: volume.size,
                name_label: None,
            })
            .collect())
    }

    async fn settle(&self) -> DriverResult<()> {
        self.control.call_within(Command::Settle, WALK_DEADLINE).await.map_err(from_control).map(drop)
    }

    async fn put_metadata(&self, text: &[u8]) -> DriverResult<()> {
        match self.create(&CreateRequest::new(METADATA, METADATA_VOLUME_BYTES)).await {
            Err(failure) if failure.kind != DriverErrorKind::Exists => return Err(failure),
            _ => {}
        }
        let request = metadata_attachment(true);
        let endpoint = self.attach(&request).await?;
        let written = metadata::put(&self.bridges, &endpoint, text).await;
        self.detach(&request.token).await?;
        written
    }

    async fn metadata(&self) -> DriverResult<Option<Vec<u8>>> {
        let request = metadata_attachment(false);
        let endpoint = match self.attach(&request).await {
            Err(failure) if failure.kind == DriverErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let read = metadata::get(&self.bridges, &endpoint).await;
        self.detach(&request.token).await?;
        read
    }

    fn alerts(&self) -> broadcast::Receiver<api::Event> {
        self.control.events()
    }
}

/// Makes a block device unrecognisable as a store: the superblocks lie in its first mebibytes.
fn wipe_head(device: &Path) -> io::Result<()> {
    use std::io::Write;
    let mut file = fs::OpenOptions::new().write(true).open(device)?;
    let zeros = vec![0; MIB as usize];
    for _ in 0..4 {
        file.write_all(&zeros)?;
    }
    file.sync_all()
}

fn location(config: &BTreeMap<String, String>) -> DriverResult<PathBuf> {
    let text = config.get("location").map(String::as_str).unwrap_or_default();
    if !text.starts_with('/') {
        return Err(invalid(format!("device-config:location is {text:?}; an absolute path is needed")));
    }
    Ok(PathBuf::from(text))
}

/// `512`, `64GiB`, `10 GiB`: bytes.
fn parse_size(text: &str) -> DriverResult<u64> {
    let wrong = || invalid(format!("size {text:?} is not a number of bytes such as 68719476736 or 64GiB"));
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let number: u64 = trimmed[..digits].parse().map_err(|_| wrong())?;
    let factor = match trimmed[digits..].trim() {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => MIB,
        "GiB" => GIB,
        "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).ok_or_else(wrong)
}

fn rounded(size: u64) -> DriverResult<u64> {
    if size == 0 || size > i64::MAX as u64 {
        return Err(invalid(format!("a volume of {size} bytes cannot be made; 1 to {} are possible", i64::MAX)));
    }
    Ok(blocks_covering(size) * BLOCK_BYTES)
}

pub(crate) fn from_control(failure: ControlError) -> DriverError {
    let kind = match &failure {
        ControlError::Refused(refused) => match refused.errno {
            2 => DriverErrorKind::NotFound,
            16 => DriverErrorKind::Busy,
            17 => DriverErrorKind::Exists,
            22 => DriverErrorKind::InvalidArgument,
            28 => DriverErrorKind::NoSpace,
            38 | 95 => DriverErrorKind::Unsupported,
            _ => DriverErrorKind::Io,
        },
        ControlError::Deadline { .. } => DriverErrorKind::Unreachable,
        ControlError::Mismatch { .. } => DriverErrorKind::Io,
    };
    error(kind, failure.to_string())
}

pub(crate) fn error(kind: DriverErrorKind, message: String) -> DriverError {
    DriverError::new(kind, message)
}

fn invalid(message: String) -> DriverError {
    error(DriverErrorKind::InvalidArgument, message)
}

pub(crate) fn io_error(path: &Path, failure: &io::Error) -> DriverError {
    let kind = if failure.kind() == io::ErrorKind::NotFound { DriverErrorKind::NotFound } else { DriverErrorKind::Io };
    error(kind, format!("{}: {failure}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{parse_id, parse_size, rounded};

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(parse_size("4096").unwrap(), 4096);
        assert_eq!(parse_size(" 2 GiB ").unwrap(), 2 << 30);
        for wrong in ["", "GiB", "1GB", "-1", "1.5GiB", "99999999999999TiB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn volumes_are_whole_blocks() {
        assert_eq!(rounded(1).unwrap(), 4096);
        assert_eq!(rounded(4096).unwrap(), 4096);
        assert!(rounded(0).is_err());
        assert!(rounded(u64::MAX).is_err());
    }

    #[test]
    fn an_answer_that_is_no_store_is_nothing() {
        assert_eq!(parse_id("{}"), None);
        assert_eq!(parse_id("no"), None);
        let found = parse_id(r#"{"store":"0f5e9f1e-4b8e-4a55-9d2f-111111111111","physical":7}"#).unwrap();
        assert_eq!(found.size, 7);
    }
}
