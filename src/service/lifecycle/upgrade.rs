//! Replacing a room by one of another version. See "Room Upgrades" in the client-server API.
//!
//! The new room is whole before the old one says that it is replaced; whoever dies in between leaves a room that nobody
//! knows, and can begin again.

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomAliasId, OwnedRoomId, OwnedUserId,
    RoomAliasId, RoomId, RoomVersionId, UserId,
    events::{StateEventType, TimelineEventType, room::member::MembershipState},
    room_version_rules::AuthorizationRules,
};
use serde::Deserialize;
use serde_json::json;

use super::{
    Lifecycle,
    aliases::{drop_alias, put_alias},
    content,
};
use crate::{
    error::{Error, Result},
    protocol::{auth::PowerLevels, version},
    service::{
        Requester,
        limits::Kind,
        rooms::{NewEvent, RoomHead, Run},
    },
    store::{
        Batch,
        schema::{AliasRow, CURRENT_STATE, PUBLIC_ROOMS, ROOM_ALIASES},
    },
};

/// The state that goes to the new room as it is, besides what has a rule of its own.
const TRANSFERRED: [&str; 9] = [
    "m.room.server_acl",
    "m.room.encryption",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.guest_access",
    "m.room.history_visibility",
    "m.room.canonical_alias",
    "m.room.policy",
];

/// The most bans, and the most children of a space, that go to the new room.
const MOST: usize = 5_000;

/// The most spaces in which the new room takes the place of the old one.
const MOST_PARENTS: usize = 20;

/// The most creators besides the one who upgrades.
const MOST_CREATORS: usize = 100;

/// The level of the creator of a room before version 12.
const CREATOR: i64 = 100;

/// What the first events of the new room are made from.
struct Copied {
    create: CanonicalJsonObject,
    levels: Option<CanonicalJsonObject>,
    /// Type, state key, content.
    state: Vec<(StateEventType, String, CanonicalJsonObject)>,
    /// Spaces that the room says it belongs to.
    parents: Vec<OwnedRoomId>,
}

