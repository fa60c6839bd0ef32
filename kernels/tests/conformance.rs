//! The conformance suite over every backend of this crate, and a check that it finds what it is there to find.

use std::collections::BTreeSet;
use std::sync::Arc;

use lockstep_kernels::backend::{Backend, BackendError, Executor, Member, Wrapper};
use lockstep_kernels::conformance::{self, Difference, Level, Progress};
use lockstep_kernels::cpu::{Cpu, Path};
use lockstep_kernels::joined::Joined;
use lockstep_kernels::program::{OP_NAMES, Program, TensorId};
use lockstep_kernels::reference::Reference;
use lockstep_kernels::value::{Params, Value};

/// Runs the whole suite on one path, or says loudly that this machine cannot.
fn full(path: Path, threads: usize) {
    match Cpu::new(Some(path), threads) {
        Ok(cpu) => {
            let summary = conformance::run(&cpu, Level::Full, &mut |_| {}).unwrap_or_else(|d| panic!("{d}"));
            assert!(summary.cases > 1_000, "{summary:?}");
        }
        Err(why) => eprintln!("SKIPPED: {why}"),
    }
}

#[test]
fn portable() {
    full(Path::Portable, 2);
}

#[test]
fn avx2() {
    full(Path::Avx2, 2);
}

#[test]
fn avx512_vnni() {
    full(Path::Avx512Vnni, 2);
}

#[test]
fn neon_dotprod() {
    full(Path::NeonDotprod, 2);
}

#[test]
fn neon() {
    full(Path::Neon, 2);
}

#[test]
fn amx_int8() {
    full(Path::AmxInt8, 2);
}

/// The kernels of the path before, wherever the tests run.
#[test]
fn amx_model() {
    full(Path::AmxModel, 2);
}

#[test]
fn thread_counts() {
    for path in Path::available() {
        for threads in [1, 2, 3] {
            let cpu = Cpu::new(Some(path), threads).expect("an available path");
            conformance::run(&cpu, Level::Quick, &mut |_| {}).unwrap_or_else(|d| panic!("{threads} threads: {d}"));
        }
    }
}

/// The suite agrees with itself, and no op is left out of either level.
#[test]
fn reference_and_coverage() {
    let mut seen = BTreeSet::new();
    let mut note = |p: Progress<'_>| {
        seen.insert(p.op);
    };
    conformance::run(&Reference, Level::Quick, &mut note).unwrap_or_else(|d| panic!("{d}"));
    let expected: BTreeSet<_> = OP_NAMES.into_iter().chain(["model"]).collect();
    assert_eq!(seen, expected);
}

#[test]
fn paths_are_chosen_by_name() {
    for path in Path::ALL {
        assert_eq!(Path::from_name(path.name()), Some(path));
        match Cpu::new(Some(path), 1) {
            Ok(cpu) => assert_eq!(cpu.name(), format!("cpu/{}", path.name())),
            Err(why) => assert!(why.to_string().contains(path.missing()[0]), "{why}"),
        }
    }
    assert_eq!(Path::from_name("avx1024"), None);
}

/// `scripts/test` says which one that is on the processors that it emulates.
#[test]
fn the_fastest_path_is_chosen() {
    let chosen = Cpu::new(None, 1).expect("every machine has a path").path();
    assert_eq!(Some(&chosen), Path::available().first());
    if let Ok(expected) = std::env::var("LOCKSTEP_EXPECTED_PATH") {
        assert_eq!(chosen.name(), expected);
    }
}

/// The oracle, but for one element of one tensor that an op named `op` wrote.
struct Altered {
    op: &'static str,
    row: usize,
    col: usize,
}

impl Backend for Altered {
    fn name(&self) -> String {
        "altered".into()
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        let inner = Reference.load(Arc::clone(&program), params)?;
        Ok(Box::new(AlteredExecutor { inner, program, op: self.op, row: self.row, col: self.col }))
    }
}

struct AlteredExecutor {
    inner: Box<dyn Executor>,
    program: Arc<Program>,
    op: &'static str,
    row: usize,
    col: usize,
}

impl Wrapper for AlteredExecutor {
    fn inner(&self) -> &dyn Executor {
        &*self.inner
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        &mut *self.inner
    }

    fn read(&mut self, tensor: TensorId) -> Result<Value, BackendError> {
        let mut value = self.inner.read(tensor)?;
        let cols = self.program.tensor(tensor).cols as usize;
        let at = self.row * cols + self.col;
        let ops = self.program.layers.iter().flat_map(|l| &l.ops);
        if self.col < cols && ops.clone().any(|op| op.out() == tensor && op.name() == self.op) {
            match &mut value {
                Value::I32(v) if at < v.len() => v[at] ^= 1,
                Value::I16(v) if at < v.len() => v[at] ^= 1,
                Value::Bfp { codes, .. } if at < codes.len() => codes[at] ^= 1,
                _ => {}
            }
        }
        Ok(value)
    }
}

fn joined(right: impl Backend + 'static) -> Joined {
    let left = Arc::new(Cpu::new(None, 1).expect("the detected path"));
    Joined::new(vec![
        Member { name: "left".into(), backend: left },
        Member { name: "right".into(), backend: Arc::new(right) },
    ])
}

#[test]
fn several_joined_are_tested_one_by_one_and_together() {
    let of =
        |backend: &dyn Backend| conformance::run(backend, Level::Quick, &mut |_| {}).unwrap_or_else(|d| panic!("{d}"));
    let cpu = Cpu::new(None, 1).expect("the detected path");
    let (one, both) = (of(&cpu), of(&joined(cpu.clone())));
    assert!(both.cases > 2 * one.cases && both.elements > 2 * one.elements, "{one:?}, {both:?}");
}

#[test]
fn of_several_joined_the_one_that_is_wrong_is_named() {
    let joined = joined(Altered { op: "gelu", row: 1, col: 5 });
    let found = conformance::run(&joined, Level::Quick, &mut |_| {}).expect_err("it is wrong");
    assert_eq!((&*found.backend, found.op), ("right: altered", "gelu"));
}

/// One flipped bit in one element of any op is found, and named by op and coordinate.
#[test]
fn one_altered_element_is_found() {
    for op in OP_NAMES {
        // A word is a row of one column.
        let (row, col) = (1, if op == "sample" { 0 } else { 5 });
        let altered = Altered { op, row, col };
        let found = conformance::run(&altered, Level::Quick, &mut |_| {}).expect_err(op);
        assert_eq!(found.op, op);
        match &found.difference {
            Difference::Element { row: r, col: c, expected, got, .. } => {
                assert_eq!((*r, *c), (row, col));
                assert_eq!(expected ^ 1, *got);
            }
            other => panic!("{op}: {other}"),
        }
        let text = found.to_string();
        assert!(text.contains(&format!("[{row}, {col}]")) && text.contains(op), "{text}");
    }
}
