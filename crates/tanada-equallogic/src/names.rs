//! How what is ours is known on the group, where there is nothing but names and descriptions.
//!
//! ```text
//!  volume    tanada-<SR, 32 hex>-<disk, first 20 hex>      description tanada1,k=disk,v=<disk>[,p=<parent>][,t=<template>]
//!  template  tanada-<SR, 32 hex>-t<generation, 19 hex>     description tanada1,k=template,v=<generation>
//!  SR        tanada-<SR, 32 hex>-management                description tanada1,k=sr,n=<name of the SR>
//!  snapshot  tanada-<generation, 32 hex>-<size in pages>   description tanada1,g=<generation> or tanada1,c=<cut>
//!  cut       tanada-<SR, 32 hex>-g<cut, 19 hex>            a volume collection, for the time of a snapshot of a group
//!  account   tanada-<SR, first 8 hex>-<token>[.<generation, 10 hex>]   a CHAP account: one for each attachment
//! ```
//! No name has more than the 63 characters that all firmware takes. A name alone proves that a thing is ours; a description tells more. Descriptions are read tolerantly (an unknown field
//! is skipped, so that a newer program may add some) and written strictly. `k=husk` is a disk that was deleted while
//! generations of it are kept: snapshots die with their volume, so the volume stays.

use uuid::Uuid;

/// Longest description, in bytes.
pub const DESCRIPTION_BYTES_MAX: usize = 127;
/// Longest name of a CHAP account.
pub const ACCOUNT_BYTES_MAX: usize = 63;

const VERSION: &str = "tanada1";

fn hex(id: Uuid) -> String {
    id.simple().to_string()
}

/// What all volumes of an SR begin with.
pub fn prefix(sr: Uuid) -> String {
    format!("tanada-{}-", hex(sr))
}

pub fn volume(sr: Uuid, disk: Uuid) -> String {
    format!("{}{}", prefix(sr), &hex(disk)[..20])
}

pub fn template(sr: Uuid, generation: Uuid) -> String {
    format!("{}t{}", prefix(sr), &hex(generation)[..19])
}

pub fn management(sr: Uuid) -> String {
    format!("{}management", prefix(sr))
}

/// The SR whose management volume has this name.
pub fn sr_of_management(name: &str) -> Option<Uuid> {
    let sr = name.strip_prefix("tanada-")?.strip_suffix("-management")?;
    (sr.len() == 32).then(|| Uuid::try_parse(sr).ok()).flatten()
}

/// What a volume with the SR's prefix is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Disk,
    Template,
    Management,
}

/// `None` for a volume that is not of this SR.
pub fn role(sr: Uuid, name: &str) -> Option<Role> {
    let rest = name.strip_prefix(&prefix(sr))?;
    let is_hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match rest.strip_prefix('t') {
        _ if rest == "management" => Some(Role::Management),
        Some(template) if template.len() == 19 && is_hex(template) => Some(Role::Template),
        None if rest.len() == 20 && is_hex(rest) => Some(Role::Disk),
        _ => None,
    }
}

pub fn snapshot(generation: Uuid, size: u64) -> String {
    format!("tanada-{}-{}", hex(generation), size / crate::size::PAGE_BYTES)
}

/// The generation and its size in bytes; `None` for a snapshot that is not a finished one of ours.
pub fn parse_snapshot(name: &str) -> Option<(Uuid, u64)> {
    let (generation, pages) = name.strip_prefix("tanada-")?.split_once('-')?;
    if generation.len() != 32 || pages.len() > 9 {
        return None;
    }
    let pages: u64 = pages.parse().ok()?;
    Some((Uuid::try_parse(generation).ok()?, pages * crate::size::PAGE_BYTES))
}

/// What a snapshot is called between its creation and its renaming: by a generation, or by the cut that it is a part of.
pub fn snapshot_description(generation: Uuid) -> String {
    format!("{VERSION},g={}", hex(generation))
}

pub fn cut_description(cut: Uuid) -> String {
    format!("{VERSION},c={}", hex(cut))
}

/// Whether a snapshot with this description, and without a name of ours, is one that we did not finish.
pub fn is_unfinished(description: &str) -> bool {
    let rest = description.trim().strip_prefix(VERSION).and_then(|rest| rest.strip_prefix(','));
    rest.and_then(|rest| rest.strip_prefix("g=").or_else(|| rest.strip_prefix("c="))).is_some_and(|id| id.len() == 32)
}

pub fn collection(sr: Uuid, cut: Uuid) -> String {
    format!("{}g{}", prefix(sr), &hex(cut)[..19])
}

