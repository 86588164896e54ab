//! "Key management" of "End-to-End Encryption".

use std::sync::Arc;

use ruma::api::client::keys::{
    claim_keys, get_key_changes, get_keys, upload_keys, upload_signatures, upload_signing_keys,
};
use ruma::serde::Raw;
use serde_json::json;

use crate::{
    error::{Error, Result},
    http::{extract::Ruma, respond::Json, routes::Routes},
    protocol::token::SyncToken,
    service::{
        Services,
        e2ee::{SigningKeys, Upload},
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .also_guests(upload)
        .also_guests(query)
        .also_guests(claim)
        .on(changes)
        .on(upload_signing)
        .on(sign)
}

async fn upload_signing(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<upload_signing_keys::v3::Request>,
) -> Result<upload_signing_keys::v3::Response> {
    let keys = SigningKeys {
        master: request.master_key.map(Raw::into_json),
        self_signing: request.self_signing_key.map(Raw::into_json),
        user_signing: request.user_signing_key.map(Raw::into_json),
    };
    let (encryption, auth) = (&services.encryption, request.auth.as_ref());
    let uploaded = encryption.upload_signing_keys(&requester, keys, auth);
    uploaded.await?;
    Ok(upload_signing_keys::v3::Response::new())
}

async fn sign(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<upload_signatures::v3::Request>,
) -> Result<Json> {
    let signed = request.signed_keys.into_iter().map(|(user, keys)| {
        let keys = keys.iter();
        let keys = keys.map(|(name, key)| (name.to_owned(), key.to_owned()));
        (user, keys.collect())
    });
    let uploaded = services
        .federation
        .upload_signatures(&requester, signed.collect());
    Json::of(&json!({ "failures": uploaded.await? }))
}

async fn upload(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<upload_keys::v3::Request>,
) -> Result<Json> {
    let one_time = request.one_time_keys.into_iter();
    let fallback = request.fallback_keys.into_iter();
    let upload = Upload {
        device_keys: request.device_keys.map(Raw::into_json),
        one_time: one_time
            .map(|(id, key)| (id.to_string(), key.into_json()))
            .collect(),
        fallback: fallback
            .map(|(id, key)| (id.to_string(), key.into_json()))
            .collect(),
    };
    let counts = services.encryption.upload_keys(&requester, upload).await?;
    Json::of(&json!({ "one_time_key_counts": counts }))
}

async fn query(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_keys::v3::Request>,
) -> Result<Json> {
    let wanted = request.device_keys.into_iter().map(|(user, devices)| {
        let devices = devices.into_iter().map(|device| device.to_string());
        (user, devices.collect())
    });
    let asked = services
        .federation
        .query_keys(&requester, wanted.collect(), request.timeout);
    Json::of(&asked.await?)
}

async fn changes(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_key_changes::v3::Request>,
) -> Result<get_key_changes::v3::Response> {
    let token = |name: &str, text: &str| {
        let token = text.parse::<SyncToken>();
        token.map_err(|e| Error::invalid_param(format!("{name}: {e}")))
    };
    let from = token("from", &request.from)?;
    token("to", &request.to)?;
    let lists = services.sync.device_lists_since(&requester, from)?;
    Ok(get_key_changes::v3::Response::new(
        lists.changed.into_iter().collect(),
        lists.left.into_iter().collect(),
    ))
}

async fn claim(
    services: Arc<Services>,
    Ruma { request, .. }: Ruma<claim_keys::v3::Request>,
) -> Result<Json> {
    let wanted = request.one_time_keys.into_iter().map(|(user, devices)| {
        let devices = devices.into_iter();
        let devices =
            devices.map(|(device, algorithm)| (device.to_string(), algorithm.to_string()));
        (user, devices.collect())
    });
    let asked = services
        .federation
        .claim_keys(wanted.collect(), request.timeout);
    Json::of(&asked.await?)
}
