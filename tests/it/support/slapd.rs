//! A real slapd of its own: a directory like a small Active Directory, two ports, a private certificate.

use std::fmt::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use super::authority::Authority;
use super::until;

/// The account that may read.
pub const BIND_DN: &str = "cn=ftm-relay,ou=services,dc=example,dc=com";
/// Its password.
pub const PASSWORD: &str = "correct horse";
/// The common name of the client certificate that stands for the account.
pub const CLIENT: &str = "ftm-relay.example.com";

/// Debian's places.
const PROGRAM: &str = "/usr/sbin/slapd";
const SCHEMA: &str = "/etc/ldap/schema";

/// What Active Directory has and inetOrgPerson has not, by Microsoft's own numbers.
const AD_SCHEMA: &str = "
attributetype ( 1.2.840.113556.1.4.221 NAME 'sAMAccountName'
  EQUALITY caseIgnoreMatch SUBSTR caseIgnoreSubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 SINGLE-VALUE )
attributetype ( 1.2.840.113556.1.4.2 NAME 'objectGUID'
  EQUALITY octetStringMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.40 SINGLE-VALUE )
attributetype ( 1.2.840.113556.1.4.8 NAME 'userAccountControl'
  EQUALITY integerMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
objectclass ( 1.2.840.113556.1.5.9 NAME 'adUser' SUP top AUXILIARY
  MAY ( sAMAccountName $ objectGUID $ userAccountControl ) )
";

/// A running (or stopped) slapd; it ends when this is dropped.
pub struct Slapd {
    /// ldap://, also for StartTLS.
    pub plain: u16,
    /// ldaps://
    pub tls: u16,
    /// `ca.pem`, `client.pem` and `client.key` for those who ask; `password` too.
    pub dir: tempfile::TempDir,
    child: Option<Child>,
}

/// One person as an LDIF entry; `more` are further lines of it.
pub fn person(name: &str, account: &str, more: &str) -> String {
    format!(
        "dn: cn={name},ou=people,dc=example,dc=com\nobjectClass: inetOrgPerson\nobjectClass: adUser\ncn: {name}\nsn: {name}\nsAMAccountName: {account}\n{more}\n\n"
    )
}

impl Slapd {
    /// One with these people, whose certificate is made out to `localhost` and 127.0.0.1.
    pub fn start(people: &str) -> Self {
        Self::start_as(&["localhost", "127.0.0.1"], people)
    }

    /// One whose certificate is made out to these names.
    pub fn start_as(names: &[&str], people: &str) -> Self {
        assert!(
            Path::new(PROGRAM).exists(),
            "{PROGRAM} is missing: apt-get install -y slapd (./tests/run does it)"
        );
        let dir = tempfile::Builder::new()
            .prefix("ftm-relay-slapd")
            .tempdir()
            .unwrap();
        let root = dir.path();
        // Where AppArmor confines slapd, it does so by its path.
        std::fs::copy(PROGRAM, root.join("slapd")).unwrap();
        let authority = Authority::new();
        authority.write(root);
        let server = authority.sign(names);
        let client = authority.sign_client(CLIENT);
        for (file, text) in [
            ("server.pem", &server.certificate_pem),
            ("server.key", &server.key_pem),
            ("client.pem", &client.certificate_pem),
            ("client.key", &client.key_pem),
            ("password", &PASSWORD.to_owned()),
            ("ad.schema", &AD_SCHEMA.to_owned()),
            ("people.ldif", &format!("{}{people}", base())),
        ] {
            std::fs::write(root.join(file), text).unwrap();
        }
        std::fs::create_dir(root.join("db")).unwrap();
        std::fs::write(root.join("slapd.conf"), configuration(root)).unwrap();
        let added = Command::new(root.join("slapd"))
            .args(["-T", "add", "-q", "-f"])
            .arg(root.join("slapd.conf"))
            .arg("-l")
            .arg(root.join("people.ldif"))
            .output()
            .unwrap();
        assert!(added.status.success(), "{added:?}");
        let free = || TcpListener::bind("127.0.0.1:0").unwrap();
        let ports = [free(), free()].map(|l| l.local_addr().unwrap().port());
        let mut slapd = Self {
            plain: ports[0],
            tls: ports[1],
            dir,
            child: None,
        };
        slapd.run();
        slapd
    }

    /// Starts it (again), on the same ports.
    pub fn run(&mut self) {
        let urls = format!(
            "ldap://127.0.0.1:{} ldaps://127.0.0.1:{}",
            self.plain, self.tls
        );
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let child = Command::new(self.dir.path().join("slapd"))
            // In the foreground, with every operation in the log.
            .args(["-d", "stats", "-h", &urls, "-f"])
            .arg(self.dir.path().join("slapd.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        until("slapd to listen", || {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "slapd ended:\n{}", self.log());
            [self.plain, self.tls]
                .iter()
                .all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok())
                .then_some(())
        });
    }

    /// Ends it.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            child.wait().unwrap();
        }
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.dir.path().join("log")).unwrap()).into_owned()
    }

    /// How often the log holds this.
    pub fn count(&self, what: &str) -> usize {
        self.log().matches(what).count()
    }

    /// The searches for people that it was asked for since it was started.
    pub fn searches(&self) -> usize {
        self.count(" SRCH base=\"dc=example,dc=com\" scope=2")
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }
}

impl Drop for Slapd {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("--- slapd's log:\n{}", self.log());
        }
    }
}

fn configuration(root: &Path) -> String {
    let root = root.display();
    let mut text = String::new();
    for schema in ["core", "cosine", "inetorgperson"] {
        writeln!(text, "include {SCHEMA}/{schema}.schema").unwrap();
    }
    write!(
        text,
        "include {root}/ad.schema
modulepath /usr/lib/ldap
moduleload back_mdb
TLSCACertificateFile {root}/ca.pem
TLSCertificateFile {root}/server.pem
TLSCertificateKeyFile {root}/server.key
TLSVerifyClient try
authz-regexp \"^cn={CLIENT}$\" \"{BIND_DN}\"
database mdb
maxsize 1073741824
suffix \"dc=example,dc=com\"
directory {root}/db
index objectClass,sAMAccountName eq
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact=\"{BIND_DN}\" read by anonymous auth by * none
"
    )
    .unwrap();
    text
}

fn base() -> String {
    format!(
        "dn: dc=example,dc=com
objectClass: dcObject
objectClass: organization
o: Example
dc: example

dn: ou=people,dc=example,dc=com
objectClass: organizationalUnit
ou: people

dn: ou=services,dc=example,dc=com
objectClass: organizationalUnit
ou: services

dn: {BIND_DN}
objectClass: applicationProcess
objectClass: simpleSecurityObject
cn: ftm-relay
userPassword: {PASSWORD}

"
    )
}
