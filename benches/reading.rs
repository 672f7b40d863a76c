//! What reading a line costs: the gate, the tokeniser, and the whole way to a verdict, beside `syslog_loose` alone.
//!
//! `cargo bench --bench reading`; the lines are synthetic, as long as a 7.x FortiGate's.

use std::collections::HashMap;
use std::hint::black_box;
use std::time::Duration;

use criterion::BenchmarkId;
use criterion::Criterion;
use criterion::Throughput;
use criterion::criterion_group;
use criterion::criterion_main;
use ftm_relay::devices::Devices;
use ftm_relay::frame::Frame;
use ftm_relay::frame::Peer;
use ftm_relay::pipeline::Pipeline;
use ftm_relay::recipients;
use ftm_relay::rules::Rules;
use ftm_relay::settings::Check;
use ftm_relay::syslog;
use jiff::Timestamp;
use syslog_loose::Variant;

const EVENT: &str = concat!(
    "<189>date=2025-11-24 time=17:00:00 devname=\"BRANCH-12-FGT\" devid=\"FGT60FTK20000001\" eventtime=1764000000123456789 ",
    "tz=\"+0100\" logid=\"0100038412\" type=\"event\" subtype=\"system\" level=\"notice\" vd=\"root\" ",
    "logdesc=\"Token activation code sent\" user=\"alice.liddell\" action=\"send-activation-code\" ",
    "msg=\"Activation code EEIOTCU3LENEDJMR of the token FTKMOB6549A91140 was sent to alice.liddell@example.com, it expires in 72 hours\"",
);

const TRAFFIC: &str = concat!(
    "<190>date=2025-11-24 time=17:00:01 devname=\"BRANCH-12-FGT\" devid=\"FGT60FTK20000001\" eventtime=1764000001987654321 ",
    "tz=\"+0100\" logid=\"0000000013\" type=\"traffic\" subtype=\"forward\" level=\"notice\" vd=\"root\" srcip=10.20.12.77 ",
    "srcport=55104 srcintf=\"internal\" srcintfrole=\"lan\" dstip=198.51.100.23 dstport=443 dstintf=\"wan1\" dstintfrole=\"wan\" ",
    "srccountry=\"Reserved\" dstcountry=\"Netherlands\" sessionid=183774921 proto=6 action=\"close\" policyid=17 policytype=\"policy\" ",
    "poluuid=\"0c7a1b5e-5d0e-51ee-9c27-3f0a4bd1c9aa\" policyname=\"lan to internet\" service=\"HTTPS\" trandisp=\"snat\" ",
    "transip=203.0.113.9 transport=55104 appid=41540 app=\"SSL_TLSv1.3\" appcat=\"Network.Service\" apprisk=\"medium\" ",
    "applist=\"default\" duration=61 sentbyte=5230 rcvdbyte=48113 sentpkt=41 rcvdpkt=52 utmaction=\"allow\"",
);

fn pipeline() -> Pipeline {
    let mut check = Check::new(".", None, false);
    let rules = Rules::build(Vec::new(), &mut check).expect("the built-in rules");
    let devices =
        Devices::build(Vec::new(), Duration::from_secs(72 * 3600), &mut check).expect("no devices");
    let recipients: recipients::Config =
        toml::from_str("domains = [\"example.com\"]").expect("good TOML");
    let recipients = recipients.build(&mut check).expect("a good domain");
    Pipeline::new(rules, devices, recipients, HashMap::new())
}

fn reading(c: &mut Criterion) {
    let pipeline = pipeline();
    let gate = pipeline.gate();
    for (name, line) in [("event", EVENT), ("traffic", TRAFFIC)] {
        let frame = Frame {
            bytes: line.into(),
            peer: Peer::unknown(),
            listener: None,
            received_at: Timestamp::from_second(1_764_000_002).expect("a good time"),
        };
        let id = |what: &str| BenchmarkId::new(what, format!("{name}, {} bytes", line.len()));
        let mut group = c.benchmark_group("reading");
        group.throughput(Throughput::Bytes(line.len() as u64));
        group.bench_function(id("gate"), |b| {
            b.iter(|| gate.passes(black_box(line.as_bytes())));
        });
        group.bench_function(id("record"), |b| {
            b.iter(|| syslog::parse(black_box(line.as_bytes())).is_ok());
        });
        group.bench_function(id("verdict"), |b| {
            b.iter(|| pipeline.process(black_box(&frame)));
        });
        group.bench_function(id("syslog_loose"), |b| {
            b.iter(|| syslog_loose::parse_message(black_box(line), Variant::Either));
        });
        group.finish();
    }
}

criterion_group!(benches, reading);
criterion_main!(benches);
