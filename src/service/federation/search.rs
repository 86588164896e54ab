//! Who is asked for what is missing, and how often. All that a search asks for is counted, so that an event costs its
//! receiver no more than so many requests whatever it refers to.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use http::StatusCode;
use ruma::{
    OwnedRoomId, OwnedServerName, ServerName,
    api::{
        OutgoingRequest, federation::authentication::ServerSignatures, path_builder::PathBuilder,
    },
    room_version_rules::RoomVersionRules,
};

use super::Federation;
use crate::{
    error::Result,
    protocol::ids::RoomNid,
    remote::{self, Kind, Limits},
};

/// How many servers are asked for one thing.
const MOST_SERVERS: usize = 4;

/// How many requests may be made for one event.
const MOST_REQUESTS: usize = 300;

/// Looking for what one event needs, or for a piece of a room's history.
pub(super) struct Search {
    /// The room.
    pub(super) room: OwnedRoomId,
    /// Its number.
    pub(super) nid: RoomNid,
    /// The rules of its version.
    pub(super) rules: &'static RoomVersionRules,
    /// Who is asked first, in this order.
    first: Vec<OwnedServerName>,
    /// Who is asked when these do not have it: looked up only then, as a room may have many servers.
    others: OnceLock<Vec<OwnedServerName>>,
    left: AtomicUsize,
    /// Whether somebody was silent; another one's answer does not make up for it, as they may not know the event.
    was_silent: AtomicBool,
}

/// Why something could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// Somebody did not answer who may do so later.
    Silent,
    /// Nobody who was asked has it.
    Nowhere,
}

impl Search {
    /// Looking at these servers only, in this order.
    pub(super) fn only(
        (nid, room): (RoomNid, OwnedRoomId),
        rules: &'static RoomVersionRules,
        servers: Vec<OwnedServerName>,
    ) -> Self {
        Self {
            others: OnceLock::from(Vec::new()),
            ..Self::of((nid, room), rules, servers)
        }
    }

    fn of(
        (nid, room): (RoomNid, OwnedRoomId),
        rules: &'static RoomVersionRules,
        first: Vec<OwnedServerName>,
    ) -> Self {
        Self {
            room,
            nid,
            rules,
            first,
            others: OnceLock::new(),
            left: AtomicUsize::new(MOST_REQUESTS),
            was_silent: AtomicBool::new(false),
        }
    }

    /// Whose turn it is when something large is fetched.
    pub(super) fn on_behalf_of(&self) -> Option<&ServerName> {
        self.first.first().map(|server| &**server)
    }

    /// Why something could not be had, where all answers together do not give it.
    pub(super) fn failed(&self) -> Failed {
        if self.was_silent.load(Ordering::Relaxed) {
            Failed::Silent
        } else {
            Failed::Nowhere
        }
    }

    /// Takes note of one more request; false when there were too many.
    fn count(&self) -> bool {
        let one_less = |left: usize| left.checked_sub(1);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        self.left.fetch_update(set, fetch, one_less).is_ok()
    }
}

impl Federation {
    /// Begins to look for what an event needs that came from `origin`.
    pub(super) fn search(
        &self,
        room: (RoomNid, OwnedRoomId),
        rules: &'static RoomVersionRules,
        origin: &ServerName,
        sender: &ServerName,
    ) -> Arc<Search> {
        let mut first = vec![origin.to_owned()];
        if sender != origin {
            first.push(sender.to_owned());
        }
        first.retain(|server| self.may_ask(server));
        Arc::new(Search::of(room, rules, first))
    }

    fn may_ask(&self, server: &ServerName) -> bool {
        server != self.0.rooms.server_name() && self.0.remote.admits(server)
    }

    /// Some servers of a room: peers first, and those last that cannot be reached.
    pub(super) fn whom_to_ask(&self, room: RoomNid) -> Result<Vec<OwnedServerName>> {
        let parts = &self.0;
        let servers = parts.rooms.servers_in(&parts.store.latest(), room)?;
        let servers = servers.into_iter().filter(|server| self.may_ask(server));
        let mut all: Vec<_> = servers
            .map(|server| {
                let is_stranger = !parts.remote.is_peer(&server);
                let chance = parts.entropy.number();
                (self.is_down(&server), is_stranger, chance, server)
            })
            .collect();
        all.sort();
        let some = all.into_iter().take(MOST_SERVERS);
        Ok(some.map(|(.., server)| server).collect())
    }

    /// Those that are asked after the first ones.
    fn others<'s>(&self, search: &'s Search) -> &'s [OwnedServerName] {
        search.others.get_or_init(|| {
            let mut others = self.whom_to_ask(search.nid).unwrap_or_else(|error| {
                tracing::error!(%error, room = %search.room, "the servers of a room could not be read");
                Vec::new()
            });
            others.retain(|server| !search.first.contains(server));
            others.truncate(MOST_SERVERS.saturating_sub(search.first.len()));
            others
        })
    }

    /// Asks one server after the other.
    pub(super) async fn ask<R>(
        &self,
        search: &Search,
        request: impl Fn() -> R + Send,
        limits: Limits,
    ) -> Result<R::IncomingResponse, Failed>
    where
        R: OutgoingRequest<Authentication = ServerSignatures> + Send,
        R::PathBuilder: for<'a> PathBuilder<Input<'a> = ()>,
    {
        let mut failed = Failed::Nowhere;
        let mut asked = 0_usize;
        loop {
            let others = asked.checked_sub(search.first.len());
            let server = match others {
                None => search.first.get(asked),
                Some(at) => self.others(search).get(at),
            };
            let Some(server) = server else {
                return Err(failed);
            };
            asked += 1;
            if !search.count() {
                return Err(Failed::Nowhere);
            }
            let answer = Box::pin(self.0.remote.send_within(server, request(), limits));
            match answer.await {
                Ok(answer) => return Ok(answer),
                Err(error) if is_silence(&error) => {
                    search.was_silent.store(true, Ordering::Relaxed);
                    failed = Failed::Silent;
                }
                Err(error) => self.complain(search, server, &error),
            }
        }
    }

    /// Tells the log once in a while of a server whose answers can not be used.
    fn complain(&self, search: &Search, server: &ServerName, error: &remote::Error) {
        if matches!(error.kind, Kind::BadAnswer(_) | Kind::TooLarge(_))
            && self.0.inbox.may_complain(server, self.0.clock.instant())
        {
            tracing::warn!(%server, room = %search.room, problem = %error.kind, "a server gives answers that can not be used");
        }
    }
}

/// Whether a server may answer later what it does not answer now.
fn is_silence(error: &remote::Error) -> bool {
    match &error.kind {
        Kind::Name(_)
        | Kind::Connect { .. }
        | Kind::Tls(_)
        | Kind::Timeout(_)
        | Kind::Slow(_)
        | Kind::Broken(_) => true,
        Kind::Status { status, .. } => {
            status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
        }
        _ => false,
    }
}
