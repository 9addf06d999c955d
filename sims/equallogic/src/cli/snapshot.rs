//! `volume select V snapshot ...`

use crate::array::Refused;
use crate::array::volume::{Snapshot, Volume};
use crate::cli::layout::{Block, Columns};
use crate::cli::verbs::{Call, pair};
use crate::cli::volume::{copy_spec, created, permission};
use crate::cli::words::Word;
use crate::cli::{CliError, Effect, Reply};

type Answer = Result<Reply, CliError>;

const LIST: Columns = &[("Name", 30), ("Permission", 10), ("Status", 10), ("Connections", 11)];

pub fn create(call: &mut Call<'_>) -> Answer {
    let description = call.option("description").unwrap_or_default().to_string();
    let name = call.array.create_snapshot(&call.argument(0), &description)?;
    Ok(Reply::text(&["Snapshot creation succeeded.", &format!("Snapshot name is {name}")]))
}

pub fn rename(call: &mut Call<'_>) -> Answer {
    call.array.rename_snapshot(&call.argument(0), &call.argument(1), &call.argument(2))?;
    Ok(Reply::silent())
}

pub fn list(call: &mut Call<'_>) -> Answer {
    let volume = call.array.group.volume(&call.argument(0))?;
    Ok(Reply::blocks(vec![snapshot_table(call, volume, None)]))
}

pub fn snapshot_table(call: &Call<'_>, volume: &Volume, title: Option<&str>) -> Block {
    let rows = volume.snapshots.iter().map(|snapshot| {
        vec![
            snapshot.name.clone(),
            permission(snapshot.read_only).into(),
            status(snapshot.online).into(),
            call.array.connections(&snapshot.iqn).to_string(),
        ]
    });
    Block::Table { title: title.map(str::to_string), columns: LIST, rows: rows.collect() }
}

fn status(online: bool) -> &'static str {
    if online { "online" } else { "offline" }
}

pub fn delete(call: &mut Call<'_>) -> Answer {
    call.array.delete_snapshot(&call.argument(0), &call.argument(1))?;
    Ok(Reply::text(&["Snapshot deletion succeeded."]))
}

pub fn enter(call: &mut Call<'_>) -> Answer {
    let (volume, name) = (call.argument(0), call.argument(1));
    find(call, &volume, &name)?;
    let mut words = vec![Word::plain("volume"), Word::plain("select"), Word { text: volume, quoted: true }];
    words.extend([Word::plain("snapshot"), Word::plain("select"), Word { text: name.clone(), quoted: true }]);
    Ok(Reply::effect(Effect::Enter { words, label: format!("snapshot_{name}") }))
}

fn find(call: &Call<'_>, volume: &str, name: &str) -> Result<Snapshot, CliError> {
    let found = call.array.group.volume(volume)?.snapshot(name).cloned();
    Ok(found.ok_or_else(|| Refused::missing("Snapshot", name))?)
}

pub fn show(call: &mut Call<'_>) -> Answer {
    let snapshot = find(call, &call.argument(0), &call.argument(1))?;
    let pairs = vec![
        pair("Name", snapshot.name.as_str()),
        pair("Volume", call.argument(0)),
        pair("Size", call.size(snapshot.size_mb)),
        pair("SnapReserveInUse", call.size(snapshot.held.mb())),
        pair("iSCSI Name", snapshot.iqn.as_str()),
        pair("Description", snapshot.description.as_str()),
        pair("Permission", permission(snapshot.read_only)),
        pair("Status", status(snapshot.online)),
        pair("Connections", call.array.connections(&snapshot.iqn).to_string()),
        pair("Creation-Time", (snapshot.created_ms / 1000).to_string()),
        pair("Volume-Size-Pages", snapshot.pages.0.to_string()),
    ];
    Ok(Reply::blocks(vec![Block::Page { title: "Snapshot Information".into(), pairs }]))
}

pub fn online(call: &mut Call<'_>) -> Answer {
    call.array.set_snapshot_online(&call.argument(0), &call.argument(1), true)?;
    Ok(Reply::silent())
}

pub fn offline(call: &mut Call<'_>) -> Answer {
    call.array.set_snapshot_online(&call.argument(0), &call.argument(1), false)?;
    Ok(Reply::silent())
}

pub fn read_only(call: &mut Call<'_>) -> Answer {
    call.array.set_snapshot_read_only(&call.argument(0), &call.argument(1), true)?;
    Ok(Reply::silent())
}

pub fn read_write(call: &mut Call<'_>) -> Answer {
    call.array.set_snapshot_read_only(&call.argument(0), &call.argument(1), false)?;
    Ok(Reply::silent())
}

pub fn describe(call: &mut Call<'_>) -> Answer {
    call.array.describe_snapshot(&call.argument(0), &call.argument(1), &call.argument(2))?;
    Ok(Reply::silent())
}

pub fn clone(call: &mut Call<'_>) -> Answer {
    let spec = copy_spec(call, call.argument(2))?;
    let iqn = call.array.clone_snapshot(&call.argument(0), &call.argument(1), spec)?;
    Ok(created("Snapshot clone creation succeeded.", &iqn))
}

pub fn restore(call: &mut Call<'_>) -> Answer {
    call.array.restore_snapshot(&call.argument(0), &call.argument(1))?;
    Ok(Reply::silent())
}
