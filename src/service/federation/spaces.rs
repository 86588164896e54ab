//! The rooms of a space as servers tell them to each other, one level at a time. See "Spaces" in the server-server API.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use http::Method;
use quick_cache::sync::Cache;
use ruma::{OwnedRoomId, OwnedServerName, RoomId, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Federation,
    directory::question,
    handshake::ask::{encoded, nonsense},
};
use crate::{
    error::{Error, Result},
    remote::Limits,
    service::rooms::{Child, Rooms, Stranger, Summary},
    store::View,
};

/// Somebody looks at a screen meanwhile, and there are more rooms to ask for.
const QUESTION: Limits = Limits {
    time: Duration::from_secs(8),
    body: 4 << 20,
};

/// How many children of a space are told of with it. Of the others a server asks itself.
const MOST_CHILDREN: usize = 100;

/// How many answers are kept.
const KEPT: usize = 500;

/// How long an answer is good, in milliseconds.
const FRESH: u64 = 5 * 60 * 1000;

/// What is told of a room in the tree of a space.
#[derive(Clone, Debug, Serialize)]
pub struct Node {
    /// What room it is.
    #[serde(flatten)]
    pub summary: Summary,
    /// The stripped events by which it names its children, if it is a space.
    pub children_state: Vec<Box<RawValue>>,
}

/// What another server tells of a room.
#[derive(Debug)]
pub struct Told {
    /// What room it is.
    pub summary: Summary,
    /// What belongs to it.
    pub children: Vec<Child>,
    /// What is told of some of the children at once.
    pub known: HashMap<OwnedRoomId, Summary>,
    /// Those of the children of which this node may not be told.
    pub closed: HashSet<OwnedRoomId>,
}

/// Answers of other servers, each with the time when it came.
pub struct ToldRooms(Cache<(OwnedRoomId, bool), (u64, Arc<Told>)>);

impl Default for ToldRooms {
    fn default() -> Self {
        Self(Cache::new(KEPT))
    }
}

/// An answer to `/hierarchy`.
#[derive(Serialize)]
struct Answer {
    room: Node,
    children: Vec<Summary>,
    inaccessible_children: Vec<OwnedRoomId>,
}

impl Rooms {
    /// A room in the tree of a space, and its children, if this node takes part in it and somebody may know of it.
    ///
    /// # Errors
    /// When the store fails.
    pub fn node(
        &self,
        view: &View,
        room: &RoomId,
        who: Stranger<'_>,
        suggested_only: bool,
    ) -> Result<Option<(Summary, Vec<Child>)>> {
        let Some(summary) = self.summary_here(view, room)? else {
            return Ok(None);
        };
        if !self.may_know(view, &summary, who)? {
            return Ok(None);
        }
        let mut children = Vec::new();
        if summary.is_space()
            && let Some(nid) = self.nid_of(room)?
        {
            children = self.children(view, nid)?;
            children.retain(|child| child.suggested || !suggested_only);
        }
        Ok(Some((summary, children)))
    }

    /// What may be told of a room that this node takes part in.
    ///
    /// # Errors
    /// When the store fails.
    pub fn summary_here(&self, view: &View, room: &RoomId) -> Result<Option<Summary>> {
        match self.nid_of(room)? {
            Some(nid) if self.has_server(view, nid, self.server_name())? => self.summary(view, nid),
            _ => Ok(None),
        }
    }
}

impl Federation {
    /// A room and what belongs to it, as `GET /_matrix/federation/v1/hierarchy/{roomId}` answers it.
    ///
    /// # Errors
    /// 404 when this node does not take part in the room, or the server may not know of it.
    pub async fn hierarchy(
        &self,
        origin: &ServerName,
        room: OwnedRoomId,
        suggested_only: bool,
    ) -> Result<String> {
        let origin = origin.to_owned();
        self.read(move |rooms, view| {
            let who = Stranger::Server(&origin);
            let node = rooms.node(view, &room, who, suggested_only)?;
            let (summary, listed) = node.ok_or_else(|| Error::not_found("The room"))?;
            let (mut children, mut closed) = (Vec::new(), Vec::new());
            for child in listed.iter().take(MOST_CHILDREN) {
                match rooms.summary_here(view, &child.room)? {
                    Some(summary) if rooms.may_know(view, &summary, who)? => children.push(summary),
                    Some(_) => closed.push(child.room.clone()),
                    None => {}
                }
            }
            let answer = Answer {
                room: Node {
                    summary,
                    children_state: listed.into_iter().map(|child| child.json).collect(),
                },
                children,
                inaccessible_children: closed,
            };
            serde_json::to_string(&answer).map_err(|e| Error::Internal(e.to_string()))
        })
        .await
    }

