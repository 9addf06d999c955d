//! Archives of records alone: `ova.xml` and the end.
//!
//! Where an archive with disks blanks what ties its machines to a host, these keep it: uuids of SRs, places of disks, the
//! ties between snapshots and machines. They are worth something where the disks still are.

use std::io::Read;

use crate::compress::Decoder;
use crate::error::{XvaError, XvaResult};
use crate::limits::METADATA;
use crate::ova::{self, Ova};
use crate::reader::{Members, unexpected};
use crate::tar::ZERO_BLOCK;

/// The whole archive. `mtime_seconds` (since 1970) is what `tar tv` shows. Refuses what [`read`] would refuse.
pub fn write(ova: &Ova, mtime_seconds: u64) -> XvaResult<Vec<u8>> {
    let (xml, objects) = (ova.to_xml(), ova.objects.len());
    if xml.len() as u64 > METADATA.xml_bytes || objects > METADATA.objects {
        return Err(XvaError::Unwritable(format!(
            "{objects} objects in {} bytes; at most {} in {} bytes fit into one archive of records",
            xml.len(),
            METADATA.objects,
            METADATA.xml_bytes
        )));
    }
    let header = ova::header(ova::MEMBER, &xml);
    let mut archive = header.encode(mtime_seconds)?.to_vec();
    archive.extend_from_slice(xml.as_bytes());
    archive.extend_from_slice(&ZERO_BLOCK[..header.padding()]);
    archive.extend_from_slice(&ZERO_BLOCK);
    archive.extend_from_slice(&ZERO_BLOCK);
    Ok(archive)
}

/// Reads an archive to its end, compressed or not. One with disks in it is refused: its records do not say where they are.
pub fn read(source: impl Read) -> XvaResult<Ova> {
    let mut tar = Members { source: Decoder::detect(source)? };
    let header = tar.header(ova::MEMBER)?.ok_or_else(|| unexpected(ova::MEMBER, "the end of the archive"))?;
    if header.name != ova::MEMBER {
        return Err(unexpected(ova::MEMBER, &header.name));
    }
    let xml = tar.content(&header, METADATA.xml_bytes)?;
    ova::verify(&header, &xml)?;
    match tar.header("the end of the archive")? {
        None => Ova::from_xml_within(&xml, METADATA),
        Some(member) => Err(unexpected("the end of an archive of records alone", &member.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::{read, write};
    use crate::{Object, Ova, Version, XvaError};

    fn ova() -> Ova {
        let record = [("name_label".to_owned(), "db1".into())].into();
        Ova { version: Version::default(), objects: vec![Object { class: "VM".into(), id: "Ref:0".into(), record }] }
    }

    #[test]
    fn both_ways_and_never_half() {
        let archive = write(&ova(), 0).unwrap();
        assert_eq!(archive.len() % 512, 0);
        assert_eq!(read(&archive[..]).unwrap(), ova());
        for length in [0, 100, 512, archive.len() - 1024] {
            assert!(matches!(read(&archive[..length]), Err(XvaError::PrematureEnd(_))), "{length}");
        }
        let mut flipped = archive.clone();
        flipped[600] ^= 1;
        assert!(read(&flipped[..]).is_err());
    }

    #[test]
    fn an_archive_with_disks_is_refused() {
        let archive = write(&ova(), 0).unwrap();
        let mut with_more = archive[..archive.len() - 1024].to_vec();
        with_more.extend_from_slice(&archive);
        assert!(matches!(read(&with_more[..]), Err(XvaError::UnexpectedMember { .. })));
    }
}
