//! A Postfix of its own for a test: STARTTLS by a private authority, log-in, mailboxes, greylisting.

use std::collections::HashSet;
use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use tempfile::TempDir;

use super::authority::Authority;
use super::until;

/// Who may log in, with this password.
pub const USER: &str = "relay";
pub const PASSWORD: &str = "correct-horse-battery";

const MASTER: &str = "/usr/lib/postfix/sbin/master";
/// Whoever owns the mailboxes, but for root: Postfix delivers nothing as root.
const NOBODY: u32 = 65534;

/// What stands in Debian's master.cf, without its chroot, the port aside.
const SERVICES: &str = "
cleanup   unix  n  -  n  -     0  cleanup
qmgr      unix  n  -  n  300   1  qmgr
tlsmgr    unix  -  -  n  1000? 1  tlsmgr
rewrite   unix  -  -  n  -     -  trivial-rewrite
bounce    unix  -  -  n  -     0  bounce
defer     unix  -  -  n  -     0  bounce
trace     unix  -  -  n  -     0  bounce
verify    unix  -  -  n  -     1  verify
flush     unix  n  -  n  1000? 0  flush
proxymap  unix  -  -  n  -     -  proxymap
error     unix  -  -  n  -     -  error
retry     unix  -  -  n  -     -  error
virtual   unix  -  n  n  -     -  virtual
anvil     unix  -  -  n  -     1  anvil
scache    unix  -  -  n  -     1  scache
postlog   unix-dgram n - n -   1  postlogd
";

/// A running Postfix. It knows alice, bob and slow at example.com, and puts slow off once; it relays for who has logged in.
pub struct Postfix {
    pub dir: TempDir,
    pub port: u16,
    master: Child,
}

