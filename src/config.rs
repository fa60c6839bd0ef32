//! Configuration: flags, then environment, then a TOML file, then defaults.
//!
//! Flags and environment are clap's; each options struct is also what its TOML file holds, under the same names.

use std::fs;
use std::path::Path;

use anyhow::{Error, Result, anyhow, bail};
use serde::de::DeserializeOwned;

use crate::paths;

/// Reads the options in a TOML file: `explicit`, or `<config dir>/<name>.toml` if that exists.
///
/// # Errors
/// The explicit file is missing, or a file has a syntax error, an unknown key or a value of the wrong type.
pub fn from_file<T: DeserializeOwned + Default>(explicit: Option<&Path>, name: &str) -> Result<T> {
    let path = match explicit {
        Some(path) => path.to_path_buf(),
        None => match paths::config_dir() {
            Ok(dir) => dir.join(format!("{name}.toml")),
            Err(_) => return Ok(T::default()),
        },
    };
    match fs::read_to_string(&path) {
        Ok(text) => toml::from_str(&text).map_err(|error| wrong(&path, &text, &error)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && explicit.is_none() => Ok(T::default()),
        Err(e) => bail!("cannot read {}: {e}", path.display()),
    }
}

/// Where a file is wrong, and why. The line itself is not shown, as toml's own message does: it may hold a secret.
fn wrong(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let place = error.span().and_then(|span| text.get(..span.start)).map_or_else(String::new, |before| {
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        format!(" line {line}, column {column}:")
    });
    anyhow!("{} is not a valid configuration:{place} {}", path.display(), error.message())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde::Deserialize;

    use super::wrong;
    use crate::secret::{self, Secret};

    #[derive(Deserialize, Default)]
    #[serde(deny_unknown_fields, default)]
    struct Options {
        #[serde(deserialize_with = "secret::list")]
        keys: Option<Vec<Secret>>,
        size: u8,
    }

    #[test]
    fn no_mistake_prints_a_secret() {
        for (text, place) in [
            ("keys = \"hush\"", "line 1, column 8:"),
            ("size = 1\nkeys = [\"hush\", 1]", "line 2, column 8:"),
            ("keys = { hush = 1 }", "line 1, column 8:"),
            ("keys = [\"hush\"]\nsize = 1000", "line 2, column 8:"),
            ("keys = [\"hush\"] size = 10", "line 1, column"),
            ("keys = [hush]", "line 1, column"),
            ("keys = [\"hush]", "line 1, column"),
            ("keys = [\"\\hush\"]", "line 1, column"),
            ("keys = [\"hush\"]\nkeys = [\"hush\"]", "line 2, column"),
            ("keys = [\"hush\"]\nkey = 1", "line 2, column 1:"),
        ] {
            let error = toml::from_str::<Options>(text).err().unwrap_or_else(|| panic!("{text:?} reads"));
            let told = format!("{:#}", wrong(Path::new("file.toml"), text, &error));
            assert!(told.contains(place) && !told.contains("hush"), "{text:?}: {told}");
        }
        let good: Options = toml::from_str("keys = [\"hush\", \"hush, too\"]\nsize = 3").expect("it is right");
        let keys: Vec<_> = good.keys.iter().flatten().map(Secret::expose).collect();
        assert_eq!((keys, good.size), (vec!["hush", "hush, too"], 3));
        let none: Options = toml::from_str("").expect("nothing need be said");
        assert!(none.keys.is_none());
    }
}
