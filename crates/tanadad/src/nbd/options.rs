//! The handshake: in clear until TLS, then options until the client is inside an export.
//!
//! An option that names an export is put to the data plane under the name that the disk has there; what comes back goes
//! to the client under the name that it gave.

use std::io;
use std::sync::Arc;

use tanada_nbd::proto::{
    CONTEXT_DIRTY_PREFIX, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, IHAVEOPT, INFO_NAME, NAME_BYTES_MAX, NBDMAGIC,
    OPT_ABORT, OPT_EXPORT_NAME, OPT_GO, OPT_INFO, OPT_LIST, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT, OPT_STARTTLS,
    OPT_STRUCTURED_REPLY, OPTION_BYTES_MAX, OPTION_HEADER_BYTES, OPTION_REPLY_HEADER_BYTES, OptionHeader,
    OptionReplyHeader, REP_ACK, REP_ERR_INVALID, REP_ERR_PLATFORM, REP_ERR_POLICY, REP_ERR_TLS_REQD, REP_ERR_UNKNOWN,
    REP_ERR_UNSUP, REP_INFO, Reader,
};
use tanada_xapi::{ApiError, ApiResult, Ref};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use super::CLIENTS_MAX;
use super::disks::Disk;
use super::strangers::Stranger;
use crate::context::Daemon;
use crate::db::View;
use crate::ops::cbt::METADATA_TYPE;
use crate::rpc::session::Role;

/// Options that one client may send, before TLS and after it. It takes half a dozen to come in.
const OPTIONS_MAX: usize = 64;
/// Bitmaps that are listed at a time; any other can be asked for by name.
const BITMAPS_MAX: usize = 15;
/// Zeros behind the answer to EXPORT_NAME, for clients that did not decline them.
const PADDING_BYTES: usize = 124;

/// A client inside an export: what it sends from here on is the data plane's.
pub struct Entry {
    pub backend: UnixStream,
    /// UUID of the disk.
    pub vdi: String,
    pub session: Ref,
    disk: Arc<Disk>,
}

/// What the client said of itself: the bits of the handshake flags.
#[derive(Debug, Clone, Copy)]
pub struct ClientFlags(u32);

impl ClientFlags {
    fn wants_padding(self) -> bool {
        self.0 & u32::from(FLAG_NO_ZEROES) == 0
    }
}

/// Greets the client and waits for STARTTLS; `None` where it leaves, or asks for what cannot be refused in words.
pub async fn until_tls<S: AsyncRead + AsyncWrite + Unpin>(client: &mut S) -> io::Result<Option<ClientFlags>> {
    client.write_u64(NBDMAGIC).await?;
    client.write_u64(IHAVEOPT).await?;
    client.write_u16(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).await?;
    client.flush().await?;
    let flags = client.read_u32().await?;
    if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
        return Err(broken(format!("client flags {flags:#x} have bits that were not offered")));
    }
    for _ in 0..OPTIONS_MAX {
        let (option, data) = read_option(client).await?;
        match option {
            OPT_STARTTLS if data.is_empty() => {
                answer(client, option, REP_ACK, b"").await?;
                return Ok(Some(ClientFlags(flags)));
            }
            OPT_STARTTLS => answer(client, option, REP_ERR_INVALID, b"STARTTLS takes no data").await?,
            OPT_EXPORT_NAME => return Ok(None),
            OPT_ABORT => {
                answer(client, option, REP_ACK, b"").await?;
                return Ok(None);
            }
            _ => answer(client, option, REP_ERR_TLS_REQD, b"only TLS is spoken here: STARTTLS comes first").await?,
        }
    }
    Err(broken(format!("{OPTIONS_MAX} options and no STARTTLS")))
}

/// Answers options until the client is inside an export; `None` where it leaves.
pub async fn until_entry<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut S,
    flags: ClientFlags,
    stranger: &Stranger,
    daemon: &Arc<Daemon>,
) -> io::Result<Option<Entry>> {
    let mut way = Way { flags, stranger, is_structured: false, current: None };
    for _ in 0..OPTIONS_MAX {
        let (option, data) = read_option(client).await?;
        match option {
            OPT_ABORT => {
                answer(client, option, REP_ACK, b"").await?;
                return Ok(None);
            }
            OPT_STARTTLS => answer(client, option, REP_ERR_INVALID, b"this is TLS already").await?,
            OPT_LIST => answer(client, option, REP_ERR_POLICY, b"exports are not listed").await?,
            OPT_STRUCTURED_REPLY if !data.is_empty() => {
                answer(client, option, REP_ERR_INVALID, b"STRUCTURED_REPLY takes no data").await?;
            }
            OPT_STRUCTURED_REPLY => {
                // Told to the data plane when the client names an export.
                way.is_structured = true;
                way.current = None;
                answer(client, option, REP_ACK, b"").await?;
            }
            OPT_EXPORT_NAME => {
                let Some((name, [])) = split_name(&data, data.len()) else { return Ok(None) };
                return way.by_name(client, daemon, name).await;
            }
            OPT_GO | OPT_INFO | OPT_SET_META_CONTEXT | OPT_LIST_META_CONTEXT => {
                if way.put(client, daemon, option, &data).await? && option == OPT_GO {
                    return Ok(way.current.map(|(_, entry)| entry));
                }
            }
            _ => answer(client, option, REP_ERR_UNSUP, b"option not supported").await?,
        }
    }
    Err(broken(format!("{OPTIONS_MAX} options and no entry")))
}

