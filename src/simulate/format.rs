//! How a FortiGate writes a log (`set format`). Each line is made as key=value, and put into another format where one is asked for.

use std::fmt::Write as _;
use std::str::FromStr;

use jiff::Timestamp;

/// The formats of FortiOS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `default`: key=value.
    Kv,
    /// `csv`: the same with commas.
    Csv,
    /// `cef`: the Common Event Format behind an RFC 3164 header.
    Cef,
    /// `rfc5424`: key=value behind an RFC 5424 header.
    Rfc5424,
    /// `json`, as its documentation suggests; no public sample of it exists.
    Json,
}

/// The formats by name.
pub const FORMATS: &[(&str, Format)] = &[
    ("kv", Format::Kv),
    ("csv", Format::Csv),
    ("cef", Format::Cef),
    ("rfc5424", Format::Rfc5424),
    ("json", Format::Json),
];

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// FortiOS's names and CEF's; the others get a prefix.
const CEF_NAMES: [(&str, &str); 9] = [
    ("user", "duser"),
    ("action", "act"),
    ("msg", "msg"),
    ("ui", "sproc"),
    ("sessionid", "externalId"),
    ("srcip", "src"),
    ("srcport", "spt"),
    ("dstip", "dst"),
    ("dstport", "dpt"),
];

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        FORMATS
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, format)| *format)
            .ok_or_else(|| {
                let names: Vec<_> = FORMATS.iter().map(|(name, _)| *name).collect();
                format!(
                    "the format \"{text}\" is not known; write {}",
                    names.join(" or ")
                )
            })
    }
}

/// One field of a line in key=value, its value as it stands there.
struct Field<'l> {
    name: &'l str,
    raw: &'l str,
}

impl Field<'_> {
    fn value(&self) -> String {
        match self.raw.strip_prefix('"').and_then(|r| r.strip_suffix('"')) {
            Some(quoted) => quoted.replace("\\\"", "\""),
            None => self.raw.to_owned(),
        }
    }
}

impl Format {
    /// Appends a line that was made as key=value, PRI included.
    pub fn write(self, line: &str, out: &mut String) {
        let (pri, body) = line.split_at(line.find('>').map_or(0, |at| at + 1));
        let written = match self {
            Self::Kv => out.write_str(line),
            Self::Csv => csv(pri, &fields(body), out),
            Self::Cef => cef(pri, &fields(body), out),
            Self::Rfc5424 => rfc5424(pri, &fields(body), out),
            Self::Json => json(pri, &fields(body), out),
        };
        written.expect("writing to a String");
    }
}

/// The fields of a line of our own making: every quote in a value is escaped.
fn fields(mut body: &str) -> Vec<Field<'_>> {
    let mut fields = Vec::new();
    while let Some((name, rest)) = body.split_once('=') {
        let end = match rest.strip_prefix('"') {
            Some(quoted) => {
                let mut escaped = false;
                let quote = quoted.find(|c| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                });
                quote.map_or(rest.len(), |at| at + 2)
            }
            None => rest.find(' ').unwrap_or(rest.len()),
        };
        let (raw, rest) = rest.split_at(end);
        fields.push(Field { name, raw });
        body = rest.trim_start();
    }
    fields
}

