//! How the command line speaks with the node that runs, whose store nobody else can open: by the socket `control.sock` in
//! the data directory, which only the node's own user and root can use. A line of JSON asks, a line answers.

use std::{
    fs::{self, Permissions},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixStream as BlockingStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ruma::OwnedServerName;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    time::timeout,
};

use crate::{
    error::Result,
    service::{
        Services,
        peers::{Offer, PeerStatus, Report},
        search::Status,
    },
};

/// The name of the socket in the data directory.
const SOCKET: &str = "control.sock";

/// The longest question, in bytes.
const LONGEST: u64 = 64 << 10;

/// How long the question may take to come.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long whoever asks waits: two nodes look at each other meanwhile.
const ANSWER: Duration = Duration::from_secs(150);

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// A code for another node.
    Invite {
        /// Where that one finds this node; none for what the configuration says.
        address: Option<String>,
    },
    /// To use a code of another node.
    Accept {
        /// The code.
        code: String,
        /// As for `Invite`.
        address: Option<String>,
    },
    /// How it stands with the index of messages.
    Search,
    /// To make it anew.
    RebuildSearch,
    /// How it stands with the peers.
    Peers,
    /// To look whether a peer is reached, and reaches this node.
    Test(OwnedServerName),
    /// To take a peer out of the store.
    Remove(OwnedServerName),
}

/// What the node answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// A code.
    Offer(Offer),
    /// What was looked at.
    Report(Report),
    /// The peers.
    Peers(Vec<PeerStatus>),
    /// How it stands with the index of messages.
    Search(Status),
    /// It is done.
    Done,
    /// It was not done.
    Refused(String),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// There is no socket, or nobody listens at it.
    #[error("the node with the data directory {0} does not run")]
    NotRunning(PathBuf),
    /// Another user asks.
    #[error("{0} may be used by the user of the node and by root only")]
    NotAllowed(PathBuf),
    /// It broke off.
    #[error("the node did not answer: {0}")]
    Broken(#[from] io::Error),
}

/// Asks the node that runs on a data directory. Blocks.
///
/// # Errors
/// See [`NoAnswer`].
pub fn ask(data_dir: &Path, question: &Question) -> Result<Answer, NoAnswer> {
    let path = data_dir.join(SOCKET);
    let mut stream = BlockingStream::connect(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            NoAnswer::NotRunning(data_dir.to_owned())
        }
        io::ErrorKind::PermissionDenied => NoAnswer::NotAllowed(path.clone()),
        _ => NoAnswer::Broken(error),
    })?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut line = serde_json::to_vec(question).map_err(io::Error::from)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(NoAnswer::NotAllowed(path));
    }
    Ok(serde_json::from_str(&answer).map_err(io::Error::from)?)
}

/// The socket of a node that runs.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    /// Whose it is.
    owner: u32,
}

impl Control {
    /// Makes the socket in a data directory, of which the caller holds the lock.
    ///
    /// # Errors
    /// When it cannot be made; its path may have about 100 characters.
    pub fn bind(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(SOCKET);
        // One left by a crash.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        let owner = fs::metadata(&path)?.uid();
        Ok(Self {
            listener,
            path,
            owner,
        })
    }

    /// Answers until the node stops.
    pub async fn run(self, services: Arc<Services>) {
        loop {
            let accepted = tokio::select! {
                () = services.stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) if self.admits(&stream) => {
                    let services = services.clone();
                    let tasks = services.tasks.clone();
                    tasks.spawn(async move {
                        if let Err(error) = serve(stream, &services).await {
                            tracing::debug!(%error, "a command was not answered");
                        }
                    });
                }
                Ok(_) => tracing::warn!("another user tried to give commands to the node"),
                Err(error) => {
                    tracing::warn!(%error, "a command could not be taken");
                    services.clock.sleep(PATIENCE).await;
                }
            }
        }
        let _it_is_replaced_at_the_next_start = fs::remove_file(&self.path);
    }

    /// Whether it is the node's own user, or root. The mode of the socket says the same, a moment later.
    fn admits(&self, stream: &UnixStream) -> bool {
        let peer = stream.peer_cred();
        peer.is_ok_and(|peer| peer.uid() == self.owner || peer.uid() == 0)
    }
}

async fn serve(mut stream: UnixStream, services: &Services) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut line = Vec::new();
    let mut read = tokio::io::BufReader::new(read.take(LONGEST));
    timeout(PATIENCE, read.read_until(b'\n', &mut line)).await??;
    let answer = match serde_json::from_slice(&line) {
        Ok(question) => tokio::select! {
            answer = answer(services, question) => answer,
            () = services.stop.cancelled() => Ok(Answer::Refused("the node stops".to_owned())),
        },
        Err(_) => Ok(Answer::Refused(
            "the node is of another version than this program: start it again".to_owned(),
        )),
    };
    let answer = answer.unwrap_or_else(|error| {
        if error.is_internal() {
            tracing::error!(%error, "a command failed");
        }
        // Whoever asks may read the log too.
        let (_, _, told) = error.answer();
        Answer::Refused(if error.is_internal() {
            error.to_string()
        } else {
            told
        })
    });
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    write.write_all(&line).await?;
    write.shutdown().await
}

async fn answer(services: &Services, question: Question) -> Result<Answer> {
    let peers = &services.peers;
    Ok(match question {
        Question::Invite { address } => Answer::Offer(peers.invite(address.as_deref()).await?),
        Question::Accept { code, address } => {
            Answer::Report(peers.accept(&code, address.as_deref()).await?)
        }
        Question::Search => Answer::Search(services.search.status()?),
        Question::RebuildSearch => {
            services.search.rebuild()?;
            Answer::Search(services.search.status()?)
        }
        Question::Peers => Answer::Peers(peers.list()?),
        Question::Test(server) => Answer::Report(peers.test(&server).await?),
        Question::Remove(server) => {
            peers.remove(&server).await?;
            Answer::Done
        }
    })
}
