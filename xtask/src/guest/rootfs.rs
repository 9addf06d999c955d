//! The guest's root file system: busybox as init and tools, the guest agent with its libraries, the witness.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};

use super::packages::Unpacked;
use crate::sh;

const INITTAB: &str = "\
::sysinit:/etc/rc
::respawn:/etc/agent
ttyS0::respawn:-/bin/sh
::shutdown:/etc/down
::ctrlaltdel:/sbin/reboot
";

/// Mounts what is there. A data disk with a file system on it (the second disk) goes to /data.
const RC: &str = "\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts && mount -t devpts pts /dev/pts
mount -t tmpfs run /run && mkdir -p /run/qga
mount -o remount,rw /
hostname guest
ip link set lo up 2>/dev/null
if [ -b /dev/vdb ]; then mount -t ext4 /dev/vdb /data 2>/dev/null; fi
acpid -d -c /etc/acpi >/dev/null 2>&1 &
echo 'tanada-guest: up'
";

/// Without udev nobody makes /dev/virtio-ports: find the agent's port by the name that the kernel knows.
const AGENT: &str = "\
#!/bin/sh
port=
while [ -z \"$port\" ]; do
  for name in /sys/class/virtio-ports/*/name; do
    if [ \"$(cat $name 2>/dev/null)\" = org.qemu.guest_agent.0 ]; then port=/dev/$(basename $(dirname $name)); fi
  done
  if [ -z \"$port\" ]; then sleep 0.1; fi
done
exec /usr/sbin/qemu-ga -m virtio-serial -p $port -t /run/qga -f /run/qga/pid -l /run/qga/log
";

const DOWN: &str = "\
#!/bin/sh
sync
umount /data 2>/dev/null
mount -o remount,ro /
";

/// What the power button runs.
const ACPI_POWER: &str = "#!/bin/sh\nexec poweroff\n";

/// What the guest agent runs; busybox has no shutdown of its own. -r asks for a reboot.
const SHUTDOWN: &str = "\
#!/bin/sh
case \"$*\" in *-r*) exec reboot;; *) exec poweroff;; esac
";

/// Populates `root`.
pub fn make(unpacked: &Unpacked, witness: &Path, root: &Path) -> Result<()> {
    base(&unpacked.agent, root)?;
    copy_program(witness, root, "usr/bin/tanada-witness")?;
    write_executable(&root.join("etc/rc"), RC)?;
    fs::write(
        root.join("etc/os-release"),
        "ID=tanada-guest\nNAME=\"Tanada test guest\"\nPRETTY_NAME=\"Tanada test guest (Debian kernel)\"\nVERSION_ID=1\n",
    )?;
    fs::write(root.join("etc/passwd"), "root::0:0:root:/:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    Ok(())
}

/// What every guest has: busybox as init and tools, the agent, power off by button. What it does at boot, `/etc/rc`, is to be
/// added.
pub fn base(agent: &Path, root: &Path) -> Result<()> {
    for dir in [
        "bin",
        "sbin",
        "usr/bin",
        "usr/sbin",
        "etc/acpi/PWRF",
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "data",
        "mnt",
        "var",
        "lib64",
    ] {
        fs::create_dir_all(root.join(dir))?;
    }
    symlink("../run", root.join("var/run"))?;
    install_busybox(root)?;
    copy_program(agent, root, "usr/sbin/qemu-ga")?;
    copy_libraries(agent, root)?;
    for (name, text) in
        [("etc/inittab", INITTAB), ("etc/agent", AGENT), ("etc/down", DOWN), ("sbin/shutdown", SHUTDOWN)]
    {
        write_executable(&root.join(name), text)?;
    }
    write_executable(&root.join("etc/acpi/PWRF/00000080"), ACPI_POWER)
}

fn install_busybox(root: &Path) -> Result<()> {
    copy_program(Path::new("/bin/busybox"), root, "bin/busybox")?;
    for path in sh::output("/bin/busybox", &["--list-full"])?.lines() {
        let link = root.join(path);
        if path != "bin/busybox" && link.parent().is_some_and(Path::exists) {
            symlink("/bin/busybox", &link).or_else(|error| if link.exists() { Ok(()) } else { Err(error) })?;
        }
    }
    let init = root.join("sbin/init");
    if !init.is_symlink() {
        symlink("/bin/busybox", &init)?;
    }
    Ok(())
}

/// Copies what the dynamic linker would load, at the paths where it looks.
pub fn copy_libraries(program: &Path, root: &Path) -> Result<()> {
    for line in sh::output("ldd", &[program])?.lines() {
        let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
        copy_program(Path::new(path), root, path.trim_start_matches('/'))?;
    }
    Ok(())
}

pub fn copy_program(from: &Path, root: &Path, to: &str) -> Result<()> {
    let to = root.join(to);
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::copy(from, &to).with_context(|| format!("copying {} into the guest", from.display())).map(drop)
}

pub fn write_executable(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(|| format!("marking {}", path.display()))
}
