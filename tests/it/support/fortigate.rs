//! A FortiGate's REST API, as far as it is documented: envelopes, filters, paging, permissions, VDOMs, errors.
//!
//! What the documents leave open is a switch here: whether codes are shown in clear ([`Shown`]), which log devices exist,
//! whether filters are heeded. `docs/fortigate.md` names each and the command that would settle it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;

use serde_json::Map;
use serde_json::Value;
use serde_json::json;
use tokio_rustls::TlsAcceptor;

use super::http_sink::Answer;
use super::http_sink::HttpSink;
use super::http_sink::Request;
use super::samples;

/// The key of its REST API administrator.
pub const KEY: &str = "rest-api-key-of-the-test";
/// Its serial number: that of [`samples::Event`].
pub const SERIAL: &str = "FGT60FTK20000001";

/// How `activation-code` is shown. Which of these a FortiOS does, and from which version on, is not documented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    Clear,
    Asterisks,
    Encrypted,
    Nothing,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    Status(u16),
    /// 429 with this `Retry-After`.
    Blocked(u64),
    /// 200 and the log-in page.
    Html,
    /// 200 and JSON that ends in the middle.
    HalfJson,
    /// 302 to another address.
    Redirect(String),
    /// It takes the request and says nothing.
    Silence,
    /// The connection ends after half of the promised bytes.
    BreaksOff,
    /// Three mebibytes of rows, whatever was asked for.
    Huge,
}

/// An object of the configuration or a record of the log.
pub type Object = Map<String, Value>;

/// What the device holds and how it behaves. Everything may be changed while it runs.
pub struct State {
    pub serial: String,
    pub version: String,
    pub vdoms: Vec<String>,
    /// The permissions of the API administrator: `authgrp`, `sysgrp`, `loggrp`.
    pub profile: BTreeSet<&'static str>,
    /// Whether the asker's address is among the trusted hosts.
    pub is_trusted: bool,
    pub shown: Shown,
    pub fault: Option<Fault>,
    /// `filter`, `format`, `start` and `count` are not heeded.
    pub ignores_queries: bool,
    /// `filter` alone is not heeded.
    pub ignores_filters: bool,
    /// The log devices it has: `disk`, `memory`, `fortianalyzer`.
    pub logs: BTreeSet<&'static str>,
    /// Reading this one fails (500).
    pub failing_log: Option<&'static str>,
    /// It answers for this VDOM, whichever it is asked about.
    pub answers_for: Option<String>,
    /// An unfinished log search answers so often with nothing.
    pub searches: usize,
    /// Such an answer holds a record that nobody asked for, in place of nothing.
    pub shows_found_so_far: bool,
    tokens: Vec<(String, Object)>,
    users: Vec<(String, Object)>,
    admins: Vec<(String, Object)>,
    records: Vec<(String, Object)>,
}

/// The server; it ends with the test.
pub struct FortiGate {
    sink: HttpSink,
    scheme: &'static str,
    state: Arc<Mutex<State>>,
}

/// The serial number of token `n`.
pub fn token(n: u32) -> String {
    format!("FTKMOB{n:010X}")
}

impl FortiGate {
    /// One with the VDOM `root`, every permission, and nobody in it.
    pub async fn start() -> Self {
        let state = Arc::new(Mutex::new(State::new()));
        let sink = HttpSink::start(answering(&state)).await;
        Self {
            sink,
            scheme: "http",
            state,
        }
    }

    pub async fn start_tls(tls: TlsAcceptor) -> Self {
        let state = Arc::new(Mutex::new(State::new()));
        let sink = HttpSink::start_tls(tls, answering(&state)).await;
        Self {
            sink,
            scheme: "https",
            state,
        }
    }

    /// What stands behind `api`.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.sink.port)
    }

    /// A `[[device]]` for it, without catch-up; more keys may follow.
    pub fn device(&self) -> String {
        format!(
            "[[device]]\nid = \"{SERIAL}\"\napi = \"{}\"\ntoken = \"{KEY}\"\ncatch_up = \"0s\"\n",
            self.url()
        )
    }

    /// Looks at it or changes it.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn requests(&self) -> Vec<Request> {
        self.sink.requests()
    }
}

