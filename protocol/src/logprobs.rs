//! Log-probabilities, as a run reports them beside its words (SPEC.md 5.17.9 and 13.7).
//!
//! A point has one row of them: that of the drawn token, and then, by falling probability, each of the likeliest tokens
//! with its own. They are integers in units of 2^-20, to base 2, and follow from the committed layers and the model alone.

use crate::generation::Generation;
use crate::ids::Root;

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
    let mut hasher = blake3::Hasher::new();
    values.iter().for_each(|value| {
        hasher.update(&value.to_le_bytes());
    });
    Root::from_bytes(*hasher.finalize().as_bytes())
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

    #[test]
    fn what_no_model_gives_is_found() {
        let is = |values: &[i32]| Logprobs::of(values).is_possible();
        assert!(is(&[0]) && is(&[-9, 4, 0, 4, 0, 5, -1]) && is(&[-9, 4, -2, -1, i32::MIN]));
        assert!(!is(&[1]) && !is(&[-1, 4, 1]) && !is(&[-1, 4, -3, 5, -2]));
    }
}
