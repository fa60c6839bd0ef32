//! What the suite does not look at: parameter structs, hashing on the device, caches, and a device's own errors.

use std::sync::Arc;

use lockstep_cuda::device::{Buffer, Device, DeviceError};
use lockstep_cuda::executor::DeviceExecutor;
use lockstep_cuda::params::BinaryParams;
use lockstep_cuda::plan::{self, Launch};
use lockstep_cuda::vendor::Element;
use lockstep_cuda::yardstick::Copying;
use lockstep_cuda::{Cuda, Products};
use lockstep_cuda_emulation::{Emulation, Order};
use lockstep_kernels::backend::{Backend, BackendError, Executor};
use lockstep_kernels::conformance::{Builder, DecoderShape, decoder, encoder};
use lockstep_kernels::program::{Op, TensorKind};
use lockstep_kernels::value::{Batch, CacheId, Params, Sequence, Value};

fn emulation() -> Arc<Emulation> {
    Arc::new(Emulation::new(Order::Ascending, (8, 0)))
}

/// `struct Name { fields }` of both languages, with the fields' names and types in the words of Rust.
fn structs(text: &str, pointers: bool) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    let opens = |line: &&str| line.trim_start_matches("pub ").starts_with("struct ");
    let mut lines = text.lines();
    while let Some(line) = lines.by_ref().find(opens) {
        let name = line.trim_start_matches("pub ").split_whitespace().nth(1).expect("a name").to_owned();
        let body = lines.by_ref().take_while(|line| !line.starts_with('}'));
        let field = |line: &str| {
            let code = line.split("//").next().unwrap_or_default().trim().trim_end_matches([';', ',']);
            (!code.is_empty()).then(|| if pointers { of_cpp(code) } else { code.replace("pub ", "") })
        };
        found.push((name, body.filter_map(field).collect()));
    }
    found
}

/// `name: type` of a field of C++; a pointer is an address.
fn of_cpp(code: &str) -> String {
    if let Some((_, name)) = code.split_once('*') {
        return format!("{name}: u64");
    }
    let code = code.strip_prefix("alignas(64) ").unwrap_or(code);
    let (kind, name) = code.split_once(' ').expect("a type and a name");
    match name.split_once('[') {
        Some((name, len)) => format!("{name}: [{kind}; {}", len.replace('8', "MAX_TABLES")),
        None => format!("{name}: {kind}"),
    }
}

#[test]
fn parameters_are_the_same_in_both_languages() {
    let cpp = structs(include_str!("../../params.cuh"), true);
    let rust = structs(include_str!("../../src/params.rs"), false);
    assert!(cpp.len() > 15, "{cpp:?}");
    assert_eq!(cpp, rust);
}

/// Rows around whole chunks, with chunk numbers beyond 32 bits.
#[test]
fn chunks_hash_as_blake3_does() {
    use blake3::hazmat::HasherExt;
    for (rows, cols) in [(1, 1), (3, 255), (2, 256), (5, 257), (300, 300), (1, 1_024), (2, 1_025)] {
        let (mut b, x) = Builder::with_input(rows, cols);
        let y = b.rows("y", cols, TensorKind::I32);
        b.layer(vec![Op::Add { a: x, b: x, out: y }], y);
        let case = b.case("add", String::new(), &[rows], None);
        let device: Arc<dyn Device> = emulation();
        let program = Arc::clone(&case.program);
        let mut executor = DeviceExecutor::new(device, Products::Mma, program, &*case.params).expect("a valid program");
        executor.begin(&case.batch).expect("a valid batch");
        let values: Vec<i32> = (0..rows * cols).map(|i| (i as i32).wrapping_mul(0x9e37_79b9_u32 as i32)).collect();
        executor.write(x, Value::I32(values.clone())).expect("it fits");
        let row_chunks = cols.div_ceil(256);
        let counters: Vec<u64> = (0..rows as u64).map(|r| (r << 33) + r * row_chunks as u64).collect();
        let got = executor.chunk_values(x, &counters).expect("hashes").expect("on the device");
        assert_eq!(got.len(), rows * row_chunks);
        for (r, row) in values.chunks(cols).enumerate() {
            let mut bytes: Vec<u8> = row.iter().flat_map(|v| v.to_le_bytes()).collect();
            bytes.resize(row_chunks * 1_024, 0);
            for (c, chunk) in bytes.chunks(1_024).enumerate() {
                let mut hasher = blake3::Hasher::new();
                hasher.set_input_offset((counters[r] + c as u64) * 1_024).update(chunk);
                assert_eq!(got[r * row_chunks + c], hasher.finalize_non_root(), "row {r}, chunk {c} of {rows}x{cols}");
            }
        }
        assert!(executor.chunk_values(x, &[]).is_err(), "a counter for each row");
    }
}

fn load(case: &lockstep_kernels::conformance::Case, emulation: &Arc<Emulation>) -> Box<dyn Executor> {
    let params: Arc<dyn Params> = Arc::<lockstep_kernels::conformance::OwnedParams>::clone(&case.params);
    let cuda = Cuda::on(Arc::clone(emulation) as _, None).expect("a capable device");
    cuda.load(Arc::clone(&case.program), params).expect("a valid program")
}

