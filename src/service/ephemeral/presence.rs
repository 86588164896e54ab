//! Who is there: in memory, as the apps of each user say it and as their silence says it.
//!
//! Changes are told together, at most once in a [`PAUSE`], so that a busy morning does not wake everybody for each one.
//! See "Presence" in the client-server API.

mod person;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use ruma::{OwnedUserId, UserId, events::room::member::MembershipState, presence::PresenceState};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::person::Status;
use self::person::{Elsewhere, Person, State};
use crate::{
    clock::Clock,
    error::{Error, Result},
    protocol::ids::{Position, RoomNid, UserNid},
    service::Requester,
    store::{
        Store, View,
        notify::Kinds,
        outgoing::Note,
        schema::{PRESENCE, PresenceRow, ROOM_MEMBERS, USER_ROOMS},
    },
};

/// How long changes are collected before they are told.
const PAUSE: Duration = Duration::from_secs(1);

/// How often it is looked who has become silent.
const ROUND: Duration = Duration::from_secs(10);

/// The longest text that a user may say about themselves, in bytes; all who share a room get it.
const MAX_STATUS: usize = 2048;

/// Who is there.
pub struct Presence {
    store: Store,
    clock: Clock,
    tasks: TaskTracker,
    stop: CancellationToken,
    people: Mutex<People>,
    /// Told when there is something to tell.
    news: Arc<Notify>,
}

#[derive(Default)]
struct People {
    all: HashMap<UserNid, Person>,
    /// Those of whom others were told, in that order.
    told: BTreeSet<(Position, UserNid)>,
    /// Those who have changed and of whom nobody was told.
    untold: HashSet<UserNid>,
    /// Whether a task looks after them.
    watched: bool,
}

/// What another server says of one of its users.
#[derive(Clone, Debug)]
pub struct Told {
    /// Whether they are there.
    pub state: PresenceState,
    /// What they say about it.
    pub status_msg: Option<String>,
    /// How long they have done nothing, in milliseconds.
    pub last_active_ago: Option<u64>,
    /// Whether they are doing something right now.
    pub currently_active: bool,
}

/// A sync that is going on; when it is dropped, its device begins to be gone.
#[must_use = "the device is gone when this is dropped"]
pub struct Syncing {
    presence: Arc<Presence>,
    user: UserNid,
    device: Option<String>,
}

impl Presence {
    /// Nobody is there. Silence is noticed by one of `tasks`, until `stop` is cancelled.
    pub fn new(store: Store, clock: Clock, tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self {
            store,
            clock,
            tasks,
            stop,
            people: Mutex::default(),
            news: Arc::default(),
        }
    }

    /// A user says whether they are there.
    ///
    /// # Errors
    /// 403 when it is about another user, 400 when it can not be.
    pub async fn set(
        self: &Arc<Self>,
        requester: &Requester,
        user: &UserId,
        state: &PresenceState,
        status_msg: Option<String>,
    ) -> Result<()> {
        if user != requester.user_id {
            return Err(Error::forbidden("You can not speak for others"));
        }
        let state = State::said(state)
            .ok_or_else(|| Error::invalid_param("There is no such state of presence"))?;
        if status_msg
            .as_ref()
            .is_some_and(|text| text.len() > MAX_STATUS)
        {
            return Err(Error::invalid_param("The status message is too long"));
        }
        let now = self.clock.now_ms();
        let row = PresenceRow {
            state: state.name().to_owned(),
            status_msg: status_msg.clone(),
            last_active_ts: now,
        };
        let news = self.change(requester.nid, |person| {
            let device = person.devices.entry(requester.device_id.clone());
            let device = device.or_default();
            (device.state, device.seen) = (state, now);
            if state == State::Online {
                person.last_active = now;
            }
            std::mem::replace(&mut person.status_msg, status_msg.clone()) != status_msg
        })?;
        if !news {
            return Ok(());
        }
        let committed = self.store.commit(|batch| {
            PRESENCE.put(batch, &(requester.nid,), &row);
            Ok(())
        })?;
        Ok(self.store.durable(committed.position).await?)
    }

    /// A device begins to sync and says whether its user is there; none if the sync shall not be noticed.
    ///
    /// # Errors
    /// When the store fails.
    pub fn syncing(
        self: &Arc<Self>,
        requester: &Requester,
        state: &PresenceState,
    ) -> Result<Option<Syncing>> {
        let Some(state) = State::said(state).filter(|state| *state != State::Offline) else {
            return Ok(None);
        };
        let now = self.clock.now_ms();
        self.change(requester.nid, |person| {
            let device = person.devices.entry(requester.device_id.clone());
            let device = device.or_default();
            let was_gone = device.is_gone(now);
            device.syncs += 1;
            if device.by_sync.replace(state) != Some(state) || was_gone {
                device.state = state;
                if state == State::Online {
                    person.last_active = now;
                }
            }
            false
        })?;
        Ok(Some(Syncing {
            presence: self.clone(),
            user: requester.nid,
            device: requester.device_id.clone(),
        }))
    }

