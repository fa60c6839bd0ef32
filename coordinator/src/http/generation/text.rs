//! Generated tokens to the text that a client sees.
//!
//! A piece of text never ends inside of a character, and never shows a part of a stop string: what may become one is held
//! back until it is known. All pieces together are the whole text, however they are cut.

use lockstep_model::generation::Utf8Stream;

/// Why a token may be the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The text goes on.
    GoesOn,
    /// The token stops, and is not shown.
    StopToken,
    /// A stop string is complete; it is not shown.
    StopString,
    /// There may be no more tokens.
    Length,
}

/// The text of one generation as it comes.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    stops: Vec<Vec<u8>>,
    /// Bytes that may be a part of a stop string.
    held: Vec<u8>,
    /// Those before.
    text: Utf8Stream,
}

impl TextStream {
    /// Of a generation that these strings stop.
    pub fn new(stops: &[Vec<u8>]) -> Self {
        Self { stops: stops.to_vec(), ..Self::default() }
    }

    /// Takes the bytes of one token, and gives what can be shown now. After a step that ends the text, that is the rest.
    pub fn push(&mut self, bytes: &[u8], step: Step) -> String {
        if step != Step::StopToken {
            self.held.extend_from_slice(bytes);
        }
        let shown = match step {
            Step::GoesOn => self.held.len() - self.stop_prefix(),
            Step::StopString => self.first_stop().unwrap_or(self.held.len()),
            Step::StopToken | Step::Length => self.held.len(),
        };
        let rest = self.held.split_off(shown);
        let mut text = self.text.push(&self.held);
        self.held = rest;
        if step != Step::GoesOn {
            text.push_str(&std::mem::take(&mut self.text).finish());
        }
        text
    }

    /// How many of the last bytes may be the beginning of a stop string.
    fn stop_prefix(&self) -> usize {
        let longest = |stop: &Vec<u8>| {
            let most = stop.len().saturating_sub(1).min(self.held.len());
            (1..=most).rev().find(|count| self.held.ends_with(&stop[..*count])).unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }

    /// Where the first stop string begins.
    fn first_stop(&self) -> Option<usize> {
        let first = |stop: &Vec<u8>| self.held.windows(stop.len().max(1)).position(|part| part == stop.as_slice());
        self.stops.iter().filter_map(first).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All pieces of a text that comes in these parts.
    fn pieces(stops: &[&str], parts: &[&[u8]], end: Step) -> Vec<String> {
        let stops: Vec<_> = stops.iter().map(|stop| stop.as_bytes().to_vec()).collect();
        let mut stream = TextStream::new(&stops);
        let last = parts.len() - 1;
        let push = |(index, part): (usize, &&[u8])| stream.push(part, if index == last { end } else { Step::GoesOn });
        parts.iter().enumerate().map(push).collect()
    }

    #[test]
    fn characters_come_whole() {
        let crab = "🦀".as_bytes();
        let parts: [&[u8]; 4] = [b"a", &crab[..1], &crab[1..3], &[crab[3], b'b']];
        assert_eq!(pieces(&[], &parts, Step::Length), ["a", "", "", "🦀b"]);
        assert_eq!(pieces(&[], &[b"\xff\xc3", b"x", b"\xe2\x82"], Step::Length), ["\u{fffd}", "\u{fffd}x", "\u{fffd}"]);
    }

    #[test]
    fn a_stop_string_and_what_may_become_one_are_not_shown() {
        assert_eq!(pieces(&["END"], &[b"a E", b"N", b"D b"], Step::StopString), ["a ", "", ""]);
        assert_eq!(pieces(&["END"], &[b"a E", b"N", b"C"], Step::Length), ["a ", "", "ENC"]);
        assert_eq!(pieces(&["END", "\n\n"], &[b"x\n", b"E", b"\n\nND"], Step::StopString), ["x", "\n", "E"]);
        assert_eq!(pieces(&["aab"], &[b"a", b"a", b"a", b"a", b"b"], Step::StopString), ["", "", "a", "a", ""]);
        assert_eq!(pieces(&["b", "abc"], &[b"xa", b"bc"], Step::StopString), ["x", ""]);
        assert_eq!(pieces(&["é"], &[b"x\xc3", b"\xa8"], Step::Length), ["x", "è"]);
    }

    #[test]
    fn a_stop_token_is_not_shown_but_what_was_held_is() {
        assert_eq!(pieces(&["END"], &[b"a E", b"</s>"], Step::StopToken), ["a ", "E"]);
    }

    /// However a text is cut into tokens, its pieces come to the same.
    #[test]
    fn the_cut_does_not_matter() {
        let text = "añb🦀 a\u{301}aab <|x|> ab\u{0}z"
            .as_bytes()
            .iter()
            .chain(b"\xf0\x9f\xffq\xc3")
            .copied()
            .collect::<Vec<_>>();
        let mut state = 7_u64;
        for stops in [&[][..], &["aab <|y"], &["zz", "🦀 b", "x|> abc"]] {
            let whole = pieces(stops, &[&text], Step::Length).concat();
            assert_eq!(whole, String::from_utf8_lossy(&text));
            for _ in 0..200 {
                let (mut parts, mut rest) = (Vec::new(), text.as_slice());
                while !rest.is_empty() {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let (part, after) = rest.split_at(rest.len().min((state >> 33) as usize % 4));
                    parts.push(part);
                    rest = after;
                }
                assert_eq!(pieces(stops, &parts, Step::Length).concat(), whole);
            }
        }
    }
}
