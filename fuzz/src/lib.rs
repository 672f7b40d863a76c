//! What the fuzz targets do with their bytes, and what must hold whatever these are.
//!
//! `tests/it/fuzz.rs` includes this file and runs it over the seeds and the regressions, so it needs no fuzzer.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use ftm_relay::config;
use ftm_relay::devices::Devices;
use ftm_relay::directory;
use ftm_relay::frame::Frame;
use ftm_relay::frame::Peer;
use ftm_relay::ingest::framing::Decoder;
use ftm_relay::ingest::framing::Event;
use ftm_relay::ingest::record_of_stitch;
use ftm_relay::pipeline::Pipeline;
use ftm_relay::pipeline::Verdict;
use ftm_relay::recipients;
use ftm_relay::rules;
use ftm_relay::rules::Rules;
use ftm_relay::settings::Check;
use ftm_relay::syslog;
use ftm_relay::syslog::Gate;
use jiff::Timestamp;

/// Takes any bytes and panics where something does not hold.
pub type Target = fn(&[u8]);

/// What each target is called, and what it does.
pub const TARGETS: &[(&str, Target)] = &[
    ("framing", framing),
    ("line", line),
    ("kv", kv),
    ("csv", csv),
    ("cef", cef),
    ("rfc5424", rfc5424),
    ("json", json),
    ("stitch", stitch),
    ("ldap", ldap),
    ("config", config),
];

/// The first byte chooses the limit, the second the sizes of the reads; the rest is a stream. Its pieces change nothing.
pub fn framing(data: &[u8]) {
    let [limit, read, stream @ ..] = data else {
        return;
    };
    let limit = 16 + usize::from(*limit) * 4;
    let whole = frames(stream, stream.len().max(1), limit);
    let pieces = frames(stream, 1 + usize::from(*read), limit);
    assert_eq!(whole, pieces, "reads of another size change the frames");
    let bytes: usize = whole.iter().flatten().map(Vec::len).sum();
    assert!(bytes <= stream.len(), "frames hold more than the stream");
}

/// The frames of a stream; `None` for whatever else the decoder says.
fn frames(stream: &[u8], read: usize, limit: usize) -> Vec<Option<Vec<u8>>> {
    let mut decoder = Decoder::new(limit);
    let mut all = Vec::new();
    for piece in stream.chunks(read) {
        decoder.space().extend_from_slice(piece);
        take(&mut decoder, &mut all, limit);
        decoder.rest();
    }
    decoder.finish();
    take(&mut decoder, &mut all, limit);
    all
}

fn take(decoder: &mut Decoder, all: &mut Vec<Option<Vec<u8>>>, limit: usize) {
    while let Some(event) = decoder.next() {
        all.push(match event {
            Event::Frame(frame) => {
                assert!(
                    !frame.is_empty() && frame.len() <= limit,
                    "{} bytes",
                    frame.len()
                );
                Some(frame.to_vec())
            }
            _ => None,
        });
    }
}

struct Reader {
    pipeline: Pipeline,
    gate: Gate,
}

/// The built-in rules, and one of an operator's.
static READER: LazyLock<Reader> = LazyLock::new(|| {
    let mut check = Check::new(".", None, false);
    let guest: rules::Config = toml::from_str(
        "name = \"guest\"\nlogid = [38406]\nstage = \"code-sent\"\ncode = 'password (?P<code>\\S+)'\nuser = 'user (?P<user>\\S+)'\nwhere = { action = \"send*\" }\n",
    )
    .expect("a good rule");
    let rules = Rules::build(vec![guest], &mut check).expect("good rules");
    let validity = Duration::from_secs(72 * 3600);
    let devices = Devices::build(Vec::new(), validity, &mut check).expect("no devices");
    let recipients: recipients::Config =
        toml::from_str("domains = [\"example.com\"]").expect("good recipients");
    let recipients = recipients.build(&mut check).expect("good recipients");
    let pipeline = Pipeline::new(rules, devices, recipients, HashMap::new());
    let gate = pipeline.gate();
    Reader { pipeline, gate }
});

/// One message: what is wanted passes the gate, and no field that decides stands twice.
pub fn line(data: &[u8]) {
    read(data);
}

/// The default format, a field of it in front.
pub fn kv(data: &[u8]) {
    read_behind(b"<189>date=2026-11-24 ", data);
}

/// csv, a field of it in front.
pub fn csv(data: &[u8]) {
    read_behind(b"<189>date=2026-11-24,", data);
}

/// CEF from its product on.
pub fn cef(data: &[u8]) {
    read_behind(b"<189>Nov 24 10:22:31 FGT CEF:0|Fortinet|", data);
}

/// The body of RFC 5424.
pub fn rfc5424(data: &[u8]) {
    read_behind(b"<189>1 2026-11-24T09:22:31Z FGT_1 - - - - ", data);
}

/// The members of a JSON object.
pub fn json(data: &[u8]) {
    read_behind(b"<189>{", data);
}

/// The body of a stitch's request.
pub fn stitch(data: &[u8]) {
    if let Ok(record) = record_of_stitch(data) {
        read(record);
    }
}

fn read_behind(front: &[u8], data: &[u8]) {
    read(&[front, data].concat());
}

fn read(bytes: &[u8]) {
    if let Ok(record) = syslog::parse(bytes) {
        record.claimed_time();
        record.time_key();
        for name in record.names() {
            record.get(&name);
        }
    }
    let reading = READER.pipeline.process(&Frame {
        bytes: bytes.to_vec(),
        peer: Peer::unknown(),
        listener: None,
        received_at: Timestamp::UNIX_EPOCH,
    });
    if let Verdict::Wanted(activation) = reading.verdict {
        assert!(
            READER.gate.passes(bytes),
            "the gate turns away what is wanted"
        );
        assert!(
            !activation.user.chars().any(char::is_control),
            "a user's name on several lines"
        );
    }
}

/// A configuration file: whatever it holds, everything that is found has a place in it.
pub fn config(data: &[u8]) {
    static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
        let name = format!("ftm-relay-fuzz-{}.toml", std::process::id());
        std::env::temp_dir().join(name)
    });
    // A file may name others; not those that never end.
    if data
        .windows(4)
        .any(|four| four == b"/dev" || four == b"/pro")
    {
        return;
    }
    std::fs::write(&*FILE, data).expect("a file for the configuration");
    let loaded = config::load(&FILE, config::Use::Check);
    assert_eq!(loaded.config.is_none(), loaded.report.has_problems());
    let lines = data.iter().filter(|byte| **byte == b'\n').count() + 1;
    for found in loaded.report.0 {
        assert!(
            found.line.is_none_or(|line| (1..=lines).contains(&line)),
            "{found}"
        );
        assert!(!found.text.is_empty());
    }
}

/// The first byte chooses the size of the reads, the rest is what an LDAP server answers to a search.
pub fn ldap(data: &[u8]) {
    static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime needs nothing")
    });
    let [piece, answers @ ..] = data else {
        return;
    };
    let search = |piece| RUNTIME.block_on(directory::search_in(answers, piece));
    let whole = search(answers.len().max(1));
    let pieces = search(1 + usize::from(*piece));
    assert_eq!(whole, pieces, "reads of another size change the answer");
    assert!(whole.is_err() || matches!(whole, Ok(0..=2)), "{whole:?}");
}
