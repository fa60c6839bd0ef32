//! The file format: a header of typed keys, a list of tensors, and their bytes. Everything in it is hostile until
//! checked; nothing is allocated for a count that the bytes at hand can't hold.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use lockstep_protocol::limits::{MAX_GGUF_HEADER_BYTES, MAX_GGUF_KEYS, MAX_GGUF_NAME_BYTES, MAX_SAFETENSORS_TENSORS};

use super::kind::Kind;

const MAGIC: &[u8; 4] = b"GGUF";
/// Version 1 had other widths; later ones than 3 are not known.
const VERSIONS: [u32; 2] = [2, 3];
/// Where tensors begin, unless the file says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;
const MAX_DIMENSIONS: u32 = 4;

/// What stands under a key.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value<'a> {
    /// Any integer type.
    Integer(i128),
    /// A float, as the number next to the shortest decimal that means it: the file's 1e-5 in single precision is what
    /// another file writes as `1e-05`.
    Real(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(&'a str),
    /// Texts.
    Texts(Vec<&'a str>),
    /// Integers.
    Integers(Vec<i128>),
    /// Floats in single precision.
    Reals(Vec<f32>),
    /// A list of something else, which nothing here needs.
    Skipped,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tensor {
    /// Element type.
    pub kind: Kind,
    /// Rows first, as everywhere else; the file has it the other way round.
    pub shape: Vec<usize>,
    /// Of the file.
    pub bytes: Range<usize>,
}

/// A file that passed.
#[derive(Debug)]
pub(super) struct Contents<'a> {
    pub metadata: BTreeMap<&'a str, Value<'a>>,
    pub tensors: BTreeMap<&'a str, Tensor>,
}

/// Reads the header; the tensors' bytes are only located.
pub(super) fn read(file: &[u8]) -> Result<Contents<'_>, String> {
    let cap = usize::try_from(MAX_GGUF_HEADER_BYTES).unwrap_or(usize::MAX);
    let mut cursor = Cursor { rest: &file[..file.len().min(cap)], read: 0, whole: file.len() <= cap };
    if cursor.take(4)? != MAGIC {
        return Err("is not a GGUF file".into());
    }
    let version = cursor.u32()?;
    if !VERSIONS.contains(&version) {
        return Err(format!("is GGUF version {version}; 2 and 3 are read"));
    }
    let tensors = cursor.count("tensors", MAX_SAFETENSORS_TENSORS)?;
    let keys = cursor.count("keys", MAX_GGUF_KEYS)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..keys {
        let key = cursor.name()?;
        let value = cursor.value().map_err(|e| format!("key {key:?}: {e}"))?;
        if metadata.insert(key, value).is_some() {
            return Err(format!("key {key:?} is there twice"));
        }
    }
    let alignment = alignment(&metadata)?;
    let mut claims = BTreeMap::new();
    for _ in 0..tensors {
        let name = cursor.name()?;
        let claim = cursor.claim(alignment).map_err(|e| format!("tensor {name:?} {e}"))?;
        if claims.insert(name, claim).is_some() {
            return Err(format!("tensor {name:?} is there twice"));
        }
    }
    let start = (cursor.read as u64).next_multiple_of(alignment);
    Ok(Contents { metadata, tensors: place(claims, start, file.len() as u64)? })
}

fn alignment(metadata: &BTreeMap<&str, Value<'_>>) -> Result<u64, String> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    match value {
        Value::Integer(n) if (8..=i128::from(MAX_ALIGNMENT)).contains(n) && (*n as u64).is_power_of_two() => {
            Ok(*n as u64)
        }
        _ => Err("general.alignment is no power of two from 8 up".into()),
    }
}

/// What the list says of a tensor; `offset` counts from the end of the header.
struct Claim {
    kind: Kind,
    shape: Vec<usize>,
    offset: u64,
    bytes: u64,
}

/// Tensors lie inside the file and do not overlap.
fn place(claims: BTreeMap<&str, Claim>, start: u64, length: u64) -> Result<BTreeMap<&str, Tensor>, String> {
    let mut ranges = BTreeSet::new();
    let mut tensors = BTreeMap::new();
    for (name, claim) in claims {
        let begin = start.checked_add(claim.offset);
        let end = begin.and_then(|b| b.checked_add(claim.bytes)).filter(|end| *end <= length);
        let (Some(begin), Some(end)) = (begin, end) else {
            return Err(format!("tensor {name:?} ends behind the file's end"));
        };
        ranges.insert((begin, end, name));
        // Both are at most the length of a mapping.
        let bytes = begin as usize..end as usize;
        tensors.insert(name, Tensor { kind: claim.kind, shape: claim.shape, bytes });
    }
    let mut before: Option<(u64, &str)> = None;
    for (begin, end, name) in ranges {
        if let Some((last, other)) = before.filter(|(last, _)| begin < *last) {
            debug_assert!(last > begin);
            return Err(format!("tensors {other:?} and {name:?} overlap"));
        }
        before = Some((end, name));
    }
    Ok(tensors)
}

