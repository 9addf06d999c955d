//! The plainest way into an export: the old export-name option, simple replies, blocking. For clients that must see every
//! byte themselves: tests that kill the server, benchmarks.

use std::io::{self, Read, Write};

use crate::proto::{FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, IHAVEOPT, NBDMAGIC, OPT_EXPORT_NAME, OptionHeader};

/// Enters `export` over a stream that was just connected; returns its size in bytes.
///
/// Errors: those of the stream; `InvalidData` where the other side speaks no NBD; `UnexpectedEof` where it does not know
/// the export, as this option has no other refusal.
pub fn enter(stream: &mut (impl Read + Write), export: &str) -> io::Result<u64> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if greeting[..8] != NBDMAGIC.to_be_bytes() || greeting[8..16] != IHAVEOPT.to_be_bytes() {
        let shown = format!("the greeting is {greeting:02x?}, not that of an NBD server of the new style");
        return Err(io::Error::new(io::ErrorKind::InvalidData, shown));
    }
    let mut hello = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes().to_vec();
    hello.extend_from_slice(&OptionHeader { option: OPT_EXPORT_NAME, length: export.len() as u32 }.encode());
    hello.extend_from_slice(export.as_bytes());
    stream.write_all(&hello)?;
    let mut answer = [0; 10];
    stream.read_exact(&mut answer)?;
    let [a, b, c, d, e, f, g, h, ..] = answer;
    Ok(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
}
