//! What the driver's things are called on the array, and how it knows them again. The array is the only record there
//! is, so every name and comment is strict when written and tolerant when read.
//!
//! ```text
//!  FlexVol     tanada_<sr, 32 digits>_fv<n>    comment: tanada/1 {"sr":..,"name":..,"description":..}
//!  LUN         <volume or generation uuid>     comment: tanada/1 sr=<32> vdi=<32> kind=volume|generation parent=<32>|-
//!                                              attributes: tanada.sr, tanada.vdi, tanada.kind, tanada.parent, tanada.name
//!  attachment  attribute tanada.at.<token> of the LUN: <vdi, 32 digits> rw|ro <initiator>
//!  snapshot    tanada_cut_<host, 8>_<operation, 16>, for the seconds of a group's cut; tanada_del_.. when it would not go
//!  group       tanada_<sr, 16 digits>_<host, 8>_<operation, 16>, likewise
//!  igroup      tanada_<end of the initiator's name>_<hash, 8>
//! ```
//! A clone starts with its source's comment and attributes. That is what marks it as unfinished: an identity that names
//! another LUN than the one it is on. Only a LUN whose identity names itself is a disk of the SR.

use ring::digest;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::Lun;
use crate::tls::hex;

const MARK: &str = "tanada/1 ";
/// Base name of the LUN that holds the SR's metadata.
pub const METADATA_LUN: &str = "tanada_metadata";
pub const TOKEN_PREFIX: &str = "tanada.at.";
pub const CUT_PREFIX: &str = "tanada_cut_";
pub const DELETED_PREFIX: &str = "tanada_del_";

/// Any FlexVol of `sr`, as a pattern.
pub fn flexvol_pattern(sr: Uuid) -> String {
    format!("tanada_{}_fv*", sr.simple())
}

pub fn flexvol(sr: Uuid, number: u32) -> String {
    format!("tanada_{}_fv{number}", sr.simple())
}

/// SR and number of a FlexVol by its name; `None` for one that is not ours.
pub fn parse_flexvol(name: &str) -> Option<(Uuid, u32)> {
    let rest = name.strip_prefix("tanada_")?;
    let (sr, number) = rest.split_once("_fv")?;
    let number = number.parse().ok()?;
    let sr = parse_simple(sr)?;
    (flexvol(sr, number) == name).then_some((sr, number))
}

pub fn lun_path(flexvol: &str, base: &str) -> String {
    format!("/vol/{flexvol}/{base}")
}

/// Thirty-two lower-case digits.
fn parse_simple(text: &str) -> Option<Uuid> {
    let found = Uuid::try_parse(text).ok()?;
    (found.simple().to_string() == text).then_some(found)
}

/// The text kept with a FlexVol.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    pub sr: Uuid,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub description: String,
}

impl Container {
    /// At most 1023 characters whatever the labels are.
    pub fn comment(&self) -> String {
        let cut = |text: &str, max| text.chars().filter(|c| !c.is_control()).take(max).collect();
        let kept = Container { sr: self.sr, name: cut(&self.name, 120), description: cut(&self.description, 240) };
        let whole = serde_json::to_string(&kept).unwrap_or_default();
        format!("{MARK}{whole}")
    }

    pub fn parse(comment: &str) -> Option<Container> {
        serde_json::from_str(comment.strip_prefix(MARK)?).ok()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Volume,
    Generation,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Volume => "volume",
            Kind::Generation => "generation",
        }
    }

    fn parse(word: &str) -> Option<Kind> {
        [Kind::Volume, Kind::Generation].into_iter().find(|kind| kind.word() == word)
    }
}

/// Who a LUN is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub sr: Uuid,
    pub vdi: Uuid,
    pub kind: Kind,
    /// What it was cut or cloned from.
    pub parent: Option<Uuid>,
}

impl Identity {
    /// Fits the 254 characters of a LUN's comment.
    pub fn comment(&self) -> String {
        let parent = self.parent.map_or(String::from("-"), |parent| parent.simple().to_string());
        format!("{MARK}sr={} vdi={} kind={} parent={parent}", self.sr.simple(), self.vdi.simple(), self.kind.word())
    }