    /// Another server says how a user of its is. Whoever is in no room with anybody here is not remembered.
    ///
    /// # Errors
    /// When the store fails.
    pub fn set_of_other(self: &Arc<Self>, user: UserNid, told: Told) -> Result<()> {
        let is_long = |text: &String| text.len() > MAX_STATUS;
        let Some(state) = State::said(&told.state) else {
            return Ok(());
        };
        if told.status_msg.as_ref().is_some_and(is_long)
            || rooms_of(&self.store.latest(), user)?.is_empty()
        {
            return Ok(());
        }
        let now = self.clock.now_ms();
        let ago = told.last_active_ago.filter(|_| !told.currently_active);
        self.change(user, |person| {
            person.elsewhere = Some(Elsewhere { state, said: now });
            person.last_active = now.saturating_sub(ago.unwrap_or(0));
            std::mem::replace(&mut person.status_msg, told.status_msg.clone()) != told.status_msg
        })?;
        Ok(())
    }

    /// A user has done something, such as sending a message.
    ///
    /// # Errors
    /// When the store fails.
    pub fn active(self: &Arc<Self>, user: UserNid) -> Result<()> {
        let now = self.clock.now_ms();
        if self.people.lock().all.contains_key(&user) {
            self.change(user, |person| {
                person.last_active = now;
                false
            })?;
        }
        Ok(())
    }

    /// How a user is, for another one or themselves.
    ///
    /// # Errors
    /// 403 when the two share no room, whether the user exists or not.
    pub fn get(&self, requester: &Requester, user: &UserId) -> Result<Status> {
        let refused = || Error::forbidden("You do not share a room with this user");
        let view = self.store.view();
        let nid = self.store.find_user(user)?.ok_or_else(refused)?;
        if nid != requester.nid {
            let own = rooms_of(&view, requester.nid)?;
            if !shared(&view, nid, own.iter())? {
                return Err(refused());
            }
        }
        let now = self.clock.now_ms();
        if let Some(person) = self.people.lock().all.get(&nid) {
            return Ok(person.status(now));
        }
        Ok(known(&view, nid)?.status(now))
    }

    /// The `m.presence` events of those whom the asker may know and who have changed after `since`; without `since`, of
    /// those who are there.
    ///
    /// # Errors
    /// When the store fails.
    pub fn since(
        &self,
        view: &View,
        since: Option<Position>,
        asker: &Requester,
    ) -> Result<Vec<(OwnedUserId, String)>> {
        let now = self.clock.now_ms();
        let mut candidates = Vec::new();
        {
            let people = self.people.lock();
            let after = since.map_or(0, |since| since.0 + 1);
            for (_, user) in people.told.range((Position(after), UserNid(0))..) {
                if let Some(person) = people.all.get(user)
                    && (since.is_some() || person.state > State::Offline)
                {
                    candidates.push((*user, person.rooms.clone(), person.status(now)));
                }
            }
        }
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        let own = rooms_of(view, asker.nid)?;
        let mut events = Vec::new();
        for (user, rooms, status) in candidates {
            // What was known when the change was told is only a hint; the view decides.
            if user == asker.nid || shared(view, user, own.intersection(&rooms))? {
                let user = self.store.user_id(user)?;
                events.push(((*user).clone(), status.event(&user)));
            }
        }
        Ok(events)
    }

    /// The `m.presence` events of those among `users` who are there. What is about to be told anyway is left out.
    ///
    /// # Errors
    /// When the store fails.
    pub fn of(
        &self,
        users: impl IntoIterator<Item = UserNid>,
    ) -> Result<Vec<(OwnedUserId, String)>> {
        let now = self.clock.now_ms();
        let there: Vec<_> = {
            let people = self.people.lock();
            let told = users
                .into_iter()
                .filter(|user| !people.untold.contains(user));
            let people = told.filter_map(|user| Some((user, people.all.get(&user)?)));
            let there = people.filter(|(_, person)| person.state > State::Offline);
            there
                .map(|(user, person)| (user, person.status(now)))
                .collect()
        };
        let mut events = Vec::with_capacity(there.len());
        for (user, status) in there {
            let user = self.store.user_id(user)?;
            events.push(((*user).clone(), status.event(&user)));
        }
        Ok(events)
    }

