//! Which threads a user follows: MSC4306. Apps follow a thread by themselves when somebody writes something in it that
//! matters to their user, unless the user has left it after that was written.
//!
//! One row for each thread that the user has ever followed, and its last change in the order of changes, of which clients
//! are told (MSC4308).

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use http::StatusCode;
use parking_lot::Mutex;
use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId};
use serde::Serialize;

use super::{
    Requester,
    rooms::{Rooms, Stored},
};
use crate::{
    error::{Error, Result},
    protocol::ids::{Position, UserNid},
    store::{
        Store, View,
        notify::Kinds,
        schema::{
            Following, THREAD_SUBSCRIPTION_CHANGES, THREAD_SUBSCRIPTIONS, ThreadSubscriptionRow,
        },
    },
};

/// The threads that users follow.
pub struct Threads {
    store: Store,
    rooms: Arc<Rooms>,
    /// Held from reading a row until it is written.
    changing: Mutex<()>,
}

/// A thread that is followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Followed {
    /// Whether an app has decided it.
    pub automatic: bool,
    /// When it was decided; the greater one is the newer.
    pub bump_stamp: u64,
}

/// A thread that is not followed any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unfollowed {
    /// When it was decided; the greater one is the newer.
    pub bump_stamp: u64,
}

/// Things about threads, by room and root.
pub type OfThreads<T> = BTreeMap<OwnedRoomId, BTreeMap<OwnedEventId, T>>;

/// The last changes of what threads a user follows; of each thread only the newest.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ThreadChanges {
    /// Those that are followed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub subscribed: OfThreads<Followed>,
    /// Those that are not followed any more.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unsubscribed: OfThreads<Unfollowed>,
    /// If there are more: these are before this position, or at it.
    #[serde(skip)]
    pub more_until: Option<Position>,
}

impl ThreadChanges {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.subscribed.is_empty() && self.unsubscribed.is_empty()
    }
}

impl Threads {
    /// How many changes one answer tells if nothing is said.
    pub const USUAL: usize = 100;

    /// How many at most.
    pub const MOST: usize = 512;

    /// Nothing is kept in memory.
    pub fn new(store: Store, rooms: Arc<Rooms>) -> Self {
        Self {
            store,
            rooms,
            changing: Mutex::new(()),
        }
    }

    /// Has the user follow a thread; `cause` is the event in it for which an app does that by itself. Who follows it by
    /// their own will goes on to do so.
    ///
    /// # Errors
    /// 404 for events that the user can not see, 400 when the cause is not in the thread, 409 when the user has left the
    /// thread after it.
    pub async fn subscribe(
        &self,
        requester: &Requester,
        room: &RoomId,
        root: &EventId,
        cause: Option<&EventId>,
    ) -> Result<()> {
        let root = self.seen(requester, room, root)?;
        let cause = match cause {
            Some(cause) => {
                let cause = self.seen(requester, room, cause)?;
                let relation = cause.event.header.relation.as_ref();
                if relation.is_none_or(|relation| {
                    relation.rel_type != "m.thread" || relation.event_id != root.event.header.id
                }) {
                    return Err(Error::api(
                        StatusCode::BAD_REQUEST,
                        "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD",
                        "The event that it is followed for must be in the thread",
                    ));
                }
                Some(cause)
            }
            None => None,
        };
        let following = match cause {
            Some(_) => Following::Automatically,
            None => Following::Willingly,
        };
        self.change(requester, &root, |before| match (before, &cause) {
            (Some(Following::Willingly), _) | (Some(Following::Automatically), Some(_)) => Ok(None),
            (Some(Following::LeftAt(left)), Some(cause)) => {
                let order = cause.facts.order;
                if order.is_some_and(|order| order > left.live_order()) {
                    Ok(Some(following))
                } else {
                    Err(Error::api(
                        StatusCode::CONFLICT,
                        "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION",
                        "The user has left the thread after that",
                    ))
                }
            }
            _ => Ok(Some(following)),
        })
        .await
    }

    /// Has the user follow a thread no more; who does not follow it need not be told.
    ///
    /// # Errors
    /// 404 for a thread that the user can not see.
    pub async fn unsubscribe(
        &self,
        requester: &Requester,
        room: &RoomId,
        root: &EventId,
    ) -> Result<()> {
        let root = self.seen(requester, room, root)?;
        let now = self.store.latest().position();
        self.change(requester, &root, |before| {
            let follows = matches!(
                before,
                Some(Following::Willingly | Following::Automatically)
            );
            Ok(follows.then_some(Following::LeftAt(now)))
        })
        .await
    }

