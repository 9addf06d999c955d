//! Against QEMU's tools, both ways.

use std::fs;
use std::path::Path;
use std::process::Command;

use tanada_image::{Format, Gaps, Reader, Source};

use super::disk::{MIB, apply, apply_opened, disk, image, source};

fn run(program: &str, args: &[&str], dir: &Path) -> String {
    let output =
        Command::new(program).args(args).current_dir(dir).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn qemu_img(args: &[&str], dir: &Path) -> String {
    run("qemu-img", args, dir)
}

/// Holes, an odd end, a cluster that is half there.
fn sample() -> Vec<u8> {
    disk(
        37 * MIB + 512,
        &[(0, MIB), (5 * MIB + 4096, 6 * MIB), (20 * MIB, 25 * MIB + 65536), (37 * MIB, 37 * MIB + 512)],
    )
}

#[test]
fn qemu_reads_what_we_write() {
    let dir = tempfile::tempdir().unwrap();
    let original = sample();
    fs::write(dir.path().join("disk.raw"), &original).unwrap();
    for (format, theirs) in [(Format::Vhd, "vpc"), (Format::Qcow2, "qcow2")] {
        let name = format!("disk.{}", format.name());
        fs::write(dir.path().join(&name), image(format, &original, None)).unwrap();
        let info = qemu_img(&["info", "--output=json", "-f", theirs, &name], dir.path());
        assert!(info.contains(&format!("\"virtual-size\": {}", original.len())), "{info}");
        let compared = qemu_img(&["compare", "-f", theirs, "-F", "raw", &name, "disk.raw"], dir.path());
        assert!(compared.contains("identical"), "{compared}");
    }
    let checked = qemu_img(&["check", "disk.qcow2"], dir.path());
    assert!(checked.contains("No errors were found"), "{checked}");
    // Another program may go on writing to it.
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 5 30M 1M", "-c", "write -P 6 0 64k", "disk.qcow2"], dir.path());
    assert!(qemu_img(&["check", "disk.qcow2"], dir.path()).contains("No errors"));
}

#[test]
fn qemu_lays_our_delta_over_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let old = sample();
    let mut new = old.clone();
    new[5 * MIB..5 * MIB + 4096].fill(8);
    new[21 * MIB..22 * MIB].fill(0);
    fs::write(dir.path().join("new.raw"), &new).unwrap();
    fs::write(dir.path().join("base.qcow2"), image(Format::Qcow2, &old, None)).unwrap();
    fs::write(dir.path().join("delta.qcow2"), image(Format::Qcow2, &new, Some(&old))).unwrap();
    qemu_img(&["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", "delta.qcow2"], dir.path());
    let compared = qemu_img(&["compare", "-f", "qcow2", "-F", "raw", "delta.qcow2", "new.raw"], dir.path());
    assert!(compared.contains("identical"), "{compared}");
    // With its backing file on record it is still a delta.
    let overlay = fs::read(dir.path().join("delta.qcow2")).unwrap();
    let mut copy = old.clone();
    assert_eq!(apply(Source::Qcow2, &overlay, &mut copy).unwrap(), Gaps::Base);
    assert!(copy == new);
}

/// Every form in which `qemu-img convert` writes these formats.
#[test]
fn we_read_what_qemu_writes() {
    let dir = tempfile::tempdir().unwrap();
    let original = sample();
    fs::write(dir.path().join("disk.raw"), &original).unwrap();
    let forms: [(&str, &str, &[&str]); 14] = [
        ("vpc", "subformat=dynamic,force_size=on", &[]),
        ("vpc", "subformat=fixed,force_size=on", &[]),
        ("qcow2", "cluster_size=64k", &[]),
        ("qcow2", "cluster_size=2M,lazy_refcounts=on", &[]),
        ("qcow2", "cluster_size=512", &[]),
        ("qcow2", "compat=0.10", &[]),
        ("qcow2", "compression_type=zlib", &["-c"]),
        ("qcow2", "compression_type=zstd", &["-c"]),
        ("qcow2", "cluster_size=512", &["-c"]),
        ("qcow2", "cluster_size=2M,compression_type=zstd", &["-c"]),
        ("qcow2", "cluster_size=4k,refcount_bits=1", &[]),
        ("qcow2", "refcount_bits=64,compat=1.1", &[]),
        ("qcow2", "preallocation=metadata", &[]),
        ("qcow2", "compat=0.10,cluster_size=1k", &["-c"]),
    ];
    for (format, options, extra) in forms {
        let mut args = vec!["convert", "-f", "raw", "-O", format, "-o", options];
        args.extend(extra);
        args.extend(["disk.raw", "theirs"]);
        qemu_img(&args, dir.path());
        let theirs = fs::read(dir.path().join("theirs")).unwrap();
        let source = if format == "vpc" { Source::Vhd } else { Source::Qcow2 };
        let mut copy = vec![0; original.len()];
        apply(source, &theirs, &mut copy).unwrap_or_else(|error| panic!("{format} {options}: {error}"));
        assert!(copy == original, "{format} {options}");
    }
}