impl State {
    fn new() -> Self {
        Self {
            serial: SERIAL.to_owned(),
            version: "v7.6.3".to_owned(),
            vdoms: vec!["root".to_owned()],
            profile: BTreeSet::from(["authgrp", "sysgrp", "loggrp"]),
            is_trusted: true,
            shown: Shown::Clear,
            fault: None,
            ignores_queries: false,
            ignores_filters: false,
            logs: BTreeSet::from(["memory"]),
            failing_log: None,
            answers_for: None,
            searches: 0,
            shows_found_so_far: false,
            tokens: Vec::new(),
            users: Vec::new(),
            admins: Vec::new(),
            records: Vec::new(),
        }
    }

    /// Token `n` with code `n`, good until `expires` (seconds since 1970).
    pub fn add_token(&mut self, n: u32, expires: i64) {
        self.add_token_in("root", n, &samples::code(n), expires);
    }

    pub fn add_token_in(&mut self, vdom: &str, n: u32, code: &str, expires: i64) {
        let object = json!({
            "serial-number": token(n), "status": "active", "comments": "", "license": "FTMTRIAL01185372",
            "activation-code": code, "activation-expire": expires, "reg-id": "", "os-ver": "",
        });
        self.tokens.push((vdom.to_owned(), object_of(object)));
    }

    /// A phone has taken token `n`; its code stays where it stands.
    pub fn activate(&mut self, n: u32) {
        for (_, object) in &mut self.tokens {
            if object["serial-number"] == token(n) {
                object.insert("reg-id".into(), "f6t6:APA91b".into());
                object.insert("os-ver".into(), "4.7.1.0100_AND".into());
            }
        }
    }

    /// A member of token `n`.
    pub fn set_token(&mut self, n: u32, member: &str, value: impl Into<Value>) {
        let value = value.into();
        for (_, object) in &mut self.tokens {
            if object["serial-number"] == token(n) {
                object.insert(member.into(), value.clone());
            }
        }
    }

    /// A user of the VDOM `root` with token `n` and this address.
    pub fn add_user(&mut self, name: &str, n: u32, email: &str) {
        self.add_user_in("root", name, n, email);
    }

    pub fn add_user_in(&mut self, vdom: &str, name: &str, n: u32, email: &str) {
        self.users
            .push((vdom.to_owned(), holder(name, "type", n, email)));
    }

    pub fn add_admin(&mut self, name: &str, n: u32, email: &str) {
        self.admins
            .push(("root".to_owned(), holder(name, "accprofile", n, email)));
    }

    /// A member of the user or administrator of this name.
    pub fn set_holder(&mut self, name: &str, member: &str, value: impl Into<Value>) {
        let value = value.into();
        for (_, object) in self.users.iter_mut().chain(&mut self.admins) {
            if object["name"] == name {
                object.insert(member.into(), value.clone());
            }
        }
    }

    /// The device logs this event, as its syslog would say it.
    pub fn log(&mut self, event: &samples::Event) {
        let record = json!({
            "date": "2026-11-24", "time": "10:22:31", "eventtime": event.eventtime, "tz": "+0100",
            "logid": event.logid, "type": "event", "subtype": "system", "level": "notice", "vd": event.vdom,
            "logdesc": "Token activation code sent", "user": event.user, "action": "send", "msg": event.msg,
            "_metadata": {"#": 1, "logid": 38412, "timestamp": event.eventtime / 1_000_000, "roll": 1},
        });
        self.log_record(&event.vdom, record);
    }

    pub fn log_record(&mut self, vdom: &str, record: Value) {
        self.records.push((vdom.to_owned(), object_of(record)));
    }

    fn answer(&mut self, request: &Request) -> Answer {
        if let Some(fault) = self.fault.clone() {
            return self.fail(&fault);
        }
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let query: Vec<(String, String)> = query.split('&').filter_map(pair).collect();
        let authorization = request
            .headers
            .iter()
            .find(|(name, _)| name == "authorization");
        let is_ours = authorization.is_some_and(|(_, value)| *value == format!("Bearer {KEY}"));
        if !is_ours || !self.is_trusted || query.iter().any(|(name, _)| name == "access_token") {
            return page(401, "<html><body>401 Unauthorized</body></html>");
        }
        let parts: Vec<String> = path.split('/').skip(1).map(decoded).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let asked = value(&query, "vdom").unwrap_or("root");
        let vdom = self.answers_for.as_deref().unwrap_or(asked).to_owned();
        match parts[..] {
            ["api", "v2", "cmdb", group, table] => self.table((group, table), None, &vdom, &query),
            ["api", "v2", "cmdb", group, table, name] => {
                self.table((group, table), Some(name), &vdom, &query)
            }
            ["api", "v2", "log", device, "event", "system"] => self.logs(device, &vdom, &query),
            _ => page(404, "<html><body>404 Not Found</body></html>"),
        }
    }

