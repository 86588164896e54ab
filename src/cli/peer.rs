//! `kontor peer`: pairs the node that runs with others, and says how it stands with them.

use std::{io, path::Path, process::ExitCode, time::Duration};

use clap::{Args, Subcommand};
use ruma::{OwnedServerName, ServerName};
use time::OffsetDateTime;

use super::{ConfigFile, Failure as Any, say};
use crate::{
    clock::Clock,
    control::{self, Answer, NoAnswer, Question},
    service::peers::{Offer, PeerStatus, Report, Step},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Makes a code with which one other node becomes a peer of this one
    Invite {
        #[command(flatten)]
        own: Own,
    },
    /// Becomes a peer of the node that made the code
    Accept {
        /// The code, as `kontor peer invite` printed it; line breaks in it do not matter
        #[arg(required = true, value_name = "CODE")]
        code: Vec<String>,
        #[command(flatten)]
        own: Own,
    },
    /// Says of each peer whether it is reached, and what waits for it
    List {
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Looks whether a peer is reached, and whether it reaches this node; exit code 1 if not
    Test {
        #[arg(value_name = "NAME", value_parser = name)]
        name: OwnedServerName,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Ends the pairing with a node, on this side
    Remove {
        #[arg(value_name = "NAME", value_parser = name)]
        name: OwnedServerName,
        #[command(flatten)]
        file: ConfigFile,
    },
}

#[derive(Args, Debug)]
pub(super) struct Own {
    /// Where the other node reaches this one [default: server.federation_address, listen.https, or the server name]
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    #[command(flatten)]
    file: ConfigFile,
}

/// Why nothing was done, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}\n{advice}", advice = advice(.0))]
    NoAnswer(#[from] NoAnswer),
    #[error("{0}")]
    Refused(String),
    #[error("the node answered something else\nStart it again with this version of the program.")]
    Other,
}

fn advice(error: &NoAnswer) -> &'static str {
    match error {
        NoAnswer::NotRunning(_) => {
            "Start it with `kontor serve`, or name its configuration with --config; server.data_dir is relative to the current directory."
        }
        NoAnswer::NotAllowed(_) => "Run this as the user of the node (runuser -u kontor -- ...).",
        NoAnswer::Broken(_) => "Look into the log of the node.",
    }
}

fn name(text: &str) -> Result<OwnedServerName, String> {
    ServerName::parse(text).map_err(|_| "that is not the name of a server".to_owned())
}

impl Command {
    pub(super) fn run(self) -> Result<ExitCode, Any> {
        let (file, question) = match self {
            Self::Invite { own } => (
                own.file,
                Question::Invite {
                    address: own.address,
                },
            ),
            Self::Accept { code, own } => (
                own.file,
                Question::Accept {
                    code: code.concat(),
                    address: own.address,
                },
            ),
            Self::List { file } => (file, Question::Peers),
            Self::Test { name, file } => (file, Question::Test(name)),
            Self::Remove { name, file } => (file, Question::Remove(name)),
        };
        let config = file.load()?;
        let told = tell(&config.server.data_dir, &question);
        let (text, code) = told.map_err(Any::Peer)?;
        say(&mut io::stdout(), &text);
        Ok(code)
    }
}

fn tell(data_dir: &Path, question: &Question) -> Result<(String, ExitCode), Failure> {
    let now = Clock::real().now_ms();
    match (question, control::ask(data_dir, question)?) {
        (_, Answer::Refused(reason)) => Err(Failure::Refused(reason)),
        (_, Answer::Offer(offer)) => Ok((of_offer(&offer), ExitCode::SUCCESS)),
        (_, Answer::Peers(peers)) => Ok((of_peers(&peers, now), ExitCode::SUCCESS)),
        (_, Answer::Report(report)) => Ok((
            of_report(&report, matches!(question, Question::Accept { .. })),
            if report.is_good() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            },
        )),
        (Question::Remove(name), Answer::Done) => Ok((
            format!(
                "{name} is no peer any more; the other node still has this one in its table.\n\
                 Next: `kontor peer remove` there too."
            ),
            ExitCode::SUCCESS,
        )),
        (_, Answer::Done | Answer::Search(_)) => Err(Failure::Other),
    }
}

fn of_offer(offer: &Offer) -> String {
    format!(
        "{code}\n\n\
         Give this code to the administrator of the other office on a way that nobody else reads. It works once, until\n\
         {until}. The other node will look for this one at {address}; if that is wrong, make another code with\n\
         --address HOST:PORT.\n\
         Next: on the other node  kontor peer accept CODE",
        code = offer.code,
        until = moment(offer.expires),
        address = offer.address,
    )
}