impl Lifecycle {
    /// Replaces a room.
    ///
    /// # Errors
    /// 403 for users who may not, 400 M_UNSUPPORTED_ROOM_VERSION for versions that are not served here.
    pub async fn upgrade_room(
        &self,
        requester: &Requester,
        old: &RoomId,
        to: &RoomVersionId,
        creators: &[OwnedUserId],
    ) -> Result<OwnedRoomId> {
        self.limits
            .check(Kind::Message, requester.user_id.as_str())?;
        let user = &*requester.user_id;
        let mut guard = self.rooms.lock_for(requester, old).await?;
        let head = guard.head();
        let power = self
            .rooms
            .power_levels(&self.store.latest(), &head.state, head.rules)?;
        if !power.may_send(user, &"m.room.tombstone".into(), true) {
            return Err(Error::forbidden("You may not replace this room"));
        }
        let rules = version::rules(to).map(|rules| &rules.authorization);
        let named = rules.is_some_and(|rules| rules.additional_room_creators);
        let creators: Vec<&UserId> = if named {
            creators
                .iter()
                .map(|c| &**c)
                .filter(|c| *c != user)
                .collect()
        } else {
            Vec::new()
        };
        if creators.len() > MOST_CREATORS {
            return Err(Error::invalid_param(format!(
                "At most {MOST_CREATORS} creators can be named"
            )));
        }
        let copied = self.copied(head)?;
        let creation = creation(head, &copied, rules, &creators)?;
        let (mut new, create) = self.rooms.begin(user, to, creation).await?;
        let (new_id, new_nid) = (new.head().id.clone(), new.head().nid);
        let mut last = last_events(&copied, &power, user, &new_id)?
            .into_iter()
            .map(|(kind, content)| NewEvent::state(user, kind, "", content));
        let tombstone = last.next();
        let tombstone =
            tombstone.ok_or_else(|| Error::Internal("a room ends with nothing".to_owned()))?;
        let mut signed = None;
        if self.policy_for(head, &tombstone)?.is_some() {
            // What its policy server does not let end has no successor. Both rooms are free while it is asked.
            drop((guard, new));
            signed = self.signed_ahead(old, &tombstone).await?;
            guard = self.rooms.lock_for(requester, old).await?;
            new = self.rooms.lock_or_make(&new_id, to).await?;
        }
        let head = guard.head();
        let rules = &new.head().rules.authorization;
        let mut run = Run::new(&self.rooms, new.head());
        run.add_create(create)?;
        self.furnish(&mut run, requester, (&copied, &power), (rules, &creators))?;

        let taken = self.aliases.lock();
        let view = self.store.latest();
        let mut aliases: Vec<OwnedRoomAliasId> = Vec::new();
        for row in ROOM_ALIASES.scan(&view, &(head.nid,)) {
            let ((_, alias), ()) = row?;
            aliases.extend(RoomAliasId::parse(&alias).ok());
        }
        let was_listed = PUBLIC_ROOMS.contains(&view, &(head.nid,))?;
        run.commit(|_| {})?;
        let old_nid = head.nid;
        let members = head.members.clone();
        let moved = |batch: &mut Batch<'_>| {
            for alias in &aliases {
                let row = AliasRow {
                    room: new_nid,
                    creator: requester.user_id.clone(),
                };
                drop_alias(batch, alias, old_nid);
                put_alias(batch, alias, &row);
            }
            if was_listed {
                PUBLIC_ROOMS.delete(batch, &(old_nid,));
                PUBLIC_ROOMS.put(batch, &(new_nid,), &());
            }
        };
        let mut later = Vec::new();
        if let Some(pdu) = signed {
            if self.write_signed(head, &pdu, None)?.is_some() {
                return Err(Error::forbidden(
                    "The room's policy server was changed meanwhile; try again",
                ));
            }
            let _durable_before_the_answer = self.store.commit(|batch| {
                moved(batch);
                Ok(())
            })?;
            later.extend(last);
        } else {
            let mut closing = Run::new(&self.rooms, head);
            closing.add(tombstone)?;
            for event in last {
                match closing.add(event) {
                    Err(error) if error.is_internal() => return Err(error),
                    // Without the power for it the old room stays open.
                    _ => {}
                }
            }
            closing.commit(moved)?;
        }
        drop(taken);
        drop(guard);
        drop(new);
        for event in later {
            match self.write(self.lock_again(old).await?, event).await {
                Err(error) if error.is_internal() => return Err(error),
                Err(error) => tracing::info!(room = %old, %error, "a replaced room stays open"),
                Ok(_) => {}
            }
        }
        self.settle().await?;
        for parent in &copied.parents {
            self.replace_child(requester, parent, old, &new_id).await?;
        }
        for member in &members {
            let user = (*self.store.user_id(*member)?).clone();
            self.accounts
                .move_settings((&user, *member), old, &new_id)
                .await?;
        }
        Ok(new_id)
    }

    /// What of the old room goes to the new one.
    fn copied(&self, head: &RoomHead) -> Result<Copied> {
        let view = self.store.latest();
        let of = |kind: &str| -> Result<Option<CanonicalJsonObject>> {
            let stored = self.rooms.entry(&view, &head.state, kind, "")?;
            Ok(stored.and_then(|stored| stored.event.content_as().ok()))
        };
        let create = of("m.room.create")?.unwrap_or_default();
        let mut state = Vec::new();
        if let Some(rule) = of("m.room.join_rules")? {
            state.push((StateEventType::RoomJoinRules, String::new(), rule));
        }
        for kind in TRANSFERRED {
            if let Some(content) = of(kind)? {
                state.push((kind.into(), String::new(), content));
            }
        }
        let is_space = create.get("type").and_then(CanonicalJsonValue::as_str) == Some("m.space");
        let mut parents = Vec::new();
        let kinds = ["m.space.parent", "m.space.child", "m.room.member"];
        for kind in kinds
            .into_iter()
            .filter(|kind| is_space || *kind != "m.space.child")
        {
            let mut count = 0;
            for row in CURRENT_STATE.scan(&view, &(head.nid, kind)) {
                let ((_, _, key), (nid,)) = row?;
                let stored = self.rooms.event(&view, nid)?;
                let is_ban = stored.event.header.membership == Some(MembershipState::Ban);
                let content = stored.event.content_as::<CanonicalJsonObject>();
                let content = content.unwrap_or_default();
                if content.is_empty() || (kind == "m.room.member" && !is_ban) {
                    continue;
                }
                if kind == "m.space.parent" && parents.len() < MOST_PARENTS {
                    parents.extend(RoomId::parse(&key).ok());
                }
                state.push((kind.into(), key, content));
                count += 1;
                if count == MOST {
                    break;
                }
            }
        }
        Ok(Copied {
            create,
            levels: of("m.room.power_levels")?,
            state,
            parents,
        })
    }

    /// The first events of the new room behind its create event.
    fn furnish(
        &self,
        run: &mut Run<'_>,
        requester: &Requester,
        (copied, power): (&Copied, &PowerLevels),
        (rules, creators): (&AuthorizationRules, &[&UserId]),
    ) -> Result<()> {
        let user = &*requester.user_id;
        let mut member = self.profile(user)?;
        member.insert("membership".to_owned(), "join".to_owned().into());
        let member_event = NewEvent::state(user, StateEventType::RoomMember, user.as_str(), member);
        run.add(member_event)?;
        let levels = copied.levels.clone().unwrap_or_default();
        let (first, last) = levels_of(levels, power, user, (rules, creators));
        let kind = StateEventType::RoomPowerLevels;
        run.add(NewEvent::state(user, kind.clone(), "", first.clone()))?;
        for (kind, key, content) in &copied.state {
            let mut content = content.clone();
            if *kind == StateEventType::RoomJoinRules {
                content = join_rule(content, rules);
            }
            let is_creator = creators.iter().any(|c| c.as_str() == key);
            if *kind == StateEventType::RoomMember && is_creator {
                continue;
            }
            match run.add(NewEvent::state(user, kind.clone(), key, content)) {
                Err(error) if error.is_internal() => return Err(error),
                // What an old version has let through a newer one need not.
                Err(error) => tracing::info!(%kind, %key, %error, "not taken to a new room"),
                Ok(_) => {}
            }
        }
        if last != first {
            run.add(NewEvent::state(user, kind, "", last))?;
        }
        Ok(())
    }

    /// Puts the new room into a space in the place of the old one, if the user may.
    async fn replace_child(
        &self,
        requester: &Requester,
        space: &RoomId,
        old: &RoomId,
        new: &RoomId,
    ) -> Result<()> {
        let mut guard = match self.rooms.lock_for(requester, space).await {
            Ok(guard) => guard,
            Err(error) if error.is_internal() => return Err(error),
            Err(_) => return Ok(()),
        };
        let head = guard.head();
        let kind = StateEventType::SpaceChild;
        let view = self.store.latest();
        let child = self
            .rooms
            .entry(&view, &head.state, "m.space.child", old.as_str())?;
        let child = child.and_then(|c| c.event.content_as::<CanonicalJsonObject>().ok());
        let Some(content) = child.filter(|content| content.contains_key("via")) else {
            return Ok(());
        };
        let user = &requester.user_id;
        let nothing = CanonicalJsonObject::new();
        let events = [
            NewEvent::state(user, kind.clone(), new.as_str(), content),
            NewEvent::state(user, kind, old.as_str(), nothing),
        ];
        let changed = self.write_all(guard, events).await;
        match changed {
            Err(error) if error.is_internal() => Err(error),
            Err(error) => {
                tracing::info!(%space, %error, "a space goes on naming a replaced room");
                Ok(())
            }
            Ok(()) => self.settle().await,
        }
    }

    /// After a user has come into a room: what they have set for the room that it replaces is set for this one.
    pub(super) async fn bring_settings(&self, requester: &Requester, room: &RoomId) -> Result<()> {
        let view = self.store.latest();
        let Some(old) = self.predecessor(room)? else {
            return Ok(());
        };
        let Some(nid) = self.store.find_room(&old)? else {
            return Ok(());
        };
        if self
            .rooms
            .membership_at(&view, nid, requester.nid)?
            .is_none()
        {
            return Ok(());
        }
        let user = (&requester.user_id, requester.nid);
        self.accounts.move_settings(user, &old, room).await
    }

    /// After a room has said that it is replaced: its local members' settings go with them, if the other room says so
    /// too.
    pub(super) async fn move_all_settings(&self, old: &RoomId) -> Result<()> {
        #[derive(Deserialize)]
        struct Tombstone {
            replacement_room: OwnedRoomId,
        }
        let mut guard = self.rooms.lock(old).await?;
        let head = guard.head();
        let view = self.store.latest();
        let stored = self
            .rooms
            .entry(&view, &head.state, "m.room.tombstone", "")?;
        let members = head.members.clone();
        drop(guard);
        let new = stored.and_then(|stored| stored.event.content_as::<Tombstone>().ok());
        let Some(Tombstone { replacement_room }) = new else {
            return Ok(());
        };
        if self.predecessor(&replacement_room)?.as_deref() != Some(old) {
            return Ok(());
        }
        for member in &members {
            let user = (*self.store.user_id(*member)?).clone();
            self.accounts
                .move_settings((&user, *member), old, &replacement_room)
                .await?;
        }
        Ok(())
    }

    /// The room that a room replaces, as it says itself.
    fn predecessor(&self, room: &RoomId) -> Result<Option<OwnedRoomId>> {
        #[derive(Deserialize)]
        struct Create {
            predecessor: Predecessor,
        }
        #[derive(Deserialize)]
        struct Predecessor {
            room_id: OwnedRoomId,
        }
        let Some(nid) = self.store.find_room(room)? else {
            return Ok(None);
        };
        let view = self.store.latest();
        let create = self
            .rooms
            .current(&view, nid, &StateEventType::RoomCreate, "")?;
        let create = create.and_then(|stored| stored.event.content_as::<Create>().ok());
        Ok(create.map(|create| create.predecessor.room_id))
    }
}

