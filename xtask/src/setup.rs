//! The Debian packages that the demo and the tests need, installed on demand, and the Python client they talk to.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::sh;

/// A file that must be there and the package that brings it.
const NEEDED: &[(&str, &str)] = &[
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/bin/qemu-img", "qemu-utils"),
    ("/usr/bin/qemu-storage-daemon", "qemu-system-common"),
    ("/usr/lib/x86_64-linux-gnu/qemu/block-iscsi.so", "qemu-block-extra"),
    ("/usr/sbin/tgtd", "tgt"),
    ("/usr/bin/iscsi-ls", "libiscsi-bin"),
    ("/usr/share/seabios/bios-256k.bin", "seabios"),
    ("/usr/bin/ssh", "openssh-client"),
    ("/usr/bin/sshpass", "sshpass"),
    ("/usr/bin/fio", "fio"),
    ("/usr/bin/nbdkit", "nbdkit"),
    ("/usr/bin/nbdinfo", "libnbd-bin"),
    ("/usr/bin/nbdcopy", "libnbd-bin"),
    ("/usr/bin/nbdfuse", "libnbd-bin"),
    ("/usr/bin/zstd", "zstd"),
    ("/bin/cpio", "cpio"),
    ("/sbin/modinfo", "kmod"),
    ("/bin/busybox", "busybox-static"),
    ("/sbin/mke2fs", "e2fsprogs"),
    ("/sbin/sfdisk", "fdisk"),
    ("/sbin/mkfs.fat", "dosfstools"),
    ("/usr/bin/mcopy", "mtools"),
    ("/usr/bin/syslinux", "syslinux"),
    ("/usr/lib/syslinux/mbr/mbr.bin", "syslinux-common"),
    ("/usr/lib/x86_64-linux-gnu/libnuma.so.1", "libnuma1"),
    ("/usr/lib/x86_64-linux-gnu/libglib-2.0.so.0", "libglib2.0-0"),
    ("/usr/bin/sqlite3", "sqlite3"),
    ("/usr/lib/python3.11/ensurepip/__init__.py", "python3-venv"),
    ("/usr/bin/python3", "python3"),
    ("/usr/lib/python3/dist-packages/pyvhdi.cpython-311-x86_64-linux-gnu.so", "python3-libvhdi"),
    ("/usr/lib/python3/dist-packages/pyqcow.cpython-311-x86_64-linux-gnu.so", "python3-libqcow"),
    ("/usr/bin/xva-img", "xva-img"),
];

/// Debian builds these from one source: they have to be of one version.
const QEMU_FAMILY: &[&str] = &["qemu-system-x86", "qemu-utils", "qemu-system-common", "qemu-block-extra"];

/// Installs what is missing and says so. Needs root only where something is missing.
pub fn packages() -> Result<()> {
    let mut missing: Vec<&str> =
        NEEDED.iter().filter(|(file, _)| !Path::new(file).exists()).map(|need| need.1).collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        bail!("these Debian packages are missing: {}; install them or run this as root", missing.join(" "));
    }
    println!("installing Debian packages: {}", missing.join(" "));
    sh::output("apt-get", &["update", "-qq"])?;
    let mut wanted: Vec<String> =
        missing.iter().filter(|name| !QEMU_FAMILY.contains(name)).map(ToString::to_string).collect();
    if wanted.len() < missing.len() {
        // A newer qemu-utils (from backports, say) would be torn out or block the rest: name the release for all of them.
        let release = codename()?;
        wanted.extend(QEMU_FAMILY.iter().map(|name| format!("{name}/{release}")));
    }
    let mut args: Vec<String> =
        ["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq"].map(String::from).to_vec();
    args.extend(["--no-install-recommends", "--allow-downgrades"].map(String::from));
    args.extend(wanted);
    sh::output("env", &args).map(drop)
}

/// The Debian release's name, from os-release.
fn codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    line.map(|name| name.trim_matches('"').to_string())
        .context("/etc/os-release names no VERSION_CODENAME; Debian expected")
}