/// What was agreed with the client, and the data plane's end where it has named an export.
struct Way<'a> {
    flags: ClientFlags,
    stranger: &'a Stranger,
    is_structured: bool,
    current: Option<(String, Entry)>,
}

impl Way<'_> {
    /// The data plane's end for the export of this name.
    async fn to(&mut self, daemon: &Arc<Daemon>, name: &str) -> Result<&mut Entry, Refusal> {
        if self.current.as_ref().is_none_or(|(known, _)| known != name) {
            self.current = None;
            let mut entry = open(daemon, self.stranger, name).await?;
            self.greet(&mut entry.backend).await.map_err(Refusal::backend)?;
            self.current = Some((name.to_owned(), entry));
        }
        self.current.as_mut().map(|(_, entry)| entry).ok_or_else(|| Refusal::backend("no way to the disk"))
    }

    async fn greet(&self, backend: &mut UnixStream) -> io::Result<()> {
        let greeting = (backend.read_u64().await?, backend.read_u64().await?);
        if greeting != (NBDMAGIC, IHAVEOPT) {
            return Err(broken("the data plane greets in another way".to_owned()));
        }
        let offered = u32::from(backend.read_u16().await?);
        backend.write_u32(self.flags.0 & offered).await?;
        if self.is_structured {
            send_option(backend, OPT_STRUCTURED_REPLY, b"").await?;
            let (header, _) = read_reply(backend).await?;
            if header.is_error() {
                return Err(broken("the data plane has no structured replies".to_owned()));
            }
        }
        Ok(())
    }

    /// EXPORT_NAME: there is no refusal but the end.
    async fn by_name<S: AsyncRead + AsyncWrite + Unpin>(
        mut self,
        client: &mut S,
        daemon: &Arc<Daemon>,
        name: &str,
    ) -> io::Result<Option<Entry>> {
        let wants_padding = self.flags.wants_padding();
        let Ok(entry) = self.to(daemon, name).await else { return Ok(None) };
        let Some(known) = entry.known() else { return Ok(None) };
        send_option(&mut entry.backend, OPT_EXPORT_NAME, known.as_bytes()).await?;
        let mut told = vec![0; 10 + if wants_padding { PADDING_BYTES } else { 0 }];
        entry.backend.read_exact(&mut told).await?;
        client.write_all(&told).await?;
        client.flush().await?;
        Ok(self.current.map(|(_, entry)| entry))
    }

    /// Puts an option that begins with an export's name to the data plane; true where it agrees.
    async fn put<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        client: &mut S,
        daemon: &Arc<Daemon>,
        option: u32,
        data: &[u8],
    ) -> io::Result<bool> {
        let named = Reader::new("export name", data).u32().ok().and_then(|length| {
            let rest = data.get(4..)?;
            split_name(rest, usize::try_from(length).ok()?)
        });
        let Some((name, rest)) = named else {
            answer(client, option, REP_ERR_INVALID, b"malformed name of an export").await?;
            return Ok(false);
        };
        let entry = match self.to(daemon, name).await {
            Ok(entry) => entry,
            Err(refusal) => {
                answer(client, option, refusal.kind, refusal.words.as_bytes()).await?;
                return Ok(false);
            }
        };
        let known = entry.known().unwrap_or_default();
        let mut put = text(&known);
        match option {
            OPT_LIST_META_CONTEXT => put.extend_from_slice(&widened(rest, || bitmaps(daemon, &entry.vdi))),
            _ => put.extend_from_slice(rest),
        }
        send_option(&mut entry.backend, option, &put).await?;
        loop {
            let (header, data) = read_reply(&mut entry.backend).await?;
            let is_name = header.kind == REP_INFO && data.starts_with(&INFO_NAME.to_be_bytes());
            if is_name {
                // The client learns the name that it gave, not the one behind it.
                let mut told = INFO_NAME.to_be_bytes().to_vec();
                told.extend_from_slice(name.as_bytes());
                answer(client, option, header.kind, &told).await?;
            } else {
                answer(client, option, header.kind, &data).await?;
            }
            if header.kind == REP_ACK || header.is_error() {
                return Ok(header.kind == REP_ACK);
            }
        }
    }
}

