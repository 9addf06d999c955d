//! What the machine of an image was, and whether this host can be that machine again.
//!
//! A guest goes on in the middle of an instruction: everything that it could have noticed has to be as it was. The type
//! of the machine and of its processor, memory and number of processors have to be equal; disks and network cards have
//! to sit where they sat. What is behind a disk may be another (a clone of it, after a revert).

use std::collections::HashSet;
use std::fs;

use serde::{Deserialize, Serialize};
use tanada_qemu::launch::HostSettings;
use tanada_qemu::machine::{Accelerator, MachineSpec};
use tanada_qemu::memory as qemu;
use tanada_qemu::qmp::Version;
use tanada_xapi::{ApiError, ApiResult, Ref};

use crate::context::Daemon;
use crate::db::View;
use crate::vmm::Running;
use crate::vmm::description::{DiskRecord, VmRecords};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    pub machine_type: String,
    pub memory_bytes: u64,
    pub vcpus: u32,
    pub accelerator: Accelerator,
    /// The host's processor where the guest sees it; empty under emulation.
    pub processor: String,
    /// QEMU's version: an older one may not understand the stream.
    pub qemu: (u64, u64, u64),
    /// In the order of slots.
    pub disks: Vec<Seat>,
    /// Addresses of the network cards in their order.
    pub macs: Vec<String>,
}

/// A disk at its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// The VBD's `userdevice`, by which its place is found again.
    pub userdevice: String,
    /// The name in the guest.
    pub device: String,
    pub slot: u32,
    pub serial: String,
}

impl Hardware {
    /// The machine that runs now.
    pub async fn of(daemon: &Daemon, machine: &Running) -> ApiResult<Hardware> {
        let settings = daemon.vmm.host.settings().await?;
        let qmp = machine.qmp();
        let built = qemu::built(&qmp).await.map_err(ApiError::internal)?;
        let plugged = qemu::plugged(&qmp).await.map_err(ApiError::internal)?;
        let Version { major, minor, micro } = qmp.version();
        daemon.db.read(|state| {
            let records = VmRecords::look_up(state, &machine.vm)?;
            let seat = |disk: &qemu::Plugged| {
                let vbd = state.by_uuid("VBD", &disk.id.to_string())?;
                let (userdevice, device) = (vbd.str("userdevice").to_owned(), vbd.str("device").to_owned());
                Ok::<_, ApiError>(Seat { userdevice, device, slot: disk.slot, serial: disk.serial.clone() })
            };
            Ok(Hardware {
                machine_type: built.machine_type,
                memory_bytes: built.memory_bytes,
                vcpus: built.vcpus,
                accelerator: settings.accelerator,
                processor: processor(settings.accelerator),
                qemu: (major, minor, micro),
                disks: plugged.iter().map(seat).collect::<ApiResult<_>>()?,
                macs: records.attached_macs(state),
            })
        })
    }

    /// Can this host be that machine? `VM_INCOMPATIBLE_WITH_THIS_HOST` with what differs.
    pub fn check_host(&self, host: &HostSettings, vm: &Ref, here: &Ref) -> ApiResult<()> {
        let differs = |words: String| Err(incompatible(vm, here, words));
        if self.accelerator != host.accelerator {
            let (then, now) = (self.accelerator, host.accelerator);
            return differs(format!("the memory image was made under {then:?}, machines here run under {now:?}"));
        }
        let now = processor(host.accelerator);
        if self.processor != now {
            return differs(format!("the memory image was made on {:?}, this host has {now:?}", self.processor));
        }
        Ok(())
    }

    /// Can this QEMU read the stream?
    pub fn check_qemu(&self, found: Version, vm: &Ref, here: &Ref) -> ApiResult<()> {
        let now = (found.major, found.minor, found.micro);
        // Fixes within a release keep the stream.
        if (now.0, now.1) < (self.qemu.0, self.qemu.1) {
            let words = format!("the memory image was made by QEMU {:?}, this host has {now:?}", self.qemu);
            return Err(incompatible(vm, here, words));
        }
        Ok(())
    }

    /// Turns the description of the VM as its records have it into that of the machine that was.
    pub fn apply(&self, spec: &mut MachineSpec, vm: &Ref, here: &Ref) -> ApiResult<()> {
        let mut nics = Vec::with_capacity(self.macs.len());
        for mac in &self.macs {
            let same = spec.nics.iter().find(|nic| nic.mac.eq_ignore_ascii_case(mac));
            let missing = || incompatible(vm, here, format!("the VM has no network card {mac} any more"));
            nics.push(same.cloned().ok_or_else(missing)?);
        }
        spec.nics = nics;
        spec.machine_type.clone_from(&self.machine_type);
        spec.memory_bytes = self.memory_bytes;
        spec.vcpus = self.vcpus;
        Ok(())
    }

    /// The disks of the VM at the seats of the image. A seat without a disk is refused, and two for one disk, which would
    /// then have two writers.
    pub fn seats<'a>(&'a self, records: &'a VmRecords, here: &Ref) -> ApiResult<Vec<(&'a Seat, &'a DiskRecord)>> {
        if let Some(twice) = self.twice() {
            let words = format!("the memory image knows disk {twice} twice");
            return Err(incompatible(records.vm.id(), here, words));
        }
        let find = |seat: &'a Seat| {
            let disk = records.disks.iter().find(|disk| disk.userdevice == seat.userdevice);
            let words = || format!("the VM has no disk {} any more, which its memory knows", seat.userdevice);
            disk.map(|disk| (seat, disk)).ok_or_else(|| incompatible(records.vm.id(), here, words()))
        };
        self.disks.iter().map(find).collect()
    }
}

impl Hardware {
    /// A disk that has two seats.
    fn twice(&self) -> Option<&str> {
        let mut seen = HashSet::new();
        self.disks.iter().map(|seat| seat.userdevice.as_str()).find(|device| !seen.insert(*device))
    }
}

fn incompatible(vm: &Ref, host: &Ref, reason: String) -> ApiError {
    ApiError::new("VM_INCOMPATIBLE_WITH_THIS_HOST", vec![vm.to_string(), host.to_string(), reason])
}

/// The processor that a guest sees.
fn processor(accelerator: Accelerator) -> String {
    if accelerator == Accelerator::Tcg {
        return String::new();
    }
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map(|(_, name)| name.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
pub mod tests {
    use tanada_qemu::machine::Accelerator;

    use super::{Hardware, Seat};

    pub fn hardware() -> Hardware {
        let seat = |number: u32| Seat {
            userdevice: number.to_string(),
            device: format!("vd{number}"),
            slot: number,
            serial: "0123456789abcdef0123".into(),
        };
        Hardware {
            machine_type: "pc-q35-7.2".into(),
            memory_bytes: 256 << 20,
            vcpus: 1,
            accelerator: Accelerator::Tcg,
            processor: String::new(),
            qemu: (7, 2, 22),
            disks: (0..16).map(seat).collect(),
            macs: vec!["52:54:00:12:34:56".into(); 8],
        }
    }

    #[test]
    fn a_disk_has_one_seat() {
        let mut hardware = hardware();
        assert_eq!(hardware.twice(), None);
        hardware.disks[7].userdevice = "3".into();
        assert_eq!(hardware.twice(), Some("3"));
    }
}