impl Postfix {
    /// Starts it and waits until it greets. `ca.pem` in its directory is the authority of its certificate, `other/ca.pem` another.
    pub fn start() -> Self {
        assert!(
            Path::new(MASTER).exists() && Path::new("/usr/sbin/saslpasswd2").exists(),
            "this test needs a real Postfix: apt-get install postfix sasl2-bin libsasl2-modules (tests/run does)"
        );
        assert!(
            rustix::process::geteuid().is_root(),
            "this test starts a real Postfix, which only root can"
        );
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        prepare(dir.path(), port, greylist());
        let master = Command::new(MASTER)
            .arg("-c")
            .arg(dir.path())
            .arg("-d")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // It ends its children by ending its group, which must not be ours.
            .process_group(0)
            .spawn()
            .unwrap();
        let mut postfix = Self { dir, port, master };
        until("Postfix to greet", || {
            if let Some(status) = postfix.master.try_wait().unwrap() {
                panic!("Postfix ended with {status}:\n{}", postfix.log());
            }
            let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).ok()?;
            line.starts_with("220 ").then_some(())
        });
        postfix
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The mails in a mailbox of example.com, as they were delivered.
    pub fn mailbox(&self, user: &str) -> Vec<String> {
        let new = self.dir.path().join("mail").join(user).join("new");
        let mut files: Vec<PathBuf> = fs::read_dir(new)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        let mails = files.iter();
        mails
            .map(|file| fs::read_to_string(file).unwrap())
            .collect()
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.master);
        drop(rustix::process::kill_process_group(
            group,
            rustix::process::Signal::KILL,
        ));
        drop(self.master.wait());
        if std::thread::panicking() {
            eprintln!("--- Postfix's log:\n{}", self.log());
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn prepare(dir: &Path, port: u16, policy: u16) {
    let at = dir.display();
    let (owner, group) = (id(&["-u", "postfix"]), group("postdrop"));
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    make(&dir.join("spool"), 0o755, 0, 0);
    for queue in [
        "active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private",
        "saved", "trace",
    ] {
        make(&dir.join("spool").join(queue), 0o700, owner, 0);
    }
    make(&dir.join("spool/pid"), 0o755, 0, 0);
    make(&dir.join("spool/public"), 0o710, owner, group);
    make(&dir.join("spool/maildrop"), 0o730, owner, group);
    make(&dir.join("data"), 0o700, owner, 0);
    make(&dir.join("mail"), 0o755, NOBODY, NOBODY);
    make(&dir.join("sasl"), 0o755, 0, 0);
    let authority = Authority::new();
    authority.write(dir);
    let identity = authority.sign(&["127.0.0.1", "localhost"]);
    make(&dir.join("other"), 0o755, 0, 0);
    Authority::new().write(&dir.join("other"));
    for (name, text) in [
        ("cert.pem", identity.certificate_pem),
        ("key.pem", identity.key_pem),
        ("master.cf", format!("127.0.0.1:{port} inet n - n - - smtpd{SERVICES}")),
        ("mailboxes", "alice@example.com alice/\nbob@example.com bob/\nslow@example.com slow/\n".to_owned()),
        ("sasl/smtpd.conf", format!("pwcheck_method: auxprop\nauxprop_plugin: sasldb\nsasldb_path: {at}/sasl/db\nmech_list: PLAIN LOGIN\nlog_level: 0\n")),
        ("main.cf", format!("
compatibility_level = 3.6
queue_directory = {at}/spool
data_directory = {at}/data
daemon_directory = /usr/lib/postfix/sbin
command_directory = /usr/sbin
maillog_file = {at}/log
maillog_file_prefixes = {at}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mx.example.net
mydestination =
mynetworks =
alias_maps =
local_recipient_maps =
smtpd_peername_lookup = no
virtual_mailbox_domains = example.com
virtual_mailbox_base = {at}/mail
virtual_mailbox_maps = texthash:{at}/mailboxes
virtual_uid_maps = static:{NOBODY}
virtual_gid_maps = static:{NOBODY}
smtpd_tls_security_level = may
smtpd_tls_auth_only = yes
smtpd_tls_cert_file = {at}/cert.pem
smtpd_tls_key_file = {at}/key.pem
smtpd_sasl_auth_enable = yes
smtpd_sasl_path = smtpd
smtpd_sasl_local_domain = example.net
cyrus_sasl_config_path = {at}/sasl
smtpd_relay_restrictions = permit_sasl_authenticated, reject_unauth_destination
smtpd_recipient_restrictions = reject_unlisted_recipient, check_policy_service inet:127.0.0.1:{policy}
smtpd_error_sleep_time = 0
")),
    ] {
        fs::write(dir.join(name), text).unwrap();
    }
    let mut saslpasswd = Command::new("/usr/sbin/saslpasswd2")
        .args(["-p", "-c", "-u", "example.net", "-f"])
        .arg(dir.join("sasl/db"))
        .arg(USER)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = saslpasswd.stdin.take().unwrap();
    input.write_all(PASSWORD.as_bytes()).unwrap();
    drop(input);
    assert!(saslpasswd.wait().unwrap().success());
    chown(dir.join("sasl/db"), Some(owner), None).unwrap();
}

fn make(dir: &Path, mode: u32, owner: u32, group: u32) {
    fs::create_dir(dir).unwrap();
    chown(dir, Some(owner), Some(group)).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
}

fn id(args: &[&str]) -> u32 {
    let output = Command::new("id").args(args).output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .trim()
        .parse()
        .expect("the package postfix makes its user")
}

fn group(name: &str) -> u32 {
    let groups = fs::read_to_string("/etc/group").unwrap();
    let fields = groups.lines().map(|l| l.split(':').collect::<Vec<_>>());
    let mut found = fields.filter(|f| f[0] == name);
    found.next().expect("the package postfix makes its group")[2]
        .parse()
        .unwrap()
}

/// A policy service that puts slow@ off once; its port. It lives as long as the tests do.
fn greylist() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut known = HashSet::new();
        for stream in listener.incoming() {
            drop(judge(stream.unwrap(), &mut known));
        }
    });
    port
}

fn judge(stream: TcpStream, known: &mut HashSet<String>) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut recipient = String::new();
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if let Some(address) = line.strip_prefix("recipient=") {
            recipient = address.to_owned();
        }
        if line.is_empty() {
            let later = recipient.starts_with("slow@") && known.insert(recipient.clone());
            let action = if later {
                "451 4.7.1 Greylisted, come back later"
            } else {
                "DUNNO"
            };
            writer.write_all(format!("action={action}\n\n").as_bytes())?;
        }
    }
    Ok(())
}
