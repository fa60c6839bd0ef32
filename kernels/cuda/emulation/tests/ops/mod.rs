//! Each op alone: its operands to the device, one plan, and its result back.

use std::ops::Range;
use std::sync::Arc;

use lockstep_cuda::Products;
use lockstep_cuda::device::{Buffer, Device};
use lockstep_cuda::executor::digits;
use lockstep_cuda::params::*;
use lockstep_cuda::plan::{self, AttentionShape, AttentionUnits, Launch, SamplePoints, SequenceRows, Units};
use lockstep_kernels::host::{
    AttentionArgs, BfpRows, HostOps, KeyValues, MatMulOut, NormArgs, RopeArgs, SampleArgs, Scaled,
};
use lockstep_kernels::tables::{GAUSS, SIGMOID};
use lockstep_kernels::value::ParamData;

/// One launch for each op.
pub struct Ops {
    pub device: Arc<dyn Device>,
    pub products: Products,
}

impl Ops {
    fn of<T: Copy + Bytes>(&self, items: &[T]) -> Buffer {
        let bytes: Vec<u8> = items.iter().flat_map(|item| item.bytes()).collect();
        Buffer::of(&self.device, &bytes).expect("memory")
    }

    /// Room for `len` items of 32 bits.
    fn room(&self, len: usize) -> Buffer {
        Buffer::new(&self.device, len * 4).expect("memory")
    }

    fn launch(&self, launch: &Launch) {
        self.device.launch(launch).unwrap_or_else(|e| panic!("{e}"));
    }

    /// Launches what is planned with a place for the result and one for the count of clamped elements, and reads both.
    fn counted(&self, out: &mut [i32], plan: impl FnOnce(u64, u64) -> Launch) -> u64 {
        let (result, count) = (self.room(out.len()), self.of(&[0, 0]));
        self.launch(&plan(result.address(), count.address()));
        out.copy_from_slice(&result.read(out.len()).expect("a result"));
        count.read::<u64>(1).expect("a count")[0]
    }

    fn counted_codes(&self, out: &mut [i16], plan: impl FnOnce(u64, u64) -> Launch) -> u64 {
        let (result, count) = (self.room(out.len()), self.of(&[0, 0]));
        self.launch(&plan(result.address(), count.address()));
        out.copy_from_slice(&result.read(out.len()).expect("a result"));
        count.read::<u64>(1).expect("a count")[0]
    }

    /// Rows of codes, as digits.
    fn codes(&self, codes: ParamData<'_>, cols: usize) -> Buffer {
        match codes {
            ParamData::I8(v) => self.of(&digits::pad(v, cols, stride(cols) as usize)),
            ParamData::I16(v) => self.of(&digits::split(v, cols, stride(cols) as usize)),
            _ => panic!("codes have 8 or 16 bits"),
        }
    }

    fn norm(&self, input: &[i32], args: NormArgs<'_>, bias: Option<&[i32]>, out: &mut [i32]) -> u64 {
        let (x, scale) = (self.of(input), self.of(args.scale));
        let of_bias = bias.map(|b| self.of(b));
        let (cols, norm) = (args.scale.len() as u32, args.norm);
        let parts = input.len() as u32 / cols;
        self.counted(out, |out, saturations| {
            let params = NormParams {
                input: x.address(),
                scale: scale.address(),
                bias: of_bias.as_ref().map_or(0, Buffer::address),
                out,
                saturations,
                cols,
                shift: norm.shift.into(),
                epsilon_mantissa: norm.epsilon_mantissa,
                epsilon_shift: norm.epsilon_shift.into(),
            };
            if bias.is_some() { plan::layer_norm(parts, params) } else { plan::rms_norm(parts, params) }
        })
    }

    fn binary(&self, a: &[i32], b: &[i32], shift: u32, out: &mut [i32], plan: fn(BinaryParams) -> Launch) -> u64 {
        let (a, b, len) = (self.of(a), self.of(b), a.len() as u64);
        self.counted(out, |out, saturations| {
            plan(BinaryParams { a: a.address(), b: b.address(), out, saturations, len, shift, unused: 0 })
        })
    }

