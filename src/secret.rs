//! Values that no message may show.

use std::convert::Infallible;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error};

/// A secret from a flag, the environment or a file. It has no `Debug`, and its errors do not quote it.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

/// Reads a list of secrets. Any value is taken first: serde's own error for a value of another type quotes it.
///
/// # Errors
/// The value is no list of strings.
pub fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Secret>>, D::Error> {
    let wrong = || D::Error::custom("a list of strings is expected here");
    let toml::Value::Array(items) = toml::Value::deserialize(deserializer)? else { return Err(wrong()) };
    let text = |item| if let toml::Value::String(text) = item { Some(Secret(text)) } else { None };
    items.into_iter().map(text).collect::<Option<Vec<_>>>().ok_or_else(wrong).map(Some)
}