    /// Changes a person, and sees to it that others are told of what that makes of them. `change` says whether there
    /// is something to tell in any case.
    fn change(
        self: &Arc<Self>,
        user: UserNid,
        change: impl FnOnce(&mut Person) -> bool,
    ) -> Result<bool> {
        let now = self.clock.now_ms();
        if !self.people.lock().all.contains_key(&user) {
            let person = known(&self.store.view(), user)?;
            self.people.lock().all.entry(user).or_insert(person);
        }
        let mut people = self.people.lock();
        let People {
            all,
            untold,
            watched,
            ..
        } = &mut *people;
        let Some(person) = all.get_mut(&user) else {
            return Ok(false);
        };
        let has_changed = change(person);
        let is_news = person.judge(now) || has_changed;
        if is_news {
            untold.insert(user);
            self.news.notify_one();
        }
        if !std::mem::replace(watched, true) {
            self.watch();
        }
        Ok(is_news)
    }

    /// Tells what has changed and looks who has become silent, as long as anybody is there.
    fn watch(self: &Arc<Self>) {
        let (presence, clock) = (Arc::downgrade(self), self.clock.clone());
        let (news, stop) = (self.news.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            while is_needed(&presence) {
                let next = async {
                    tokio::select! {
                        () = news.notified() => clock.sleep(PAUSE).await,
                        () = clock.sleep(ROUND) => {}
                    }
                };
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = next => {}
                }
                if let Some(presence) = presence.upgrade()
                    && let Err(error) = presence.round()
                {
                    tracing::error!(%error, "it could not be told who is there");
                }
            }
        });
    }

    /// Judges everybody anew and tells what has changed.
    fn round(&self) -> Result<()> {
        let now = self.clock.now_ms();
        let untold = {
            let mut people = self.people.lock();
            let People { all, untold, .. } = &mut *people;
            for (user, person) in all.iter_mut() {
                if person.judge(now) {
                    untold.insert(*user);
                }
            }
            std::mem::take(untold)
        };
        if untold.is_empty() {
            return Ok(());
        }
        let view = self.store.view();
        let mut rooms = Vec::with_capacity(untold.len());
        for user in untold {
            let id = self.store.user_id(user)?;
            rooms.push((user, id, Arc::new(rooms_of(&view, user)?)));
        }
        let _no_rows = self.store.commit(|batch| {
            let position = batch.position();
            let mut people = self.people.lock();
            let People { all, told, .. } = &mut *people;
            for (user, id, rooms) in rooms {
                if let Some(person) = all.get_mut(&user) {
                    // Of others their own server tells.
                    if person.elsewhere.is_none() {
                        let json = person.status(now).update(&id).into();
                        batch.tell_servers(position, Note::Presence { user, json });
                    }
                    told.remove(&(person.told, user));
                    told.insert((position, user));
                    (person.told, person.rooms) = (position, rooms);
                }
            }
            // Most people of a node share some room, and whoever does not finds nothing to tell.
            batch.touch_all(position, Kinds::PRESENCE);
            Ok(())
        })?;
        Ok(())
    }
}

impl Drop for Syncing {
    fn drop(&mut self) {
        let now = self.presence.clock.now_ms();
        let mut people = self.presence.people.lock();
        let person = people.all.get_mut(&self.user);
        if let Some(device) = person.and_then(|person| person.devices.get_mut(&self.device)) {
            device.syncs = device.syncs.saturating_sub(1);
            device.seen = now;
        }
    }
}

/// Whether there is anything to tell or anybody whose silence is to be noticed.
fn is_needed(presence: &Weak<Presence>) -> bool {
    let Some(presence) = presence.upgrade() else {
        return false;
    };
    let mut people = presence.people.lock();
    let is_there = |person: &Person| {
        !person.devices.is_empty() || (person.elsewhere.is_some() && person.state > State::Offline)
    };
    let someone = people.all.values().any(is_there);
    people.watched = someone || !people.untold.is_empty();
    people.watched
}

fn rooms_of(view: &View, user: UserNid) -> Result<HashSet<RoomNid>> {
    let mut rooms = HashSet::new();
    for row in USER_ROOMS.scan(view, &(user,)) {
        let ((_, room), member) = row?;
        if member.membership == MembershipState::Join {
            rooms.insert(room);
        }
    }
    Ok(rooms)
}

/// What the store knows of somebody.
fn known(view: &View, user: UserNid) -> Result<Person> {
    let row = PRESENCE.get(view, &(user,))?;
    Ok(row.map(Person::known).unwrap_or_default())
}

/// Whether a user is in one of these rooms.
fn shared<'r>(
    view: &View,
    user: UserNid,
    rooms: impl IntoIterator<Item = &'r RoomNid>,
) -> Result<bool> {
    for room in rooms {
        let member = ROOM_MEMBERS.get(view, &(*room, user))?;
        if member.is_some_and(|member| member.membership == MembershipState::Join) {
            return Ok(true);
        }
    }
    Ok(false)
}
