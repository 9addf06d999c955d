//! tgtd's management socket: one fixed-size request with an optional text, one answer, per connection.
//!
//! Spoken directly rather than through `tgtadm`: no process per call, and CHAP secrets stay off command lines.
//! The layout is that of Debian's tgt 1.0.85; integers are the machine's own.
//!
//! ```text
//!   0 mode u32 | 4 op u32 | 8 driver [u8; 64] | 72 length u32 (with the text) | 76 target i32 | 80 session u64
//!  88 lun u64  | 96 connection u32 | 100 host u32 | 104 device type u32 | 108 account direction u32 | 112 pack u32
//! 116 force u32 | 120 text, NUL-terminated          answer: 0 error u32 | 4 length u32 (with what follows)
//! ```

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Result, TargetError, io};

const REQUEST_BYTES: usize = 120;
/// tgtd reads the text into a buffer of this size.
const TEXT_BYTES_MAX: usize = 1024 - REQUEST_BYTES;
/// A stopped tgtd does not answer; nobody calls it while it is stopped, so silence is a fault.
const ANSWER_SECONDS_MAX: u64 = 20;

/// No session or LUN is meant.
const NONE: u64 = u64::MAX;

#[derive(Debug, Clone, Copy)]
pub enum Mode {
    Target = 1,
    Device = 2,
    Account = 7,
}

#[derive(Debug, Clone, Copy)]
pub enum Op {
    New = 0,
    Delete = 1,
    Bind = 3,
    Update = 5,
}

/// A request to tgtd.
#[derive(Debug, Clone)]
pub struct Request {
    mode: Mode,
    op: Op,
    target: i32,
    lun: u64,
    outgoing: bool,
    force: bool,
    text: String,
}

impl Request {
    pub fn new(mode: Mode, op: Op) -> Request {
        Request { mode, op, target: -1, lun: NONE, outgoing: false, force: false, text: String::new() }
    }
    pub fn target(mut self, target: i32) -> Request {
        self.target = target;
        self
    }
    pub fn lun(mut self, lun: u64) -> Request {
        self.lun = lun;
        self
    }
    pub fn outgoing(mut self) -> Request {
        self.outgoing = true;
        self
    }
    pub fn force(mut self) -> Request {
        self.force = true;
        self
    }
    pub fn text(mut self, text: String) -> Request {
        self.text = text;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let text = if self.text.is_empty() { 0 } else { self.text.len() + 1 };
        let mut bytes = Vec::with_capacity(REQUEST_BYTES + text);
        bytes.extend((self.mode as u32).to_ne_bytes());
        bytes.extend((self.op as u32).to_ne_bytes());
        let mut driver = [0; 64];
        driver[..5].copy_from_slice(b"iscsi");
        bytes.extend(driver);
        bytes.extend(((REQUEST_BYTES + text) as u32).to_ne_bytes());
        bytes.extend(self.target.to_ne_bytes());
        bytes.extend(0u64.to_ne_bytes());
        bytes.extend(self.lun.to_ne_bytes());
        for word in [0, 0, 0, u32::from(self.outgoing), 0, u32::from(self.force)] {
            bytes.extend(word.to_ne_bytes());
        }
        if text > 0 {
            bytes.extend(self.text.as_bytes());
            bytes.push(0);
        }
        bytes
    }
}

/// The socket of one tgtd.
#[derive(Debug, Clone)]
pub struct Mgmt {
    socket: PathBuf,
}

impl Mgmt {
    pub fn new(socket: PathBuf) -> Mgmt {
        Mgmt { socket }
    }

    /// Asks and waits for the answer; the error tells tgtd's number.
    pub fn call(&self, request: &Request) -> Result<()> {
        // The text may hold a secret.
        let what = format!("{:?} {:?} of target {}", request.op, request.mode, request.target);
        if request.text.len() >= TEXT_BYTES_MAX || request.text.contains('\0') {
            return Err(TargetError::Invalid(format!("{what}: the text does not fit tgtd's {TEXT_BYTES_MAX} bytes")));
        }
        let mut answer = [0; 8];
        let failed = || io(format!("tgtd at {}: {what}", self.socket.display()));
        let mut stream = UnixStream::connect(&self.socket).map_err(failed())?;
        stream.set_read_timeout(Some(Duration::from_secs(ANSWER_SECONDS_MAX))).map_err(failed())?;
        stream.write_all(&request.bytes()).map_err(failed())?;
        stream.read_exact(&mut answer).map_err(failed())?;
        let code = u32::from_ne_bytes([answer[0], answer[1], answer[2], answer[3]]);
        if code == 0 { Ok(()) } else { Err(TargetError::Refused { what, code }) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Mode, Op, Request};

    #[test]
    fn a_request_has_its_fields_where_tgtd_looks() {
        let request = Request::new(Mode::Account, Op::Bind).target(258).outgoing().force().text("user=joe".into());
        let bytes = request.bytes();
        assert_eq!(bytes.len(), 129);
        assert_eq!((bytes[0], bytes[4], &bytes[8..14]), (7, 3, &b"iscsi\0"[..]));
        assert_eq!(bytes[72..80], [129, 0, 0, 0, 2, 1, 0, 0]);
        assert_eq!(bytes[88..96], [0xff; 8]);
        assert_eq!((bytes[108], bytes[116], &bytes[120..]), (1, 1, &b"user=joe\0"[..]));
    }
}
