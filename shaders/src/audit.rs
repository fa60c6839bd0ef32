//! Passes over the shaders as naga reads them: what the specification forbids does not occur, and parameters are what the host
//! writes.

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{
    AddressSpace, BinaryOperator, Expression, Function, Handle, Literal, MathFunction, Module, Scalar, ScalarKind,
    TypeInner, UnaryOperator,
};

use crate::shader::{INT64, PARAMS, PORTABLE, SUBGROUPS};

/// Each variant, and what adapters have that can use it.
const VARIANTS: [(&[(&str, &str)], Capabilities); 3] =
    [(PORTABLE, Capabilities::empty()), (INT64, Capabilities::SHADER_INT64), (SUBGROUPS, Capabilities::SUBGROUP)];

fn module(op: &str, text: &str) -> Module {
    naga::front::wgsl::parse_str(text).unwrap_or_else(|e| panic!("{op}: {}", e.emit_to_string(text)))
}

/// Checked for what adapters have besides what they all have.
fn checked(op: &str, text: &str, has: Capabilities) -> (Module, ModuleInfo) {
    let module = module(op, text);
    let mut validator = Validator::new(ValidationFlags::all(), has);
    let info = validator.validate(&module).unwrap_or_else(|e| panic!("{op}: {e:?}"));
    (module, info)
}

/// What a shader must not contain, each with the function that it is in.
fn forbidden(op: &str, text: &str, has: Capabilities) -> Vec<String> {
    let (module, info) = checked(op, text, has);
    let allowed = |scalar| allowed(scalar) || has == Capabilities::SHADER_INT64 && scalar == Scalar::U64;
    let mut found: Vec<String> = Vec::new();
    for (_, ty) in module.types.iter() {
        if let Some(scalar) = ty.inner.scalar().filter(|scalar| !allowed(*scalar)) {
            found.push(format!("{op}: the type {scalar:?}"));
        }
    }
    for (handle, function) in module.functions.iter() {
        let of = Place { module: &module, function, info: &info[handle], allowed: &allowed };
        found.extend(of.forbidden().into_iter().map(|what| format!("{op}, {:?}: {what}", function.name)));
    }
    for (i, entry) in module.entry_points.iter().enumerate() {
        let of = Place { module: &module, function: &entry.function, info: info.get_entry_point(i), allowed: &allowed };
        found.extend(of.forbidden().into_iter().map(|what| format!("{op}, {}: {what}", entry.name)));
    }
    found
}

/// Words of 32 bits and truth values.
fn allowed(scalar: Scalar) -> bool {
    matches!(scalar.kind, ScalarKind::Sint | ScalarKind::Uint) && scalar.width == 4 || scalar.kind == ScalarKind::Bool
}

struct Place<'a> {
    module: &'a Module,
    function: &'a Function,
    info: &'a naga::valid::FunctionInfo,
    allowed: &'a dyn Fn(Scalar) -> bool,
}

impl Place<'_> {
    fn forbidden(&self) -> Vec<String> {
        let all = self.function.expressions.iter();
        all.filter_map(|(handle, expression)| self.check(handle, expression)).collect()
    }

    fn scalar(&self, handle: Handle<Expression>) -> Option<Scalar> {
        let inner = self.info[handle].ty.inner_with(&self.module.types);
        match inner {
            TypeInner::Scalar(scalar) | TypeInner::Vector { scalar, .. } => Some(*scalar),
            _ => None,
        }
    }

    fn signed(&self, handle: Handle<Expression>) -> bool {
        self.scalar(handle).is_some_and(|scalar| scalar.kind == ScalarKind::Sint)
    }

    fn check(&self, handle: Handle<Expression>, expression: &Expression) -> Option<String> {
        use BinaryOperator::{Add, Divide, Modulo, Multiply, ShiftLeft, ShiftRight, Subtract};
        if let Some(scalar) = self.scalar(handle).filter(|scalar| !(self.allowed)(*scalar)) {
            return Some(format!("a value of type {scalar:?}"));
        }
        match *expression {
            Expression::Binary { op: op @ (Add | Subtract | Multiply | Divide | Modulo), left, .. }
                if self.signed(left) =>
            {
                Some(format!("signed {op:?}, of which a device may assume that it does not overflow"))
            }
            Expression::Unary { op: UnaryOperator::Negate, expr } if self.signed(expr) => {
                Some("a signed negation".into())
            }
            Expression::Math { fun: MathFunction::Abs, arg, .. } if self.signed(arg) => {
                Some("a signed magnitude".into())
            }
            Expression::Binary { op: op @ (ShiftLeft | ShiftRight), left, right }
                if !self.is_below(right, self.scalar(left).map_or(0, |scalar| 8 * u32::from(scalar.width))) =>
            {
                Some(format!("{op:?} by an amount that may be out of range"))
            }
            _ => None,
        }
    }

    /// Whether an amount is a constant below the bits of what is shifted, or masked to five bits.
    fn is_below(&self, handle: Handle<Expression>, bits: u32) -> bool {
        let literal = |handle: Handle<Expression>| match self.function.expressions[handle] {
            Expression::Literal(Literal::U32(value)) => Some(value),
            _ => None,
        };
        match self.function.expressions[handle] {
            Expression::Literal(Literal::U32(amount)) => amount < bits,
            Expression::Splat { value, .. } => self.is_below(value, bits),
            Expression::Binary { op: BinaryOperator::And, left, right } => {
                [left, right].into_iter().any(|side| literal(side) == Some(31))
            }
            _ => false,
        }
    }
}

