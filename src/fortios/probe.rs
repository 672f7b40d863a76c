//! What an administrator wants to know of a device's API before relying on it.

use futures_util::StreamExt;
use futures_util::stream;

use super::Code;
use super::Fleet;
use super::FortiGate;
use super::TOKEN_FORMAT;
use super::answer::TokenRow;
use super::answer::UserRow;
use super::client::Resource;
use super::error::ApiError;

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether it works.
    pub is_good: bool,
    /// One sentence: what works, or what is missing.
    pub text: String,
}

impl Finding {
    fn good(text: impl Into<String>) -> Self {
        Self {
            is_good: true,
            text: text.into(),
        }
    }

    fn bad(text: impl Into<String>) -> Self {
        Self {
            is_good: false,
            text: text.into(),
        }
    }
}

/// So many tokens are looked at to say whether codes are readable.
const SAMPLE: &str = "20";

/// So many devices are tried at the same time.
const DEVICES_AT_ONCE: usize = 16;

impl Fleet {
    /// [Tries](FortiGate::probe) every device in each of its `vdoms` (default `root`); with the id of each and the VDOM.
    pub async fn probe(&self) -> Vec<(String, String, Vec<Finding>)> {
        let mut tried: Vec<_> = stream::iter(self.all())
            .flat_map(|device| {
                let root = vec!["root".to_owned()];
                let vdoms = device.catch_up().vdoms.clone().unwrap_or(root);
                stream::iter(vdoms).map(move |vdom| (device, vdom))
            })
            .map(|(device, vdom)| async move {
                let findings = device.probe(&vdom).await;
                (device.id().to_owned(), vdom, findings)
            })
            .buffer_unordered(DEVICES_AT_ONCE)
            .collect()
            .await;
        tried.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        tried
    }
}

impl FortiGate {
    /// Tries everything that the relay may ask in a VDOM, and says what works and which permission is missing. It ends with
    /// the first thing without which nothing else can work.
    pub async fn probe(&self, vdom: &str) -> Vec<Finding> {
        let mut findings = Vec::new();
        let host = self.host();
        let query = [
            ("format", TOKEN_FORMAT),
            ("filter", "activation-expire>0"),
            ("count", SAMPLE),
        ];
        match self
            .client
            .page::<TokenRow>(Resource::Tokens, vdom, &query)
            .await
        {
            Ok(page) => {
                findings.push(Finding::good(format!(
                    "{host} answers, its certificate and our key are accepted, and its tokens can be read"
                )));
                findings.push(codes(host, page.results.0));
            }
            Err(e @ ApiError::Forbidden { .. }) => findings.push(Finding::bad(e.to_string())),
            Err(e) => return vec![Finding::bad(e.to_string())],
        }
        let query = [("format", "name"), ("count", "1")];
        for (resource, what) in [
            (
                Resource::Users,
                "users, with the mail addresses they have on the device",
            ),
            (Resource::Administrators, "administrators"),
        ] {
            findings.push(
                match self.client.page::<UserRow>(resource, vdom, &query).await {
                    Ok(_) => Finding::good(format!("its {what} can be read")),
                    Err(e) => Finding::bad(e.to_string()),
                },
            );
        }
        if self.catch_up.every.is_some() {
            let none = std::collections::BTreeSet::from([38412]);
            findings.push(match self.events(vdom, &none, jiff::Timestamp::MAX).await {
                Ok(_) => Finding::good("its event log can be read"),
                Err(e) => Finding::bad(e.to_string()),
            });
        }
        findings
    }
}

/// Whether activation codes are readable: nobody documents it, so it is looked at.
fn codes(host: &str, rows: Vec<TokenRow>) -> Finding {
    let codes: Vec<Code> = rows.into_iter().map(|row| row.token(None).code).collect();
    if codes.iter().any(|code| code.clear().is_some()) {
        return Finding::good("activation codes can be read");
    }
    match codes.iter().find(|code| matches!(code, Code::Masked(_))) {
        Some(masked) => Finding::bad(format!(
            "{host} shows {}: codes that the log doesn't show can't be had from its API either",
            masked.shown()
        )),
        None => Finding::good(
            "no token has an activation code at present, so whether codes can be read isn't known",
        ),
    }
}
