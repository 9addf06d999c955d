//! A certificate authority of the array's own, and the certificate that it signed for the management address.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What a client needs to trust the array.
#[derive(Debug, Clone)]
pub struct Trust {
    /// PEM file of the authority.
    pub ca: PathBuf,
    /// SHA-256 of the server's certificate, lower-case hexadecimal.
    pub fingerprint: String,
}

/// Reads the certificate in `dir`, or makes it.
pub fn configure(dir: &Path, address: IpAddr) -> Result<(Arc<ServerConfig>, Trust)> {
    let [ca, certificate, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| dir.join(name));
    if !certificate.exists() {
        make(&ca, &certificate, &key, address).context("the array's certificate could not be made")?;
    }
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(&certificate)
            .and_then(Iterator::collect)
            .with_context(|| format!("{} holds no certificate", certificate.display()))?;
    let leaf = chain.first().context("no certificate")?;
    let digest = ring::digest::digest(&ring::digest::SHA256, leaf);
    let fingerprint = digest.as_ref().iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    let key = PrivateKeyDer::from_pem_file(&key).with_context(|| format!("{} holds no key", key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((Arc::new(config), Trust { ca, fingerprint }))
}

fn make(ca: &Path, certificate: &Path, key: &Path, address: IpAddr) -> Result<()> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority.distinguished_name.push(DnType::CommonName, "simulated cluster CA");
    let authority_key = KeyPair::generate()?;
    let authority_pem = authority.self_signed(&authority_key)?.pem();
    let issuer = Issuer::new(authority, authority_key);
    let mut server = CertificateParams::new(vec![address.to_string(), "localhost".into()])?;
    server.distinguished_name.push(DnType::CommonName, "simulated cluster");
    server.use_authority_key_identifier_extension = true;
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let server_key = KeyPair::generate()?;
    let server_pem = server.signed_by(&server_key, &issuer)?.pem();
    write(ca, &authority_pem)?;
    write(key, &server_key.serialize_pem())?;
    // Last: with it there, the others are.
    write(certificate, &server_pem)?;
    Ok(())
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}
