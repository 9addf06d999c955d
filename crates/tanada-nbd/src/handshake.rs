//! The client's side of the NBD handshake: fixed newstyle, structured replies and `base:allocation` where there are any.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::client::NbdError;
use crate::proto::{
    CONTEXT_BASE_ALLOCATION, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, IHAVEOPT, INFO_EXPORT, NAME_BYTES_MAX, NBDMAGIC,
    OPT_GO, OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY, OPTION_BYTES_MAX, OPTION_REPLY_HEADER_BYTES, OptionHeader,
    OptionReplyHeader, ProtocolError, REP_ACK, REP_INFO, REP_META_CONTEXT, Reader,
};

/// What both sides agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Negotiated {
    /// Bytes of the export.
    pub size: u64,
    /// `TF_*`.
    pub flags: u16,
    /// Number of the `base:allocation` context, if the server has it.
    pub allocation_context: Option<u32>,
}

pub(crate) async fn negotiate<R, W>(read: &mut R, write: &mut W, export: &str) -> Result<Negotiated, NbdError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    if export.len() > NAME_BYTES_MAX {
        let limit = NAME_BYTES_MAX as u64;
        return Err(ProtocolError::TooLong { what: "export name", found: export.len() as u64, limit }.into());
    }
    let (magic, version, server) = (read.read_u64().await?, read.read_u64().await?, read.read_u16().await?);
    expect("greeting", magic, NBDMAGIC)?;
    expect("greeting", version, IHAVEOPT)?;
    if server & FLAG_FIXED_NEWSTYLE == 0 {
        return Err(NbdError::Unsupported("fixed newstyle handshake"));
    }
    write.write_u32(u32::from(server & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES))).await?;

    let structured = option(read, write, OPT_STRUCTURED_REPLY, &[]).await?.refusal.is_none();
    let allocation_context = if structured { base_allocation(read, write, export).await? } else { None };
    let mut go = text(export);
    go.extend_from_slice(&0u16.to_be_bytes());
    let answer = option(read, write, OPT_GO, &go).await?;
    if let Some(message) = answer.refusal {
        return Err(NbdError::NoExport { export: export.to_owned(), message });
    }
    for info in &answer.infos {
        let mut reader = Reader::new("export information", info);
        if reader.u16()? == INFO_EXPORT {
            return Ok(Negotiated { size: reader.u64()?, flags: reader.u16()?, allocation_context });
        }
    }
    Err(ProtocolError::Unexpected(String::from("the server lets us in without telling the size")).into())
}

async fn base_allocation<R, W>(read: &mut R, write: &mut W, export: &str) -> Result<Option<u32>, NbdError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut ask = text(export);
    ask.extend_from_slice(&1u32.to_be_bytes());
    ask.extend_from_slice(&text(CONTEXT_BASE_ALLOCATION));
    let answer = option(read, write, OPT_SET_META_CONTEXT, &ask).await?;
    for context in &answer.contexts {
        let mut reader = Reader::new("metadata context", context);
        let number = reader.u32()?;
        if reader.rest() == CONTEXT_BASE_ALLOCATION.as_bytes() {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

/// All replies to one option, up to its acknowledgement or refusal.
#[derive(Debug, Default)]
struct OptionAnswer {
    infos: Vec<Vec<u8>>,
    contexts: Vec<Vec<u8>>,
    refusal: Option<String>,
}

async fn option<R, W>(read: &mut R, write: &mut W, option: u32, data: &[u8]) -> Result<OptionAnswer, NbdError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut frame = OptionHeader { option, length: data.len() as u32 }.encode().to_vec();
    frame.extend_from_slice(data);
    write.write_all(&frame).await?;
    write.flush().await?;
    let mut answer = OptionAnswer::default();
    // More replies than this to three short questions is no conversation.
    for _ in 0..64 {
        let mut bytes = [0; OPTION_REPLY_HEADER_BYTES];
        read.read_exact(&mut bytes).await?;
        let header = OptionReplyHeader::decode(&bytes)?;
        if header.option != option {
            return Err(
                ProtocolError::Unexpected(format!("a reply to option {} instead of {option}", header.option)).into()
            );
        }
        if header.length > OPTION_BYTES_MAX {
            let (found, limit) = (u64::from(header.length), u64::from(OPTION_BYTES_MAX));
            return Err(ProtocolError::TooLong { what: "option reply", found, limit }.into());
        }
        let mut payload = vec![0; header.length as usize];
        read.read_exact(&mut payload).await?;
        match header.kind {
            REP_ACK => return Ok(answer),
            REP_INFO => answer.infos.push(payload),
            REP_META_CONTEXT => answer.contexts.push(payload),
            _ if header.is_error() => {
                let words = String::from_utf8_lossy(&payload);
                answer.refusal = Some(format!("{words} (reply {:#x})", header.kind).trim().to_owned());
                return Ok(answer);
            }
            _ => {}
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the handshake does not end").into())
}

fn text(name: &str) -> Vec<u8> {
    let mut bytes = (name.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(name.as_bytes());
    bytes
}

fn expect(what: &'static str, found: u64, expected: u64) -> Result<(), ProtocolError> {
    if found == expected { Ok(()) } else { Err(ProtocolError::Magic { what, found, expected }) }
}
