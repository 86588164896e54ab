//! Finds what a Rust file takes from its own crate, without a parser of the whole language: comments and texts are
//! removed, then every path that starts with `crate`, `super` or `self` is read, its braces expanded.

/// The paths below `crate` that `text`, the file of `module`, mentions. `use crate::{a, b::{c, d}};` gives `a`,
/// `b::c` and `b::d`; a path in the middle of code counts as well.
pub(crate) fn imports(text: &str, module: &[&str]) -> Vec<Vec<String>> {
    let code = without_comments_and_texts(text);
    let tokens = tokens(&code);
    let mut found = Vec::new();
    // For every open brace: the name of the inline module it belongs to, if it does.
    let mut braces: Vec<Option<&str>> = Vec::new();
    let mut index = 0;
    while let Some(token) = tokens.get(index).copied() {
        match token {
            "{" => {
                let is_module = index >= 2 && tokens[index - 2] == "mod";
                braces.push(is_module.then(|| tokens[index - 1]));
            }
            "}" => drop(braces.pop()),
            "crate" | "super" | "self" => {
                let is_start = index == 0 || tokens[index - 1] != "::";
                if is_start && tokens.get(index + 1) == Some(&"::") {
                    let inside = module.iter().chain(braces.iter().flatten());
                    let inside: Vec<_> = inside.copied().collect();
                    index = expand(&tokens, index, &[], &inside, &mut found);
                    continue;
                }
            }
            _ => {}
        }
        index += 1;
    }
    found
}

/// Reads the tree of paths that starts at `index`, below `prefix`, and returns where it ends.
fn expand(
    tokens: &[&str],
    mut index: usize,
    prefix: &[String],
    module: &[&str],
    found: &mut Vec<Vec<String>>,
) -> usize {
    let mut path = prefix.to_vec();
    loop {
        match tokens.get(index).copied() {
            Some("crate") => path.clear(),
            Some("super") => {
                // The first one starts at this file's module, later ones climb on.
                if path.is_empty() {
                    path = module.iter().map(ToString::to_string).collect();
                }
                path.pop();
            }
            Some("self") => {
                if prefix.is_empty() {
                    path = module.iter().map(ToString::to_string).collect();
                }
            }
            Some("{") => {
                index += 1;
                while let Some(token) = tokens.get(index).copied() {
                    match token {
                        "}" => return index + 1,
                        "," => index += 1,
                        _ => index = expand(tokens, index, &path, module, found),
                    }
                }
                return index;
            }
            Some(name) => path.push(name.to_owned()),
            None => return index,
        }
        index += 1;
        if tokens.get(index) != Some(&"::") {
            found.push(path);
            // `as name` renames what was imported.
            return if tokens.get(index) == Some(&"as") {
                index + 2
            } else {
                index
            };
        }
        index += 1;
    }
}

/// Names, `::` and single signs.
fn tokens(code: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        let length = if is_name(first) {
            rest.find(|c| !is_name(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    tokens
}

/// The code alone: every comment, string and character is replaced by a space.
pub(crate) fn without_comments_and_texts(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if first == '"' {
            end_of_text(rest)
        } else if let Some(hashes) = raw_text(rest).filter(|_| !ends_in_name(&code)) {
            let close = format!("\"{}", "#".repeat(hashes));
            let open = rest.find('"').expect("a raw text has a quote") + 1;
            rest[open..]
                .find(&close)
                .map_or(rest.len(), |end| open + end + close.len())
        } else if let Some(length) = character(rest) {
            length
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        code.push(' ');
        rest = &rest[length..];
    }
    code
}

/// The length of the text, quotes included, that `rest` starts with.
fn end_of_text(rest: &str) -> usize {
    let mut escaped = false;
    for (index, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return index + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The number of `#` of the raw text that `rest` starts with.
fn raw_text(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

fn ends_in_name(code: &str) -> bool {
    code.chars()
        .next_back()
        .is_some_and(|c| c.is_alphanumeric() || c == '_')
}

/// The length of the character, such as `'"'` or `'\n'`, that `rest` starts with; `None` for a lifetime.
fn character(rest: &str) -> Option<usize> {
    let inner = rest.strip_prefix('\'')?;
    if let Some(escape) = inner.strip_prefix('\\') {
        // The sign after the backslash may itself be a quote.
        let skip = escape.chars().next()?.len_utf8();
        return Some(2 + skip + escape[skip..].find('\'')? + 1);
    }
    let c = inner.chars().next()?;
    inner[c.len_utf8()..]
        .starts_with('\'')
        .then(|| 1 + c.len_utf8() + 1)
}

#[test]
fn paths_are_expanded() {
    let check = |text: &str, expected: &[&str]| {
        let found = imports(text, &["http", "serve"]);
        let found: Vec<_> = found.iter().map(|path| path.join("::")).collect();
        assert_eq!(found, expected, "{text}");
    };
    check("use crate::a;", &["a"]);
    check(
        "use crate::{a, b::{self, c as d, e::*}, f};",
        &["a", "b", "b::c", "b::e::*", "f"],
    );
    check("pub(crate) use crate::a::B; use std::io;", &["a::B"]);
    check(
        "fn f() -> crate::a::B { self.x.y(); self::g() }",
        &["a::B", "http::serve::g"],
    );
    check("use super::{a, super::b};", &["http::a", "b"]);
    check(
        "mod tests { use super::*; use super::super::c; }",
        &["http::serve::*", "http::c"],
    );
    check(
        "// use crate::a;\n/* crate::b */ let x = \"crate::c\"; r#\"crate::\"d\"#;",
        &[],
    );
    check(
        "let quote = '\"'; let e = '\\''; fn f<'a>(x: &'a str) { crate::z::f(x) }",
        &["z::f"],
    );
}
