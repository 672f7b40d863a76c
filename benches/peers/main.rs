//! The relay beside rsyslog and syslog-ng, all three set up for the same job on the same machine in the same run: find the
//! one message in ten thousand that is an activation, hand it on, drop the rest.
//!
//! `cargo bench --bench peers` takes some ten minutes and prints a table; `-- tcp` (or `udp`, `tls`, `latency`, `connections`,
//! `forged`) measures that alone. The peers are Debian's packages, unpacked below the build directory: nothing is installed.
//! What a receiver could do at best stands beside them: a loop that reads, finds line ends and drops.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::time::Duration;
use std::time::Instant;

mod bare;
mod latency;
mod load;
mod peers;
mod program;
mod sample;
mod stream;
mod udp;

use peers::Peers;
use program::Program;
use program::Relay;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(120);

type Measure = fn(&Peers, &mut Table) -> Result<()>;

const MEASUREMENTS: [(&str, Measure); 6] = [
    ("forged", forged),
    ("tcp", stream::tcp),
    ("tls", stream::tls),
    ("udp", udp::udp),
    ("latency", latency::latency),
    ("connections", stream::connections),
];

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    if let (Some("--bare"), Some(kind)) = (words.next().as_deref(), words.next()) {
        return bare::run(&kind);
    }
    // `cargo test --all-targets` starts benches as well, without this word.
    if !std::env::args().any(|arg| arg == "--bench") {
        return Ok(());
    }
    let chosen: Vec<_> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    program::clear()?;
    let peers = Peers::unpack()?;
    let mut table = Table::default();
    for (name, measure) in MEASUREMENTS {
        if chosen.is_empty() || chosen.iter().any(|arg| arg == name) {
            measure(&peers, &mut table)?;
        }
    }
    print!("{}{table}", machine(&peers)?);
    program::clear()?;
    Ok(())
}

fn machine(peers: &Peers) -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("an unknown processor", |(_, name)| name);
    let cores = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!(
        "\n{cores} cores of {model}, Linux {}; {}\n",
        kernel.trim(),
        peers.versions()
    ))
}

// === Quoted text that spells an activation ===

/// Whoever matches by text hands these on; whoever reads fields does not.
fn forged(peers: &Peers, table: &mut Table) -> Result<()> {
    let mut lines = sample::forged();
    let forged = lines.len();
    // Once this real one is out, all before it have been judged.
    lines.push(sample::activation(0));
    let mut stream = lines.join("\n");
    stream.push('\n');
    let mut judge = |program: &mut dyn Program| -> Result<()> {
        program.start()?;
        load::send_once(program.address(), stream.as_bytes())?;
        until("the real activation", || Ok(program.handed_on()? > 0))?;
        // A peer writes in batches: what comes behind the real one counts too.
        std::thread::sleep(Duration::from_secs(1));
        let through = program.handed_on()? - 1;
        table.row(
            &format!("{forged} forged lines: {} hands on", program.name()),
            format!("{through}"),
        );
        program.stop()
    };
    judge(&mut Relay::plain()?)?;
    judge(&mut *peers.rsyslog_tcp(0)?)?;
    judge(&mut *peers.syslog_ng_tcp()?)
}

/// Polls until something has happened.
fn until(what: &str, mut happened: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !happened()? {
        if begin.elapsed() > PATIENCE {
            return Err(format!("waited in vain for {what}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

// === The table ===

#[derive(Default)]
struct Table {
    rows: Vec<[String; 2]>,
    seen: BTreeSet<String>,
}

impl Table {
    fn row(&mut self, what: &str, figure: String) {
        eprintln!("{what}: {figure}");
        assert!(self.seen.insert(what.to_owned()), "{what} stands twice");
        self.rows.push([what.to_owned(), figure]);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "\n| figure | measured |\n| --- | --- |")?;
        for [what, figure] in &self.rows {
            writeln!(f, "| {what} | {figure} |")?;
        }
        Ok(())
    }
}
