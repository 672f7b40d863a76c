//! `init`: a first configuration, from eight questions or from flags.

mod answers;
mod ask;
mod text;

use std::fs;
use std::io::IsTerminal;
use std::io::Write;
use std::net::UdpSocket;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use anyhow::bail;
use lettre::Address;
use lettre::message::Mailbox;

use super::ConfigArg;
use super::check;
use super::fortigate_cli;
use super::fortigate_cli::Version;
use super::say;
use crate::config;
use crate::ingest::Network;
use crate::secret::Secret;

use answers::Answers;
use answers::MailRelay;
use answers::People;

use answers::Way;
use ask::Asker;

/// What the packages install as the configuration, so that there is something to try at once.
const TRIAL: &str = include_str!("../../../deploy/ftm-relay.toml");

/// The table of people that is named, when there is none yet.
const TABLE_HEAD: &str = "user,email,name,phone,language\n";

/// Write a first configuration, asking at most eight questions
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Which FortiOS the firewalls run
    #[arg(long, value_enum)]
    fortios: Option<Version>,
    /// The firewalls: addresses and networks, with commas between them
    #[arg(long, value_name = "NETWORK", value_delimiter = ',')]
    allow: Vec<Network>,
    /// How the firewalls reach this relay: scheme udp, tcp or tls, and :PORT if it is another than 514 (tls 6514)
    #[arg(long, value_name = "SCHEME://ADDRESS")]
    to: Option<Way>,
    /// The mail relay: HOST, HOST:PORT, or USER@HOST:PORT if it wants a log-in
    #[arg(long, value_name = "RELAY")]
    mail: Option<MailRelay>,
    /// The sender of the mails
    #[arg(long, value_name = "MAILBOX")]
    from: Option<Mailbox>,
    #[arg(
        long,
        value_name = "HOW",
        help = "How people are found: {user}@DOMAIN, a CSV file, or ldaps://HOST/BASE as BIND_DN"
    )]
    people: Option<People>,
    /// Who is told when something needs a person; by default the sender of the mails
    #[arg(long, value_name = "ADDRESS")]
    escalate: Option<Address>,
    /// No code goes to an address outside these; by default the domains of --from and --people
    #[arg(long, value_name = "DOMAIN", value_delimiter = ',')]
    domain: Vec<String>,
    /// Where the outbox is kept
    #[arg(long, value_name = "PATH", default_value = "/var/lib/ftm-relay")]
    state_dir: PathBuf,
    /// Ask nothing; what no flag says has its default
    #[arg(long)]
    yes: bool,
    /// Check what was written without trying whether servers can be reached
    #[arg(long)]
    offline: bool,
    /// Overwrite a configuration; the old one is kept beside it
    #[arg(long)]
    force: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let path = std::path::absolute(&self.config.config)?;
        if is_somebodys_work(&path) && !self.force {
            bail!(
                "there is {} already; --force overwrites it, and keeps the old one as {}",
                path.display(),
                beside(&path, "old").display()
            );
        }
        let mut asker = (!self.yes && std::io::stdin().is_terminal()).then(Asker::default);
        let missing = self.missing();
        if asker.is_none() && !missing.is_empty() {
            eprintln!(
                "Without questions these flags are needed: {}",
                missing.join(", ")
            );
            return Ok(ExitCode::from(super::EX_USAGE));
        }
        let (config, live) = (self.config.config.clone(), !self.offline);
        let (answers, secrets) = self.answers(asker.as_mut(), &config::credentials_of(&path))?;

        write(&path, &text::of(&answers))?;
        say(format!("Wrote {}.", path.display()))?;
        if let People::Table(file) = &answers.people {
            make_table(&path, file)?;
        }
        let credentials = config::credentials_of(&path);
        let to_do = keep_secrets(&credentials, secrets)?;

        say(format!(
            "\nFor each FortiGate (FortiOS {}; `ftm-relay fortigate-cli` has others):\n",
            answers.fortios.name()
        ))?;
        fortigate_cli::Args::new(
            ConfigArg {
                config: config.clone(),
            },
            answers.fortios,
            answers.to.host.clone(),
        )
        .run()?;
        say("")?;
        let checked = check::Args {
            config: ConfigArg { config },
            live,
            json: false,
        }
        .run()?;
        next_steps(&answers, &path, &to_do)?;
        Ok(checked)
    }

    /// The flags that have no default.
    fn missing(&self) -> Vec<&'static str> {
        let flags = [
            ("--allow", self.allow.is_empty()),
            ("--mail", self.mail.is_none()),
            ("--from", self.from.is_none()),
        ];
        flags
            .into_iter()
            .filter_map(|(flag, missing)| missing.then_some(flag))
            .collect()
    }

    fn answers(
        self,
        asker: Option<&mut Asker>,
        credentials: &Path,
    ) -> anyhow::Result<(Answers, Vec<Wanted>)> {
        let mut get = Getter(asker);
        let fortios = get.or_ask(
            self.fortios,
            "Which FortiOS do the FortiGates run (6.4, 7.0, 7.2, 7.4, 7.6)?",
            Some("7.4"),
        )?;
        let allow = match self.allow {
            some if !some.is_empty() => some,
            _ => {
                let list: answers::List<Network> = get.or_ask(
                    None,
                    "What are the FortiGates' addresses or networks (with commas between them)?",
                    None,
                )?;
                list.0
            }
        };
        let to: Way = get.or_ask(
            self.to,
            "How do they reach this machine (udp://, tcp:// or tls://ADDRESS)?",
            Some(&format!("udp://{}", own_address(&allow))),
        )?;
        let mail: MailRelay = get.or_ask(
            self.mail,
            "Which mail relay takes the mails (HOST, HOST:PORT, or USER@HOST:PORT with a log-in)?",
            None,
        )?;
        let mut secrets = Vec::new();
        if mail.user.is_some() {
            let what = format!("the password at {}", mail.host);
            secrets.push(get.secret(credentials, text::SMTP_CREDENTIAL, what)?);
        }
        let from: Mailbox = get.or_ask(
            self.from,
            "Who is the sender of the mails, as in IT Service Desk <servicedesk@example.com>?",
            None,
        )?;
        let people: People = get.or_ask(
            self.people,
            "How are people found ({user}@DOMAIN, a CSV file, or ldaps://HOST/BASE as BIND_DN)?",
            Some(&format!("{{user}}@{}", from.email.domain())),
        )?;
        let escalate: Address = get.or_ask(
            self.escalate,
            "Who is told when something needs a person?",
            Some(from.email.as_ref()),
        )?;
        if let People::Ldap {
            bind_dn: Some(_),
            host,
            ..
        } = &people
        {
            let what = format!("the password of the bind at {host}");
            secrets.push(get.secret(credentials, text::LDAP_CREDENTIAL, what)?);
        }
        let mut domains = self.domain;
        if domains.is_empty() {
            domains.push(from.email.domain().to_owned());
            domains.extend(people.domain().map(str::to_owned));
            domains.dedup();
        }
        let answers = Answers {
            fortios,
            allow,
            to,
            mail,
            from,
            people,
            escalate,
            domains,
            state_dir: self.state_dir,
        };
        Ok((answers, secrets))
    }
}

