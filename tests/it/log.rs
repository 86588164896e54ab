//! What the log is told on the thread of a test.

use std::{
    io::{self, Write},
    sync::Arc,
};

use parking_lot::Mutex;
use tracing::{Dispatch, subscriber::DefaultGuard};

/// The log of this thread, for as long as it lives.
pub(crate) struct Log {
    text: Text,
    _until_the_end: DefaultGuard,
    _second: Dispatch,
}

#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    pub(crate) fn of_this_thread() -> Self {
        let text = Text::default();
        let writer = text.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        // While there is one alone, `tracing` lets the thread that first comes to a place in the code decide for all
        // threads whether anybody wants to know of it, and the threads of other tests do not.
        let second = Dispatch::new(tracing_subscriber::fmt().with_writer(io::sink).finish());
        Self {
            text,
            _until_the_end: tracing::subscriber::set_default(subscriber),
            _second: second,
        }
    }

    /// How many warnings name this server.
    pub(crate) fn warnings_about(&self, server: &str) -> usize {
        let text = String::from_utf8_lossy(&self.text.0.lock()).into_owned();
        let lines = text.lines().filter(|line| line.contains("WARN"));
        lines.filter(|line| line.contains(server)).count()
    }
}
