//! What users do to rooms.

use std::{fmt, sync::Arc};

use http::StatusCode;
use ruma::OwnedServerName;
use serde_json::{Value, json};

use crate::{
    identity::identity,
    room::Room,
    server::{Answer, Client, PASSWORD, text},
    world::World,
};

/// Something that a user does.
#[derive(Clone)]
pub(crate) enum Deed {
    /// Says something that nobody else says.
    Say { room: Arc<Room>, text: String },
    /// Changes the state of a room.
    Set {
        room: Arc<Room>,
        kind: &'static str,
        content: Value,
    },
    /// Gives somebody this power.
    Empower {
        room: Arc<Room>,
        whom: String,
        power: i64,
    },
    /// Joins.
    Join {
        room: Arc<Room>,
        via: OwnedServerName,
    },
    /// Leaves.
    Leave { room: Arc<Room> },
    /// Invites, kicks, bans or unbans somebody.
    Change {
        room: Arc<Room>,
        how: &'static str,
        whom: String,
    },
    /// Asks to be let in.
    Knock {
        room: Arc<Room>,
        via: OwnedServerName,
    },
    /// Sends something to the devices of somebody that is sent to nobody else.
    Whisper { whom: String, text: String },
    /// Redacts an event.
    Redact { room: Arc<Room>, event: String },
    /// Has read up to an event.
    Read { room: Arc<Room>, event: String },
    /// Types for a while.
    Type { room: Arc<Room> },
    /// Says how they are.
    Appear {
        presence: &'static str,
        text: String,
    },
    /// Logs in with a new device that has keys.
    Equip { device: String, seed: u8 },
    /// Gives the first device another name.
    Rename { name: String },
    /// Logs a device out.
    LogOut { device: String, token: String },
}

impl fmt::Debug for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Say { room, text } => write!(f, "says {text} in {}", room.0),
            Self::Set {
                room,
                kind,
                content,
            } => write!(f, "sets {kind} of {} to {content}", room.0),
            Self::Empower { room, whom, power } => {
                write!(f, "gives {whom} power {power} in {}", room.0)
            }
            Self::Join { room, via } => write!(f, "joins {} via {via}", room.0),
            Self::Knock { room, via } => write!(f, "knocks at {} via {via}", room.0),
            Self::Whisper { whom, text } => write!(f, "whispers {text} to {whom}"),
            Self::Leave { room } => write!(f, "leaves {}", room.0),
            Self::Change { room, how, whom } => write!(f, "does {how} to {whom} in {}", room.0),
            Self::Redact { room, event } => write!(f, "redacts {event} in {}", room.0),
            Self::Read { room, event } => write!(f, "has read {event} in {}", room.0),
            Self::Type { room } => write!(f, "types in {}", room.0),
            Self::Appear { presence, text } => write!(f, "is {presence}, {text}"),
            Self::Equip { device, .. } => write!(f, "gets the device {device}"),
            Self::Rename { name } => write!(f, "calls the first device {name}"),
            Self::LogOut { device, .. } => write!(f, "loses the device {device}"),
        }
    }
}

/// What came of it.
pub(crate) struct Done {
    pub(crate) who: usize,
    pub(crate) deed: Deed,
    pub(crate) status: StatusCode,
    pub(crate) body: Value,
}

impl Deed {
    /// Makes a room that anybody may join.
    pub(crate) async fn create(creator: &Client, version: &str) -> Room {
        let body = json!({ "preset": "public_chat", "room_version": version });
        Room::create(creator, body).await
    }

    /// The room that it is about, if it is about one.
    pub(crate) fn room(&self) -> Option<&Arc<Room>> {
        Some(match self {
            Self::Whisper { .. }
            | Self::Appear { .. }
            | Self::Equip { .. }
            | Self::Rename { .. }
            | Self::LogOut { .. } => return None,
            Self::Say { room, .. }
            | Self::Set { room, .. }
            | Self::Empower { room, .. }
            | Self::Join { room, .. }
            | Self::Knock { room, .. }
            | Self::Leave { room }
            | Self::Change { room, .. }
            | Self::Redact { room, .. }
            | Self::Read { room, .. }
            | Self::Type { room } => room,
        })
    }