impl Entry {
    /// The name that the disk has at the data plane.
    fn known(&self) -> Option<String> {
        self.disk.way().map(|(_, known)| known.to_owned())
    }
}

/// Why an export is not opened, as an answer to an option. Never with the name: it is a key.
struct Refusal {
    kind: u32,
    words: String,
}

impl Refusal {
    fn backend(error: impl std::fmt::Display) -> Refusal {
        Refusal { kind: REP_ERR_PLATFORM, words: format!("the disk cannot be reached: {error}") }
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Refusal {
        let kind = match error.code.as_ref() {
            "HANDLE_INVALID" | "UUID_INVALID" => REP_ERR_UNKNOWN,
            "SESSION_INVALID" | "RBAC_PERMISSION_DENIED" | "VDI_IN_USE" | "VDI_INCOMPATIBLE_TYPE" => REP_ERR_POLICY,
            _ => REP_ERR_PLATFORM,
        };
        Refusal { kind, words: error.code.into_owned() }
    }
}

/// Who asks for which disk, by the name of the export: `/<VDI's uuid>?session_id=<session>`, also without the slash.
fn parse_name(name: &str) -> Option<(&str, Ref)> {
    let (path, query) = name.split_once('?')?;
    let session = query.split('&').find_map(|pair| pair.strip_prefix("session_id="))?;
    Some((path.strip_prefix('/').unwrap_or(path), Ref::from(session)))
}

async fn open(daemon: &Arc<Daemon>, stranger: &Stranger, name: &str) -> Result<Entry, Refusal> {
    let unknown = || Refusal { kind: REP_ERR_UNKNOWN, words: "no such export".to_owned() };
    let (uuid, session) = parse_name(name).ok_or_else(unknown)?;
    let vdi = permitted(daemon, uuid, &session)?;
    if !stranger.is_known() {
        tracing::warn!("more than {CLIENTS_MAX} NBD clients: one was turned away");
        return Err(Refusal { kind: REP_ERR_POLICY, words: format!("{CLIENTS_MAX} clients are connected already") });
    }
    let disk = daemon.nbd.disks.open(daemon, &vdi).await?;
    let (socket, _) = disk.way().ok_or_else(|| Refusal::backend("it is not attached"))?;
    let backend = UnixStream::connect(socket).await.map_err(Refusal::backend)?;
    Ok(Entry { backend, vdi: uuid.to_owned(), session, disk })
}

fn permitted(daemon: &Daemon, uuid: &str, session: &Ref) -> ApiResult<Ref> {
    let session = daemon.sessions.get(&daemon.db, session)?;
    if !session.may(Role::VmAdmin) {
        return Err(crate::rpc::roles::denied(&session, "vdi.get_nbd_info", Role::VmAdmin));
    }
    daemon.db.read(|state| state.by_uuid("VDI", uuid)).map(|vdi| vdi.id().clone())
}

/// Queries for contexts, where they ask for all bitmaps with each of them by name: the data plane knows generations, not
/// which of them are snapshots of this disk. As they are where they cannot be read.
fn widened(queries: &[u8], bitmaps: impl FnOnce() -> Vec<String>) -> Vec<u8> {
    let mut reader = Reader::new("context queries", queries);
    let asked: Option<Vec<&str>> =
        reader.u32().ok().and_then(|count| (0..count).map(|_| reader.text().ok()).collect::<Option<Vec<_>>>());
    let Some(mut asked) = asked else { return queries.to_vec() };
    let wants_bitmaps = asked.is_empty() || asked.iter().any(|query| matches!(*query, "qemu:" | CONTEXT_DIRTY_PREFIX));
    if asked.is_empty() {
        asked.push("base:");
    }
    let found = if wants_bitmaps { bitmaps() } else { Vec::new() };
    let all: Vec<&str> = asked.into_iter().chain(found.iter().map(String::as_str)).collect();
    let mut out = (all.len() as u32).to_be_bytes().to_vec();
    all.into_iter().for_each(|query| out.extend_from_slice(&text(query)));
    out
}

/// Names of the bitmaps against the newest other snapshots of the disk.
fn bitmaps(daemon: &Daemon, uuid: &str) -> Vec<String> {
    let mut snapshots = daemon.db.read(|state| {
        let Some(vdi) = state.find_by_uuid("VDI", uuid) else { return Vec::new() };
        let disk = if vdi.bool("is_a_snapshot") { vdi.reference("snapshot_of") } else { vdi.id().clone() };
        let all = state.find("VDI", &disk).map(|disk| disk.refs("snapshots")).unwrap_or_default();
        state.resolve("VDI", &all)
    });
    snapshots.retain(|snapshot| snapshot.uuid() != uuid && snapshot.str("type") != METADATA_TYPE);
    snapshots.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.datetime("snapshot_time").unix()));
    snapshots.iter().take(BITMAPS_MAX).map(|one| format!("{CONTEXT_DIRTY_PREFIX}{}", one.str("location"))).collect()
}

