//! TCP and TLS: how many messages a second, at what price, and what idle connections cost.

use std::net::TcpStream;
use std::time::Duration;
use std::time::Instant;

use crate::Result;
use crate::Table;
use crate::load;
use crate::load::Flood;
use crate::load::Framing;
use crate::load::Way;
use crate::peers;
use crate::peers::Peers;
use crate::program::Bare;
use crate::program::Program;
use crate::program::Relay;
use crate::until;

const FAST_LINES: usize = 6_000_000;
const SLOW_LINES: usize = 1_000_000;
const IDLE_CONNECTIONS: usize = 10_000;
/// Each is measured so often, in turn with the others; the best counts, for all alike.
const ROUNDS: usize = 2;

/// What one program did with one flood.
#[derive(Clone, Copy, Default)]
struct Figure {
    per_second: f64,
    cpu_per_million: f64,
    bytes_per_cpu_second: f64,
    peak_kib: u64,
}

fn measure(program: &mut dyn Program, flood: Flood) -> Result<Figure> {
    program.start()?;
    let (cpu, begin) = (program.cpu()?, Instant::now());
    let sent = load::flood(program.address(), flood)?;
    until("all activations", || {
        Ok(program.handed_on()? >= sent.activations)
    })?;
    let took = begin.elapsed().max(sent.took);
    let cpu = program.cpu()?.saturating_sub(cpu);
    let peak_kib = program.memory("VmHWM")?;
    program.stop()?;
    Ok(Figure {
        per_second: sent.lines as f64 / took.as_secs_f64(),
        cpu_per_million: cpu.as_secs_f64() * 1e6 / sent.lines as f64,
        bytes_per_cpu_second: sent.bytes as f64 / cpu.as_secs_f64().max(0.01),
        peak_kib,
    })
}

pub fn tcp(peers: &Peers, table: &mut Table) -> Result<()> {
    let lf = |lines, connections| Flood {
        lines,
        connections,
        framing: Framing::Lf,
        tls: false,
    };
    let counted = Flood {
        framing: Framing::Counted,
        ..lf(FAST_LINES, 1)
    };
    let mut best = Best::default();
    for _ in 0..ROUNDS {
        for connections in [1, 4] {
            let over = format!("{connections} connections");
            let fast = lf(FAST_LINES, connections);
            best.take("a bare loop", &over, measure(&mut Bare::new("tcp"), fast)?);
            best.take("ftm-relay", &over, measure(&mut Relay::plain()?, fast)?);
            let slow = lf(SLOW_LINES, connections);
            best.take(
                "syslog-ng",
                &over,
                measure(&mut *peers.syslog_ng_tcp()?, slow)?,
            );
            for variant in 0..peers::RSYSLOG_TCP {
                best.take(
                    "rsyslog",
                    &over,
                    measure(&mut *peers.rsyslog_tcp(variant)?, slow)?,
                );
            }
        }
        best.take(
            "ftm-relay",
            "octet counting",
            measure(&mut Relay::plain()?, counted)?,
        );
    }
    for (name, over, figure) in &best.0 {
        table.row(
            &format!("TCP, {name}, {over}: messages/s; CPU-s per million; peak memory"),
            format!(
                "{:.0} k/s; {:.2}; {:.0} MiB",
                figure.per_second / 1e3,
                figure.cpu_per_million,
                figure.peak_kib as f64 / 1024.0
            ),
        );
    }
    let of = |name| best.fastest(name);
    table.row(
        "TCP: messages/s against the best syslog-ng (bound: 3)",
        format!(
            "{:.1}x",
            of("ftm-relay").per_second / of("syslog-ng").per_second
        ),
    );
    table.row(
        "TCP: CPU per message against syslog-ng's cheapest (bound: 0.2)",
        format!(
            "{:.2}x",
            best.cheapest("ftm-relay") / best.cheapest("syslog-ng")
        ),
    );
    table.row(
        "TCP: messages/s against the bare loop (bound: 0.7)",
        format!(
            "{:.2}x",
            of("ftm-relay").per_second / of("a bare loop").per_second
        ),
    );
    table.row(
        "TCP, one connection: octet counting against LF (bound: 1)",
        format!(
            "{:.2}x",
            best.of("ftm-relay", "octet counting").per_second
                / best.of("ftm-relay", "1 connections").per_second
        ),
    );
    Ok(())
}

