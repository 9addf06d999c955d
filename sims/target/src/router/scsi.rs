//! Commands under way: how many there are, and those whose answers have to be put right.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::pdu::{DATA_IN, Pdu, SCSI_COMMAND, SCSI_RESPONSE, TASK_MANAGEMENT, decode_lun, encode_lun};

pub const REPORT_LUNS: u8 = 0xa0;
const INQUIRY: u8 = 0x12;
const MODE_SENSE_6: u8 = 0x1a;
const MODE_SENSE_10: u8 = 0x5a;
/// In the device-specific parameter of a mode page header.
const WRITE_PROTECTED: u8 = 0x80;
/// Sense data in a response have their length in front.
const SENSE_LENGTH_BYTES: usize = 2;
/// DATA PROTECT, WRITE PROTECTED.
const SENSE_PROTECTED: (u8, u8, u8) = (7, 0x27, 0);
/// "Space allocation failed", where the qualifier of WRITE PROTECTED stands.
const QUALIFIER_NO_SPACE: u8 = 7;
const PAGE_SERIAL: u8 = 0x80;
const PAGE_DEVICE_ID: u8 = 0x83;

/// Data-In: the status is in it.
const HAS_STATUS: u8 = 0x01;
const UNDERFLOW: u8 = 0x02;
const OVERFLOW: u8 = 0x04;

/// How long [`Gate::held`] waits for commands under way.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct GateState {
    held: bool,
    in_flight: usize,
}

/// Counts commands of all sessions; while it is held no new one starts.
pub struct Gate {
    state: Mutex<GateState>,
    idle: Condvar,
    released: watch::Sender<()>,
}

impl Gate {
    pub fn new() -> Gate {
        Gate { state: Mutex::default(), idle: Condvar::new(), released: watch::Sender::new(()) }
    }

    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes whenever waiting commands may go again.
    pub fn released(&self) -> watch::Receiver<()> {
        self.released.subscribe()
    }

    fn enter(&self) -> bool {
        let mut state = self.state();
        if !state.held {
            state.in_flight += 1;
        }
        !state.held
    }

    fn leave(&self, count: usize) {
        let mut state = self.state();
        state.in_flight -= count;
        self.idle.notify_all();
    }

    /// Runs `at` with no command under way (one that an initiator gave up without a word counts for a while).
    pub fn held<T>(&self, at: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let mut state = self.state();
        // One at a time.
        while state.held {
            state = self.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.held = true;
        while state.in_flight > 0 && start.elapsed() < PATIENCE {
            let left = PATIENCE.saturating_sub(start.elapsed());
            state = self.idle.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        let release = Release(self);
        let result = at();
        drop(release);
        result
    }
}

struct Release<'a>(&'a Gate);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.state().held = false;
        self.0.idle.notify_all();
        self.0.released.send_replace(());
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Other,
    ReportLuns,
    Serial,
    DeviceId {
        allocation: usize,
    },
    /// Where the byte with the write-protect bit stands in the answer.
    ModeSense {
        at: usize,
    },
}

/// What has to be known of a LUN before a PDU from it can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    Identity(u16),
    /// tgt says "write protected": is the LUN really, or is its volume full?
    Fullness(u16),
}

#[derive(Debug, Clone, Copy)]
struct Command {
    kind: Kind,
    lun: u16,
    /// Bytes that the initiator expects.
    expected: usize,
    /// Bytes that it got, where we changed them and the status comes later.
    told: Option<usize>,
}

/// Commands of one session, by task tag.
pub struct Commands<'a> {
    gate: &'a Gate,
    table: Mutex<HashMap<u32, Command>>,
}

