//! Log-probabilities, as a run reports them beside its words (SPEC.md 5.17.9 and 13.7).
//!
//! A point has one row of them: that of the drawn token, and then, by falling probability, each of the likeliest tokens
//! with its own. They are integers in units of 2^-20, to base 2, and follow from the committed layers and the model alone.
//!
//! No layer's root covers them: all rows together have one. A row is shown against it ([`ShownRow`]) where it is disputed.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::canonical::{Canonical, DecodeError, Reader, Writer};
use crate::generation::Generation;
use crate::hex;
use crate::ids::Root;
use crate::limits::{CHUNK_BYTES, MAX_LOGPROBS_OPENING_BYTES};
use crate::openings::{ChunkRange, Outboard, open_range, verify_range};
use crate::trace::root_of_rows;

/// Stands for the token where the vocabulary has fewer than were asked for; its log-probability is [`LEAST`].
const NO_TOKEN: i32 = -1;
/// The least log-probability: what is below counts as this.
pub const LEAST: i32 = i32::MIN;

/// The log-probabilities of one point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logprobs<'a>(&'a [i32]);

/// The rows of all points, from the values one after the other.
pub fn rows<'a>(values: &'a [i32], asked: &Generation) -> impl Iterator<Item = Logprobs<'a>> {
    values.chunks_exact(asked.logprob_values().max(1)).map(Logprobs)
}

/// The first point, counted from 0, at which two runs of as many points have other log-probabilities.
pub fn first_difference(a: &[i32], b: &[i32], asked: &Generation) -> Option<usize> {
    rows(a, asked).zip(rows(b, asked)).position(|(a, b)| a != b)
}

/// The row of a point: that of the drawn token, and of the likeliest ones as many as asked for, or as there are.
pub fn row(asked: &Generation, token: i32, top: impl IntoIterator<Item = (u32, i32)>) -> Vec<i32> {
    let mut row = vec![token];
    row.extend(top.into_iter().flat_map(|(token, value)| [token.cast_signed(), value]));
    row.truncate(asked.logprob_values());
    while row.len() < asked.logprob_values() {
        row.extend([NO_TOKEN, LEAST]);
    }
    row
}

/// The root of all rows: the plain BLAKE3 of their values as little-endian `i32`, one after the other.
pub fn logprobs_root(values: &[i32]) -> Root {
    Root::from(blake3::hash(&le_bytes(values)))
}

fn le_bytes(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The row of one point, with the proof that it is what was signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShownRow {
    /// Of which point, counted from 0.
    pub index: u32,
    /// An opening of the chunks of all rows that hold it, at most [`MAX_LOGPROBS_OPENING_BYTES`]. In JSON as hexadecimal
    /// digits.
    #[serde(serialize_with = "write_bytes", deserialize_with = "read_bytes")]
    pub opening: Vec<u8>,
}

impl ShownRow {
    /// Shows the row of point `index` among the values of all; `None` where there is none.
    pub fn of(values: &[i32], asked: &Generation, index: usize) -> Option<Self> {
        let bytes = le_bytes(values);
        let (_, chunks) = place(asked, index, bytes.len())?;
        let opening = open_range(&bytes, &Outboard::new(&bytes).ok()?, chunks).ok()?;
        Some(Self { index: u32::try_from(index).ok()?, opening })
    }

    /// The values, if they are those of the root that was signed of a run with so many points.
    pub fn values(&self, root: &Root, asked: &Generation, points: usize) -> Option<Vec<i32>> {
        let len = points.checked_mul(4 * asked.logprob_values())?;
        let (bytes, chunks) = place(asked, self.index as usize, len)?;
        let opened = verify_range(root, len as u64, chunks, &self.opening).ok()?;
        let (values, _) = opened.get(bytes)?.as_chunks();
        Some(values.iter().map(|value| i32::from_le_bytes(*value)).collect())
    }
}

/// The chunks that hold the row of a point among all of `len` bytes, and where in them it is.
fn place(asked: &Generation, index: usize, len: usize) -> Option<(std::ops::Range<usize>, ChunkRange)> {
    let row = 4 * asked.logprob_values();
    let start = index.checked_mul(row)?;
    let end = start.checked_add(row).filter(|end| row > 0 && *end <= len)?;
    let first = start / CHUNK_BYTES;
    let count = u32::try_from(end.div_ceil(CHUNK_BYTES) - first).ok()?;
    let skipped = first * CHUNK_BYTES;
    Some((start - skipped..end - skipped, ChunkRange { first: first as u64, count }))
}

impl Canonical for ShownRow {
    const MIN_BYTES: usize = 4 + 4;
    fn encode(&self, writer: &mut Writer) {
        writer.u32(self.index);
        writer.bytes(&self.opening);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let index = reader.u32()?;
        let opening = reader.bytes("opened log-probabilities", MAX_LOGPROBS_OPENING_BYTES)?.to_vec();
        Ok(Self { index, opening })
    }
}

fn write_bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&hex::Hex(bytes))
}