    pub(crate) async fn carry_out(self, who: usize, client: Client) -> Done {
        let (status, body) = match &self {
            Self::Say { room, text } => {
                let content = json!({ "msgtype": "m.text", "body": text });
                // What is said again because nobody answered is the same.
                let path = format!("send/m.room.message/{text}");
                room.put(&client, &path, content).await
            }
            Self::Set {
                room,
                kind,
                content,
            } => {
                let path = format!("state/{kind}");
                room.put(&client, &path, content.clone()).await
            }
            Self::Empower { room, whom, power } => {
                let path = "state/m.room.power_levels";
                match room.get(&client, path).await {
                    (StatusCode::OK, mut levels) => {
                        levels["users"][whom] = (*power).into();
                        room.put(&client, path, levels).await
                    }
                    refused => refused,
                }
            }
            Self::Join { room, via } => {
                let path = format!("/_matrix/client/v3/join/{}?via={via}", room.0);
                client.post(&path, json!({})).await
            }
            Self::Knock { room, via } => {
                let path = format!("/_matrix/client/v3/knock/{}?via={via}", room.0);
                client.post(&path, json!({})).await
            }
            Self::Whisper { whom, text } => {
                let messages = json!({ (whom): { "*": { "text": text } } });
                let path = format!("/_matrix/client/v3/sendToDevice/m.test/{text}");
                client.put(&path, json!({ "messages": messages })).await
            }
            Self::Leave { room } => room.post(&client, "leave", json!({})).await,
            Self::Change { room, how, whom } => {
                room.post(&client, how, json!({ "user_id": whom })).await
            }
            Self::Redact { room, event } => {
                let path = format!("redact/{event}/of-{event}");
                room.put(&client, &path, json!({})).await
            }
            Self::Read { room, event } => {
                let path = format!("receipt/m.read/{event}");
                room.post(&client, &path, json!({})).await
            }
            Self::Type { room } => {
                let path = format!("typing/{}", client.user_id);
                let body = json!({ "typing": true, "timeout": 20_000 });
                room.put(&client, &path, body).await
            }
            Self::Appear { presence, text } => {
                let path = format!("/_matrix/client/v3/presence/{}/status", client.user_id);
                let body = json!({ "presence": presence, "status_msg": text });
                client.put(&path, body).await
            }
            Self::Equip { device, seed } => equip(&client, device, *seed).await,
            Self::Rename { name } => {
                let path = format!("/_matrix/client/v3/devices/{}", client.device_id);
                client.put(&path, json!({ "display_name": name })).await
            }
            Self::LogOut { token, .. } => {
                let mut device = client.clone();
                device.token = Some(token.clone());
                device.post("/_matrix/client/v3/logout", json!({})).await
            }
        };
        Done {
            who,
            deed: self,
            status,
            body,
        }
    }
}

/// Logs in with a new device, and gives it keys.
async fn equip(client: &Client, device: &str, seed: u8) -> Answer {
    let user = json!({ "type": "m.id.user", "user": client.user_id });
    let body = json!({
        "type": "m.login.password", "identifier": user, "password": PASSWORD, "device_id": device,
    });
    let (status, answer) = client.post("/_matrix/client/v3/login", body).await;
    if status != StatusCode::OK {
        return (status, answer);
    }
    let mut new = client.clone();
    device.clone_into(&mut new.device_id);
    new.token = Some(text(&answer, "access_token"));
    let keys = json!({ "device_keys": identity(&new, seed) });
    match new.post("/_matrix/client/v3/keys/upload", keys).await {
        (StatusCode::OK, _) => (StatusCode::OK, answer),
        refused => refused,
    }
}

impl Done {
    /// The event that was sent.
    pub(crate) fn event(&self) -> Option<String> {
        let is_sent = self.status == StatusCode::OK && self.body["event_id"].is_string();
        is_sent.then(|| text(&self.body, "event_id"))
    }
}

