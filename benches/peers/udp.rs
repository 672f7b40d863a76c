//! UDP: at which rate nothing is lost, and at what price.

use std::fs;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::time::Duration;
use std::time::Instant;

use crate::Result;
use crate::Table;
use crate::peers;
use crate::peers::Peers;
use crate::program::Bare;
use crate::program::Program;
use crate::program::Relay;
use crate::sample;

/// Datagrams a second.
const RATES: [usize; 7] = [80_000, 120_000, 160_000, 200_000, 240_000, 280_000, 320_000];
const TRIAL: Duration = Duration::from_secs(2);
const PROOF: Duration = Duration::from_secs(10);
/// The rate at which all pay.
const PAID_RATE: usize = 50_000;
/// A loss-free rate is one that a program stood once in so many trials.
const TRIES: usize = 2;

struct Trial {
    sent: usize,
    lost: usize,
    per_second: f64,
    cpu_per_million: f64,
}

impl Trial {
    fn is_loss_free(&self) -> bool {
        self.lost == 0
    }
}

fn trial(program: &mut dyn Program, rate: usize, time: Duration) -> Result<Trial> {
    program.start()?;
    let before = dropped(program.address())?;
    let (cpu, begin) = (program.cpu()?, Instant::now());
    let sent = send(program.address(), rate, time)?;
    let took = begin.elapsed();
    // What is left in the buffer is read too.
    std::thread::sleep(Duration::from_millis(500));
    let cpu = program.cpu()?.saturating_sub(cpu);
    let lost = dropped(program.address())? - before;
    program.stop()?;
    let trial = Trial {
        sent,
        lost,
        per_second: sent as f64 / took.as_secs_f64(),
        cpu_per_million: cpu.as_secs_f64() * 1e6 / sent as f64,
    };
    eprintln!(
        "{}: {:.0} k/s, {} of {} lost, {:.2} CPU-s/M",
        program.name(),
        trial.per_second / 1e3,
        trial.lost,
        trial.sent,
        trial.cpu_per_million
    );
    Ok(trial)
}

/// Sends at a rate, in steps of a millisecond, from four sockets in turn, as four firewalls would.
fn send(to: SocketAddr, rate: usize, time: Duration) -> Result<usize> {
    let mut sockets = Vec::new();
    for _ in 0..4 {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(to)?;
        sockets.push(socket);
    }
    let lines: Vec<String> = (0..331).map(sample::traffic).collect();
    let (begin, mut sent) = (Instant::now(), 0);
    while begin.elapsed() < time {
        let due = (begin.elapsed().as_secs_f64() * rate as f64) as usize;
        while sent < due {
            let line = if sent % sample::ONE_IN == sample::ONE_IN - 1 {
                &sample::activation(sent / sample::ONE_IN)
            } else {
                &lines[sent % lines.len()]
            };
            sockets[sent / 64 % 4].send(line.as_bytes())?;
            sent += 1;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(sent)
}

/// What the kernel dropped for want of room at the sockets of a port.
fn dropped(address: SocketAddr) -> Result<usize> {
    let local = format!("0100007F:{:04X}", address.port());
    let mut drops = 0;
    for line in fs::read_to_string("/proc/net/udp")?.lines() {
        let columns: Vec<_> = line.split_whitespace().collect();
        if columns.get(1) == Some(&local.as_str()) {
            drops += columns.last().ok_or("no drops")?.parse::<usize>()?;
        }
    }
    Ok(drops)
}

fn loss_free_rate(program: &mut dyn Program) -> Result<usize> {
    let mut best = 0;
    for rate in RATES {
        let mut stood = false;
        for _ in 0..TRIES {
            let trial = trial(program, rate, TRIAL)?;
            // The sender must have kept the rate.
            stood |= trial.is_loss_free() && trial.per_second > 0.95 * rate as f64;
            if stood {
                break;
            }
        }
        if !stood {
            break;
        }
        best = rate;
    }
    Ok(best)
}

pub fn udp(peers: &Peers, table: &mut Table) -> Result<()> {
    let mut best_rate = 0;
    let mut cheapest = f64::INFINITY;
    let pays = |table: &mut Table, program: &mut dyn Program| -> Result<f64> {
        let cpu = trial(program, PAID_RATE, TRIAL)?.cpu_per_million;
        table.row(
            &format!(
                "UDP, {}: CPU-s per million at {} k/s",
                program.name(),
                PAID_RATE / 1000
            ),
            format!("{cpu:.2}"),
        );
        Ok(cpu)
    };
    let mut programs: Vec<Box<dyn Program>> = Vec::new();
    for variant in 0..peers::RSYSLOG_UDP {
        programs.push(peers.rsyslog_udp(variant)?);
    }
    for variant in 0..peers::SYSLOG_NG_UDP {
        programs.push(peers.syslog_ng_udp(variant)?);
    }
    for program in &mut programs {
        let rate = loss_free_rate(&mut **program)?;
        table.row(
            &format!("UDP, {}: loss-free rate", program.name()),
            format!("{} k/s", rate / 1000),
        );
        best_rate = best_rate.max(rate);
        cheapest = cheapest.min(pays(table, &mut **program)?);
    }
    pays(table, &mut Bare::new("udp"))?;
    let mut relay = Relay::plain()?;
    let cpu = pays(table, &mut relay)?;
    table.row(
        "UDP: CPU per message against the cheapest peer (bound: 0.5)",
        format!("{:.2}x", cpu / cheapest),
    );
    let rate = best_rate * 3 / 2;
    let proof = trial(&mut relay, rate, PROOF)?;
    table.row(
        &format!(
            "UDP, ftm-relay for 10 s at 1.5x the best peer ({} k/s): sent; lost",
            rate / 1000
        ),
        format!(
            "{} ({:.0} k/s); {}",
            proof.sent,
            proof.per_second / 1e3,
            proof.lost
        ),
    );
    Ok(())
}
