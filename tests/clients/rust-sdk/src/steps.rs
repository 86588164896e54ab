//! What people do with a device or two.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use matrix_sdk::{
    RoomState,
    ruma::{
        OwnedRoomId, RoomId, UserId,
        api::client::room::create_room::v3::{Request as CreateRoom, RoomPreset},
        events::{
            InitialStateEvent,
            room::{encryption::RoomEncryptionEventContent, member::MembershipState},
        },
    },
};
use tokio::time::sleep;

use crate::{
    device::Device,
    report::{so, until},
    verification::compare_emoji,
};

/// A room with encryption from its first moment, as it is in the owner's list.
pub async fn encrypted_room(owner: &Device) -> Result<OwnedRoomId> {
    let mut request = CreateRoom::new();
    request.name = Some("Office".to_owned());
    request.preset = Some(RoomPreset::PrivateChat);
    let encryption = RoomEncryptionEventContent::with_recommended_defaults();
    request.initial_state = vec![InitialStateEvent::with_empty_state_key(encryption).to_raw_any()];
    let room_id = owner
        .client
        .create_room(request)
        .await?
        .room_id()
        .to_owned();
    let room = owner.listed(&room_id, RoomState::Joined).await?;
    until("its name and encryption", async || {
        let name = room.cached_display_name().map(|name| name.to_string());
        let state = room.encryption_state();
        let right = name.as_deref() == Some("Office") && state.is_encrypted();
        so(right, format!("{name:?}, {state:?}"))
    })
    .await?;
    Ok(room_id)
}

/// The guest sees who invites where, and joins; the owner sees that.
pub async fn invite(owner: &Device, guest: &Device, room_id: &RoomId) -> Result<()> {
    owner
        .room(room_id)?
        .invite_user_by_id(guest.user_id())
        .await?;
    let room = guest.listed(room_id, RoomState::Invited).await?;
    until("the invite's details", async || {
        let inviter = match room.invite_details().await {
            Ok(details) => details.inviter.map(|inviter| inviter.user_id().to_owned()),
            Err(error) => return Ok(Err(error.to_string())), // Listed already, its state not yet stored.
        };
        let (name, by) = (room.name(), inviter.as_deref());
        let right = name.as_deref() == Some("Office") && by == Some(owner.user_id());
        so(right, format!("{name:?}, by {by:?}"))
    })
    .await?;
    room.join().await?;
    guest.listed(room_id, RoomState::Joined).await?;
    ensure!(
        guest.room_list(RoomState::Invited).await?.is_empty(),
        "the invite is still there"
    );
    joined(owner, guest, room_id).await
}

/// A chat of two, encrypted: both have it among their direct chats.
pub async fn direct_chat(one: &Device, other: &Device) -> Result<OwnedRoomId> {
    let room = one.client.create_dm(other.user_id()).await?;
    let room_id = room.room_id().to_owned();
    let invited = other.listed(&room_id, RoomState::Invited).await?;
    until("an invite to a direct chat", async || {
        so(invited.is_direct().await?, "an invite to a room")
    })
    .await?;
    invited.join().await?;
    joined(one, other, &room_id).await?;
    until("the direct chat", async || {
        let at_one = one.room(&room_id)?;
        let at_other = other.room(&room_id)?;
        let direct = at_one.is_direct().await? && at_other.is_direct().await?;
        let encrypted = [&at_one, &at_other].map(|room| room.encryption_state().is_encrypted());
        so(
            direct && encrypted == [true; 2],
            format!("direct {direct}, encrypted {encrypted:?}"),
        )
    })
    .await?;
    // Both look at it: the list alone fetches one event of it at a time, and would miss others that came with it.
    one.open(&room_id).await?;
    other.open(&room_id).await?;
    Ok(room_id)
}

/// Waits until the owner sees that the guest has joined.
async fn joined(owner: &Device, guest: &Device, room_id: &RoomId) -> Result<()> {
    until("the join", async || {
        let member = owner
            .room(room_id)?
            .get_member_no_sync(guest.user_id())
            .await?;
        let membership = member.map(|member| member.membership().clone());
        let joined = membership == Some(MembershipState::Join);
        so(joined, format!("{membership:?}"))
    })
    .await
}

/// Two people who share a direct chat compare emoji, and then trust each other's identity.
pub async fn verify_people(one: &Device, other: &Device, room_id: &RoomId) -> Result<()> {
    let known = |device: &Device, user_id: &UserId| {
        let (encryption, user_id) = (device.client.encryption(), user_id.to_owned());
        async move { encryption.get_user_identity(&user_id).await }
    };
    let identity = until("the other's identity", async || {
        Ok(known(one, other.user_id())
            .await?
            .ok_or_else(|| "none".to_owned()))
    })
    .await?;
    ensure!(!identity.is_verified(), "verified without a verification");
    let request = identity.request_verification().await?;
    let verified = async {
        compare_emoji(one, request, other).await?;
        until("the signatures", async || {
            let both = [
                known(one, other.user_id()).await?,
                known(other, one.user_id()).await?,
            ];
            let each = both.map(|identity| identity.is_some_and(|identity| identity.is_verified()));
            so(each == [true; 2], format!("{each:?}"))
        })
        .await
    };
    // In a room, the SDK sends its next step when the connection for keys has heard something, or half a minute later.
    // So they talk.
    let talk = async {
        let mut round = 0;
        loop {
            round += 1;
            for device in [one, other] {
                let body = format!("Now, at {}? {round}", device.name);
                device.say_with_new_key(room_id, &body).await?;
            }
            sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        done = verified => done,
        failed = talk => failed,
    }
}

/// Two devices of one person compare emoji; the new one is then given the secrets of the other.
pub async fn verify_own(new: &Device, old: &Device) -> Result<()> {
    let identity = until("one's own identity", async || {
        let encryption = new.client.encryption();
        let found = encryption.get_user_identity(new.user_id()).await?;
        Ok(found.ok_or_else(|| "none".to_owned()))
    })
    .await?;
    // Else the request would go to nobody, or come from nobody known, who is not answered.
    knows_device(new, old).await?;
    knows_device(old, new).await?;
    compare_emoji(new, identity.request_verification().await?, old).await?;
    new.verified().await?;
    new.backing_up().await
}

/// Waits until `watcher` has been told of the device.
pub async fn knows_device(watcher: &Device, device: &Device) -> Result<()> {
    let id = device.client.device_id().context("it is logged in")?;
    until("the new device", async || {
        let known = watcher
            .client
            .encryption()
            .get_device(device.user_id(), id)
            .await?;
        so(known.is_some(), "the others")
    })
    .await
}