/// Reads little-endian values from the front of what is left of the header.
struct Cursor<'a> {
    rest: &'a [u8],
    read: usize,
    /// Whether `rest` goes to the end of the file, not only to the cap.
    whole: bool,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], String> {
        let Some((taken, rest)) = self.rest.split_at_checked(bytes) else {
            return Err(match self.whole {
                true => "ends in the middle of its header".into(),
                false => format!("has a header of more than {MAX_GGUF_HEADER_BYTES} bytes"),
            });
        };
        self.rest = rest;
        self.read += bytes;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn count(&mut self, what: &str, most: usize) -> Result<usize, String> {
        let count = self.u64()?;
        usize::try_from(count).ok().filter(|n| *n <= most).ok_or_else(|| format!("has {count} {what}; at most {most}"))
    }

    /// A text of any length that is there.
    fn text(&mut self) -> Result<&'a str, String> {
        let length = self.u64()?;
        let bytes = self.take(usize::try_from(length).unwrap_or(usize::MAX))?;
        std::str::from_utf8(bytes).map_err(|_| "holds a text that is not UTF-8".into())
    }

    fn name(&mut self) -> Result<&'a str, String> {
        let name = self.text()?;
        if name.is_empty() || name.len() > MAX_GGUF_NAME_BYTES {
            return Err(format!("has a name of {} bytes; 1 to {MAX_GGUF_NAME_BYTES} are possible", name.len()));
        }
        Ok(name)
    }

    fn value(&mut self) -> Result<Value<'a>, String> {
        match self.u32()? {
            8 => self.text().map(Value::Text),
            9 => self.list(),
            scalar => self.scalar(scalar),
        }
    }

    fn scalar(&mut self, kind: u32) -> Result<Value<'a>, String> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Real(shortest(f32::from_le_bytes(self.array()?))),
            7 => match u8::from_le_bytes(self.array()?) {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(format!("a truth value is {other}")),
            },
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.array()?).into()),
            12 => Value::Real(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("the type {other} is not known")),
        })
    }

    fn list(&mut self) -> Result<Value<'a>, String> {
        let kind = self.u32()?;
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err("is a list of lists".into()),
            other => return Err(format!("the type {other} is not known")),
        };
        let count = self.u64()?;
        let possible = self.rest.len() / least;
        let count = usize::try_from(count).ok().filter(|n| *n <= possible);
        let count = count.ok_or("is a list that is longer than the header")?;
        match kind {
            8 => Ok(Value::Texts((0..count).map(|_| self.text()).collect::<Result<_, _>>()?)),
            6 => Ok(Value::Reals((0..count).map(|_| self.array().map(f32::from_le_bytes)).collect::<Result<_, _>>()?)),
            7 | 12 => self.take(count * least).map(|_| Value::Skipped),
            _ => {
                let integer = |value| match value {
                    Value::Integer(n) => n,
                    _ => unreachable!("the other types are handled above"),
                };
                Ok(Value::Integers((0..count).map(|_| self.scalar(kind).map(integer)).collect::<Result<_, _>>()?))
            }
        }
    }

    fn claim(&mut self, alignment: u64) -> Result<Claim, String> {
        let dimensions = self.u32()?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(format!("has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are possible"));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(self.u64()?);
        }
        let kind = Kind::of(self.u32()?)
            .map_err(|name| format!("is {name}; F32, F16, BF16 and Q8_0 are read: export the model in one of these"))?;
        let offset = self.u64()?;
        if !offset.is_multiple_of(alignment) {
            return Err(format!("is at {offset}, which is no multiple of {alignment}"));
        }
        let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).filter(|n| *n > 0);
        let elements = elements.ok_or_else(|| format!("has the shape {shape:?}"))?;
        if !shape[0].is_multiple_of(kind.block()) {
            return Err(format!("has rows of {} elements; {kind} has blocks of {}", shape[0], kind.block()));
        }
        let bytes = (elements / kind.block()).checked_mul(kind.block_bytes());
        let bytes = bytes.ok_or_else(|| format!("has the shape {shape:?}"))?;
        let shape = shape.into_iter().rev().map(usize::try_from).collect::<Result<_, _>>();
        Ok(Claim { kind, shape: shape.map_err(|e| e.to_string())?, offset, bytes })
    }
}

/// The double next to the shortest decimal that means this single.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}
