//! The commands that this driver sends, with their answers as values.
//!
//! Looking is repeated when a session is lost; changing is not: the verbs above look first and repeat themselves.

use std::sync::Arc;

use crate::error::CliError;
use crate::session::Sessions;
use crate::size::{in_parentheses, parse, percent, volume_bytes};
use crate::text::{Page, Table};

/// Attempts to look, each in a session of its own.
const LOOKS_MAX: u32 = 2;

type Result<T> = std::result::Result<T, CliError>;

/// A line of `volume show`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRow {
    pub name: String,
    /// Bytes.
    pub size: u64,
    pub snapshots: u32,
    pub online: bool,
    pub connections: u32,
}

/// The snapshot space of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserve {
    /// Of `volume`.
    pub percent: u64,
    /// Bytes set aside for the volume itself.
    pub volume: u64,
    /// Bytes of the reserve that no snapshot uses yet.
    pub available: u64,
    /// Snapshots go when the reserve is full, else the volume goes offline.
    pub deletes_oldest: bool,
}

impl Reserve {
    /// Bytes that snapshots hold.
    pub fn used(&self) -> u64 {
        (self.volume / 100 * self.percent).saturating_sub(self.available)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePage {
    pub name: String,
    /// Bytes, exact (see [`crate::size`]).
    pub size: u64,
    /// Bytes written.
    pub in_use: u64,
    pub iqn: String,
    pub description: String,
    pub online: bool,
    pub read_only: bool,
    pub connections: u32,
    pub snapshots: u32,
    pub multihost: bool,
    pub template: bool,
    pub reserve: Reserve,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRow {
    pub name: String,
    pub online: bool,
    pub connections: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotPage {
    pub description: String,
    pub iqn: String,
    pub online: bool,
}

/// Who may log in to a volume or its snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRecord {
    pub id: String,
    pub initiator: String,
    pub user: String,
}

/// A pool, in the words of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolRow {
    pub name: String,
    pub is_default: String,
    pub members: String,
    pub volumes: String,
    pub capacity: String,
    pub free: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSpace {
    pub capacity: u64,
    pub free: u64,
}

#[derive(Debug, Clone)]
pub struct Array {
    sessions: Arc<Sessions>,
}

impl Array {
    pub fn new(sessions: Arc<Sessions>) -> Array {
        Array { sessions }
    }

    /// A command that changes something; sent once.
    pub async fn run(&self, command: &str) -> Result<Vec<String>> {
        self.sessions.run(command).await
    }

    /// What `volume select NAME` is told to do; sent once.
    pub async fn on_volume(&self, name: &str, words: &str) -> Result<Vec<String>> {
        self.run(&format!("volume select {name} {words}")).await
    }

    pub async fn on_snapshot(&self, volume: &str, snapshot: &str, words: &str) -> Result<Vec<String>> {
        self.on_volume(volume, &format!("snapshot select {snapshot} {words}")).await
    }

    async fn look<T>(&self, command: &str, read: impl Fn(&[String]) -> Option<T>) -> Result<T> {
        let mut looks = 1;
        loop {
            let failure = match self.sessions.run(command).await {
                Ok(lines) => match read(&lines) {
                    Some(value) => return Ok(value),
                    None => CliError::Unclear(format!("the answer to {command:?} is not understood")),
                },
                Err(failure) => failure,
            };
            let again = matches!(failure, CliError::Lost(_) | CliError::Unclear(_));
            if !again || looks == LOOKS_MAX {
                return Err(failure);
            }
            looks += 1;
        }
    }

    /// [`Array::look`] for what may not be there.
    async fn look_for<T>(&self, command: &str, read: impl Fn(&[String]) -> Option<T>) -> Result<Option<T>> {
        match self.look(command, read).await {
            Err(failure) if failure.is_missing() => Ok(None),
            other => other.map(Some),
        }
    }

    /// All volumes of the group.
    pub async fn volumes(&self) -> Result<Vec<VolumeRow>> {
        self.look("volume show", |lines| {
            let table = Table::parse(lines);
            if table.header.is_empty() {
                // A group without volumes shows no table, or an empty one.
                return lines.iter().all(|line| !line.contains("---")).then(Vec::new);
            }
            let (name, size, snapshots) = (table.column("Name")?, table.column("Size")?, table.column("Snapshots")?);
            let (status, connections) = (table.column("Status")?, table.column("Connections")?);
            let row = |row: &Vec<String>| {
                Some(VolumeRow {
                    name: row[name].clone(),
                    size: volume_bytes(&row[size])?,
                    snapshots: row[snapshots].parse().ok()?,
                    online: row[status].starts_with("online"),
                    connections: row[connections].parse().ok()?,
                })
            };
            table.rows.iter().map(row).collect()
        })
        .await
    }

    pub async fn volume(&self, name: &str) -> Result<Option<VolumePage>> {
        self.look_for(&format!("volume select {name} show"), |lines| volume_page(name, lines)).await
    }

    pub async fn snapshots(&self, volume: &str) -> Result<Vec<SnapshotRow>> {
        let command = format!("volume select {volume} snapshot show");
        let found = self.look_for(&command, |lines| {
            let table = Table::parse(lines);
            if table.header.is_empty() {
                return lines.iter().all(|line| !line.contains("---")).then(Vec::new);
            }
            let (name, status) = (table.column("Name")?, table.column("Status")?);
            let connections = table.column("Connections")?;
            let row = |row: &Vec<String>| {
                let connections = row[connections].parse().ok()?;
                Some(SnapshotRow { name: row[name].clone(), online: row[status].starts_with("online"), connections })
            };
            table.rows.iter().map(row).collect()
        });
        Ok(found.await?.unwrap_or_default())
    }

    pub async fn snapshot(&self, volume: &str, snapshot: &str) -> Result<Option<SnapshotPage>> {
        let command = format!("volume select {volume} snapshot select {snapshot} show");
        self.look_for(&command, |lines| {
            let page = Page::parse(lines);
            (!page.is_empty() && page.get("Name") == snapshot).then(|| SnapshotPage {
                description: page.get("Description").to_string(),
                iqn: page.get("iSCSI Name").to_string(),
                online: page.get("Status").starts_with("online"),
            })
        })
        .await
    }

    pub async fn access(&self, volume: &str) -> Result<Vec<AccessRecord>> {
        let command = format!("volume select {volume} access show");
        let found = self.look_for(&command, |lines| {
            let table = Table::parse(lines);
            if table.header.is_empty() {
                return lines.iter().all(|line| !line.contains("---")).then(Vec::new);
            }
            let (id, initiator, user) = (table.column("ID")?, table.column("Initiator")?, table.column("UserName")?);
            let row = |row: &Vec<String>| {
                let whole = !row[id].is_empty() && row[id].bytes().all(|byte| byte.is_ascii_digit());
                whole.then(|| AccessRecord {
                    id: row[id].clone(),
                    initiator: row[initiator].clone(),
                    user: row[user].clone(),
                })
            };
            table.rows.iter().map(row).collect()
        });
        Ok(found.await?.unwrap_or_default())
    }

    /// Names of all CHAP accounts of the group.
    pub async fn chap_users(&self) -> Result<Vec<String>> {
        self.first_column("chapuser show").await
    }

    /// Names of all volume collections of the group.
    pub async fn collections(&self) -> Result<Vec<String>> {
        self.first_column("volume collection show").await
    }

    async fn first_column(&self, command: &str) -> Result<Vec<String>> {
        self.look(command, |lines| {
            let rows = Table::parse(lines).rows.into_iter();
            rows.map(|row| row.into_iter().next().filter(|name| !name.is_empty())).collect()
        })
        .await
    }

    pub async fn pools(&self) -> Result<Vec<PoolRow>> {
        self.look("show pool", |lines| {
            let table = Table::parse(lines);
            let cell = |row: &Vec<String>, at: usize| row.get(at).cloned().unwrap_or_default();
            let row = |row: &Vec<String>| PoolRow {
                name: cell(row, 0),
                is_default: cell(row, 1),
                members: cell(row, 2),
                volumes: cell(row, 3),
                capacity: cell(row, 4),
                free: cell(row, 5),
            };
            (!table.rows.is_empty()).then(|| table.rows.iter().map(row).collect())
        })
        .await
    }

    /// The pool of a volume.
    pub async fn pool_of(&self, volume: &str) -> Result<String> {
        self.look(&format!("volume select {volume} show"), |lines| {
            let pool = Page::parse(lines).get("Pool").to_string();
            (!pool.is_empty()).then_some(pool)
        })
        .await
    }

    /// `None` where there is no such pool.
    pub async fn pool_space(&self, pool: &str) -> Result<Option<PoolSpace>> {
        self.look_for(&format!("pool select {pool} show"), |lines| {
            let page = Page::parse(lines);
            let bytes = |key| parse(page.get(key)).map(|shown| shown.bytes);
            Some(PoolSpace { capacity: bytes("TotalCapacity")?, free: bytes("FreeSpace")? })
        })
        .await
    }

    /// The address of the group, which redirects iSCSI logins.
    pub async fn group_address(&self) -> Result<String> {
        self.look("grpparams show", |lines| {
            let page = Page::parse(lines);
            let address = page.get("Group-Ipaddress");
            (!address.is_empty()).then(|| address.to_string())
        })
        .await
    }
}

fn volume_page(name: &str, lines: &[String]) -> Option<VolumePage> {
    let page = Page::parse(lines);
    if page.get("Name") != name {
        return None;
    }
    let bytes = |key| parse(page.get(key)).map_or(0, |shown| shown.bytes);
    let number = |key| page.get(key).parse().unwrap_or(0);
    let is_on = |key| matches!(page.get(key), "enabled" | "true" | "yes" | "Y");
    Some(VolumePage {
        name: name.to_string(),
        size: volume_bytes(page.get("Size"))?,
        in_use: bytes("VolReserveInUse"),
        iqn: page.get("iSCSI Name").to_string(),
        description: page.get("Description").to_string(),
        online: page.get("Status").starts_with("online"),
        read_only: page.get("Permission") == "read-only",
        connections: number("Connections"),
        // Strict: taking a volume with snapshots for one without would cost them their room.
        snapshots: page.get("Snapshots").parse().ok()?,
        multihost: is_on("Multi-Host-Access"),
        template: is_on("Template"),
        reserve: Reserve {
            percent: percent(page.get("Snap-Reserve")).unwrap_or(0),
            volume: bytes("VolReserve"),
            available: in_parentheses(page.get("Snap-Reserve-Avail")).unwrap_or(0),
            deletes_oldest: page.get("Snap-Depletion") != "volume-offline",
        },
    })
}

/// The name in `Snapshot name is NAME`.
pub fn created_snapshot(lines: &[String]) -> Option<String> {
    let name = lines.iter().find_map(|line| line.trim().strip_prefix("Snapshot name is "))?;
    (!name.is_empty() && !name.contains(' ')).then(|| name.to_string())
}
