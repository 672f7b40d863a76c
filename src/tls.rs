//! TLS, and all of the outgoing kind: whom we trust, and a plain sentence for each certificate that we don't.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::CertificateError;
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use toml::Spanned;

use crate::settings::Check;

/// A client that trusts the authorities of `ca_file` alone, or without it those of the system. `None`: `check` says why.
pub fn client_config(
    ca_file: Option<&Spanned<PathBuf>>,
    check: &mut Check,
) -> Option<Arc<ClientConfig>> {
    let roots = match ca_file {
        Some(file) => roots_of_file(file, check)?,
        None => roots_of_system(check)?,
    };
    Some(client_of(roots))
}

/// A client that trusts nobody, for what never speaks TLS.
pub fn trusting_nobody() -> Arc<ClientConfig> {
    client_of(RootCertStore::empty())
}

fn client_of(roots: RootCertStore) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider knows TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
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
        CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "is that of an authority and not of a server; give the server one that is signed by it".to_owned()
        }
        CertificateError::Revoked => "was revoked".to_owned(),
        other => format!("is not acceptable: {other}"),
    };
    Some(format!("the certificate of {host} {what}"))
}

/// The error of rustls behind this one: it hides inside an `io::Error`, and HTTP hides that in turn.
pub fn rustls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An `io::Error` names as its source what its content names, not the content itself.
        let inside = error.downcast_ref().and_then(io::Error::get_ref);
        next = match inside {
            Some(inside) => Some(inside),
            None => error.source(),
        };
    }
    None
}

/// So many names of a foreign certificate are shown.
const MAX_NAMES: usize = 5;

/// rustls prints a name as `DnsName("example.com")`.
fn plain_name(name: &str) -> String {
    name.split('"').nth(1).unwrap_or(name).to_owned()
}
