//! What one commit writes, and who is to be woken when it is durable.

use rocksdb::WriteBatch;

use super::{
    codec::{Key, Part as _, Value},
    notify::{Change, Kinds},
    open::Inner,
    outgoing::Note,
    schema::{
        ACCOUNTS, CURRENT_STATE, EXTRA_TARGETS, INTRODUCTIONS, LASTING_EDUS, LEFT_SERVERS,
        LOCAL_EVENTS, PROFILES, PUBLIC_ROOMS, SEARCH_AGAIN, USER_DIRECTORY_CHANGES,
    },
};
use crate::protocol::ids::{EventNid, Position, RoomNid, ServerNid, UserNid};

/// A set of users; copies share their nodes.
pub type Members = imbl::HashSet<UserNid>;

/// Users for whom something has changed, written beside the row that changed.
#[derive(Clone, Debug)]
pub struct Touch {
    /// The users.
    pub users: Users,
    /// What changed.
    pub change: Change,
}

/// One user, the members of a room as a shared set, or all who are live.
#[derive(Clone, Debug)]
pub enum Users {
    /// One user.
    One(UserNid),
    /// All of these.
    Many(Members),
    /// Everybody who has synced lately.
    All,
}

/// Typed puts and deletes for one commit.
pub struct Batch<'s> {
    inner: &'s Inner,
    /// The position that was next when the batch began; no other batch has it.
    first: u64,
    pub(super) writes: WriteBatch,
    pub(super) next: u64,
    pub(super) touches: Vec<(Position, Touch)>,
    pub(super) outgoing: Vec<(Position, Note)>,
    pub(super) changed: Vec<RoomNid>,
    pub(super) texts: Vec<EventNid>,
}

impl<'s> Batch<'s> {
    pub(super) fn new(inner: &'s Inner, next: u64) -> Self {
        Self {
            inner,
            first: next,
            writes: WriteBatch::default(),
            next,
            touches: Vec::new(),
            outgoing: Vec::new(),
            changed: Vec::new(),
            texts: Vec::new(),
        }
    }

    /// Draws the next position.
    pub fn position(&mut self) -> Position {
        let position = Position(self.next);
        self.next += 1;
        position
    }

    /// Leaves out some positions, so that their places in timelines stay free.
    pub fn skip(&mut self, count: u64) {
        self.next += count;
    }

    /// Tells one user, once the batch is durable, that something changed at `position`.
    pub fn touch_user(
        &mut self,
        position: Position,
        user: UserNid,
        room: Option<RoomNid>,
        kinds: Kinds,
    ) {
        self.touches.push((
            position,
            Touch {
                users: Users::One(user),
                change: Change { room, kinds },
            },
        ));
    }

    /// Tells many users, once the batch is durable, that something in a room changed at `position`.
    pub fn touch_users(&mut self, position: Position, users: Members, room: RoomNid, kinds: Kinds) {
        let change = Change {
            room: Some(room),
            kinds,
        };
        self.touches.push((
            position,
            Touch {
                users: Users::Many(users),
                change,
            },
        ));
    }

    /// Tells many users, once the batch is durable, that something outside rooms changed at `position`.
    pub fn touch_many(&mut self, position: Position, users: Members, kinds: Kinds) {
        let change = Change { room: None, kinds };
        self.touches.push((
            position,
            Touch {
                users: Users::Many(users),
                change,
            },
        ));
    }

    /// Tells every live user, once the batch is durable, that something outside rooms changed at `position`.
    pub fn touch_all(&mut self, position: Position, kinds: Kinds) {
        let change = Change { room: None, kinds };
        self.touches.push((
            position,
            Touch {
                users: Users::All,
                change,
            },
        ));
    }

    /// Has other servers told of something, once the batch is durable. What has a row in `LOCAL_EVENTS`,
    /// `EXTRA_TARGETS`, `LASTING_EDUS` or `INTRODUCTIONS` is noted with it.
    pub fn tell_servers(&mut self, position: Position, note: Note) {
        self.outgoing.push((position, note));
    }

