//! The side of the server outside: several servers are asked in turn for a template, which is filled in and signed.
//! Knocking and leaving need no more than that; entering is in `join`.

use std::{fmt::Write as _, time::Duration};

use http::{Method, StatusCode};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId,
    OwnedRoomId, OwnedServerName, RoomAliasId, RoomId, RoomVersionId, ServerName, UInt,
    api::federation::{
        membership::{
            create_knock_event, create_leave_event, prepare_join_event, prepare_knock_event,
            prepare_leave_event,
        },
        query::get_room_information,
    },
    events::{StateEventType, room::member::MembershipState},
    room_version_rules::RoomVersionRules,
};
use serde::de::{DeserializeOwned, IgnoredAny as Ignored};
use serde_json::value::RawValue;

use super::{Federation, Wish, rules_of};
use crate::{
    error::{Error, Result},
    protocol::{
        event::Event,
        ingest::{self, Pdu},
        integrity,
        template::{self, Draft},
        version,
    },
    remote::{self, Kind, Limits},
    service::rooms::RoomGuard,
};

/// The most servers that are asked for one wish.
const MOST_ASKED: usize = 10;

/// Somebody looks at a screen meanwhile, and other servers are to be asked as well.
const QUESTION: Limits = Limits {
    time: Duration::from_secs(15),
    body: 1 << 20,
};

/// An event of ours for a room of others.
pub(super) struct Filled {
    pub(super) version: RoomVersionId,
    pub(super) rules: &'static RoomVersionRules,
    pub(super) object: CanonicalJsonObject,
    pub(super) pdu: Pdu,
}

impl Filled {
    pub(super) fn id(&self) -> &OwnedEventId {
        &self.pdu.event.header.id
    }

    /// The failure of a server that was asked something about the event.
    pub(super) fn nonsense(&self, server: &ServerName, problem: &str) -> Error {
        nonsense(server, format!("event {}: {problem}", self.id()))
    }

    /// The event as it is sent.
    pub(super) fn text(&self) -> String {
        integrity::canonical(&self.object)
    }

    /// The same for a request that is typed.
    pub(super) fn raw(&self) -> Result<Box<RawValue>> {
        RawValue::from_string(self.text()).map_err(|e| Error::Internal(e.to_string()))
    }
}

/// An answer that can not be used, as the failure of the server that gave it.
pub(in crate::service::federation) fn nonsense(
    server: &ServerName,
    problem: impl ToString,
) -> Error {
    let kind = Kind::BadAnswer(problem.to_string());
    Error::Remote(kind.of(server))
}

/// Whether a server does not know an endpoint, perhaps because it knows only the first version of it.
pub(super) fn knows_only_v1(error: &remote::Error) -> bool {
    error.refusal().is_some_and(|(status, code)| match status {
        StatusCode::NOT_FOUND => code == "M_UNRECOGNIZED" || code.is_empty(),
        StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED => code == "M_UNRECOGNIZED",
        _ => false,
    })
}

/// Percent-encodes a part of a path.
pub(in crate::service::federation) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _never_fails = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// How much an error tells whoever asked: what a server says about the room is worth more than that another one is
/// away.
fn weight(error: &Error) -> u8 {
    match error {
        Error::Remote(error) => match error.refusal() {
            Some((_, "M_FORBIDDEN")) => 6,
            Some((_, "M_UNABLE_TO_AUTHORISE_JOIN" | "M_UNABLE_TO_GRANT_JOIN")) => 5,
            Some((status, _)) if status.is_client_error() => 3,
            _ => match error.kind {
                Kind::BadAnswer(_) => 4,
                Kind::NotAllowed => 1,
                _ => 2,
            },
        },
        _ => 7,
    }
}

/// Whether no other server can say anything else.
fn is_final(error: &Error) -> bool {
    match error {
        Error::Remote(error) => error
            .refusal()
            .is_some_and(|(_, code)| code == "M_INCOMPATIBLE_ROOM_VERSION"),
        Error::Api { errcode, .. } => *errcode == "M_INCOMPATIBLE_ROOM_VERSION",
        error => error.is_internal(),
    }
}

