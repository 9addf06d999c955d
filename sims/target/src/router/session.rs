//! Full-feature phase: PDUs pass in both directions with their LUN numbers shifted.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use tokio::io::{AsyncWrite, split};
use tokio::sync::{mpsc, watch};

use crate::pdu::{DATA_OUT, Pdu, R2T, SCSI_COMMAND, TASK_MANAGEMENT};
use crate::router::Shared;
use crate::router::login::{LoggedIn, blocking};
use crate::router::scsi::{Commands, Question, REPORT_LUNS};

/// PDUs read ahead of the pump.
const AHEAD: usize = 4;
/// Room for every LUN that an array shows: the initiator's own limit is applied when the list has been put right.
const LIST_BYTES: u32 = 64 << 10;

/// Pumps until one side ends or the session is cut. Both connections are closed then.
pub async fn pump(shared: &Arc<Shared>, ends: LoggedIn, mut cut: watch::Receiver<bool>) -> io::Result<()> {
    let LoggedIn { session, initiator, backend } = ends;
    let commands = Commands::new(&shared.gate);
    let (mut from_initiator, mut to_initiator) = split(initiator);
    let (mut from_backend, mut to_backend) = split(backend);
    // Reading a PDU cannot be given up half-way, waiting for one that was read can: hence two steps.
    let (read, mut arrived) = mpsc::channel(AHEAD);
    let reader = async {
        while let Some(pdu) = Pdu::read(&mut from_initiator).await? {
            if read.send(pdu).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let up = async {
        let mut released = shared.gate.released();
        let mut waiting = VecDeque::new();
        loop {
            tokio::select! {
                pdu = arrived.recv() => match pdu {
                    // Data of a command under way have to reach it, or it would never end. Those of a command that
                    // waits wait behind it.
                    Some(pdu) if is_due(&pdu, &waiting) => upward(pdu, &mut to_backend).await?,
                    Some(pdu) => waiting.push_back(pdu),
                    None => return Ok(()),
                },
                _ = released.changed() => {}
            }
            while let Some(pdu) = waiting.pop_front() {
                if !commands.may_go(&pdu) {
                    waiting.push_front(pdu);
                    break;
                }
                upward(pdu, &mut to_backend).await?;
            }
        }
    };
    let down = async {
        while let Some(mut pdu) = Pdu::read(&mut from_backend).await? {
            if pdu.opcode() == R2T {
                pdu.set_lun(pdu.lun().saturating_sub(1));
            }
            let (ours, login) = (Arc::clone(shared), session.login.clone());
            match commands.asks(&pdu) {
                Some(Question::Identity(lun)) => {
                    let naa = blocking(move || ours.director.naa(&login, lun)).await?;
                    commands.tell_identity(&mut pdu, naa);
                }
                Some(Question::Fullness(lun)) => {
                    let is_full = blocking(move || ours.director.is_full(&login, lun)).await?;
                    commands.tell_fullness(&mut pdu, is_full);
                }
                None => {}
            }
            commands.pass(&mut pdu);
            pdu.write(&mut to_initiator).await?;
        }
        Ok(())
    };
    tokio::select! {
        ended = reader => ended,
        ended = up => ended,
        ended = down => ended,
        _ = cut.wait_for(|cut| *cut) => Ok(()),
    }
}

/// Whether these are data of a command that has gone up already.
fn is_due(pdu: &Pdu, waiting: &VecDeque<Pdu>) -> bool {
    pdu.opcode() == DATA_OUT && waiting.iter().all(|command| command.task_tag() != pdu.task_tag())
}

async fn upward(mut pdu: Pdu, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    if pdu.opcode() == SCSI_COMMAND && pdu.cdb()[0] == REPORT_LUNS {
        // It goes to tgt's controller, which is there even when no disk is, and asks for the whole list.
        pdu.set_lun(0);
        pdu.set_word(20, LIST_BYTES);
        pdu.set_word(32 + 6, LIST_BYTES);
    } else if matches!(pdu.opcode(), SCSI_COMMAND | TASK_MANAGEMENT | DATA_OUT) {
        pdu.set_lun(pdu.lun() + 1);
    }
    pdu.write(to).await
}

#[cfg(test)]
mod tests {
    use super::is_due;
    use crate::pdu::{DATA_OUT, Pdu, SCSI_COMMAND};
    use std::collections::VecDeque;

    #[test]
    fn data_overtake_waiting_commands_but_never_their_own() {
        let pdu = |opcode, tag| {
            let mut pdu = Pdu::new(opcode);
            pdu.set_word(16, tag);
            pdu
        };
        let waiting = VecDeque::from([pdu(SCSI_COMMAND, 1)]);
        assert!(is_due(&pdu(DATA_OUT, 2), &waiting));
        assert!(!is_due(&pdu(DATA_OUT, 1), &waiting), "unsolicited data come right after their command");
        assert!(!is_due(&pdu(SCSI_COMMAND, 3), &waiting));
    }
}