/// A credential that the configuration names.
struct Wanted {
    name: &'static str,
    what: String,
    /// `None`: it was not asked for, or is to come later.
    secret: Option<Secret>,
}

/// Takes what a flag gave, else asks, else takes the default.
struct Getter<'a>(Option<&'a mut Asker>);

impl Getter<'_> {
    fn or_ask<T: answers::Answer>(
        &mut self,
        given: Option<T>,
        question: &str,
        default: Option<&str>,
    ) -> anyhow::Result<T> {
        match (given, &mut self.0, default) {
            (Some(given), ..) => Ok(given),
            (None, Some(asker), _) => asker.ask(question, default),
            (None, None, Some(default)) => T::read(default).map_err(anyhow::Error::msg),
            (None, None, None) => bail!("a flag is missing"),
        }
    }

    /// Not asked for where it is kept already, or where the questions are used up.
    fn secret(&mut self, dir: &Path, name: &'static str, what: String) -> anyhow::Result<Wanted> {
        let secret = match &mut self.0 {
            Some(asker) if !dir.join(name).exists() => asker.secret(&what)?,
            _ => None,
        };
        Ok(Wanted { name, what, secret })
    }
}

/// The address from which this machine would speak to the firewalls; nothing is sent.
fn own_address(allow: &[Network]) -> String {
    let to = allow.first().map(|network| network.net().addr());
    let local = to.and_then(|to| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect((to, 514)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    });
    match local {
        Some(std::net::IpAddr::V6(v6)) => format!("[{v6}]"),
        Some(v4) => v4.to_string(),
        None => "127.0.0.1".to_owned(),
    }
}