/// The content of the new room's create event.
fn creation(
    head: &RoomHead,
    copied: &Copied,
    rules: Option<&AuthorizationRules>,
    creators: &[&UserId],
) -> Result<CanonicalJsonObject> {
    let mut predecessor = json!({ "room_id": head.id });
    // From version 12 on the room's id comes from this event, and clients find the end of the old room themselves.
    if rules.is_some_and(|rules| !rules.room_create_event_id_as_room_id)
        && let Some((last, _)) = head.row.extremities.last()
    {
        predecessor["event_id"] = last.as_str().into();
    }
    let mut creation = content(&json!({ "predecessor": predecessor }))?;
    for name in ["type", "m.federate"] {
        if let Some(value) = copied.create.get(name) {
            creation.insert(name.to_owned(), value.clone());
        }
    }
    if !creators.is_empty() {
        let creators = creators
            .iter()
            .map(|c| CanonicalJsonValue::from(c.to_string()));
        let creators = CanonicalJsonValue::Array(creators.collect());
        creation.insert("additional_creators".to_owned(), creators);
    }
    Ok(creation)
}

/// The power levels with which the new room is furnished, and those that it has in the end.
fn levels_of(
    mut levels: CanonicalJsonObject,
    power: &PowerLevels,
    user: &UserId,
    (rules, creators): (&AuthorizationRules, &[&UserId]),
) -> (CanonicalJsonObject, CanonicalJsonObject) {
    let users = levels.remove("users");
    let mut users = match users {
        Some(CanonicalJsonValue::Object(users)) => users,
        _ => CanonicalJsonObject::new(),
    };
    if rules.explicitly_privilege_room_creators {
        users.retain(|id, _| id != user.as_str() && !creators.iter().any(|c| c.as_str() == id));
        levels.insert("users".to_owned(), users.into());
        return (levels.clone(), levels);
    }
    // Who stood above all numbers, or had none because nothing was said, gets the highest.
    let highest = highest(&levels, &users).max(CREATOR);
    let number = |level: i64| CanonicalJsonValue::Integer(js_int::Int::new_saturating(level));
    for creator in power.creators() {
        if power.user(creator).reaches(highest) {
            let id = creator.to_string();
            users.entry(id).or_insert_with(|| number(highest));
        }
    }
    levels.insert("users".to_owned(), users.clone().into());
    let last = levels.clone();
    users.insert(user.to_string(), number(highest));
    levels.insert("users".to_owned(), users.into());
    (levels, last)
}

