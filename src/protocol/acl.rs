//! Which servers a room keeps out. See "Server Access Control Lists (ACLs)" in the server-server API.

use ruma::ServerName;
use serde::Deserialize;
use serde_json::Value;

use super::glob::Glob;

/// The rules of a room's `m.room.server_acl`, read once to be asked often.
#[derive(Debug)]
pub struct Acl {
    allow_ip_literals: bool,
    allow: Vec<Glob>,
    deny: Vec<Glob>,
}

impl Acl {
    /// Reads the content of the event. What is not of the right type counts as not set.
    #[must_use]
    pub fn new(content: &str) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Content {
            allow_ip_literals: Value,
            allow: Value,
            deny: Value,
        }
        let content: Content = serde_json::from_str(content).unwrap_or_default();
        let globs = |list: &Value| -> Vec<Glob> {
            let texts = list.as_array().into_iter().flatten();
            texts
                .filter_map(Value::as_str)
                .map(|text| Glob::new(&text.to_lowercase()))
                .collect()
        };
        Self {
            allow_ip_literals: content.allow_ip_literals.as_bool().unwrap_or(true),
            allow: globs(&content.allow),
            deny: globs(&content.deny),
        }
    }

    /// Whether a server may take part. Its port does not matter.
    #[must_use]
    pub fn allows(&self, server: &ServerName) -> bool {
        if !self.allow_ip_literals && server.is_ip_literal() {
            return false;
        }
        let host = server.host().to_lowercase();
        let matches = |globs: &[Glob]| globs.iter().any(|glob| glob.matches(&host));
        !matches(&self.deny) && matches(&self.allow)
    }
}

#[cfg(test)]
mod tests {
    //! The rules one by one.

    use serde_json::json;

    use super::*;

    #[test]
    fn the_rules() {
        let all = json!({ "allow": ["*"], "deny": ["*.Evil.example", "b?d.example"], "allow_ip_literals": false });
        let some = json!({ "allow": ["good.example", 5], "deny": "good.example" });
        for (content, server, allowed) in [
            (&all, "good.example", true),
            (&all, "good.example:8448", true),
            (&all, "EVIL.example", true),
            (&all, "x.evil.EXAMPLE:1", false),
            (&all, "bad.example", false),
            (&all, "baad.example", true),
            (&all, "10.0.0.1", false),
            (&all, "[::1]:8448", false),
            (&some, "good.example", true),
            (&some, "other.example", false),
            (&some, "10.0.0.1", false),
            (&json!({}), "good.example", false),
            (&json!({ "allow": ["10.*"] }), "10.0.0.1", true),
        ] {
            let server = <&ServerName>::try_from(server).expect("a server name");
            let acl = Acl::new(&content.to_string());
            assert_eq!(acl.allows(server), allowed, "{server} by {content}");
        }
        let server = <&ServerName>::try_from("a.example").expect("a server name");
        assert!(
            !Acl::new("[]").allows(server),
            "what is no rule lets nobody in"
        );
    }
}