/// Nothing of one batch is to be had in the next, and a large one gives its memory back.
#[test]
fn a_batch_forgets_the_one_before() {
    let case = encoder(16, 2, 16, 2, false, &[400, 300]);
    let device = emulation();
    let mut executor = load(&case, &device);
    let run = |executor: &mut dyn Executor, batch: &Batch| {
        executor.begin(batch).expect("a valid batch");
        for tensor in case.program.layers.iter().map(|l| l.output) {
            assert!(executor.read(tensor).is_err(), "nothing is written yet");
        }
        for layer in 0..case.program.layers.len() {
            executor.run_layer(layer).expect("in order");
        }
        case.program.layers.iter().for_each(|l| drop(executor.read(l.output).expect("written")));
    };
    run(executor.as_mut(), &Batch::single(vec![1]));
    let small = device.allocated();
    run(executor.as_mut(), &case.batch);
    let large = device.allocated();
    run(executor.as_mut(), &Batch::single(vec![1]));
    assert!(small < large, "{small} {large}");
    let refused = executor.begin(&Batch::single(vec![u32::MAX]));
    assert!(matches!(refused, Err(BackendError::Batch { .. })), "{refused:?}");
    assert!(executor.run_layer(1).is_err(), "layer 1 without layer 0");
    drop(executor);
    assert_eq!(device.allocated(), 0);
}

/// What two caches have in common is there once, and all of it is given back.
#[test]
fn caches_share_pages_and_give_them_back() {
    let shape = DecoderShape::SMALL;
    let case = decoder(shape, &[1]);
    let device = emulation();
    let mut executor = load(&case, &device);
    let sequence = |cache, start, end: u32| Sequence {
        tokens: (0..end).map(|t| t % shape.vocab as u32).collect(),
        start,
        cache: Some(CacheId(cache)),
        sampler: None,
    };
    let run = |executor: &mut dyn Executor, sequence| {
        executor.begin(&Batch { sequences: vec![sequence] }).expect("a valid batch");
        for layer in 0..case.program.layers.len() {
            executor.run_layer(layer).expect("in order");
        }
    };
    run(executor.as_mut(), sequence(1, 0, 300));
    let one = executor.cache_bytes();
    assert_eq!(one, case.program.cache_bytes(300));
    executor.fork_cache(CacheId(1), CacheId(2), 300).expect("it has as many");
    assert_eq!(executor.cache_bytes(), one);
    // The second page of each of the two layers is copied by whoever writes to it.
    run(executor.as_mut(), sequence(2, 300, 301));
    assert_eq!(executor.cache_bytes(), one / 2 * 3);
    executor.drop_cache(CacheId(1));
    assert_eq!(executor.cache_bytes(), one);
    executor.truncate_cache(CacheId(2), 256).expect("it has as many");
    assert_eq!(executor.cache_bytes(), one / 2);
    assert!(executor.fork_cache(CacheId(2), CacheId(3), 257).is_err());
    executor.drop_cache(CacheId(2));
    assert_eq!(executor.cache_bytes(), 0);
}

#[test]
fn products_need_a_capable_device() {
    for (capability, best) in [
        ((6, 1), Some("dp4a")),
        ((7, 5), Some("dp4a")),
        ((8, 0), Some("mma")),
        ((9, 0), Some("wgmma")),
        ((10, 0), Some("mma")),
        ((6, 0), None),
    ] {
        let device = || Arc::new(Emulation::new(Order::Ascending, capability));
        match (Cuda::on(device(), None), best) {
            (Ok(cuda), Some(best)) => assert!(cuda.name().starts_with(&format!("cuda/{best} ")), "{}", cuda.name()),
            (Err(BackendError::Unavailable(why)), None) => assert!(why.contains("6.1") && why.contains("6.0"), "{why}"),
            _ => panic!("{capability:?}"),
        }
        let mma = Cuda::on(device(), Some(Products::Mma));
        assert_eq!(mma.is_ok(), best.is_some_and(|best| best != "dp4a"), "{capability:?}");
        let wgmma = Cuda::on(device(), Some(Products::Wgmma));
        assert_eq!(wgmma.is_ok(), best == Some("wgmma"), "{capability:?}");
    }
}

/// What benchmarks hold ops against: a copy that moves its bytes, and the vendor's products, of which the CPU has none.
#[test]
fn yardsticks_are_there_or_say_what_is_missing() {
    let device: Arc<dyn Device> = emulation();
    let copying = Copying::new(&device, 1_000).expect("memory");
    copying.run(&*device, 3).expect("it copies");
    drop(copying);
    let cuda = Cuda::on(Arc::clone(&device), None).expect("a capable device");
    for element in Element::ALL {
        let missing = cuda.vendor_product(element, 64);
        assert!(matches!(&missing, Err(BackendError::Unavailable(why)) if why.contains("is no GPU")), "{missing:?}");
    }
}

/// The emulation catches what a GPU would not: a launch that goes wrong is named.
#[test]
fn errors_name_the_kernel() {
    let device: Arc<dyn Device> = emulation();
    let [a, b, out, count] = [0, 1, 2, 3].map(|_| Buffer::of(&device, &[1_i32; 8]).expect("memory"));
    let [a, b, out, saturations] = [&a, &b, &out, &count].map(Buffer::address);
    let params = BinaryParams { a, b, out, saturations, len: 8, shift: 0, unused: 0 };
    let good = plan::add(params);
    device.launch(&good).expect("as planned");
    let refused = |launch: Launch| -> DeviceError { device.launch(&launch).expect_err("refused") };
    assert!(refused(Launch { kernel: "divide", ..good.clone() }).to_string().contains("kernel divide: there is none"));
    assert!(refused(Launch { threads: 32, ..good.clone() }).reason.contains("threads"));
    assert!(refused(Launch { grid: [1, 0, 1], ..good.clone() }).reason.contains("empty"));
    assert!(refused(Launch { params: vec![0], ..good }).reason.contains("size"));
    let beyond = plan::add(BinaryParams { len: 9, ..params });
    assert!(refused(beyond).to_string().contains("kernel add: wrote beyond the 32 bytes"));
}
