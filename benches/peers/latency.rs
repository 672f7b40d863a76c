//! How long one activation takes through an idle receiver, from the datagram to the next hop.

use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::UdpSocket;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::Result;
use crate::Table;
use crate::peers::Peers;
use crate::program::Program;
use crate::program::Relay;
use crate::sample;

const WARM_UP: usize = 20;
const PACED: usize = 300;
const PACE: Duration = Duration::from_millis(30);
const SYNCS: usize = 200;

/// A next hop that says when something has arrived, over TCP as it comes or as an HTTP request that it answers.
fn hop() -> Result<(SocketAddr, Receiver<Instant>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (arrived, taken) = mpsc::channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let arrived = arrived.clone();
            thread::spawn(move || {
                let mut buffer = [0; 65_536];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    let at = Instant::now();
                    let is_http = buffer.starts_with(b"POST");
                    // A request whose body comes in a second segment is not another arrival.
                    if (is_http || buffer[..n].ends_with(b"\n")) && arrived.send(at).is_err() {
                        return;
                    }
                    if is_http && !buffer[..n].ends_with(b"}") {
                        let Ok(1..) = stream.read(&mut buffer) else {
                            return;
                        };
                    }
                    if is_http
                        && stream
                            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                            .is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    Ok((address, taken))
}

fn measure(program: &mut dyn Program, arrivals: &Receiver<Instant>) -> Result<Vec<Duration>> {
    program.start()?;
    let fortigate = UdpSocket::bind("127.0.0.1:0")?;
    let mut took = Vec::new();
    for n in 0..WARM_UP + PACED {
        thread::sleep(PACE + Duration::from_micros(317) * (n % 50) as u32);
        let event = sample::activation(n);
        let sent = Instant::now();
        fortigate.send_to(event.as_bytes(), program.address())?;
        let at = arrivals
            .recv_timeout(crate::PATIENCE)
            .map_err(|_| format!("nothing came from {}", program.name()))?;
        if n >= WARM_UP {
            took.push(at.duration_since(sent));
        }
    }
    program.stop()?;
    took.sort();
    Ok(took)
}

pub fn latency(peers: &Peers, table: &mut Table) -> Result<()> {
    let mut row = |name: &str, took: &[Duration]| {
        let of = |percent: usize| took[took.len() * percent / 100].as_secs_f64() * 1e3;
        table.row(
            &format!("idle latency, {name}: p50; p99"),
            format!("{:.2} ms; {:.2} ms", of(50), of(99)),
        );
    };
    row("one durable write alone", &synced()?);
    let (address, arrivals) = hop()?;
    row(
        "ftm-relay, UDP to POST",
        &measure(&mut Relay::posting(address)?, &arrivals)?,
    );
    let (address, arrivals) = hop()?;
    row(
        "syslog-ng, UDP to TCP",
        &measure(&mut *peers.syslog_ng_forwarding(address)?, &arrivals)?,
    );
    Ok(())
}

/// What the relay does more than its peer: 4 KiB written and synced.
fn synced() -> Result<Vec<Duration>> {
    let dir = crate::program::directory()?;
    let mut file = std::fs::File::create(dir.path().join("synced"))?;
    let mut took = Vec::new();
    for _ in 0..SYNCS {
        let begin = Instant::now();
        file.write_all(&[0x55; 4096])?;
        file.sync_data()?;
        took.push(begin.elapsed());
    }
    took.sort();
    Ok(took)
}
