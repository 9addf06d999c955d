//! A VM's records as the description of a machine.

use std::sync::Arc;

use tanada_driver::Endpoint;
use tanada_qemu::machine::{
    Boot, DiskSpec, MACHINE_TYPE_DEFAULT, MachineSpec, NicKind, NicSpec, ROOT_PORTS, SERIAL_BYTES_MAX,
};
use tanada_qemu::source::{ChapLogin, DiskSource, Lun};
use tanada_xapi::{ApiError, ApiResult, Ref};
use uuid::Uuid;

use super::host::Host;
use crate::db::{Record, View};

/// Where `VM.platform` keeps the versioned machine type, so that a VM keeps its hardware when QEMU is upgraded.
pub const MACHINE_TYPE_KEY: &str = "machine-type";
/// `network.other_config` says `true` here for a wire without a way out.
const ISOLATED_KEY: &str = "tanada:isolated";

/// A VBD with a disk behind it.
#[derive(Debug, Clone)]
pub struct DiskRecord {
    pub vbd: Ref,
    pub id: Uuid,
    pub vdi: Ref,
    pub writable: bool,
    /// The device number, which is the slot as long as there is one.
    pub number: Option<u32>,
    /// The device number as the record has it.
    pub userdevice: String,
    bootable: bool,
    /// The beginning of the VDI's uuid: what fits, and what a person recognises.
    serial: String,
}

impl DiskRecord {
    pub fn new(view: &impl View, vbd: &Record) -> ApiResult<DiskRecord> {
        let vdi = view.get("VDI", &vbd.reference("VDI"))?;
        Ok(DiskRecord {
            vbd: vbd.id().clone(),
            id: parse_uuid("VBD", vbd)?,
            vdi: vdi.id().clone(),
            writable: vbd.str("mode") == "RW" && vbd.str("type") == "Disk",
            number: vbd.str("userdevice").parse().ok(),
            userdevice: vbd.str("userdevice").to_owned(),
            bootable: vbd.bool("bootable"),
            serial: vdi.uuid().chars().take(SERIAL_BYTES_MAX).collect(),
        })
    }

    /// The disk as QEMU is told of it.
    pub fn spec(&self, endpoint: Endpoint, boot_index: Option<u32>) -> DiskSpec {
        DiskSpec {
            id: self.id,
            source: source(endpoint),
            read_only: !self.writable,
            serial: self.serial.clone(),
            boot_index,
            slot: self.number.filter(|number| *number < ROOT_PORTS),
        }
    }
}

fn source(endpoint: Endpoint) -> DiskSource {
    match endpoint {
        Endpoint::NbdUnix { socket, export } => DiskSource::Nbd { socket, export },
        Endpoint::Iscsi { portals, iqn, lun, initiator, chap } => {
            let chap = chap.map(|chap| ChapLogin { user: chap.user, secret: chap.secret.expose().to_owned() });
            DiskSource::Iscsi(Lun { portals, iqn, number: lun, initiator, chap })
        }
    }
}

/// Everything about a VM that its machine is built from, looked up at one moment.
pub struct VmRecords {
    pub vm: Arc<Record>,
    pub uuid: Uuid,
    /// In the order in which the guest is to see them.
    pub disks: Vec<DiskRecord>,
    pub vifs: Vec<Ref>,
    nics: Vec<NicSpec>,
}

impl VmRecords {
    pub fn look_up(view: &impl View, vm: &Ref) -> ApiResult<VmRecords> {
        let vm = view.get("VM", vm)?;
        let vbds = view.resolve("VBD", &vm.refs("VBDs"));
        let filled = vbds.iter().filter(|vbd| !vbd.bool("empty") && vbd.str("type") != "Floppy");
        let mut disks = filled.map(|vbd| DiskRecord::new(view, vbd)).collect::<ApiResult<Vec<_>>>()?;
        disks.sort_by_key(|disk| disk.number.unwrap_or(u32::MAX));
        let mut vifs = view.resolve("VIF", &vm.refs("VIFs"));
        vifs.sort_by_key(|vif| vif.str("device").parse().unwrap_or(u32::MAX));
        let nics = vifs.iter().map(|vif| nic(view, vif)).collect::<ApiResult<Vec<_>>>()?;
        let vifs = vifs.iter().map(|vif| vif.id().clone()).collect();
        Ok(VmRecords { uuid: parse_uuid("VM", &vm)?, vm, disks, vifs, nics })
    }

