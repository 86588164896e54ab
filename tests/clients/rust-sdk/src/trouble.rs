//! The node dies, and a line is down: nothing may be undecryptable for it.

use std::{env, time::Duration};

use anyhow::ensure;
use matrix_sdk::{RoomState, ruma::RoomId};
use tokio::{process::Command, time::sleep};

use crate::{
    device::{Account, Device},
    line::Line,
    report::Report,
    steps::{knows_device, verify_own},
};

/// How long the line is down.
const OUTAGE: Duration = Duration::from_secs(30);

/// The node is killed while people write, one app is closed meanwhile. Answers that app, opened again.
pub async fn restart(
    report: &mut Report,
    room: &RoomId,
    phone: &Device,
    tablet: Device,
    laptop: &Device,
    bobs: &Device,
) -> Option<Device> {
    let Ok(command) = env::var("RESTART_CMD") else {
        println!("skip  no RESTART_CMD: the node is not killed");
        return Some(tablet);
    };
    let closed = report.check("an app is closed", tablet.close()).await?;
    let alices: Vec<_> = (1..=10)
        .map(|number| format!("Alice, about the restart, {number}"))
        .collect();
    let bobs_own: Vec<_> = (1..=10)
        .map(|number| format!("Bob, about the restart, {number}"))
        .collect();
    report
        .check("messages with new keys, for the closed app too", async {
            for number in 1..=3 {
                bobs.say_with_new_key(room, &format!("Before the restart, {number}"))
                    .await?;
            }
            Ok(())
        })
        .await;
    report
        .check("the node is killed while two people write", async {
            let write = async {
                for (alice, bob) in alices.iter().zip(&bobs_own) {
                    phone.say(room, alice).await?;
                    bobs.say(room, bob).await?;
                    sleep(Duration::from_millis(100)).await;
                }
                Ok(())
            };
            let kill = async {
                sleep(Duration::from_millis(500)).await;
                let status = Command::new("sh").args(["-c", &command]).status().await?;
                ensure!(status.success(), "RESTART_CMD: {status}");
                Ok(())
            };
            tokio::try_join!(write, kill)?;
            Ok(())
        })
        .await?;
    for device in [phone, laptop, bobs] {
        report
            .check(
                format!("{}: reads all of it once, in its order", device.name),
                async {
                    device.reads(room, &alices).await?;
                    device.reads(room, &bobs_own).await
                },
            )
            .await;
    }
    let tablet = report
        .check("the closed app opens again", closed.open())
        .await?;
    report
        .check(
            "alice's tablet: reads what was written while it was closed",
            async {
                let before: Vec<_> = (1..=3)
                    .map(|number| format!("Before the restart, {number}"))
                    .collect();
                for bodies in [&before, &alices, &bobs_own] {
                    tablet.reads(room, bodies).await?;
                }
                Ok(())
            },
        )
        .await;
    Some(tablet)
}

/// Alice's line is down for a while: she writes, Bob writes with new keys, and he logs in on another device, which is
/// answered.
pub async fn outage(
    report: &mut Report,
    line: &Line,
    direct: &str,
    bob: &Account,
    room: &RoomId,
    alices: [&Device; 3],
    bobs: &Device,
) -> Option<()> {
    let written = [
        "Bob in the outage, 1",
        "Bob in the outage, 2",
        "Bob in the outage, 3",
    ];
    let queued = [
        "Alice in the outage, 1",
        "Alice in the outage, 2",
        "Alice in the outage, 3",
    ];
    line.cut();
    let began = tokio::time::Instant::now();
    let bobs_tablet = report
        .check("the line is cut; on the other side life goes on", async {
            for (bob, alice) in written.iter().zip(queued) {
                bobs.say_with_new_key(room, bob).await?;
                alices[0].say(room, alice).await?;
            }
            let tablet = Device::login(direct, bob, "bob's tablet").await?;
            verify_own(&tablet, bobs).await?;
            tablet.listed(room, RoomState::Joined).await?;
            knows_device(bobs, &tablet).await?;
            bobs.say_with_new_key(room, "Bob to all his devices")
                .await?;
            tablet.reads(room, &["Bob to all his devices"]).await?;
            Ok(tablet)
        })
        .await;
    tokio::time::sleep_until(began + OUTAGE).await;
    line.mend();
    let bobs_tablet = bobs_tablet?;
    for device in alices {
        report
            .check(
                format!("{}: reads what was written in the outage", device.name),
                async {
                    device.reads(room, &written).await?;
                    device.reads(room, &["Bob to all his devices"]).await
                },
            )
            .await;
    }
    report
        .check("what waited for the line is read by all", async {
            for device in alices.into_iter().chain([bobs]) {
                device.reads(room, &queued).await?;
            }
            Ok(())
        })
        .await;
    report
        .check(
            "the device that came in the outage is known, and reads",
            async {
                knows_device(alices[0], &bobs_tablet).await?;
                alices[0].say(room, "Welcome, tablet").await?;
                bobs_tablet.reads(room, &["Welcome, tablet"]).await
            },
        )
        .await;
    Some(())
}
