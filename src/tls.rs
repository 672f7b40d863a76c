//! TLS, and all of the outgoing kind: whom we trust, and a plain sentence for each certificate that we don't.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::digest;
use jiff::Timestamp;
use rustls::CertificateError;
use rustls::ClientConfig;
use rustls::CommonState;
use rustls::ConfigBuilder;
use rustls::DigitallySignedStruct;
use rustls::OtherError;
use rustls::RootCertStore;
use rustls::SignatureScheme;
use rustls::WantsVerifier;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::verify_tls12_signature;
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::pki_types::pem::PemObject;
use toml::Spanned;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::settings::Check;
use crate::settings::SecretSource;
use crate::settings::Span;

/// A client that trusts the authorities of `ca_file` alone, or without it those of the system. `None`: `check` says why.
pub fn client_config(
    ca_file: Option<&Spanned<PathBuf>>,
    check: &mut Check,
) -> Option<Arc<ClientConfig>> {
    client_config_as(ca_file, None, check)
}

/// The same, which says who it is where it is asked.
pub fn client_config_as(
    ca_file: Option<&Spanned<PathBuf>>,
    identity: Option<Identity>,
    check: &mut Check,
) -> Option<Arc<ClientConfig>> {
    let roots = roots(ca_file, check)?;
    let Some(Identity { span, chain, key }) = identity else {
        return Some(client_trusting(roots));
    };
    match builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
    {
        Ok(config) => Some(Arc::new(config)),
        Err(e) => {
            check.problem(span, format!("`cert` and `key` don't fit each other: {e}"));
            None
        }
    }
}

/// The authorities of `ca_file`, or without it those of the system; for many clients that trust the same ones.
pub fn roots(ca_file: Option<&Spanned<PathBuf>>, check: &mut Check) -> Option<Arc<RootCertStore>> {
    let roots = match ca_file {
        Some(file) => roots_of_file(file, check)?,
        None => roots_of_system(check)?,
    };
    Some(Arc::new(roots))
}

/// A client certificate and its key.
pub struct Identity {
    span: Span,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// Reads a client certificate and its key, both in PEM. `None`: `check` says why.
pub fn identity(
    cert: &Spanned<PathBuf>,
    key: &SecretSource,
    check: &mut Check,
) -> Option<Identity> {
    let path = check.path(cert.get_ref());
    let chain = std::fs::read(&path)
        .map_err(|e| format!("can't be read: {e}"))
        .and_then(|pem| {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            match chain {
                Ok(chain) if !chain.is_empty() => Ok(chain),
                _ => Err("holds no certificate in PEM (-----BEGIN CERTIFICATE-----)".to_owned()),
            }
        });
    if let Err(why) = &chain {
        check.problem(cert.span(), format!("{} {why}", path.display()));
    }
    let key_span = key.span.clone();
    let key = check.secret(key)?;
    let Ok(key) = PrivateKeyDer::from_pem_slice(key.expose().as_bytes()) else {
        check.problem(
            key_span,
            "this is no private key in PEM (-----BEGIN PRIVATE KEY-----, without a passphrase)",
        );
        return None;
    };
    Some(Identity {
        span: cert.span(),
        chain: chain.ok()?,
        key,
    })
}

/// A client that trusts nobody, for what never speaks TLS.
pub fn trusting_nobody() -> Arc<ClientConfig> {
    client_trusting(Arc::new(RootCertStore::empty()))
}

/// A client that trusts these authorities.
pub fn client_trusting(roots: Arc<RootCertStore>) -> Arc<ClientConfig> {
    Arc::new(
        builder()
            .with_root_certificates(roots)
            .with_no_client_auth(),
    )
}

/// A client that believes one certificate alone, whoever signed it, whatever names and dates it carries.
pub fn client_pinned(pin: Fingerprint) -> Arc<ClientConfig> {
    let verifier = Arc::new(Pinned {
        pin,
        provider: rustls::crypto::aws_lc_rs::default_provider(),
    });
    Arc::new(
        builder()
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth(),
    )
}

/// The SHA-256 of a certificate, as `openssl x509 -fingerprint -sha256` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    fn of(certificate: &[u8]) -> Self {
        let digest = digest::digest(&digest::SHA256, certificate);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl FromStr for Fingerprint {
    type Err = ();

    /// `sha256:` and 64 hexadecimal digits, with colons or without.
    fn from_str(text: &str) -> Result<Self, ()> {
        let digits: Vec<u8> = text
            .strip_prefix("sha256:")
            .ok_or(())?
            .chars()
            .filter(|c| *c != ':')
            .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()).ok_or(()))
            .collect::<Result<_, ()>>()?;
        let bytes: Vec<u8> = digits
            .chunks(2)
            .map(|two| two[0] << 4 | two[two.len() - 1])
            .collect();
        match digits.len() {
            64 => bytes.try_into().map(Self).map_err(|_| ()),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Believes a certificate by its fingerprint; that its key is at the other end is still proved by the handshake.
#[derive(Debug)]
struct Pinned {
    pin: Fingerprint,
    provider: CryptoProvider,
}

/// Another certificate than the pinned one.
#[derive(Debug, thiserror::Error)]
#[error("its fingerprint is {0}")]
struct OtherCertificate(Fingerprint);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let seen = Fingerprint::of(certificate);
        if seen == self.pin {
            return Ok(ServerCertVerified::assertion());
        }
        let other = OtherError(Arc::new(OtherCertificate(seen)));
        Err(CertificateError::Other(other).into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn builder() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider knows TLS 1.2 and 1.3")
}

/// The authorities in a file. `None`: `check` says why.
pub fn roots_of_file(file: &Spanned<PathBuf>, check: &mut Check) -> Option<RootCertStore> {
    let path = check.path(file.get_ref());
    let mut wrong = |text: String| {
        check.problem(file.span(), format!("{} {text}", path.display()));
        None
    };
    let pem = match std::fs::read(&path) {
        Ok(pem) => pem,
        Err(e) => return wrong(format!("can't be read: {e}")),
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let added = match certificate {
            Ok(certificate) => roots.add(certificate).map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        if let Err(e) = added {
            return wrong(format!("holds a certificate that can't be read: {e}"));
        }
    }
    if roots.is_empty() {
        return wrong(
            "holds no certificate; it should hold those of the authorities, in PEM (-----BEGIN CERTIFICATE-----)"
                .to_owned(),
        );
    }
    Some(roots)
}

fn roots_of_system(check: &mut Check) -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    // Systems carry a few certificates that nobody can parse; the others are good.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        check.problem(
            None,
            "this system has no certificate authorities (on Debian: apt install ca-certificates); or write ca_file",
        );
        return None;
    }
    Some(roots)
}