fn get(fields: &[Field<'_>], name: &str) -> String {
    let found = fields.iter().find(|f| f.name == name);
    found.map(Field::value).unwrap_or_default()
}

fn csv(pri: &str, fields: &[Field<'_>], out: &mut String) -> std::fmt::Result {
    out.push_str(pri);
    for (n, field) in fields.iter().enumerate() {
        let comma = if n == 0 { "" } else { "," };
        write!(out, "{comma}{}={}", field.name, field.raw)?;
    }
    Ok(())
}

/// Host name in the header; the body without date, time, devname and devid.
fn rfc5424(pri: &str, fields: &[Field<'_>], out: &mut String) -> std::fmt::Result {
    let number: i128 = get(fields, "eventtime").parse().unwrap_or_default();
    // Seconds have at most eleven digits, nanoseconds nineteen.
    let nanos = if number < 100_000_000_000 {
        number * 1_000_000_000
    } else {
        number
    };
    let time = Timestamp::from_nanosecond(nanos).unwrap_or_default();
    let host = get(fields, "devname");
    write!(
        out,
        "{pri}1 {} {host} - - - -",
        time.strftime("%Y-%m-%dT%H:%M:%SZ")
    )?;
    for field in fields {
        if !["date", "time", "devname", "devid"].contains(&field.name) {
            write!(out, " {}={}", field.name, field.raw)?;
        }
    }
    Ok(())
}

fn cef(pri: &str, fields: &[Field<'_>], out: &mut String) -> std::fmt::Result {
    let value = |name| get(fields, name);
    let (date, logid) = (value("date"), value("logid"));
    let mut date = date
        .split('-')
        .skip(1)
        .map(|part| part.parse::<usize>().unwrap_or(1));
    let month = MONTHS[(date.next().unwrap_or(1).clamp(1, 12)) - 1];
    let day = date.next().unwrap_or(1);
    let severity = match value("level").as_str() {
        "alert" => 7,
        "warning" => 4,
        "notice" => 3,
        _ => 2,
    };
    let category = format!("{}:{}", value("type"), value("subtype"));
    let title: Vec<_> = [category.clone(), value("eventtype"), value("action")]
        .into_iter()
        .filter(|word| !word.is_empty())
        .collect();
    write!(
        out,
        "{pri}{month} {day:>2} {} {} CEF: 0|Fortinet|Fortigate|v7.4.4|{}|{}|{severity}|deviceExternalId={}",
        value("time"),
        value("devname"),
        &logid[logid.len().saturating_sub(5)..],
        title.join(" ").replace('\\', "\\\\").replace('|', "\\|"),
        value("devid"),
    )?;
    for field in fields {
        let name = match field.name {
            "date" | "time" | "devname" | "devid" => continue,
            "type" => {
                write!(out, " cat={category}")?;
                continue;
            }
            other => CEF_NAMES
                .iter()
                .find(|(ours, _)| *ours == other)
                .map_or_else(
                    || format!("FTNTFGT{other}"),
                    |(_, theirs)| (*theirs).to_owned(),
                ),
        };
        let value = field.value().replace('\\', "\\\\").replace('=', "\\=");
        write!(out, " {name}={value}")?;
    }
    Ok(())
}

/// Numbers as numbers, so that `eventtime` has its nineteen digits.
fn json(pri: &str, fields: &[Field<'_>], out: &mut String) -> std::fmt::Result {
    write!(out, "{pri}{{")?;
    for (n, field) in fields.iter().enumerate() {
        let comma = if n == 0 { "" } else { "," };
        let bare = !field.raw.starts_with('"') && field.raw.bytes().all(|b| b.is_ascii_digit());
        let value = if bare {
            field.raw.to_owned()
        } else {
            serde_json::Value::String(field.value()).to_string()
        };
        write!(out, "{comma}\"{}\":{value}", field.name)?;
    }
    out.write_str("}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_told_apart_whatever_stands_in_them() {
        let fields = fields("a=1 b=\"x \\\" y=z\" c=\"\" d=2");
        let told: Vec<_> = fields.iter().map(|f| (f.name, f.value())).collect();
        let expected = [("a", "1"), ("b", "x \" y=z"), ("c", ""), ("d", "2")];
        assert_eq!(told, expected.map(|(name, value)| (name, value.to_owned())));
    }

    #[test]
    fn a_format_that_is_not_known_is_answered_with_those_that_are() {
        let said = "syslog".parse::<Format>().unwrap_err();
        assert!(said.contains("write kv or csv or cef"), "{said}");
    }

    #[test]
    fn every_format_has_its_shape() {
        let line = "<189>date=2026-11-04 time=10:22:31 devname=\"FGT\" devid=\"FGT1\" eventtime=1795774951123456789 tz=\"+0000\" logid=\"0100038412\" type=\"event\" subtype=\"system\" level=\"notice\" vd=\"root\" user=\"al=ice\" action=\"send\" msg=\"a\"";
        let written = |format: Format| {
            let mut out = String::new();
            format.write(line, &mut out);
            out
        };
        assert_eq!(written(Format::Kv), line);
        assert!(
            written(Format::Csv).starts_with("<189>date=2026-11-04,time=10:22:31,devname=\"FGT\",")
        );
        assert!(written(Format::Rfc5424).starts_with("<189>1 2026-11-27T"));
        assert!(
            written(Format::Rfc5424).contains("Z FGT - - - - eventtime=1795774951123456789 tz=")
        );
        assert!(written(Format::Cef).starts_with("<189>Nov  4 10:22:31 FGT CEF: 0|Fortinet|Fortigate|v7.4.4|38412|event:system send|3|deviceExternalId=FGT1 FTNTFGTeventtime="));
        assert!(
            written(Format::Cef)
                .contains(" FTNTFGTlogid=0100038412 cat=event:system FTNTFGTsubtype=system ")
        );
        assert!(written(Format::Cef).ends_with("FTNTFGTvd=root duser=al\\=ice act=send msg=a"));
        assert!(
            written(Format::Json).contains("\"eventtime\":1795774951123456789,\"tz\":\"+0000\",")
        );
    }
}