    /// Addresses of the network cards that the running machine has, in their order.
    pub fn attached_macs(&self, view: &impl View) -> Vec<String> {
        let mut vifs = view.resolve("VIF", &self.vifs);
        vifs.retain(|vif| vif.bool("currently_attached"));
        vifs.iter().map(|vif| vif.str("MAC").to_owned()).collect()
    }

    /// Boot order: disks marked bootable first, then by device number.
    pub fn boot_index(&self, disk: &DiskRecord) -> Option<u32> {
        let mut order: Vec<&DiskRecord> = self.disks.iter().collect();
        order.sort_by_key(|disk| (!disk.bootable, disk.number.unwrap_or(u32::MAX)));
        let place = order.iter().position(|other| other.id == disk.id)?;
        u32::try_from(place).ok()
    }

    /// The machine, with disks reached as given.
    pub fn machine(&self, host: &Host, disks: Vec<DiskSpec>) -> ApiResult<MachineSpec> {
        Ok(MachineSpec {
            uuid: self.uuid,
            name: self.vm.str("name_label").to_owned(),
            memory_bytes: self.memory_bytes()?,
            vcpus: self.vcpus()?,
            machine_type: self.machine_type(),
            boot: self.boot(host)?,
            disks,
            nics: self.nics.clone(),
        })
    }

    /// Whole MiB, rounded down.
    pub fn memory_bytes(&self) -> ApiResult<u64> {
        let wanted = match self.vm.int("memory_dynamic_max") {
            0 => self.vm.int("memory_static_max"),
            bytes => bytes,
        };
        let bytes = u64::try_from(wanted).unwrap_or(0) & !((1 << 20) - 1);
        if bytes < 16 << 20 { Err(ApiError::vm_memory_size_too_low(self.vm.id())) } else { Ok(bytes) }
    }

    pub fn vcpus(&self) -> ApiResult<u32> {
        match u32::try_from(self.vm.int("VCPUs_at_startup")) {
            Ok(0) | Err(_) => Err(ApiError::vm_no_vcpus(self.vm.id())),
            Ok(count) if count > 255 => Err(ApiError::vm_too_many_vcpus(self.vm.id())),
            Ok(count) => Ok(count),
        }
    }

    pub fn machine_type(&self) -> String {
        self.vm.entry("platform", MACHINE_TYPE_KEY).unwrap_or(MACHINE_TYPE_DEFAULT).to_owned()
    }

    fn boot(&self, host: &Host) -> ApiResult<Boot> {
        let kernel = self.vm.str("PV_kernel");
        if kernel.is_empty() {
            return Ok(Boot::Bios);
        }
        let initrd = match self.vm.str("PV_ramdisk") {
            "" => None,
            path => Some(host.boot_file(path)?),
        };
        Ok(Boot::Kernel { kernel: host.boot_file(kernel)?, initrd, arguments: self.vm.str("PV_args").to_owned() })
    }
}

fn nic(view: &impl View, vif: &Record) -> ApiResult<NicSpec> {
    let network = view.find("network", &vif.reference("network"));
    let isolated = network.is_none_or(|network| network.entry("other_config", ISOLATED_KEY) == Some("true"));
    let kind = if isolated { NicKind::Isolated } else { NicKind::User };
    Ok(NicSpec { id: parse_uuid("VIF", vif)?, mac: vif.str("MAC").to_owned(), kind })
}

fn parse_uuid(class: &str, record: &Record) -> ApiResult<Uuid> {
    Uuid::parse_str(record.uuid()).map_err(|_| ApiError::uuid_invalid(class, record.uuid()))
}