    pub fn parse_comment(comment: &str) -> Option<Identity> {
        let mut words = comment.strip_prefix(MARK)?.split(' ');
        let mut value = |key: &str| words.next()?.strip_prefix(key)?.strip_prefix('=');
        Some(Identity {
            sr: parse_simple(value("sr")?)?,
            vdi: parse_simple(value("vdi")?)?,
            kind: Kind::parse(value("kind")?)?,
            parent: parse_simple(value("parent")?),
        })
    }

    /// The same as attributes.
    pub fn attributes(&self) -> Vec<(&'static str, String)> {
        let parent = self.parent.map_or(String::from("-"), |parent| parent.to_string());
        vec![
            ("tanada.sr", self.sr.to_string()),
            ("tanada.vdi", self.vdi.to_string()),
            ("tanada.kind", self.kind.word().to_owned()),
            ("tanada.parent", parent),
        ]
    }

    fn from_attributes(lun: &Lun) -> Option<Identity> {
        let uuid = |name| Uuid::try_parse(lun.attribute(name)?).ok();
        let kind = Kind::parse(lun.attribute("tanada.kind")?)?;
        Some(Identity { sr: uuid("tanada.sr")?, vdi: uuid("tanada.vdi")?, kind, parent: uuid("tanada.parent") })
    }

    /// The identity that a LUN says it has, if it names the LUN itself. The comment is written in one step and after
    /// the copy, so it goes first; attributes stand in where somebody has edited the comment.
    pub fn of(lun: &Lun) -> Option<Identity> {
        let own = Uuid::try_parse(lun.base()).ok()?;
        let said = [Identity::parse_comment(&lun.comment), Identity::from_attributes(lun)];
        said.into_iter().flatten().find(|identity| identity.vdi == own)
    }

    /// For a clone that was not finished: whose copy it is, by the identity that it inherited.
    pub fn inherited(lun: &Lun) -> Option<Identity> {
        if Identity::of(lun).is_some() {
            return None;
        }
        Identity::parse_comment(&lun.comment).or_else(|| Identity::from_attributes(lun))
    }
}

/// One use of a LUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    pub token: String,
    pub writable: bool,
    pub initiator: String,
}

impl Attachment {
    pub fn attribute(&self) -> String {
        format!("{TOKEN_PREFIX}{}", self.token)
    }

    pub fn value(&self, owner: &str) -> String {
        format!("{owner} {} {}", if self.writable { "rw" } else { "ro" }, self.initiator)
    }

    /// All attachments of a LUN; those that a clone inherited from its source do not count.
    pub fn all_of(lun: &Lun) -> Vec<Attachment> {
        let read = |name: &str, value: &str| {
            let token = name.strip_prefix(TOKEN_PREFIX)?.to_owned();
            let (owner, rest) = value.split_once(' ')?;
            let (mode, initiator) = rest.split_once(' ')?;
            (owner == lun.base()).then(|| Attachment { token, writable: mode == "rw", initiator: initiator.to_owned() })
        };
        lun.attributes.iter().filter_map(|attribute| read(&attribute.name, &attribute.value)).collect()
    }
}

/// The igroup of an initiator: at most 96 characters of the array's alphabet, the same on every host.
pub fn igroup(initiator: &str) -> String {
    let hash = digest::digest(&digest::SHA256, initiator.as_bytes());
    let tail = initiator.rsplit(':').next().unwrap_or_default();
    let word = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '_' };
    let tail: String = tail.chars().take(60).map(word).collect();
    format!("tanada_{tail}_{}", hex(&hash.as_ref()[..4]))
}

/// A FlexVol snapshot for the time of a cut, made by `host` (8 digits).
pub fn cut(host: &str, operation: &str) -> String {
    format!("{CUT_PREFIX}{host}_{operation}")
}

/// The consistency group of a cut over several FlexVols.
pub fn group(sr: Uuid, host: &str, operation: &str) -> String {
    format!("{}{host}_{operation}", group_prefix(sr))
}

pub fn group_prefix(sr: Uuid) -> String {
    let sr = sr.simple().to_string();
    format!("tanada_{}_", &sr[..16])
}

