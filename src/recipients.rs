//! Who may get a code at all (`[recipients]`), and how a logged user name becomes the name to look up.

use std::fmt;

use serde::Deserialize;
use serde::Deserializer;
use serde::de;
use toml::Spanned;

use crate::domain;
use crate::settings::Check;

/// `[recipients]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// No code goes to an address outside these.
    pub domains: Spanned<Vec<String>>,
    /// Which domains are taken off a user name before the look-up.
    #[serde(default)]
    pub strip_domain: StripDomain,
    /// Another in-domain address stands in the message than the one found.
    #[serde(default)]
    pub mismatch: Mismatch,
}

/// `strip_domain`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StripDomain {
    /// `true`: any `DOMAIN\`, and `@D` for D in `domains`.
    #[default]
    Any,
    /// `false`: the name stays as logged.
    None,
    /// A list: only these.
    Only(Vec<String>),
}

/// `mismatch`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mismatch {
    /// Say so in the log and go on.
    #[default]
    Note,
    /// Let a person decide.
    Hold,
}

impl<'de> Deserialize<'de> for StripDomain {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = StripDomain;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "true, false or a list of domains such as [\"EXAMPLE\", \"example.com\"]",
                )
            }

            fn visit_bool<E: de::Error>(self, yes: bool) -> Result<StripDomain, E> {
                Ok(if yes {
                    StripDomain::Any
                } else {
                    StripDomain::None
                })
            }

            fn visit_seq<A: de::SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> Result<StripDomain, A::Error> {
                let mut domains = Vec::new();
                while let Some(domain) = list.next_element::<String>()? {
                    domains.push(domain::normal(&domain));
                }
                Ok(StripDomain::Only(domains))
            }
        }
        from.deserialize_any(Visitor)
    }
}

impl Config {
    /// Checks the domains.
    pub fn build(self, check: &mut Check) -> Option<Recipients> {
        let span = self.domains.span();
        let domains: Vec<String> = self
            .domains
            .into_inner()
            .iter()
            .map(|d| domain::normal(d))
            .collect();
        if domains.is_empty() {
            check.problem(span.clone(), "`domains` is empty, so no code could go to anybody; write the domains of your mail addresses");
        }
        for domain in &domains {
            if !is_domain(domain) {
                check.problem(span.clone(), format!("\"{domain}\" is no mail domain; write it as in \"example.com\", without @ or *"));
            }
        }
        Some(Recipients {
            domains,
            strip_domain: self.strip_domain,
            mismatch: self.mismatch,
        })
    }
}

fn is_domain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .chars()
                    .all(|c| c == '-' || c == '_' || c.is_alphanumeric())
        })
}

/// Who may get a code, and how user names are normalised.
#[derive(Clone, Debug)]
pub struct Recipients {
    domains: Vec<String>,
    strip_domain: StripDomain,
    /// What to do about another address in the message.
    pub mismatch: Mismatch,
}

impl Recipients {
    /// The name that look-ups, identity and limits use: without domain (as configured), without outer blanks, lower case.
    pub fn normalise(&self, user: &str) -> String {
        let user = user.trim().to_lowercase();
        if let Some((domain, name)) = user.split_once('\\')
            && !name.is_empty()
            && match &self.strip_domain {
                StripDomain::Any => true,
                StripDomain::None => false,
                StripDomain::Only(list) => list.contains(&domain::normal(domain)),
            }
        {
            return name.to_owned();
        }
        if let Some((name, domain)) = user.rsplit_once('@')
            && !name.is_empty()
            && match &self.strip_domain {
                StripDomain::Any => self.domains.contains(&domain::normal(domain)),
                StripDomain::None => false,
                StripDomain::Only(list) => list.contains(&domain::normal(domain)),
            }
        {
            return name.to_owned();
        }
        user
    }

    /// Whether a code may go to this address.
    pub fn allows(&self, address: &str) -> bool {
        within(address, &self.domains)
    }
}

/// Whether an address is in one of these domains, which are in their normal form (exactly; a subdomain is another domain).
pub fn within(address: &str, domains: &[String]) -> bool {
    address.rsplit_once('@').is_some_and(|(local, domain)| {
        !local.is_empty() && domains.contains(&domain::normal(domain))
    })
}

/// The one form in which addresses are compared: in lower case, the domain as DNS knows it.
pub fn normal_address(address: &str) -> String {
    match address.rsplit_once('@') {
        Some((local, domain)) => format!("{}@{}", local.to_lowercase(), domain::normal(domain)),
        None => address.to_lowercase(),
    }
}

/// Whether two addresses are one, as far as case and the spelling of the domain go.
pub fn same_address(one: &str, other: &str) -> bool {
    normal_address(one) == normal_address(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipients(strip_domain: StripDomain) -> Recipients {
        Recipients {
            domains: vec!["example.com".to_owned()],
            strip_domain,
            mismatch: Mismatch::Note,
        }
    }

    #[test]
    fn a_user_name_loses_its_domain_and_case_as_configured() {
        let only = StripDomain::Only(vec!["example".to_owned(), "example.com".to_owned()]);
        for (strip, user, person) in [
            (StripDomain::Any, "EXAMPLE\\Alice", "alice"),
            (StripDomain::Any, "alice@Example.com", "alice"),
            (
                StripDomain::Any,
                "alice@elsewhere.test",
                "alice@elsewhere.test",
            ),
            (StripDomain::Any, " ALICE ", "alice"),
            (StripDomain::Any, "EXAMPLE\\", "example\\"),
            (StripDomain::None, "EXAMPLE\\alice", "example\\alice"),
            (only.clone(), "EXAMPLE\\alice", "alice"),
            (only.clone(), "OTHER\\alice", "other\\alice"),
            (only, "alice@example.com", "alice"),
        ] {
            assert_eq!(
                recipients(strip.clone()).normalise(user),
                person,
                "{user} with {strip:?}"
            );
        }
    }

    #[test]
    fn an_international_domain_is_one_in_both_spellings() {
        for written in ["Bücher.example", "xn--bcher-kva.example"] {
            let config: Config = toml::from_str(&format!("domains = [\"{written}\"]")).unwrap();
            let mut check = Check::new("/", None, true);
            let recipients = config.build(&mut check).unwrap();
            assert!(!check.has_problems(), "{:?}", check.findings());
            for domain in ["bücher.example", "BÜCHER.example.", "xn--bcher-kva.EXAMPLE"] {
                assert!(recipients.allows(&format!("alice@{domain}")), "{domain}");
                assert_eq!(recipients.normalise(&format!("Alice@{domain}")), "alice");
            }
            assert!(!recipients.allows("alice@bucher.example"));
        }
        assert!(same_address(
            "Alice@bücher.example",
            "alice@xn--bcher-kva.example"
        ));
        assert!(!same_address(
            "alice@bücher.example",
            "bob@xn--bcher-kva.example"
        ));
        assert!(!same_address("alice", "alice@example.com"));
        assert_eq!(
            normal_address("Alice@BÜCHER.example."),
            "alice@xn--bcher-kva.example"
        );
    }

    #[test]
    fn only_addresses_in_the_domains_are_allowed() {
        let recipients = recipients(StripDomain::Any);
        assert!(recipients.allows("alice@EXAMPLE.com"));
        for address in [
            "alice@evil.test",
            "alice@sub.example.com",
            "alice@example.com.evil.test",
            "@example.com",
            "alice",
            "alice@example.com@evil.test",
        ] {
            assert!(!recipients.allows(address), "{address}");
        }
    }
}
