//! TLS on the ways in: the listener's certificate, the handshake, and the names in the client's certificate.

use std::error::Error;
use std::fmt;
use std::io;
use std::io::BufRead;
use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::AlertDescription;
use rustls::CertificateError;
use rustls::ServerConfig;
use rustls::ServerConnection;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::NoServerSessionStorage;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::sign::SingleCertAndKey;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use toml::Spanned;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::Network;
use super::framing::Protocol;
use crate::glob::Glob;
use crate::secret::Secret;
use crate::settings::Check;
use crate::settings::Period;
use crate::settings::SecretSource;
use crate::tls::roots_of_file;
use crate::tls::rustls_error;

/// A peer has so long to say its first word and to finish the handshake.
pub(super) const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// A certificate that ends sooner than this is warned of.
const NEAR_END_DAYS: i64 = 30;

/// So many names of one certificate are believed.
const MAX_NAMES: usize = 64;

/// Enough of a stream's beginning to tell what is spoken.
const FIRST_BYTES: usize = 8;

/// `[[listen]]` with `transport = "tls"`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// How logs and metrics call it.
    pub name: Option<Spanned<String>>,
    /// Where it listens.
    #[serde(deserialize_with = "super::address")]
    pub address: SocketAddr,
    /// Who may connect.
    #[serde(default = "super::default_allow")]
    pub allow: Spanned<Vec<Network>>,
    /// Which devices are believed from here.
    #[serde(default = "super::default_devices")]
    pub devices: Spanned<Vec<Glob>>,
    /// The longest message that is taken.
    #[serde(default = "super::default_max_frame_bytes")]
    pub max_frame_bytes: Spanned<usize>,
    /// So many connections are open at a time; those that shake hands count.
    #[serde(default = "super::default_max_connections")]
    pub max_connections: Spanned<usize>,
    /// A connection that completes no message for so long is closed.
    #[serde(default = "super::default_idle_timeout")]
    pub idle_timeout: Spanned<Period>,
    /// The listener's certificate and those that lead to its authority, in PEM.
    pub cert: Spanned<PathBuf>,
    /// The certificate's private key, in PEM.
    pub key: SecretSource,
    /// Set: a client certificate signed by one of these authorities is required.
    pub client_ca: Option<Spanned<PathBuf>>,
    #[serde(skip)]
    server: Option<Server>,
}

impl Tls {
    pub(super) fn build(&mut self, check: &mut Check) {
        self.server = server(&self.cert, &self.key, self.client_ca.as_ref(), check);
    }

    /// What its certificates make of it; `None` where they could not be read.
    pub(super) fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }
}

/// How a listener answers a handshake. A reload makes another one, from the files as they are then.
#[derive(Clone)]
pub(super) struct Server(Arc<ServerConfig>);

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

// === The listener's certificate ===

/// Reads the certificates. `None`: `check` says why.
pub(super) fn server(
    cert: &Spanned<PathBuf>,
    key: &SecretSource,
    client_ca: Option<&Spanned<PathBuf>>,
    check: &mut Check,
) -> Option<Server> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = chain(cert, check);
    let secret = check.secret(key);
    let verifier = client_ca.map(|file| verifier(file, &provider, check));
    let certified = certified(chain?, cert, &secret?, key, &provider, check)?;
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider knows TLS 1.2 and 1.3");
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier?),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    // A FortiGate's connection lasts for days. Nothing is gained by resuming one, and each one's certificate is looked at.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Some(Server(Arc::new(config)))
}

fn chain(cert: &Spanned<PathBuf>, check: &mut Check) -> Option<Vec<CertificateDer<'static>>> {
    let path = check.path(cert.get_ref());
    let (chain, warnings) = match read_chain(&path, "a FortiGate that looks at it will not connect")
    {
        Ok(read) => read,
        Err(why) => {
            check.problem(cert.span(), format!("{} {why}", path.display()));
            return None;
        }
    };
    // No problems, since old FortiGates may not look, and the other listeners must not go down with this one.
    for warning in warnings {
        check.warning(cert.span(), format!("in {} {warning}", path.display()));
    }
    Some(chain)
}

