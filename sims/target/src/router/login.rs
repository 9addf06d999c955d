//! The login phase: who it is, where it goes, names rewritten both ways until full-feature phase.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;

use crate::discovery;
use crate::pdu::{Keys, LOGIN, LOGIN_RESPONSE, Pdu};
use crate::router::{Login, Refusal, Route, Session, Shared};
use crate::target::Accounts;

/// Full-feature phase, as a stage number.
const FULL_FEATURE: u8 = 3;
/// Class and detail of "target moved temporarily".
const MOVED_TEMPORARILY: Refusal = Refusal { class: 1, detail: 1 };

/// Both ends of a session in full-feature phase.
pub struct LoggedIn {
    pub session: Session,
    pub initiator: BufReader<TcpStream>,
    pub backend: BufReader<TcpStream>,
}

/// Takes a connection through its login. None: it was a discovery session, or it was refused, and is over.
pub async fn run(
    shared: &Arc<Shared>,
    stream: TcpStream,
    portal: SocketAddr,
    peer: SocketAddr,
) -> io::Result<Option<LoggedIn>> {
    let mut initiator = BufReader::new(stream);
    let Some(first) = Pdu::read(&mut initiator).await? else { return Ok(None) };
    if first.opcode() != LOGIN {
        return Err(io::Error::other(format!("the first PDU has opcode {:#x}, a login is expected", first.opcode())));
    }
    let keys = first.keys();
    let name = keys.get("InitiatorName").unwrap_or_default().to_string();
    if name.is_empty() {
        // Class 2, detail 7: a mandatory parameter is missing.
        return refuse(&mut initiator, &first, Refusal { class: 2, detail: 7 }, None).await;
    }
    if keys.get("SessionType") == Some("Discovery") {
        let (shared, asker) = (Arc::clone(shared), name.clone());
        let found = blocking(move || shared.director.discover(&asker, portal)).await?;
        return match found {
            Ok(discovery) => discovery::serve(&mut initiator, first, discovery).await.map(|()| None),
            Err(refusal) => refuse(&mut initiator, &first, refusal, None).await,
        };
    }
    let target = keys.get("TargetName").unwrap_or_default().to_string();
    let login = Login { initiator: name, target, portal, peer };
    let route = {
        let (shared, login) = (Arc::clone(shared), login.clone());
        blocking(move || shared.director.login(&login)).await?
    };
    match route {
        Route::Refuse(refusal) => refuse(&mut initiator, &first, refusal, None).await,
        Route::Redirect { portal } => refuse(&mut initiator, &first, MOVED_TEMPORARILY, Some(&portal)).await,
        Route::Accept { target } => {
            let mut isid = [0; 6];
            isid.copy_from_slice(&first.header[8..14]);
            let session = Session { login, target, peer, isid };
            forward(shared, initiator, first, session).await
        }
    }
}

/// Runs what may block (the array's locks) on a thread that may.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)
}

async fn forward(
    shared: &Arc<Shared>,
    mut initiator: BufReader<TcpStream>,
    first: Pdu,
    session: Session,
) -> io::Result<Option<LoggedIn>> {
    let accounts = {
        let (shared, target) = (Arc::clone(shared), session.target.clone());
        blocking(move || shared.target.accounts(&target)).await?
    };
    let stream = TcpStream::connect(shared.target.backend()).await?;
    stream.set_nodelay(true)?;
    let mut backend = BufReader::new(stream);
    let mut request = first;
    loop {
        let keys = request.keys();
        if let Some(keys) = outward(keys, &session.target, &accounts) {
            request.data = keys.bytes();
        }
        request.write(backend.get_mut()).await?;
        let Some(mut answer) = Pdu::read(&mut backend).await? else { return Ok(None) };
        if let Some(keys) = homeward(answer.keys(), &accounts) {
            answer.data = keys.bytes();
        }
        let refused = answer.header[36] != 0;
        let is_done = answer.is_transit() && answer.stages().1 == FULL_FEATURE && !refused;
        let is_login = answer.opcode() == LOGIN_RESPONSE;
        answer.write(initiator.get_mut()).await?;
        if is_done {
            return Ok(Some(LoggedIn { session, initiator, backend }));
        }
        if refused || !is_login {
            return Ok(None);
        }
        match Pdu::read(&mut initiator).await? {
            Some(next) if next.opcode() == LOGIN => request = next,
            _ => return Ok(None),
        }
    }
}

/// The initiator's words in tgtd's names; none where nothing has to change.
fn outward(mut keys: Keys, target: &str, accounts: &Accounts) -> Option<Keys> {
    let before = keys.clone();
    keys.replace("TargetName", target);
    if let (Some((shown, inner)), Some(said)) = (&accounts.inbound, keys.get("CHAP_N")) {
        // Another user's name goes through and is unknown there.
        let name = if said == shown { inner.clone() } else { format!("unknown {said}") };
        keys.replace("CHAP_N", &name);
    }
    // The router reads PDUs, so there may be no digests in them.
    for digest in ["HeaderDigest", "DataDigest"] {
        keys.replace(digest, "None");
    }
    (keys != before).then_some(keys)
}

/// tgtd's words in the array's names.
fn homeward(mut keys: Keys, accounts: &Accounts) -> Option<Keys> {
    let (shown, inner) = accounts.outbound.as_ref()?;
    (keys.get("CHAP_N") == Some(inner)).then(|| {
        keys.replace("CHAP_N", shown);
        keys
    })
}

/// A login response that ends the attempt.
pub async fn refuse<S: AsyncRead + AsyncWrite + Unpin, T>(
    initiator: &mut BufReader<S>,
    request: &Pdu,
    refusal: Refusal,
    portal: Option<&str>,
) -> io::Result<Option<T>> {
    let mut answer = Pdu::new(LOGIN_RESPONSE);
    answer.header[8..14].copy_from_slice(&request.header[8..14]);
    answer.set_word(16, request.task_tag());
    answer.set_word(28, request.word(24));
    answer.header[36] = refusal.class;
    answer.header[37] = refusal.detail;
    if let Some(portal) = portal {
        let mut keys = Keys::default();
        keys.push("TargetAddress", portal);
        answer.data = keys.bytes();
    }
    answer.write(initiator.get_mut()).await?;
    initiator.get_mut().shutdown().await?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::{homeward, outward};
    use crate::pdu::Keys;
    use crate::target::Accounts;

    #[test]
    fn names_are_translated_both_ways_and_strangers_stay_strangers() {
        let accounts = Accounts {
            inbound: Some(("joe".into(), "account1".into())),
            outbound: Some(("array".into(), "account2".into())),
        };
        let said = Keys::parse(b"TargetName=iqn.array\0CHAP_N=joe\0HeaderDigest=CRC32C,None\0");
        let sent = outward(said, "iqn.inner", &accounts).unwrap();
        assert_eq!(sent, Keys::parse(b"TargetName=iqn.inner\0CHAP_N=account1\0HeaderDigest=None\0"));
        let stranger = outward(Keys::parse(b"CHAP_N=account1\0"), "iqn.inner", &accounts).unwrap();
        assert_eq!(stranger.get("CHAP_N"), Some("unknown account1"), "tgtd's own names are nobody's");
        let back = homeward(Keys::parse(b"CHAP_N=account2\0CHAP_R=0x1\0"), &accounts).unwrap();
        assert_eq!(back, Keys::parse(b"CHAP_N=array\0CHAP_R=0x1\0"));
    }
}