/// A length and so many bytes of text.
fn text(words: &str) -> Vec<u8> {
    let mut bytes = (words.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(words.as_bytes());
    bytes
}

/// The name in front of an option's data, and what follows it.
fn split_name(data: &[u8], length: usize) -> Option<(&str, &[u8])> {
    let (name, rest) = data.split_at_checked(length).filter(|_| length <= NAME_BYTES_MAX)?;
    Some((std::str::from_utf8(name).ok()?, rest))
}

async fn read_option<S: AsyncRead + Unpin>(client: &mut S) -> io::Result<(u32, Vec<u8>)> {
    let mut bytes = [0; OPTION_HEADER_BYTES];
    client.read_exact(&mut bytes).await?;
    let header = OptionHeader::decode(&bytes).map_err(broken)?;
    Ok((header.option, read_data(client, header.length).await?))
}

async fn read_reply(backend: &mut UnixStream) -> io::Result<(OptionReplyHeader, Vec<u8>)> {
    let mut bytes = [0; OPTION_REPLY_HEADER_BYTES];
    backend.read_exact(&mut bytes).await?;
    let header = OptionReplyHeader::decode(&bytes).map_err(broken)?;
    Ok((header, read_data(backend, header.length).await?))
}

async fn read_data<S: AsyncRead + Unpin>(stream: &mut S, length: u32) -> io::Result<Vec<u8>> {
    if length > OPTION_BYTES_MAX {
        return Err(broken(format!("an option of {length} bytes; at most {OPTION_BYTES_MAX} are accepted")));
    }
    let mut data = vec![0; length as usize];
    stream.read_exact(&mut data).await?;
    Ok(data)
}

async fn send_option(backend: &mut UnixStream, option: u32, data: &[u8]) -> io::Result<()> {
    let mut frame = OptionHeader { option, length: data.len() as u32 }.encode().to_vec();
    frame.extend_from_slice(data);
    backend.write_all(&frame).await
}

async fn answer<S: AsyncWrite + Unpin>(client: &mut S, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut frame = OptionReplyHeader { option, kind, length: data.len() as u32 }.encode().to_vec();
    frame.extend_from_slice(data);
    client.write_all(&frame).await?;
    client.flush().await
}

fn broken(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::{parse_name, split_name, text, widened};

    #[test]
    fn a_name_is_a_disk_and_a_session() {
        let (vdi, session) = parse_name("/0f5e?session_id=OpaqueRef:77").unwrap();
        assert_eq!((vdi, session.as_str()), ("0f5e", "OpaqueRef:77"));
        assert_eq!(parse_name("0f5e?x=1&session_id=s").unwrap().0, "0f5e");
        for wrong in ["", "/0f5e", "/0f5e?", "/0f5e?session=s"] {
            assert!(parse_name(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn whoever_asks_for_all_bitmaps_gets_each_by_name() {
        let queries = |words: &[&str]| {
            let mut out = (words.len() as u32).to_be_bytes().to_vec();
            words.iter().for_each(|word| out.extend_from_slice(&text(word)));
            out
        };
        let bitmaps = || vec!["qemu:dirty-bitmap:1".to_owned()];
        assert_eq!(widened(&queries(&[]), bitmaps), queries(&["base:", "qemu:dirty-bitmap:1"]));
        assert_eq!(widened(&queries(&["qemu:"]), bitmaps), queries(&["qemu:", "qemu:dirty-bitmap:1"]));
        let named = queries(&["base:allocation", "qemu:dirty-bitmap:2"]);
        assert_eq!(widened(&named, bitmaps), named);
        assert_eq!(widened(&[0, 0, 0, 9, 1], bitmaps), [0, 0, 0, 9, 1]);
    }

    #[test]
    fn a_name_ends_where_its_length_says() {
        assert_eq!(split_name(b"abcd", 3), Some(("abc", &b"d"[..])));
        assert_eq!(split_name(b"abcd", 5), None);
        assert_eq!(split_name(&[0xff, 0xff], 2), None);
        assert_eq!(split_name(&[b'a'; 5000], 5000), None);
    }
}