/// The certificates in a file, and what is to be said of their dates; `then` is what follows once one has expired.
fn read_chain(
    path: &Path,
    then: &str,
) -> Result<(Vec<CertificateDer<'static>>, Vec<String>), String> {
    let pem = std::fs::read(path).map_err(|e| format!("can't be read: {e}"))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|e| format!("holds a certificate that can't be read: {e}"))?;
    if chain.is_empty() {
        return Err(
            "holds no certificate; it should hold the listener's own, then those that lead to its authority, in PEM (-----BEGIN CERTIFICATE-----)"
                .to_owned(),
        );
    }
    let mut warnings = Vec::new();
    for certificate in &chain {
        let (_, certificate) = X509Certificate::from_der(certificate)
            .map_err(|e| format!("holds a certificate that can't be read: {e}"))?;
        if let Some(when) = when_it_ends(&certificate, then, Timestamp::now()) {
            warnings.push(format!(
                "the certificate of {} {when}",
                subject(&certificate)
            ));
        }
    }
    Ok((chain, warnings))
}

/// What is to be said about a certificate's dates, if anything is.
fn when_it_ends(certificate: &X509Certificate<'_>, then: &str, now: Timestamp) -> Option<String> {
    let validity = certificate.validity();
    let day = |seconds| {
        Timestamp::from_second(seconds).map_or_else(
            |_| "a day beyond all calendars".to_owned(),
            |t| t.strftime("%Y-%m-%d").to_string(),
        )
    };
    let (begin, end) = (
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    );
    let left = end.saturating_sub(now.as_second());
    if left < 0 {
        Some(format!("expired on {}; {then}", day(end)))
    } else if begin > now.as_second() {
        Some(format!(
            "is not valid before {} (is this machine's clock right?)",
            day(begin)
        ))
    } else if left < NEAR_END_DAYS * 86_400 {
        Some(format!(
            "expires on {}, in {} days; put a new one in its place, then reload",
            day(end),
            left / 86_400
        ))
    } else {
        None
    }
}

/// A certificate's subject as one bounded line.
fn subject(certificate: &X509Certificate<'_>) -> String {
    let name = common_name(certificate).unwrap_or_else(|| certificate.subject().to_string());
    name.chars().filter(|c| !c.is_control()).take(100).collect()
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    cert: &Spanned<PathBuf>,
    secret: &Secret,
    key: &SecretSource,
    provider: &CryptoProvider,
    check: &mut Check,
) -> Option<CertifiedKey> {
    let pem = secret.expose();
    let text = match PrivateKeyDer::from_pem_slice(pem.as_bytes()) {
        Ok(der) => match CertifiedKey::from_der(chain, der, provider) {
            Ok(certified) => return Some(certified),
            Err(rustls::Error::InconsistentKeys(_)) => format!(
                "the key does not belong to the first certificate in {}; the listener's own certificate stands first",
                check.path(cert.get_ref()).display()
            ),
            Err(_) => {
                "the key can't be used; it must be an RSA key of 2048 bits or more, or ECDSA on P-256 or P-384"
                    .to_owned()
            }
        },
        Err(_) if pem.contains("ENCRYPTED") => {
            "the key is encrypted; write it without a password: openssl pkey -in OLD -out NEW".to_owned()
        }
        Err(_) => "this is no private key in PEM (-----BEGIN PRIVATE KEY-----)".to_owned(),
    };
    check.problem(key.span.clone(), text);
    None
}

fn verifier(
    file: &Spanned<PathBuf>,
    provider: &Arc<CryptoProvider>,
    check: &mut Check,
) -> Option<Arc<dyn ClientCertVerifier>> {
    let roots = Arc::new(roots_of_file(file, check)?);
    let path = check.path(file.get_ref());
    let then = "FortiGates with certificates that it signed are refused";
    let warnings = read_chain(&path, then).map_or_else(|_| Vec::new(), |(_, warnings)| warnings);
    for warning in warnings {
        check.warning(file.span(), format!("in {} {warning}", path.display()));
    }
    WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
        .build()
        .map_err(|e| {
            check.problem(
                file.span(),
                format!("client certificates can't be checked: {e}"),
            )
        })
        .ok()
}