fn of_report(report: &Report, is_pairing: bool) -> String {
    let mut lines = Vec::new();
    for step in &report.steps {
        match step {
            Step::Good(what) => lines.push(format!("good    {what}")),
            Step::Doubt(what) => lines.push(format!("LOOK    {what}")),
            Step::Failed { problem, advice } => {
                lines.push(format!("FAILED  {problem}"));
                if !advice.is_empty() {
                    lines.push(format!("        {advice}"));
                }
            }
        }
    }
    match &report.server {
        Some(server) if is_pairing && report.is_good() => lines.push(format!(
            "The two nodes are peers now; nothing has to be started again.\n\
             Next: kontor peer list; or join a room of {server} in an app."
        )),
        _ if is_pairing => lines.push("Nothing was changed on this node.".to_owned()),
        _ => {}
    }
    lines.join("\n")
}

fn of_peers(peers: &[PeerStatus], now: u64) -> String {
    if peers.is_empty() {
        return "There are no peers yet. Next: kontor peer invite".to_owned();
    }
    let all: Vec<_> = peers.iter().map(|peer| of_peer(peer, now)).collect();
    all.join("\n")
}

fn of_peer(peer: &PeerStatus, now: u64) -> String {
    let state = match (peer.down_since, peer.last_success) {
        (Some(since), _) => format!("NOT REACHED for {}", length(now, since)),
        (None, Some(_)) => "reached".to_owned(),
        (None, None) => "not tried yet".to_owned(),
    };
    let place = peer.address.as_ref();
    let place = place.map_or_else(|| "looked up".to_owned(), ToString::to_string);
    let source = if peer.is_configured {
        "of the configuration"
    } else {
        "paired"
    };
    let mut lines = vec![format!("{}  {state}  ({place}, {source})", peer.server)];
    let waiting = match (peer.waiting, peer.more) {
        (0, _) => "nothing waits".to_owned(),
        (count, false) => format!("{count} wait"),
        (count, true) => format!("more than {count} wait"),
    };
    let oldest = peer.oldest.map_or_else(String::new, |oldest| {
        let (since, length) = (moment(oldest), length(now, oldest));
        format!(", the oldest since {since} ({length})")
    });
    lines.push(format!("    {waiting}{oldest}"));
    if let Some(last) = peer.last_success {
        lines.push(format!("    last reached {}", moment(last)));
    }
    if let (Some(last), Some(error)) = (peer.last_failure, &peer.last_error) {
        lines.push(format!("    last failure {}: {error}", moment(last)));
    }
    lines.join("\n")
}

/// A time in milliseconds since 1970.
fn moment(ms: u64) -> String {
    let time = OffsetDateTime::UNIX_EPOCH + Duration::from_millis(ms);
    let (date, hour, minute, second) = (time.date(), time.hour(), time.minute(), time.second());
    format!("{date} {hour:02}:{minute:02}:{second:02} UTC")
}

/// The time between two, in its largest unit.
fn length(now: u64, since: u64) -> String {
    let seconds = now.saturating_sub(since) / 1_000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use ruma::owned_server_name;

    use super::*;

    #[test]
    fn the_list_says_what_an_administrator_asks() {
        assert!(of_peers(&[], 0).contains("kontor peer invite"));
        let now = 1_700_000_000_000;
        let up = PeerStatus {
            server: owned_server_name!("b.example"),
            address: Some(owned_server_name!("10.8.0.2:8448")),
            is_configured: false,
            down_since: None,
            waiting: 0,
            more: false,
            oldest: None,
            last_success: Some(now - 5_000),
            last_failure: None,
            last_error: None,
        };
        assert_eq!(
            of_peer(&up, now),
            "b.example  reached  (10.8.0.2:8448, paired)\n    nothing waits\n    last reached 2023-11-14 22:13:15 UTC"
        );
        let down = PeerStatus {
            address: None,
            is_configured: true,
            down_since: Some(now - 7_200_000),
            waiting: 12,
            more: true,
            oldest: Some(now - 200_000_000),
            last_success: None,
            last_failure: Some(now),
            last_error: Some("its certificate has expired".to_owned()),
            ..up
        };
        assert_eq!(
            of_peer(&down, now),
            "b.example  NOT REACHED for 2 h  (looked up, of the configuration)\n    \
             more than 12 wait, the oldest since 2023-11-12 14:40:00 UTC (2 days)\n    \
             last failure 2023-11-14 22:13:20 UTC: its certificate has expired"
        );
    }

    #[test]
    fn a_report_ends_with_what_to_do() {
        let mut report = Report {
            server: Some(owned_server_name!("b.example")),
            steps: vec![Step::Good("is reached".to_owned())],
        };
        let told = of_report(&report, true);
        assert!(
            told.contains("are peers now") && told.contains("b.example"),
            "{told}"
        );
        report.steps.push(Step::Failed {
            problem: "the port is closed".to_owned(),
            advice: "Open it.".to_owned(),
        });
        assert_eq!(
            of_report(&report, true),
            "good    is reached\nFAILED  the port is closed\n        Open it.\nNothing was changed on this node."
        );
    }
}
