//! A device as Element X has it: a client with its store on disk, sliding sync, a room list, timelines, a send queue.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, pin_mut};
use matrix_sdk::{
    Client, Room, RoomState,
    authentication::matrix::MatrixSession,
    deserialized_responses::{TimelineEvent, TimelineEventKind},
    encryption::{
        BackupDownloadStrategy, EncryptionSettings, VerificationState, backups::BackupState,
    },
    ruma::{
        OwnedRoomId, RoomId, UserId,
        api::client::{
            account::register::v3::Request as RegistrationRequest,
            uiaa::{AuthData, Dummy},
        },
        api::error::ErrorKind,
        events::{
            AnySyncMessageLikeEvent, AnySyncTimelineEvent, room::message::RoomMessageEventContent,
        },
    },
    sliding_sync::VersionBuilder,
};
use matrix_sdk_ui::{
    eyeball_im::VectorDiff,
    room_list_service::filters,
    sync_service::{State, SyncService},
    timeline::{RoomExt, Timeline},
    unable_to_decrypt_hook::{UnableToDecryptHook, UnableToDecryptInfo, UtdHookManager},
};
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::sleep};

use crate::report::{so, until};

/// How long a message may be there before its key is. Keys and rooms come by two connections, so either may be first.
const KEY_MAY_BE_LATE: Duration = Duration::from_secs(30);

/// Somebody with an account.
#[derive(Clone)]
pub struct Account {
    name: String,
    password: String,
}

impl Account {
    /// Registers a new account whose name begins so.
    pub async fn register(url: &str, name: &str) -> Result<Self> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let name = format!("{name}-{:x}", now.as_nanos());
        let account = Self {
            password: format!("secret of {name}"),
            name,
        };

        let client = builder(url).build().await?;
        let mut request = RegistrationRequest::new();
        request.username = Some(account.name.clone());
        request.password = Some(account.password.clone());
        request.inhibit_login = true;
        let Err(refused) = client.matrix_auth().register(request.clone()).await else {
            bail!("an account is given without any authentication");
        };
        let mut auth = Dummy::new();
        auth.session = refused
            .as_uiaa_response()
            .context(refused.to_string())?
            .session
            .clone();
        request.auth = Some(AuthData::Dummy(auth));
        client.matrix_auth().register(request).await?;
        Ok(account)
    }
}

fn builder(url: &str) -> matrix_sdk::ClientBuilder {
    Client::builder()
        .homeserver_url(url)
        // The address that a login answers would lead around the line that is cut.
        .respect_login_well_known(false)
        // Fails if `/versions` does not tell of simplified sliding sync.
        .sliding_sync_version_builder(VersionBuilder::DiscoverNative)
        .with_encryption_settings(EncryptionSettings {
            auto_enable_cross_signing: true,
            backup_download_strategy: BackupDownloadStrategy::AfterDecryptionFailure,
            auto_enable_backups: true,
        })
}

/// A running app.
pub struct Device {
    /// What says which device it is.
    pub name: &'static str,
    pub client: Client,
    sync: Arc<SyncService>,
    store: TempDir,
    url: String,
    undecryptable: Arc<Undecryptable>,
    hook: Arc<UtdHookManager>,
    timelines: Mutex<HashMap<OwnedRoomId, Arc<Timeline>>>,
    keepers: Vec<JoinHandle<()>>,
}

/// An app that its user has closed.
pub struct Closed {
    name: &'static str,
    session: MatrixSession,
    store: TempDir,
    url: String,
    undecryptable: Arc<Undecryptable>,
}

impl Device {
    /// Logs in on a new device.
    pub async fn login(url: &str, account: &Account, name: &'static str) -> Result<Self> {
        let store = TempDir::with_prefix("kontor-rust-sdk-")?;
        let client = builder(url)
            .sqlite_store(store.path(), None)
            .build()
            .await?;
        client
            .matrix_auth()
            .login_username(&account.name, &account.password)
            .initial_device_display_name(name)
            .send()
            .await?;
        Self::start(name, client, store, url, Arc::default()).await
    }

    async fn start(
        name: &'static str,
        client: Client,
        store: TempDir,
        url: &str,
        undecryptable: Arc<Undecryptable>,
    ) -> Result<Self> {
        client
            .encryption()
            .wait_for_e2ee_initialization_tasks()
            .await;
        let sync = SyncService::builder(client.clone())
            .with_offline_mode()
            .build()
            .await?;
        let sync = Arc::new(sync);
        let hook = UtdHookManager::new(undecryptable.clone(), client.clone())
            .with_max_delay(KEY_MAY_BE_LATE);
        sync.start().await;
        let keepers = vec![
            tokio::spawn(keep_syncing(sync.clone())),
            tokio::spawn(keep_sending(client.clone())),
        ];
        Ok(Self {
            name,
            client,
            sync,
            store,
            url: url.to_owned(),
            undecryptable,
            hook: Arc::new(hook),
            timelines: Mutex::default(),
            keepers,
        })
    }

