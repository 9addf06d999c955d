//! `ova.xml`: one XML-RPC value with a version block and the objects of the machine.
//!
//! Objects are named `Ref:<n>`; references inside records are such ids. A reference to an id without an object means
//! null: xapi writes those for null metrics and affinities. Records hold every field of the class as `get_record`
//! answers it; classes and fields that we do not know are kept and ignored.
//!
//! The chunks of disks have their checksum members, `ova.xml` has none, so a flipped bit in a name would go unseen. Ours
//! carries its checksum where no importer looks and every tar reader copes: in the group name of its tar header, as
//! `xxh64:` and 16 digits. An archive without it is read as well.

use std::collections::{BTreeMap, BTreeSet};

use tanada_xapi::xmlrpc::{Limits, decode_value_within, encode_value};
use tanada_xapi::{Map, Value};

use crate::DiskPlan;
use crate::checksum::ChecksumKind;
use crate::error::{XvaError, XvaResult};
use crate::limits::{self, OvaBounds};
use crate::tar::Header;

/// Name of the first member of every archive.
pub const MEMBER: &str = "ova.xml";

/// The version of the archive's layout: 2 has a checksum member after each chunk and no table at the end.
pub const EXPORT_VERSION: i64 = 2;

const CHECKSUM_PREFIX: &str = "xxh64:";

/// Who wrote an archive. Importers compare `xapi_major` and `xapi_minor` with their own and refuse what is newer, so we
/// write a pair that every release since 8.0 accepts (the one that Xen Orchestra writes).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    pub hostname: String,
    pub date: String,
    pub product_version: String,
    pub product_brand: String,
    pub build_number: String,
    pub xapi_major: i64,
    pub xapi_minor: i64,
    pub export_vsn: i64,
}

impl Default for Version {
    fn default() -> Version {
        Version {
            hostname: "localhost".into(),
            date: "2026-01-01".into(),
            product_version: env!("CARGO_PKG_VERSION").into(),
            product_brand: "Tanada".into(),
            build_number: "1".into(),
            xapi_major: 1,
            xapi_minor: 20,
            export_vsn: EXPORT_VERSION,
        }
    }
}

/// One object: its class, its id in the archive, its record.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    pub class: String,
    pub id: String,
    pub record: Map,
}

