//! Parses the command line and runs what it asks for. Everything else is in the library.

use std::process::ExitCode;

use clap::Parser;
use kontor::cli::Cli;

/// The system's allocator keeps the memory of a burst forever; this one gives it back. `RocksDB` uses it too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    Cli::parse().run()
}
