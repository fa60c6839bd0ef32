//! The suite that any backend is put through, byte for byte against the oracle.
//!
//! Workers run it before they accept work, tests run it over every path, and a new backend starts here. It compares
//! every tensor that a program writes and the saturations of every layer; what differs is named by op, case, tensor
//! and coordinate.

use std::fmt;

use crate::backend::Backend;
use crate::joined::Joined;
use crate::program::Program;
use crate::reference::Reference;
use crate::value::Value;

mod case;
mod data;
mod decoder_ops;
mod decoders;
mod edges;
mod long;
mod models;
mod ops;
mod passes;
mod sampling;

pub use case::{Builder, Case, Outcome, OwnedParams, ParamValue};
pub use data::{Pattern, SplitMix};
pub use decoders::{DecoderShape, decoder};
pub use models::encoder;
pub use sampling::{TOKEN_BYTES_WIDTH, random_sampling, random_token_bytes};

/// How much is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Every op once or more at small shapes, and a whole model: for every start.
    Quick,
    /// Every boundary and pattern: for tests, and for a device never seen before.
    Full,
}

/// What was compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Cases run.
    pub cases: u64,
    /// Elements compared.
    pub elements: u64,
}

/// Where the suite is: told before each case.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Basename of the op, or `model`.
    pub op: &'static str,
    /// The case.
    pub case: &'a str,
    /// Cases done so far.
    pub done: u64,
}

/// The first thing that a backend did otherwise than the oracle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{backend}, op {op}, case \"{case}\": {difference}")]
pub struct Divergence {
    /// The backend's name.
    pub backend: String,
    /// Basename of the op whose output differs, or of the op under test where no tensor differs.
    pub op: &'static str,
    /// The case.
    pub case: String,
    /// What differs.
    pub difference: Difference,
}

/// What differs from the oracle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// An element.
    Element {
        /// Name of the tensor, with `.exponents` appended for a row exponent.
        tensor: String,
        /// Row over all sequences.
        row: usize,
        /// Column; 0 for a row exponent.
        col: usize,
        /// The oracle's value.
        expected: i64,
        /// The backend's value.
        got: i64,
    },
    /// A tensor's kind or length.
    Shape {
        /// Name of the tensor.
        tensor: String,
    },
    /// The number of clamped elements in a layer.
    Saturations {
        /// The layer.
        layer: usize,
        /// The oracle's count.
        expected: u64,
        /// The backend's count.
        got: u64,
    },
    /// The backend failed.
    Failed {
        /// Its error.
        error: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Element { tensor, row, col, expected, got } => {
                write!(f, "tensor {tensor:?} [{row}, {col}]: expected {expected}, got {got}")
            }
            Self::Shape { tensor } => write!(f, "tensor {tensor:?} has another kind or length"),
            Self::Saturations { layer, expected, got } => {
                write!(f, "layer {layer} clamped {got} elements, expected {expected}")
            }
            Self::Failed { error } => write!(f, "failed: {error}"),
        }
    }
}

/// Puts a backend through the suite. Of [several joined](Joined) each is put through it by itself, so that what is wrong has
/// its name, and then whole models through all of them, dealt out evenly so that rows cross.
///
/// # Errors
/// The first divergence from the oracle, in the suite's fixed order.
pub fn run(backend: &dyn Backend, level: Level, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Summary, Divergence> {
    let mut suite = Suite { level, progress, summary: Summary::default() };
    let members = backend.members();
    for member in members {
        let of_member =
            |found: Divergence| Divergence { backend: format!("{}: {}", member.name, found.backend), ..found };
        suite.ops(&*member.backend).and_then(|()| suite.models(&*member.backend)).map_err(of_member)?;
    }
    if members.is_empty() {
        suite.ops(backend)?;
        suite.models(backend)?;
    } else {
        suite.models(&Joined::evenly(members.to_vec()))?;
    }
    Ok(suite.summary)
}

struct Suite<'a> {
    level: Level,
    progress: &'a mut dyn FnMut(Progress<'_>),
    summary: Summary,
}

