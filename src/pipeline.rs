//! A frame becomes a [`Reading`]: what is in it, whether it is wanted, and why. Pure: no socket, clock or database.

use std::collections::HashMap;
use std::time::Duration;

use ipnet::IpNet;
use jiff::SignedDuration;
use jiff::Timestamp;

use crate::activation;
use crate::activation::Activation;
use crate::activation::ActivationCode;
use crate::activation::Device;
use crate::activation::Found;
use crate::activation::Origin;
use crate::activation::Stage;
use crate::activation::Standing;
use crate::devices::Claim;
use crate::devices::Devices;
use crate::devices::Recognised;
use crate::frame::Frame;
use crate::frame::Peer;
use crate::glob::Glob;
use crate::recipients::Recipients;
use crate::rules::Rules;
use crate::rules::User;
use crate::syslog;
use crate::syslog::Claimed;
use crate::syslog::Gate;
use crate::syslog::Record;

/// A device's clock may be ahead of ours by so much before its time is not believed.
const MAX_AHEAD: SignedDuration = SignedDuration::from_mins(5);
/// A local time without zone is within so much of UTC.
const MAX_ZONE: SignedDuration = SignedDuration::from_hours(14);
/// FortiOS limits `user` to 256 characters.
const MAX_USER_CHARS: usize = 256;
/// So many names of a certificate are shown.
const MAX_NAMES_SHOWN: usize = 3;
/// The longest name of a certificate that is shown.
const MAX_NAME_CHARS: usize = 100;
/// The longest event description that is kept.
const MAX_DESCRIPTION_CHARS: usize = 128;

/// Whom one listener believes.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Peers that may send at all.
    pub allow: Vec<IpNet>,
    /// Device ids that are believed.
    pub devices: Vec<Glob>,
}

/// Everything that decides about a frame.
#[derive(Clone, Debug)]
pub struct Pipeline {
    rules: Rules,
    devices: Devices,
    recipients: Recipients,
    listeners: HashMap<String, Admission>,
}

/// What a frame is.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The record's format, if it is a record.
    pub format: Option<&'static str>,
    /// The message id, if there is one.
    pub logid: Option<u32>,
    /// The stage of a token event.
    pub stage: Option<Stage>,
    /// The device that the record names.
    pub device: Option<Device>,
    /// The user that the record names.
    pub user: Option<String>,
    /// Why the peer may not speak for the device, or not here, if so. Nothing of such a record is believed.
    pub stranger: Option<String>,
    /// What an administrator should know besides: a clock that is off, a check that could not be made.
    pub notes: Vec<String>,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// What becomes of a frame.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// A token event, to be kept and acted on.
    Wanted(Box<Activation>),
    /// Some other log; the sentence says which.
    Ignored(String),
    /// Malformed, ambiguous or not allowed; the sentence says why.
    Rejected(String),
}

impl Pipeline {
    /// `listeners` holds whom each listener believes, by its name.
    pub fn new(
        rules: Rules,
        devices: Devices,
        recipients: Recipients,
        listeners: HashMap<String, Admission>,
    ) -> Self {
        Self {
            rules,
            devices,
            recipients,
            listeners,
        }
    }

    /// Of a listener that is no more, frames may still wait: they are judged by whom it believed when it took them.
    pub fn remember_listeners_of(&mut self, old: &Self) {
        for (name, admission) in &old.listeners {
            self.listeners
                .entry(name.clone())
                .or_insert_with(|| admission.clone());
        }
    }

    /// The configured devices.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// The byte search for the listeners: whatever it turns away, [`Pipeline::process`] would not want.
    pub fn gate(&self) -> Gate {
        Gate::new(self.rules.ids())
    }

    /// A configured device by its id, as people know it.
    pub fn device(&self, id: &str, vdom: &str) -> Device {
        let claim = Claim {
            devid: Some(id),
            vdom: Some(vdom),
            ..Claim::default()
        };
        self.devices.recognise(claim, &Peer::unknown()).device
    }

    /// Reads a frame. `now` is the frame's `received_at`.
    pub fn process(&self, frame: &Frame) -> Reading {
        let mut reading = Reading {
            format: None,
            logid: None,
            stage: None,
            device: None,
            user: None,
            stranger: None,
            notes: Vec::new(),
            verdict: Verdict::Ignored(String::new()),
        };
        reading.verdict = match syslog::parse(&frame.bytes) {
            Ok(record) => self.judge(frame, &record, &mut reading),
            Err(e) => Verdict::Rejected(e.to_string()),
        };
        reading
    }