#[cfg(test)]
mod tests {
    use super::{Attachment, Container, Identity, Kind, flexvol, igroup, parse_flexvol};
    use crate::model::{Attribute, Lun};
    use uuid::Uuid;

    fn lun(base: &str, comment: &str, attributes: &[(&str, String)]) -> Lun {
        let attributes =
            attributes.iter().map(|(name, value)| Attribute { name: (*name).to_owned(), value: value.clone() });
        Lun {
            name: format!("/vol/fv/{base}"),
            comment: comment.to_owned(),
            attributes: attributes.collect(),
            ..Lun::default()
        }
    }

    #[test]
    fn only_names_of_ours_are_ours() {
        let sr = Uuid::new_v4();
        assert_eq!(parse_flexvol(&flexvol(sr, 3)), Some((sr, 3)));
        let name = flexvol(sr, 3);
        for wrong in
            ["", "vol0", "tanada__fv1", &format!("{name}x"), &name.to_uppercase(), &name.replace("fv3", "fv03")]
        {
            assert_eq!(parse_flexvol(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn containers_read_back_and_stay_short() {
        let whole = Container { sr: Uuid::new_v4(), name: "fast".into(), description: "a \"b\" <c>".into() };
        assert_eq!(Container::parse(&whole.comment()), Some(whole.clone()));
        let long = Container { name: "\"".repeat(5000), description: "\\".repeat(5000), ..whole };
        assert!(long.comment().chars().count() <= 1023, "{}", long.comment().len());
        assert_eq!(Container::parse("my volume"), None);
    }

    #[test]
    fn an_identity_counts_on_its_own_lun_only() {
        let id =
            Identity { sr: Uuid::new_v4(), vdi: Uuid::new_v4(), kind: Kind::Generation, parent: Some(Uuid::new_v4()) };
        assert!(id.comment().len() <= 254);
        let own = id.vdi.to_string();
        assert_eq!(Identity::of(&lun(&own, &id.comment(), &[])), Some(id));
        assert_eq!(Identity::of(&lun(&own, "edited by hand", &id.attributes())), Some(id));
        let other = Uuid::new_v4().to_string();
        let copy = lun(&other, &id.comment(), &id.attributes());
        assert_eq!(Identity::of(&copy), None);
        assert_eq!(Identity::inherited(&copy), Some(id));
        // The comment is written first; attributes may still be the source's.
        let finished = Identity { vdi: Uuid::parse_str(&other).unwrap(), kind: Kind::Volume, ..id };
        assert_eq!(Identity::of(&lun(&other, &finished.comment(), &id.attributes())), Some(finished));
        assert_eq!(Identity::of(&lun("tanada_metadata", &id.comment(), &[])), None);
        let root = Identity { parent: None, ..id };
        assert_eq!(Identity::parse_comment(&root.comment()), Some(root));
        for wrong in ["", "tanada/1 ", "tanada/1 sr=x", "tanada/2 sr=1"] {
            assert_eq!(Identity::parse_comment(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn attachments_of_the_source_are_not_the_clones() {
        let own = Uuid::new_v4().to_string();
        let one = Attachment { token: "t".into(), writable: true, initiator: "iqn.2026-01.org.tanada:vm-1".into() };
        let of = |base: &str| Attachment::all_of(&lun(base, "", &[("tanada.at.t", one.value(&own))]));
        assert_eq!(of(&own), vec![one.clone()]);
        assert_eq!(of("another"), vec![]);
    }

    #[test]
    fn igroups_fit_the_arrays_alphabet() {
        let name = igroup("iqn.2026-01.org.tanada:vm-0f5e9f1e-4b8e-4a55-9d2f-111111111111");
        assert!(name.starts_with("tanada_vm-0f5e9f1e-4b8e-4a55-9d2f-111111111111_"), "{name}");
        let odd = igroup(&format!("iqn.x:{}", "é/".repeat(200)));
        assert!(odd.len() <= 96 && odd.is_ascii(), "{odd}");
        assert_ne!(igroup("iqn.a:x"), igroup("iqn.b:x"));
    }
}
