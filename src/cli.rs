//! The command line: turns its words into a run of the node, and every outcome into an exit code.

mod ca;
mod peer;
mod search;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    app::{App, StartError},
    config::{Config, ConfigErrors},
    telemetry,
};

/// How long work on blocking threads that nobody waits for any more, such as a password hash, may hold up the end.
const LAST_WORK: Duration = Duration::from_millis(500);

/// A compact federated Matrix homeserver.
#[derive(Debug, Parser)]
#[command(name = "kontor", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the node until it is told to stop (SIGTERM, Ctrl-C)
    Serve(ConfigFile),
    /// Looks for broken invariants in the whole store of a stopped node; exit code 1 if there are any
    Check(ConfigFile),
    /// Prints the configuration that is in effect, or every mistake in it
    Config(ConfigFile),
    /// The organisation's own authority, which makes certificates for all offices
    #[command(subcommand)]
    Ca(ca::Command),
    /// The other nodes that this one is paired with; the node must run
    #[command(subcommand)]
    Peer(peer::Command),
    /// The index by which messages are found
    #[command(subcommand)]
    Search(search::Command),
    /// Replaces the key by which a stopped node signs; what was signed with the old one stays valid
    RotateKey(ConfigFile),
}

#[derive(Args, Debug)]
struct ConfigFile {
    /// The configuration file [default: config.toml in the current directory, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    fn load(&self) -> Result<Config, Failure> {
        Ok(Config::load(self.config.as_deref())?)
    }
}

impl Cli {
    /// Does what the command line asks for. Failures are told on standard error and make the exit code 1.
    pub fn run(self) -> ExitCode {
        let outcome = match self.command {
            Command::Serve(file) => serve(&file),
            Command::Check(file) => check(&file),
            Command::Config(file) => Ok(print_config(&file)),
            Command::Ca(command) => command.run().map_err(Failure::Ca),
            Command::Peer(command) => command.run(),
            Command::Search(command) => command.run(),
            Command::RotateKey(file) => rotate_key(&file),
        };
        match outcome {
            Ok(code) => code,
            Err(failure) => {
                say(&mut io::stderr(), &failure.to_string());
                ExitCode::FAILURE
            }
        }
    }
}

fn serve(file: &ConfigFile) -> Result<ExitCode, Failure> {
    let config = file.load()?;
    let read = Config::file(file.config.as_deref()).map(PathBuf::from);
    telemetry::start(&config.log);
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(StartError::Runtime)?;
    let outcome = runtime.block_on(async {
        let signals = Signals::listen().map_err(StartError::Runtime)?;
        let hangups = signal(SignalKind::hangup()).map_err(StartError::Runtime)?;
        let app = App::start(config, read).await?;
        say(&mut io::stdout(), &app.banner());
        app.run(signals.first(), hangups).await;
        Ok(ExitCode::SUCCESS)
    });
    runtime.shutdown_timeout(LAST_WORK);
    outcome
}

fn check(file: &ConfigFile) -> Result<ExitCode, Failure> {
    let config = file.load()?;
    telemetry::start(&config.log);
    let broken = App::check(&config)?;
    for line in &broken {
        say(&mut io::stdout(), line);
    }
    Ok(if broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn rotate_key(file: &ConfigFile) -> Result<ExitCode, Failure> {
    let config = file.load()?;
    telemetry::start(&config.log);
    let (old, new) = App::rotate_key(&config)?;
    let text = format!(
        "The node signs with {new} from its next start on. {old} is published as an old key, and what it has signed stays valid.\n\
         Next: start the node. Other servers get the new key by themselves."
    );
    say(&mut io::stdout(), &text);
    Ok(ExitCode::SUCCESS)
}

fn print_config(file: &ConfigFile) -> ExitCode {
    // The mistakes are what this command was asked for, so they are no failure of its own.
    let (text, code) = match Config::load(file.config.as_deref()) {
        Ok(config) => (config.to_toml(), ExitCode::SUCCESS),
        Err(mistakes) => (mistakes.to_string(), ExitCode::FAILURE),
    };
    say(&mut io::stdout(), text.trim_end());
    code
}

/// Writes a line for the person at the terminal, who may have closed it: then there is nobody left to tell.
fn say(terminal: &mut dyn Write, line: &str) {
    let _ = writeln!(terminal, "{line}");
}

/// Every waiting app holds a connection open, and the usual limit of 1,024 open files would turn away the thousandth.
fn raise_open_files() {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// The signals that ask a process to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Starts to listen, so that a signal during the start is not lost.
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Returns at the first of them.
    async fn first(mut self) {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        tracing::info!("stopping after {name}");
    }
}

/// Why a command could not be carried out, and what the person at the terminal can do about it.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(
        "error: the configuration is wrong\n{0}\nKeys and defaults are explained in config.example.toml."
    )]
    Config(#[from] ConfigErrors),
    #[error("error: {0}\n{advice}", advice = .0.advice())]
    Start(#[from] StartError),
    #[error("error: {0}")]
    Ca(ca::Failure),
    #[error("error: {0}")]
    Peer(peer::Failure),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_file_is_optional() {
        for (words, expected) in [
            (vec!["kontor", "serve"], None),
            (
                vec!["kontor", "check", "--config", "a.toml"],
                Some("a.toml"),
            ),
            (vec!["kontor", "config", "--config=b.toml"], Some("b.toml")),
        ] {
            let cli = Cli::try_parse_from(words).unwrap();
            let (Command::Serve(file) | Command::Check(file) | Command::Config(file)) = cli.command
            else {
                panic!("it is one of these");
            };
            assert_eq!(file.config, expected.map(PathBuf::from));
        }
        assert!(Cli::try_parse_from(["kontor", "server"]).is_err());
    }

    #[test]
    fn a_failure_says_what_to_do_next() {
        let mistakes = Config::from_toml_str("[server]\nnam = ''").unwrap_err();
        let told = Failure::from(mistakes).to_string();
        assert!(told.starts_with("error: "), "{told}");
        assert!(told.contains("config.toml:2: server.nam: "), "{told}");

        let told = Failure::from(StartError::InUse("./data".into())).to_string();
        assert!(
            told.contains("./data") && told.lines().count() == 2,
            "{told}"
        );
    }
}
