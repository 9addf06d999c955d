//! Machines, disks and archives for the tests.

use std::io::{Read, Write};

use tanada_xapi::{Map, Value};
use tanada_xva::compress::Encoder;
use tanada_xva::limits::CHUNK_BYTES;
use tanada_xva::tar::{Header, ZERO_BLOCK};
use tanada_xva::{
    ArchiveReader, ArchiveWriter, ChecksumKind, Compression, DiskEvent, Object, Ova, Verify, Version, XvaError,
};

pub const MIB: usize = CHUNK_BYTES;

fn object(class: &str, id: &str, fields: &[(&str, String)]) -> Object {
    let record: Map = fields.iter().map(|(key, text)| ((*key).to_owned(), Value::from(text))).collect();
    Object { class: class.into(), id: id.into(), record }
}

/// A machine with disks `(id, bytes)`.
pub fn machine(disks: &[(String, u64)]) -> Ova {
    let mut objects = vec![
        object("VM", "Ref:vm", &[("name_label", "db1".into())]),
        object("SR", "Ref:sr", &[("content_type", "user".into())]),
    ];
    for (index, (id, size)) in disks.iter().enumerate() {
        objects.push(object("VDI", id, &[("SR", "Ref:sr".into()), ("virtual_size", size.to_string())]));
        let vbd = [("VM", "Ref:vm".into()), ("VDI", id.clone()), ("type", "Disk".into())];
        objects.push(object("VBD", &format!("Ref:vbd{index}"), &vbd));
    }
    Ova { version: Version::default(), objects }
}

/// Disks with ids `Ref:0`, `Ref:1` ... as an archive.
pub fn pack(disks: &[Vec<u8>], compression: Compression, checksum: ChecksumKind) -> Vec<u8> {
    let named: Vec<(String, u64)> =
        disks.iter().enumerate().map(|(index, disk)| (format!("Ref:{index}"), disk.len() as u64)).collect();
    let encoder = Encoder::new(Vec::new(), compression).unwrap();
    let mut writer = ArchiveWriter::begin(encoder, &machine(&named), checksum, 0).unwrap();
    while let Some(next) = writer.next_chunk() {
        let id = &writer.disks()[next.disk].id;
        let disk = &disks[named.iter().position(|(name, _)| name == id).unwrap()];
        let start = next.offset as usize;
        writer.chunk(&disk[start..start + next.length]).unwrap();
    }
    writer.finish().unwrap().finish().unwrap()
}

/// The disks of an archive in its order, each piece checked to follow the one before it.
pub fn unpack(archive: impl Read, verify: Verify) -> Result<(Ova, Vec<Vec<u8>>), XvaError> {
    let mut reader = ArchiveReader::open(archive, verify)?;
    let mut disks: Vec<Vec<u8>> = vec![Vec::new(); reader.disks().len()];
    while let Some(event) = reader.next_event()? {
        match event {
            DiskEvent::Data { disk, offset, bytes } => {
                assert_eq!(offset, disks[disk].len() as u64);
                assert!(bytes.iter().any(|byte| *byte != 0));
                disks[disk].extend(bytes);
            }
            DiskEvent::Zeros { disk, offset, length } => {
                assert_eq!(offset, disks[disk].len() as u64);
                let end = disks[disk].len() + length as usize;
                disks[disk].resize(end, 0);
            }
        }
    }
    for (disk, plan) in disks.iter().zip(reader.disks()) {
        assert_eq!(disk.len() as u64, plan.size);
    }
    assert_eq!(reader.next_event()?, None, "the end stays the end");
    Ok((reader.ova().clone(), disks))
}

/// An archive written by hand, member by member, as other programs might.
pub struct ByHand(Vec<u8>);

impl ByHand {
    pub fn new(ova: &Ova) -> ByHand {
        let mut archive = ByHand(Vec::new());
        archive.member("ova.xml", ova.to_xml().as_bytes());
        archive
    }

    pub fn empty() -> ByHand {
        ByHand(Vec::new())
    }

    pub fn member(&mut self, name: &str, content: &[u8]) -> &mut ByHand {
        let header = Header::new(name, content.len() as u64);
        self.0.write_all(&header.encode(0).unwrap()).unwrap();
        self.0.write_all(content).unwrap();
        self.0.write_all(&ZERO_BLOCK[..header.padding()]).unwrap();
        self
    }

    pub fn chunk(&mut self, name: &str, content: &[u8]) -> &mut ByHand {
        let sum = ChecksumKind::Sha1.of(content);
        self.member(name, content).member(&format!("{name}.checksum"), sum.as_bytes())
    }

    /// The whole archive, with its end.
    pub fn end(&self) -> Vec<u8> {
        [&self.0[..], &ZERO_BLOCK, &ZERO_BLOCK].concat()
    }
}

pub fn filled(length: usize, byte: u8) -> Vec<u8> {
    vec![byte; length]
}
