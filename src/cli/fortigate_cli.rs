//! `fortigate-cli`: what to paste into a FortiGate so that it sends its token events here.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::process::ExitCode;

use clap::ValueEnum;

use super::ConfigArg;
use super::say;
use crate::ingest;

/// The token's events and their neighbours are of type event, subtype system; a FortiGate writes their ids with this in front.
const SYSTEM_EVENT: &str = "0100";

/// Ids of which that is known.
const SYSTEM_EVENTS: [RangeInclusive<u32>; 2] = [32_001..=32_199, 38_400..=38_420];

/// Leaves a SIEM's own slot as it is.
const DEFAULT_SLOT: u8 = 2;

/// What the stitch and its parts are called on the FortiGate.
const STITCH: &str = "ftm-relay";

/// The switches of `config log syslogd filter`, and since when there is each: a version where all its patches have it.
const SWITCHES: [(&str, Since); 11] = [
    ("forward-traffic", Since::Always),
    ("local-traffic", Since::Always),
    ("multicast-traffic", Since::Always),
    ("sniffer-traffic", Since::Always),
    ("ztna-traffic", Since::Patch(Version::V7_0, "7.0.4")),
    ("anomaly", Since::Always),
    ("voip", Since::Always),
    ("forti-switch", Since::Patch(Version::V7_4, "7.4.2")),
    ("http-transaction", Since::Version(Version::V7_6)),
    ("debug", Since::Patch(Version::V7_6, "7.6.3")),
    ("gtp", Since::Model("on models with GTP")),
];

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
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=4), default_value_t = DEFAULT_SLOT)]
    slot: u8,
    /// For this VDOM alone
    #[arg(long, value_name = "NAME")]
    vdom: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A version of FortiOS whose commands are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Version {
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

impl Version {
    pub fn name(self) -> &'static str {
        match self {
            Self::V6_4 => "6.4",
            Self::V7_0 => "7.0",
            Self::V7_2 => "7.2",
            Self::V7_4 => "7.4",
            Self::V7_6 => "7.6",
        }
    }
}

