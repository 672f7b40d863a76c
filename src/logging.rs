//! What is written to stderr: the story of a day at `info`, never a code, a password or a full address.

use clap::ValueEnum;
use tracing::Level;
use tracing::Metadata;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// `--log-format`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One line for a person.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging; `RUST_LOG` chooses the level, `info` by default.
pub fn init(format: Format) {
    let level = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let layer = match format {
        // journald keeps the time itself, and colours are for terminals.
        Format::Text if std::env::var_os("JOURNAL_STREAM").is_some() => {
            tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(false)
                .with_target(false)
                .without_time()
                .boxed()
        }
        Format::Text => tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .with_target(false)
            .boxed(),
        Format::Json => tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .json()
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(level)
        .with(layer.with_filter(filter_fn(ours)))
        .init();
}

/// Other crates may print what passes through them below `warn`: bodies, headers, bytes. That never reaches a log.
fn ours(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("ftm_relay") || *metadata.level() <= Level::WARN
}