// === The handshake ===

/// What a peer's first bytes are; `None`: it has gone without a word. May be cancelled.
pub(super) async fn first_words(socket: &TcpStream) -> io::Result<Option<Protocol>> {
    let mut first = [0; FIRST_BYTES];
    let length = timeout(HANDSHAKE_TIME, socket.peek(&mut first)).await??;
    Ok((length > 0).then(|| Protocol::of(&first[..length])))
}

impl Server {
    /// Shakes hands. The error says in words why it came to nothing.
    pub(super) async fn shake_hands(
        &self,
        socket: TcpStream,
    ) -> Result<TlsStream<TcpStream>, String> {
        let acceptor = TlsAcceptor::from(self.0.clone());
        match timeout(HANDSHAKE_TIME, acceptor.accept(socket)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(e)) => Err(why(&e)),
            Err(_) => Err(format!(
                "it did not finish the handshake within {} s",
                HANDSHAKE_TIME.as_secs()
            )),
        }
    }
}

/// Why a handshake failed, in words that an administrator can act on.
fn why(error: &(dyn Error + 'static)) -> String {
    let Some(error) = rustls_error(error) else {
        return "it closed the connection during the handshake; perhaps it does not trust the certificate of this listener"
            .to_owned();
    };
    match error {
        rustls::Error::NoCertificatesPresented => {
            "it presented no certificate, and `client_ca` requires one; write `set certificate NAME` under `config log syslogd setting` on the FortiGate"
                .to_owned()
        }
        rustls::Error::InvalidCertificate(e) => match e {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is not signed by an authority in `client_ca`".to_owned()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet (are both clocks right?)".to_owned()
            }
            other => format!("its certificate is not acceptable: {other}"),
        },
        rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate,
        ) => {
            "it does not trust the certificate of this listener; import the authority that signed `cert` into the FortiGate as a CA certificate"
                .to_owned()
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => {
            "it says that the certificate of this listener has expired".to_owned()
        }
        rustls::Error::AlertReceived(alert) => format!("it ended the handshake ({alert:?})"),
        rustls::Error::PeerIncompatible(what) => format!(
            "it offers no version or cipher that is safe ({what:?}); TLS 1.2 or 1.3 is needed: `set ssl-min-proto-version TLSv1-2` on the FortiGate"
        ),
        other => format!("the handshake failed: {other}"),
    }
}

/// The names in the verified certificate of the client, if it presented one.
pub(super) fn names(session: &ServerConnection) -> Arc<[String]> {
    let certificate = session.peer_certificates().and_then(<[_]>::first);
    certificate
        .map_or_else(Vec::new, |der| names_in(der))
        .into()
}

/// DNS names and addresses (SAN); the common name only where there is no SAN at all, as RFC 6125 has it.
fn names_in(der: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return Vec::new();
    };
    match certificate.subject_alternative_name() {
        Ok(Some(names)) => names
            .value
            .general_names
            .iter()
            .filter_map(name)
            .take(MAX_NAMES)
            .collect(),
        Ok(None) => common_name(&certificate)
            .filter(|name| !spells_address(name))
            .into_iter()
            .collect(),
        Err(_) => Vec::new(),
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => (!spells_address(name)).then(|| (*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let address = <[u8; 4]>::try_from(*bytes)
                .map(IpAddr::from)
                .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            address.ok().map(|a| a.to_canonical().to_string())
        }
        _ => None,
    }
}

/// Such a name is none: addresses have a kind of their own.
fn spells_address(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok()
}

fn common_name(certificate: &X509Certificate<'_>) -> Option<String> {
    let mut names = certificate.subject().iter_common_name();
    let only = names.next()?.as_str().ok()?.to_owned();
    names.next().is_none().then_some(only)
}

// === The records ===

