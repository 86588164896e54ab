//! The line of a device to its server, which can be cut: it refuses nothing then, it is silent, as a train in a tunnel is.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
};

/// A port of this machine that leads to the server as long as the line is up.
pub struct Line {
    /// Where devices connect to.
    pub url: String,
    up: watch::Sender<bool>,
}

impl Line {
    /// A line to the server at `host_and_port`.
    pub async fn to(host_and_port: &str) -> Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (up, watched) = watch::channel(true);
        let target = host_and_port.to_owned();
        tokio::spawn(async move {
            while let Ok((here, _)) = listener.accept().await {
                tokio::spawn(carry(here, target.clone(), watched.clone()));
            }
        });
        Ok(Self { url, up })
    }

    /// From now on nothing is carried; what is on its way stays on its way.
    pub fn cut(&self) {
        self.up.send_replace(false);
    }

    /// What stayed on its way arrives.
    pub fn mend(&self) {
        self.up.send_replace(true);
    }
}

async fn carry(here: TcpStream, target: String, mut up: watch::Receiver<bool>) {
    if up.wait_for(|up| *up).await.is_err() {
        return;
    }
    let Ok(there) = TcpStream::connect(&target).await else {
        return;
    };
    let (here_read, here_write) = here.into_split();
    let (there_read, there_write) = there.into_split();
    tokio::join!(
        pump(here_read, there_write, up.clone()),
        pump(there_read, here_write, up)
    );
}

async fn pump(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    mut up: watch::Receiver<bool>,
) {
    let mut piece = vec![0; 1 << 16];
    while let Ok(read) = from.read(&mut piece).await {
        let is_up = up.wait_for(|up| *up).await.is_ok();
        if read == 0 || !is_up || to.write_all(&piece[..read]).await.is_err() {
            return;
        }
    }
}
