//! What others see of an export: QEMU, libnbd, fio.

use std::process::Command as Process;

use serde_json::Value;
use tanada_blockd_api::{Answer, Command, CutPair, ExtentKind};
use uuid::Uuid;

use crate::support::{MIB, Plane, fail, succeed, text};

fn qemu_io(uri: &str, commands: &[&str]) -> String {
    let mut process = Process::new("qemu-io");
    process.args(["-f", "raw", uri]);
    for command in commands {
        process.args(["-c", command]);
    }
    // A failed verification is told in words only.
    let told = text(&succeed(&mut process));
    assert!(!told.contains("failed") && !told.contains("rror"), "{told}");
    told
}

/// (offset, length, type) of every extent.
fn map(uri: &str, context: &str) -> Vec<(u64, u64, u64)> {
    let output = succeed(Process::new("nbdinfo").args([&format!("--map={context}"), "--json", uri]));
    let extents: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let number = |extent: &Value, name: &str| extent[name].as_u64().unwrap();
    extents.iter().map(|extent| (number(extent, "offset"), number(extent, "length"), number(extent, "type"))).collect()
}

/// An image of 32 MiB with holes, content without pattern, and a run of zeros that is not a hole.
fn image() -> Vec<u8> {
    let mut image = vec![0; 32 * MIB as usize];
    let mut state = 1u64;
    for (at, byte) in image.iter_mut().enumerate() {
        if (at >> 20) % 3 == 0 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 56) as u8;
        }
    }
    image[5 * MIB as usize + 123] = 7;
    image
}

#[test]
fn qemu_writes_and_reads_at_any_offset() {
    let plane = Plane::start(256 * MIB);
    plane.volume("disk", 64 * MIB + 4096);
    let uri = plane.uri("disk");
    qemu_io(
        &uri,
        &[
            "write -P 0xab 0 1M",
            "write -P 0x11 512 1024",
            "aio_write -P 0x22 3 777",
            "aio_write -P 0x33 9000 20000",
            "aio_flush",
            "read -P 0x22 3 509",
            "read -P 0xab 1536 7464",
            "read -P 0x33 9000 20000",
            "write -f -P 1 2M 4k",
            "write -z 2M 1k",
            "read -P 0 2M 1k",
            "read -P 1 2098176 3k",
            "write -P 5 64M 4k",
            "flush",
        ],
    );
    qemu_io(&uri, &["read -P 0xab 32k 900k", "read -P 5 64M 4k", "read -P 0 60M 4M", "read -P 0 3M 5M"]);
    let told = fail(Process::new("qemu-io").args(["-f", "raw", "-c", "read 64M 8k", &uri]));
    assert!(told.contains("rror") || told.contains("beyond") || told.contains("past"), "{told}");
}

#[test]
fn images_copied_in_and_out_are_the_same() {
    let plane = Plane::start(512 * MIB);
    let image = image();
    let path = plane.file("image");
    std::fs::write(&path, &image).unwrap();
    let path = path.to_str().unwrap();
    for (token, by_qemu) in [("one", true), ("two", false)] {
        plane.volume(token, image.len() as u64);
        let uri = plane.uri(token);
        if by_qemu {
            succeed(Process::new("qemu-img").args(["convert", "-n", "-f", "raw", "-O", "raw", path, &uri]));
        } else {
            succeed(Process::new("nbdcopy").args(["--flush", path, &uri]));
        }
        succeed(Process::new("qemu-img").args(["compare", "-f", "raw", "-F", "raw", path, &uri]));
        let back = plane.file("back");
        succeed(Process::new("nbdcopy").args([&uri, back.to_str().unwrap()]));
        assert!(std::fs::read(&back).unwrap() == image, "{token} differs after nbdcopy");
        std::fs::remove_file(&back).unwrap();
    }
    let mapped: u64 =
        map(&plane.uri("one"), "base:allocation").iter().filter(|extent| extent.2 == 0).map(|e| e.1).sum();
    assert!((11 * MIB..=12 * MIB).contains(&mapped), "{mapped} bytes are mapped, 11 of the 32 MiB have content");
}

