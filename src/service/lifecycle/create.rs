//! Making a room: all of its first events are one commit, so there is never half a room.
//!
//! See "Room Creation" in the client-server API.

use http::StatusCode;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomAliasId, OwnedRoomId, OwnedUserId,
    RoomAliasId, RoomId, UserId,
    api::client::room::create_room::v3::{Request, RoomPreset},
    events::StateEventType,
    room_version_rules::AuthorizationRules,
};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::{
    Lifecycle, aliases::put_alias, content, is_public, no_identity_server, object, raw_object, read,
};
use crate::{
    config::EncryptedRooms,
    error::{Error, Result},
    protocol::{auth::Denied, version},
    service::{
        Requester,
        limits::Kind,
        rooms::{NewEvent, Run},
    },
    store::{
        Batch,
        schema::{AliasRow, PUBLIC_ROOMS},
    },
};

/// The most users that may be invited while a room is made; each costs a signature.
const MAX_INVITES: usize = 1000;

/// An event of `initial_state`.
#[derive(Deserialize)]
struct Initial {
    #[serde(rename = "type")]
    event_type: StateEventType,
    #[serde(default)]
    state_key: String,
    content: Box<RawValue>,
}

impl Lifecycle {
    /// Makes a room.
    ///
    /// # Errors
    /// 400 M_UNSUPPORTED_ROOM_VERSION, M_ROOM_IN_USE for a taken alias, M_INVALID_ROOM_STATE when what is asked for
    /// contradicts itself.
    pub async fn create_room(
        &self,
        requester: &Requester,
        request: Request,
    ) -> Result<OwnedRoomId> {
        if !request.invite_3pid.is_empty() {
            return Err(no_identity_server());
        }
        let initial: Vec<Initial> = request
            .initial_state
            .iter()
            .map(|raw| read(raw.json(), "initial_state"))
            .collect::<Result<_>>()?;
        let members = initial
            .iter()
            .filter(|initial| initial.event_type == StateEventType::RoomMember)
            .filter_map(|initial| UserId::parse(&initial.state_key).ok());
        let members: Vec<OwnedUserId> = members.collect();
        let invited = request.invite.iter().chain(&members);
        let invited: Vec<OwnedUserId> = invited.cloned().collect();
        if invited.len() > MAX_INVITES {
            return Err(Error::invalid_param(format!(
                "At most {MAX_INVITES} users can be invited at once"
            )));
        }
        self.limits
            .check(Kind::Message, requester.user_id.as_str())?;
        for user in &members {
            if user.server_name() != self.rooms.server_name() {
                return Err(Error::forbidden(format!(
                    "{user} must agree before they are in the room: name them in `invite`"
                )));
            }
        }
        for user in &invited {
            self.limits
                .check(Kind::Invite, requester.user_id.as_str())?;
            self.limits.check(Kind::Invited, user.as_str())?;
        }
        let creator = &*requester.user_id;
        let alias = self.new_alias(request.room_alias_name.as_deref())?;
        let version = request.room_version.clone();
        let version = version.unwrap_or_else(|| self.rooms.default_version().clone());
        let preset = preset(&request)?;

        let mut creation = raw_object(request.creation_content.as_ref())?;
        let rules = version::rules(&version).map(|rules| &rules.authorization);
        if let Some(rules) = rules
            && rules.additional_room_creators
            && preset == RoomPreset::TrustedPrivateChat
        {
            add_creators(&mut creation, &request.invite, creator)?;
        }
        let (mut room, create) = self.rooms.begin(creator, &version, creation).await?;
        let head = room.head();
        let (id, nid) = (head.id.clone(), head.nid);
        let rules = &head.rules.authorization;
        let mut run = Run::new(&self.rooms, head);
        let plan = Plan {
            creator,
            request: &request,
            preset: &preset,
            rules,
            alias: alias.as_ref(),
            encrypted: self.rooms.encrypted(),
            initial: &initial,
        };
        run.add_create(create).map_err(contradiction)?;
        self.add_first_events(&mut run, &plan)?;

        let taken = self.aliases.lock();
        if let Some(alias) = &alias
            && self.resolve_alias(alias)?.is_some()
        {
            return Err(alias_in_use(alias));
        }
        let listed = is_public(&request.visibility);
        run.commit(|batch: &mut Batch<'_>| {
            if let Some(alias) = &alias {
                let row = AliasRow {
                    room: nid,
                    creator: creator.to_owned(),
                };
                put_alias(batch, alias, &row);
            }
            if listed {
                PUBLIC_ROOMS.put(batch, &(nid,), &());
            }
        })?;
        drop(taken);
        drop(room);
        self.settle().await?;
        self.bring_settings(requester, &id).await?;
        self.invite_afar(creator, &id, &request).await?;
        Ok(id)
    }

    /// Invites those whose servers must agree first. Who can not be reached is not invited; the room is there.
    async fn invite_afar(&self, creator: &UserId, room: &RoomId, request: &Request) -> Result<()> {
        let mut unreached = Vec::new();
        for user in &request.invite {
            let server = user.server_name();
            if server == self.rooms.server_name() || unreached.contains(&server) {
                continue;
            }
            let mut content = CanonicalJsonObject::new();
            if request.is_direct {
                content.insert("is_direct".to_owned(), true.into());
            }
            let invited = self.federation.invite(room, (creator, user), content);
            match Box::pin(invited).await {
                Ok(_) => {}
                Err(error) if error.is_internal() => return Err(error),
                Err(error) => {
                    if matches!(&error, Error::Remote(error) if error.refusal().is_none()) {
                        unreached.push(server);
                    }
                    tracing::info!(%room, %user, %error, "a user could not be invited to a new room");
                }
            }
        }
        Ok(())
    }

    fn new_alias(&self, localpart: Option<&str>) -> Result<Option<OwnedRoomAliasId>> {
        let Some(localpart) = localpart else {
            return Ok(None);
        };
        let alias = format!("#{localpart}:{}", self.rooms.server_name());
        let alias = RoomAliasId::parse(&alias)
            .map_err(|e| Error::invalid_param(format!("{alias} can not be an alias: {e}")))?;
        self.check_new_alias(&alias)?;
        if self.resolve_alias(&alias)?.is_some() {
            return Err(alias_in_use(&alias));
        }
        Ok(Some(alias))
    }

    fn add_first_events(&self, run: &mut Run<'_>, plan: &Plan<'_>) -> Result<()> {
        let creator = plan.creator;
        let mut member = self.profile(creator)?;
        member.insert("membership".to_owned(), "join".to_owned().into());
        let mut first = vec![(StateEventType::RoomMember, creator.to_string(), member)];
        for (event_type, content) in plan.events()? {
            first.push((event_type, String::new(), content));
        }
        for initial in plan.initial {
            first.push((
                initial.event_type.clone(),
                initial.state_key.clone(),
                object(initial.content.get())?,
            ));
        }
        for (event_type, content) in plan.names()? {
            first.push((event_type, String::new(), content));
        }
        for user in &plan.request.invite {
            if user == creator || user.server_name() != self.rooms.server_name() {
                continue;
            }
            // Somebody who is not invited is no reason to have no room, as with those elsewhere.
            if let Err(error) = self.rooms.check_invite(creator, user) {
                if error.is_internal() {
                    return Err(error);
                }
                tracing::info!(%user, %error, "a user is not invited to a new room");
                continue;
            }
            let mut invite = self.profile(user)?;
            invite.insert("membership".to_owned(), "invite".to_owned().into());
            if plan.request.is_direct {
                invite.insert("is_direct".to_owned(), true.into());
            }
            first.push((StateEventType::RoomMember, user.to_string(), invite));
        }
        for (event_type, state_key, content) in first {
            run.add(NewEvent::state(creator, event_type, &state_key, content))
                .map_err(contradiction)?;
        }
        Ok(())
    }
}