    /// The user closes the app; the store stays.
    pub async fn close(mut self) -> Result<Closed> {
        self.stop().await;
        Ok(Closed {
            name: self.name,
            session: self
                .client
                .matrix_auth()
                .session()
                .context("it is logged in")?,
            store: self.store,
            url: self.url,
            undecryptable: self.undecryptable,
        })
    }

    /// Ends the session.
    pub async fn logout(mut self) -> Result<()> {
        self.stop().await;
        self.client.logout().await?;
        let Err(error) = self.client.whoami().await else {
            bail!("the token of a device that has logged out is still good");
        };
        let unknown = matches!(
            error.client_api_error_kind(),
            Some(ErrorKind::UnknownToken(_))
        );
        ensure!(unknown, "{error}");
        Ok(())
    }

    async fn stop(&mut self) {
        for keeper in self.keepers.drain(..) {
            keeper.abort();
        }
        self.sync.stop().await;
        self.timelines.lock().expect("no panic").clear();
    }

    pub fn user_id(&self) -> &UserId {
        self.client.user_id().expect("it is logged in")
    }

    /// Waits until both connections of sliding sync are running and the room list is loaded.
    pub async fn running(&self) -> Result<()> {
        until("the room list", async || {
            let service = self.sync.state().get();
            let list = self.sync.room_list_service().state().get();
            let running = matches!(service, State::Running)
                && matches!(list, matrix_sdk_ui::room_list_service::State::Running);
            so(running, format!("{service:?}, {list:?}"))
        })
        .await
    }

    /// Waits until cross-signing is there with all its private keys, and this device is signed.
    pub async fn verified(&self) -> Result<()> {
        let encryption = self.client.encryption();
        until("the signed device", async || {
            let state = encryption.verification_state().get();
            let status = encryption.cross_signing_status().await;
            let complete = status.as_ref().is_some_and(|status| status.is_complete());
            so(
                complete && state == VerificationState::Verified,
                format!("{state:?}, {status:?}"),
            )
        })
        .await
    }

    /// Waits until the device has the key of the backup, and writes to it.
    pub async fn backing_up(&self) -> Result<()> {
        let backups = self.client.encryption().backups();
        until("the backup", async || {
            let state = backups.state();
            so(matches!(state, BackupState::Enabled), format!("{state:?}"))
        })
        .await
    }

    /// What the room list shows, topmost first, of joined rooms or of invites.
    pub async fn room_list(&self, state: RoomState) -> Result<Vec<Room>> {
        let service = self.sync.room_list_service();
        let all = service.all_rooms().await?;
        let (entries, controller) = all.entries_with_dynamic_adapters(100);
        controller.set_filter(match state {
            RoomState::Invited => Box::new(filters::new_filter_invite()),
            _ => Box::new(filters::new_filter_joined()),
        });
        pin_mut!(entries);
        let first = entries.next().await.context("the list ends")?;
        let Some(VectorDiff::Reset { values: rooms }) = first.into_iter().next() else {
            bail!("the list does not begin with what it holds");
        };
        Ok(rooms.into_iter().map(|item| item.into_inner()).collect())
    }

    /// Waits until the room list has the room.
    pub async fn listed(&self, room_id: &RoomId, state: RoomState) -> Result<Room> {
        until("the room in the list", async || {
            let rooms = self.room_list(state).await?;
            let found = rooms.iter().find(|room| room.room_id() == room_id).cloned();
            Ok(found.ok_or_else(|| format!("{} other rooms", rooms.len())))
        })
        .await
    }

    pub fn room(&self, room_id: &RoomId) -> Result<Room> {
        self.client
            .get_room(room_id)
            .context("the device does not know the room")
    }

    /// Opens the room on the screen.
    pub async fn open(&self, room_id: &RoomId) -> Result<Arc<Timeline>> {
        if let Some(open) = self.timelines.lock().expect("no panic").get(room_id) {
            return Ok(open.clone());
        }
        self.sync
            .room_list_service()
            .subscribe_to_rooms(&[room_id])
            .await;
        let timeline = self
            .room(room_id)?
            .timeline_builder()
            .with_unable_to_decrypt_hook(self.hook.clone())
            .build()
            .await?;
        let timeline = Arc::new(timeline);
        self.timelines
            .lock()
            .expect("no panic")
            .insert(room_id.to_owned(), timeline.clone());
        Ok(timeline)
    }

