//! What Element X does, with the SDK that it is made of, against a running server; see ../README.md.
//!
//! HOMESERVER_URL says where the server is, RESTART_CMD is a command that kills it and starts it again.

#![recursion_limit = "512"] // of the SDK's futures

mod device;
mod line;
mod report;
mod steps;
mod trouble;
mod verification;

use std::{env, process::ExitCode};

use anyhow::{Context, ensure};
use device::{Account, Device};
use line::Line;
use matrix_sdk::{RoomState, encryption::recovery::RecoveryState};
use report::{Report, so, until};
use steps::{direct_chat, encrypted_room, invite, knows_device, verify_own, verify_people};
use tracing_subscriber::EnvFilter;
use trouble::{outage, restart};

#[tokio::main]
async fn main() -> ExitCode {
    if env::var_os("SDK_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::from_env("SDK_LOG"))
            .with_writer(std::io::stderr)
            .init();
    }
    let url = env::var("HOMESERVER_URL").unwrap_or_else(|_| "http://127.0.0.1:8008".to_owned());
    let mut report = Report::default();
    // It ends early when what failed leaves nothing to go on with; that is counted then.
    story(&mut report, &url).await;
    if report.sum() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Alice has several devices, all behind a line; Bob has his on the server's side of it.
async fn story(report: &mut Report, url: &str) -> Option<()> {
    let direct = url.trim_end_matches('/');
    let target = direct
        .strip_prefix("http://")
        .expect("HOMESERVER_URL begins with http://");
    let line = report
        .check("a line to the server", Line::to(target))
        .await?;
    let (alice, bob) = report
        .check("two people register", async {
            Ok((
                Account::register(direct, "alice").await?,
                Account::register(direct, "bob").await?,
            ))
        })
        .await?;

    let phone = report
        .check(
            "a login finds simplified sliding sync",
            Device::login(&line.url, &alice, "alice's phone"),
        )
        .await?;
    let bobs = report
        .check(
            "another person logs in",
            Device::login(direct, &bob, "bob's phone"),
        )
        .await?;
    for device in [&phone, &bobs] {
        report
            .check(
                format!("{}: the room list runs", device.name),
                device.running(),
            )
            .await?;
        report
            .check(
                format!("{}: the first device is cross-signed", device.name),
                device.verified(),
            )
            .await?;
        report
            .check(
                format!("{}: keys are backed up from the beginning", device.name),
                device.backing_up(),
            )
            .await?;
    }

    let room = report
        .check(
            "an encrypted room is made and listed",
            encrypted_room(&phone),
        )
        .await?;
    report
        .check(
            "the invite is listed, and accepted",
            invite(&phone, &bobs, &room),
        )
        .await?;
    report
        .check("messages go both ways, encrypted", async {
            phone.say(&room, "Hello Bob").await?;
            bobs.reads(&room, &["Hello Bob"]).await?;
            bobs.say(&room, "Hello Alice").await?;
            for device in [&phone, &bobs] {
                device.reads(&room, &["Hello Bob", "Hello Alice"]).await?;
            }
            Ok(())
        })
        .await?;
    let chat = report
        .check("a direct chat is such for both", direct_chat(&phone, &bobs))
        .await?;
    report
        .check(
            "two people verify each other by emoji in it",
            verify_people(&phone, &bobs, &chat),
        )
        .await;

    let tablet = report
        .check(
            "a second device logs in",
            Device::login(&line.url, &alice, "alice's tablet"),
        )
        .await?;
    report
        .check(
            "it reads what is written from now on, before it is verified",
            async {
                tablet.listed(&room, RoomState::Joined).await?;
                knows_device(&bobs, &tablet).await?;
                bobs.say(&room, "Is this your tablet?").await?;
                tablet.reads(&room, &["Is this your tablet?"]).await
            },
        )
        .await;
    report
        .check(
            "the two devices verify each other by emoji, and share secrets",
            verify_own(&tablet, &phone),
        )
        .await;
    report
        .check("and reads what was before it, from the backup", async {
            tablet
                .reads(&room, &["Hello Bob", "Hello Alice", "Is this your tablet?"])
                .await
        })
        .await;
    report
        .check("others see that it is signed by its owner", async {
            until("the signature", async || {
                let device = tablet.client.device_id().context("it is logged in")?;
                let encryption = bobs.client.encryption();
                let known = encryption.get_device(tablet.user_id(), device).await?;
                let signed = known.map(|device| device.is_verified_with_cross_signing());
                so(signed == Some(true), format!("{signed:?}"))
            })
            .await
        })
        .await;

    let recovery_key = report
        .check("recovery gives a key", async {
            let recovery = phone.client.encryption().recovery();
            let key = recovery.enable().wait_for_backups_to_upload().await?;
            ensure!(
                recovery.state() == RecoveryState::Enabled,
                "{:?}",
                recovery.state()
            );
            Ok(key)
        })
        .await;
    let laptop = report
        .check(
            "a third device logs in",
            Device::login(&line.url, &alice, "alice's laptop"),
        )
        .await?;
    if let Some(key) = recovery_key {
        report
            .check("a wrong recovery key opens nothing", async {
                let recovery = laptop.client.encryption().recovery();
                until("the recovery", async || {
                    so(
                        recovery.state() == RecoveryState::Incomplete,
                        format!("{:?}", recovery.state()),
                    )
                })
                .await?;
                let wrong = "EsTc 7Lqx fUTX yYPd 8XDm Cchw gqAx zTYw Kcdm Tpxy 8FKM ZHnD";
                ensure!(recovery.recover(wrong).await.is_err(), "it was accepted");
                Ok(())
            })
            .await;
        report
            .check(
                "the recovery key restores identity and backup on it",
                async {
                    laptop.client.encryption().recovery().recover(&key).await?;
                    laptop.verified().await?;
                    laptop.backing_up().await
                },
            )
            .await;
        report
            .check("it reads everything that was before it", async {
                laptop.listed(&room, RoomState::Joined).await?;
                laptop
                    .reads(&room, &["Hello Bob", "Hello Alice", "Is this your tablet?"])
                    .await
            })
            .await;
    }

    let tablet = restart(report, &room, &phone, tablet, &laptop, &bobs).await?;
    outage(
        report,
        &line,
        direct,
        &bob,
        &room,
        [&phone, &tablet, &laptop],
        &bobs,
    )
    .await?;

    // Not of Bob's tablet: what Alice's phone sent before it knew of it was not for it.
    for device in [&phone, &tablet, &laptop, &bobs] {
        report
            .check(
                format!("{}: nothing is undecryptable", device.name),
                device.nothing_unreadable(),
            )
            .await;
    }
    let gone = tablet.client.device_id()?.to_owned();
    report
        .check("a device logs out, and its token is void", tablet.logout())
        .await?;
    report
        .check("the others see that it is gone, and talk on", async {
            until("the device's end", async || {
                let devices = bobs
                    .client
                    .encryption()
                    .get_user_devices(phone.user_id())
                    .await?;
                so(devices.get(&gone).is_none(), "it is there still")
            })
            .await?;
            bobs.say_with_new_key(&room, "Has it gone?").await?;
            phone.reads(&room, &["Has it gone?"]).await
        })
        .await;
    Some(())
}
