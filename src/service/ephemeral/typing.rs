//! Who is typing, in memory: gone with the node, and after a while by itself.
//!
//! Only where somebody types is written down, so that whoever was told so is told after a restart that it is over.
//!
//! See "Typing Notifications" in the client-server API.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use ruma::{OwnedRoomId, RoomId, UserId};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock::Clock,
    error::{Error, Result},
    protocol::{
        format::push_string,
        ids::{Position, RoomNid, UserNid},
    },
    service::{
        Requester,
        rooms::{Rooms, ignored},
    },
    store::{self, Members, Store, View, notify::Kinds, outgoing::Note, schema::TYPING},
};

/// The longest that somebody types without saying so again; as long as Synapse allows.
const MAX_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a user of another server types if nothing more is said. Synapse repeats it every 40 seconds.
const TIMEOUT_OF_OTHERS: Duration = Duration::from_secs(60);

/// Who is typing where.
pub struct Typing {
    store: Store,
    clock: Clock,
    rooms: Arc<Rooms>,
    tasks: TaskTracker,
    stop: CancellationToken,
    typists: Mutex<Typists>,
    /// Told when somebody may stop sooner than whoever was thought to be the first.
    sooner: Arc<Notify>,
}

#[derive(Default)]
struct Typists {
    rooms: HashMap<RoomNid, Typed>,
    /// When each one stops, soonest first.
    ends: BTreeSet<(Instant, RoomNid, UserNid)>,
    /// Whether a task waits for the soonest end.
    watched: bool,
}

/// A room where somebody types or has typed.
struct Typed {
    id: OwnedRoomId,
    until: BTreeMap<UserNid, Instant>,
    /// When somebody has begun or stopped the last time.
    changed: Position,
}