    fn judge(&self, frame: &Frame, record: &Record<'_>, reading: &mut Reading) -> Verdict {
        reading.format = Some(record.format());
        reading.logid = record.message_id();
        let recognised = self.recognise(frame, record);
        reading.device = Some(recognised.device.clone());
        reading.user = record
            .get("user")
            .filter(|user| !user.is_empty())
            .map(|user| one_line(&user, MAX_USER_CHARS));
        let mut unchecked = Vec::new();
        reading.stranger = self.admit(frame, &recognised, &mut unchecked).err();
        let Some(id) = reading.logid else {
            return Verdict::Ignored(match record.get("logid") {
                Some(_) => "the field logid is no log id".to_owned(),
                None => {
                    "there is no field logid; the FortiGate must send a stock format".to_owned()
                }
            });
        };
        let Some(found) = self.rules.read(id, record) else {
            return Verdict::Ignored(format!("message id {id} is no event that a rule wants"));
        };
        reading.stage = Some(found.stage);
        reading.notes = unchecked;
        if let Some(reason) = &reading.stranger {
            return Verdict::Rejected(reason.clone());
        }
        if record.is_torn() {
            return Verdict::Rejected(
                "a quote in the message has no partner; this may be the rest of another message that a line feed has cut in two".to_owned(),
            );
        }
        if record.is_doubtful() {
            reading.notes.push(
                "a backslash before a quote can be read in two ways; the one that makes sense was taken".to_owned(),
            );
        }
        let user = match found.user {
            User::Named(user) => user,
            User::NotFound => {
                reading.notes.push(format!(
                    "the rule \"{}\" found no user in the message",
                    found.rule
                ));
                String::new()
            }
            User::Several => {
                return Verdict::Rejected(format!(
                    "the rule \"{}\" found different users in the message, and which one is meant can't be known",
                    found.rule
                ));
            }
        };
        if user.chars().count() > MAX_USER_CHARS {
            return Verdict::Rejected(format!(
                "the user name is longer than {MAX_USER_CHARS} characters"
            ));
        }
        let user = one_line(&user, MAX_USER_CHARS);
        reading.user = (!user.is_empty()).then(|| user.clone());
        let code = match found.code {
            Found::One(code) => Some(code),
            Found::None => None,
            Found::Several => {
                return Verdict::Rejected(
                    "the message shows different codes, and which one is meant can't be known"
                        .to_owned(),
                );
            }
        };
        let rule = found.rule.to_owned();
        let event = Event {
            id,
            stage: found.stage,
            rule,
            user,
            code,
        };
        Verdict::Wanted(Box::new(
            self.activation(frame, record, recognised, event, reading),
        ))
    }