    /// Whether an app has decided that the user follows a thread; none if they do not follow it.
    ///
    /// # Errors
    /// 404 for a thread that the user can not see.
    pub fn subscription(
        &self,
        requester: &Requester,
        room: &RoomId,
        root: &EventId,
    ) -> Result<Option<bool>> {
        let root = self.seen(requester, room, root)?;
        let row = THREAD_SUBSCRIPTIONS.get(&self.store.view(), &(requester.nid, root.nid))?;
        Ok(match row.map(|row| row.following) {
            Some(Following::Willingly) => Some(false),
            Some(Following::Automatically) => Some(true),
            Some(Following::LeftAt(_)) | None => None,
        })
    }

    /// The newest changes for a user after a position and up to another, at most `limit`. The cost grows with what is told
    /// alone.
    ///
    /// # Errors
    /// When the store fails.
    pub fn changes(
        &self,
        view: &View,
        user: UserNid,
        (after, until): (Position, Position),
        limit: usize,
    ) -> Result<ThreadChanges> {
        let bounds = (
            Bound::Excluded((user, after)),
            Bound::Included((user, until)),
        );
        let mut changes = ThreadChanges::default();
        if until <= after {
            return Ok(changes);
        }
        let rows = THREAD_SUBSCRIPTION_CHANGES.range_back(view, &(user,), bounds);
        for (count, row) in rows.enumerate() {
            let ((_, position), (root,)) = row?;
            if count == limit {
                changes.more_until = Some(position);
                break;
            }
            let Some(row) = THREAD_SUBSCRIPTIONS.get(view, &(user, root))? else {
                continue;
            };
            let root = self.rooms.event(view, root)?;
            let id = root.event.header.id.clone();
            let room = (*self.store.room_id(row.room)?).clone();
            let bump_stamp = position.0;
            let automatic = row.following == Following::Automatically;
            if matches!(row.following, Following::LeftAt(_)) {
                let threads = changes.unsubscribed.entry(room).or_default();
                threads.insert(id, Unfollowed { bump_stamp });
            } else {
                let followed = Followed {
                    automatic,
                    bump_stamp,
                };
                let threads = changes.subscribed.entry(room).or_default();
                threads.insert(id, followed);
            }
        }
        Ok(changes)
    }

    /// An event of the room that the user may see.
    fn seen(&self, requester: &Requester, room: &RoomId, id: &EventId) -> Result<Arc<Stored>> {
        let missing = || Error::not_found("The event");
        let view = self.store.view();
        let nid = self.store.find_room(room)?.ok_or_else(missing)?;
        let sight = self.rooms.sight(&view, nid, requester)?;
        let seen = sight.find(room, id)?.ok_or_else(missing)?;
        Ok(seen.stored)
    }

    /// Writes what `decide` makes of what is so, unless nothing changes.
    async fn change(
        &self,
        requester: &Requester,
        root: &Stored,
        decide: impl FnOnce(Option<Following>) -> Result<Option<Following>>,
    ) -> Result<()> {
        let user = requester.nid;
        let room = self.store.room_nid(&root.event.header.room_id)?;
        let position = {
            let _changing = self.changing.lock();
            let view = self.store.latest();
            let key = (user, root.nid);
            let before = THREAD_SUBSCRIPTIONS.get(&view, &key)?;
            match decide(before.as_ref().map(|row| row.following))? {
                None => view.position(),
                Some(following) => {
                    let committed = self.store.commit(|batch| {
                        let position = batch.position();
                        let row = ThreadSubscriptionRow {
                            room,
                            following,
                            position,
                        };
                        if let Some(before) = before {
                            THREAD_SUBSCRIPTION_CHANGES.delete(batch, &(user, before.position));
                        }
                        THREAD_SUBSCRIPTION_CHANGES.put(batch, &(user, position), &(root.nid,));
                        THREAD_SUBSCRIPTIONS.put(batch, &key, &row);
                        batch.touch_user(position, user, None, Kinds::THREADS);
                        Ok(())
                    })?;
                    committed.position
                }
            }
        };
        Ok(self.store.durable(position).await?)
    }
}
