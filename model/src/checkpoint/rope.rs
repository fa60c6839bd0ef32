//! `rope_theta` and `rope_scaling` of a configuration, or `rope_parameters`, which newer files have instead.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::ModelError;

/// Rotary embeddings over the reals (SPEC 27.4). Numbers are the doubles next to the decimals of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// The base of the frequencies, at least 2 and below 2^31.
    pub theta: f64,
    /// How frequencies are stretched for longer contexts.
    pub scaling: RopeScaling,
}

/// What is done to the frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Nothing.
    None,
    /// All are divided.
    Linear {
        /// By this, from 1 below 2^20.
        factor: f64,
    },
    /// Llama 3.1: slow ones are divided, fast ones stay, between them a blend.
    Llama3 {
        /// Divisor of the slow ones.
        factor: f64,
        /// Turns over the original context below which a frequency is slow.
        low: f64,
        /// Turns above which it is fast; above `low`.
        high: f64,
        /// The original context.
        original: u32,
    },
    /// YaRN: as Llama 3.1, but the blend is linear in the index.
    Yarn {
        /// Divisor of the slow ones.
        factor: f64,
        /// Turns over the original context above which a frequency is fast.
        beta_fast: f64,
        /// Turns below which it is slow.
        beta_slow: f64,
        /// The original context.
        original: u32,
        /// Whether the blend begins and ends at whole indices.
        truncate: bool,
        /// What cosines and sines are multiplied by.
        attention: AttentionFactor,
    },
}

/// YaRN's factor of cosines and sines, where `m(s) = 0.1 * s * ln(factor) + 1`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttentionFactor {
    /// As the file says, from 2^-8 to 2^8.
    Given(f64),
    /// `m(1)`.
    FromFactor,
    /// `m(a) / m(b)`, both above 0 and at most 2^8.
    Ratio(f64, f64),
}

/// Reads either form; `max_positions` is the model's own limit.
pub(super) fn read(json: &Map<String, Value>, path: &Path, max_positions: u32) -> Result<RopeConfig, ModelError> {
    let parameters = object(json, "rope_parameters", path)?;
    let scaling = match object(json, "rope_scaling", path)? {
        Some(scaling) => Some(scaling),
        None => parameters,
    };
    let empty = Map::new();
    let fields = Fields { map: scaling.unwrap_or(&empty), path };
    let theta = parameters.and_then(|p| p.get("rope_theta")).or(json.get("rope_theta"));
    let theta = match theta.filter(|t| !t.is_null()) {
        Some(theta) => theta.as_f64().unwrap_or(f64::NAN),
        None => 10_000.0,
    };
    if !(2.0..2_147_483_648.0).contains(&theta) {
        return Err(ModelError::checkpoint(path, format!("rope_theta is {theta}; 2 to below 2^31 is possible")));
    }
    Ok(RopeConfig { theta, scaling: fields.scaling(max_positions)? })
}

fn object<'a>(
    json: &'a Map<String, Value>,
    name: &str,
    path: &Path,
) -> Result<Option<&'a Map<String, Value>>, ModelError> {
    match json.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(_) => Err(ModelError::checkpoint(path, format!("{name} is no object"))),
    }
}

struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: &'a Path,
}

impl Fields<'_> {
    fn scaling(&self, max_positions: u32) -> Result<RopeScaling, ModelError> {
        let kind = self.map.get("rope_type").or(self.map.get("type")).filter(|v| !v.is_null());
        let kind = match kind {
            Some(kind) => kind.as_str().unwrap_or("?"),
            None if self.map.keys().all(|k| k == "rope_theta") => "default",
            None => return Err(ModelError::checkpoint(self.path, "rope scaling has no rope_type")),
        };
        if let Some(partial) = self.map.get("partial_rotary_factor").and_then(Value::as_f64).filter(|f| *f != 1.0) {
            return Err(ModelError::Unsupported(format!("partial_rotary_factor {partial}: whole heads are rotated")));
        }
        match kind {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: self.factor()? }),
            "llama3" => self.llama3(max_positions),
            "yarn" => self.yarn(max_positions),
            "dynamic" | "longrope" | "su" => Err(ModelError::Unsupported(format!(
                "rope scaling {kind:?}: it depends on the current length, so positions already cached would change; \
                 import a checkpoint with linear, llama3 or yarn scaling, or one without"
            ))),
            other => Err(ModelError::Unsupported(format!(
                "rope scaling {other:?}: default, linear, llama3 and yarn are lowered"
            ))),
        }
    }

    fn llama3(&self, max_positions: u32) -> Result<RopeScaling, ModelError> {
        let low = self.number("low_freq_factor", None, [1.0 / 256.0, 65_536.0])?;
        let high = self.number("high_freq_factor", None, [1.0 / 256.0, 65_536.0])?;
        if low >= high {
            return Err(ModelError::checkpoint(self.path, "low_freq_factor is not below high_freq_factor"));
        }
        Ok(RopeScaling::Llama3 { factor: self.factor()?, low, high, original: self.original(max_positions)? })
    }

    fn yarn(&self, max_positions: u32) -> Result<RopeScaling, ModelError> {
        let beta = |name, default| self.number(name, Some(default), [1.0 / 256.0, 65_536.0]);
        let small = |name| self.number(name, Some(0.0), [0.0, 256.0]);
        let attention = match (self.map.get("attention_factor"), small("mscale")?, small("mscale_all_dim")?) {
            (Some(given), ..) if !given.is_null() => {
                AttentionFactor::Given(self.number("attention_factor", None, [1.0 / 256.0, 256.0])?)
            }
            (_, a, b) if a > 0.0 && b > 0.0 => AttentionFactor::Ratio(a, b),
            _ => AttentionFactor::FromFactor,
        };
        let (beta_fast, beta_slow) = (beta("beta_fast", 32.0)?, beta("beta_slow", 1.0)?);
        if beta_slow >= beta_fast {
            return Err(ModelError::checkpoint(self.path, "beta_slow is not below beta_fast"));
        }
        let truncate = self.map.get("truncate").is_none_or(|t| t != &Value::Bool(false));
        let original = self.original(max_positions)?;
        Ok(RopeScaling::Yarn { factor: self.factor()?, beta_fast, beta_slow, original, truncate, attention })
    }

    fn factor(&self) -> Result<f64, ModelError> {
        self.number("factor", None, [1.0, 1_048_576.0])
    }

    fn original(&self, max_positions: u32) -> Result<u32, ModelError> {
        let name = "original_max_position_embeddings";
        let number = self.number(name, Some(max_positions.into()), [1.0, 16_777_216.0])?;
        if number.fract() != 0.0 {
            return Err(ModelError::checkpoint(self.path, format!("{name} is {number}")));
        }
        Ok(number as u32)
    }

    /// A number within a range, or the default where there is none.
    fn number(&self, name: &str, default: Option<f64>, [low, high]: [f64; 2]) -> Result<f64, ModelError> {
        let value = match (self.map.get(name).filter(|v| !v.is_null()), default) {
            (Some(value), _) => value.as_f64(),
            (None, Some(default)) => Some(default),
            (None, None) => return Err(ModelError::checkpoint(self.path, format!("rope scaling has no {name}"))),
        };
        value.filter(|v| (low..=high).contains(v)).ok_or_else(|| {
            let found = self.map.get(name).unwrap_or(&Value::Null);
            ModelError::checkpoint(self.path, format!("{name} is {found}; {low} to {high} is possible"))
        })
    }
}
