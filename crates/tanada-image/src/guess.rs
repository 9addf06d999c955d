//! What a stream is that is not what it was said to be, for a refusal that helps.

/// Where it stands, what it is, and what it begins.
const KNOWN: [(usize, &[u8], &str); 10] = [
    (0, b"vhdxfile", "a VHDX image"),
    (0, b"KDMV", "a VMDK image"),
    (0, b"COWD", "a VMDK image"),
    (0, b"# Disk DescriptorFile", "the descriptor of a VMDK image"),
    (64, &[0x7f, 0x10, 0xda, 0xbe], "a VDI image of VirtualBox"),
    (0, b"conectix", "a VHD image"),
    (0, b"QFI\xfb", "a qcow2 image"),
    (0, &[0x1f, 0x8b], "compressed with gzip"),
    (0, &[0x28, 0xb5, 0x2f, 0xfd], "compressed with zstd"),
    (0, &[0xfd, b'7', b'z', b'X', b'Z'], "compressed with xz"),
];

/// Those that hold disks and are no part of any: no disk of a machine begins so.
const CONTAINERS: usize = 5;

/// By its first bytes.
pub fn named(start: &[u8]) -> Option<&'static str> {
    among(&KNOWN, start)
}

/// What cannot be a disk as it is.
pub fn container(start: &[u8]) -> Option<&'static str> {
    among(&KNOWN[..CONTAINERS], start)
}

fn among(known: &[(usize, &[u8], &'static str)], start: &[u8]) -> Option<&'static str> {
    let begins = |at: usize, magic: &[u8]| start.get(at..).is_some_and(|rest| rest.starts_with(magic));
    known.iter().find(|(at, magic, _)| begins(*at, magic)).map(|(_, _, name)| *name)
}
