//! Whom the driver believes to be the array. Arrays come with certificates of their own making, so beside the host's
//! roots an administrator can name a CA file or pin the certificate; not checking is no choice.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use ring::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// Where Debian keeps the roots that the host trusts.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What makes a certificate acceptable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// It leads to a root of the host, and names the array.
    System,
    /// It leads to a certificate in this PEM file, and names the array.
    Authority(PathBuf),
    /// Its SHA-256 is this; names and dates do not matter then.
    Pinned([u8; 32]),
}

/// `AB:CD:..`, `abcd..` or `SHA256:abcd..`: 32 bytes in hexadecimal.
pub fn parse_fingerprint(text: &str) -> Option<[u8; 32]> {
    let digits = text.trim();
    let digits = digits.strip_prefix("SHA256:").or_else(|| digits.strip_prefix("sha256:")).unwrap_or(digits);
    let digits: Vec<u8> = digits.bytes().filter(|byte| *byte != b':').collect();
    if digits.len() != 64 {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(digits.chunks(2)) {
        let nibble = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = u8::try_from(nibble(0)? * 16 + nibble(1)?).ok()?;
    }
    Some(out)
}

/// The client side of TLS under `trust`; the error says what is wrong with the file.
pub fn client_config(trust: &Trust) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?;
    Ok(match trust {
        Trust::System => builder.with_root_certificates(roots(&PathBuf::from(SYSTEM_ROOTS))?).with_no_client_auth(),
        Trust::Authority(file) => builder.with_root_certificates(roots(file)?).with_no_client_auth(),
        Trust::Pinned(fingerprint) => {
            let verifier = Arc::new(PinnedCertificate { fingerprint: *fingerprint, provider });
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        }
    })
}

fn roots(file: &PathBuf) -> Result<RootCertStore, String> {
    let shown = file.display();
    let pem = fs::read(file).map_err(|error| format!("{shown}: {error}"))?;
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| format!("{shown}: {error}"))?;
        // The host's bundle may hold a root that this TLS library cannot use; the others count.
        if let Err(error) = store.add(certificate) {
            tracing::debug!(file = %shown, %error, "a root certificate is left out");
        }
    }
    if store.is_empty() {
        return Err(format!("{shown} holds no usable certificate; a PEM file with CERTIFICATE blocks is needed"));
    }
    Ok(store)
}

/// Accepts one certificate, whoever signed it; the handshake still proves that the peer has its key.
#[derive(Debug)]
struct PinnedCertificate {
    fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCertificate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let seen = digest::digest(&digest::SHA256, end_entity);
        if seen.as_ref() == self.fingerprint {
            return Ok(ServerCertVerified::assertion());
        }
        tracing::warn!(seen = %hex(seen.as_ref()), pinned = %hex(&self.fingerprint), "another certificate than the pinned one");
        Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::{Trust, client_config, hex, parse_fingerprint};

    #[test]
    fn fingerprints_are_read_in_the_forms_that_tools_print() {
        let plain = "00".repeat(31) + "ff";
        let colons = "00:".repeat(31) + "FF";
        let read = parse_fingerprint(&plain).unwrap();
        assert_eq!(hex(&read), plain);
        assert_eq!(parse_fingerprint(&colons), Some(read));
        assert_eq!(parse_fingerprint(&format!("SHA256:{colons}")), Some(read));
        for wrong in ["", "00", &"0g".repeat(32), &"00".repeat(33)] {
            assert_eq!(parse_fingerprint(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_file_without_certificates_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let words = client_config(&Trust::Authority(file.path().to_path_buf())).unwrap_err();
        assert!(words.contains("holds no usable certificate"), "{words}");
        let words = client_config(&Trust::Authority("/nonexistent/ca.pem".into())).unwrap_err();
        assert!(words.contains("/nonexistent/ca.pem"), "{words}");
    }
}