/// One server after the other, until one helps.
pub(super) struct Asking {
    room: OwnedRoomId,
    servers: std::vec::IntoIter<OwnedServerName>,
    /// The most telling error so far.
    told: Option<Error>,
}

impl Asking {
    /// The next server.
    pub(super) fn next(&mut self) -> Option<OwnedServerName> {
        self.servers.next()
    }

    /// Takes note that a server did not help.
    ///
    /// # Errors
    /// When no other one will.
    pub(super) fn failed(&mut self, server: &ServerName, error: Error) -> Result<()> {
        tracing::info!(room = %self.room, %server, %error, "a server did not help with a room");
        if is_final(&error) {
            return Err(error);
        }
        if self
            .told
            .as_ref()
            .is_none_or(|told| weight(&error) > weight(told))
        {
            self.told = Some(error);
        }
        Ok(())
    }

    /// Why nobody helped.
    pub(super) fn end(self) -> Error {
        self.told.unwrap_or_else(|| Error::not_found("The room"))
    }
}

impl Federation {
    /// The room that an alias of another server stands for, and the servers that know it.
    ///
    /// # Errors
    /// 404 when there is no such alias; why its server can not be asked.
    pub async fn find_alias(
        &self,
        alias: &RoomAliasId,
    ) -> Result<(OwnedRoomId, Vec<OwnedServerName>)> {
        let server = alias.server_name();
        let request = get_room_information::v1::Request::new(alias.to_owned());
        let answer = self.0.remote.send_within(server, request, QUESTION).await?;
        let mut servers = answer.servers;
        servers.truncate(MOST_ASKED);
        // Whoever gives the alias away knows the room.
        servers.push(server.to_owned());
        Ok((answer.room_id, servers))
    }

    /// Knocks at a room that this node is not in. The user is told of the room as the server that answers tells it.
    ///
    /// # Errors
    /// The most telling error of the servers that were asked.
    pub async fn knock(&self, wish: &Wish<'_>) -> Result<OwnedEventId> {
        let _ticket = self.ticket(wish.room).await;
        let mut asking = self.asking(wish);
        let (pdu, version, stripped) = loop {
            let Some(server) = asking.next() else {
                return Err(asking.end());
            };
            match Box::pin(self.knock_at(&server, wish)).await {
                Ok(told) => break told,
                Err(error) => asking.failed(&server, error)?,
            }
        };
        let mut guard = self.0.rooms.lock_or_make(wish.room, &version).await?;
        self.put_aside(&mut guard, &pdu, Some(&stripped))?;
        drop(guard);
        self.settle().await?;
        Ok(pdu.event.header.id)
    }

    async fn knock_at(
        &self,
        server: &ServerName,
        wish: &Wish<'_>,
    ) -> Result<(Pdu, RoomVersionId, String)> {
        let (room, user) = (wish.room.to_owned(), wish.user.to_owned());
        let mut request = prepare_knock_event::v1::Request::new(room, user);
        request.ver = version::served();
        let answer = self.0.remote.send_within(server, request, QUESTION).await?;
        let knock = MembershipState::Knock;
        let filled = self.fill(server, wish, &knock, &answer.room_version, &answer.event)?;
        let request = create_knock_event::v1::Request::new(
            wish.room.to_owned(),
            filled.id().clone(),
            filled.raw()?,
        );
        let answer = self.0.remote.send_within(server, request, QUESTION).await?;
        let told = super::invite::raws(answer.knock_room_state)?;
        let stripped = self.stripped(wish.room, filled.rules, &told, false).await?;
        Ok((filled.pdu, filled.version, stripped))
    }

