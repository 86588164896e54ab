//! "Server-side key backups".

use std::{collections::BTreeMap, sync::Arc};

use ruma::{
    api::client::backup::{
        add_backup_keys, add_backup_keys_for_room, add_backup_keys_for_session,
        create_backup_version, delete_backup_keys, delete_backup_keys_for_room,
        delete_backup_keys_for_session, delete_backup_version, get_backup_info, get_backup_keys,
        get_backup_keys_for_room, get_backup_keys_for_session, get_latest_backup_info,
        update_backup_version,
    },
    serde::Raw,
};
use serde_json::{json, value::RawValue};

use crate::{
    error::Result,
    http::{
        extract::{Accepts, Ruma},
        respond::{Answer, Json, Pieces},
        routes::Routes,
    },
    service::{
        Services,
        e2ee::{BackupKeys, Part},
    },
};

/// Clients upload some hundred keys at a time.
const KEYS: Accepts = Accepts {
    body: 4 << 20,
    ..Accepts::USUAL
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(latest)
        .on(create)
        .on(info)
        .on(update)
        .on(delete)
        .on(all_keys)
        .accepting(KEYS, add)
        .on(delete_all)
        .on(room_keys)
        .accepting(KEYS, add_to_room)
        .on(delete_room)
        .on(session_key)
        .on(add_session)
        .on(delete_session)
}

async fn latest(
    services: Arc<Services>,
    Ruma { requester, .. }: Ruma<get_latest_backup_info::v3::Request>,
) -> Result<Json> {
    Json::of(&services.encryption.backup(&requester, None)?)
}

async fn create(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<create_backup_version::v3::Request>,
) -> Result<Json> {
    let json = request.algorithm.json().get();
    let version = services.encryption.create_backup(&requester, json).await?;
    Json::of(&json!({ "version": version }))
}

async fn info(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_backup_info::v3::Request>,
) -> Result<Json> {
    let version = Some(request.version.as_str());
    Json::of(&services.encryption.backup(&requester, version)?)
}

async fn update(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<update_backup_version::v3::Request>,
) -> Result<update_backup_version::v3::Response> {
    let json = request.algorithm.json().get();
    let updating = services
        .encryption
        .update_backup(&requester, &request.version, json);
    updating.await?;
    Ok(update_backup_version::v3::Response::new())
}

async fn delete(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<delete_backup_version::v3::Request>,
) -> Result<delete_backup_version::v3::Response> {
    let deleting = services
        .encryption
        .delete_backup(&requester, &request.version);
    deleting.await?;
    Ok(delete_backup_version::v3::Response::new())
}

async fn all_keys(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_backup_keys::v3::Request>,
) -> Result<impl Answer> {
    let keys = services
        .encryption
        .backup_keys(&requester, &request.version, None)?;
    Ok(Pieces(keys))
}

async fn room_keys(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_backup_keys_for_room::v3::Request>,
) -> Result<impl Answer> {
    let room = Some(request.room_id);
    let keys = services
        .encryption
        .backup_keys(&requester, &request.version, room)?;
    Ok(Pieces(keys))
}

async fn session_key(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_backup_keys_for_session::v3::Request>,
) -> Result<Json> {
    let (version, room, session) = (&request.version, &request.room_id, &request.session_id);
    let key = services
        .encryption
        .backup_key(&requester, version, room, session)?;
    Ok(Json(key))
}

async fn add(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<add_backup_keys::v3::Request>,
) -> Result<Json> {
    let rooms = request.rooms.into_iter();
    let keys = rooms.map(|(room, keys)| (room, sessions(keys.sessions)));
    let adding = services
        .encryption
        .add_backup_keys(&requester, &request.version, keys.collect());
    Json::of(&adding.await?)
}

async fn add_to_room(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<add_backup_keys_for_room::v3::Request>,
) -> Result<Json> {
    let keys = BackupKeys::from([(request.room_id, sessions(request.sessions))]);
    let adding = services
        .encryption
        .add_backup_keys(&requester, &request.version, keys);
    Json::of(&adding.await?)
}

async fn add_session(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<add_backup_keys_for_session::v3::Request>,
) -> Result<Json> {
    let session = [(request.session_id, request.session_data)];
    let keys = BackupKeys::from([(request.room_id, sessions(session))]);
    let adding = services
        .encryption
        .add_backup_keys(&requester, &request.version, keys);
    Json::of(&adding.await?)
}

async fn delete_all(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<delete_backup_keys::v3::Request>,
) -> Result<Json> {
    let deleting =
        services
            .encryption
            .delete_backup_keys(&requester, &request.version, &Part::Whole);
    Json::of(&deleting.await?)
}

async fn delete_room(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<delete_backup_keys_for_room::v3::Request>,
) -> Result<Json> {
    let part = Part::Room(request.room_id);
    let deleting = services
        .encryption
        .delete_backup_keys(&requester, &request.version, &part);
    Json::of(&deleting.await?)
}

async fn delete_session(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<delete_backup_keys_for_session::v3::Request>,
) -> Result<Json> {
    let part = Part::Session(request.room_id, request.session_id);
    let deleting = services
        .encryption
        .delete_backup_keys(&requester, &request.version, &part);
    Json::of(&deleting.await?)
}

fn sessions<T>(
    sessions: impl IntoIterator<Item = (String, Raw<T>)>,
) -> BTreeMap<String, Box<RawValue>> {
    let sessions = sessions.into_iter();
    sessions.map(|(id, key)| (id, key.into_json())).collect()
}
