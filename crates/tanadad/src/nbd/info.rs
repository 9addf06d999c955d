//! `VDI.get_nbd_info`: where a disk is to be had over NBD, and under which name. And the purposes of networks.

use std::fs;
use std::net::SocketAddr;

use futures_util::FutureExt;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tanada_xapi::{ApiError, ApiResult, Value};

use crate::context::{Args, CallContext, Daemon, Handlers};
use crate::db::View;
use crate::http::tls;
use crate::ops::cbt::METADATA_TYPE;

pub fn handlers() -> Handlers {
    vec![
        ("VDI.get_nbd_info", |ctx, args| get_nbd_info(ctx, args).boxed()),
        ("network.add_purpose", |ctx, args| purpose(ctx, args, true).boxed()),
        ("network.remove_purpose", |ctx, args| purpose(ctx, args, false).boxed()),
    ]
}

/// One answer where the daemon listens, none where it does not. What it says is a key to the disk as long as the session
/// is open.
async fn get_nbd_info(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vdi = ctx.db().read(|state| args.reference("self").and_then(|vdi| state.get("VDI", &vdi)))?;
    if vdi.str("type") == METADATA_TYPE {
        return Err(ApiError::vdi_incompatible_type(vdi.id(), METADATA_TYPE));
    }
    let Some(address) = ctx.daemon.nbd.address() else { return Ok(Value::empty_set()) };
    let certificate = fs::read_to_string(ctx.daemon.config.state_dir.join("tls/cert.pem"))
        .map_err(|error| ApiError::internal(format!("the certificate cannot be read: {error}")))?;
    let subject = subject(&ctx.daemon, &certificate);
    let info = Value::map([
        ("exportname", Value::from(format!("/{}?session_id={}", vdi.uuid(), ctx.session.id()))),
        ("address", Value::from(reachable(&ctx.daemon, address))),
        ("port", Value::from(i64::from(address.port()))),
        ("cert", Value::from(certificate)),
        ("subject", Value::from(subject)),
    ]);
    Ok(Value::Set(vec![info]))
}

/// The address that a client on another host can use.
fn reachable(daemon: &Daemon, listening: SocketAddr) -> String {
    let host = daemon.db.read(|state| state.only("host").map(|host| host.str("address").to_owned()));
    match host {
        Ok(address) if listening.ip().is_unspecified() => address,
        _ => listening.ip().to_string(),
    }
}

/// The name under which a client finds the certificate valid: the host's own where it is good for that.
fn subject(daemon: &Daemon, certificate: &str) -> String {
    let hostname = daemon.db.read(|state| state.only("host").map(|host| host.str("hostname").to_owned()));
    let hostname = hostname.unwrap_or_default();
    let names = tls::certificate_names(daemon);
    let is_good = |name: &&String| names_certificate(certificate, name).unwrap_or(false);
    let others = names.iter().filter(|name| name.parse::<std::net::IpAddr>().is_err());
    std::iter::once(&hostname).chain(others).find(is_good).unwrap_or(&hostname).clone()
}

/// Is the first certificate of this text good for this name? `None` where either is not what it should be.
fn names_certificate(certificate: &str, name: &str) -> Option<bool> {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
    let parsed = rustls::server::ParsedCertificate::try_from(&certificate).ok()?;
    let name = ServerName::try_from(name).ok()?;
    Some(rustls::client::verify_server_name(&parsed, &name).is_ok())
}

async fn purpose(ctx: CallContext, args: Args, add: bool) -> ApiResult<Value> {
    let (network, value) = (args.reference("self")?, args.string("value")?);
    if add && value != "nbd" {
        let reason = "disks are served over TLS only; the purpose for that is nbd";
        return Err(ApiError::value_not_supported("value", value, reason));
    }
    ctx.db().write(|tx| match add {
        true => tx.add_member("network", &network, "purpose", value),
        false => tx.remove_member("network", &network, "purpose", value),
    })?;
    Ok(Value::Void)
}