impl World {
    /// Something that a user may want to do; perhaps they may not.
    pub(crate) fn some_deed(&self, who: usize) -> Deed {
        let room = self.rooms[self.pick(self.rooms.len())].clone();
        let whom = self.people[self.someone()].client.user_id.clone();
        let number = self.draw(1_000_000);
        let via = self.offices[self.pick(self.offices.len())].name.clone();
        match self.draw(100) {
            0..6 => Deed::Whisper {
                whom,
                text: format!("w{who}-{number}"),
            },
            6..47 => Deed::Say {
                room,
                text: format!("m{who}-{number}"),
            },
            47..53 => Deed::Set {
                room,
                kind: "m.room.topic",
                content: json!({ "topic": number.to_string() }),
            },
            53..57 => Deed::Set {
                room,
                kind: "m.room.name",
                content: json!({ "name": number.to_string() }),
            },
            57..60 if !self.is_peaceful => Deed::Knock { room, via },
            57..67 => Deed::Join { room, via },
            // Whoever joins meanwhile makes an invite void, so there are none where nothing may be refused.
            67..72 if !self.is_peaceful => Deed::Change {
                room,
                how: "invite",
                whom,
            },
            72..78 => self.some_redaction(room),
            _ if self.is_peaceful => Deed::Say {
                room,
                text: format!("p{who}-{number}"),
            },
            78..83 => Deed::Leave { room },
            83..91 => Deed::Change {
                room,
                how: ["kick", "ban", "unban"][self.pick(3)],
                whom,
            },
            91..96 => Deed::Empower {
                room,
                whom,
                power: [0, 50, 100][self.pick(3)],
            },
            _ => Deed::Set {
                room,
                kind: "m.room.join_rules",
                // With a number, or what is set again is the old event, which may be from before others came.
                content: self.some_join_rule(number),
            },
        }
    }

    /// Something that makes no event.
    pub(crate) fn some_quiet_deed(&self, who: usize) -> Deed {
        let room = self.rooms[self.pick(self.rooms.len())].clone();
        let number = self.draw(1_000_000);
        match self.draw(100) {
            0..50 => {
                let said = self.said(&room);
                if said.is_empty() {
                    return Deed::Type { room };
                }
                let event = said[self.pick(said.len())].clone();
                Deed::Read { room, event }
            }
            50..65 => Deed::Type { room },
            65..75 => Deed::Appear {
                presence: ["online", "unavailable", "offline"][self.pick(3)],
                text: format!("s{who}-{number}"),
            },
            75..80 => Deed::Rename {
                name: format!("n{who}-{number}"),
            },
            80..93 => Deed::Equip {
                device: format!("D{number}"),
                seed: number.to_le_bytes()[0],
            },
            _ => self.some_log_out(who, number),
        }
    }

    fn some_log_out(&self, who: usize, number: u64) -> Deed {
        let of_theirs = self.done.iter().filter(|done| done.who == who);
        let mut equipped = of_theirs.filter_map(|done| match &done.deed {
            Deed::Equip { device, .. } if done.status == StatusCode::OK => {
                Some((device.clone(), text(&done.body, "access_token")))
            }
            _ => None,
        });
        match equipped.next_back() {
            Some((device, token)) => Deed::LogOut { device, token },
            None => Deed::Equip {
                device: format!("E{number}"),
                seed: number.to_le_bytes()[0],
            },
        }
    }

    /// The messages of a room of which those who sent them know.
    fn said(&self, room: &Room) -> Vec<String> {
        let of_room = |done: &&Done| done.deed.room().is_some_and(|of| of.0 == room.0);
        self.done
            .iter()
            .filter(of_room)
            .filter(|done| matches!(done.deed, Deed::Say { .. }))
            .filter_map(Done::event)
            .collect()
    }

    fn some_join_rule(&self, number: u64) -> Value {
        let other = &self.rooms[self.pick(self.rooms.len())].0;
        let rule = ["public", "invite", "knock", "restricted"][self.pick(4)];
        let allow = json!([{ "type": "m.room_membership", "room_id": other }]);
        json!({ "join_rule": rule, "allow": allow, "number": number })
    }

    fn some_redaction(&self, room: Arc<Room>) -> Deed {
        let said = self.said(&room);
        if said.is_empty() {
            let text = format!("r{}", self.draw(1_000_000));
            return Deed::Say { room, text };
        }
        let event = said[self.pick(said.len())].clone();
        Deed::Redact { room, event }
    }
}
