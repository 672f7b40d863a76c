//! How fast a stream is cut into messages, against a loop that does nothing but find line ends.

use std::fmt::Write as _;
use std::hint::black_box;

use criterion::Criterion;
use criterion::Throughput;
use criterion::criterion_group;
use criterion::criterion_main;
use ftm_relay::ingest::framing::Decoder;
use ftm_relay::ingest::framing::Event;
use memchr::memchr;

/// The length of a FortiGate's traffic log.
const LINE_BYTES: usize = 790;
const LINES: usize = 10_000;
const READ_BYTES: usize = 64 * 1024;

fn line(n: usize) -> String {
    let mut line = format!(
        "<189>date=2026-11-23 time=10:22:31 devname=\"SIMULATED-FGT\" devid=\"FGTSIM0000000001\" sessionid={n}"
    );
    while line.len() < LINE_BYTES - 20 {
        write!(line, " field{}=\"value\"", line.len()).expect("writing to a String");
    }
    line
}

/// Reads and finds line ends, as any receiver must.
fn bare(stream: &[u8]) -> usize {
    let (mut buffer, mut lines) = (Vec::with_capacity(2 * READ_BYTES), 0);
    for read in stream.chunks(READ_BYTES) {
        buffer.extend_from_slice(read);
        let mut start = 0;
        while let Some(at) = memchr(b'\n', &buffer[start..]) {
            black_box(&buffer[start..start + at]);
            start += at + 1;
            lines += 1;
        }
        buffer.drain(..start);
    }
    lines
}

fn decoder(stream: &[u8]) -> usize {
    let (mut decoder, mut frames) = (Decoder::new(65_536), 0);
    for read in stream.chunks(READ_BYTES) {
        decoder.space().extend_from_slice(read);
        while let Some(event) = decoder.next() {
            if let Event::Frame(frame) = event {
                black_box(frame);
                frames += 1;
            }
        }
    }
    frames
}

fn framing(c: &mut Criterion) {
    let lines: Vec<String> = (0..LINES).map(line).collect();
    let by_lf: String = lines.iter().map(|l| format!("{l}\n")).collect();
    let counted: String = lines.iter().map(|l| format!("{} {l}", l.len())).collect();
    assert_eq!(bare(by_lf.as_bytes()), LINES);
    assert_eq!(decoder(by_lf.as_bytes()), LINES);
    assert_eq!(decoder(counted.as_bytes()), LINES);

    let mut group = c.benchmark_group("framing");
    group.throughput(Throughput::ElementsAndBytes {
        elements: LINES as u64,
        bytes: by_lf.len() as u64,
    });
    group.bench_function("bare line loop", |b| b.iter(|| bare(by_lf.as_bytes())));
    group.bench_function("LF", |b| b.iter(|| decoder(by_lf.as_bytes())));
    group.bench_function("octet counting", |b| b.iter(|| decoder(counted.as_bytes())));
    group.finish();
}

criterion_group!(benches, framing);
criterion_main!(benches);
