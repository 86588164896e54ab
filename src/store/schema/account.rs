//! Rows about local accounts.

use serde::{Deserialize, Serialize};

use crate::{
    protocol::ids::{EventNid, Position, RoomNid, UserNid},
    store::codec::Record,
};

/// A local account.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, not one state"
)]
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AccountRow {
    /// The argon2id hash in PHC form; none for an account without a password.
    pub password: Option<String>,
    /// Whether the account may use the admin API.
    pub admin: bool,
    /// Whether it is a guest.
    pub guest: bool,
    /// Whether it was closed for good.
    pub deactivated: bool,
    /// Whether its owner asked that what is known about them be erased.
    pub erased: bool,
    /// Milliseconds since the epoch.
    pub created_ts: u64,
    /// The number of the newest filter.
    pub last_filter: u64,
}

impl Record for AccountRow {}

/// A device of a local account.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DeviceRow {
    /// The name that its owner gave it.
    pub display_name: Option<String>,
    /// The SHA-256 of its present access token.
    pub access_token: Option<[u8; 32]>,
    /// The SHA-256 of its present refresh token.
    pub refresh_token: Option<[u8; 32]>,
    /// The SHA-256 of the refresh token that the present tokens were got with. Until one of them is used it may be used
    /// again, because the answer may have been lost on its way.
    pub previous_refresh_token: Option<[u8; 32]>,
    /// Where it was last seen.
    pub last_seen_ip: Option<String>,
    /// When it was last seen, in milliseconds since the epoch.
    pub last_seen_ts: Option<u64>,
}

impl Record for DeviceRow {}

/// What an access token stands for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AccessTokenRow {
    /// The account.
    pub user: UserNid,
    /// Its device.
    pub device_id: String,
    /// When the token expires, in milliseconds since the epoch.
    pub expires_ts: Option<u64>,
}

impl Record for AccessTokenRow {}

/// What a refresh token stands for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RefreshTokenRow {
    /// The account.
    pub user: UserNid,
    /// Its device.
    pub device_id: String,
}

impl Record for RefreshTokenRow {}

/// What a login token stands for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoginTokenRow {
    /// The account.
    pub user: UserNid,
    /// When the token expires, in milliseconds since the epoch.
    pub expires_ts: u64,
}

impl Record for LoginTokenRow {}

/// What an OpenID token stands for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpenIdTokenRow {
    /// The account.
    pub user: UserNid,
    /// When the token expires, in milliseconds since the epoch.
    pub expires_ts: u64,
}

impl Record for OpenIdTokenRow {}

/// A token that allows to register.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RegistrationTokenRow {
    /// How often it may be used; none for no limit.
    pub uses_allowed: Option<u64>,
    /// How often it was used.
    pub completed: u64,
    /// When it expires, in milliseconds since the epoch.
    pub expires_ts: Option<u64>,
    /// Whether an account made with it is an admin.
    pub admin: bool,
}

impl Record for RegistrationTokenRow {}

/// One piece of account data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AccountDataRow {
    /// When it last changed.
    pub position: Position,
    /// The content as JSON.
    pub content: String,
}

impl Record for AccountDataRow {}

/// Which account data changed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AccountDataKey {
    /// The room; zero for global data.
    pub room: RoomNid,
    /// The type.
    pub data_type: String,
}

impl Record for AccountDataKey {}

/// The outcome of a client's transaction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TransactionRow {
    /// The event that was made.
    pub event: EventNid,
    /// When, in milliseconds since the epoch; old rows are dropped.
    pub ts: u64,
}

impl Record for TransactionRow {}

/// A user's last known presence.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PresenceRow {
    /// `online`, `unavailable` or `offline`.
    pub state: String,
    /// What the user says they do.
    pub status_msg: Option<String>,
    /// When they were last active, in milliseconds since the epoch.
    pub last_active_ts: u64,
}

impl Record for PresenceRow {}

/// A user as the user directory tells of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryRow {
    /// Their name.
    pub display_name: Option<String>,
    /// Their picture.
    pub avatar_url: Option<String>,
    /// What they are found by, each with how near it is: the less the nearer.
    pub terms: Vec<(u8, String)>,
}

impl Record for DirectoryRow {}

/// What a user has reported to those who run the node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReportRow {
    /// When, in milliseconds since the epoch.
    pub ts: u64,
    /// Who has reported it.
    pub reporter: UserNid,
    /// What.
    pub about: Reported,
    /// What the user says about it.
    pub reason: String,
}

impl Record for ReportRow {}

/// What a report is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reported {
    /// A room.
    Room(RoomNid),
    /// An event in a room.
    Event(RoomNid, EventNid),
    /// A user.
    User(UserNid),
}

/// Whether a user follows a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Following {
    /// They have said so.
    Willingly,
    /// An app has decided it.
    Automatically,
    /// Not any more; events up to there do not make an app decide otherwise.
    LeftAt(Position),
}

/// What a user has to do with a thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadSubscriptionRow {
    /// The room of the thread.
    pub room: RoomNid,
    /// Whether they follow it.
    pub following: Following,
    /// When that last changed.
    pub position: Position,
}

impl Record for ThreadSubscriptionRow {}