    fn recognise(&self, frame: &Frame, record: &Record<'_>) -> Recognised<'_> {
        let (devid, devname, vdom) = (record.get("devid"), record.get("devname"), record.get("vd"));
        // FortiOS's CEF has no devname, but a header of its own with the name as host.
        let host_is_name = record.format() == "cef";
        let claim = Claim {
            devid: devid.as_deref(),
            devname: devname
                .as_deref()
                .or(record.host().filter(|_| host_is_name)),
            host: record.host(),
            vdom: vdom.as_deref(),
        };
        self.devices.recognise(claim, &frame.peer)
    }

    /// Whether the listener and the device let this peer speak. What isn't known can't be checked, and is noted.
    fn admit(
        &self,
        frame: &Frame,
        recognised: &Recognised<'_>,
        notes: &mut Vec<String>,
    ) -> Result<(), String> {
        let id = &recognised.logged_id;
        match &frame.listener {
            None => notes.push(
                "`allow` and `devices` were not checked, for no listener was named".to_owned(),
            ),
            Some(name) => {
                let Some(admission) = self.listeners.get(&**name) else {
                    return Err(format!("the listener {name} is not configured"));
                };
                match frame.peer.address.map(|address| address.to_canonical()) {
                    None => notes.push(
                        "`allow` was not checked, for the peer's address is not known".to_owned(),
                    ),
                    Some(address) if !admission.allow.iter().any(|net| net.contains(&address)) => {
                        return Err(format!(
                            "{address} is not in `allow` of the listener {name}"
                        ));
                    }
                    Some(_) => {}
                }
                let believed = |id: &str| admission.devices.iter().any(|glob| glob.matches(id));
                if !believed(id) && !believed(&recognised.device.id) {
                    return Err(format!(
                        "the device {id} is not in `devices` of the listener {name}"
                    ));
                }
            }
        }
        if recognised.has_peers() {
            if frame.peer.address.is_none() && frame.peer.certificate_names.is_empty() {
                notes.push(format!(
                    "`peers` of the device {id} was not checked, for the peer is not known"
                ));
            } else if !recognised.may_be_spoken_for_by(&frame.peer) {
                return Err(format!(
                    "{} may not speak for the device {id}; it is not in its `peers`",
                    who(&frame.peer)
                ));
            }
        }
        Ok(())
    }

    fn activation(
        &self,
        frame: &Frame,
        record: &Record<'_>,
        recognised: Recognised<'_>,
        event: Event,
        reading: &mut Reading,
    ) -> Activation {
        let msg = record.get("msg").unwrap_or_default();
        // Some FortiOS versions double backslashes, others don't; the person is the same.
        let person = self.recipients.normalise(&event.user.replace("\\\\", "\\"));
        let key = record
            .time_key()
            .unwrap_or_else(|| frame.received_at.as_second().to_string());
        let (event_time, skew) = event_time(record, frame.received_at, &mut reading.notes);
        let standing = match event.stage {
            Stage::CodeSent if recognised.must_be_confirmed() => Standing::Provisional,
            Stage::CodeSent if recognised.can_be_asked() => Standing::Unsettled,
            _ => Standing::Logged,
        };
        let Recognised {
            device, validity, ..
        } = recognised;
        Activation {
            event_id: activation::event_id(&device, event.id, &person, &key),
            device,
            user: event.user,
            person,
            logid: event.id,
            description: record
                .get("logdesc")
                .map(|text| one_line(&text, MAX_DESCRIPTION_CHARS))
                .filter(|text| !text.is_empty())
                .unwrap_or_else(|| event.rule.clone()),
            stage: event.stage,
            rule: event.rule,
            event_time,
            received_at: frame.received_at,
            expires_at: later(event_time, validity),
            validity,
            skew,
            code: event.code,
            token: token(record, &msg),
            addresses: activation::find_addresses(&msg),
            origin: Origin {
                line: line(frame, record.format()),
                standing,
                ..Origin::default()
            },
        }
    }
}

/// A peer by its address, and by its certificate where it has one.
fn who(peer: &Peer) -> String {
    let address = peer
        .address
        .map_or_else(|| "this peer".to_owned(), |address| address.to_string());
    let names = peer.certificate_names.iter().take(MAX_NAMES_SHOWN);
    let names: Vec<_> = names.map(|n| one_line(n, MAX_NAME_CHARS)).collect();
    if names.is_empty() {
        address
    } else {
        format!("{address} with the certificate of {}", names.join(", "))
    }
}

/// What a rule read, once it is beyond doubt.
struct Event {
    id: u32,
    stage: Stage,
    rule: String,
    user: String,
    code: Option<ActivationCode>,
}

/// The time of the event, and by how much the record's own time is ahead of ours.
fn event_time(
    record: &Record<'_>,
    received_at: Timestamp,
    notes: &mut Vec<String>,
) -> (Timestamp, SignedDuration) {
    let claimed = match record.claimed_time() {
        Claimed::At(time) => time,
        // Devices before 6.2 may log no zone. Near our own time, such a time says nothing that the receipt doesn't say
        // better; farther off than any zone, it is an old log and must not look fresh.
        Claimed::Somewhere(time)
            if time.duration_since(received_at).abs() > MAX_ZONE + MAX_AHEAD =>
        {
            time
        }
        Claimed::Somewhere(_) | Claimed::Nothing => {
            notes.push(
                "the record has no time with a zone, so the time of receipt counts as the time of the event".to_owned(),
            );
            return (received_at, SignedDuration::ZERO);
        }
    };
    let skew = claimed.duration_since(received_at);
    if skew > MAX_AHEAD {
        notes.push(format!(
            "the device's clock is {} ahead of ours, so the time of receipt counts as the time of the event",
            in_words(skew)
        ));
        return (received_at, skew);
    }
    if skew < -MAX_AHEAD {
        notes.push(format!(
            "the event is {} old: the device's clock is behind, or this is an old log",
            in_words(skew)
        ));
    }
    (claimed, skew)
}

/// The largest unit is enough to see what is wrong.
fn in_words(span: SignedDuration) -> String {
    let seconds = span.unsigned_abs().as_secs();
    match seconds {
        0..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn later(time: Timestamp, by: Duration) -> Timestamp {
    time.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// Which line it was, for the trace: enough to find it in another log, and nothing that stands in it.
fn line(frame: &Frame, format: &str) -> String {
    let from = frame
        .peer
        .address
        .map_or_else(|| "an unknown peer".to_owned(), |a| a.to_string());
    let by = match &frame.listener {
        Some(name) => format!(" on the listener {name}"),
        None => String::new(),
    };
    format!("{format}, {} bytes, from {from}{by}", frame.bytes.len())
}

/// The token's serial number: the field `serialno`, else by its shape from the message.
fn token(record: &Record<'_>, msg: &str) -> Option<String> {
    let field = record.get("serialno");
    field
        .as_deref()
        .map(str::trim)
        .filter(|serial| activation::is_serial(serial))
        .or_else(|| activation::find_serial(msg))
        .map(str::to_owned)
}

/// Log text fit for a page, a mail or a header: control characters become blanks, the length is bounded.
fn one_line(text: &str, max_chars: usize) -> String {
    text.trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(max_chars)
        .collect()
}
