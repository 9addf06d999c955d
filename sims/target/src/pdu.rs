//! iSCSI PDUs as far as a router has to understand them (RFC 7143, section 11): the 48-byte header, LUNs, login text.
//! Digests are never negotiated through the router, so a PDU is header, additional header, data, padding.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const HEADER_BYTES: usize = 48;
/// The longest data that a 24-bit length can tell; far more than anybody negotiates, and it bounds memory.
const DATA_BYTES_MAX: usize = 1 << 20;

pub const NOP_OUT: u8 = 0x00;
pub const SCSI_COMMAND: u8 = 0x01;
pub const TASK_MANAGEMENT: u8 = 0x02;
pub const LOGIN: u8 = 0x03;
pub const TEXT: u8 = 0x04;
pub const DATA_OUT: u8 = 0x05;
pub const LOGOUT: u8 = 0x06;
pub const NOP_IN: u8 = 0x20;
pub const SCSI_RESPONSE: u8 = 0x21;
pub const LOGIN_RESPONSE: u8 = 0x23;
pub const TEXT_RESPONSE: u8 = 0x24;
pub const DATA_IN: u8 = 0x25;
pub const LOGOUT_RESPONSE: u8 = 0x26;
pub const R2T: u8 = 0x31;

#[derive(Debug, Clone)]
pub struct Pdu {
    pub header: [u8; HEADER_BYTES],
    pub additional: Vec<u8>,
    pub data: Vec<u8>,
}

impl Pdu {
    pub fn new(opcode: u8) -> Pdu {
        let mut header = [0; HEADER_BYTES];
        header[0] = opcode;
        Pdu { header, additional: Vec::new(), data: Vec::new() }
    }

    /// Reads one PDU; none at the end of the stream.
    pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Pdu>> {
        let mut pdu = Pdu::new(0);
        match from.read_exact(&mut pdu.header).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result?,
        };
        let length = usize::from(pdu.header[5]) << 16 | usize::from(pdu.header[6]) << 8 | usize::from(pdu.header[7]);
        if length > DATA_BYTES_MAX {
            return Err(io::Error::other(format!("a PDU of {length} bytes; at most {DATA_BYTES_MAX} are accepted")));
        }
        pdu.additional.resize(usize::from(pdu.header[4]) * 4, 0);
        from.read_exact(&mut pdu.additional).await?;
        pdu.data.resize(length.next_multiple_of(4), 0);
        from.read_exact(&mut pdu.data).await?;
        pdu.data.truncate(length);
        Ok(Some(pdu))
    }

    pub async fn write(mut self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        self.header[4] = (self.additional.len() / 4) as u8;
        self.header[5..8].copy_from_slice(&(self.data.len() as u32).to_be_bytes()[1..]);
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.additional.len() + self.data.len() + 4);
        bytes.extend(self.header);
        bytes.append(&mut self.additional);
        bytes.append(&mut self.data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        to.write_all(&bytes).await
    }

    /// Without the "immediate" bit.
    pub fn opcode(&self) -> u8 {
        self.header[0] & 0x3f
    }
    /// Login: go to the next stage.
    pub fn is_transit(&self) -> bool {
        self.header[1] & 0x80 != 0
    }
    /// Login: current stage and the one asked for next.
    pub fn stages(&self) -> (u8, u8) {
        (self.header[1] >> 2 & 3, self.header[1] & 3)
    }
    pub fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.header[at], self.header[at + 1], self.header[at + 2], self.header[at + 3]])
    }
    pub fn set_word(&mut self, at: usize, word: u32) {
        self.header[at..at + 4].copy_from_slice(&word.to_be_bytes());
    }
    pub fn task_tag(&self) -> u32 {
        self.word(16)
    }
    /// The command descriptor block of a SCSI command.
    pub fn cdb(&self) -> &[u8] {
        &self.header[32..48]
    }
    pub fn lun(&self) -> u16 {
        decode_lun([self.header[8], self.header[9]])
    }
    pub fn set_lun(&mut self, lun: u16) {
        self.header[8..10].copy_from_slice(&encode_lun(lun));
    }
    pub fn keys(&self) -> Keys {
        Keys::parse(&self.data)
    }
}

/// The first level of a LUN: peripheral addressing below 256, flat addressing above.
pub fn decode_lun(bytes: [u8; 2]) -> u16 {
    u16::from(bytes[0] & 0x3f) << 8 | u16::from(bytes[1])
}

pub fn encode_lun(lun: u16) -> [u8; 2] {
    let [high, low] = lun.to_be_bytes();
    if high == 0 { [0, low] } else { [0x40 | high & 0x3f, low] }
}

/// `key=value` pairs, NUL-terminated, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys(Vec<(String, String)>);

impl Keys {
    pub fn parse(data: &[u8]) -> Keys {
        let words = data.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        Keys(words.filter_map(|word| word.split_once('=').map(|(k, v)| (k.to_string(), v.to_string()))).collect())
    }
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
    /// Replaces the value of a key that is there.
    pub fn replace(&mut self, key: &str, value: &str) {
        if let Some((_, slot)) = self.0.iter_mut().find(|(name, _)| name == key) {
            *slot = value.to_string();
        }
    }
    pub fn push(&mut self, key: &str, value: &str) {
        self.0.push((key.to_string(), value.to_string()));
    }
    pub fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|(key, value)| format!("{key}={value}\0").into_bytes()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Keys, Pdu, TEXT, decode_lun, encode_lun};

    #[test]
    fn luns_go_both_ways() {
        for lun in [0, 1, 255, 256, 300, 4095] {
            assert_eq!(decode_lun(encode_lun(lun)), lun);
        }
        assert_eq!((encode_lun(7), encode_lun(300)), ([0, 7], [0x41, 0x2c]));
    }

    #[tokio::test]
    async fn a_rewritten_pdu_has_its_length_and_padding_mended() {
        let mut pdu = Pdu::new(TEXT);
        pdu.data = b"InitiatorName=iqn.a\0TargetName=x\0".to_vec();
        let mut keys = pdu.keys();
        keys.replace("TargetName", "iqn.longer");
        keys.replace("Absent", "y");
        assert_eq!(keys.get("InitiatorName"), Some("iqn.a"));
        pdu.data = keys.bytes();
        let mut wire = Vec::new();
        pdu.write(&mut wire).await.unwrap();
        assert_eq!((wire.len() % 4, wire[7]), (0, 42));
        let back = Pdu::read(&mut wire.as_slice()).await.unwrap().unwrap();
        assert_eq!(back.keys(), Keys::parse(b"InitiatorName=iqn.a\0TargetName=iqn.longer\0"));
        wire[5] = 0xff;
        assert!(Pdu::read(&mut wire.as_slice()).await.is_err(), "absurd lengths are refused before memory is taken");
    }
}
