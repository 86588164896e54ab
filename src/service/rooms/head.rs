//! The end of a room's graph, and the lock without which nobody can write the room.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use http::StatusCode;

use parking_lot::Mutex;
use ruma::{
    CanonicalJsonObject, EventId, MilliSecondsSinceUnixEpoch, OwnedRoomId, RoomId, RoomVersionId,
    UInt, UserId,
    events::{TimelineEventType, room::member::MembershipState},
    room_version_rules::RoomVersionRules,
};
use tokio::sync::OwnedMutexGuard;

use super::{
    Rooms,
    servers::{self, Servers},
};

use crate::{
    error::{Error, Result},
    protocol::{
        event::Event,
        ids::{EventNid, Position, RoomNid, UserNid},
        template::{self, Draft, Legacy},
        version,
    },
    service::Requester,
    store::{
        Chain, Members, StateMap,
        schema::{HeadRow, ROOM_HEADS, ROOM_MEMBERS},
    },
};

/// How many heads stay in memory when nobody uses them, and how many state events and members all of them together.
const KEPT: usize = 1024;
const KEPT_ENTRIES: usize = 500_000;

/// After how many new heads those in memory are looked through.
const ROUND: usize = 64;

/// What a room's next event builds on.
#[derive(Clone)]
pub struct RoomHead {
    /// The room's number.
    pub nid: RoomNid,
    /// The room's id.
    pub id: OwnedRoomId,
    /// The rules of its version.
    pub rules: &'static RoomVersionRules,
    /// What is stored of it.
    pub row: HeadRow,
    /// The current state.
    pub state: StateMap,
    /// The joined users of this node, who are to be woken.
    pub members: Members,
    /// The servers with joined users, this one among them.
    pub servers: Servers,
}

/// The right to write a room. Nothing may await the network while holding it.
pub struct RoomGuard(OwnedMutexGuard<Option<RoomHead>>);

impl Drop for RoomGuard {
    fn drop(&mut self) {
        // A room whose first events were refused never existed.
        if self
            .0
            .as_ref()
            .is_some_and(|head| head.row.extremities.is_empty())
        {
            *self.0 = None;
        }
    }
}

impl RoomGuard {
    /// The head.
    pub fn head(&mut self) -> &mut RoomHead {
        self.0
            .as_mut()
            .expect("a guard is only given for a loaded head")
    }
}

/// The heads in memory, each behind its room's lock.
#[derive(Default)]
pub(super) struct Heads(Mutex<HashMap<RoomNid, Slot>>);

type Slot = Arc<tokio::sync::Mutex<Option<RoomHead>>>;

impl Heads {
    fn slot(&self, room: RoomNid) -> Slot {
        let mut heads = self.0.lock();
        if !heads.contains_key(&room)
            && heads.len().is_multiple_of(ROUND)
            && (heads.len() >= KEPT || entries(&heads) > KEPT_ENTRIES)
        {
            // Whoever holds or awaits a room's lock has a second reference to it.
            heads.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        heads.entry(room).or_default().clone()
    }
}

/// How much the heads hold, but for those in use.
fn entries(heads: &HashMap<RoomNid, Slot>) -> usize {
    let of = |head: &Option<RoomHead>| head.as_ref().map_or(0, |h| h.state.len() + h.members.len());
    let free = heads.values().filter_map(|slot| slot.try_lock().ok());
    free.map(|head| of(&head)).sum()
}

impl Rooms {
    /// Waits for the room's lock.
    ///
    /// # Errors
    /// 404 when the room does not exist here.
    pub async fn lock(&self, id: &RoomId) -> Result<RoomGuard> {
        let guard = self.lock_if_any(id).await?;
        guard.ok_or_else(|| Error::not_found("The room"))
    }

    async fn lock_if_any(&self, id: &RoomId) -> Result<Option<RoomGuard>> {
        let Some(nid) = self.store.find_room(id)? else {
            return Ok(None);
        };
        let mut guard = self.heads.slot(nid).lock_owned().await;
        if guard.is_none() {
            *guard = self.load(nid, id)?;
        }
        Ok(guard.is_some().then(|| RoomGuard(guard)))
    }

    /// Makes the create event of a new room, and takes the lock of the room that it makes.
    pub async fn begin(
        &self,
        creator: &UserId,
        version: &RoomVersionId,
        mut content: CanonicalJsonObject,
    ) -> Result<(RoomGuard, Event)> {
        let rules = version::rules(version).ok_or_else(|| unsupported(version))?;
        content.insert(
            "room_version".to_owned(),
            version.as_str().to_owned().into(),
        );
        let room_id = if rules.event_format.require_room_create_room_id {
            let id = format!("!{}:{}", self.entropy.token(18), self.server_name);
            Some(RoomId::parse(id).map_err(|e| Error::Internal(e.to_string()))?)
        } else {
            // The room is named after this event, so two of them must never be the same bytes.
            content.insert("org.kontor.nonce".to_owned(), self.entropy.token(12).into());
            None
        };
        if !rules.authorization.use_room_create_sender {
            content.insert("creator".to_owned(), creator.as_str().to_owned().into());
        }
        let draft = Draft {
            room_id,
            sender: creator.to_owned(),
            event_type: TimelineEventType::RoomCreate,
            state_key: Some(String::new()),
            content,
            redacts: None,
            origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(self.clock.now_ms())),
            prev_events: Vec::new(),
            auth_events: Vec::new(),
            depth: 1,
            legacy: self.legacy_id(rules)?,
        };
        let create = template::finish(draft, self.keyring.key(), self.keyring.name(), rules)?;
        let id = create.header.room_id.clone();
        Ok((self.lock_or_make(&id, version).await?, create))
    }