#[test]
fn shaders_keep_to_what_wraps_alike_everywhere() {
    for (shaders, has) in VARIANTS {
        let found: Vec<String> = shaders.iter().flat_map(|(op, text)| forbidden(op, text, has)).collect();
        assert!(found.is_empty(), "{found:#?}");
    }
}

/// A variant is one: it can't be used where what it is made for is missing.
#[test]
fn variants_need_what_they_are_made_for() {
    for (shaders, least) in [(PORTABLE, 0), (INT64, 10), (SUBGROUPS, 7)] {
        let refused = shaders.iter().filter(|(_, text)| {
            let module = naga::front::wgsl::parse_str(text).expect("checked above");
            Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(&module).is_err()
        });
        let refused = refused.count();
        assert!(refused >= least && (refused > 0) == (least > 0), "{refused} shaders");
    }
}

/// Each rule finds what it is there to find.
#[test]
fn each_rule_finds_its_offence() {
    for (body, offence) in [
        ("out[0] = u32(f32(out[1]) * 0.5);", "type Scalar { kind: Float"),
        ("out[0] = u32(bitcast<i32>(out[1]) + 1);", "signed Add"),
        ("out[0] = u32(bitcast<i32>(out[1]) * 3);", "signed Multiply"),
        ("out[0] = u32(-bitcast<i32>(out[1]));", "signed negation"),
        ("out[0] = u32(abs(bitcast<i32>(out[1])));", "signed magnitude"),
        ("out[0] = out[1] << out[2];", "ShiftLeft by an amount"),
        ("out[0] = out[1] >> (out[2] & 63u);", "ShiftRight by an amount"),
        ("out[0] = out[1] >> (out[2] & 31u);", ""),
        ("out[0] = u32(max(bitcast<i32>(out[1]), 3));", ""),
    ] {
        let head =
            "@group(0) @binding(0) var<storage, read_write> out: array<u32>;\n@compute @workgroup_size(1) fn main()";
        let found = forbidden("made up", &format!("{head} {{ {body} }}"), Capabilities::empty()).join("; ");
        assert!(found.contains(offence) && found.is_empty() == offence.is_empty(), "{body}: {found:?}");
    }
}

#[test]
fn parameters_are_what_the_host_writes() {
    for (op, text) in VARIANTS.iter().flat_map(|(shaders, _)| *shaders) {
        let module = module(op, text);
        let uniforms: Vec<_> =
            module.global_variables.iter().filter(|(_, v)| v.space == AddressSpace::Uniform).collect();
        let [(_, uniform)] = uniforms[..] else { panic!("{op} has {} uniforms", uniforms.len()) };
        let binding = uniform.binding.as_ref().map(|b| (b.group, b.binding));
        assert_eq!(binding, Some((0, 0)), "{op}");
        let TypeInner::Struct { members, .. } = &module.types[uniform.ty].inner else { panic!("{op}: no struct") };
        let reflected = members.iter().enumerate().map(|(i, member)| {
            assert_eq!(member.offset as usize, 4 * i, "{op}: a word each, in order");
            let kind = match module.types[member.ty].inner {
                TypeInner::Scalar(Scalar { kind: ScalarKind::Uint, width: 4 }) => "u32",
                TypeInner::Scalar(Scalar { kind: ScalarKind::Sint, width: 4 }) => "i32",
                ref other => panic!("{op}: {other:?}"),
            };
            (member.name.as_deref().unwrap_or_default(), kind)
        });
        let of_host = PARAMS.iter().find(|(name, _)| name == op).map(|(_, fields)| *fields);
        assert_eq!(Some(&reflected.collect::<Vec<_>>()[..]), of_host, "{op}");
    }
}

/// Every adapter has room for this many storage buffers, and binds at least this much.
#[test]
fn entry_points_bind_no_more_than_every_adapter_has() {
    for (op, text, has) in VARIANTS.iter().flat_map(|(shaders, has)| shaders.iter().map(|(op, text)| (op, text, *has)))
    {
        let (module, info) = checked(op, text, has);
        for (i, entry) in module.entry_points.iter().enumerate() {
            let used = module.global_variables.iter().filter(|(handle, variable)| {
                matches!(variable.space, AddressSpace::Storage { .. }) && !info.get_entry_point(i)[*handle].is_empty()
            });
            let used = used.count();
            assert!(used <= 8, "{op}, {}: {used} storage buffers", entry.name);
            let threads: u32 = entry.workgroup_size.iter().product();
            assert!(threads <= 256, "{op}, {}: {threads} threads", entry.name);
        }
    }
}
