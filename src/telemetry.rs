//! The log: what is written and in which shape, as the section `log` of the configuration says.
//!
//! It goes to standard error, so that standard output stays free for what a command was asked to print.

use std::io;

use tracing_subscriber::{Layer, layer::SubscriberExt, registry, util::SubscriberInitExt};

use crate::config::{Log, LogFormat};

/// Starts the log of this process. A second call changes nothing.
pub fn start(log: &Log) {
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match log.format {
        // Colours would be noise in a journal or a file.
        LogFormat::Text => lines
            .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
            .boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // The only failure is that a log was started before, as happens when tests share a process.
    let _ = registry()
        .with(lines.with_filter(log.level.targets()))
        .try_init();
}