    fn table(
        &self,
        table: (&str, &str),
        name: Option<&str>,
        vdom: &str,
        query: &[(String, String)],
    ) -> Answer {
        let (objects, key, permission) = match table {
            ("user", "fortitoken") => (&self.tokens, "serial-number", "authgrp"),
            ("user", "local") => (&self.users, "name", "authgrp"),
            ("system", "admin") => (&self.admins, "name", "sysgrp"),
            _ => return page(404, "<html><body>404 Not Found</body></html>"),
        };
        if !self.profile.contains(permission) {
            return self.error(403, vdom);
        }
        if !self.vdoms.iter().any(|v| v == vdom) {
            return self.error(424, vdom);
        }
        let is_global = table == ("system", "admin");
        let rows = objects
            .iter()
            .filter(|(of, _)| is_global || of == vdom)
            .map(|(_, object)| self.as_shown(object))
            .filter(|object| name.is_none_or(|name| object[key] == name));
        let rows: Vec<Object> = match self.ignores_queries {
            true => rows.collect(),
            false => paged(rows.filter(|row| matches(row, query)), query, "count")
                .map(|row| formatted(row, query))
                .collect(),
        };
        if name.is_some() && rows.is_empty() {
            return self.error(404, vdom);
        }
        let matched = rows.len();
        self.envelope(
            json!({
                "revision": "bd002ee1735120907182831e7528dc8b", "results": rows, "path": table.0, "name": table.1,
                "size": objects.len(), "matched_count": matched,
            }),
            vdom,
        )
    }

    fn logs(&mut self, device: &str, vdom: &str, query: &[(String, String)]) -> Answer {
        if !self.profile.contains("loggrp") {
            return self.error(403, vdom);
        }
        if self.failing_log == Some(device) {
            return self.error(500, vdom);
        }
        if !self.logs.contains(device) {
            return self.error(404, vdom);
        }
        if !self.vdoms.iter().any(|v| v == vdom) {
            return self.error(424, vdom);
        }
        let log = |rows: Vec<Object>, completed| {
            let lines = rows.len();
            json!({
                "results": rows, "device": device, "category": "event", "subcategory": "system", "session_id": 17,
                "rows": lines, "total_lines": lines, "completed": completed,
            })
        };
        if self.searches > 0 {
            self.searches -= 1;
            let so_far = match self.shows_found_so_far {
                true => vec![object_of(json!({"logid": "0100032001", "vd": vdom}))],
                false => Vec::new(),
            };
            return self.envelope(log(so_far, 40), vdom);
        }
        // The newest first.
        let of_vdom = self.records.iter().rev().filter(|(of, _)| of == vdom);
        let mut rows: Vec<&Object> = of_vdom.map(|(_, record)| record).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row["eventtime"].as_i64()));
        if !self.ignores_queries && !self.ignores_filters {
            rows.retain(|row| matches(row, query));
        }
        let rows = paged(rows.into_iter().cloned(), query, "rows").collect();
        self.envelope(log(rows, 100), vdom)
    }

    fn as_shown(&self, object: &Object) -> Object {
        let mut object = object.clone();
        if let Some(code) = object.get_mut("activation-code")
            && code.as_str().is_some_and(|code| !code.is_empty())
        {
            match self.shown {
                Shown::Clear => {}
                Shown::Asterisks => *code = "****************".into(),
                Shown::Encrypted => {
                    *code = "ENC SH2rLm3dEYDr1gRC0sC1bVvj2bYyBqZyGgYVJ8l0rw=".into()
                }
                Shown::Nothing => *code = "".into(),
            }
        }
        object
    }

    fn envelope(&self, mut body: Value, vdom: &str) -> Answer {
        let common = json!({
            "http_method": "GET", "vdom": vdom, "status": "success", "http_status": 200, "serial": self.serial,
            "version": self.version, "build": 3510,
        });
        for (name, value) in object_of(common) {
            body[name] = value;
        }
        json_reply(200, &body)
    }

    fn error(&self, status: u16, vdom: &str) -> Answer {
        json_reply(
            status,
            &json!({
                "http_method": "GET", "results": [], "vdom": vdom, "status": "error", "http_status": status,
                "serial": self.serial, "version": self.version, "build": 3510,
            }),
        )
    }

    fn fail(&self, fault: &Fault) -> Answer {
        match fault {
            Fault::Status(status) => self.error(*status, "root"),
            Fault::Blocked(seconds) => Answer::Reply {
                status: 429,
                headers: vec![("retry-after", seconds.to_string())],
                body: String::new(),
            },
            Fault::Html => page(200, "<!DOCTYPE html><html><body>Please log in</body></html>"),
            Fault::HalfJson => page(200, "{\"http_method\":\"GET\",\"results\":[{\"name\":\"al"),
            Fault::Redirect(to) => Answer::Reply {
                status: 302,
                headers: vec![("location", to.clone())],
                body: String::new(),
            },
            Fault::Silence => Answer::Silence,
            Fault::BreaksOff => Answer::Raw(
                b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{\"http_method\":\"GET\",\"results\":[".to_vec(),
            ),
            Fault::Huge => {
                let row = holder("somebody-else", "type", 0, "somebody@example.com");
                self.envelope(json!({"results": vec![row; 20_000]}), "root")
            }
        }
    }
}

