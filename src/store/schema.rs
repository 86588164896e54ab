//! Every table: its key, its value, its tuning, and what it is for.

use std::sync::OnceLock;

use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId};

pub use super::{
    intern::StateKeyName,
    state::StateRow,
    table::{Profile, Table},
};
use crate::protocol::ids::{
    EventNid, Position, RoomNid, ServerNid, SnapshotId, StateKeyNid, UserNid,
};

mod account;
mod delayed;
mod encryption;
mod federation;
mod rooms;
pub use self::{account::*, delayed::*, encryption::*, federation::*, rooms::*};

macro_rules! tables {
    ($($(#[$doc:meta])* $table:ident = $name:literal: $key:ty => $value:ty, $profile:ident;)*) => {
        $($(#[$doc])* pub static $table: Table<$key, $value> = Table::new($name);)*

        /// The name and tuning of every table.
        pub fn all() -> &'static [(&'static str, Profile)] {
            static ALL: OnceLock<Vec<(&'static str, Profile)>> = OnceLock::new();
            ALL.get_or_init(|| vec![$(($name, Profile::$profile)),*])
        }
    };
}

tables! {
    // -- The node itself ------------------------------------------------------------------------------------------
    /// Numbers about the store: schema version, position ceiling.
    META = "meta": (String,) => (u64,), Point;
    /// Small secrets and documents of the node, such as its signing key.
    NODE = "node": (String,) => Vec<u8>, Point;

    // -- Interning ------------------------------------------------------------------------------------------------
    /// Room id to number.
    ROOM_NIDS = "room_nids": (String,) => (RoomNid,), Point;
    /// Number to room id.
    ROOM_IDS = "room_ids": (RoomNid,) => OwnedRoomId, Point;
    /// User id to number.
    USER_NIDS = "user_nids": (String,) => (UserNid,), Point;
    /// Number to user id.
    USER_IDS = "user_ids": (UserNid,) => OwnedUserId, Point;
    /// Server name to number.
    SERVER_NIDS = "server_nids": (String,) => (ServerNid,), Point;
    /// Number to server name.
    SERVER_NAMES = "server_names": (ServerNid,) => OwnedServerName, Point;
    /// Event type and state key to number.
    STATE_KEY_NIDS = "state_key_nids": (String, String) => (StateKeyNid,), Point;
    /// Number to event type and state key.
    STATE_KEYS = "state_keys": (StateKeyNid,) => StateKeyName, Point;

    // -- Events ---------------------------------------------------------------------------------------------------
    /// Event id to number.
    EVENT_NIDS = "event_nids": (String,) => (EventNid,), Point;
    /// The events themselves.
    EVENTS = "events": (EventNid,) => EventRow, Point;
    /// The auth events of each event.
    AUTH_EDGES = "auth_edges": (EventNid,) => EventList, Point;
    /// The order of a room's events: positions for live ones, below zero for older history fetched later.
    TIMELINE = "timeline": (RoomNid, i64) => (EventNid,), Sequential;

    /// Where history is missing in a room's timeline, by the order of the event right above.
    GAPS = "gaps": (RoomNid, i64) => GapRow, Point;
    /// Events that wait for the one that they redact or relate to: room, id of that event, the one that waits.
    WAITING = "waiting": (RoomNid, String, EventNid) => (), Sequential;
    /// What this node has made or taken on for others and other servers are to be told. The position is that of its place in
    /// the room; the event is the one of that number, unless another is named, which was stored before it had a place.
    LOCAL_EVENTS = "local_events": (RoomNid, Position) => Option<EventNid>, Sequential;
    /// The same for servers that are not in the room any more, or not yet.
    EXTRA_TARGETS = "extra_targets": (ServerNid, Position) => (RoomNid, Option<EventNid>), Sequential;
    /// Servers that are in a room no more, by when the first of their users had come, and until when one was there: what
    /// was said meanwhile they are told all the same. Gone when they have been.
    LEFT_SERVERS = "left_servers": (ServerNid, RoomNid, Position) => (Position,), Sequential;

    // -- Rooms ----------------------------------------------------------------------------------------------------
    /// The end of each room's graph, and its counts.
    ROOM_HEADS = "room_heads": (RoomNid,) => HeadRow, Point;
    /// State snapshots as differences.
    STATE = "state": (SnapshotId,) => StateRow, Point;
    /// The current state of each room by type and key.
    CURRENT_STATE = "current_state": (RoomNid, String, String) => (EventNid,), Sequential;
    /// Everyone who has or had a membership in a room.
    ROOM_MEMBERS = "room_members": (RoomNid, UserNid) => MemberRow, Sequential;
    /// The same from the user's side.
    USER_ROOMS = "user_rooms": (UserNid, RoomNid) => MemberRow, Sequential;
    /// Whose membership in a room changed, in the order in which it did.
    MEMBER_CHANGES = "member_changes": (RoomNid, Position, UserNid) => (), Sequential;
    /// The servers that have users in a room.
    ROOM_SERVERS = "room_servers": (RoomNid, ServerNid) => ServerRow, Sequential;
    /// The same from the server's side.
    SERVER_ROOMS = "server_rooms": (ServerNid, RoomNid) => (), Sequential;
    /// What a local user was told of a room that this node does not know, with an invite or for a knock.
    STRIPPED = "stripped": (RoomNid, UserNid) => String, Point;
    /// Room alias to room.
    ALIASES = "aliases": (String,) => AliasRow, Point;
    /// The aliases of a room on this node.
    ROOM_ALIASES = "room_aliases": (RoomNid, String) => (), Point;
    /// Rooms listed in the node's public directory.
    PUBLIC_ROOMS = "public_rooms": (RoomNid,) => (), Point;

    // -- Relations and reading ------------------------------------------------------------------------------------
    /// Events by the event that they relate to: parent, relation type, order. A redacted event relates to nothing.
    RELATIONS = "relations": (EventNid, String, i64) => RelationRow, Sequential;
    /// The same by who has sent them: parent, sender, relation type, order.
    RELATIONS_BY = "relations_by": (EventNid, UserNid, String, i64) => (EventNid,), Sequential;
    /// The valid edits of an event by their age: the event, milliseconds since the epoch, the id of the edit.
    EDITS = "edits": (EventNid, u64, String) => (EventNid,), Sequential;
    /// How many replies a thread has, by its root.
    THREAD_REPLIES = "thread_replies": (EventNid,) => (u64,), Counter;
    /// How many of them are by one user.
    THREAD_REPLIES_OF = "thread_replies_of": (EventNid, UserNid) => (u64,), Counter;
    /// The threads of a room by the order of their newest reply: room, order, root. One that has been overtaken may be left.
    THREADS = "threads": (RoomNid, i64, EventNid) => (), Sequential;
    /// Events that were stored before the commit of that position gave them another text, or a place in their room, so that
    /// what is found by them has to be looked at again.
    SEARCH_AGAIN = "search_again": (Position, EventNid) => (), Sequential;
    /// Receipts in the order in which they were given.
    RECEIPTS = "receipts": (RoomNid, Position) => ReceiptRow, Sequential;
    /// The newest receipt of a user in a room by receipt type and thread.
    RECEIPTS_OF = "receipts_of": (RoomNid, UserNid, String, String) => ReceiptRow, Point;
    /// The threads that a user has ever followed, by the first event of each.
    THREAD_SUBSCRIPTIONS = "thread_subscriptions": (UserNid, EventNid) => ThreadSubscriptionRow, Point;
    /// The same in the order in which that last changed.
    THREAD_SUBSCRIPTION_CHANGES = "thread_subscription_changes": (UserNid, Position) => (EventNid,), Sequential;
    /// How far a user's unread counts have been worked out.
    UNREAD = "unread": (UserNid, RoomNid) => UnreadRow, Point;

    // -- Accounts -------------------------------------------------------------------------------------------------
    /// Local accounts.
    ACCOUNTS = "accounts": (UserNid,) => AccountRow, Point;
    /// Profile fields as JSON.
    PROFILES = "profiles": (UserNid, String) => String, Point;
    /// What the user directory tells of a user, and by what they are found.
    USER_DIRECTORY = "user_directory": (UserNid,) => DirectoryRow, Point;
    /// Users by what they are found by: how near it is, the text, the user.
    USER_DIRECTORY_TERMS = "user_directory_terms": (u8, String, UserNid) => (), Sequential;
    /// Users that the user directory has to look at again, in the order in which they changed.
    USER_DIRECTORY_CHANGES = "user_directory_changes": (Position, UserNid) => (), Sequential;
    /// What users have reported to those who run the node.
    REPORTS = "reports": (Position,) => ReportRow, Sequential;
    /// Devices of local accounts.
    DEVICES = "devices": (UserNid, String) => DeviceRow, Point;
    /// Access tokens by the SHA-256 of the token.
    ACCESS_TOKENS = "access_tokens": ([u8; 32],) => AccessTokenRow, Point;
    /// Refresh tokens by the SHA-256 of the token.
    REFRESH_TOKENS = "refresh_tokens": ([u8; 32],) => RefreshTokenRow, Point;
    /// Short-lived login tokens by the SHA-256 of the token.
    LOGIN_TOKENS = "login_tokens": ([u8; 32],) => LoginTokenRow, Point;
    /// Tokens that tell other services who somebody is, by the SHA-256 of the token.
    OPENID_TOKENS = "openid_tokens": ([u8; 32],) => OpenIdTokenRow, Point;
    /// Tokens that allow to register.
    REGISTRATION_TOKENS = "registration_tokens": (String,) => RegistrationTokenRow, Point;
    /// Filters as JSON, numbered for each user.
    FILTERS = "filters": (UserNid, u64) => String, Point;
    /// Account data by room (zero for global) and type, as JSON of the content.
    ACCOUNT_DATA = "account_data": (UserNid, RoomNid, String) => AccountDataRow, Point;
    /// Account data in the order of its changes.
    ACCOUNT_DATA_CHANGES = "account_data_changes": (UserNid, Position) => AccountDataKey, Sequential;
    /// Transactions of a user's device in a room: the event that was made.
    TRANSACTIONS = "transactions": (UserNid, String, RoomNid, String) => TransactionRow, Point;
    /// Messages to a device that it has not got yet, as JSON.
    TO_DEVICE = "to_device": (UserNid, String, Position) => String, Sequential;
    /// Transactions by which a device has sent messages to others, by its user and id, type and transaction: when, in
    /// milliseconds since the epoch.
    SENT_TO_DEVICE = "sent_to_device": (UserNid, String, String, String) => (u64,), Point;
    /// The identity keys of devices as they have signed them, as JSON.
    DEVICE_KEYS = "device_keys": (UserNid, String) => String, Sequential;
    /// One-time keys by user, device and algorithm, in the order in which they came.
    ONE_TIME_KEYS = "one_time_keys": (UserNid, String, String, Position) => DeviceKeyRow, Sequential;
    /// Where these are, by user, device and id with the algorithm.
    ONE_TIME_KEY_IDS = "one_time_key_ids": (UserNid, String, String) => (Position,), Point;
    /// The key of a device that is given when there is no one-time key of the algorithm.
    FALLBACK_KEYS = "fallback_keys": (UserNid, String, String) => FallbackKeyRow, Point;
    /// What a device is told of its keys.
    KEY_COUNTS = "key_counts": (UserNid, String) => KeyCountsRow, Point;
    /// The cross-signing keys of local users by their usage, with what the users' own keys have signed of them, as JSON.
    CROSS_SIGNING_KEYS = "cross_signing_keys": (UserNid, String) => String, Point;
    /// What a local user, named second, has signed of another one's master key; nobody else sees it.
    USER_SIGNATURES = "user_signatures": (UserNid, UserNid) => UserSignatureRow, Point;
    /// Whose keys look new to a local user since then, and to nobody else: by that user's own doing.
    PRIVATE_KEY_CHANGES = "private_key_changes": (UserNid, Position) => (UserNid,), Sequential;
    /// When the devices of a user, their names or their keys last changed.
    DEVICE_LISTS = "device_lists": (UserNid,) => (Position,), Point;
    /// The same in the order of these changes.
    DEVICE_LIST_CHANGES = "device_list_changes": (Position,) => (UserNid,), Sequential;
    /// Keys of a user of another server, which tells us when they change.
    REMOTE_KEYS = "remote_keys": (UserNid,) => RemoteKeysRow, Point;
    /// The device of a user that nobody is logged in with, which gets messages until another takes its place.
    DEHYDRATED_DEVICES = "dehydrated_devices": (UserNid,) => DehydratedRow, Point;
    /// Backups of room keys, by user and version: the position at which it began.
    KEY_BACKUPS = "key_backups": (UserNid, Position) => KeyBackupRow, Point;
    /// The keys in a backup by room and session, as JSON.
    BACKUP_KEYS = "backup_keys": (UserNid, Position, String, String) => String, Sequential;
    /// Events that are to be sent later, by their ids.
    DELAYED_EVENTS = "delayed_events": (String,) => DelayedRow, Point;
    /// The same by user.
    DELAYED_OF = "delayed_of": (UserNid, String) => (), Sequential;
    /// The same by when they are tried next, in milliseconds since the epoch: the room.
    DELAYED_DUE = "delayed_due": (u64, String) => (RoomNid,), Sequential;
    /// What has become of those that do not wait any more, by their ids, for a while.
    DELAYED_ENDED = "delayed_ended": (String,) => EndedRow, Point;
    /// The same by user and when that was, in milliseconds since the epoch.
    DELAYED_ENDED_OF = "delayed_ended_of": (UserNid, u64, String) => (), Sequential;
    /// Transactions that asked for such events, by user, device and transaction.
    DELAYED_TRANSACTIONS = "delayed_transactions": (UserNid, String, String) => DelayedTransactionRow, Point;
    /// Last known presence.
    PRESENCE = "presence": (UserNid,) => PresenceRow, Point;
    /// Rooms where somebody typed when the node was there last, so that apps are told that they do no more.
    TYPING = "typing": (RoomNid,) => (), Point;

    // -- Other servers --------------------------------------------------------------------------------------------
    /// Every key that a server was ever known to sign with, by server name and key id; kept for ever, because events are.
    SERVER_KEYS = "server_keys": (String, String) => ServerKeyRow, Point;
    /// How far each server that is told what happens here has been told, and how that goes.
    DESTINATIONS = "destinations": (ServerNid,) => DestinationRow, Point;
    /// Messages that another server must get however long it takes, as ready-made EDUs: those to devices, and that
    /// devices have changed.
    LASTING_EDUS = "lasting_edus": (ServerNid, Position) => String, Sequential;
    /// Who has come into a room so that users here and servers there have met, of whom the servers may not know the
    /// devices: when, where, and the user. Gone when the servers were told, or nobody was new to anybody.
    INTRODUCTIONS = "introductions": (Position, RoomNid, UserNid) => (), Sequential;
    /// Which messages to devices have come from another server, by their ids: when, in milliseconds since the epoch.
    RECEIVED_TO_DEVICE = "received_to_device": (ServerNid, String) => (u64,), Point;
    /// The newest document with which each of these servers published its keys.
    KEY_DOCUMENTS = "key_documents": (String,) => KeyDocumentRow, Point;
    /// Servers with which this node was paired, by name; the configuration may name more.
    PEERS = "peers": (String,) => PeerRow, Point;
    /// Codes for pairing that were made here and may still be used, by the SHA-256 of their secrets.
    PEER_INVITATIONS = "peer_invitations": ([u8; 32],) => PeerInvitationRow, Point;
    /// What other servers have sent and what has no place in its room yet, in the order in which it came.
    INBOX = "inbox": (RoomNid, Position) => InboxRow, Sequential;
}

/// A list of events.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct EventList(pub Vec<EventNid>);

impl super::Record for EventList {}

/// An event that relates to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RelationRow {
    /// The event.
    pub event: EventNid,
    /// Who sent it, so that counting needs no look at the event.
    pub sender: UserNid,
}

impl super::Record for RelationRow {}

/// What an alias points to.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct AliasRow {
    /// The room.
    pub room: RoomNid,
    /// Who made the alias.
    pub creator: OwnedUserId,
}

impl super::Record for AliasRow {}

/// A receipt.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReceiptRow {
    /// Whose.
    pub user: UserNid,
    /// `m.read` or `m.read.private`.
    pub receipt_type: String,
    /// The thread: empty for an unthreaded receipt, `main`, or the root event's id.
    pub thread: String,
    /// What was read.
    pub event_id: OwnedEventId,
    /// Where that event stands in the timeline; zero if it has not come yet, which only other servers' users have read.
    pub order: i64,
    /// Milliseconds since the epoch.
    pub ts: u64,
    /// When the receipt was given.
    pub position: Position,
}

impl super::Record for ReceiptRow {}