/// What is wrong with the certificate of `host`, if that is what is behind this error.
pub fn certificate_error(error: &(dyn Error + 'static), host: &str) -> Option<String> {
    let rustls::Error::InvalidCertificate(error) = rustls_error(error)? else {
        return None;
    };
    let what = match error {
        // An authority of the same name but with another key shows as a bad signature.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "is signed by an authority that is not trusted here; put that authority's certificate into ca_file".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            let names = match error {
                CertificateError::NotValidForNameContext { presented, .. } => presented.as_slice(),
                _ => &[],
            };
            let others = match names {
                [] => "no name".to_owned(),
                some => some.iter().take(MAX_NAMES).map(|n| plain_name(n)).collect::<Vec<_>>().join(", "),
            };
            format!("is made out to {others}, not to {host}; write the name it is made out to as host")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet (is this machine's clock right?)".to_owned()
        }
        CertificateError::Other(OtherError(other)) if other.is::<OtherCertificate>() => {
            format!("is another one than `fingerprint` names: {other}; if the certificate was renewed on purpose, write that")
        }
        CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "is that of an authority and not of a server; give the server one that is signed by it".to_owned()
        }
        CertificateError::Revoked => "was revoked".to_owned(),
        other => format!("is not acceptable: {other}"),
    };
    Some(format!("the certificate of {host} {what}"))
}

/// From how many days before a certificate's end on it is time to say so.
const NEAR_END_DAYS: i64 = 14;

/// A handshake that succeeded, as a part of a sentence: the version, and how long the peer's certificate is still good.
pub fn handshake(session: &CommonState, now: Timestamp) -> String {
    let version = match session.protocol_version().and_then(|v| v.as_str()) {
        Some(version) => version.replace("TLSv", "TLS ").replace('_', "."),
        None => "TLS".to_owned(),
    };
    let end = session.peer_certificates().and_then(|chain| {
        let (_, certificate) = X509Certificate::from_der(chain.first()?).ok()?;
        Some(certificate.validity().not_after.timestamp())
    });
    let days = end.map(|end| end.saturating_sub(now.as_second()) / 86_400);
    match days {
        Some(days) if days < NEAR_END_DAYS => format!(
            "{version}, with a trusted certificate that ends in {days} days: see that it is renewed"
        ),
        Some(days) => {
            format!("{version}, with a trusted certificate that is good for another {days} days")
        }
        None => format!("{version}, with a trusted certificate"),
    }
}

/// The innermost I/O error, which says what happened in the system's words.
pub fn io_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    causes(error)
        .into_iter()
        .filter_map(|e| e.downcast_ref())
        .last()
}

/// The error of rustls behind this one: it hides inside an `io::Error`, and HTTP hides that in turn.
pub fn rustls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    causes(error).into_iter().find_map(|e| e.downcast_ref())
}

/// An error and all that it wraps. An I/O error's `source` skips what it wraps itself, hence the detour.
pub fn causes<'a>(error: &'a (dyn Error + 'static)) -> Vec<&'a (dyn Error + 'static)> {
    let mut all = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        all.push(error);
        next = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    all
}

/// So many names of a foreign certificate are shown.
const MAX_NAMES: usize = 5;

/// rustls prints a name as `DnsName("example.com")`.
fn plain_name(name: &str) -> String {
    name.split('"').nth(1).unwrap_or(name).to_owned()
}