/// Takes from `socket` what it has and appends what it says in clear. 0: the peer ended the stream as TLS demands; an
/// error of kind `UnexpectedEof`: it did not.
pub(super) fn read(
    session: &mut ServerConnection,
    socket: &mut (impl Read + Write),
    clear: &mut Vec<u8>,
) -> io::Result<usize> {
    let held = clear.len();
    loop {
        let ended = take_clear(session, clear);
        if clear.len() > held {
            // What came before an end or an error is told of first, as by a plain socket; the other is told next time.
            return Ok(clear.len() - held);
        }
        if ended? {
            return Ok(0);
        }
        session.read_tls(socket)?;
        let processed = session.process_new_packets();
        // An alert, or the answer to a change of keys. A peer that reads nothing gets nothing, and loses nothing by it.
        while session.wants_write() && session.write_tls(socket).is_ok_and(|n| n > 0) {}
        if let Err(e) = processed {
            return match take_clear(session, clear) {
                _ if clear.len() > held => Ok(clear.len() - held),
                _ => Err(io::Error::other(e)),
            };
        }
    }
}

/// Appends what has been deciphered. Whether the peer has ended the stream.
fn take_clear(session: &mut ServerConnection, clear: &mut Vec<u8>) -> io::Result<bool> {
    loop {
        let mut reader = session.reader();
        let bytes = match reader.fill_buf() {
            Ok([]) => return Ok(true),
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e),
        };
        clear.extend_from_slice(bytes);
        let taken = bytes.len();
        reader.consume(taken);
    }
}

#[cfg(test)]
mod tests {
    use rcgen::CertificateParams;
    use rcgen::DnType;
    use rcgen::KeyPair;

    use super::*;

    fn certificate(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let names: Vec<_> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, "FGT60FTK20000001");
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn names_are_those_of_the_san_and_the_common_name_only_without_one() {
        let san = [
            "fgt1.example.com",
            "*.example.com",
            "10.20.0.1",
            "2001:db8::1",
        ];
        assert_eq!(names_in(&certificate(&san, |_| {})), san);
        assert_eq!(names_in(&certificate(&[], |_| {})), ["FGT60FTK20000001"]);
        let mail = certificate(&[], |params| {
            let mail = "fgt@example.com".try_into().unwrap();
            params
                .subject_alt_names
                .push(rcgen::SanType::Rfc822Name(mail));
        });
        assert_eq!(names_in(&mail), [""; 0]);
        assert_eq!(names_in(b"no certificate"), [""; 0]);
    }

    #[test]
    fn where_the_san_cannot_be_read_the_common_name_does_not_stand_in_for_it() {
        const SAN: &[u64] = &[2, 5, 29, 17];
        // No list; and a list with a name that is cut off.
        for content in [&b"\x04\x01x"[..], b"\x30\x03\x82\x09a"] {
            let der = certificate(&[], |params| {
                let san = rcgen::CustomExtension::from_oid_content(SAN, content.to_vec());
                params.custom_extensions.push(san);
            });
            assert!(X509Certificate::from_der(&der).is_ok());
            assert_eq!(names_in(&der), [""; 0], "{content:?}");
        }
    }

    #[test]
    fn a_name_that_spells_an_address_is_no_name() {
        let common = certificate(&[], |params| {
            params.distinguished_name = rcgen::DistinguishedName::new();
            let name = "10.20.0.1";
            params.distinguished_name.push(DnType::CommonName, name);
        });
        assert_eq!(names_in(&common), [""; 0]);
        let forged = certificate(&[], |params| {
            let name = "10.20.0.1".try_into().unwrap();
            params.subject_alt_names.push(rcgen::SanType::DnsName(name));
        });
        assert_eq!(names_in(&forged), [""; 0]);
    }

    #[test]
    fn a_certificate_near_its_end_is_told_of() {
        let der = certificate(&["a"], |params| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 31);
        });
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        let said = |day: &str| {
            when_it_ends(&certificate, "then", day.parse().unwrap()).unwrap_or_default()
        };
        assert_eq!(said("2020-12-31T00:00:00Z"), "");
        assert!(said("2021-01-02T00:00:00Z").contains("2021-01-31, in 29 days"));
        assert!(said("2021-01-31T00:00:01Z").contains("expired on 2021-01-31"));
        assert!(said("2019-12-31T00:00:00Z").contains("not valid before 2020-01-01"));
    }
}
