//! `fortigate-cli`: what to paste into a FortiGate so that it sends its token events here.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::ExitCode;

use clap::ValueEnum;

use super::ConfigArg;
use crate::ingest;

/// The built-in rules' events are all of type event, subtype system; a FortiGate writes their ids with this in front.
const SYSTEM_EVENT: &str = "0100";

/// Print the FortiOS commands that send the wanted events here
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// The FortiOS version
    #[arg(long, value_enum, default_value = "7.4")]
    fortios: Version,
    /// How the FortiGate reaches this relay; by default the listener's own address
    #[arg(long, value_name = "ADDRESS")]
    server: Option<String>,
    /// Which of the four syslog slots to use; 2 leaves a SIEM's own as it is
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=4), default_value_t = 2)]
    slot: u8,
    /// For this VDOM alone
    #[arg(long, value_name = "NAME")]
    vdom: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Version {
    #[value(name = "6.4")]
    V6_4,
    #[value(name = "7.0")]
    V7_0,
    #[value(name = "7.2")]
    V7_2,
    #[value(name = "7.4")]
    V7_4,
    #[value(name = "7.6")]
    V7_6,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let config = match self.config.load() {
            Ok(config) => config,
            Err(code) => return Ok(code),
        };
        let snippets: Vec<_> = config
            .listeners
            .iter()
            .map(|listener| {
                (
                    listener.name().into_owned(),
                    self.snippet(listener, &config.wanted_ids),
                )
            })
            .collect();
        if self.json {
            let objects: Vec<_> = snippets
                .iter()
                .map(|(listener, cli)| serde_json::json!({ "listener": listener, "cli": cli }))
                .collect();
            println!("{}", serde_json::to_string_pretty(&objects)?);
            return Ok(ExitCode::SUCCESS);
        }
        if snippets.len() > 1 {
            eprintln!(
                "There are {} listeners: paste the block of one.",
                snippets.len()
            );
        }
        for (listener, cli) in snippets {
            println!("# listener {listener}");
            print!("{cli}");
        }
        Ok(ExitCode::SUCCESS)
    }

    fn snippet(&self, listener: &ingest::Config, ids: &BTreeSet<u32>) -> String {
        let slot = match self.slot {
            1 => "syslogd".to_owned(),
            n => format!("syslogd{n}"),
        };
        let over = if self.vdom.is_some() { "override-" } else { "" };
        let address = listener.address();
        let server = match &self.server {
            Some(server) => server.clone(),
            None if address.ip().is_unspecified() => "RELAY_ADDRESS".to_owned(),
            None => address.ip().to_string(),
        };
        let mode = match listener {
            ingest::Config::Udp(_) => "udp",
            _ => "reliable",
        };
        let mut cli = Cli(String::new());
        if let Some(vdom) = &self.vdom {
            cli.line(0, "config vdom");
            cli.line(0, &format!("edit \"{vdom}\""));
            cli.block(
                "config log setting",
                &["set syslog-override enable".to_owned()],
            );
        }
        cli.block(
            &format!("config log {slot} {over}setting"),
            &[
                "set status enable".to_owned(),
                format!("set server \"{server}\""),
                format!("set mode {mode}"),
                format!("set port {}", address.port()),
                "set format default".to_owned(),
            ],
        );
        self.filter(&mut cli, &format!("config log {slot} {over}filter"), ids);
        if self.vdom.is_some() {
            cli.line(0, "end");
        }
        cli.0
    }

    fn filter(&self, cli: &mut Cli, head: &str, ids: &BTreeSet<u32>) {
        cli.line(0, head);
        cli.line(1, "set severity information");
        let mut off = vec![
            "forward-traffic",
            "local-traffic",
            "multicast-traffic",
            "sniffer-traffic",
        ];
        // ztna-traffic came with 7.0.4, so that not every 7.0 knows it; http-transaction with 7.6.0.
        if self.fortios >= Version::V7_2 {
            off.push("ztna-traffic");
        }
        if self.fortios >= Version::V7_6 {
            off.push("http-transaction");
        }
        off.extend(["anomaly", "voip"]);
        for category in off {
            cli.line(1, &format!("set {category} disable"));
        }
        if self.fortios < Version::V7_0 {
            let ids: Vec<_> = ids.iter().map(u32::to_string).collect();
            cli.line(1, &format!("set filter \"logid({})\"", ids.join(",")));
            cli.line(1, "set filter-type include");
        } else {
            let ids: Vec<_> = ids
                .iter()
                .map(|id| format!("{SYSTEM_EVENT}{id:06}"))
                .collect();
            cli.line(1, "config free-style");
            cli.line(2, "edit 1");
            cli.line(3, "set category event");
            cli.line(3, &format!("set filter \"(logid {})\"", ids.join(" ")));
            cli.line(3, "set filter-type include");
            cli.line(2, "next");
            cli.line(1, "end");
        }
        cli.line(0, "end");
    }
}

struct Cli(String);

impl Cli {
    fn line(&mut self, depth: usize, text: &str) {
        writeln!(self.0, "{:indent$}{text}", "", indent = depth * 4).expect("writing to a String");
    }

    fn block(&mut self, head: &str, lines: &[String]) {
        self.line(0, head);
        for line in lines {
            self.line(1, line);
        }
        self.line(0, "end");
    }
}
