//! What a virtual machine is made of, and the arguments that make QEMU build it.
//!
//! Disks are **not** on the command line. They are added over QMP while the machine is still in prelaunch, for two
//! reasons: the name of an NBD export, like a CHAP password, is a secret that opens it, and every user of the host can read a command line;
//! and a disk plugged at start and one plugged later go the same way ([`crate::hotplug`]), so there is one shape to
//! recover from. The machine is reset once before it runs, so that the firmware sees the boot order.
//!
//! Shape: q35 with a versioned type (a memory image restores only into the same one), shared memory (vhost-user needs
//! it), [`ROOT_PORTS`] PCIe root ports, one for each disk, everything else fixed on the root bus.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::error::{QemuError, Result};
use crate::process::StateDir;
use crate::source::DiskSource;

/// Slots for disks, hot-pluggable.
pub const ROOT_PORTS: u32 = 16;
/// Id of the agent's port in VSERPORT_CHANGE events.
pub const AGENT_PORT_ID: &str = "agent0";
/// Machine types known to work, by QEMU version; both programs run the older one.
pub const MACHINE_TYPE_DEFAULT: &str = "pc-q35-7.2";
/// Longest name of a machine type that is accepted; QEMU's own have some twenty.
const MACHINE_TYPE_BYTES_MAX: usize = 64;
/// virtio-blk gives the guest this many bytes of serial number.
pub const SERIAL_BYTES_MAX: usize = 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSpec {
    pub uuid: Uuid,
    pub name: String,
    pub memory_bytes: u64,
    pub vcpus: u32,
    /// Versioned, as in [`MACHINE_TYPE_DEFAULT`].
    pub machine_type: String,
    pub boot: Boot,
    pub disks: Vec<DiskSpec>,
    pub nics: Vec<NicSpec>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Boot {
    /// SeaBIOS, from the disk with the lowest boot index.
    Bios,
    /// The kernel is handed over by QEMU; the files are read when QEMU starts and at each reset.
    Kernel { kernel: PathBuf, initrd: Option<PathBuf>, arguments: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// Names the device and its node inside QEMU.
    pub id: Uuid,
    pub source: DiskSource,
    pub read_only: bool,
    /// What the guest sees as the disk's serial number.
    pub serial: String,
    /// 0 boots first; None never boots.
    pub boot_index: Option<u32>,
    /// The wanted slot, below [`ROOT_PORTS`]; the guest names its disks in the order of slots. None takes the lowest free.
    pub slot: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicSpec {
    pub id: Uuid,
    /// Six octets, `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    pub kind: NicKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NicKind {
    /// Address translation inside QEMU: the guest reaches out, nobody reaches in.
    User,
    /// A card on a wire of its own: nobody answers.
    Isolated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    Kvm,
    Tcg,
}

impl MachineSpec {
    /// Refuses what QEMU would refuse later and less clearly.
    pub fn check(&self) -> Result<()> {
        let refuse = |text: String| Err(QemuError::Spec(text));
        if self.memory_bytes < 16 << 20 || !self.memory_bytes.is_multiple_of(1 << 20) {
            return refuse(format!("memory of {} bytes: whole MiB, at least 16 MiB, are accepted", self.memory_bytes));
        }
        if self.vcpus == 0 || self.vcpus > 255 {
            return refuse(format!("{} vcpus: 1 to 255 are accepted", self.vcpus));
        }
        if self.disks.len() > ROOT_PORTS as usize {
            return refuse(format!("{} disks: at most {ROOT_PORTS} are accepted", self.disks.len()));
        }
        check_machine_type(&self.machine_type)?;
        for nic in &self.nics {
            check_mac(&nic.mac)?;
        }
        for disk in &self.disks {
            disk.check()?;
        }
        if let Boot::Kernel { kernel, initrd, .. } = &self.boot {
            for path in std::iter::once(kernel).chain(initrd) {
                if !path.is_file() {
                    return refuse(format!("{}: no such file to boot from", path.display()));
                }
            }
        }
        Ok(())
    }

    /// The whole argument vector, without the program's name. `control_fd` is a listening socket that QEMU inherits.
    pub fn arguments(&self, accelerator: Accelerator, dir: &StateDir, control_fd: i32) -> Vec<String> {
        let mut args = Arguments::default();
        args.flag("-nodefaults").flag("-no-user-config").pair("-display", "none").flag("-S");
        args.pair("-name", format!("guest={},debug-threads=on", escaped(&self.name)));
        args.pair("-uuid", self.uuid.to_string());
        let machine = format!("{},memory-backend=m0,usb=off,vmport=off,smm=off,dump-guest-core=off", self.machine_type);
        args.pair("-machine", machine);
        match accelerator {
            Accelerator::Kvm => args.pair("-accel", "kvm").pair("-cpu", "host"),
            // Five-level page tables only make the emulated page walks longer.
            Accelerator::Tcg => args.pair("-accel", "tcg").pair("-cpu", "max,la57=off"),
        };
        args.pair("-m", format!("size={}M", self.memory_bytes >> 20));
        args.pair("-object", format!("memory-backend-memfd,id=m0,size={},share=on", self.memory_bytes));
        args.pair("-smp", format!("{0},sockets=1,cores={0},threads=1", self.vcpus));
        let smbios = format!("type=1,manufacturer=Tanada,product=Virtual Machine,uuid={0},serial={0}", self.uuid);
        args.pair("-smbios", smbios);
        self.boot_arguments(&mut args);
        channel_arguments(&mut args, dir, control_fd);
        self.device_arguments(&mut args);
        args.pair("-rtc", "base=utc").pair("-msg", "timestamp=on");
        args.pair("-action", "reboot=reset,shutdown=poweroff,panic=pause");
        args.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        args.0
    }

    fn boot_arguments(&self, args: &mut Arguments) {
        args.pair("-boot", "strict=on");
        if let Boot::Kernel { kernel, initrd, arguments } = &self.boot {
            args.pair("-kernel", kernel.display().to_string());
            if let Some(initrd) = initrd {
                args.pair("-initrd", initrd.display().to_string());
            }
            if !arguments.is_empty() {
                args.pair("-append", arguments.as_str());
            }
        }
    }

    fn device_arguments(&self, args: &mut Arguments) {
        args.pair("-object", "iothread,id=io0");
        args.pair("-object", "rng-random,id=rng0,filename=/dev/urandom");
        args.device(json!({ "driver": "virtio-rng-pci", "id": "rng", "rng": "rng0" }));
        args.device(json!({ "driver": "pvpanic-pci", "id": "panic" }));
        for (index, nic) in self.nics.iter().enumerate() {
            let backend = format!("net{index}");
            args.pair(
                "-netdev",
                match nic.kind {
                    NicKind::User => format!("user,id={backend}"),
                    NicKind::Isolated => format!("hubport,id={backend},hubid={index}"),
                },
            );
            // No option ROM: network boot is not offered, and its absence saves a second at every start.
            args.device(json!({ "driver": "virtio-net-pci", "id": nic_id(nic.id), "netdev": backend, "mac": nic.mac, "romfile": "" }));
        }
        for port in 0..ROOT_PORTS {
            let slot = port + 1;
            args.device(json!({ "driver": "pcie-root-port", "id": port_id(port), "bus": "pcie.0", "chassis": slot, "slot": slot }));
        }
    }
}

impl DiskSpec {
    pub(crate) fn check(&self) -> Result<()> {
        if self.serial.len() > SERIAL_BYTES_MAX || !self.serial.bytes().all(|byte| byte.is_ascii_graphic()) {
            let serial = &self.serial;
            let words =
                format!("serial {serial:?}: at most {SERIAL_BYTES_MAX} printable ASCII characters are accepted");
            return Err(QemuError::Spec(words));
        }
        if self.slot.is_some_and(|slot| slot >= ROOT_PORTS) {
            return Err(QemuError::Spec(format!("disk slot {:?}: 0 to {} are accepted", self.slot, ROOT_PORTS - 1)));
        }
        self.source.check()
    }

    /// Arguments of `blockdev-add`, to be tried in turn.
    pub(crate) fn nodes(&self) -> Vec<Value> {
        let mut ways = self.source.ways(self.id);
        for node in &mut ways {
            node["node-name"] = node_id(self.id).into();
            node["read-only"] = self.read_only.into();
            node["discard"] = "unmap".into();
            node["detect-zeroes"] = "off".into();
            node["cache"] = json!({ "direct": true, "no-flush": false });
        }
        ways
    }

    /// Arguments of `device_add`.
    pub(crate) fn device(&self, port: u32) -> Value {
        let mut device = json!({
            "driver": "virtio-blk-pci",
            "id": device_id(self.id),
            "bus": port_id(port),
            "drive": node_id(self.id),
            "iothread": "io0",
            "serial": self.serial,
            // A fault of the storage stops the guest instead of breaking its file systems.
            "werror": "stop",
            "rerror": "stop",
        });
        if let Some(index) = self.boot_index {
            device["bootindex"] = index.into();
        }
        device
    }
}

/// Sockets, serial port and agent port: everything through which others talk to the machine.
fn channel_arguments(args: &mut Arguments, dir: &StateDir, control_fd: i32) {
    let listen = |id: &str, path: &Path| {
        format!("socket,id={id},path={},server=on,wait=off", escaped(&path.display().to_string()))
    };
    args.pair("-chardev", format!("socket,id=qmp0,fd={control_fd},server=on,wait=off"));
    args.pair("-mon", "chardev=qmp0,mode=control");
    args.pair("-chardev", listen("qmp1", &dir.emergency_socket()));
    args.pair("-mon", "chardev=qmp1,mode=control");
    let log = escaped(&dir.serial_log().display().to_string());
    args.pair("-chardev", format!("{},logfile={log},logappend=on", listen("ser0", &dir.serial_socket())));
    args.pair("-serial", "chardev:ser0");
    args.pair("-chardev", listen("ga0", &dir.agent_socket()));
    args.device(json!({ "driver": "virtio-serial-pci", "id": "vs0" }));
    let port = json!({ "driver": "virtserialport", "bus": "vs0.0", "chardev": "ga0", "name": "org.qemu.guest_agent.0", "id": AGENT_PORT_ID });
    args.device(port);
}

#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn flag(&mut self, name: &str) -> &mut Arguments {
        self.0.push(name.into());
        self
    }

    fn pair(&mut self, name: &str, value: impl Into<String>) -> &mut Arguments {
        self.0.push(name.into());
        self.0.push(value.into());
        self
    }

    fn device(&mut self, device: Value) -> &mut Arguments {
        self.pair("-device", device.to_string())
    }
}

/// In QEMU's comma lists a comma in a value is written twice.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

pub(crate) fn port_id(port: u32) -> String {
    format!("rp{port}")
}

pub(crate) fn device_id(disk: Uuid) -> String {
    format!("disk-{disk}")
}

pub(crate) fn nic_id(nic: Uuid) -> String {
    format!("nic-{nic}")
}

/// Node names have 31 characters at most and begin with a letter: 30 hexadecimal digits of the id.
pub(crate) fn node_id(disk: Uuid) -> String {
    let digits = disk.simple().to_string();
    format!("n{}", &digits[..30])
}

/// Unix socket addresses hold 107 bytes.
pub(crate) fn check_socket_path(path: &Path) -> Result<()> {
    let length = path.as_os_str().len();
    if length > 107 {
        let words = format!(
            "socket path {} has {length} bytes: at most 107 are accepted; use a shorter run directory",
            path.display()
        );
        return Err(QemuError::Spec(words));
    }
    Ok(())
}

/// A type comes from records and memory images, which may be anybody's: behind a comma it would be options of QEMU's own,
/// with which a machine names files of the host.
fn check_machine_type(name: &str) -> Result<()> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if (1..=MACHINE_TYPE_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_plain) {
        return Ok(());
    }
    let shown: String = name.chars().take(MACHINE_TYPE_BYTES_MAX).collect();
    Err(QemuError::Spec(format!("machine type {shown:?}: a name such as {MACHINE_TYPE_DEFAULT} is accepted")))
}

