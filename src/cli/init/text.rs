//! The configuration that `init` writes.

use std::fmt::Write;

use super::answers::Answers;
use super::answers::MailRelay;
use super::answers::People;

/// The credential of the mail relay.
pub const SMTP_CREDENTIAL: &str = "smtp";
/// The credential of the bind.
pub const LDAP_CREDENTIAL: &str = "ldap";
/// The credential of the listener's private key.
pub const TLS_CREDENTIAL: &str = "tls-key";
/// The listener's certificate, beside the configuration.
pub const TLS_CERT: &str = "tls/server.pem";

/// The text of a configuration.
pub fn of(answers: &Answers) -> String {
    let mut text = Text::default();
    text.note("Written by `ftm-relay init`. Every key there is stands in the reference, /usr/share/ftm-relay/reference.toml.");
    text.note("After a change: `ftm-relay check`, then `systemctl reload ftm-relay`. Something wrong? `ftm-relay doctor`.");
    text.line("");
    text.note("Where the outbox is kept.");
    text.key(
        "state_dir",
        &quoted(&answers.state_dir.display().to_string()),
    );
    text.note("How long a code lives: two-factor-ftm-expiry of the FortiGate.");
    text.key("validity", "\"72h\"");

    text.table("[http]");
    text.note("Page, health and metrics, for this machine alone.");
    text.key("listen", "\"127.0.0.1:8514\"");

    text.table("[[listen]]");
    text.key("transport", &quoted(answers.to.transport));
    text.key("address", &quoted(&answers.to.address()));
    text.note("The FortiGates. Nobody else is believed.");
    text.key(
        "allow",
        &list(answers.allow.iter().map(ToString::to_string)),
    );
    if answers.to.transport == "tls" {
        text.note("Both are read again on a reload.");
        text.key("cert", &quoted(TLS_CERT));
        text.key("key", &credential(TLS_CREDENTIAL));
    }

    text.table("[recipients]");
    text.note("No code goes to an address outside these.");
    text.key("domains", &list(answers.domains.iter().cloned()));

    text.table("[[directory]]");
    people(&mut text, &answers.people);

    text.table("[channel.mail]");
    text.note("To the person, with the code.");
    mail(&mut text, &answers.mail);
    text.key("from", &quoted(&answers.from.to_string()));

    text.table("[channel.desk]");
    text.note("A fixed recipient is a place that others read: it gets no codes.");
    mail(&mut text, &answers.mail);
    text.key("from", &quoted(&answers.from.to_string()));
    text.key("to", &quoted(answers.escalate.as_ref()));

    text.table("[[route]]");
    text.key("to", "[\"mail\"]");
    text.note("Told when something needs a person: nobody found, not delivered, about to expire.");
    text.key("escalate", "[\"desk\"]");
    text.0
}

fn people(text: &mut Text, people: &People) {
    match people {
        People::Pattern(pattern) => {
            text.note("Whoever the FortiGate calls {user} has this address.");
            text.key("type", "\"pattern\"");
            text.key("email", &quoted(pattern));
        }
        People::Table(file) => {
            text.note("Columns: user,email,name,phone,language. It is read again when it changes.");
            text.key("type", "\"table\"");
            text.key("file", &quoted(&file.display().to_string()));
        }
        People::Ldap {
            url, base, bind_dn, ..
        } => {
            text.key("type", "\"ldap\"");
            text.key("url", &quoted(url));
            if url.starts_with("ldap://") {
                text.key("starttls", "true");
            }
            text.key("base", &quoted(base));
            if let Some(dn) = bind_dn {
                text.key("bind_dn", &quoted(dn));
                text.key("password", &credential(LDAP_CREDENTIAL));
            }
            text.note("Active Directory; elsewhere perhaps (uid={user}).");
            text.key("filter", "\"(sAMAccountName={user})\"");
            text.note("A private authority in place of the system's:");
            text.note("ca_file = \"tls/internal-ca.pem\"");
        }
    }
}

fn mail(text: &mut Text, relay: &MailRelay) {
    text.key("type", "\"smtp\"");
    text.key("host", &quoted(&relay.host));
    text.key("port", &relay.port.to_string());
    text.key("tls", &quoted(relay.tls));
    if let Some(user) = &relay.user {
        text.key("auth", "\"password\"");
        text.key("username", &quoted(user));
        text.key("password", &credential(SMTP_CREDENTIAL));
    }
}

/// A string of JSON is one of TOML.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<_> = items.map(|item| quoted(&item)).collect();
    format!("[{}]", items.join(", "))
}

fn credential(name: &str) -> String {
    format!("{{ credential = {} }}", quoted(name))
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn line(&mut self, line: &str) {
        writeln!(self.0, "{line}").expect("writing to a String");
    }

    fn note(&mut self, note: &str) {
        self.line(&format!("# {note}"));
    }

    fn table(&mut self, head: &str) {
        self.line(&format!("\n{head}"));
    }

    fn key(&mut self, key: &str, value: &str) {
        self.line(&format!("{key} = {value}"));
    }
}
