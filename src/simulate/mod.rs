//! A FortiGate on the wire: activation events among the other lines that a firewall logs. Everything in them is made up.

use std::io;
use std::ops::Range;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::time::sleep_until;

mod device;
mod format;
mod lines;
mod noise;
mod pool;
mod random;
mod sender;
mod target;

pub use device::DEVICE_ID;
pub use device::DEVICE_NAME;
pub use format::FORMATS;
pub use format::Format;
pub use sender::Identity;
pub use target::Target;
pub use target::Transport;

use device::Device;
use device::FORTIOS;
use device::Style;
use lines::Lines;
use pool::Pool;
use sender::Sender;

/// Whose activations are simulated where nobody is named; from the eleventh on a number is appended.
const PEOPLE: [&str; 10] = [
    "alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy",
];

/// What is to be sent.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// Where to.
    pub to: Target,
    /// Who is who in TLS.
    pub identity: Identity,
    /// How the lines are written.
    pub format: Format,
    /// The version whose lines these are.
    pub fortios: String,
    /// Whose activations, in turn. Empty: alice, bob, … all different.
    pub users: Vec<String>,
    /// How many activations.
    pub count: u64,
    /// Lines per second; 0: as fast as they are taken.
    pub rate: f64,
    /// How many other lines before each activation.
    pub noise: u64,
    /// The same seed gives the same codes.
    pub seed: u64,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// Activation events.
    pub activations: u64,
    /// All lines, the activations included.
    pub lines: u64,
    /// Their bytes, without framing.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// A firewall's other lines, without end: what a listener's gate turns away.
pub fn noise(format: Format, seed: u64) -> impl Iterator<Item = String> {
    let mut device = Device::new(Style::TimeFirst, format, seed, TimeZone::UTC);
    std::iter::from_fn(move || {
        let mut line = String::new();
        device.noise(&mut line, Timestamp::now());
        Some(line)
    })
}

impl Simulation {
    /// Sends it all. `now` is the simulated device's clock at the start.
    pub async fn run(self, now: Timestamp) -> anyhow::Result<Summary> {
        let Some((_, style)) = FORTIOS.iter().find(|(v, _)| *v == self.fortios) else {
            bail!(
                "FortiOS {} can't be simulated; write one of {}",
                self.fortios,
                FORTIOS.map(|(v, _)| v).join(", ")
            );
        };
        if !self.rate.is_finite() || self.rate < 0.0 {
            bail!("the rate {} is no number of lines per second", self.rate);
        }
        let mut sender = Sender::open(&self.to, &self.identity).await?;
        let device = Device::new(*style, self.format, self.seed, TimeZone::system());
        let mut run = Run {
            simulation: &self,
            device,
            pool: Pool::new(self.to.transport),
            start: Instant::now(),
            now,
            summary: Summary::default(),
        };
        let sent = run.send_all(&mut sender).await;
        sender
            .close(sent)
            .await
            .map_err(sender::explain)
            .with_context(|| format!("sending to {} failed", self.to))?;
        Ok(run.summary)
    }

    fn user(&self, n: u64) -> String {
        if !self.users.is_empty() {
            return self.users[(n % self.users.len() as u64) as usize].clone();
        }
        let name = PEOPLE[(n % PEOPLE.len() as u64) as usize];
        match n / PEOPLE.len() as u64 {
            0 => name.to_owned(),
            round => format!("{name}{}", round + 1),
        }
    }
}

/// A simulation that is under way.
struct Run<'s> {
    simulation: &'s Simulation,
    device: Device,
    pool: Pool,
    start: Instant,
    now: Timestamp,
    summary: Summary,
}

impl Run<'_> {
    async fn send_all(&mut self, sender: &mut Sender) -> io::Result<()> {
        let mut activation = Lines::default();
        let mut line = String::new();
        for n in 0..self.simulation.count {
            let mut others = self.simulation.noise;
            while others > 0 {
                let most = self.due(sender).await?.min(others);
                let most = usize::try_from(most).unwrap_or(usize::MAX);
                let now = self.now + self.start.elapsed();
                let (lines, which) = self.pool.take(most, &mut self.device, now);
                others -= which.len() as u64;
                send(sender, &mut self.summary, lines, which).await?;
            }
            self.due(sender).await?;
            line.clear();
            activation.clear();
            let now = self.now + self.start.elapsed();
            self.device
                .activation(&mut line, now, &self.simulation.user(n));
            activation.push(&line, self.simulation.to.transport);
            send(sender, &mut self.summary, &activation, 0..1).await?;
            self.summary.activations += 1;
        }
        sender.flush().await?;
        self.summary.took = self.start.elapsed();
        Ok(())
    }

    /// Waits until a line is due, and says how many are.
    async fn due(&self, sender: &mut Sender) -> io::Result<u64> {
        let (rate, sent) = (self.simulation.rate, self.summary.lines);
        if rate == 0.0 {
            return Ok(u64::MAX);
        }
        let after = Duration::try_from_secs_f64(sent as f64 / rate).unwrap_or(Duration::MAX);
        let at = self.start.checked_add(after).unwrap_or(self.start);
        if at > Instant::now() {
            sender.flush().await?;
            sleep_until(at.into()).await;
        }
        let by_now = (self.start.elapsed().as_secs_f64() * rate) as u64;
        Ok(by_now.saturating_sub(sent).max(1))
    }
}

async fn send(
    sender: &mut Sender,
    summary: &mut Summary,
    lines: &Lines,
    which: Range<usize>,
) -> io::Result<()> {
    summary.lines += which.len() as u64;
    let bytes: usize = lines.texts(which.clone()).map(<[u8]>::len).sum();
    summary.bytes += bytes as u64;
    sender.send(lines, which).await
}