/// Since when there is a switch.
#[derive(Clone, Copy)]
enum Since {
    Always,
    Version(Version),
    /// Since a patch of this version.
    Patch(Version, &'static str),
    Model(&'static str),
}

impl Args {
    /// For every listener, in the usual slot.
    pub fn new(config: ConfigArg, fortios: Version, server: String) -> Self {
        Self {
            config,
            fortios,
            server: Some(server),
            slot: DEFAULT_SLOT,
            vdom: None,
            json: false,
        }
    }

    pub fn run(self) -> anyhow::Result<ExitCode> {
        let config = match self.config.load() {
            Ok(config) => config,
            Err(code) => return Ok(code),
        };
        let snippets: Vec<_> = config
            .listeners
            .iter()
            .map(|listener| (listener, self.snippet(listener, &config.wanted_ids)))
            .collect();
        if self.json {
            let objects: Vec<_> = snippets
                .iter()
                .map(|(listener, cli)| {
                    serde_json::json!({
                        "listener": listener.name(),
                        "transport": listener.transport(),
                        "fortios": self.fortios.name(),
                        "cli": cli,
                    })
                })
                .collect();
            say(serde_json::to_string_pretty(&objects)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        if snippets.len() > 1 {
            eprintln!(
                "There are {} listeners: paste the block of one.",
                snippets.len()
            );
        }
        for (listener, cli) in snippets {
            say(format_args!(
                "# listener {}\n{}",
                listener.name(),
                cli.trim_end()
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn snippet(&self, listener: &ingest::Config, ids: &BTreeSet<u32>) -> String {
        let mut cli = Cli::default();
        match listener {
            ingest::Config::Stitch(stitch) => {
                self.stitch(&mut cli, stitch.address, stitch.cert.is_some(), ids);
            }
            _ => self.syslog(&mut cli, listener, ids),
        }
        cli.text
    }

    fn server(&self, address: SocketAddr) -> String {
        match &self.server {
            Some(server) => server.clone(),
            None if address.ip().is_unspecified() => "RELAY_ADDRESS".to_owned(),
            None => address.ip().to_string(),
        }
    }

    // === Syslog ===

    fn syslog(&self, cli: &mut Cli, listener: &ingest::Config, ids: &BTreeSet<u32>) {
        let slot = match self.slot {
            1 => "syslogd".to_owned(),
            n => format!("syslogd{n}"),
        };
        let over = if self.vdom.is_some() { "override-" } else { "" };
        match &self.vdom {
            Some(vdom) => {
                cli.line("config vdom");
                cli.line(&format!("edit \"{vdom}\""));
                cli.block("config log setting", |cli| {
                    cli.line("set syslog-override enable");
                });
            }
            None => cli.note("where VDOMs are in use, this belongs into: config global"),
        }
        cli.block(&format!("config log {slot} {over}setting"), |cli| {
            cli.line("set status enable");
            cli.line(&format!("set server \"{}\"", self.server(listener.address())));
            cli.line(match listener {
                ingest::Config::Udp(_) => "set mode udp",
                _ => "set mode reliable",
            });
            cli.line(&format!("set port {}", listener.address().port()));
            if let ingest::Config::Tls(tls) = listener {
                cli.line("set enc-algorithm high-medium");
                cli.line("set ssl-min-proto-version TLSv1-2");
                if tls.client_ca.is_some() {
                    cli.note("a local certificate of this FortiGate that an authority in client_ca has signed");
                    cli.line("set certificate \"CLIENT_CERTIFICATE\"");
                }
                cli.note("import the authority of the listener's certificate under CA certificates (what FortiOS checks of it isn't verified)");
            }
            cli.line("set format default");
            if self.vdom.is_some() && self.fortios >= Version::V7_6 {
                cli.note("if only the management VDOM reaches the relay: set use-management-vdom enable");
            }
        });
        cli.block(&format!("config log {slot} {over}filter"), |cli| {
            self.filter(cli, ids);
        });
        if self.vdom.is_some() {
            cli.line("end");
        }
    }

    fn filter(&self, cli: &mut Cli, ids: &BTreeSet<u32>) {
        // The wanted events are of level notice (notification); a stricter severity would lose them.
        cli.line("set severity information");
        for (switch, since) in SWITCHES {
            let set = format!("set {switch} disable");
            match since {
                Since::Always => cli.line(&set),
                Since::Version(version) if self.fortios >= version => cli.line(&set),
                Since::Patch(version, _) if self.fortios > version => cli.line(&set),
                Since::Patch(version, patch) if self.fortios == version => {
                    cli.note(&format!("from {patch} on: {set}"));
                }
                Since::Model(models) => cli.note(&format!("{models}: {set}")),
                Since::Version(_) | Since::Patch(..) => {}
            }
        }
        if self.fortios < Version::V7_0 {
            cli.line(&format!("set filter \"logid({})\"", list(ids, ",")));
            cli.line("set filter-type include");
            return;
        }
        cli.block("config free-style", |cli| {
            cli.edit("1", |cli| {
                cli.line("set category event");
                let ids: Vec<_> = ids.iter().map(|id| ten_digits(*id)).collect();
                cli.line(&format!("set filter \"(logid {})\"", ids.join(" ")));
                cli.line("set filter-type include");
            });
        });
        cli.note("web filter, IPS and other UTM logs have no switch here and may come along; the relay turns them away");
    }

    // === Automation stitch ===

    /// Facts from Fortinet's CLI references and schemas; tried on no device.
    fn stitch(&self, cli: &mut Cli, address: SocketAddr, is_https: bool, ids: &BTreeSet<u32>) {
        cli.note("not tried on a FortiGate yet: in particular that %%log%% is the log line as syslog would have it");
        cli.note("where VDOMs are in use, this belongs into: config global");
        if !is_https {
            cli.note("this listener speaks plain HTTP: RELAY_ADDRESS and port are those of the proxy in front of it that speaks HTTPS");
        }
        cli.block("config system automation-action", |cli| {
            cli.edit(&quoted(STITCH), |cli| {
                cli.line("set action-type webhook");
                cli.line("set protocol https");
                cli.line("set method post");
                let server = if is_https || self.server.is_some() {
                    self.server(address)
                } else {
                    "RELAY_ADDRESS".to_owned()
                };
                cli.line(&format!("set uri \"{server}\""));
                cli.line(&format!(
                    "set port {}",
                    if is_https { address.port() } else { 443 }
                ));
                cli.line("set http-body \"%%log%%\"");
                // An interval would swallow the second of two people within it.
                cli.line("set minimum-interval 0");
                if self.fortios >= Version::V7_0 {
                    cli.line("set verify-host-cert enable");
                }
                cli.note("TOKEN is the `token` of the listener");
                self.header(cli);
            });
        });
        if self.fortios < Version::V7_0 {
            // One id per trigger, and one trigger per stitch.
            for id in ids {
                let name = quoted(&format!("{STITCH}-{id}"));
                self.trigger(cli, &name, &id.to_string());
            }
        } else {
            self.trigger(cli, &quoted(STITCH), &list(ids, " "));
        }
    }

    /// `set headers` gave way to a table in patches of two versions.
    fn header(&self, cli: &mut Cli) {
        const OLD: &str = "set headers \"Authorization: Bearer TOKEN\"";
        match self.fortios {
            Version::V6_4 => return cli.line(OLD),
            Version::V7_0 => cli.note(&format!("up to 7.0.5 instead of the table: {OLD}")),
            Version::V7_2 => cli.note(&format!("in 7.2.0 instead of the table: {OLD}")),
            Version::V7_4 | Version::V7_6 => {}
        }
        cli.block("config http-headers", |cli| {
            cli.edit("1", |cli| {
                cli.line("set key \"Authorization\"");
                cli.line("set value \"Bearer TOKEN\"");
            });
        });
    }

    fn trigger(&self, cli: &mut Cli, name: &str, ids: &str) {
        cli.block("config system automation-trigger", |cli| {
            cli.edit(name, |cli| {
                cli.line("set event-type event-log");
                cli.line(&format!("set logid {ids}"));
            });
        });
        let action = format!("set action {}", quoted(STITCH));
        cli.block("config system automation-stitch", |cli| {
            cli.edit(name, |cli| {
                cli.line("set status enable");
                cli.line(&format!("set trigger {name}"));
                if self.fortios < Version::V7_0 {
                    return cli.line(&action);
                }
                if self.fortios == Version::V7_0 {
                    cli.note(&format!("in 7.0.0 instead of the table: {action}"));
                }
                cli.block("config actions", |cli| {
                    cli.edit("1", |cli| {
                        cli.line(&action);
                        cli.line("set required enable");
                    });
                });
            });
        });
    }
}

fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

fn list(ids: &BTreeSet<u32>, separator: &str) -> String {
    let ids: Vec<_> = ids.iter().map(u32::to_string).collect();
    ids.join(separator)
}

/// An id as FortiOS 7 logs it; a short one, which filters take too, where its type isn't known here.
fn ten_digits(id: u32) -> String {
    if SYSTEM_EVENTS.iter().any(|range| range.contains(&id)) {
        format!("{SYSTEM_EVENT}{id:06}")
    } else {
        id.to_string()
    }
}

/// Lines of CLI, indented by how deep they stand.
#[derive(Default)]
struct Cli {
    text: String,
    depth: usize,
}

impl Cli {
    fn line(&mut self, line: &str) {
        let indent = self.depth * 4;
        writeln!(self.text, "{:indent$}{line}", "").expect("writing to a String");
    }

    /// A line for the reader, which FortiOS skips.
    fn note(&mut self, note: &str) {
        self.line(&format!("# {note}"));
    }

    fn block(&mut self, head: &str, inside: impl FnOnce(&mut Self)) {
        self.within(head, "end", inside);
    }

    fn edit(&mut self, name: &str, inside: impl FnOnce(&mut Self)) {
        self.within(&format!("edit {name}"), "next", inside);
    }

    fn within(&mut self, head: &str, last: &str, inside: impl FnOnce(&mut Self)) {
        self.line(head);
        self.depth += 1;
        inside(self);
        self.depth -= 1;
        self.line(last);
    }
}