impl Suite<'_> {
    fn case(&mut self, backend: &dyn Backend, case: &Case) -> Result<(), Divergence> {
        (self.progress)(Progress { op: case.op, case: &case.name, done: self.summary.cases });
        self.summary.elements += check(backend, case)?;
        self.summary.cases += 1;
        Ok(())
    }

    /// Op by op.
    fn ops(&mut self, backend: &dyn Backend) -> Result<(), Divergence> {
        ops::visit(self.level, &mut |case| self.case(backend, &case))?;
        edges::visit(self.level, &mut |case| self.case(backend, &case))?;
        if self.level == Level::Full {
            self.summary.elements += long::attention(backend)?;
        }
        Ok(())
    }

    /// Whole models.
    fn models(&mut self, backend: &dyn Backend) -> Result<(), Divergence> {
        models::visit(self.level, &mut |case| self.case(backend, &case))?;
        self.summary.elements += models::invariance(backend)?;
        self.summary.elements += passes::invariance(backend, self.level)?;
        Ok(())
    }
}

/// Runs one case on the backend and on the oracle. Returns the number of elements compared.
///
/// # Errors
/// The first divergence.
pub fn check(backend: &dyn Backend, case: &Case) -> Result<u64, Divergence> {
    let fail = |op, difference| Divergence { backend: backend.name(), op, case: case.name.clone(), difference };
    let failed = |e: crate::backend::BackendError| fail(case.op, Difference::Failed { error: e.to_string() });
    let expected = case.run(&Reference).map_err(failed)?;
    let got = case.run(backend).map_err(failed)?;
    let mut elements = 0;
    for ((layer, id, expected), (_, _, got)) in expected.tensors.iter().zip(&got.tensors) {
        let tensor = case.program.tensor(*id);
        elements += compare(&tensor.name, tensor.cols as usize, expected, got)
            .map_err(|difference| fail(writer(&case.program, *layer, *id), difference))?;
    }
    for (layer, (expected, got)) in expected.saturations.iter().zip(&got.saturations).enumerate() {
        if expected != got {
            let (expected, got) = (*expected, *got);
            return Err(fail(case.op, Difference::Saturations { layer, expected, got }));
        }
    }
    Ok(elements)
}

/// Basename of the op that writes a tensor in a layer.
fn writer(program: &Program, layer: usize, tensor: crate::program::TensorId) -> &'static str {
    let ops = &program.layers[layer].ops;
    ops.iter().find(|op| op.out() == tensor).map_or("model", |op| op.name())
}

/// Compares two values of one tensor. Returns the number of elements compared.
///
/// # Errors
/// The first difference.
pub fn compare(tensor: &str, cols: usize, expected: &Value, got: &Value) -> Result<u64, Difference> {
    match (expected, got) {
        (Value::I32(a), Value::I32(b)) => elements(tensor, cols, a, b),
        (Value::I16(a), Value::I16(b)) => elements(tensor, cols, a, b),
        (Value::Bfp { codes: a, exponents: e }, Value::Bfp { codes: b, exponents: f }) => {
            Ok(elements(&format!("{tensor}.exponents"), 1, e, f)? + elements(tensor, cols, a, b)?)
        }
        _ => Err(Difference::Shape { tensor: tensor.into() }),
    }
}

fn elements<T: Copy + PartialEq + Into<i64>>(
    tensor: &str,
    cols: usize,
    expected: &[T],
    got: &[T],
) -> Result<u64, Difference> {
    let tensor = tensor.to_owned();
    if expected.len() != got.len() {
        return Err(Difference::Shape { tensor });
    }
    match expected.iter().zip(got).position(|(a, b)| a != b) {
        None => Ok(expected.len() as u64),
        Some(i) => {
            let (expected, got) = (expected[i].into(), got[i].into());
            Err(Difference::Element { tensor, row: i / cols, col: i % cols, expected, got })
        }
    }
}