    fn unary(&self, input: &[i32], table: &[u32], amount: u32, out: &mut [i32], plan: fn(UnaryParams) -> Launch) {
        let (x, table, len) = (self.of(input), self.of(table), input.len() as u64);
        self.counted(out, |out, _| {
            plan(UnaryParams { input: x.address(), table: table.address(), out, len, amount, unused: 0 })
        });
    }

    fn rows(&self, input: &[i32], cols: usize, spans: &[Range<usize>], out: &mut [i32], op: &str) {
        let x = self.of(input);
        let first = self.of(&spans.iter().map(|s| s.start as u32).collect::<Vec<_>>());
        let count = self.of(&spans.iter().map(|s| s.len() as u32).collect::<Vec<_>>());
        let rows = spans.len() as u32;
        self.counted(out, |out, _| {
            let (input, first, count, cols) = (x.address(), first.address(), count.address(), cols as u32);
            let params = RowsParams { input, first, count, out, cols, unused: 0 };
            match op {
                "mean_pool" => plan::mean_pool(rows, params),
                "first_pool" => plan::first_pool(rows, params),
                _ => plan::gather(rows, params),
            }
        });
    }
}

/// Little-endian bytes of one item.
trait Bytes {
    fn bytes(self) -> Vec<u8>;
}

macro_rules! bytes {
    ($($t:ty),*) => {$(
        impl Bytes for $t {
            fn bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
        }
    )*};
}

bytes!(i8, u8, i16, u16, i32, u32);

fn stride(cols: usize) -> u32 {
    cols.next_multiple_of(ROW_PADDING) as u32
}

impl HostOps for Ops {
    type Matrix = ();

