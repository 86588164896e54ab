//! `kontor search`: how it stands with the index of messages, and making it anew, whether or not the node runs.

use std::{io, path::Path, process::ExitCode, time::Duration};

use clap::Subcommand;

use super::{ConfigFile, Failure as Any, peer::Failure, say};
use crate::{
    app::App,
    control::{self, Answer, NoAnswer, Question},
    service::search::Status,
    telemetry,
};

/// How often it is said how far the index is.
const REPORT: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Says how many events can be found, and whether these are all; the node must run
    Status(ConfigFile),
    /// Makes the index of messages anew, and says how far it is; meanwhile only a part is found
    Rebuild(ConfigFile),
}

impl Command {
    pub(super) fn run(self) -> Result<ExitCode, Any> {
        let (Self::Status(file) | Self::Rebuild(file)) = &self;
        let config = file.load()?;
        let data_dir = &config.server.data_dir;
        if matches!(self, Self::Status(_)) {
            let status = ask(data_dir, &Question::Search).map_err(Any::Peer)?;
            say(&mut io::stdout(), &told(&status));
            return Ok(ExitCode::SUCCESS);
        }
        let mut last = None;
        let mut report = |status: &Status| {
            let now = told(status);
            if last.as_ref() != Some(&now) {
                say(&mut io::stdout(), &now);
            }
            last = Some(now);
        };
        match ask(data_dir, &Question::RebuildSearch) {
            Ok(mut status) => {
                while !status.complete {
                    report(&status);
                    std::thread::sleep(REPORT);
                    status = ask(data_dir, &Question::Search).map_err(Any::Peer)?;
                }
                report(&status);
            }
            Err(Failure::NoAnswer(NoAnswer::NotRunning(_))) => {
                telemetry::start(&config.log);
                App::rebuild_search(config, REPORT, &mut report)?;
            }
            Err(failure) => return Err(Any::Peer(failure)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn ask(data_dir: &Path, question: &Question) -> Result<Status, Failure> {
    match control::ask(data_dir, question)? {
        Answer::Search(status) => Ok(status),
        Answer::Refused(reason) => Err(Failure::Refused(reason)),
        _ => Err(Failure::Other),
    }
}

fn told(status: &Status) -> String {
    let Status {
        entries,
        size,
        until,
        of,
        complete,
    } = status;
    let size = size.div_ceil(1 << 10);
    let how = if *complete {
        "all there are".to_owned()
    } else {
        let percent = (until * 100).checked_div(*of).unwrap_or(0).min(99);
        format!("{percent} % looked at")
    };
    format!("{entries} events can be found: {how}; the index has {size} KiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_it_is_can_be_read() {
        let mut status = Status {
            entries: 12,
            size: 2049,
            until: 50,
            of: 200,
            complete: false,
        };
        let text = told(&status);
        assert_eq!(
            text,
            "12 events can be found: 25 % looked at; the index has 3 KiB"
        );
        status.until = 200;
        assert!(told(&status).contains("99 %"), "not before it is complete");
        status.complete = true;
        assert!(told(&status).contains("all there are"));
        (status.until, status.of, status.complete) = (0, 0, false);
        assert!(told(&status).contains("0 %"));
    }
}
