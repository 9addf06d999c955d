//! Servers that are who they say they are, and others.

use super::server::FakeServer;
use super::{Ran, plain, xe};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::{TcpListener, UnixStream};
use tokio_rustls::TlsAcceptor;

/// A certificate with its key; `is_ca` as `openssl req -x509` makes it.
fn made(names: &[&str], is_ca: bool) -> (rcgen::Certificate, rcgen::KeyPair, rcgen::CertificateParams) {
    let mut params =
        rcgen::CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    if is_ca {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    }
    let key = rcgen::KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap(), key, params)
}

/// Serves the tiny server over TLS on a port of its own.
fn over_tls(server: &FakeServer, certificate: &rcgen::Certificate, key: &rcgen::KeyPair) -> String {
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (acceptor, socket) = (TlsAcceptor::from(Arc::new(config)), server.socket.clone());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut outside) = acceptor.accept(stream).await else { continue };
                let mut inside = UnixStream::connect(&socket).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            }
        });
    });
    port.to_string()
}

fn list(server: &FakeServer, host: &str, port: &str, more: &[&str]) -> Ran {
    let words = ["-s", host, "-p", port, "-pw", "secret", "vm-list", "params=uuid", "--minimal"];
    xe(server, "", &[&words[..], more].concat())
}

struct Files(tempfile::TempDir);

impl Files {
    fn pem(&self, name: &str, certificate: &rcgen::Certificate) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, certificate.pem()).unwrap();
        path
    }
}

fn ca(file: &Path) -> String {
    format!("--ca={}", file.display())
}

#[test]
fn a_server_that_the_file_vouches_for_is_talked_to_and_no_other() {
    let (server, files) = (plain(), Files(tempfile::tempdir().unwrap()));
    for is_ca in [false, true] {
        let (own, key, _) = made(&["127.0.0.1"], is_ca);
        let (other, ..) = made(&["127.0.0.1"], is_ca);
        let (own_file, other_file) = (files.pem("own", &own), files.pem("other", &other));
        let port = over_tls(&server, &own, &key);
        let ran = list(&server, "127.0.0.1", &port, &[&ca(&own_file)]);
        assert_eq!((ran.status, ran.err.as_str()), (0, ""), "an authority of its own: {is_ca}");
        assert!(ran.out.contains("v1"), "{}", ran.out);
        let ran = list(&server, "127.0.0.1", &port, &[&ca(&other_file)]);
        assert!(ran.status == 1 && ran.out.is_empty(), "{}", ran.out);
        assert!(ran.err.contains(&format!("127.0.0.1:{port} is not to be trusted: ")), "{}", ran.err);
        // The right certificate, and another server's name.
        let ran = list(&server, "localhost", &port, &[&ca(&own_file)]);
        assert!(ran.status == 1 && ran.err.contains("is not to be trusted"), "{}", ran.err);
    }
}

#[test]
fn an_authority_vouches_for_what_it_has_signed() {
    let (server, files) = (plain(), Files(tempfile::tempdir().unwrap()));
    let (authority, authority_key, params) = made(&[], true);
    let issuer = rcgen::Issuer::from_params(&params, &authority_key);
    let (_, key, leaf) = made(&["127.0.0.1"], false);
    let port = over_tls(&server, &leaf.signed_by(&key, &issuer).unwrap(), &key);
    let file = files.pem("authority", &authority);
    let ran = list(&server, "127.0.0.1", &port, &["--ca", file.to_str().unwrap()]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
}

#[test]
fn without_a_file_it_is_said_once_that_nobody_is_checked() {
    let server = plain();
    let (own, key, _) = made(&["elsewhere"], false);
    let port = over_tls(&server, &own, &key);
    let ran = list(&server, "127.0.0.1", &port, &[]);
    assert_eq!(ran.status, 0);
    let said = "The certificate of 127.0.0.1 is not checked: --ca (or XE_CA) names the file with the one to trust\n";
    assert_eq!(ran.err, said);
}

#[test]
fn a_file_that_is_of_no_use_is_no_leave_to_trust_anybody() {
    let (server, files) = (plain(), Files(tempfile::tempdir().unwrap()));
    let (own, key, _) = made(&["127.0.0.1"], false);
    let port = over_tls(&server, &own, &key);
    let empty = files.0.path().join("empty");
    std::fs::write(&empty, "no certificate\n").unwrap();
    for file in [empty, files.0.path().join("missing")] {
        let ran = list(&server, "127.0.0.1", &port, &[&ca(&file)]);
        assert!(ran.status == 1 && ran.err.starts_with("Error: Cannot use the certificates of /"), "{}", ran.err);
    }
    let own_file = files.pem("own", &own);
    let ran = list(&server, "127.0.0.1", &port, &["--nossl", &ca(&own_file)]);
    assert!(ran.status == 1 && ran.err.starts_with("Error: --nossl asks for plain HTTP"), "{}", ran.err);
}