fn answering(state: &Arc<Mutex<State>>) -> impl Fn(&Request) -> Answer + Send + Sync + 'static {
    let state = Arc::clone(state);
    move |request| state.lock().unwrap().answer(request)
}

fn holder(name: &str, member: &str, n: u32, email: &str) -> Object {
    object_of(json!({
        "name": name, "q_origin_key": name, member: "password", "status": "enable", "two-factor": "fortitoken",
        "fortitoken": token(n), "email-to": email, "sms-server": "fortiguard", "sms-phone": "",
    }))
}

fn object_of(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        other => panic!("{other} is no object"),
    }
}

fn page(status: u16, body: &str) -> Answer {
    Answer::Reply {
        status,
        headers: vec![("content-type", "text/html".to_owned())],
        body: body.to_owned(),
    }
}

fn json_reply(status: u16, body: &Value) -> Answer {
    Answer::Reply {
        status,
        headers: vec![("content-type", "application/json".to_owned())],
        body: body.to_string(),
    }
}

// === The query parameters of FortiOS ===

fn pair(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    Some((decoded(name), decoded(&value.replace('+', " "))))
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if let (b'%', [high, low, after @ ..]) = (first, after) {
            let hex = [*high, *low];
            let hex = std::str::from_utf8(&hex).unwrap();
            bytes.push(u8::from_str_radix(hex, 16).unwrap());
            rest = after;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn value<'q>(query: &'q [(String, String)], name: &str) -> Option<&'q str> {
    let found = query.iter().find(|(n, _)| n == name);
    found.map(|(_, value)| value.as_str())
}

/// Several `filter` are all to hold, of those that commas separate one.
fn matches(row: &Object, query: &[(String, String)]) -> bool {
    let filters = query.iter().filter(|(name, _)| name == "filter");
    filters.into_iter().all(|(_, filter)| {
        filter.split(',').any(|one| {
            let (key, operator, pattern) = ["==", "!=", ">=", "<=", "=@", "=*", ">", "<"]
                .into_iter()
                .filter_map(|operator| {
                    let at = one.find(operator)?;
                    Some((&one[..at], operator, &one[at + operator.len()..]))
                })
                .next()
                .unwrap_or_else(|| panic!("{one} is no filter"));
            let text = match row.get(key) {
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => String::new(),
            };
            let number = |text: &str| text.parse::<i64>().unwrap_or_default();
            match operator {
                "==" => text == pattern,
                "!=" => text != pattern,
                "=*" => text.eq_ignore_ascii_case(pattern),
                "=@" => text.to_lowercase().contains(&pattern.to_lowercase()),
                ">=" => number(&text) >= number(pattern),
                "<=" => number(&text) <= number(pattern),
                ">" => number(&text) > number(pattern),
                _ => number(&text) < number(pattern),
            }
        })
    })
}

fn paged<T>(
    rows: impl Iterator<Item = T>,
    query: &[(String, String)],
    count: &str,
) -> impl Iterator<Item = T> {
    let number = |name: &str| value(query, name).map(|text| text.parse::<usize>().unwrap());
    rows.skip(number("start").unwrap_or(0))
        .take(number(count).unwrap_or(usize::MAX))
}

fn formatted(mut row: Object, query: &[(String, String)]) -> Object {
    if let Some(format) = value(query, "format") {
        row.retain(|name, _| format.split('|').any(|wanted| wanted == name));
    }
    row
}
