//! What arguments of benchmarks may be: what this machine can bear.

use std::num::NonZeroUsize;

use clap::builder::{RangedU64ValueParser, TypedValueParser};
use lockstep_benches::environment::memory_bytes;

use crate::backend;

/// Threads to each core at the most; more than one are marked.
const THREADS_OF_CORE: u64 = 4;
/// Milliseconds of a measurement at the most.
pub const MAX_MILLISECONDS: u64 = 600_000;
/// Times that anything is measured at the most.
pub const MAX_SAMPLES: u64 = 10_000;
/// Sequences side by side at the most.
pub const MAX_BATCH: u64 = 1_024;
/// Tokens of anything at the most: no program has more positions.
pub const MAX_TOKENS: u64 = 1 << 17;

/// A number from 1.
pub fn count(most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=most)
}

/// Milliseconds of a measurement; with none it is measured as few times as can be.
pub fn milliseconds() -> RangedU64ValueParser<u64> {
    RangedU64ValueParser::new().range(0..=MAX_MILLISECONDS)
}

/// Threads: a few to each core.
pub fn threads() -> impl TypedValueParser<Value = NonZeroUsize> {
    let most = THREADS_OF_CORE * backend::all_threads().get().max(2) as u64;
    count(most).map(|threads| NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN))
}

/// MiB of memory to read: up to half of what the machine has.
pub fn memory_mib() -> RangedU64ValueParser<usize> {
    count(memory_bytes().map_or(1 << 14, |bytes| (bytes >> 21).max(1_024)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<P: TypedValueParser>(parser: P, text: &str) -> Result<P::Value, String> {
        let parsed = parser.parse_ref(&clap::Command::new("a"), None, text.as_ref());
        parsed.map_err(|error| error.to_string())
    }

    #[test]
    fn what_no_machine_bears_is_refused_with_what_it_bears() {
        assert_eq!(parse(count(8), "8"), Ok(8));
        for text in ["0", "9", "-1", "1e3", ""] {
            assert!(parse(count(8), text).is_err(), "{text}");
        }
        assert!(parse(count(8), "9").is_err_and(|error| error.contains("1..=8")));
        assert_eq!(parse(threads(), "1"), Ok(NonZeroUsize::MIN));
        assert!(parse(threads(), "100000").is_err_and(|error| error.contains("1..=")));
        assert_eq!(parse(memory_mib(), "1"), Ok(1));
        for text in ["99999999999", "17592186044416", "0"] {
            assert!(parse(memory_mib(), text).is_err(), "{text}");
        }
        assert_eq!((parse(milliseconds(), "0"), parse(milliseconds(), "600001").is_err()), (Ok(0), true));
    }
}