impl Typing {
    /// Nobody types any more. Whoever stops by themselves is noticed by one of `tasks`, until `stop` is cancelled.
    ///
    /// # Errors
    /// When the store fails.
    pub fn open(
        store: Store,
        clock: Clock,
        rooms: Arc<Rooms>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self> {
        let view = store.latest();
        let mut typists = Typists::default();
        for row in TYPING.scan(&view, &()).collect::<store::Result<Vec<_>>>()? {
            let ((room,), ()) = row;
            let typed = Typed {
                id: (*store.room_id(room)?).clone(),
                until: BTreeMap::new(),
                // The store has drawn a position when it was opened, which nobody was told before.
                changed: view.position(),
            };
            typists.rooms.insert(room, typed);
        }
        Ok(Self {
            store,
            clock,
            rooms,
            tasks,
            stop,
            typists: Mutex::new(typists),
            sooner: Arc::default(),
        })
    }

    /// A user types for as long as `timeout`, or has stopped.
    ///
    /// # Errors
    /// 403 when the user is another one, or not in the room.
    pub async fn set(
        self: &Arc<Self>,
        requester: &Requester,
        room: &RoomId,
        user: &UserId,
        timeout: Option<Duration>,
    ) -> Result<()> {
        if user != requester.user_id {
            return Err(Error::forbidden("You can not type for others"));
        }
        let mut guard = self.rooms.lock_for(requester, room).await?;
        let (nid, members) = (guard.head().nid, guard.head().members.clone());
        let until = timeout.map(|timeout| self.clock.instant() + timeout.min(MAX_TIMEOUT));
        if self.note((nid, room), requester.nid, until) {
            let news = [(requester.nid, until.is_some())];
            self.announce(nid, members, &news)?;
        }
        if until.is_some() {
            self.watch();
        }
        Ok(())
    }

    /// Another server says that a user of its types, or has stopped; it was seen that the user is in the room.
    ///
    /// # Errors
    /// 404 when there is no such room.
    pub async fn set_of_other(
        self: &Arc<Self>,
        room: &RoomId,
        user: UserNid,
        typing: bool,
    ) -> Result<()> {
        let mut guard = self.rooms.lock(room).await?;
        let (nid, members) = (guard.head().nid, guard.head().members.clone());
        let until = typing.then(|| self.clock.instant() + TIMEOUT_OF_OTHERS);
        if self.note((nid, room), user, until) {
            // Their own server tells the others.
            self.announce(nid, members, &[])?;
        }
        if until.is_some() {
            self.watch();
        }
        Ok(())
    }

    /// The content of `m.typing` if it has changed after `since`; without `since`, if anybody types whom the asker does
    /// not ignore.
    ///
    /// # Errors
    /// When the store fails.
    pub fn since(
        &self,
        view: &View,
        room: RoomNid,
        since: Option<Position>,
        asker: &Requester,
    ) -> Result<Option<String>> {
        let typists = self.typists.lock();
        let Some(typed) = typists.rooms.get(&room) else {
            return Ok(None);
        };
        let is_news = match since {
            Some(since) => typed.changed > since,
            None => !typed.until.is_empty(),
        };
        if !is_news {
            return Ok(None);
        }
        let unwanted = ignored(view, asker.nid)?;
        let mut users = Vec::new();
        for user in typed.until.keys() {
            let user = self.store.user_id(*user)?;
            if !unwanted.contains(&*user) {
                users.push(user);
            }
        }
        if users.is_empty() && since.is_none() {
            return Ok(None);
        }
        let mut content = String::from("{\"user_ids\":[");
        for (index, user) in users.iter().enumerate() {
            if index > 0 {
                content.push(',');
            }
            push_string(&mut content, user.as_str());
        }
        content.push_str("]}");
        Ok(Some(content))
    }

    /// Keeps it in mind; true if somebody began or stopped, false if they just go on.
    fn note(&self, (nid, id): (RoomNid, &RoomId), user: UserNid, until: Option<Instant>) -> bool {
        let mut typists = self.typists.lock();
        let Typists { rooms, ends, .. } = &mut *typists;
        let typed = rooms.entry(nid).or_insert_with(|| Typed {
            id: id.to_owned(),
            until: BTreeMap::new(),
            changed: Position::default(),
        });
        let before = match until {
            Some(until) => typed.until.insert(user, until),
            None => typed.until.remove(&user),
        };
        if let Some(before) = before {
            ends.remove(&(before, nid, user));
        }
        if let Some(until) = until {
            ends.insert((until, nid, user));
        }
        before.is_some() != until.is_some()
    }

    fn announce(&self, room: RoomNid, members: Members, news: &[(UserNid, bool)]) -> Result<()> {
        // Nobody who types waits for the disk.
        let _not_awaited = self.store.commit(|batch| {
            let position = batch.position();
            if let Some(typed) = self.typists.lock().rooms.get_mut(&room) {
                typed.changed = position;
                if typed.until.is_empty() {
                    TYPING.delete(batch, &(room,));
                } else {
                    TYPING.put(batch, &(room,), &());
                }
            }
            batch.touch_users(position, members, room, Kinds::TYPING);
            for (user, typing) in news.iter().copied() {
                batch.tell_servers(position, Note::Typing { room, user, typing });
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Makes sure that a task waits for the soonest end.
    fn watch(self: &Arc<Self>) {
        if std::mem::replace(&mut self.typists.lock().watched, true) {
            self.sooner.notify_one();
            return;
        }
        let (typing, clock) = (Arc::downgrade(self), self.clock.clone());
        let (sooner, stop) = (self.sooner.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            while let Some(wait) = next_end(&typing) {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sooner.notified() => {}
                    () = clock.sleep(wait) => {}
                }
                if let Some(typing) = typing.upgrade()
                    && let Err(error) = typing.expire().await
                {
                    tracing::error!(%error, "it could not be told who has stopped typing");
                }
            }
        });
    }

    /// Ends all whose time is over.
    async fn expire(&self) -> Result<()> {
        let now = self.clock.instant();
        let mut quiet: HashMap<RoomNid, (OwnedRoomId, Vec<(UserNid, bool)>)> = HashMap::new();
        {
            let mut typists = self.typists.lock();
            let Typists { rooms, ends, .. } = &mut *typists;
            while let Some(&(end, room, user)) = ends.first().filter(|(end, ..)| *end <= now) {
                ends.remove(&(end, room, user));
                if let Some(typed) = rooms.get_mut(&room) {
                    typed.until.remove(&user);
                    let (_, news) = quiet
                        .entry(room)
                        .or_insert_with(|| (typed.id.clone(), Vec::new()));
                    news.push((user, false));
                }
            }
        }
        for (nid, (id, news)) in quiet {
            let mut own = Vec::with_capacity(news.len());
            for (user, typing) in news {
                // Of others their own server tells.
                if self.store.user_id(user)?.server_name() == self.rooms.server_name() {
                    own.push((user, typing));
                }
            }
            let members = self.rooms.lock(&id).await?.head().members.clone();
            self.announce(nid, members, &own)?;
        }
        Ok(())
    }
}

/// How long it is to the soonest end; none when nobody types, and then nobody waits any more.
fn next_end(typing: &Weak<Typing>) -> Option<Duration> {
    let typing = typing.upgrade()?;
    let mut typists = typing.typists.lock();
    let soonest = typists.ends.first().map(|(end, ..)| *end);
    typists.watched = soonest.is_some();
    soonest.map(|end| end.saturating_duration_since(typing.clock.instant()))
}
