//! The body of `POST /v1/embeddings`, read with every length capped while it is read.

use std::fmt;

use lockstep_protocol::ids::{Nonce, Seed};
use lockstep_protocol::job::RequestInput;
use lockstep_protocol::limits::{MAX_POSITIONS, MAX_REQUEST_INPUTS};
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

/// The request, as OpenAI has it, with our own object beside it. Fields that are not here (such as `user`) are ignored.
#[derive(Debug, Deserialize)]
pub struct EmbeddingsRequest {
    /// Name or id of a model.
    pub model: String,
    /// What to embed.
    pub input: Inputs,
    /// How the numbers are written.
    #[serde(default)]
    pub encoding_format: Option<Encoding>,
    /// Accepted only where it is the model's own number.
    #[serde(default)]
    pub dimensions: Option<u64>,
    /// What OpenAI does not have.
    #[serde(default)]
    pub lockstep: Option<Extension>,
}

/// How the numbers of an embedding are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// As JSON numbers.
    #[default]
    Float,
    /// As base64 of little-endian 32-bit floats.
    Base64,
}

/// The `lockstep` object of a request.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extension {
    /// `false`: answer with the job ids as soon as the jobs are kept.
    #[serde(default)]
    pub wait: Option<bool>,
    /// The secret nonce of each input's job, in hexadecimal; drawn where it is missing. The same request with the same
    /// nonce is the same job.
    #[serde(default)]
    pub nonce: Option<Nonces>,
    /// The seed of the jobs, in hexadecimal; zeros where it is missing.
    #[serde(default)]
    pub seed: Option<Seed>,
    /// More audit than the coordinator's policy asks for.
    #[serde(default)]
    pub audit: Option<AuditWish>,
}

/// One nonce for the only input, or one for each.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "it has to be 64 hexadecimal digits, or a list of such")]
pub enum Nonces {
    /// For the only input.
    One(Nonce),
    /// For each input.
    Each(Vec<Nonce>),
}

/// What audit a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuditWish {
    /// What the coordinator's policy says.
    Default,
    /// An audit in any case.
    Always,
    /// An audit in any case, and the answer only after it.
    Hold,
}

/// What to embed: a text, texts, token ids, or lists of token ids; 1 to [`MAX_REQUEST_INPUTS`].
#[derive(Debug, PartialEq, Eq)]
pub struct Inputs(pub Vec<RequestInput>);

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let inputs = match deserializer.deserialize_any(ItemVisitor { depth: 0 })? {
            Item::Text(text) => vec![RequestInput::Text(text)],
            Item::Token(_) => return Err(de::Error::custom("a number alone is no input: a list of token ids is one")),
            Item::Tokens(tokens) => vec![RequestInput::Tokens(tokens)],
            Item::Many(inputs) => inputs,
        };
        Ok(Self(inputs))
    }
}

/// What can stand for `input`, or inside it.
enum Item {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
    Many(Vec<RequestInput>),
}

#[derive(Clone, Copy)]
struct ItemVisitor {
    /// How many lists are around it.
    depth: u8,
}

impl<'de> de::DeserializeSeed<'de> for ItemVisitor {
    type Value = Item;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Item, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, an array of strings, an array of token ids, or an array of arrays of token ids")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Item, E> {
        Ok(Item::Text(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Item, E> {
        Ok(Item::Text(text))
    }

    fn visit_u64<E: de::Error>(self, token: u64) -> Result<Item, E> {
        u32::try_from(token).map(Item::Token).map_err(|_| E::custom("a token id is not below 2^32"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Item, A::Error> {
        if self.depth > 1 {
            return Err(de::Error::custom("a list is nested too deep"));
        }
        let inner = Self { depth: self.depth + 1 };
        let (mut tokens, mut inputs) = (Vec::new(), Vec::new());
        while let Some(item) = items.next_element_seed(inner)? {
            match item {
                Item::Token(token) if inputs.is_empty() => tokens.push(token),
                Item::Text(text) if tokens.is_empty() && self.depth == 0 => inputs.push(RequestInput::Text(text)),
                Item::Tokens(list) if tokens.is_empty() && self.depth == 0 => inputs.push(RequestInput::Tokens(list)),
                _ => return Err(de::Error::custom("a list mixes kinds, or is nested too deep")),
            }
            if let [first, .., last] = inputs.as_slice()
                && std::mem::discriminant(first) != std::mem::discriminant(last)
            {
                return Err(de::Error::custom("a list mixes texts and token ids"));
            }
            if tokens.len() > MAX_POSITIONS {
                return Err(de::Error::custom(format!("an input has more than {MAX_POSITIONS} tokens")));
            }
            if inputs.len() > MAX_REQUEST_INPUTS {
                return Err(de::Error::custom(format!("there are more than {MAX_REQUEST_INPUTS} inputs")));
            }
        }
        match (tokens.is_empty(), inputs.is_empty()) {
            (true, true) => Err(de::Error::custom("a list is empty")),
            (false, _) => Ok(Item::Tokens(tokens)),
            (true, false) => Ok(Item::Many(inputs)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(json: &str) -> Result<Vec<RequestInput>, String> {
        serde_json::from_str(json).map(|Inputs(inputs)| inputs).map_err(|error| error.to_string())
    }

    #[test]
    fn the_four_shapes_of_input_are_read() {
        let text = |text: &str| RequestInput::Text(text.to_owned());
        let tokens = |tokens: &[u32]| RequestInput::Tokens(tokens.to_vec());
        assert_eq!(inputs(r#""a\n""#), Ok(vec![text("a\n")]));
        assert_eq!(inputs(r#"["a", "b"]"#), Ok(vec![text("a"), text("b")]));
        assert_eq!(inputs("[1, 2]"), Ok(vec![tokens(&[1, 2])]));
        assert_eq!(inputs("[[1, 2], [3]]"), Ok(vec![tokens(&[1, 2]), tokens(&[3])]));
    }

    #[test]
    fn other_shapes_and_sizes_are_refused() {
        for bad in [
            "1",
            "null",
            "[]",
            "[[]]",
            "[1, \"a\"]",
            "[\"a\", 1]",
            "[[1], \"a\"]",
            "[[[1]]]",
            "[[\"a\"]]",
            "{}",
            "[-1]",
            "[1.5]",
            "[4294967296]",
            "[true]",
        ] {
            assert!(inputs(bad).is_err(), "{bad}");
        }
        let many = format!("[{}]", vec!["\"a\""; MAX_REQUEST_INPUTS + 1].join(","));
        assert!(inputs(&many).unwrap_err().contains("more than"));
        let long = format!("[{}]", vec!["1"; MAX_POSITIONS + 1].join(","));
        assert!(inputs(&long).unwrap_err().contains("more than"));
    }

    #[test]
    fn unknown_fields_are_ignored_but_not_in_our_own_object() {
        let request =
            |rest: &str| serde_json::from_str::<EmbeddingsRequest>(&format!(r#"{{"model": "m", "input": "x"{rest}}}"#));
        assert!(request(r#", "user": 5, "else": [1]"#).is_ok());
        assert!(request(r#", "lockstep": {"wait": false, "audit": "hold"}"#).is_ok());
        assert!(request(r#", "lockstep": {"wiat": false}"#).is_err());
        assert!(request(r#", "encoding_format": "hex""#).is_err());
    }
}