pub fn tls(_peers: &Peers, table: &mut Table) -> Result<()> {
    // Made before a child reads it.
    load::certificate()?;
    let flood = Flood {
        lines: FAST_LINES / 2,
        connections: 1,
        framing: Framing::Counted,
        tls: true,
    };
    let mut best = Best::default();
    for _ in 0..ROUNDS {
        best.take(
            "rustls alone",
            "TLS",
            measure(&mut Bare::new("tls"), flood)?,
        );
        best.take("ftm-relay", "TLS", measure(&mut Relay::tls()?, flood)?);
    }
    for (name, over, figure) in &best.0 {
        table.row(
            &format!("{over}, {name}: messages/s; GB per CPU-s; peak memory"),
            format!(
                "{:.0} k/s; {:.2}; {:.0} MiB",
                figure.per_second / 1e3,
                figure.bytes_per_cpu_second / 1e9,
                figure.peak_kib as f64 / 1024.0
            ),
        );
    }
    table.row(
        "TLS: bytes per CPU-s against rustls alone (bound: 1, or 1 GB)",
        format!(
            "{:.2}x",
            best.of("ftm-relay", "TLS").bytes_per_cpu_second
                / best.of("rustls alone", "TLS").bytes_per_cpu_second
        ),
    );
    Ok(())
}

/// What ten thousand firewalls cost that have nothing to say.
pub fn connections(_peers: &Peers, table: &mut Table) -> Result<()> {
    for tls in [false, true] {
        let mut relay = if tls { Relay::tls()? } else { Relay::plain()? };
        relay.start()?;
        let mut open = Vec::with_capacity(IDLE_CONNECTIONS);
        for n in 0..IDLE_CONNECTIONS {
            let mut way = Way::open(TcpStream::connect(relay.address())?, tls)?;
            way.write_all(Framing::Lf.frame(&crate::sample::traffic(n)).as_bytes())?;
            open.push(way);
        }
        until("every connection's message", || {
            Ok(relay.metric("ftm_relay_frames_total", "")? >= IDLE_CONNECTIONS)
        })?;
        std::thread::sleep(Duration::from_secs(2));
        let mib = relay.memory("VmRSS")? as f64 / 1024.0;
        let way = if tls { "TLS" } else { "TCP" };
        table.row(
            &format!("{IDLE_CONNECTIONS} idle {way} connections: resident memory (bound: 256 MiB)"),
            format!("{mib:.0} MiB"),
        );
        drop(open);
        relay.stop()?;
    }
    Ok(())
}

/// The best figures of each program in each setting.
#[derive(Default)]
struct Best(Vec<(String, String, Figure)>);

impl Best {
    fn take(&mut self, name: &str, over: &str, figure: Figure) {
        eprintln!(
            "{name}, {over}: {:.0} k/s, {:.3} CPU-s/M",
            figure.per_second / 1e3,
            figure.cpu_per_million
        );
        let Some((_, _, best)) = self.0.iter_mut().find(|(n, o, _)| n == name && o == over) else {
            return self.0.push((name.to_owned(), over.to_owned(), figure));
        };
        best.per_second = best.per_second.max(figure.per_second);
        best.cpu_per_million = best.cpu_per_million.min(figure.cpu_per_million);
        best.bytes_per_cpu_second = best.bytes_per_cpu_second.max(figure.bytes_per_cpu_second);
        best.peak_kib = best.peak_kib.max(figure.peak_kib);
    }

    fn of(&self, name: &str, over: &str) -> Figure {
        let found = self.0.iter().find(|(n, o, _)| n == name && o == over);
        found.map(|(_, _, figure)| *figure).unwrap_or_default()
    }

    fn fastest(&self, name: &str) -> Figure {
        let all = self.0.iter().filter(|(n, ..)| n == name);
        let best = all.max_by(|a, b| a.2.per_second.total_cmp(&b.2.per_second));
        best.map(|(_, _, figure)| *figure).unwrap_or_default()
    }

    fn cheapest(&self, name: &str) -> f64 {
        let all = self.0.iter().filter(|(n, ..)| n == name);
        all.map(|(_, _, figure)| figure.cpu_per_million)
            .fold(f64::INFINITY, f64::min)
    }
}
