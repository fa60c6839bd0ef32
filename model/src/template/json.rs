//! The filter `tojson`, as transformers has it: Python's `json.dumps(value, ensure_ascii=False)`, nothing escaped for HTML.

use std::io;

use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Most spaces of an indentation.
const MAX_INDENT: usize = 16;

/// `value | tojson`, `value | tojson(indent=4)`.
pub fn to_json(value: &Value, indent: Option<usize>, named: minijinja::value::Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => named.get::<Option<usize>>("indent")?,
    };
    named.assert_all_used()?;
    let text = match indent {
        None => write(value, Spaced),
        Some(indent) if indent <= MAX_INDENT => {
            write(value, PrettyFormatter::with_indent(&[b' '; MAX_INDENT][..indent]))
        }
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "the indentation is too wide")),
    };
    text.map(Value::from_safe_string)
}

fn write(value: &Value, formatter: impl Formatter) -> Result<String, Error> {
    let failed = |error: String| Error::new(ErrorKind::InvalidOperation, error);
    let mut bytes = Vec::new();
    value
        .serialize(&mut Serializer::with_formatter(&mut bytes, formatter))
        .map_err(|error| failed(error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| failed(error.to_string()))
}

/// A space after each comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
