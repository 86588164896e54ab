//! What users see of rooms that they are not in: the tree of a space, page by page, and the summary of one room.
//!
//! See "Spaces" and "Room summary" in the client-server API. Servers are asked only for rooms that this node does not
//! take part in, and for each page only a few.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use quick_cache::{Weighter, sync::Cache};
use ruma::{
    OwnedRoomId, OwnedServerName, RoomId, RoomOrAliasId, events::room::member::MembershipState,
};
use serde::Serialize;

use super::Lifecycle;
use crate::{
    error::{Error, Result},
    protocol::ids::UserNid,
    service::{
        Requester,
        federation::Node,
        rooms::{Child, Stranger, Summary},
    },
};

/// The most rooms of a page, and how many there are if nothing is said.
const MAX_PAGE: usize = 50;

/// The most rooms that are looked at for a page.
const MAX_LOOKED_AT: usize = 1000;

/// The most rooms that other servers are asked for, for a page.
const MAX_ASKED: usize = 10;

/// The most failures of servers that are waited for, for a page.
const MAX_FAILED: usize = 3;

/// The most servers that are asked for one room.
const MAX_VIA: usize = 3;

/// The most rooms that wait to be looked at. What is more in a tree is not told.
const MAX_WAITING: usize = 10_000;

/// How many rooms all walks that are remembered together may know of.
const KEPT: u64 = 200_000;

/// Which part of a space is asked for.
#[derive(Clone, Debug, Default)]
pub struct Branch {
    /// Where to go on: a token of an earlier answer.
    pub from: Option<String>,
    /// The most rooms to tell.
    pub limit: Option<u64>,
    /// How many levels below the space.
    pub max_depth: Option<u64>,
    /// Only rooms that are suggested.
    pub suggested_only: bool,
}

/// A page of the tree of a space.
#[derive(Debug, Serialize)]
pub struct Tree {
    /// The rooms, each before those that belong to it.
    pub rooms: Vec<Node>,
    /// Where to go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_batch: Option<String>,
}

/// What a user is told of one room.
#[derive(Debug, Serialize)]
pub struct RoomSummary {
    /// The room.
    #[serde(flatten)]
    pub summary: Summary,
    /// What the user is in the room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub membership: Option<MembershipState>,
}

/// Walks through spaces that may go on, by their tokens.
pub(super) struct Walks {
    kept: Cache<String, Arc<Walk>, Weigh>,
    count: AtomicU64,
}

impl Default for Walks {
    fn default() -> Self {
        Self {
            kept: Cache::with_weighter(1000, KEPT, Weigh),
            count: AtomicU64::default(),
        }
    }
}

#[derive(Clone)]
struct Weigh;

impl Weighter<String, Arc<Walk>> for Weigh {
    fn weight(&self, _: &String, walk: &Arc<Walk>) -> u64 {
        u64::try_from(walk.waiting.len() + walk.seen.len() + 1).unwrap_or(u64::MAX)
    }
}

/// How far somebody has come in a space.
#[derive(Clone)]
struct Walk {
    user: UserNid,
    root: OwnedRoomId,
    max_depth: Option<u64>,
    suggested_only: bool,
    /// The next one is the last.
    waiting: Vec<Step>,
    seen: HashSet<OwnedRoomId>,
}

/// A room to look at.
#[derive(Clone)]
struct Step {
    room: OwnedRoomId,
    via: Vec<OwnedServerName>,
    depth: u64,
    /// What the server that told of its space has told of it.
    known: Option<Summary>,
    /// That server says that this node may not know of it.
    closed: bool,
}

/// What may still be spent on a page.
struct Budget {
    looked_at: usize,
    asked: usize,
    failed: usize,
}

impl Budget {
    fn is_spent(&self) -> bool {
        self.looked_at >= MAX_LOOKED_AT || self.asked >= MAX_ASKED || self.failed >= MAX_FAILED
    }
}

impl Lifecycle {
    /// A page of the tree of a space, as far as the user may know of its rooms.
    ///
    /// # Errors
    /// 403 when they may not know of the space, or there is none; 400 for a token that does not belong to what is asked.
    pub async fn hierarchy(
        &self,
        requester: &Requester,
        root: &RoomId,
        branch: &Branch,
    ) -> Result<Tree> {
        let mut walk = self.walk(requester, root, branch)?;
        let limit = branch.limit.and_then(|limit| usize::try_from(limit).ok());
        let limit = limit.unwrap_or(MAX_PAGE).min(MAX_PAGE);
        if limit == 0 {
            return Err(Error::invalid_param("`limit` must be more than 0"));
        }
        let is_first = branch.from.is_none();
        let mut budget = Budget {
            looked_at: 0,
            asked: 0,
            failed: 0,
        };
        let mut rooms = Vec::new();
        while rooms.len() < limit && !budget.is_spent() {
            let Some(step) = walk.waiting.pop() else {
                break;
            };
            if !walk.seen.insert(step.room.clone()) {
                continue;
            }
            budget.looked_at += 1;
            let suggested_only = walk.suggested_only;
            let found = self
                .look_at(requester, &step, suggested_only, &mut budget)
                .await?;
            let Some((summary, children, told)) = found else {
                if is_first && rooms.is_empty() {
                    return Err(Error::forbidden(
                        "There is no such room, or it is not open to you",
                    ));
                }
                continue;
            };
            walk.put(&step, &children, told);
            rooms.push(Node {
                summary,
                children_state: children.into_iter().map(|child| child.json).collect(),
            });
        }
        let next_batch = (!walk.waiting.is_empty()).then(|| self.keep(walk));
        Ok(Tree { rooms, next_batch })
    }