impl<'a> Commands<'a> {
    pub fn new(gate: &'a Gate) -> Commands<'a> {
        Commands { gate, table: Mutex::default() }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<u32, Command>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a PDU from the initiator may go now; a command that may is counted.
    pub fn may_go(&self, pdu: &Pdu) -> bool {
        match pdu.opcode() {
            SCSI_COMMAND => {
                if !self.gate.enter() {
                    return false;
                }
                let command = Command { kind: kind(pdu), lun: pdu.lun(), expected: pdu.word(20) as usize, told: None };
                if self.table().insert(pdu.task_tag(), command).is_some() {
                    self.gate.leave(1);
                }
                true
            }
            TASK_MANAGEMENT => {
                // An aborted command is not answered.
                self.end(pdu.word(20));
                true
            }
            _ => true,
        }
    }

    fn end(&self, tag: u32) {
        if self.table().remove(&tag).is_some() {
            self.gate.leave(1);
        }
    }

    /// What this PDU for the initiator makes us ask the array.
    pub fn asks(&self, pdu: &Pdu) -> Option<Question> {
        let table = self.table();
        let command = table.get(&pdu.task_tag())?;
        match (pdu.opcode(), command.kind) {
            (DATA_IN, Kind::DeviceId { .. }) => Some(Question::Identity(command.lun)),
            (DATA_IN, Kind::ModeSense { at }) if pdu.data.get(at).is_some_and(|byte| byte & WRITE_PROTECTED != 0) => {
                Some(Question::Fullness(command.lun))
            }
            (SCSI_RESPONSE, _) if sense(&pdu.data) == Some(SENSE_PROTECTED) => Some(Question::Fullness(command.lun)),
            _ => None,
        }
    }

    /// A full LUN is not write protected: it has no space for what was written.
    pub fn tell_fullness(&self, pdu: &mut Pdu, is_full: bool) {
        if !is_full {
            return;
        }
        let kind = self.table().get(&pdu.task_tag()).map(|command| command.kind);
        match kind {
            Some(Kind::ModeSense { at }) if pdu.opcode() == DATA_IN => {
                if let Some(byte) = pdu.data.get_mut(at) {
                    *byte &= !WRITE_PROTECTED;
                }
            }
            _ => {
                if let Some(qualifier) = pdu.data.get_mut(SENSE_LENGTH_BYTES + 13) {
                    *qualifier = QUALIFIER_NO_SPACE;
                }
            }
        }
    }

    /// Puts the array's identifier into VPD page 0x83.
    pub fn tell_identity(&self, pdu: &mut Pdu, naa: Option<[u8; 16]>) {
        let mut table = self.table();
        let Some(command) = table.get_mut(&pdu.task_tag()) else { return };
        let (Some(naa), Kind::DeviceId { allocation, .. }) = (naa, command.kind) else { return };
        let peripheral = pdu.data.first().copied().unwrap_or(0);
        // Page header, then one designator: binary, NAA, of the logical unit.
        let mut page = vec![peripheral, PAGE_DEVICE_ID, 0, 20, 0x01, 0x03, 0, 16];
        page.extend(naa);
        page.truncate(allocation);
        replace(pdu, page, command);
    }

    /// Looks at a PDU for the initiator: mends REPORT LUNS and residuals, and counts a command as ended.
    pub fn pass(&self, pdu: &mut Pdu) {
        let tag = pdu.task_tag();
        match pdu.opcode() {
            DATA_IN => {
                if let Some(command) = self.table().get_mut(&tag) {
                    match command.kind {
                        Kind::ReportLuns => replace(pdu, shown_luns(&pdu.data), command),
                        Kind::Serial => replace(pdu, unpadded_serial(&pdu.data), command),
                        Kind::DeviceId { .. } | Kind::ModeSense { .. } | Kind::Other => {}
                    }
                }
                if pdu.header[1] & HAS_STATUS != 0 {
                    self.end(tag);
                }
            }
            SCSI_RESPONSE => {
                if let Some(Command { told: Some(told), expected, .. }) = self.table().get(&tag) {
                    set_residual(pdu, *told, *expected);
                }
                self.end(tag);
            }
            _ => {}
        }
    }
}

impl Drop for Commands<'_> {
    fn drop(&mut self) {
        let count = self.table().len();
        self.gate.leave(count);
    }
}

fn kind(pdu: &Pdu) -> Kind {
    let cdb = pdu.cdb();
    match cdb[0] {
        REPORT_LUNS => Kind::ReportLuns,
        INQUIRY if cdb[1] & 1 == 1 && cdb[2] == PAGE_SERIAL => Kind::Serial,
        INQUIRY if cdb[1] & 1 == 1 && cdb[2] == PAGE_DEVICE_ID => {
            Kind::DeviceId { allocation: usize::from(u16::from_be_bytes([cdb[3], cdb[4]])) }
        }
        MODE_SENSE_6 => Kind::ModeSense { at: 2 },
        MODE_SENSE_10 => Kind::ModeSense { at: 3 },
        _ => Kind::Other,
    }
}

/// Sense key, additional code and qualifier of fixed-format sense data after their length.
fn sense(data: &[u8]) -> Option<(u8, u8, u8)> {
    let sense = data.get(SENSE_LENGTH_BYTES..)?;
    Some((sense.get(2)? & 0x0f, *sense.get(12)?, *sense.get(13)?))
}

fn replace(pdu: &mut Pdu, mut data: Vec<u8>, command: &mut Command) {
    data.truncate(command.expected);
    if pdu.header[1] & HAS_STATUS != 0 {
        set_residual(pdu, data.len(), command.expected);
    }
    command.told = Some(data.len());
    pdu.data = data;
}

fn set_residual(pdu: &mut Pdu, told: usize, expected: usize) {
    pdu.header[1] &= !(UNDERFLOW | OVERFLOW);
    if told < expected {
        pdu.header[1] |= UNDERFLOW;
    }
    pdu.set_word(44, expected.saturating_sub(told) as u32);
}

/// VPD page 0x80 without the blanks that tgt puts before the serial number. A page cut short stays as it is.
fn unpadded_serial(page: &[u8]) -> Vec<u8> {
    let Some((head, serial)) = page.split_at_checked(4) else { return page.to_vec() };
    if serial.len() != usize::from(head[3]) {
        return page.to_vec();
    }
    let serial = serial.trim_ascii_start();
    [&head[..3], &[serial.len() as u8], serial].concat()
}

/// tgtd's list without its controller, in the array's numbers.
fn shown_luns(data: &[u8]) -> Vec<u8> {
    let entries = data.get(8..).unwrap_or_default().chunks_exact(8);
    let luns = entries.map(|entry| decode_lun([entry[0], entry[1]])).filter(|lun| *lun > 0);
    let entries: Vec<[u8; 2]> = luns.map(|lun| encode_lun(lun - 1)).collect();
    let mut list = ((entries.len() * 8) as u32).to_be_bytes().to_vec();
    list.extend([0; 4]);
    for [high, low] in entries {
        list.extend([high, low, 0, 0, 0, 0, 0, 0]);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::{Commands, Gate, HAS_STATUS, REPORT_LUNS, UNDERFLOW, shown_luns};
    use crate::pdu::{DATA_IN, Pdu, SCSI_COMMAND};
    use std::sync::mpsc;

    fn report_luns(tag: u32, expected: u32) -> Pdu {
        let mut command = Pdu::new(SCSI_COMMAND);
        command.set_word(16, tag);
        command.set_word(20, expected);
        command.header[32] = REPORT_LUNS;
        command
    }

    #[test]
    fn the_list_of_luns_loses_the_controller_and_its_residual_is_true() {
        let gate = Gate::new();
        let commands = Commands::new(&gate);
        assert!(commands.may_go(&report_luns(9, 64)));
        let mut answer = Pdu::new(DATA_IN);
        answer.set_word(16, 9);
        answer.header[1] = HAS_STATUS;
        answer.data =
            [&[0, 0, 0, 24, 0, 0, 0, 0][..], &[0; 8], &[0, 1, 0, 0, 0, 0, 0, 0], &[0x41, 0x2d, 0, 0, 0, 0, 0, 0]]
                .concat();
        commands.pass(&mut answer);
        assert_eq!(answer.data[..8], [0, 0, 0, 16, 0, 0, 0, 0]);
        assert_eq!((&answer.data[8..10], &answer.data[16..18]), (&[0, 0][..], &[0x41, 0x2c][..]));
        assert_eq!((answer.header[1] & UNDERFLOW, answer.word(44)), (UNDERFLOW, 40));
        assert_eq!(gate.held(|| 1), 1, "the command has ended");
        assert_eq!(shown_luns(&[]), [0; 8]);
    }

    #[test]
    fn a_held_gate_waits_for_commands_and_lets_none_begin() {
        let gate = Gate::new();
        let commands = Commands::new(&gate);
        assert!(commands.may_go(&report_luns(1, 0)));
        let (inside, told) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| gate.held(|| inside.send(gate.state().in_flight)));
            while !gate.state().held {
                std::thread::yield_now();
            }
            assert!(!commands.may_go(&report_luns(2, 0)), "held");
            assert!(told.try_recv().is_err(), "one is still under way");
            commands.end(1);
            assert_eq!(told.recv(), Ok(0));
        });
        assert!(commands.may_go(&report_luns(2, 0)), "released");
    }
}
