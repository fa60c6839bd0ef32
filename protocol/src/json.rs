//! JSON that is read as strictly as it is written.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Why a text is not the JSON of a value.
#[derive(Debug, Error)]
pub(crate) enum JsonError {
    /// It does not read as one.
    #[error("{0}")]
    Read(#[from] serde_json::Error),
    /// It reads as one, but is not what one is written as: doubled fields, arrays for objects, other spellings.
    #[error("it is not written in its one canonical form")]
    NotCanonical,
}

/// A value that has only strings, numbers, arrays and objects, on one line.
pub(crate) fn write<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("the value has only strings, numbers, arrays and objects")
}

/// Reads a value from a text that is, up to white space and the order of fields, what the value is written as. Whoever
/// calls this has capped the text.
pub(crate) fn read<T: Serialize + DeserializeOwned>(text: &str) -> Result<T, JsonError> {
    let read: T = serde_json::from_str(text)?;
    let value: serde_json::Value = serde_json::from_str(text)?;
    if serde_json::to_value(&read)? != value {
        return Err(JsonError::NotCanonical);
    }
    Ok(read)
}