    /// Leaves a room that this node is not in: declines an invite or takes back a knock. If no server that may know the
    /// room answers, the user is rid of it all the same.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn leave(&self, wish: &Wish<'_>, version: &RoomVersionId) -> Result<OwnedEventId> {
        let _ticket = self.ticket(wish.room).await;
        let mut asking = self.asking(wish);
        let (pdu, version) = loop {
            let Some(server) = asking.next() else {
                tracing::info!(room = %wish.room, user = %wish.user, "nobody in a room could be told that a user wants nothing of it");
                break self.leave_alone(wish, version)?;
            };
            match Box::pin(self.leave_at(&server, wish)).await {
                Ok(told) => break told,
                Err(error) if error.is_internal() => return Err(error),
                Err(error) => {
                    let _the_next_may_help = asking.failed(&server, error);
                }
            }
        };
        let mut guard = self.0.rooms.lock_or_make(wish.room, &version).await?;
        self.put_aside(&mut guard, &pdu, None)?;
        drop(guard);
        self.settle().await?;
        Ok(pdu.event.header.id)
    }

    async fn leave_at(&self, server: &ServerName, wish: &Wish<'_>) -> Result<(Pdu, RoomVersionId)> {
        let (room, user) = (wish.room.to_owned(), wish.user.to_owned());
        let request = prepare_leave_event::v1::Request::new(room, user);
        let answer = self.0.remote.send_within(server, request, QUESTION).await?;
        let version = answer.room_version.unwrap_or(version::UNNAMED);
        let leave = MembershipState::Leave;
        let filled = self.fill(server, wish, &leave, &version, &answer.event)?;
        let request = create_leave_event::v2::Request::new(
            wish.room.to_owned(),
            filled.id().clone(),
            filled.raw()?,
        );
        match self.0.remote.send_within(server, request, QUESTION).await {
            Ok(_) => {}
            Err(error) if knows_only_v1(&error) => {
                let (of, body) = ((wish.room, &**filled.id()), filled.text());
                let put = self.put_as_v1::<Ignored>(server, "send_leave", of, body, QUESTION);
                put.await?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok((filled.pdu, filled.version))
    }

    /// Puts an event to the first version of an endpoint, whose answer stands in a list behind a status.
    pub(super) async fn put_as_v1<T: DeserializeOwned>(
        &self,
        server: &ServerName,
        endpoint: &str,
        (room, id): (&RoomId, &EventId),
        body: String,
        limits: Limits,
    ) -> Result<T> {
        let (room, id) = (encoded(room.as_str()), encoded(id.as_str()));
        let uri = format!("/_matrix/federation/v1/{endpoint}/{room}/{id}");
        let (method, body) = (Method::PUT, body.into_bytes());
        let put = self
            .0
            .remote
            .send_signed(server, method, &uri, body, limits);
        let answer: (u16, T) =
            serde_json::from_slice(put.await?.body()).map_err(|bad| nonsense(server, bad))?;
        Ok(answer.1)
    }

    /// A leave that nobody but its user will ever see.
    fn leave_alone(
        &self,
        wish: &Wish<'_>,
        version: &RoomVersionId,
    ) -> Result<(Pdu, RoomVersionId)> {
        let rules = rules_of(version)?;
        let mut content = wish.content.clone();
        content.insert("membership".to_owned(), "leave".to_owned().into());
        let now = self.0.clock.now_ms();
        let legacy = self.0.rooms.legacy_id(rules)?;
        let draft = Draft {
            room_id: Some(wish.room.to_owned()),
            sender: wish.user.to_owned(),
            event_type: StateEventType::RoomMember.into(),
            state_key: Some(wish.user.to_string()),
            content,
            redacts: None,
            origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(now)),
            prev_events: Vec::new(),
            auth_events: Vec::new(),
            depth: 1,
            legacy,
        };
        let keyring = &self.0.keyring;
        let event: Event = template::finish(draft, keyring.key(), keyring.name(), rules)?;
        let refused = false;
        Ok((Pdu { event, refused }, version.clone()))
    }

    /// Notes a membership outside of a room, unless this node has entered the room meanwhile.
    pub(super) fn put_aside(
        &self,
        guard: &mut RoomGuard,
        pdu: &Pdu,
        stripped: Option<&str>,
    ) -> Result<()> {
        let head = guard.head();
        if self.0.rooms.takes_part(head) {
            return Err(Error::forbidden(
                "This server has entered the room meanwhile; try again",
            ));
        }
        self.0.rooms.set_aside(head, pdu, stripped, |_| {})?;
        Ok(())
    }

    pub(super) async fn settle(&self) -> Result<()> {
        let store = &self.0.store;
        Ok(store.durable(store.latest().position()).await?)
    }

    /// The servers to ask for a wish.
    pub(super) fn asking(&self, wish: &Wish<'_>) -> Asking {
        let name = self.0.keyring.name();
        let mut servers: Vec<OwnedServerName> = Vec::new();
        for server in &wish.via {
            if server != name && !servers.contains(server) {
                servers.push(server.clone());
            }
        }
        servers.truncate(MOST_ASKED);
        Asking {
            room: wish.room.to_owned(),
            servers: servers.into_iter(),
            told: None,
        }
    }

    /// A template for a join.
    pub(super) async fn join_template(
        &self,
        server: &ServerName,
        wish: &Wish<'_>,
    ) -> Result<Filled> {
        let (room, user) = (wish.room.to_owned(), wish.user.to_owned());
        let mut request = prepare_join_event::v1::Request::new(room, user);
        request.ver = version::served();
        let answer = self.0.remote.send_within(server, request, QUESTION).await?;
        let version = answer.room_version.unwrap_or(version::UNNAMED);
        let join = MembershipState::Join;
        self.fill(server, wish, &join, &version, &answer.event)
    }

    /// Makes an event of a template. Of what the server has put into it only what the event follows, what authorises it
    /// and who lets the user in are taken.
    fn fill(
        &self,
        server: &ServerName,
        wish: &Wish<'_>,
        membership: &MembershipState,
        version: &RoomVersionId,
        template: &RawValue,
    ) -> Result<Filled> {
        let rules = rules_of(version)?;
        let template =
            integrity::parse_pdu(template.get(), rules).map_err(|bad| nonsense(server, bad))?;
        let text = |name: &str| template.get(name).and_then(CanonicalJsonValue::as_str);
        let told = template
            .get("content")
            .and_then(CanonicalJsonValue::as_object);
        let told_text = |name: &str| told?.get(name)?.as_str();
        let user = Some(wish.user.as_str());
        if text("type") != Some("m.room.member")
            || text("sender") != user
            || text("state_key") != user
            || text("room_id") != Some(wish.room.as_str())
            || told_text("membership") != Some(membership.as_ref())
        {
            return Err(nonsense(server, "the template is for something else"));
        }
        let mut content = wish.content.clone();
        content.insert("membership".to_owned(), membership.to_string().into());
        if rules.authorization.restricted_join_rule
            && *membership == MembershipState::Join
            && let Some(by) = told_text("join_authorised_via_users_server")
        {
            let name = "join_authorised_via_users_server".to_owned();
            content.insert(name, by.to_owned().into());
        }
        let now = MilliSecondsSinceUnixEpoch(UInt::new_saturating(self.0.clock.now_ms()));
        let mut object = CanonicalJsonObject::new();
        for name in ["auth_events", "prev_events", "depth"] {
            let value = template.get(name);
            let value = value.ok_or_else(|| nonsense(server, format!("no `{name}`")))?;
            object.insert(name.to_owned(), value.clone());
        }
        for (name, value) in [
            ("type", "m.room.member"),
            ("room_id", wish.room.as_str()),
            ("sender", wish.user.as_str()),
            ("state_key", wish.user.as_str()),
        ] {
            object.insert(name.to_owned(), value.into());
        }
        object.insert("content".to_owned(), content.into());
        object.insert("origin_server_ts".to_owned(), now.0.into());
        if let Some(legacy) = self.0.rooms.legacy_id(rules)? {
            object.insert("event_id".to_owned(), legacy.event_id.as_str().into());
        }
        let keyring = &self.0.keyring;
        integrity::hash_and_sign(&mut object, keyring.key(), keyring.name(), rules)
            .map_err(|bad| nonsense(server, bad))?;
        let received = ingest::receive_object(object.clone(), rules);
        let pdu = received.map_err(|bad| nonsense(server, bad))?.signed();
        Ok(Filled {
            version: version.clone(),
            rules,
            object,
            pdu,
        })
    }
}