/// What the first events depend on.
struct Plan<'a> {
    creator: &'a UserId,
    request: &'a Request,
    preset: &'a RoomPreset,
    rules: &'a AuthorizationRules,
    alias: Option<&'a OwnedRoomAliasId>,
    encrypted: EncryptedRooms,
    initial: &'a [Initial],
}

impl Plan<'_> {
    /// The events between the creator's membership and the initial state.
    fn events(&self) -> Result<Vec<(StateEventType, CanonicalJsonObject)>> {
        let mut events = vec![(StateEventType::RoomPowerLevels, self.power_levels()?)];
        if let Some(alias) = self.alias {
            let alias = content(&json!({ "alias": alias }))?;
            events.push((StateEventType::RoomCanonicalAlias, alias));
        }
        let is_public = *self.preset == RoomPreset::PublicChat;
        let defaults = [
            (
                StateEventType::RoomJoinRules,
                json!({ "join_rule": if is_public { "public" } else { "invite" } }),
            ),
            (
                StateEventType::RoomHistoryVisibility,
                json!({ "history_visibility": "shared" }),
            ),
        ];
        // Where nothing is said guests are kept out.
        let for_guests = (!is_public).then(|| {
            let open = json!({ "guest_access": "can_join" });
            (StateEventType::RoomGuestAccess, open)
        });
        let is_encrypted = match self.encrypted {
            EncryptedRooms::Off => false,
            EncryptedRooms::Private => !is_public,
            EncryptedRooms::All => true,
        };
        // A space has no messages that could be encrypted.
        let encryption = (is_encrypted && !self.is_space()?).then(|| {
            let algorithm = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
            (StateEventType::RoomEncryption, algorithm)
        });
        let defaults = defaults.into_iter().chain(for_guests).chain(encryption);
        for (event_type, value) in defaults {
            // What the client sets itself would only overrule this.
            let is_set = |initial: &Initial| {
                initial.event_type == event_type && initial.state_key.is_empty()
            };
            if !self.initial.iter().any(is_set) {
                events.push((event_type, content(&value)?));
            }
        }
        Ok(events)
    }

    fn is_space(&self) -> Result<bool> {
        let creation = raw_object(self.request.creation_content.as_ref())?;
        let kind = creation.get("type").and_then(CanonicalJsonValue::as_str);
        Ok(kind == Some("m.space"))
    }

    /// The events after the initial state.
    fn names(&self) -> Result<Vec<(StateEventType, CanonicalJsonObject)>> {
        let mut events = Vec::new();
        if let Some(name) = &self.request.name {
            events.push((StateEventType::RoomName, content(&json!({ "name": name }))?));
        }
        if let Some(topic) = &self.request.topic {
            let rich = json!({ "topic": topic, "m.topic": { "m.text": [{ "body": topic }] } });
            events.push((StateEventType::RoomTopic, content(&rich)?));
        }
        Ok(events)
    }

    fn power_levels(&self) -> Result<CanonicalJsonObject> {
        let creators_are_privileged = self.rules.explicitly_privilege_room_creators;
        let mut users = serde_json::Map::new();
        if !creators_are_privileged {
            users.insert(self.creator.to_string(), 100.into());
            if *self.preset == RoomPreset::TrustedPrivateChat {
                let invited = self.request.invite.iter();
                users.extend(invited.map(|user| (user.to_string(), 100.into())));
            }
        }
        let invite = if *self.preset == RoomPreset::PublicChat {
            50
        } else {
            0
        };
        let mut levels = content(&json!({
            "users": users,
            "users_default": 0,
            "events": {
                "m.room.name": 50,
                "m.room.power_levels": 100,
                "m.room.history_visibility": 100,
                "m.room.canonical_alias": 50,
                "m.room.avatar": 50,
                "m.room.tombstone": if creators_are_privileged { 150 } else { 100 },
                "m.room.server_acl": 100,
                "m.room.encryption": 100,
            },
            "events_default": 0,
            "state_default": 50,
            "ban": 50,
            "kick": 50,
            "redact": 50,
            "invite": invite,
        }))?;
        levels.extend(raw_object(
            self.request.power_level_content_override.as_ref(),
        )?);
        Ok(levels)
    }
}

