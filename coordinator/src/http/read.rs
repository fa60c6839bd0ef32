//! A request's body as what it says, or the field that is wrong, and why in plain words.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::error::ApiError;
use super::objects::Objects;

/// Most characters of a wrong value that are shown to whoever sent it.
const SHOWN_CHARS: usize = 64;

/// Most lists and objects inside each other: as many as the reader of JSON takes.
const MAX_DEPTH: usize = 127;

/// Reads a body.
///
/// # Errors
/// It is no JSON object, or a field of it is missing, unknown or of the wrong kind: that one is named.
pub fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(ApiError::invalid("The body has to be a JSON object."));
    }
    if depth(body) > MAX_DEPTH {
        return Err(ApiError::invalid(format!(
            "The body has more than {MAX_DEPTH} lists and objects inside each other."
        )));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = serde_path_to_error::deserialize(Objects(&mut json)).map_err(|error| {
        let path = error.path().to_string();
        refusal(&path, error.inner())
    })?;
    json.end().map_err(|error| refusal("", &error))?;
    Ok(read)
}

/// How many lists and objects lie inside each other, also in fields that are ignored.
fn depth(body: &[u8]) -> usize {
    let (mut depth, mut deepest, mut is_text, mut is_escaped) = (0_usize, 0, false, false);
    for byte in body {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_text,
            b'"' => is_text = !is_text,
            b'[' | b'{' if !is_text => depth += 1,
            b']' | b'}' if !is_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// What to tell whoever sent a body with this error, at this place of it.
fn refusal(path: &str, error: &serde_json::Error) -> ApiError {
    let whole = error.to_string();
    let said = whole.rsplit_once(" at line ").map_or(whole.as_str(), |(said, _)| said);
    if error.classify() != Category::Data && said != "number out of range" {
        return ApiError::invalid(format!("The body is not JSON: {whole}."));
    }
    // Of what lies below a part that could be one of several things there is no name.
    let path = path.trim_end_matches('?').trim_end_matches('.');
    let (field, message) = describe(path, said);
    if field.is_empty() { ApiError::invalid(message) } else { ApiError::parameter(field, message) }
}

/// Which field is wrong, and why.
fn describe(path: &str, said: &str) -> (String, String) {
    if let Some(name) = said.strip_prefix("missing field ").map(|name| name.trim_matches('`')) {
        let field = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let message = format!("{field} is missing.");
        return (field, message);
    }
    if let Some((name, known)) = said.strip_prefix("unknown field `").and_then(|rest| rest.split_once("`, expected ")) {
        let object = path.strip_suffix(name).unwrap_or(path).trim_end_matches('.');
        let name: String = name.chars().take(SHOWN_CHARS).collect();
        let field = if object.is_empty() { name } else { format!("{object}.{name}") };
        let message = format!("{field} is not known here; known are {}.", known.trim_start_matches("one of "));
        return (field, message);
    }
    let shown = if path.is_empty() { "The body" } else { path };
    let found = ["invalid type: ", "invalid value: "].iter().find_map(|kind| said.strip_prefix(kind));
    let message = match found.and_then(|rest| rest.rsplit_once(", expected ")) {
        Some((found, expected)) => format!("{shown} is {}; it has to be {}.", value(found), kind(expected)),
        None => format!("{shown}: {said}."),
    };
    (path.to_owned(), message)
}

/// A wrong value, as its sender would write it.
fn value(found: &str) -> String {
    let (name, rest) = found.split_once([' ', '`']).unwrap_or((found, ""));
    let shown = match name {
        "sequence" => "a list".to_owned(),
        "map" => "an object".to_owned(),
        "integer" | "boolean" => rest.trim_matches('`').to_owned(),
        "floating" => rest.trim_start_matches("point ").trim_matches('`').to_owned(),
        "string" => format!("the text {rest}"),
        _ => found.to_owned(),
    };
    self::shown(&shown).into_owned()
}

/// A text of a client's, cut off where it is long.
pub fn shown(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(SHOWN_CHARS) {
        None => text.into(),
        Some((end, _)) => format!("{}...", &text[..end]).into(),
    }
}

/// What was expected, without the names of this program.
fn kind(expected: &str) -> String {
    match expected {
        "u8" | "u16" | "u64" | "usize" => "a whole number that is not negative".into(),
        "u32" => "a whole number from 0 to 4294967295".into(),
        "i64" => "a whole number from -2^63 to 2^63 - 1".into(),
        "f64" => "a number".into(),
        "a boolean" => "true or false".into(),
        "a sequence" => "a list".into(),
        "a map" => "an object".into(),
        named if named.starts_with("struct ") => "an object".into(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[allow(dead_code, reason = "only what can't be read is of interest")]
    struct Body {
        model: String,
        count: Option<u64>,
        seed: Option<i64>,
        share: Option<f64>,
        parts: Option<Vec<Part>>,
        inner: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[allow(dead_code, reason = "only what can't be read is of interest")]
    struct Part {
        role: String,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only what can't be read is of interest")]
    struct Inner {
        wait: Option<bool>,
        date: Option<String>,
    }

    #[test]
    fn what_is_wrong_is_named_in_plain_words() {
        let long = format!(r#"{{"model": "m", "count": "{}"}}"#, "x".repeat(1_000));
        for (body, param, message) in [
            ("[[[[", None, "The body has to be a JSON object."),
            ("", None, "The body has to be a JSON object."),
            ("{}", Some("model"), "model is missing."),
            (r#"{"model": 7}"#, Some("model"), "model is 7; it has to be a string."),
            (
                r#"{"model": "m", "count": -1}"#,
                Some("count"),
                "count is -1; it has to be a whole number that is not negative.",
            ),
            (
                r#"{"model": "m", "seed": 1.5}"#,
                Some("seed"),
                "seed is 1.5; it has to be a whole number from -2^63 to 2^63 - 1.",
            ),
            (
                r#"{"model": "m", "seed": 1180591620717411303424}"#,
                Some("seed"),
                "seed is 1.1805916207174113e+21; it has to be a whole number from -2^63 to 2^63 - 1.",
            ),
            (r#"{"model": "m", "share": "a"}"#, Some("share"), "share is the text \"a\"; it has to be a number."),
            (r#"{"model": "m", "share": 1e999}"#, Some("share"), "share: number out of range."),
            (r#"{"model": "m", "parts": {}}"#, Some("parts"), "parts is an object; it has to be a list."),
            (r#"{"model": "m", "parts": [{"role": "a"}, {}]}"#, Some("parts[1].role"), "parts[1].role is missing."),
            (r#"{"model": "m", "parts": [7]}"#, Some("parts[0]"), "parts[0] is 7; it has to be an object."),
            (
                r#"{"model": "m", "inner": {"wiat": true}}"#,
                Some("inner.wiat"),
                "inner.wiat is not known here; known are `wait` or `date`.",
            ),
            (
                r#"{"model": "m", "inner": {"wait": null, "date": []}}"#,
                Some("inner.date"),
                "inner.date is a list; it has to be a string.",
            ),
            (
                &long,
                Some("count"),
                &format!(
                    "count is the text \"{}...; it has to be a whole number that is not negative.",
                    "x".repeat(54)
                ),
            ),
        ] {
            let error = read::<Body>(body.as_bytes()).unwrap_err();
            assert_eq!((error.param(), error.message()), (param, message), "{body}");
        }
        for (body, message) in [
            (r#"{"model": "m","#, "The body is not JSON: EOF while parsing a value at line 1 column 14."),
            (r#"{"model": "m"} x"#, "The body is not JSON: trailing characters at line 1 column 16."),
        ] {
            let error = read::<Body>(body.as_bytes()).unwrap_err();
            assert_eq!((error.param(), error.message()), (None, message), "{body}");
        }
        assert!(read::<Body>(b" \n{\"model\": \"m\", \"user\": [1]} ").is_ok());
    }
}