fn read_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    hex::parse_bytes(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

impl<'a> Logprobs<'a> {
    /// Of one point, from its values.
    pub fn of(values: &'a [i32]) -> Self {
        Self(values)
    }

    /// The values as they are signed.
    pub fn values(&self) -> &'a [i32] {
        self.0
    }

    /// The root of the row, as a tensor of its own.
    pub fn root(&self) -> Root {
        root_of_rows(self.0, self.0.len())
    }

    /// That of the drawn token.
    pub fn token(&self) -> i32 {
        self.0.first().copied().unwrap_or(LEAST)
    }

    /// The likeliest tokens with theirs, the likeliest first.
    pub fn top(&self) -> impl Iterator<Item = (u32, i32)> + use<'a> {
        let pairs = self.0.get(1..).unwrap_or_default().chunks_exact(2);
        pairs.filter(|pair| pair[0] != NO_TOKEN).map(|pair| (pair[0].cast_unsigned(), pair[1]))
    }

    /// Whether a model can have given it: none is above 0, none of the likeliest above the one before it.
    pub fn is_possible(&self) -> bool {
        let values = || self.0.get(1..).unwrap_or_default().chunks_exact(2).map(|pair| pair[1]);
        self.token() <= 0 && values().all(|value| value <= 0) && values().is_sorted_by(|a, b| a >= b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canonical::{from_bytes, to_bytes};

    fn asked(logprobs: u8) -> Generation {
        Generation { logprobs, ..Generation::greedy(4) }
    }

    #[test]
    fn a_row_has_what_was_asked_for_and_says_where_there_is_no_more() {
        let top = [(7, -1), (3, -20), (9, -30)];
        assert_eq!(row(&asked(1), -5, top), [-5]);
        assert_eq!(row(&asked(3), -5, top), [-5, 7, -1, 3, -20]);
        let padded = row(&asked(5), -5, top);
        assert_eq!(padded, [-5, 7, -1, 3, -20, 9, -30, -1, i32::MIN]);
        let read = Logprobs::of(&padded);
        assert_eq!((read.token(), read.top().collect::<Vec<_>>()), (-5, top.to_vec()));
        assert_eq!([0, 1, 21].map(|n| asked(n).logprob_values()), [0, 1, 41]);
        let both = [padded.clone(), padded].concat();
        assert_eq!(rows(&both, &asked(5)).count(), 2);
        assert_eq!(rows(&[], &asked(0)).count(), 0);
    }

    /// Rows at every place of a chunk, over the edge of two chunks, and in the last one, which is short.
    #[test]
    fn a_row_is_shown_against_the_root_of_all_and_nothing_else_is() {
        for (logprobs, points) in [(1, 1), (1, 300), (3, 52), (5, 29), (21, 7), (21, 1_560)] {
            let asked = asked(logprobs);
            let width = asked.logprob_values();
            let all: Vec<i32> = (0..points * width).map(|at| (at as i32).wrapping_mul(-1_640_531_527)).collect();
            let root = logprobs_root(&all);
            for index in [0, 1, 5, points / 2, points - 1].into_iter().filter(|index| *index < points) {
                let shown = ShownRow::of(&all, &asked, index).unwrap();
                assert!(shown.opening.len() <= MAX_LOGPROBS_OPENING_BYTES);
                let row = all[index * width..][..width].to_vec();
                assert_eq!(shown.values(&root, &asked, points), Some(row));
                assert_eq!(shown.values(&logprobs_root(&all[1..]), &asked, points), None);
                let bytes = to_bytes(&shown);
                assert_eq!(from_bytes(&bytes), Ok(shown.clone()));
                let json = serde_json::to_string(&shown).unwrap();
                assert_eq!(serde_json::from_str::<ShownRow>(&json).unwrap(), shown);
                for at in (0..shown.opening.len()).step_by(97) {
                    let mut forged = shown.clone();
                    forged.opening[at] ^= 1;
                    assert_eq!(forged.values(&root, &asked, points), None);
                }
            }
            assert_eq!(ShownRow::of(&all, &asked, points), None);
            let beyond = ShownRow { index: u32::MAX, opening: vec![] };
            assert_eq!(beyond.values(&root, &asked, points), None);
        }
        assert_eq!(ShownRow::of(&[], &asked(0), 0), None);
        let long = ShownRow { index: 0, opening: vec![0; MAX_LOGPROBS_OPENING_BYTES + 1] };
        assert!(from_bytes::<ShownRow>(&to_bytes(&long)).is_err());
    }

    #[test]
    fn what_no_model_gives_is_found() {
        let is = |values: &[i32]| Logprobs::of(values).is_possible();
        assert!(is(&[0]) && is(&[-9, 4, 0, 4, 0, 5, -1]) && is(&[-9, 4, -2, -1, i32::MIN]));
        assert!(!is(&[1]) && !is(&[-1, 4, 1]) && !is(&[-1, 4, -3, 5, -2]));
    }
}