fn preset(request: &Request) -> Result<RoomPreset> {
    let preset = request
        .preset
        .clone()
        .unwrap_or(if is_public(&request.visibility) {
            RoomPreset::PublicChat
        } else {
            RoomPreset::PrivateChat
        });
    match preset {
        RoomPreset::PublicChat | RoomPreset::PrivateChat | RoomPreset::TrustedPrivateChat => {
            Ok(preset)
        }
        other => Err(Error::invalid_param(format!("There is no preset {other}"))),
    }
}

/// In rooms whose creators stand above all levels, who is trusted becomes a creator too.
fn add_creators(
    creation: &mut CanonicalJsonObject,
    invited: &[OwnedUserId],
    creator: &UserId,
) -> Result<()> {
    let key = "additional_creators";
    let mut creators = match creation.remove(key) {
        None => Vec::new(),
        Some(CanonicalJsonValue::Array(creators)) => creators,
        Some(_) => return Err(Error::bad_json("additional_creators is not a list")),
    };
    for user in invited {
        let user = CanonicalJsonValue::from(user.to_string());
        if user.as_str() != Some(creator.as_str()) && !creators.contains(&user) {
            creators.push(user);
        }
    }
    if !creators.is_empty() {
        creation.insert(key.to_owned(), CanonicalJsonValue::Array(creators));
    }
    Ok(())
}

fn alias_in_use(alias: &RoomAliasId) -> Error {
    Error::api(
        StatusCode::BAD_REQUEST,
        "M_ROOM_IN_USE",
        format!("The alias {alias} is already taken"),
    )
}

/// The first events can only be refused because of what the client wished for.
fn contradiction(error: Error) -> Error {
    match error {
        Error::Denied(Denied { rule }) => Error::api(
            StatusCode::BAD_REQUEST,
            "M_INVALID_ROOM_STATE",
            format!("A room can not begin like this: {rule}"),
        ),
        other => other,
    }
}
