//! Older states of a machine's disks behind the newest one.

use std::collections::BTreeMap;

use tanada_xapi::Value;
use tanada_xva::compress::Encoder;
use tanada_xva::delta::BLOCK_BYTES;
use tanada_xva::{
    ArchiveReader, ArchiveWriter, ChecksumKind, Compression, Delta, DeltaPlan, DiskEvent, Generations, Object, Verify,
    XvaError, XvaResult,
};

use crate::common::{MIB, filled, machine, unpack};

const NEWEST: usize = 2 * MIB + 512;

/// An older disk: the newest with one block changed, one emptied, and the end changed; then one told by nothing.
fn older() -> (Generations, Vec<Vec<u8>>) {
    let vdi = |id: &str, size: usize| {
        let record = [("virtual_size".to_owned(), Value::from(size.to_string()))].into();
        Object { class: "VDI".into(), id: id.into(), record }
    };
    let mut first = filled(NEWEST, 7);
    first[BLOCK_BYTES..2 * BLOCK_BYTES].fill(8);
    first[MIB..MIB + BLOCK_BYTES].fill(0);
    first[2 * MIB..].fill(9);
    let mut second = filled(MIB, 0);
    second[MIB - BLOCK_BYTES..].fill(5);
    let disks = vec![
        DeltaPlan { id: "Ref:8".into(), size: NEWEST as u64, base: Some("Ref:0".into()) },
        DeltaPlan { id: "Ref:9".into(), size: NEWEST as u64, base: Some("Ref:8".into()) },
        DeltaPlan { id: "Ref:7".into(), size: MIB as u64, base: None },
    ];
    let objects = vec![vdi("Ref:7", MIB), vdi("Ref:8", NEWEST), vdi("Ref:9", NEWEST)];
    (Generations { objects, parent: "Ref:6".into(), disks }, vec![first.clone(), first, second])
}

/// What differs between two states, written as an exporter would.
fn write_differences(writer: &mut ArchiveWriter<impl std::io::Write>, id: &str, from: &[u8], to: &[u8]) {
    for (chunk, bytes) in to.chunks(MIB).enumerate() {
        let mut delta = Delta::default();
        for (block, bytes) in bytes.chunks(BLOCK_BYTES).enumerate() {
            let start = chunk * MIB + block * BLOCK_BYTES;
            if from.get(start..start + bytes.len()) != Some(bytes) {
                delta.put(block, bytes).unwrap();
            }
        }
        if !delta.is_empty() {
            writer.delta(id, chunk as u64, &delta).unwrap();
        }
    }
}

fn archive(compression: Compression) -> Vec<u8> {
    let newest = filled(NEWEST, 7);
    let encoder = Encoder::new(Vec::new(), compression).unwrap();
    let ova = machine(&[("Ref:0".into(), NEWEST as u64)]);
    let mut writer = ArchiveWriter::begin(encoder, &ova, ChecksumKind::Xxh64, 0).unwrap();
    let (generations, disks) = older();
    assert!(matches!(writer.generations(&generations, 0), Err(XvaError::Unwritable(_))), "not before the disks");
    while let Some(next) = writer.next_chunk() {
        writer.chunk(&newest[next.offset as usize..next.offset as usize + next.length]).unwrap();
    }
    writer.generations(&generations, 0).unwrap();
    write_differences(&mut writer, "Ref:8", &newest, &disks[0]);
    write_differences(&mut writer, "Ref:9", &disks[0], &disks[1]);
    write_differences(&mut writer, "Ref:7", &filled(MIB, 0), &disks[2]);
    writer.finish().unwrap().finish().unwrap()
}

/// All disks of an archive, by id.
fn read(archive: &[u8]) -> XvaResult<BTreeMap<String, Vec<u8>>> {
    let mut reader = ArchiveReader::open(archive, Verify::Checksums)?;
    reader.expect_generations();
    let mut newest = vec![0; NEWEST];
    let put = |content: &mut Vec<u8>, event: DiskEvent| match event {
        DiskEvent::Data { offset, bytes, .. } => {
            content[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
        }
        DiskEvent::Zeros { offset, length, .. } => content[offset as usize..(offset + length) as usize].fill(0),
    };
    while let Some(event) = reader.next_event()? {
        put(&mut newest, event);
    }
    let Some(generations) = reader.generations().cloned() else {
        return Ok(BTreeMap::from([("Ref:0".to_owned(), newest)]));
    };
    assert_eq!(generations, older().0);
    let mut changes = Vec::new();
    while let Some(change) = reader.next_change()? {
        changes.push(change);
    }
    assert_eq!((reader.next_change()?, reader.next_event()?), (None, None), "the end stays the end");
    let mut known = BTreeMap::from([("Ref:0".to_owned(), newest)]);
    for (index, plan) in generations.disks.iter().enumerate() {
        let mut content = plan.base.as_ref().map(|base| known[base].clone()).unwrap_or_default();
        content.resize(plan.size as usize, 0);
        let ours = |event: &DiskEvent| matches!(event, DiskEvent::Data { disk, .. } | DiskEvent::Zeros { disk, .. } if *disk == index);
        changes.iter().filter(|event| ours(event)).for_each(|event| put(&mut content, event.clone()));
        known.insert(plan.id.clone(), content);
    }
    Ok(known)
}

#[test]
fn every_state_comes_back() {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let archive = archive(compression);
        let disks = read(&archive).unwrap();
        assert!(disks["Ref:0"] == filled(NEWEST, 7));
        for (plan, expected) in older().0.disks.iter().zip(older().1) {
            assert!(disks[&plan.id] == expected, "{}", plan.id);
        }
    }
    // Two blocks and half a one, and no more than that.
    assert!(archive(Compression::None).len() < NEWEST + 3 * BLOCK_BYTES + 32 * 512);
}

#[test]
fn whoever_does_not_ask_for_them_does_not_lose_them_silently() {
    let refused = unpack(&archive(Compression::None)[..], Verify::Checksums).unwrap_err();
    assert!(refused.to_string().contains("generations.xml"), "{refused}");
}

#[test]
fn damage_is_seen_wherever_it_is() {
    let whole = archive(Compression::None);
    let begin = whole.windows(15).position(|window| window == b"generations.xml").unwrap();
    // Behind the first zero block of the end nothing is left to be cut off but the second.
    for at in (begin..whole.len() - 512).step_by(509) {
        assert!(read(&whole[..at]).is_err(), "cut at {at}");
        let mut flipped = whole.clone();
        flipped[at] ^= 4;
        assert!(read(&flipped).is_err(), "flipped at {at}");
    }
}