    fn prepare(&self, _: ParamData<'_>, _: usize) {}

    fn embed(&self, tables: &[Scaled<'_>], index: &[Vec<u32>], out: &mut [i32]) -> u64 {
        let cols = tables[0].cols;
        let held: Vec<[Buffer; 4]> = tables
            .iter()
            .zip(index)
            .map(|(t, i)| [self.codes(t.codes, cols), self.of(t.mantissa), self.of(t.shift), self.of(i)])
            .collect();
        let mut of = [EmbedTable::default(); MAX_TABLES];
        for (to, (held, t)) in of.iter_mut().zip(held.iter().zip(tables)) {
            let [codes, mantissa, shift, index] = [0, 1, 2, 3].map(|i: usize| held[i].address());
            *to = EmbedTable { codes, mantissa, shift, index, rows: t.mantissa.len() as u32, constant: 0 };
        }
        let rows = (out.len() / cols) as u32;
        self.counted(out, |out, saturations| {
            let (count, cols, stride) = (tables.len() as u32, cols as u32, stride(cols));
            plan::embed(rows, EmbedParams { tables: of, out, saturations, count, cols, stride, unused: 0 })
        })
    }

    fn quantize(&self, input: &[i32], cols: usize, codes: &mut [i16], exponents: &mut [i32]) {
        let (x, rows) = (self.of(input), exponents.len());
        let (to, e) = (self.room(rows * stride(cols) as usize), self.room(rows));
        let (input, of_codes, of_exponents) = (x.address(), to.address(), e.address());
        let (cols_, stride) = (cols as u32, stride(cols));
        let params = QuantizeParams { input, codes: of_codes, exponents: of_exponents, cols: cols_, stride };
        self.launch(&plan::quantize(rows as u32, params));
        let stride = stride as usize;
        let padded = digits::join(&to.read::<u8>(rows * 2 * stride).expect("codes"), stride, stride);
        for (row, codes) in padded.chunks_exact(stride).zip(codes.chunks_exact_mut(cols)) {
            codes.copy_from_slice(&row[..cols]);
            assert!(row[cols..].iter().all(|code| *code == 0), "padding is zeros");
        }
        exponents.copy_from_slice(&e.read(rows).expect("exponents"));
    }

    fn matmul(&self, x: BfpRows<'_>, w: Scaled<'_>, (): &(), bias: Option<&[i32]>, out: MatMulOut<'_>) -> u64 {
        let codes = self.codes(ParamData::I16(x.codes), w.cols);
        let weight = self.codes(w.codes, w.cols);
        let [exponents, mantissa, shift] = [self.of(x.exponents), self.of(w.mantissa), self.of(w.shift)];
        let bias = bias.map(|b| self.of(b));
        let wide = matches!(w.codes, ParamData::I16(_));
        let units = Units { products: self.products, processors: self.device.processors() };
        let launch = |out, saturations, narrow| {
            let mut params = MatMulParams {
                codes: codes.address(),
                exponents: exponents.address(),
                saturations,
                rows: x.exponents.len() as u32,
                stride: stride(w.cols),
                count: 1,
                ..MatMulParams::default()
            };
            params.parts[0] = MatMulPart {
                weight: weight.address(),
                mantissa: mantissa.address(),
                shift: shift.address(),
                bias: bias.as_ref().map_or(0, Buffer::address),
                out,
                cols: w.mantissa.len() as u32,
                narrow,
            };
            plan::matmul(units, wide, params).remove(0)
        };
        match out {
            MatMulOut::I32(v) => self.counted(v, |out, count| launch(out, count, 0)),
            MatMulOut::I16(v) => self.counted_codes(v, |out, count| launch(out, count, 1)),
        }
    }

    fn add(&self, a: &[i32], b: &[i32], out: &mut [i32]) -> u64 {
        self.binary(a, b, 0, out, plan::add)
    }

    fn layer_norm(&self, input: &[i32], args: NormArgs<'_>, bias: &[i32], out: &mut [i32]) -> u64 {
        self.norm(input, args, Some(bias), out)
    }

    fn rms_norm(&self, input: &[i32], args: NormArgs<'_>, out: &mut [i32]) -> u64 {
        self.norm(input, args, None, out)
    }

    fn attention(&self, args: AttentionArgs<'_>, out: &mut [i32]) -> u64 {
        let heads = args.heads;
        let [q, score_shift, value_shift] = [self.of(args.q), self.of(&heads.score_shift), self.of(&heads.value_shift)];
        let width = usize::from(heads.kv_heads) * usize::from(heads.head_dim);
        let (mut held, mut blocks, mut sequences) = (vec![], vec![], vec![]);
        for s in args.sequences {
            let KeyValues::Rows { k, v } = s.keys else { panic!("the vectors have no caches") };
            let (k, v) = (self.of(k), self.of(v));
            sequences.push(SequenceRows {
                rows: s.rows.start as u32..s.rows.end as u32,
                start: s.start as u32,
                table: blocks.len() as u32,
            });
            blocks.extend((0..s.positions().div_ceil(256)).map(|b| KeyBlock {
                keys: k.address() + (b * 256 * width * 2) as u64,
                values: v.address() + (b * 256 * width * 2) as u64,
                position_stride: width as u32,
                head_stride: heads.head_dim.into(),
            }));
            held.push((k, v));
        }
        let blocks = Buffer::of(&self.device, &blocks).expect("memory");
        let shape = AttentionShape { heads: heads.heads.into(), head_dim: heads.head_dim.into(), causal: heads.causal };
        let units = AttentionUnits::choose(self.products, &sequences);
        let chunks = plan::attention_chunks(units, shape, &sequences, 1 << 20);
        let [chunk] = chunks.as_slice() else { panic!("the vectors fit into one chunk") };
        let tiles = Buffer::of(&self.device, &chunk.tiles).expect("memory");
        let rows = Buffer::of(&self.device, &chunk.rows).expect("memory");
        let slots = chunk.slots as usize;
        let [sums, reference, weight] = [2 * slots * usize::from(heads.head_dim), slots, slots].map(|n| self.room(n));
        let [sums, reference, weight] = [&sums, &reference, &weight].map(Buffer::address);
        self.counted(out, |out, saturations| {
            self.launch(&plan::block(
                units,
                chunk.tiles.len() as u32,
                AttentionParams {
                    q: q.address(),
                    blocks: blocks.address(),
                    tiles: tiles.address(),
                    score_shift: score_shift.address(),
                    sums,
                    reference,
                    weight,
                    saturations,
                    heads: shape.heads,
                    kv_heads: heads.kv_heads.into(),
                    head_dim: shape.head_dim,
                    causal: shape.causal.into(),
                },
            ));
            let (value_shift, heads, head_dim) = (value_shift.address(), shape.heads, shape.head_dim);
            let rows_at = rows.address();
            let params = CombineParams { rows: rows_at, sums, reference, weight, value_shift, out, heads, head_dim };
            plan::combine(chunk.rows.len() as u32, params)
        })
    }

    fn gelu(&self, input: &[i32], frac: u32, out: &mut [i32]) {
        self.unary(input, &GAUSS.entries, frac, out, plan::gelu);
    }

    fn silu(&self, input: &[i32], frac: u32, out: &mut [i32]) {
        self.unary(input, &SIGMOID.entries, frac, out, plan::silu);
    }

    fn mean_pool(&self, input: &[i32], cols: usize, spans: &[Range<usize>], out: &mut [i32]) {
        self.rows(input, cols, spans, out, "mean_pool");
    }

    fn first_pool(&self, input: &[i32], cols: usize, spans: &[Range<usize>], out: &mut [i32]) {
        self.rows(input, cols, spans, out, "first_pool");
    }

    fn l2_normalize(&self, input: &[i32], cols: usize, out: &mut [i32]) {
        let (x, rows) = (self.of(input), (input.len() / cols) as u32);
        self.counted(out, |out, _| {
            let params = NormParams { input: x.address(), out, cols: cols as u32, ..NormParams::default() };
            plan::l2_normalize(rows, params)
        });
    }

    fn rope(&self, input: &[i32], args: RopeArgs<'_>, positions: &[u32], out: &mut [i16]) -> u64 {
        let [x, table] = [input, args.table].map(|items| self.of(items));
        let (at, shift) = (self.of(positions), self.of(args.shift));
        self.counted_codes(out, |out, saturations| {
            plan::rope(
                positions.len() as u32,
                RopeParams {
                    input: x.address(),
                    table: table.address(),
                    positions: at.address(),
                    shift: shift.address(),
                    out,
                    saturations,
                    cols: (input.len() / positions.len()) as u32,
                    head_dim: args.head_dim as u32,
                    rotary_dim: args.rotary_dim as u32,
                    unused: 0,
                },
            )
        })
    }

    fn multiply(&self, a: &[i32], b: &[i32], shift: u32, out: &mut [i32]) -> u64 {
        self.binary(a, b, shift, out, plan::multiply)
    }

    fn shift(&self, input: &[i32], shift: u32, out: &mut [i32]) {
        self.unary(input, &[0], shift, out, plan::shift);
    }

    fn gather(&self, input: &[i32], cols: usize, rows: &[usize], out: &mut [i32]) {
        let spans: Vec<_> = rows.iter().map(|row| *row..*row + 1).collect();
        self.rows(input, cols, &spans, out, "gather");
    }

    fn sample(&self, points: &[SampleArgs<'_>], out: &mut [i32]) {
        let mut all = SamplePoints::default();
        for p in points {
            all.add(p.sampling, p.history, p.frac as u8, [(p.history.len(), p.draw)]);
        }
        let (first, vocabulary) = (points[0], points[0].logits.len());
        let logits: Vec<i32> = points.iter().flat_map(|p| p.logits).copied().collect();
        let (logits, table) = (self.of(&logits), self.of(first.token_bytes.rows));
        let (words, list) = (self.of(&all.words), Buffer::of(&self.device, &all.points).expect("memory"));
        let [seen, weights] = [0, 1].map(|_| self.room(points.len() * vocabulary));
        self.counted(out, |out, _| {
            plan::sample(
                points.len() as u32,
                SampleParams {
                    logits: logits.address(),
                    token_bytes: table.address(),
                    words: words.address(),
                    points: list.address(),
                    seen: seen.address(),
                    weights: weights.address(),
                    out,
                    vocabulary: vocabulary as u32,
                    width: first.token_bytes.width as u32,
                    frac: first.frac,
                    unused: 0,
                },
            )
        });
    }
}
