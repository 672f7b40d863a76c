//! Whom a channel trusts: the certificates in `ca_file`, else the system's roots. TLS 1.2 and 1.3 by aws-lc-rs.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use toml::Spanned;

use crate::settings::Check;
use crate::settings::Span;

/// A client's configuration. Not `needed`: it will not be used unless `ca_file` says so, so that no roots are read.
pub fn client(
    needed: bool,
    ca_file: Option<&Spanned<PathBuf>>,
    span: Span,
    check: &mut Check,
) -> Option<ClientConfig> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(file) => {
            let path = check.path(file.get_ref());
            let added = CertificateDer::pem_file_iter(&path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|e| format!("{} can't be read: {e}", path.display()))
                .map(|certificates| roots.add_parsable_certificates(certificates).0);
            match added {
                Ok(0) => {
                    let text = format!("{} holds no certificate", path.display());
                    check.problem(file.span(), text);
                    return None;
                }
                Ok(_) => {}
                Err(why) => {
                    check.problem(file.span(), why);
                    return None;
                }
            }
        }
        None if needed => {
            let found = rustls_native_certs::load_native_certs();
            if roots.add_parsable_certificates(found.certs).0 == 0 {
                check.problem(
                    span,
                    "this system has no root certificates; install ca-certificates or set ca_file",
                );
                return None;
            }
        }
        None => {}
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider knows TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Some(config)
}