/// A Python with the official XenAPI SDK.
pub fn python() -> Result<PathBuf> {
    Ok(environment("venv", &["XenAPI"], |_| Ok(()))?.join("bin/python"))
}

/// NetApp's own client library for ONTAP with a Python to run it; returns the environment.
pub fn ontap_client() -> Result<PathBuf> {
    environment("venv-netapp-ontap", &["netapp-ontap"], |_| Ok(()))
}

/// What OpenStack Cinder's NetApp driver runs on, in versions that ran with it.
const CINDER_NETAPP_NEEDS: &[&str] = &[
    "eventlet==0.41.3",
    "greenlet==3.5.6",
    "lxml==6.1.3",
    "oslo.concurrency==7.6.1",
    "oslo.config==10.7.0",
    "oslo.log==8.3.2",
    "oslo.serialization==5.11.0",
    "oslo.service==4.8.0",
    "oslo.utils==10.2.0",
    "packaging==26.3",
    "requests==2.34.2",
];

/// Cinder's NetApp driver with a Python to run it; returns the environment, where `files/` has the driver alone.
pub fn cinder_netapp() -> Result<PathBuf> {
    environment("venv-cinder-netapp", CINDER_NETAPP_NEEDS, |venv| {
        unpack_cinder(venv, "29.0.0", &["cinder/volume/configuration.py", "cinder/volume/drivers/netapp/"])
    })
}

/// What the last EqualLogic driver of OpenStack Cinder runs on, in versions that ran with it.
const CINDER_NEEDS: &[&str] = &[
    "paramiko==3.5.1",
    "eventlet==0.41.3",
    "greenlet==3.5.6",
    "oslo.config==10.7.0",
    "oslo.concurrency==7.6.1",
    "oslo.log==8.3.2",
    "oslo.utils==10.2.0",
    "six==1.17.0",
];
/// The files of the driver: `files/` of its environment has nothing else of Cinder.
const CINDER_FILES: &[&str] = &[
    "cinder/ssh_utils.py",
    "cinder/volume/configuration.py",
    "cinder/volume/drivers/san/__init__.py",
    "cinder/volume/drivers/san/san.py",
    "cinder/volume/drivers/dell_emc/ps.py",
];

/// The last EqualLogic driver of OpenStack Cinder with a Python to run it; returns the environment.
pub fn cinder() -> Result<PathBuf> {
    environment("venv-cinder", CINDER_NEEDS, |venv| unpack_cinder(venv, "15.6.0", CINDER_FILES))
}

/// Puts the files of Cinder whose names begin with one of `wanted` under `files/`.
fn unpack_cinder(venv: &Path, version: &str, wanted: &[&str]) -> Result<()> {
    let (python, files) = (venv.join("bin/python").display().to_string(), venv.join("files").display().to_string());
    let pip = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", &files];
    sh::output(&python, &[&pip[..], &[&format!("cinder=={version}")]].concat())?;
    let unpack = "import glob, sys, zipfile; wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + '/cinder-*.whl')[0]); \
                  wheel.extractall(sys.argv[1], [it for it in wheel.namelist() if it.startswith(tuple(sys.argv[2:]))])";
    sh::output(&python, &[&["-c", unpack, &files][..], wanted].concat()).map(drop)
}

/// A Python environment with some packages, made once under the target directory; returns its folder.
fn environment(name: &str, needs: &[&str], more: fn(&Path) -> Result<()>) -> Result<PathBuf> {
    let venv = sh::target_dir().join(name);
    let ready = venv.join("package-installed");
    if !ready.exists() {
        println!("making a Python environment with {}", needs.join(" "));
        sh::output("/usr/bin/python3", &[Path::new("-m"), Path::new("venv"), &venv])?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        sh::output(&venv.join("bin/python").to_string_lossy(), &[&pip[..], needs].concat())?;
        more(&venv)?;
        fs::write(&ready, "").with_context(|| format!("writing {}", ready.display()))?;
    }
    Ok(venv)
}