    /// What a user, or anybody, may know of a room that they may not be in.
    ///
    /// # Errors
    /// 404 when there is none, or they may not know of it.
    pub async fn room_summary(
        &self,
        requester: Option<&Requester>,
        meant: &RoomOrAliasId,
        via: Vec<OwnedServerName>,
    ) -> Result<RoomSummary> {
        let missing = || Error::not_found("The room");
        let (room, mut via) = self.room_looked_for(meant, via).await?;
        let view = self.store.view();
        let who = requester.map_or(Stranger::Anybody, |who| Stranger::User(who.nid));
        let summary = match (self.rooms.summary_here(&view, &room)?, requester) {
            (Some(summary), _) => summary,
            (None, Some(requester)) => {
                via.extend(self.rooms.servers_that_may_know(&room, requester.nid)?);
                via.dedup();
                via.truncate(MAX_VIA);
                let told = self.federation.ask_hierarchy(&room, &via, false).await;
                match told {
                    Ok(told) => told.summary.clone(),
                    Err(error) if error.is_internal() => return Err(error),
                    Err(_) => return Err(missing()),
                }
            }
            // Strangers have nobody asked.
            (None, None) => return Err(missing()),
        };
        if !self.rooms.may_know(&view, &summary, who)? {
            return Err(missing());
        }
        let membership = match requester {
            None => None,
            Some(requester) => match self.rooms.nid_of(&room)? {
                Some(nid) => self.rooms.membership_at(&view, nid, requester.nid)?,
                None => None,
            }
            .or(Some(MembershipState::Leave)),
        };
        Ok(RoomSummary {
            summary,
            membership,
        })
    }

    /// Where a walk begins, or how far it has come.
    fn walk(&self, requester: &Requester, root: &RoomId, branch: &Branch) -> Result<Walk> {
        let Some(token) = &branch.from else {
            let mut walk = Walk {
                user: requester.nid,
                root: root.to_owned(),
                max_depth: branch.max_depth,
                suggested_only: branch.suggested_only,
                waiting: Vec::new(),
                seen: HashSet::new(),
            };
            walk.waiting.push(Step {
                room: root.to_owned(),
                via: self.rooms.servers_that_may_know(root, requester.nid)?,
                depth: 0,
                known: None,
                closed: false,
            });
            return Ok(walk);
        };
        let walk = self.walks.kept.get(token).filter(|walk| {
            // Whoever goes on need not say again how deep.
            walk.user == requester.nid
                && walk.root == root
                && branch
                    .max_depth
                    .is_none_or(|depth| walk.max_depth == Some(depth))
                && (!branch.suggested_only || walk.suggested_only)
        });
        walk.map(|walk| Walk::clone(&walk)).ok_or_else(|| {
            Error::invalid_param("`from` is unknown, too old, or from another question; start anew")
        })
    }

    fn keep(&self, walk: Walk) -> String {
        // Positions grow over restarts, so that no token comes twice.
        let count = self.walks.count.fetch_add(1, Ordering::Relaxed);
        let token = format!("{}_{count}", self.store.latest().position());
        self.walks.kept.insert(token.clone(), Arc::new(walk));
        token
    }

    /// A room and its children if the user may know of it, and what was told of the children with it.
    async fn look_at(
        &self,
        requester: &Requester,
        step: &Step,
        suggested_only: bool,
        budget: &mut Budget,
    ) -> Result<Option<Found>> {
        let view = self.store.view();
        let who = Stranger::User(requester.nid);
        if self.rooms.summary_here(&view, &step.room)?.is_some() {
            let node = self.rooms.node(&view, &step.room, who, suggested_only)?;
            return Ok(node.map(|(summary, children)| (summary, children, None)));
        }
        if step.closed {
            return Ok(None);
        }
        if let Some(summary) = step.known.as_ref().filter(|summary| !summary.is_space()) {
            let open = self.rooms.may_know(&view, summary, who)?;
            return Ok(open.then(|| (summary.clone(), Vec::new(), None)));
        }
        budget.asked += 1;
        let via = &step.via[..step.via.len().min(MAX_VIA)];
        let asked = self
            .federation
            .ask_hierarchy(&step.room, via, suggested_only);
        let told = match asked.await {
            Ok(told) => told,
            Err(error) if error.is_internal() => return Err(error),
            Err(error) => {
                let refused = matches!(&error, Error::Remote(e) if e.refusal().is_some());
                budget.failed += usize::from(!refused && !via.is_empty());
                return Ok(None);
            }
        };
        if !self.rooms.may_know(&view, &told.summary, who)? {
            return Ok(None);
        }
        let children = if told.summary.is_space() {
            told.children.clone()
        } else {
            Vec::new()
        };
        Ok(Some((told.summary.clone(), children, Some(told))))
    }
}

/// A room, its children, and what was told of these.
type Found = (
    Summary,
    Vec<Child>,
    Option<Arc<crate::service::federation::Told>>,
);

impl Walk {
    /// The children of a room come next, the first of them first.
    fn put(
        &mut self,
        step: &Step,
        children: &[Child],
        told: Option<Arc<crate::service::federation::Told>>,
    ) {
        if self.max_depth.is_some_and(|most| step.depth >= most) {
            return;
        }
        let room = MAX_WAITING.saturating_sub(self.waiting.len());
        let new = children
            .iter()
            .filter(|child| !self.seen.contains(&child.room));
        let new: Vec<_> = new.take(room).collect();
        for child in new.into_iter().rev() {
            let told = told.as_ref();
            self.waiting.push(Step {
                room: child.room.clone(),
                via: child.via.clone(),
                depth: step.depth + 1,
                known: told.and_then(|told| told.known.get(&child.room).cloned()),
                closed: told.is_some_and(|told| told.closed.contains(&child.room)),
            });
        }
    }
}