/// The highest number anywhere in the power levels.
fn highest(levels: &CanonicalJsonObject, users: &CanonicalJsonObject) -> i64 {
    let all = levels.values().chain(users.values());
    let numbers = all.flat_map(|value| match value {
        CanonicalJsonValue::Integer(number) => vec![i64::from(*number)],
        CanonicalJsonValue::Object(inner) => inner
            .values()
            .filter_map(CanonicalJsonValue::as_integer)
            .map(i64::from)
            .collect(),
        _ => Vec::new(),
    });
    numbers.max().unwrap_or(0)
}

/// A join rule that the new version knows: what it does not know would let nobody in, not even by an invite.
fn join_rule(content: CanonicalJsonObject, rules: &AuthorizationRules) -> CanonicalJsonObject {
    let rule = content
        .get("join_rule")
        .and_then(CanonicalJsonValue::as_str)
        .unwrap_or_default();
    let is_known = match rule {
        "knock" => rules.knocking,
        "restricted" => rules.restricted_join_rule,
        "knock_restricted" => rules.knock_restricted_join_rule,
        _ => true,
    };
    if is_known {
        return content;
    }
    let invite = ("join_rule".to_owned(), "invite".to_owned().into());
    CanonicalJsonObject::from([invite])
}

/// What the old room says in the end: where to go, that nobody is to talk any more, and that its names are gone.
fn last_events(
    copied: &Copied,
    power: &PowerLevels,
    user: &UserId,
    new: &RoomId,
) -> Result<Vec<(StateEventType, CanonicalJsonObject)>> {
    let tombstone = json!({ "body": "This room has been replaced", "replacement_room": new });
    let mut events = vec![(StateEventType::RoomTombstone, content(&tombstone)?)];
    let named = |(kind, ..): &(StateEventType, _, CanonicalJsonObject)| {
        *kind == StateEventType::RoomCanonicalAlias
    };
    if copied
        .state
        .iter()
        .any(|entry| named(entry) && !entry.2.is_empty())
    {
        let nothing = CanonicalJsonObject::new();
        events.push((StateEventType::RoomCanonicalAlias, nothing));
    }
    if power.may_send(user, &TimelineEventType::RoomPowerLevels, true)
        && let Some(levels) = &copied.levels
    {
        let mut levels = levels.clone();
        let number = |levels: &CanonicalJsonObject, name: &str, default: i64| {
            let level = levels.get(name).and_then(CanonicalJsonValue::as_integer);
            level.map_or(default, i64::from)
        };
        let least = (number(&levels, "users_default", 0) + 1).max(50);
        let before = levels.clone();
        for (name, default) in [("events_default", 0), ("invite", 0)] {
            if number(&levels, name, default) < least {
                let least = CanonicalJsonValue::Integer(js_int::Int::new_saturating(least));
                levels.insert(name.to_owned(), least);
            }
        }
        if levels != before {
            events.push((StateEventType::RoomPowerLevels, levels));
        }
    }
    Ok(events)
}
