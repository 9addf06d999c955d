//! Discovery sessions, answered by the router itself: login (with CHAP where asked for), SendTargets, logout.

use std::io;

use md5::{Digest, Md5};
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use uuid::Uuid;

use crate::pdu::{Keys, LOGIN, LOGIN_RESPONSE, LOGOUT, LOGOUT_RESPONSE, NOP_IN, NOP_OUT, Pdu, TEXT, TEXT_RESPONSE};
use crate::router::{Discovery, Refusal};
use crate::target::Chap;

const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL_FEATURE: u8 = 3;
/// CHAP with MD5.
const MD5: &str = "5";

/// Numbers that every answer carries.
struct Counters {
    status: u32,
    command: u32,
}

impl Counters {
    fn stamp(&mut self, answer: &mut Pdu, request: &Pdu) {
        answer.set_word(16, request.task_tag());
        answer.set_word(24, self.status);
        answer.set_word(28, self.command);
        // The window: a few commands ahead.
        answer.set_word(32, self.command.wrapping_add(16));
        self.status = self.status.wrapping_add(1);
    }
}

/// Serves the session whose first login PDU was read, to its end.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    first: Pdu,
    discovery: Discovery,
) -> io::Result<()> {
    let mut counters = Counters { status: 1, command: first.word(24) };
    if !login(stream, first, discovery.chap.as_ref(), &mut counters).await? {
        return Ok(());
    }
    while let Some(request) = Pdu::read(stream).await? {
        // Immediate commands do not use up a number.
        if request.header[0] & 0x40 == 0 {
            counters.command = request.word(24).wrapping_add(1);
        }
        let mut answer = match request.opcode() {
            TEXT => text(&request, &discovery),
            NOP_OUT if request.task_tag() != u32::MAX => {
                let mut pong = Pdu::new(NOP_IN);
                pong.header[1] = 0x80;
                pong.set_word(20, u32::MAX);
                pong.data.clone_from(&request.data);
                pong
            }
            NOP_OUT => continue,
            LOGOUT => {
                let mut bye = Pdu::new(LOGOUT_RESPONSE);
                bye.header[1] = 0x80;
                counters.stamp(&mut bye, &request);
                return bye.write(stream.get_mut()).await;
            }
            other => return Err(io::Error::other(format!("opcode {other:#x} in a discovery session"))),
        };
        counters.stamp(&mut answer, &request);
        answer.write(stream.get_mut()).await?;
    }
    Ok(())
}

fn text(request: &Pdu, discovery: &Discovery) -> Pdu {
    let asked = request.keys();
    let mut keys = Keys::default();
    if let Some(which) = asked.get("SendTargets") {
        for (name, portals) in discovery.targets.iter().filter(|(name, _)| which == "All" || which == name) {
            keys.push("TargetName", name);
            for portal in portals {
                keys.push("TargetAddress", portal);
            }
        }
    }
    let mut answer = Pdu::new(TEXT_RESPONSE);
    answer.header[1] = 0x80;
    answer.set_word(20, u32::MAX);
    answer.data = keys.bytes();
    answer
}

/// A challenge that was sent.
struct Challenge {
    id: u8,
    bytes: [u8; 16],
}

impl Challenge {
    fn is_answered(&self, chap: &Chap, keys: &Keys) -> bool {
        let mut hash = Md5::new();
        hash.update([self.id]);
        hash.update(chap.secret.as_bytes());
        hash.update(self.bytes);
        let expected = hex(&hash.finalize());
        let said = keys.get("CHAP_R").unwrap_or_default().to_ascii_lowercase();
        keys.get("CHAP_N") == Some(chap.user.as_str()) && said == expected
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_string(), |text, byte| format!("{text}{byte:02x}"))
}

/// Answers login requests until full-feature phase; false: refused.
async fn login<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    first: Pdu,
    chap: Option<&Chap>,
    counters: &mut Counters,
) -> io::Result<bool> {
    let (mut request, mut challenge, mut is_proven) = (first, None, chap.is_none());
    loop {
        let keys = request.keys();
        let (stage, wanted) = request.stages();
        let mut answer = Pdu::new(LOGIN_RESPONSE);
        answer.header[8..14].copy_from_slice(&request.header[8..14]);
        answer.header[1] = stage << 2;
        let mut said = Keys::default();
        let mut refusal = None;
        match (chap, &challenge) {
            _ if is_proven => negotiate(stage, &keys, &mut said),
            (Some(_), None) if stage == SECURITY && offers_chap(&keys) => said.push("AuthMethod", "CHAP"),
            (Some(_), None) if stage == SECURITY && keys.get("CHAP_A").is_some() => {
                let sent = Challenge { id: Uuid::new_v4().into_bytes()[0], bytes: Uuid::new_v4().into_bytes() };
                said.push("CHAP_A", MD5);
                said.push("CHAP_I", &sent.id.to_string());
                said.push("CHAP_C", &hex(&sent.bytes));
                challenge = Some(sent);
            }
            (Some(chap), Some(sent)) if sent.is_answered(chap, &keys) => is_proven = true,
            _ => refusal = Some(Refusal::AUTHENTICATION),
        }
        if let Some(Refusal { class, detail }) = refusal {
            answer.header[36..38].copy_from_slice(&[class, detail]);
        }
        let moves_on = refusal.is_none() && is_proven && request.is_transit();
        if moves_on {
            answer.header[1] |= 0x80 | wanted;
        }
        answer.data = said.bytes();
        let is_done = moves_on && wanted == FULL_FEATURE;
        if is_done {
            // The session's handle; discovery sessions are nobody's second connection.
            answer.header[14..16].copy_from_slice(&[0, 1]);
        }
        counters.stamp(&mut answer, &request);
        answer.write(stream.get_mut()).await?;
        if is_done || refusal.is_some() {
            return Ok(is_done);
        }
        request = match Pdu::read(stream).await? {
            Some(next) if next.opcode() == LOGIN => next,
            _ => return Ok(false),
        };
    }
}

fn offers_chap(keys: &Keys) -> bool {
    keys.get("AuthMethod").is_some_and(|methods| methods.split(',').any(|method| method == "CHAP"))
}

/// Operational keys that need an answer, with the plainest choice.
fn negotiate(stage: u8, keys: &Keys, said: &mut Keys) {
    if stage == SECURITY && keys.get("AuthMethod").is_some() {
        said.push("AuthMethod", "None");
    }
    if stage == OPERATIONAL || stage == SECURITY {
        for digest in ["HeaderDigest", "DataDigest"] {
            if keys.get(digest).is_some() {
                said.push(digest, "None");
            }
        }
    }
}
