//! A real Postfix of its own: a directory, two ports, a private certificate, one account, a few mailboxes.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::authority::Authority;

/// The only account.
pub const USERNAME: &str = "ftm-relay";
/// Its password.
pub const PASSWORD: &str = "correct horse";

/// Debian's places.
const MASTER: &str = "/usr/lib/postfix/sbin/master";
const NOBODY: u32 = 65534;

/// How long Postfix may take for anything a test waits for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running Postfix; it ends when this is dropped.
pub struct Postfix {
    /// STARTTLS, AUTH inside TLS only.
    pub submission: u16,
    /// TLS from the first byte.
    pub submissions: u16,
    /// The certificate of the authority that signed the server's.
    pub ca: PathBuf,
    root: PathBuf,
    master: Child,
    _dir: tempfile::TempDir,
    _greylist: AbortOnDropHandle<()>,
}

impl Postfix {
    /// Mailboxes of example.com: alice, jürgen, and grey, whose first mail is postponed. Mail to bounce is taken and comes
    /// back. Everybody else is unknown.
    pub async fn start() -> Self {
        demand();
        let dir = tempfile::Builder::new()
            .prefix("ftm-relay-postfix")
            .tempdir()
            .unwrap();
        let root = dir.path().to_owned();
        // Postfix's own users walk through.
        std::fs::set_permissions(&root, PermissionsExt::from_mode(0o755)).unwrap();
        let authority = Authority::new();
        let ca = authority.write(&root);
        let identity = authority.sign(&["localhost", "127.0.0.1"]);
        std::fs::write(root.join("server.pem"), &identity.certificate_pem).unwrap();
        std::fs::write(root.join("server.key"), &identity.key_pem).unwrap();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let policy = listener.local_addr().unwrap().port();
        let greylist = AbortOnDropHandle::new(tokio::spawn(greylist(listener)));
        let (submission, submissions) = free_ports();
        configure(&root, submission, submissions, policy);
        accounts(&root);

        run(Command::new("postfix")
            .arg("-c")
            .arg(root.join("etc"))
            .arg("check"));
        let mut master = Command::new(MASTER)
            .arg("-c")
            .arg(root.join("etc"))
            .arg("-d")
            // master ends its whole process group.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        for port in [submission, submissions] {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                let ended = master.try_wait().unwrap();
                assert!(
                    ended.is_none() && Instant::now() < deadline,
                    "Postfix doesn't listen on {port}; its log:\n{}",
                    log(&root)
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Self {
            submission,
            submissions,
            ca,
            root,
            master,
            _dir: dir,
            _greylist: greylist,
        }
    }

    /// Waits until a person has so many mails, and returns them.
    pub async fn mails(&self, person: &str, count: usize) -> Vec<String> {
        let inbox = self.root.join("mail").join(person).join("new");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mails: Vec<_> = std::fs::read_dir(&inbox)
                .into_iter()
                .flatten()
                .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
                .collect();
            if mails.len() >= count {
                return mails;
            }
            assert!(
                Instant::now() < deadline,
                "{person} has {} mails; the log of Postfix:\n{}",
                mails.len(),
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What Postfix logged so far.
    pub fn log(&self) -> String {
        log(&self.root)
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        let pid = self.master.id().to_string();
        drop(Command::new("kill").arg(&pid).status());
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if !matches!(self.master.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(self.master.kill());
    }
}

/// A missing server is a failure with a remedy, never a silent success.
fn demand() {
    for program in [MASTER, "/usr/sbin/postfix", "/usr/sbin/saslpasswd2"] {
        assert!(
            Path::new(program).exists(),
            "{program} is missing: apt-get install -y postfix sasl2-bin libsasl2-modules (./tests/run does it)"
        );
    }
    assert!(
        rustix::process::geteuid().is_root(),
        "Postfix starts as root only: run ./tests/run, which uses sudo, or these tests as root"
    );
}

fn configure(root: &Path, submission: u16, submissions: u16, policy: u16) {
    for dir in ["etc", "etc/sasl", "queue", "data", "mail"] {
        std::fs::create_dir(root.join(dir)).unwrap();
    }
    let postfix = run(Command::new("id").args(["-u", "postfix"]))
        .trim()
        .parse()
        .unwrap();
    std::os::unix::fs::chown(root.join("data"), Some(postfix), None).unwrap();
    std::os::unix::fs::chown(root.join("mail"), Some(NOBODY), Some(NOBODY)).unwrap();
    let root = root.display();
    let main = format!(
        "compatibility_level = 3.6
queue_directory = {root}/queue
data_directory = {root}/data
maillog_file = {root}/log
maillog_file_prefixes = {root}
mail_owner = postfix
setgid_group = postdrop
myhostname = mx.example.net
mydestination =
mynetworks =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
local_recipient_maps =
virtual_mailbox_domains = example.com
virtual_mailbox_base = {root}/mail
virtual_mailbox_maps = texthash:{root}/etc/mailboxes
virtual_minimum_uid = 1
transport_maps = texthash:{root}/etc/transport
virtual_uid_maps = static:{NOBODY}
virtual_gid_maps = static:{NOBODY}
smtpd_tls_cert_file = {root}/server.pem
smtpd_tls_key_file = {root}/server.key
smtpd_tls_auth_only = yes
smtpd_sasl_auth_enable = yes
smtpd_sasl_local_domain = example.net
smtpd_sasl_security_options = noanonymous
smtpd_relay_restrictions = permit_sasl_authenticated, reject_unauth_destination
smtpd_recipient_restrictions = check_policy_service inet:127.0.0.1:{policy}
smtpd_forbid_unauth_pipelining = yes
smtpd_error_sleep_time = 0
"
    );
    let services = "cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
gone unix - n n - - pipe user=nobody argv=/bin/false
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
";
    let master = format!(
        "127.0.0.1:{submission} inet n - n - - smtpd
  -o smtpd_tls_security_level=may
127.0.0.1:{submissions} inet n - n - - smtpd
  -o smtpd_tls_wrappermode=yes
{services}"
    );
    for (name, text) in [
        ("etc/main.cf", main),
        ("etc/master.cf", master),
        (
            "etc/transport",
            "bounce@example.com gone:\n".to_owned(),
        ),
        (
            "etc/mailboxes",
            "alice@example.com alice/\ngrey@example.com grey/\njürgen@example.com juergen/\nbounce@example.com bounce/\n".to_owned(),
        ),
        (
            "etc/sasl/smtpd.conf",
            format!(
                "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nsasldb_path: {root}/etc/sasl/db\nmech_list: PLAIN LOGIN\n"
            ),
        ),
    ] {
        std::fs::write(format!("{root}/{name}"), text).unwrap();
    }
}

fn accounts(root: &Path) {
    let db = root.join("etc/sasl/db");
    let mut child = Command::new("saslpasswd2")
        .args(["-p", "-c", "-u", "example.net", "-f"])
        .arg(&db)
        .arg(USERNAME)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), PASSWORD.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    std::fs::set_permissions(&db, PermissionsExt::from_mode(0o644)).unwrap();
}

/// Two ports nobody listens on just now.
fn free_ports() -> (u16, u16) {
    let listen = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (one, two) = (listen(), listen());
    (
        one.local_addr().unwrap().port(),
        two.local_addr().unwrap().port(),
    )
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn log(root: &Path) -> String {
    std::fs::read_to_string(root.join("log")).unwrap_or_default()
}

/// Postfix's policy protocol: the first mail to `grey` is postponed, everything else is none of its business.
async fn greylist(listener: TcpListener) {
    let known = Arc::new(Mutex::new(HashSet::new()));
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let known = Arc::clone(&known);
        connections.spawn(async move {
            let mut stream = BufReader::new(stream);
            let mut recipient = String::new();
            let mut line = String::new();
            while stream.read_line(&mut line).await.is_ok_and(|n| n > 0) {
                if let Some(text) = line.trim_end().strip_prefix("recipient=") {
                    recipient = text.to_owned();
                }
                if line == "\n" {
                    let new = known.lock().unwrap().insert(recipient.clone());
                    let action = match recipient.starts_with("grey@") && new {
                        true => "action=451 4.7.1 greylisted, try again\n\n",
                        false => "action=DUNNO\n\n",
                    };
                    stream.write_all(action.as_bytes()).await.unwrap();
                    stream.flush().await.unwrap();
                }
                line.clear();
            }
        });
    }
}