impl Object {
    /// A field that is text (also a reference or an enum); empty where it is absent.
    pub fn text(&self, field: &str) -> &str {
        self.record.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// An integer field; integers arrive as decimal text.
    pub fn int(&self, field: &str) -> Option<i64> {
        self.record.get(field).and_then(Value::as_int)
    }

    /// A boolean field; false where it is absent.
    pub fn flag(&self, field: &str) -> bool {
        self.record.get(field).and_then(Value::as_bool).unwrap_or(false)
    }

    pub(crate) fn to_value(&self) -> Value {
        Value::map([
            ("class", Value::from(&self.class)),
            ("id", Value::from(&self.id)),
            ("snapshot", Value::Map(self.record.clone())),
        ])
    }

    pub(crate) fn from_value(value: &Value) -> XvaResult<Object> {
        let text = |name: &str| value.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let class = text("class").ok_or_else(|| missing("class in an object"))?.to_owned();
        let id = text("id").ok_or_else(|| missing("id in an object"))?.to_owned();
        let record = value.get("snapshot").and_then(Value::as_map).ok_or_else(|| missing("snapshot in an object"))?;
        Ok(Object { class, id, record: record.clone() })
    }

    /// The text values of a map field.
    pub fn text_map(&self, field: &str) -> BTreeMap<String, String> {
        let map = self.record.get(field).and_then(Value::as_map);
        let pairs = map.into_iter().flatten();
        pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    }
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ova {
    pub version: Version,
    pub objects: Vec<Object>,
}

impl Ova {
    pub fn to_xml(&self) -> String {
        let version = Value::map([
            ("hostname", Value::from(&self.version.hostname)),
            ("date", Value::from(&self.version.date)),
            ("product_version", Value::from(&self.version.product_version)),
            ("product_brand", Value::from(&self.version.product_brand)),
            ("build_number", Value::from(&self.version.build_number)),
            ("xapi_major", Value::Int(self.version.xapi_major)),
            ("xapi_minor", Value::Int(self.version.xapi_minor)),
            ("export_vsn", Value::Int(self.version.export_vsn)),
        ]);
        let objects = Value::Set(self.objects.iter().map(Object::to_value).collect());
        encode_value(&Value::map([("version", version), ("objects", objects)]))
    }

    pub fn from_xml(xml: &[u8]) -> XvaResult<Ova> {
        Ova::from_xml_within(xml, limits::OVA)
    }

    pub fn from_xml_within(xml: &[u8], bounds: OvaBounds) -> XvaResult<Ova> {
        let text = std::str::from_utf8(xml).map_err(|error| XvaError::invalid(format!("{MEMBER}: {error}")))?;
        let limits = Limits { depth: limits::OVA_DEPTH, values: bounds.elements };
        let top = decode_value_within(text, limits).map_err(|error| XvaError::invalid(format!("{MEMBER}: {error}")))?;
        let version = version_of(top.get("version").ok_or_else(|| missing("version"))?)?;
        let items = top.get("objects").and_then(Value::as_set).ok_or_else(|| missing("objects"))?;
        if items.len() > bounds.objects {
            return Err(XvaError::invalid(format!("{} objects; at most {} are accepted", items.len(), bounds.objects)));
        }
        let objects = items.iter().map(Object::from_value).collect::<XvaResult<Vec<Object>>>()?;
        let mut ids = BTreeSet::new();
        if let Some(twice) = objects.iter().find(|object| !ids.insert(&object.id)) {
            return Err(XvaError::invalid(format!("{MEMBER}: the id {} is used twice", twice.id)));
        }
        Ok(Ova { version, objects })
    }

    /// The object with this id. `None` for null references, dangling ids and foreign references alike.
    pub fn find(&self, id: &str) -> Option<&Object> {
        self.objects.iter().find(|object| object.id == id)
    }

    pub fn of_class<'a>(&'a self, class: &'a str) -> impl Iterator<Item = &'a Object> {
        self.objects.iter().filter(move |object| object.class == class)
    }

    /// The disks whose content the archive holds, in its order: those behind a VBD that is not a CD and not on an ISO
    /// library, and suspend images.
    pub fn disks(&self) -> XvaResult<Vec<DiskPlan>> {
        let mut ids = BTreeSet::new();
        for vbd in self.of_class("VBD").filter(|vbd| !vbd.text("type").eq_ignore_ascii_case("cd")) {
            if let Some(vdi) = self.find(vbd.text("VDI")).filter(|object| object.class == "VDI") {
                let iso = self.find(vdi.text("SR")).is_some_and(|sr| sr.text("content_type") == "iso");
                if !iso {
                    ids.insert(&vdi.id);
                }
            }
        }
        ids.extend(
            self.of_class("VDI").filter(|vdi| vdi.text("type").eq_ignore_ascii_case("suspend")).map(|vdi| &vdi.id),
        );
        let plans = ids.into_iter().map(|id| {
            let size = self.find(id).and_then(|vdi| vdi.int("virtual_size")).and_then(|size| u64::try_from(size).ok());
            let size = size.ok_or_else(|| XvaError::invalid(format!("VDI {id}: no usable virtual_size")))?;
            Ok(DiskPlan { id: id.clone(), size })
        });
        let plans = plans.collect::<XvaResult<Vec<DiskPlan>>>()?;
        check_disks(&plans).map_err(XvaError::Invalid)?;
        Ok(plans)
    }
}

/// The tar header of a text of ours, with its checksum in the group name.
pub(crate) fn header(member: &str, xml: &str) -> Header {
    let mut header = Header::new(member, xml.len() as u64);
    header.group = format!("{CHECKSUM_PREFIX}{}", ChecksumKind::Xxh64.of(xml.as_bytes()));
    header
}

/// Compares a text with the checksum in its header, where there is one.
pub(crate) fn verify(header: &Header, xml: &[u8]) -> XvaResult<()> {
    let Some(recorded) = header.group.strip_prefix(CHECKSUM_PREFIX) else { return Ok(()) };
    let computed = ChecksumKind::Xxh64.of(xml);
    if recorded == computed {
        return Ok(());
    }
    Err(XvaError::Checksum { member: header.name.clone(), recorded: recorded.into(), computed })
}

/// What both reader and writer ask of a set of disks; the error is the reason.
pub(crate) fn check_disks(disks: &[DiskPlan]) -> Result<(), String> {
    if disks.len() > limits::DISKS {
        return Err(format!("{} disks; at most {} are accepted", disks.len(), limits::DISKS));
    }
    disks.iter().try_for_each(|disk| check_size(&disk.id, disk.size))
}

/// A size that counters can address; the error is the reason.
pub(crate) fn check_size(id: &str, size: u64) -> Result<(), String> {
    match size > limits::DISK_BYTES {
        true => Err(format!("disk {id}: {size} bytes; at most {} are accepted", limits::DISK_BYTES)),
        false => Ok(()),
    }
}

fn missing(member: &str) -> XvaError {
    XvaError::invalid(format!("{MEMBER}: no {member}"))
}

fn version_of(value: &Value) -> XvaResult<Version> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let text = |name: &'static str| text(name).ok_or_else(|| missing(name));
    let int = |name: &'static str| value.get(name).and_then(Value::as_int).ok_or_else(|| missing(name));
    let version = Version {
        hostname: text("hostname")?,
        date: text("date")?,
        product_version: text("product_version")?,
        product_brand: text("product_brand")?,
        build_number: text("build_number")?,
        xapi_major: int("xapi_major")?,
        xapi_minor: int("xapi_minor")?,
        export_vsn: value.get("export_vsn").map_or(Some(0), Value::as_int).ok_or_else(|| missing("export_vsn"))?,
    };
    if version.export_vsn > EXPORT_VERSION {
        return Err(XvaError::TooNew { found: version.export_vsn, known: EXPORT_VERSION });
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use tanada_xapi::Value;

    use super::{Object, Ova, Version};
    use crate::{DiskPlan, XvaError};

    fn object(class: &str, id: &str, fields: &[(&str, &str)]) -> Object {
        let record = fields.iter().map(|(key, text)| ((*key).to_owned(), Value::from(*text))).collect();
        Object { class: class.into(), id: id.into(), record }
    }

    fn machine() -> Ova {
        let objects = vec![
            object("VM", "Ref:0", &[("name_label", "a & b <c>"), ("metrics", "Ref:999")]),
            object("VBD", "Ref:1", &[("VM", "Ref:0"), ("VDI", "Ref:10"), ("type", "Disk")]),
            object("VBD", "Ref:2", &[("VM", "Ref:0"), ("VDI", "Ref:9"), ("type", "disk")]),
            object("VBD", "Ref:3", &[("VM", "Ref:0"), ("VDI", "Ref:8"), ("type", "CD")]),
            object("VBD", "Ref:4", &[("VM", "Ref:0"), ("VDI", "OpaqueRef:NULL"), ("type", "Disk")]),
            object("VDI", "Ref:8", &[("SR", "Ref:6"), ("virtual_size", "512")]),
            object("VDI", "Ref:9", &[("SR", "Ref:5"), ("virtual_size", "1048576")]),
            object("VDI", "Ref:10", &[("SR", "Ref:5"), ("virtual_size", "2097152")]),
            object("VDI", "Ref:11", &[("SR", "Ref:5"), ("virtual_size", "4096"), ("type", "Suspend")]),
            object("SR", "Ref:5", &[("content_type", "user")]),
            object("SR", "Ref:6", &[("content_type", "iso")]),
            object("from_the_future", "x", &[]),
        ];
        Ova { version: Version::default(), objects }
    }

    #[test]
    fn both_ways_with_untyped_text() {
        let ova = machine();
        let xml = ova.to_xml();
        assert!(xml.starts_with("<value><struct>"), "no prolog, no blanks");
        assert!(xml.contains("<name>name_label</name><value>a &amp; b &lt;c&gt;</value>"));
        assert_eq!(Ova::from_xml(xml.as_bytes()).unwrap(), ova);
        let with_prolog = format!("<?xml version=\"1.0\"?>\n{xml}\n");
        assert_eq!(Ova::from_xml(with_prolog.as_bytes()).unwrap(), ova);
    }

    #[test]
    fn disks_in_the_byte_order_of_their_ids() {
        let ids: Vec<DiskPlan> = machine().disks().unwrap();
        let plan = |id: &str, size| DiskPlan { id: id.into(), size };
        assert_eq!(ids, [plan("Ref:10", 2 << 20), plan("Ref:11", 4096), plan("Ref:9", 1 << 20)]);
    }

    #[test]
    fn a_dangling_id_is_null() {
        let ova = machine();
        assert!(ova.find(ova.find("Ref:0").unwrap().text("metrics")).is_none());
    }

    #[test]
    fn unusable_texts_are_refused() {
        let xml = machine().to_xml();
        let newer = xml.replace("<name>export_vsn</name><value>2</value>", "<name>export_vsn</name><value>3</value>");
        assert!(matches!(Ova::from_xml(newer.as_bytes()), Err(XvaError::TooNew { found: 3, known: 2 })));
        for (from, to, words) in [
            ("<name>objects</name>", "<name>things</name>", "no objects"),
            ("<name>xapi_minor</name>", "<name>minor</name>", "no xapi_minor"),
            ("Ref:11", "Ref:10", "used twice"),
            ("</struct></value>", "</struct>", "ova.xml"),
        ] {
            let error = Ova::from_xml(xml.replace(from, to).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        for size in ["-1", "x", "99999999999999999"] {
            let ova = Ova::from_xml(xml.replace("2097152", size).as_bytes()).unwrap();
            assert!(ova.disks().unwrap_err().to_string().contains("Ref:10"));
        }
    }
}
