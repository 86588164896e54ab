//! Profiles: what a user is called, looks like, and else tells everybody about themselves.

use http::StatusCode;
use ruma::UserId;
use serde_json::{Map, Value};

use super::{Accounts, Requester};
use crate::{
    error::{Error, Result},
    protocol::ids::UserNid,
    store::{View, schema::PROFILES},
};

/// The most that a whole profile may take, in bytes of JSON. See "Profiles".
const LARGEST_PROFILE: usize = 64 << 10;

/// The longest name of a field, in bytes.
const LONGEST_FIELD: usize = 255;

/// The longest display name, in characters.
const LONGEST_NAME: usize = 256;

/// The longest address of a picture, in bytes.
const LONGEST_AVATAR: usize = 1_000;

impl Accounts {
    /// The whole profile of a local user; none if there is no such user.
    pub fn profile(&self, user: &UserId) -> Result<Option<Map<String, Value>>> {
        let view = self.store.view();
        match self.find(&view, user)? {
            Some((nid, account)) if !account.deactivated => {
                let mut profile = Map::new();
                for row in PROFILES.scan(&view, &(nid,)) {
                    let ((_, field), json) = row?;
                    profile.insert(field, parse(&json)?);
                }
                Ok(Some(profile))
            }
            _ => Ok(None),
        }
    }

    /// One field of a local user's profile.
    pub fn profile_field(&self, user: &UserId, field: &str) -> Result<Option<Value>> {
        let view = self.store.view();
        let Some((nid, _)) = self.find(&view, user)? else {
            return Ok(None);
        };
        let json = PROFILES.get(&view, &(nid, field))?;
        json.map(|json| parse(&json)).transpose()
    }

    /// Changes one field of the user's own profile; `None` removes it. Says whether rooms show the field and it has
    /// changed, so that they are to be told.
    ///
    /// # Errors
    /// 403 for the profile of somebody else; 400 for what a field or a profile can not be.
    pub async fn set_profile_field(
        &self,
        requester: &Requester,
        user: &UserId,
        field: &str,
        value: Option<Value>,
    ) -> Result<bool> {
        requester.must_be(user)?;
        if requester.guest && field != "displayname" {
            let message = "Guests have only a display name";
            return Err(Error::guest_access_forbidden(message));
        }
        check_field(field)?;
        // How older clients take a name or a picture away.
        let is_shown = matches!(field, "displayname" | "avatar_url");
        let is_nothing = |value: &Value| value.is_null() || value.as_str() == Some("");
        let value = value.filter(|value| !is_shown || !is_nothing(value));
        if let Some(value) = &value {
            check_value(field, value)?;
        }
        let json = value.map(|value| value.to_string());
        let key = (requester.nid, field);
        let position = {
            let _changing = self.changing.lock();
            let view = self.store.latest();
            if PROFILES.get(&view, &key)? == json {
                return Ok(false);
            }
            if let Some(json) = &json {
                check_size(&view, requester.nid, field, json)?;
            }
            let committed = self.store.commit(|batch| {
                match &json {
                    Some(json) => PROFILES.put(batch, &key, json),
                    None => PROFILES.delete(batch, &key),
                }
                Ok(())
            })?;
            committed.position
        };
        self.store.durable(position).await?;
        Ok(is_shown)
    }
}

fn check_size(view: &View, user: UserNid, field: &str, json: &str) -> Result<()> {
    // Quotes, colon and comma come to each field, and braces around all of them.
    let size = |field: &str, json: &str| field.len() + json.len() + 4;
    let mut total = 2 + size(field, json);
    for row in PROFILES.scan(view, &(user,)) {
        let ((_, other), json) = row?;
        if other != field {
            total += size(&other, &json);
        }
    }
    if total > LARGEST_PROFILE {
        return Err(Error::api(
            StatusCode::BAD_REQUEST,
            "M_PROFILE_TOO_LARGE",
            format!("A profile has at most {LARGEST_PROFILE} bytes"),
        ));
    }
    Ok(())
}

fn parse(json: &str) -> Result<Value> {
    serde_json::from_str(json).map_err(|e| Error::Internal(format!("a profile is damaged: {e}")))
}

/// See "Common namespaced identifier grammar".
fn check_field(field: &str) -> Result<()> {
    if field.len() > LONGEST_FIELD {
        return Err(Error::api(
            StatusCode::BAD_REQUEST,
            "M_KEY_TOO_LARGE",
            format!("The name of a field has at most {LONGEST_FIELD} bytes"),
        ));
    }
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.".contains(&byte);
    if !field.starts_with(|first: char| first.is_ascii_lowercase()) || !field.bytes().all(allowed) {
        return Err(Error::invalid_param(
            "The name of a field begins with a-z and goes on with a-z, 0-9 and the characters _ - .",
        ));
    }
    Ok(())
}

fn check_value(field: &str, value: &Value) -> Result<()> {
    let text = || {
        let text = value.as_str();
        text.ok_or_else(|| Error::bad_json(format!("`{field}` is a text")))
    };
    match field {
        "displayname" if text()?.chars().count() > LONGEST_NAME => Err(Error::invalid_param(
            format!("A display name has at most {LONGEST_NAME} characters"),
        )),
        // Any text, as the reference server takes it: who shows a picture has to look at the address anyway, because
        // profiles of other servers and member events say what they like.
        "avatar_url" if text()?.len() > LONGEST_AVATAR => Err(Error::invalid_param(format!(
            "The address of a picture has at most {LONGEST_AVATAR} bytes"
        ))),
        _ => Ok(()),
    }
}