/// What we do not read is refused before anything of it reaches a disk, and says what it is.
#[test]
fn what_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("disk.raw"), disk(3 * MIB, &[(0, MIB)])).unwrap();
    // LUKS would first measure how fast the machine is, and fails where that is busy.
    let aes = "encrypt.format=aes,encrypt.key-secret=key";
    let forms: [(Source, &str, &str, &str); 11] = [
        (Source::Qcow2, "qcow2", "extended_l2=on", "extended L2 entries"),
        (Source::Qcow2, "qcow2", "data_file=data.raw", "another file"),
        (Source::Qcow2, "qcow2", aes, "encrypted"),
        (Source::Qcow2, "qcow", "", "version 1"),
        (Source::Qcow2, "vpc", "", "a VHD image"),
        (Source::Qcow2, "vhdx", "", "a VHDX image"),
        (Source::Qcow2, "vmdk", "", "a VMDK image"),
        (Source::Qcow2, "vdi", "", "a VDI image"),
        (Source::Vhd, "vhdx", "", "a VHDX image"),
        (Source::Vhd, "vmdk", "subformat=streamOptimized", "a VMDK image"),
        (Source::Vhd, "vdi", "", "a VDI image"),
    ];
    for (source, format, options, words) in forms {
        let mut args = vec!["convert", "--object", "secret,id=key,data=secret", "-f", "raw", "-O", format];
        args.extend(["-o", options].iter().filter(|_| !options.is_empty()));
        qemu_img(&[&args[..], &["disk.raw", "theirs"]].concat(), dir.path());
        let theirs = fs::read(dir.path().join("theirs")).unwrap();
        let refusal = Reader::open(source, &theirs[..], None).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refusal.contains(words), "{format} {options}: {refusal}");
    }
}

/// Written to in any order, with zeroed clusters, a snapshot inside, and discards.
#[test]
fn we_read_what_a_machine_left_in_a_qcow2_file() {
    let dir = tempfile::tempdir().unwrap();
    qemu_img(&["create", "-f", "qcow2", "disk.qcow2", "520M"], dir.path());
    let writes =
        ["write -P 1 516M 3M", "write -P 2 300M 1M", "write -P 3 0 5M", "write -z 1M 2M", "write -P 4 301M 64k"];
    for write in writes {
        run("qemu-io", &["-f", "qcow2", "-c", write, "disk.qcow2"], dir.path());
    }
    qemu_img(&["snapshot", "-c", "inside", "disk.qcow2"], dir.path());
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 5 2M 64k", "-c", "discard 517M 1M", "disk.qcow2"], dir.path());
    qemu_img(&["convert", "-O", "raw", "disk.qcow2", "disk.raw"], dir.path());
    let image = fs::read(dir.path().join("disk.qcow2")).unwrap();
    let mut copy = vec![0; 520 * MIB];
    let reader = Reader::open(Source::Qcow2, &image[..], None).unwrap();
    let read = apply_opened(reader, &mut copy);
    // A snapshot moves the first table behind the data: that is no stream, and says what to do.
    let error = read.expect_err("the table in use lies behind its clusters").to_string();
    assert!(error.contains("qemu-img convert"), "{error}");

    qemu_img(&["convert", "-O", "qcow2", "disk.qcow2", "again.qcow2"], dir.path());
    let again = fs::read(dir.path().join("again.qcow2")).unwrap();
    copy.fill(0);
    apply(source(Format::Qcow2, 0), &again, &mut copy).unwrap();
    assert!(copy == fs::read(dir.path().join("disk.raw")).unwrap());
}
