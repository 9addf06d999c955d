//! The certificate, made on the first start, and what we speak with it.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::context::Daemon;
use crate::db::View;
use crate::files;

/// Reads the certificate and key in `dir`, or makes them for `names` (host names and addresses).
pub fn server_config(dir: &Path, names: Vec<String>) -> anyhow::Result<ServerConfig> {
    let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    if !certificate.exists() {
        make(dir, names).context("a TLS certificate could not be made")?;
    }
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(&certificate)
            .and_then(Iterator::collect)
            .with_context(|| format!("{} holds no certificate", certificate.display()))?;
    let key = PrivateKeyDer::from_pem_file(&key).with_context(|| format!("{} holds no key", key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Host names and addresses under which clients find us.
pub fn certificate_names(daemon: &Daemon) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    if let Ok(host) = daemon.db.read(|s| s.only("host")) {
        names.extend(["hostname", "address"].map(|f| host.str(f).to_owned()).into_iter().filter(|n| !n.is_empty()));
    }
    names.sort();
    names.dedup();
    names
}

fn make(dir: &Path, names: Vec<String>) -> anyhow::Result<()> {
    files::create_private_dir(dir)?;
    let mut params = rcgen::CertificateParams::new(names)?;
    params.distinguished_name.push(rcgen::DnType::CommonName, "tanada");
    let key = rcgen::KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    // The certificate last: with it there, the key is there.
    files::write_private(&dir.join("key.pem"), key.serialize_pem().as_bytes())?;
    files::write_private(&dir.join("cert.pem"), certificate.pem().as_bytes())?;
    Ok(())
}
