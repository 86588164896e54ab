//! Writes JSON objects member by member, so that stored JSON is copied and never parsed.

use crate::protocol::format::push_string;

/// A JSON object that is being written; [`finish`](Self::finish) closes it.
pub(super) struct Object<'o> {
    out: &'o mut String,
    empty: bool,
}

impl<'o> Object<'o> {
    pub(super) fn new(out: &'o mut String) -> Self {
        out.push('{');
        Self { out, empty: true }
    }

    /// Begins a member and gives where its value is to be written.
    pub(super) fn member(&mut self, name: &str) -> &mut String {
        if !std::mem::take(&mut self.empty) {
            self.out.push(',');
        }
        push_string(self.out, name);
        self.out.push(':');
        self.out
    }

    /// A member that is JSON already.
    pub(super) fn json(&mut self, name: &str, json: &str) {
        self.member(name).push_str(json);
    }

    /// A member that is a text.
    pub(super) fn text(&mut self, name: &str, text: &str) {
        push_string(self.member(name), text);
    }

    /// `{"events":[..]}`, if there are any; `events` is what stands between the brackets.
    pub(super) fn events(&mut self, name: &str, events: &str) {
        if !events.is_empty() {
            self.event_list(name, events);
        }
    }

    /// `{"events":[..]}`, even if there are none.
    pub(super) fn event_list(&mut self, name: &str, events: &str) {
        let out = self.member(name);
        out.push_str("{\"events\":[");
        out.push_str(events);
        out.push_str("]}");
    }

    /// A member that is an object of ready members, if there are any.
    pub(super) fn object(&mut self, name: &str, members: &[(String, String)]) {
        if members.is_empty() {
            return;
        }
        let mut object = Object::new(self.member(name));
        for (key, json) in members {
            object.json(key, json);
        }
        object.finish();
    }

    pub(super) fn finish(self) {
        self.out.push('}');
    }
}

/// Appends an item to what stands between the brackets of a list.
pub(super) fn push_item(list: &mut String, item: &str) {
    if !list.is_empty() {
        list.push(',');
    }
    list.push_str(item);
}

/// `{"content":..,"type":..}`, as account data and ephemeral events are told.
pub(super) fn plain_event(event_type: &str, content: &str) -> String {
    let mut out = String::with_capacity(content.len() + event_type.len() + 24);
    let mut object = Object::new(&mut out);
    object.json("content", content);
    object.text("type", event_type);
    object.finish();
    out
}