    /// Writes a message. The send queue sends it, now or when it can.
    pub async fn say(&self, room_id: &RoomId, body: &str) -> Result<()> {
        let message = RoomMessageEventContent::text_plain(body);
        self.open(room_id).await?.send(message.into()).await?;
        Ok(())
    }

    /// Writes a message whose key no device has yet.
    pub async fn say_with_new_key(&self, room_id: &RoomId, body: &str) -> Result<()> {
        self.room(room_id)?.discard_room_key().await?;
        self.say(room_id, body).await?;
        // The queue takes the key when it sends: the next one shall not share it.
        self.reads(room_id, &[body]).await
    }

    /// Waits until these messages of the room are there decrypted, each once, in this order among themselves.
    pub async fn reads(&self, room_id: &RoomId, bodies: &[impl AsRef<str>]) -> Result<()> {
        let wanted: Vec<_> = bodies.iter().map(AsRef::as_ref).collect();
        let timeline = self.open(room_id).await?;
        let mut looks = 0;
        until(&format!("{wanted:?} at {}", self.name), async || {
            let there = messages(timeline.room()).await?;
            let found: Vec<_> = there
                .iter()
                .filter(|body| wanted.contains(&body.as_str()))
                .collect();
            let read = found == wanted;
            // As somebody does who scrolls up: what came in a gap, or before this device was there, is fetched.
            looks += 1;
            if !read && looks % 20 == 0 {
                timeline.paginate_backwards(50).await.ok();
            }
            so(read, format!("{there:?}"))
        })
        .await
    }

    /// That every message is readable now, and none was so long without its key that a person would have noticed.
    pub async fn nothing_unreadable(&self) -> Result<()> {
        let timelines = self.timelines.lock().expect("no panic").clone();
        for timeline in timelines.values() {
            until("every key", async || {
                let there = messages(timeline.room()).await?;
                let readable = !there.iter().any(|body| body.starts_with(UNREADABLE));
                so(readable, format!("{there:?}"))
            })
            .await?;
        }
        let reported = self.undecryptable.never.lock().expect("no panic");
        ensure!(reported.is_empty(), "{reported:?}");
        Ok(())
    }
}

impl Closed {
    /// The user opens the app again.
    pub async fn open(self) -> Result<Device> {
        let client = builder(&self.url)
            .sqlite_store(self.store.path(), None)
            .build()
            .await?;
        client.restore_session(self.session).await?;
        Device::start(self.name, client, self.store, &self.url, self.undecryptable).await
    }
}

const UNREADABLE: &str = "unreadable: ";

/// The texts of the messages that the server has sent so far, oldest first. They are those below the timeline, not its
/// items: when the node dies while messages are sent, SDK 0.18 mixes up its items, shows some twice and others not at all.
async fn messages(room: &Room) -> Result<Vec<String>> {
    let (below, _kept) = room.event_cache().await?;
    let events = below.events().await?;
    Ok(events.iter().filter_map(text).collect())
}

/// What a message says, or why that is not known; nothing if it is no message.
fn text(event: &TimelineEvent) -> Option<String> {
    if let TimelineEventKind::UnableToDecrypt { utd_info, .. } = &event.kind {
        return Some(format!("{UNREADABLE}{utd_info:?}"));
    }
    let Ok(AnySyncTimelineEvent::MessageLike(AnySyncMessageLikeEvent::RoomMessage(message))) =
        event.raw().deserialize()
    else {
        return None;
    };
    let body = message.as_original()?.content.body();
    Some(match event.encryption_info() {
        Some(_) => body.to_owned(),
        None => format!("not encrypted: {body}"),
    })
}

/// An app starts its sync again whenever it has ended.
async fn keep_syncing(sync: Arc<SyncService>) {
    let mut state = sync.state();
    while let Some(now) = state.next().await {
        if matches!(now, State::Error(_) | State::Terminated) {
            sleep(Duration::from_secs(1)).await;
            sync.start().await;
        }
    }
}

/// An app tries again to send what could not be sent.
async fn keep_sending(client: Client) {
    let mut errors = client.send_queue().subscribe_errors();
    while errors.recv().await.is_ok() {
        sleep(Duration::from_secs(1)).await;
        client.send_queue().set_enabled(true).await;
    }
}

/// Notes which messages stayed unreadable.
#[derive(Debug, Default)]
struct Undecryptable {
    never: Mutex<Vec<String>>,
}

impl UnableToDecryptHook for Undecryptable {
    fn on_utd(&self, info: UnableToDecryptInfo) {
        // A time tells that the key came, only later than the message.
        if info.time_to_decrypt.is_none() {
            let mut never = self.never.lock().expect("no panic");
            never.push(format!("{} ({:?})", info.event_id, info.cause));
        }
    }
}