// === Files ===

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(end);
    path.with_file_name(name)
}

/// Something is there that is not just the packages' trial, untouched.
fn is_somebodys_work(path: &Path) -> bool {
    path.exists() && fs::read(path).map_or(true, |bytes| bytes != TRIAL.as_bytes())
}

/// The service's user, who is none of this machine's, must be able to read it, whatever the umask.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let failed = || format!("{} can't be written", path.display());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(failed)?;
    }
    let new = beside(path, "new");
    fs::write(&new, text).with_context(failed)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o644)).with_context(failed)?;
    if is_somebodys_work(path) {
        fs::rename(path, beside(path, "old")).with_context(failed)?;
    }
    fs::rename(&new, path).with_context(failed)
}

fn make_table(config: &Path, file: &Path) -> anyhow::Result<()> {
    let path = config.with_file_name("").join(file);
    if path.exists() {
        return Ok(());
    }
    fs::write(&path, TABLE_HEAD)
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)))
        .with_context(|| format!("{} can't be written", path.display()))?;
    say(format!(
        "Wrote {} with its header alone; add your people.",
        path.display()
    ))
}

/// Writes what was given; what is still to be put there is returned, as what to do.
fn keep_secrets(dir: &Path, wanted: Vec<Wanted>) -> anyhow::Result<Vec<String>> {
    let failed = || format!("{} can't be written", dir.display());
    if !dir.exists() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(failed)?;
    }
    let mut to_do = Vec::new();
    for Wanted { name, what, secret } in wanted {
        let path = dir.join(name);
        if path.exists() {
            say(format!("Kept {} ({what}).", path.display()))?;
            continue;
        }
        let Some(secret) = secret else {
            to_do.push(format!(
                "Put {what} into {0}: (umask 077; cat > {0}), paste, Enter, Ctrl-D",
                path.display()
            ));
            continue;
        };
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| {
                file.write_all(secret.expose().as_bytes())?;
                file.write_all(b"\n")
            })
            .with_context(failed)?;
        say(format!("Wrote {} ({what}).", path.display()))?;
    }
    Ok(to_do)
}

fn next_steps(answers: &Answers, path: &Path, to_do: &[String]) -> anyhow::Result<()> {
    let mut steps = to_do.to_vec();
    if answers.to.transport == "tls" {
        steps.push(format!(
            "Put the listener's certificate into {} and its key into {} (docs/tls.md)",
            path.with_file_name(text::TLS_CERT).display(),
            config::credentials_of(path)
                .join(text::TLS_CREDENTIAL)
                .display()
        ));
    }
    steps.push("Paste the block above into each FortiGate".to_owned());
    // Not `enable --now`, which would leave a trial running that was started before.
    steps.push("systemctl enable ftm-relay && systemctl restart ftm-relay".to_owned());
    steps.push("ftm-relay send-test --channel mail --to YOUR_ADDRESS".to_owned());
    steps.push("ftm-relay doctor".to_owned());
    say("\nNext:")?;
    for (number, step) in (1..).zip(steps) {
        say(format!("  {number}. {step}"))?;
    }
    Ok(())
}