fn check_mac(mac: &str) -> Result<()> {
    let octets: Vec<&str> = mac.split(':').collect();
    let is_octet = |octet: &&str| octet.len() == 2 && octet.bytes().all(|byte| byte.is_ascii_hexdigit());
    let first = octets.first().and_then(|octet| u8::from_str_radix(octet, 16).ok()).unwrap_or(1);
    if octets.len() == 6 && octets.iter().all(is_octet) && first & 1 == 0 {
        return Ok(());
    }
    Err(QemuError::Spec(format!("MAC {mac:?}: six unicast octets aa:bb:cc:dd:ee:ff are accepted")))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use uuid::Uuid;

    use super::{Accelerator, Boot, DiskSpec, MACHINE_TYPE_DEFAULT, MachineSpec, NicKind, NicSpec, node_id};
    use crate::process::StateDir;
    use crate::source::DiskSource;

    fn spec() -> MachineSpec {
        MachineSpec {
            uuid: Uuid::max(),
            name: "a, b".into(),
            memory_bytes: 256 << 20,
            vcpus: 2,
            machine_type: MACHINE_TYPE_DEFAULT.into(),
            boot: Boot::Bios,
            disks: vec![DiskSpec {
                id: Uuid::max(),
                source: DiskSource::Nbd { socket: "/run/x/nbd.sock".into(), export: "very-secret".into() },
                read_only: false,
                serial: "s".into(),
                boot_index: Some(0),
                slot: None,
            }],
            nics: vec![NicSpec { id: Uuid::nil(), mac: "52:54:00:12:34:56".into(), kind: NicKind::User }],
        }
    }

    #[test]
    fn no_secret_is_on_the_command_line() {
        let line = spec().arguments(Accelerator::Tcg, &StateDir::new(Path::new("/run/x")), 3).join(" ");
        assert!(!line.contains("very-secret"), "{line}");
        assert!(line.contains("guest=a,, b,"), "{line}");
        assert!(line.contains(&format!("uuid={}", Uuid::max())), "{line}");
    }

    #[test]
    fn what_qemu_would_refuse_is_refused_first() {
        assert!(spec().check().is_ok());
        let broken: [fn(&mut MachineSpec); 8] = [
            |spec| spec.machine_type = "pc-q35-7.2,kernel=/etc/shadow".into(),
            |spec| spec.machine_type.clear(),
            |spec| spec.memory_bytes = (64 << 20) + 1,
            |spec| spec.vcpus = 0,
            |spec| spec.nics[0].mac = "01:00:5e:00:00:01".into(),
            |spec| spec.disks[0].serial = "x".repeat(21),
            |spec| {
                spec.disks[0].source =
                    DiskSource::Nbd { socket: format!("/{}", "y".repeat(120)).into(), export: String::new() }
            },
            |spec| {
                spec.boot = Boot::Kernel { kernel: "/no/such/kernel".into(), initrd: None, arguments: String::new() }
            },
        ];
        for (index, breaks) in broken.iter().enumerate() {
            let mut spec = spec();
            breaks(&mut spec);
            assert!(spec.check().is_err(), "case {index} was accepted");
        }
    }

    #[test]
    fn node_names_fit() {
        assert_eq!(node_id(Uuid::max()).len(), 31);
    }
}
