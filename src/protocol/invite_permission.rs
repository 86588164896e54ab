//! Who may invite a user: what they have set in their account data. See "Invite permission", and MSC4155 for the rules by
//! user and server.

use ruma::UserId;
use serde_json::Value;

use super::glob::Glob;

/// Account data that turns all invites away, and the errcode for who is turned away: that of the specification, and that
/// from before it was in there.
pub const SETTINGS: [(&str, &str); 2] = [
    ("m.invite_permission_config", "M_INVITE_BLOCKED"),
    (
        "org.matrix.msc4380.invite_permission_config",
        UNSTABLE_BLOCKED,
    ),
];

/// Account data with rules by user and server. See MSC4155.
pub const RULES: &str = "org.matrix.msc4155.invite_permission_config";

/// The errcode of proposals.
const UNSTABLE_BLOCKED: &str = "ORG.MATRIX.MSC4155.INVITE_BLOCKED";

/// The longest pattern, in bytes: no user id is longer.
const LONGEST_PATTERN: usize = 255;

/// What becomes of an invite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// The user is shown it.
    Allowed,
    /// It is made, but the user is not shown it.
    Ignored,
    /// It is refused with this errcode.
    Blocked(&'static str),
}

/// Whether content of [`SETTINGS`] turns all invites away.
pub fn blocks_all(content: &str) -> bool {
    let content = serde_json::from_str::<Value>(content).unwrap_or_default();
    content["default_action"] == "block"
}

/// What content of [`RULES`] says about somebody who invites.
pub fn by_rules(content: &str, inviter: &UserId) -> Permission {
    // Clients may store anything; what is no list has no patterns.
    let content = serde_json::from_str::<Value>(content).unwrap_or_default();
    let kinds = [
        ("allowed", Permission::Allowed),
        ("ignored", Permission::Ignored),
        ("blocked", Permission::Blocked(UNSTABLE_BLOCKED)),
    ];
    let subjects = [
        ("users", inviter.as_str()),
        ("servers", inviter.server_name().as_str()),
    ];
    for (subject, text) in subjects {
        for (kind, permission) in kinds {
            let patterns = content[format!("{kind}_{subject}")].as_array();
            let patterns = patterns.into_iter().flatten().filter_map(Value::as_str);
            let mut patterns = patterns.filter(|pattern| pattern.len() <= LONGEST_PATTERN);
            if patterns.any(|pattern| Glob::new(pattern).matches(text)) {
                return permission;
            }
        }
    }
    Permission::Allowed
}

#[cfg(test)]
mod tests {
    use ruma::user_id;
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_word_block_turns_all_away() {
        assert!(blocks_all(r#"{"default_action":"block"}"#));
        for content in [
            r#"{"default_action":"allow"}"#,
            r#"{"default_action":["block"]}"#,
            "{}",
            "[]",
            "",
        ] {
            assert!(!blocks_all(content), "{content}");
        }
    }

    #[test]
    fn users_come_before_servers_and_allowing_before_the_rest() {
        let bob = user_id!("@bob:b.example");
        let blocked = Permission::Blocked(UNSTABLE_BLOCKED);
        for (content, expect) in [
            (json!({}), Permission::Allowed),
            (
                json!({ "blocked_users": null, "ignored_users": 1 }),
                Permission::Allowed,
            ),
            (json!({ "blocked_users": ["@bob:b.example"] }), blocked),
            (json!({ "blocked_users": [null, "@b?b:*"] }), blocked),
            (json!({ "ignored_servers": ["b.*"] }), Permission::Ignored),
            (
                json!({ "blocked_servers": ["*"], "ignored_servers": ["*"] }),
                Permission::Ignored,
            ),
            (
                json!({ "blocked_servers": ["*"], "allowed_users": ["@bob:*"] }),
                Permission::Allowed,
            ),
            (
                json!({ "blocked_users": ["@bob:*"], "allowed_servers": ["*"] }),
                blocked,
            ),
            (
                json!({ "blocked_users": ["*".repeat(256)] }),
                Permission::Allowed,
            ),
        ] {
            assert_eq!(by_rules(&content.to_string(), bob), expect, "{content}");
        }
    }
}
