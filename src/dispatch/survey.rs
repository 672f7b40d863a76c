//! What the device and the directories say about an event right now. Asking changes nothing, so `explain` asks, too.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;

use crate::activation::Activation;
use crate::activation::Stage;
use crate::activation::Standing;
use crate::directory::Lookup;
use crate::directory::LookupError;
use crate::dispatch::Settings;
use crate::dispatch::inquiry;
use crate::dispatch::inquiry::Inquiry;
use crate::dispatch::inquiry::Terms;
use crate::fortios::Fleet;
use crate::outbox::By;
use crate::outbox::Evidence;
use crate::outbox::Finding;

/// All the directories together.
pub(super) const LOOKUPS_LIMIT: Duration = Duration::from_secs(50);

/// What was said.
pub struct Survey {
    /// By the device; `None`: it was not asked.
    pub inquiry: Option<Inquiry>,
    /// The event with what the device has said about it.
    pub activation: Activation,
    /// By the directories; `None`: there was nobody to ask for.
    pub lookup: Option<Result<Lookup, LookupError>>,
    /// All of it in sentences, and the route that follows from it.
    pub trace: Vec<Finding>,
}

impl Survey {
    /// What is kept of the device's word.
    pub fn evidence(&self) -> Option<&Evidence> {
        match &self.inquiry {
            Some(Inquiry::Proven { evidence, .. }) => Some(evidence),
            _ => None,
        }
    }
}

impl Settings {
    /// From now on nobody else is asked, no directory and no device.
    pub fn go_offline(&mut self) {
        self.directories.go_offline();
        self.fleet = Arc::new(Fleet::default());
    }

    /// Asks the device, where its word is needed or known better than the log's, and then the directories.
    pub async fn survey(&self, activation: &Activation, released: bool) -> Survey {
        let inquiry = match Timestamp::now() < activation.expires_at {
            true => self.inquire(activation, released).await,
            false => None,
        };
        let (activation, holder) = match &inquiry {
            Some(Inquiry::Proven {
                evidence, holder, ..
            }) => (evidence.applied_to(activation), Some(holder.as_str())),
            _ => (activation.clone(), None),
        };
        let is_open = !matches!(inquiry, Some(Inquiry::Stops { .. } | Inquiry::Waits { .. }));
        let route = self.routes.find(&activation);
        let lookup = match route {
            Some(route)
                if is_open && activation.stage == Stage::CodeSent && activation.code.is_some() =>
            {
                let who = self.who_is_meant(&activation, holder);
                let asked = self.directories.find(&who, route.domains.as_deref());
                Some(match timeout(LOOKUPS_LIMIT, asked).await {
                    Ok(said) => said,
                    Err(_) => Err(LookupError::Unavailable(format!(
                        "the directories gave no answer within {} s",
                        LOOKUPS_LIMIT.as_secs()
                    ))),
                })
            }
            _ => None,
        };
        let trace = self.trace(&activation, inquiry.as_ref(), lookup.as_ref());
        Survey {
            inquiry,
            activation,
            lookup,
            trace,
        }
    }

    async fn inquire(&self, activation: &Activation, released: bool) -> Option<Inquiry> {
        let gate = self.fleet.device(&activation.device);
        let confirm = activation.origin.standing == Standing::Provisional
            || gate.is_some_and(|gate| gate.confirms());
        let terms = Terms {
            confirm,
            released,
            person: &|user| self.directories.person(user),
        };
        inquiry::inquire(gate.map(|gate| &**gate), activation, &terms).await
    }

    /// Who is looked up: the user as logged, unless the device has named somebody else.
    fn who_is_meant<'a>(
        &self,
        activation: &'a Activation,
        holder: Option<&str>,
    ) -> Cow<'a, Activation> {
        if self.directories.person(&activation.user) == activation.person {
            return Cow::Borrowed(activation);
        }
        Cow::Owned(Activation {
            user: holder.unwrap_or(&activation.person).to_owned(),
            ..activation.clone()
        })
    }

    fn trace(
        &self,
        activation: &Activation,
        inquiry: Option<&Inquiry>,
        lookup: Option<&Result<Lookup, LookupError>>,
    ) -> Vec<Finding> {
        let at = Timestamp::now();
        let finding = |by, said| Finding { at, by, said };
        let device = inquiry.map(|inquiry| {
            let gate = self.fleet.device(&activation.device);
            let host = gate.map_or("no API", |gate| gate.host());
            finding(By::Device, format!("{host}: {}", inquiry.said()))
        });
        let asked = lookup.map_or_else(Vec::new, |lookup| match lookup {
            Ok(lookup) => lookup.trace().to_vec(),
            Err(e) => vec![e.to_string()],
        });
        let route = lookup.and_then(|_| self.routes.find(activation));
        let way = route.map(|route| {
            let fallback = match route.fallback.as_slice() {
                [] => String::new(),
                names => format!("; fallback {}", names.join(", ")),
            };
            let to = route.to.join(", ");
            finding(
                By::Route,
                format!("route {} goes to {to}{fallback}", route.number),
            )
        });
        device
            .into_iter()
            .chain(asked.into_iter().map(|said| finding(By::Directory, said)))
            .chain(way)
            .collect()
    }
}
