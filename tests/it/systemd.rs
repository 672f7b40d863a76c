//! What the service manager gives and is told. It is played by its own tools where they can run, else by a socket like its own.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use crate::support::relay::BASE;
use crate::support::relay::BINARY;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::until;

const ROUTED: &str =
    "[channel.mail]\ntype = \"file\"\npath = \"mail\"\n[[route]]\nto = [\"mail\"]\n";

/// The service manager's ear.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    fn listening_at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self { socket }
    }

    /// The next message that says `what`; what comes before it is passed over, except for `never`.
    #[track_caller]
    fn hears(&self, what: &str, never: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let length = self.socket.recv(&mut buffer).unwrap();
            let said = String::from_utf8(buffer[..length].to_vec()).unwrap();
            assert!(never.is_empty() || !said.contains(never), "{said}");
            if said.lines().any(|line| line.starts_with(what)) {
                return said;
            }
        }
    }
}

#[test]
fn readiness_reload_watchdog_and_the_end_are_told_in_words() {
    let mut relay = Relay::prepare(&format!("{BASE}{ROUTED}"));
    let path = relay.dir.path().join("notify");
    let manager = Manager::listening_at(&path);
    relay
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .env("WATCHDOG_USEC", "2000000");
    relay.run();
    let ready = manager.hears("READY=1", "");
    assert!(ready.contains("STATUS=Receiving on "), "{ready}");
    manager.hears("WATCHDOG=1", "");
    manager.hears("WATCHDOG=1", "");

    relay.signal(rustix::process::Signal::HUP);
    let reloading = manager.hears("RELOADING=1", "READY=1");
    assert!(
        reloading.lines().any(|line| line
            .strip_prefix("MONOTONIC_USEC=")
            .is_some_and(|n| n.parse::<u64>().is_ok())),
        "{reloading}"
    );
    manager.hears("READY=1", "");

    relay.stop();
    let stopping = manager.hears("STOPPING=1", "");
    assert!(stopping.contains("STATUS=Finishing"), "{stopping}");
}

#[test]
fn a_datagram_that_came_before_the_start_is_read_from_the_inherited_socket() {
    let port = std::net::UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let address = format!("127.0.0.1:{port}");
    let config = BASE.replace(
        "transport = \"udp\"\naddress = \"127.0.0.1:0\"",
        &format!("transport = \"udp\"\naddress = \"{address}\""),
    );
    let relay = Relay::prepare(&format!("{config}{ROUTED}"));
    let mut activate = Command::new("systemd-socket-activate")
        .args([
            "--datagram",
            "--listen",
            &address,
            BINARY,
            "run",
            "--config",
        ])
        .arg(relay.config())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("systemd-socket-activate is part of Debian's package systemd");
    let fortigate = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    until("the service manager to listen", || {
        std::fs::read_to_string("/proc/net/udp")
            .unwrap()
            .contains(&format!("0100007F:{port:04X}"))
            .then_some(())
    });
    // It starts the relay, which can't have bound the port: it is taken.
    fortigate
        .send_to(&Event::code(1, "alice").line(), &address)
        .unwrap();
    let mails = relay.dir.path().join("mail");
    let mail = until("the mail", || {
        let mut files = std::fs::read_dir(&mails).ok()?;
        let file = files.find_map(|f| {
            Some(f.ok()?.path()).filter(|p| p.extension().is_some_and(|e| e == "eml"))
        })?;
        std::fs::read_to_string(file).ok()
    });
    assert!(mail.contains("alice@example.com"), "{mail}");
    activate.kill().unwrap();
    activate.wait().unwrap();
}
