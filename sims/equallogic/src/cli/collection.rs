//! `volume collection ...`. No client is known that uses these: their spellings are this simulator's own.

use crate::array::Refused;
use crate::array::SnapCollection;
use crate::cli::layout::{Block, Columns};
use crate::cli::verbs::Call;
use crate::cli::{CliError, Reply};

type Answer = Result<Reply, CliError>;

const LIST: Columns = &[("Name", 30), ("Volumes", 40)];
const SNAPSHOTS: Columns = &[("Name", 45), ("Snapshots", 9)];
const MEMBERS: Columns = &[("Volume", 30), ("Snapshot", 46)];

/// Names parted by commas.
fn names(text: &str) -> Vec<String> {
    text.split(',').filter(|name| !name.is_empty()).map(str::to_string).collect()
}

pub fn create(call: &mut Call<'_>) -> Answer {
    let volumes = names(call.option("volume").unwrap_or_default());
    let description = call.option("description").unwrap_or_default().to_string();
    call.array.create_collection(&call.argument(0), &volumes, &description)?;
    Ok(Reply::text(&["Volume collection creation succeeded."]))
}

pub fn delete(call: &mut Call<'_>) -> Answer {
    call.array.delete_collection(&call.argument(0))?;
    Ok(Reply::text(&["Volume collection deletion succeeded."]))
}

pub fn show(call: &mut Call<'_>) -> Answer {
    if let Some(name) = call.optional(0) {
        call.array.group.collection_mut(&name)?;
    }
    let wanted = call.optional(0);
    let all = call.array.group.collections.iter().filter(|(name, _)| wanted.as_ref().is_none_or(|one| one == *name));
    let rows = all.map(|(name, collection)| vec![name.clone(), collection.volumes.join(",")]).collect();
    Ok(Reply::blocks(vec![Block::Table { title: None, columns: LIST, rows }]))
}

pub fn add(call: &mut Call<'_>) -> Answer {
    call.array.add_to_collection(&call.argument(0), &names(&call.argument(1)))?;
    Ok(Reply::silent())
}

pub fn remove(call: &mut Call<'_>) -> Answer {
    call.array.remove_from_collection(&call.argument(0), &names(&call.argument(1)))?;
    Ok(Reply::silent())
}

pub fn snapshot(call: &mut Call<'_>) -> Answer {
    let description = call.option("description").unwrap_or_default().to_string();
    let made = call.array.snapshot_collection(&call.argument(0), &description)?;
    Ok(Reply::text(&["Snapshot collection creation succeeded.", &format!("Snapshot collection name is {}", made.name)]))
}

pub fn list_snapshots(call: &mut Call<'_>) -> Answer {
    let collection = call.array.group.collection_mut(&call.argument(0))?;
    let rows = collection.snapshots.iter().map(|one| vec![one.name.clone(), one.members.len().to_string()]).collect();
    Ok(Reply::blocks(vec![Block::Table { title: None, columns: SNAPSHOTS, rows }]))
}

pub fn show_snapshots(call: &mut Call<'_>) -> Answer {
    let found = find(call, &call.argument(0), &call.argument(1))?;
    let rows = found.members.into_iter().map(|member| vec![member.volume, member.snapshot]).collect();
    Ok(Reply::blocks(vec![Block::Table { title: None, columns: MEMBERS, rows }]))
}

fn find(call: &mut Call<'_>, collection: &str, name: &str) -> Result<SnapCollection, CliError> {
    let snapshots = &call.array.group.collection_mut(collection)?.snapshots;
    let found = snapshots.iter().find(|one| one.name == name).cloned();
    Ok(found.ok_or_else(|| Refused::missing("Snapshot collection", name))?)
}

pub fn delete_snapshots(call: &mut Call<'_>) -> Answer {
    call.array.delete_snapshot_collection(&call.argument(0), &call.argument(1))?;
    Ok(Reply::text(&["Snapshot collection deletion succeeded."]))
}