#[test]
fn fio_reads_back_what_it_wrote() {
    let plane = Plane::start(512 * MIB);
    plane.volume("disk", 96 * MIB);
    let uri = plane.uri("disk");
    for (sizes, mode) in [("4k-128k", "randwrite"), ("512-9k", "randwrite"), ("64k-1m", "write")] {
        let mut fio = Process::new("fio");
        fio.args([
            "--name=verify",
            "--ioengine=nbd",
            "--iodepth=32",
            "--size=24m",
            "--verify=crc32c",
            "--verify_state_save=0",
        ]);
        fio.args(["--randrepeat=0", "--verify_fatal=1", "--numjobs=2", "--offset_increment=48m", "--fsync=64"]);
        fio.args([&format!("--uri={uri}"), &format!("--bsrange={sizes}"), &format!("--rw={mode}")]);
        succeed(&mut fio);
    }
}

#[test]
fn trimmed_and_zeroed_space_is_a_hole() {
    let plane = Plane::start(256 * MIB);
    plane.volume("disk", 16 * MIB);
    let uri = plane.uri("disk");
    assert_eq!(map(&uri, "base:allocation"), [(0, 16 * MIB, 3)]);
    qemu_io(&uri, &["write -P 1 0 8M", "discard 1M 1M", "write -z -u 3M 1M", "write -P 0 5M 1M"]);
    let holes =
        [(0, MIB, 0), (MIB, MIB, 3), (2 * MIB, MIB, 0), (3 * MIB, MIB, 3), (4 * MIB, MIB, 0), (5 * MIB, MIB, 3)];
    let rest = [(6 * MIB, 2 * MIB, 0), (8 * MIB, 8 * MIB, 3)];
    assert_eq!(map(&uri, "base:allocation"), [&holes[..], &rest[..]].concat());
    qemu_io(&uri, &["read -P 0 1M 1M", "read -P 0 3M 1M", "read -P 0 5M 1M", "read -P 1 6M 2M"]);
}

#[test]
fn a_generation_stays_and_its_differences_are_told() {
    let plane = Plane::start(256 * MIB);
    let volume = plane.volume("disk", 64 * MIB);
    let generation = Uuid::new_v4();
    let mut control = plane.control();
    qemu_io(&plane.uri("disk"), &["write -P 1 0 32M"]);
    control.change(Command::Snapshot { group: vec![CutPair { volume, generation }] });
    control.change(Command::Attach { token: "kept".to_owned(), target: generation, writable: false });
    qemu_io(&plane.uri("disk"), &["write -P 2 4M 1M", "discard 8M 64k", "write -P 3 40M 4k"]);
    let kept = plane.uri("kept");
    succeed(Process::new("qemu-io").args([
        "-r",
        "-f",
        "raw",
        "-c",
        "read -P 1 0 32M",
        "-c",
        "read -P 0 32M 32M",
        &kept,
    ]));
    fail(Process::new("qemu-io").args(["-f", "raw", "-c", "write 0 4k", &kept]));

    let told = map(&plane.uri("disk"), &format!("qemu:dirty-bitmap:{generation}"));
    let dirty: Vec<_> =
        told.into_iter().filter(|extent| extent.2 == 1).map(|(offset, length, _)| (offset, length)).collect();
    assert_eq!(dirty, [(4 * MIB, MIB), (8 * MIB, 64 << 10), (40 * MIB, 4096)]);
    let mut found = Vec::new();
    let mut offset = Some(0);
    while let Some(from) = offset {
        let ask = Command::Difference { from: generation, to: volume, offset: from, extents_max: 1 };
        let Ok(Answer::Extents { extents, next_offset }) = control.call(ask) else { panic!("no extents") };
        found.extend(extents.into_iter().map(|extent| (extent.offset, extent.length, extent.kind)));
        offset = next_offset;
    }
    let (data, hole) = (ExtentKind::Data, ExtentKind::Hole);
    assert_eq!(found, [(4 * MIB, MIB, data), (8 * MIB, 64 << 10, hole), (40 * MIB, 4096, data)]);
    fail(Process::new("nbdinfo").args([&format!("--map=qemu:dirty-bitmap:{}", Uuid::new_v4()), &plane.uri("disk")]));
}

#[test]
fn exports_are_found_by_token_only() {
    let plane = Plane::start(256 * MIB);
    plane.volume("disk", MIB + 4096);
    let told = text(&succeed(Process::new("nbdinfo").args(["--json", &plane.uri("disk")])));
    let told: Value = serde_json::from_str(&told).unwrap();
    let export = &told["exports"][0];
    assert_eq!(export["export-size"], MIB + 4096);
    for ability in ["can_fua", "can_flush", "can_trim", "can_zero", "can_multi_conn", "can_df"] {
        assert_eq!(export[ability], true, "{ability}");
    }
    fail(Process::new("nbdinfo").arg(plane.uri("another")));
    fail(Process::new("nbdinfo").args(["--list", &plane.uri("")]));
}
