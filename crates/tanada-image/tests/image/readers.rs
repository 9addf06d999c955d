//! Ours, read by libvhdi and libqcow: neither has a line of QEMU's in it.

use std::fs;
use std::path::Path;
use std::process::Command;

use tanada_image::Format;

use super::disk::{MIB, base_vhd, disk, image};

/// `SCRIPT module image [parent]`: the disk in `image` goes to `read.raw`.
const SCRIPT: &str = "
import importlib, sys
module, names = importlib.import_module(sys.argv[1]), sys.argv[2:]
files = [module.file() for _ in names]
for file, name in zip(files, names):
    file.open(name)
for child, parent in zip(files, files[1:]):
    child.set_parent(parent)
left = files[0].get_media_size()
with open('read.raw', 'wb') as out:
    while left:
        part = files[0].read_buffer(min(left, 1 << 20))
        assert part, left
        out.write(part)
        left -= len(part)
";

fn read(dir: &Path, module: &str, names: &[&str]) -> Vec<u8> {
    let output =
        Command::new("/usr/bin/python3").args(["-c", SCRIPT, module]).args(names).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{module} {names:?}: {}", String::from_utf8_lossy(&output.stderr));
    fs::read(dir.join("read.raw")).unwrap()
}

#[test]
fn other_libraries_read_what_we_write() {
    let dir = tempfile::tempdir().unwrap();
    let old = disk(9 * MIB + 512, &[(0, 4096), (3 * MIB + 512, 5 * MIB), (9 * MIB, 9 * MIB + 512)]);
    let mut new = old.clone();
    new[3 * MIB..4 * MIB].fill(0);
    new[7 * MIB..7 * MIB + 512].fill(5);
    // The delta says that its parent is this file beside it.
    fs::write(dir.path().join("base.vhd"), base_vhd(&old)).unwrap();
    fs::write(dir.path().join("delta.vhd"), image(Format::Vhd, &new, Some(&old))).unwrap();
    fs::write(dir.path().join("base.qcow2"), image(Format::Qcow2, &old, None)).unwrap();
    assert!(read(dir.path(), "pyvhdi", &["base.vhd"]) == old);
    assert!(read(dir.path(), "pyvhdi", &["delta.vhd", "base.vhd"]) == new);
    assert!(read(dir.path(), "pyqcow", &["base.qcow2"]) == old);
}