    /// Waits for the lock of a room, and begins the room if this node does not know it. If nothing is written, it never
    /// existed.
    ///
    /// # Errors
    /// When the room's version is not served here.
    pub async fn lock_or_make(&self, id: &RoomId, version: &RoomVersionId) -> Result<RoomGuard> {
        let rules = version::rules(version).ok_or_else(|| unsupported(version))?;
        let nid = self.store.room_nid(id)?;
        let mut guard = self.heads.slot(nid).lock_owned().await;
        if guard.is_none() {
            *guard = self.load(nid, id)?;
        }
        if guard.is_some() {
            return Ok(RoomGuard(guard));
        }
        let row = HeadRow {
            version: version.clone(),
            extremities: Vec::new(),
            depth: 0,
            chain: Chain::default(),
            last: Position(0),
            create: EventNid(0),
            joined: 0,
            invited: 0,
            straight_from: i64::MIN,
            gap: None,
        };
        *guard = Some(RoomHead {
            nid,
            id: id.to_owned(),
            rules,
            row,
            state: StateMap::new(),
            members: Members::new(),
            servers: Servers::new(),
        });
        Ok(RoomGuard(guard))
    }

    /// Room versions 1 and 2 name events by our choice.
    ///
    /// # Errors
    /// Never.
    pub fn legacy_id(&self, rules: &RoomVersionRules) -> Result<Option<Legacy>> {
        if !rules.event_format.require_event_id {
            return Ok(None);
        }
        let id = format!("${}:{}", self.entropy.token(18), self.server_name);
        Ok(Some(Legacy {
            event_id: EventId::parse(id).map_err(|e| Error::Internal(e.to_string()))?,
            reference_hashes: BTreeMap::new(),
        }))
    }

    /// Waits for the lock of a room that the requester has joined.
    ///
    /// # Errors
    /// 403 when they have not, whether the room exists or not.
    pub async fn lock_for(&self, requester: &Requester, id: &RoomId) -> Result<RoomGuard> {
        let refused = || Error::forbidden("You are not in this room");
        let mut guard = self.lock_if_any(id).await?.ok_or_else(refused)?;
        if guard.head().members.contains(&requester.nid) {
            Ok(guard)
        } else {
            Err(refused())
        }
    }

    /// Waits for the lock of a room that the requester is or was a member of, or is invited to or banned from.
    ///
    /// # Errors
    /// 403 when they never had to do with it, whether the room exists or not.
    pub async fn lock_known(&self, requester: &Requester, id: &RoomId) -> Result<RoomGuard> {
        let refused = || Error::forbidden("You are not in this room");
        let room = self.store.find_room(id)?.ok_or_else(refused)?;
        if !ROOM_MEMBERS.contains(&self.store.latest(), &(room, requester.nid))? {
            return Err(refused());
        }
        match self.lock_if_any(id).await? {
            Some(guard) => Ok(guard),
            // They were invited from outside, or knock. All that is known of the room are their memberships.
            None => self.lock_or_make(id, &version::UNNAMED).await,
        }
    }

    fn load(&self, nid: RoomNid, id: &RoomId) -> Result<Option<RoomHead>> {
        let view = self.store.latest();
        let Some(row) = ROOM_HEADS.get(&view, &(nid,))? else {
            return Ok(None);
        };
        let rules = version::rules(&row.version).ok_or_else(|| {
            Error::Internal(format!(
                "room version {} is stored but not known",
                row.version
            ))
        })?;
        let mut members = Members::new();
        for entry in ROOM_MEMBERS.scan(&view, &(nid,)) {
            let ((_, user), member) = entry?;
            if member.membership == MembershipState::Join && self.is_local(user)? {
                members.insert(user);
            }
        }
        Ok(Some(RoomHead {
            nid,
            id: id.to_owned(),
            rules,
            state: self.store.state(row.chain.tip)?,
            row,
            members,
            servers: servers::load(&view, nid)?,
        }))
    }

    /// Whether a user's account would be on this node.
    pub fn is_local(&self, user: UserNid) -> Result<bool> {
        Ok(self.store.user_id(user)?.server_name() == self.server_name)
    }
}

fn unsupported(version: &RoomVersionId) -> Error {
    Error::api(
        StatusCode::BAD_REQUEST,
        "M_UNSUPPORTED_ROOM_VERSION",
        format!("Room version {version} is not known here"),
    )
}