    pub(super) fn put(&mut self, table: &'static str, key: &[u8], value: &[u8]) {
        // Whoever writes such a row can not forget to have it sent.
        if table == LOCAL_EVENTS.name
            && let Some((room, position)) = <(RoomNid, Position)>::decode(key)
        {
            let named = <Option<EventNid>>::from_bytes(value).flatten();
            let event = named.unwrap_or(EventNid(position.0));
            self.tell_servers(position, Note::Event { room, event });
        } else if table == EXTRA_TARGETS.name
            && let Some((server, position)) = <(ServerNid, Position)>::decode(key)
            && let Some((room, named)) = <(RoomNid, Option<EventNid>)>::from_bytes(value)
        {
            let event = named.unwrap_or(EventNid(position.0));
            let note = Note::Extra {
                server,
                room,
                event,
            };
            self.tell_servers(position, note);
        } else if table == LASTING_EDUS.name
            && let Some((server, position)) = <(ServerNid, Position)>::decode(key)
        {
            self.tell_servers(position, Note::Lasting { server });
        } else if table == LEFT_SERVERS.name
            && let Some((server, _, _)) = <(ServerNid, RoomNid, Position)>::decode(key)
            && let Some((until,)) = <(Position,)>::from_bytes(value)
        {
            self.tell_servers(until, Note::Left { server });
        } else if table == INTRODUCTIONS.name
            && let Some((position, _, _)) = <(Position, RoomNid, UserNid)>::decode(key)
        {
            self.tell_servers(position, Note::Introduction);
        }
        self.note_change(table, key);
        self.note_account(table, key);
        self.writes.put_cf(self.inner.table(table), key, value);
    }

    pub(super) fn merge(&mut self, table: &'static str, key: &[u8], value: &[u8]) {
        self.writes.merge_cf(self.inner.table(table), key, value);
    }

    pub(super) fn delete(&mut self, table: &'static str, key: &[u8]) {
        self.note_change(table, key);
        self.note_account(table, key);
        self.writes.delete_cf(self.inner.table(table), key);
    }

    pub(super) fn delete_range(&mut self, table: &'static str, from: &[u8], to: &[u8]) {
        let table = self.inner.table(table);
        self.writes.delete_range_cf(table, from, to);
    }

    /// Notes that what is told of a room outside may have changed, once the batch is durable. Changes of the current
    /// state are noted with their rows.
    pub fn note_changed(&mut self, room: RoomNid) {
        if self.changed.last() != Some(&room) {
            self.changed.push(room);
        }
    }

    /// Notes that an event has text, or another one than before. Of one that was stored before this batch a row says so:
    /// whoever goes through the events since some position would not come by.
    pub fn note_text(&mut self, event: EventNid) {
        if event.0 < self.first {
            SEARCH_AGAIN.put(self, &(Position(self.first), event), &());
        }
        self.texts.push(event);
    }

    /// Notes the room of a row that a directory of rooms is made from.
    fn note_change(&mut self, table: &'static str, key: &[u8]) {
        if table != CURRENT_STATE.name && table != PUBLIC_ROOMS.name {
            return;
        }
        // Both keys begin with the room.
        if let Some(room) = RoomNid::decode(false, &mut &*key) {
            self.note_changed(room);
        }
    }

    /// Notes that what the user directory tells of a user may have changed. Changes of accounts and profiles are noted
    /// with their rows.
    pub fn note_user(&mut self, user: UserNid) {
        let key = (Position(self.first), user);
        USER_DIRECTORY_CHANGES.put(self, &key, &());
    }

    fn note_account(&mut self, table: &'static str, key: &[u8]) {
        if table != ACCOUNTS.name && table != PROFILES.name {
            return;
        }
        // Both keys begin with the user.
        if let Some(user) = UserNid::decode(false, &mut &*key) {
            self.note_user(user);
        }
    }
}