    /// What another server tells of a room: the first that knows it, of those given. What was told lately is not asked
    /// for again.
    ///
    /// # Errors
    /// Why the last of the servers did not help, or that there is none to ask; 429 when too many ask.
    pub async fn ask_hierarchy(
        &self,
        room: &RoomId,
        via: &[OwnedServerName],
        suggested_only: bool,
    ) -> Result<Arc<Told>> {
        let key = (room.to_owned(), suggested_only);
        let now = self.0.clock.now_ms();
        if let Some((at, told)) = self.0.told_rooms.0.get(&key)
            && now < at + FRESH
        {
            return Ok(told);
        }
        let _question = question()?;
        let path = format!(
            "/_matrix/federation/v1/hierarchy/{}?suggested_only={suggested_only}",
            encoded(room.as_str())
        );
        let mut failure = Error::not_found("The room");
        for server in via
            .iter()
            .filter(|server| **server != self.0.keyring.name())
        {
            let answer =
                self.0
                    .remote
                    .send_signed(server, Method::GET, &path, Vec::new(), QUESTION);
            let told = match answer.await {
                Ok(answer) => read(server, room, answer.body(), suggested_only),
                Err(error) => Err(error.into()),
            };
            match told {
                Ok(told) => {
                    let told = Arc::new(told);
                    self.0.told_rooms.0.insert(key, (now, told.clone()));
                    return Ok(told);
                }
                Err(error) => {
                    tracing::debug!(%room, %server, %error, "a server did not tell of a room");
                    failure = error;
                }
            }
        }
        Err(failure)
    }
}

/// Reads an answer to `/hierarchy`. What makes no sense in it is left out.
fn read(server: &ServerName, room: &RoomId, body: &[u8], suggested_only: bool) -> Result<Told> {
    #[derive(Deserialize)]
    struct Body {
        room: Box<RawValue>,
        #[serde(default)]
        children: Vec<Box<RawValue>>,
        #[serde(default)]
        inaccessible_children: Vec<String>,
    }
    #[derive(Deserialize)]
    struct State {
        #[serde(default)]
        children_state: Vec<Box<RawValue>>,
    }
    let body: Body = serde_json::from_slice(body).map_err(|e| nonsense(server, e))?;
    let summary: Summary =
        serde_json::from_str(body.room.get()).map_err(|e| nonsense(server, e))?;
    if summary.room_id != room {
        return Err(nonsense(server, "it tells of another room"));
    }
    let state: State = serde_json::from_str(body.room.get()).map_err(|e| nonsense(server, e))?;
    let told = state.children_state.into_iter();
    let mut children: Vec<Child> = told.filter_map(|json| Child::told(&json)).collect();
    children.retain(|child| child.suggested || !suggested_only);
    children.sort_by(Child::cmp_order);
    let named: HashSet<&RoomId> = children.iter().map(|child| &*child.room).collect();
    let known = body.children.iter();
    let known = known.filter_map(|json| serde_json::from_str::<Summary>(json.get()).ok());
    let known = known.filter(|summary| named.contains(&*summary.room_id));
    let closed = body.inaccessible_children.iter();
    let closed = closed.filter_map(|id| RoomId::parse(id).ok());
    Ok(Told {
        known: known
            .map(|summary| (summary.room_id.clone(), summary))
            .collect(),
        closed: closed.filter(|id| named.contains(&**id)).collect(),
        summary,
        children,
    })
}