pub fn is_collection(sr: Uuid, name: &str) -> bool {
    name.strip_prefix(&prefix(sr)).and_then(|rest| rest.strip_prefix('g')).is_some_and(|cut| cut.len() == 19)
}

fn account_prefix(sr: Uuid) -> String {
    format!("tanada-{}-", &hex(sr)[..8])
}

/// The account for an attachment of a volume, or of a generation. `None` for a token that is too long or has characters
/// that a CHAP account may not have.
pub fn account(sr: Uuid, token: &str, generation: Option<Uuid>) -> Option<String> {
    let plain = token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let mark = generation.map(|generation| format!(".{}", mark(generation))).unwrap_or_default();
    let name = format!("{}{token}{mark}", account_prefix(sr));
    (plain && !token.is_empty() && name.len() <= ACCOUNT_BYTES_MAX).then_some(name)
}

/// How a generation is told in the name of an account.
pub fn mark(generation: Uuid) -> String {
    hex(generation)[..10].to_string()
}

pub fn token_of(sr: Uuid, account: &str) -> Option<&str> {
    let rest = account.strip_prefix(&account_prefix(sr))?;
    rest.split('.').next().filter(|token| !token.is_empty())
}

/// The mark of the generation that an account of ours is for; `None` where it is for a volume.
pub fn mark_of(account: &str) -> Option<&str> {
    account.split_once('.').map(|(_, mark)| mark)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Disk,
    /// Deleted, but generations of it are kept.
    Husk,
    Template,
    Sr,
}

/// What the description of a volume says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    pub kind: Kind,
    /// The disk, or the generation that a template holds. Nil for an SR.
    pub id: Uuid,
    pub parent: Option<Uuid>,
    /// The generation whose template a thin clone depends on.
    pub template: Option<Uuid>,
    /// Set while a volume is taken back to a generation: how many snapshots it had.
    pub reverting: Option<u32>,
    pub name: String,
}

impl Description {
    pub fn new(kind: Kind, id: Uuid) -> Description {
        Description { kind, id, parent: None, template: None, reverting: None, name: String::new() }
    }

    pub fn encode(&self) -> String {
        let kind = match self.kind {
            Kind::Disk => "disk",
            Kind::Husk => "husk",
            Kind::Template => "template",
            Kind::Sr => "sr",
        };
        let mut text = format!("{VERSION},k={kind}");
        if !self.id.is_nil() {
            text.push_str(&format!(",v={}", hex(self.id)));
        }
        let ids = [("p", self.parent), ("t", self.template)];
        ids.iter().for_each(|(key, id)| text.extend(id.map(|id| format!(",{key}={}", hex(id)))));
        text.extend(self.reverting.map(|count| format!(",r={count}")));
        if !self.name.is_empty() {
            text.push_str(",n=");
            escape_into(&mut text, &self.name);
        }
        text
    }

    /// `None` for anything that this driver, or a newer one, did not write.
    pub fn parse(text: &str) -> Option<Description> {
        let mut fields = text.trim().split(',');
        if fields.next() != Some(VERSION) {
            return None;
        }
        let mut found = Description::new(Kind::Sr, Uuid::nil());
        let mut kind = None;
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            match key {
                "k" => kind = kind_of(value),
                "v" => found.id = Uuid::try_parse(value).ok()?,
                "p" => found.parent = Uuid::try_parse(value).ok(),
                "t" => found.template = Uuid::try_parse(value).ok(),
                "r" => found.reverting = value.parse().ok(),
                "n" => found.name = unescape(value),
                _ => {}
            }
        }
        found.kind = kind?;
        (found.kind == Kind::Sr || !found.id.is_nil()).then_some(found)
    }
}

fn kind_of(word: &str) -> Option<Kind> {
    match word {
        "disk" => Some(Kind::Disk),
        "husk" => Some(Kind::Husk),
        "template" => Some(Kind::Template),
        "sr" => Some(Kind::Sr),
        _ => None,
    }
}

/// A name in characters that no command line minds; cut where the description is full.
fn escape_into(text: &mut String, name: &str) {
    for character in name.chars() {
        let mut escaped = String::new();
        if character.is_ascii_alphanumeric() || character == '-' {
            escaped.push(character);
        } else {
            let mut bytes = [0; 4];
            character.encode_utf8(&mut bytes).bytes().for_each(|byte| escaped.push_str(&format!(":{byte:02x}")));
        }
        if text.len() + escaped.len() > DESCRIPTION_BYTES_MAX {
            return;
        }
        text.push_str(&escaped);
    }
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b':' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| (byte? as char).to_digit(16);
        if let (Some(high), Some(low)) = (digit(rest.next()), digit(rest.next())) {
            bytes.push((high * 16 + low) as u8);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
