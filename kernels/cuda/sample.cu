// Drawing a token, and whether the generation ends with it (SPEC 5.17). A block for each point.
#include "block.cuh"
#include "fixed.cuh"
#include "params.cuh"

using i128 = __int128;

constexpr u32 ONE = 10000;
constexpr u32 LARGEST_WEIGHT = 1u << 30;
constexpr u32 TAIL = 31;             // bytes before a token that a stop string may reach back to
constexpr u32 MAX_TOKEN_BYTES = 1022;
constexpr u32 IN_PROMPT = 1u << 31;  // beside the number of times that a token was generated

using u128 = unsigned __int128;

// floor(a / b) for a < 2^95 and 0 < b < 2^34, by digits of 32 bits.
__device__ inline u128 divide_digits(u128 a, u64 b) {
    u128 quotient = 0;
    u64 rest = 0;
    for (i32 digit = 2; digit >= 0; digit--) {
        const u128 part = (u128)rest << 32 | (u32)(a >> (32 * digit));
        // The part has at most 66 bits and the digit 32: two steps of 16 bits stay in 64.
        const u64 high = (u64)(part >> 16);
        const u64 q1 = high / b, r1 = high % b;
        const u64 low = r1 << 16 | ((u64)part & 0xffff);
        quotient = quotient << 32 | (q1 << 16 | low / b);
        rest = low % b;
    }
    return quotient;
}

// a / b rounded half up, for 0 < b < 2^33 and |a| < 2^93.
__device__ inline i128 divide(i128 a, u64 b) {
    const i128 twice = 2 * a + (i128)b;
    const u64 divisor = 2 * b;
    if (twice >= 0) return (i128)divide_digits((u128)twice, divisor);
    return -(i128)divide_digits((u128)(-twice + (i128)divisor - 1), divisor);
}

// Ten-thousandths as a number with `frac` fractional bits.
__device__ inline i128 in_units(i128 ten_thousandths, u32 frac) { return divide(ten_thousandths * ((i64)1 << frac), ONE); }

__device__ inline i32 bias_of(const SampleParams &p, const SamplePoint &s, u32 token) {
    u32 from = 0, to = s.bias_len;
    while (from < to) {
        const u32 middle = (from + to) / 2;
        const u32 found = p.words[s.bias + 2 * middle];
        if (found == token) return (i32)p.words[s.bias + 2 * middle + 1];
        if (found < token)
            from = middle + 1;
        else
            to = middle;
    }
    return 0;
}

// One logit with its bias and penalties (SPEC 5.17.1).
__device__ inline i32 adjusted(const SampleParams &p, const SamplePoint &s, const u32 *seen, u32 token) {
    const i32 z = p.logits[(u64)s.row * p.vocabulary + token];
    const i32 bias = bias_of(p, s, token);
    const u32 generated = seen[token] & ~IN_PROMPT;
    if (bias == 0 && seen[token] == 0) return z;
    i128 y = (i128)z + in_units(bias, p.frac);
    if (seen[token] != 0) {
        const u32 penalty = s.repetition_penalty > 1 ? s.repetition_penalty : 1;
        y = y > 0 ? divide(y * ONE, penalty) : divide(y * penalty, ONE);
    }
    if (generated > 0) y -= in_units((i128)s.presence_penalty + (i128)s.frequency_penalty * generated, p.frac);
    const i128 low = -2147483647 - 1, high = 2147483647;
    return (i32)(y < low ? low : y > high ? high : y);
}

// How often each token was seen. Ends with a barrier.
__device__ inline void count_seen(const SampleParams &p, const SamplePoint &s, u32 *seen) {
    for (u32 v = thread_index(); v < p.vocabulary; v += BLOCK_THREADS) seen[v] = 0;
    __syncthreads();
    for (u32 i = thread_index(); i < s.history_len; i += BLOCK_THREADS) {
        const u32 token = p.words[s.history + i];
        if (token >= p.vocabulary) continue;
        if (i < s.prompt_tokens)
            atomicOr(&seen[token], IN_PROMPT);
        else
            atomicAdd(&seen[token], 1u);
    }
    __syncthreads();
}

// The largest element in the high bits, and the lowest index that has it, inverted, in the low ones.
__device__ inline u64 largest(const i32 *adjusted, u32 vocabulary) {
    u64 best = 0;
    for (u32 v = thread_index(); v < vocabulary; v += BLOCK_THREADS) {
        const u64 key = (u64)((u32)adjusted[v] ^ 1u << 31) << 32 | ~v;
        best = key > best ? key : best;
    }
    return block_max(best);
}

// SPEC 5.17.3 and 5.17.4.
__device__ inline u32 weight_of(const SamplePoint &s, u32 difference) {
    const u64 product = (u64)difference * s.scale_mantissa;
    u64 distance;
    if (s.scale_shift >= 0)
        distance = (u64)round_shift((i64)product, (u32)s.scale_shift);
    else
        distance = product > ~0ULL >> -s.scale_shift ? ~0ULL : product << -s.scale_shift;
    const u64 whole = distance >> SCORE_FRAC;
    return whole > 30 ? 0 : (u32)(exp2_neg_fraction((u32)distance & ((1u << SCORE_FRAC) - 1)) >> whole);
}

// How many weights reach `least`, or what they sum up to.
__device__ inline u64 measure(const u32 *weights, u32 vocabulary, u32 least, bool count) {
    u64 sum = 0;
    for (u32 v = thread_index(); v < vocabulary; v += BLOCK_THREADS)
        if (weights[v] >= least) sum += count ? 1 : weights[v];
    return block_sum(sum);
}

// The largest threshold for which the measure reaches `need`, bit by bit; 0 where none does.
__device__ inline u32 threshold(const u32 *weights, u32 vocabulary, u64 need, bool count) {
    u32 least = 0;
    for (u32 bit = LARGEST_WEIGHT; bit > 0; bit /= 2)
        if (measure(weights, vocabulary, least | bit, count) >= need) least |= bit;
    return least;
}

// SPEC 5.17.5: what a weight must reach to be kept.
__device__ inline u32 least_kept(const SamplePoint &s, const u32 *weights, u32 vocabulary) {
    u32 least = 0;
    if (s.top_k >= 1 && s.top_k < vocabulary) least = threshold(weights, vocabulary, s.top_k, true);
    if (s.top_p < ONE) {
        const u64 kept = measure(weights, vocabulary, least, false);
        const u64 share = ((u64)s.top_p * kept + ONE - 1) / ONE;
        least = threshold(weights, vocabulary, share > 1 ? share : 1, false);
    }
    return least > s.least_weight ? least : s.least_weight;
}

// SPEC 5.17.6. Each thread adds up a stretch of neighbouring weights; the one in whose stretch the target lies finds it.
__device__ inline u32 draw_token(const SamplePoint &s, const u32 *weights, u32 vocabulary, u32 least) {
    __shared__ u64 stretches[BLOCK_THREADS];
    __shared__ u32 token;
    const u64 target = __umul64hi(s.draw, measure(weights, vocabulary, least, false));
    const u32 length = (vocabulary + BLOCK_THREADS - 1) / BLOCK_THREADS;
    const u32 from = thread_index() * length;
    const u32 to = from + length < vocabulary ? from + length : vocabulary;
    u64 sum = 0;
    for (u32 v = from; v < to; v++) sum += weights[v] >= least ? weights[v] : 0;
    stretches[thread_index()] = sum;
    if (thread_index() == 0) token = 0;
    __syncthreads();
    u64 before = 0;
    for (u32 i = 0; i < thread_index(); i++) before += stretches[i];
    if (before <= target && before + sum > target) {
        for (u32 v = from; v < to; v++) {
            before += weights[v] >= least ? weights[v] : 0;
            if (before > target) {
                token = v;
                break;
            }
        }
    }
    __syncthreads();
    return token;
}

// Bytes of a token, at most as many as its row has room for.
__device__ inline u32 token_length(const SampleParams &p, u32 token) {
    if (token >= p.vocabulary) return 0;
    const u8 *row = (const u8 *)p.token_bytes + (u64)token * p.width;
    const u32 length = row[0] | (u32)row[1] << 8;
    return length < p.width - 2 ? length : p.width - 2;
}

__device__ inline u8 token_byte(const SampleParams &p, u32 token, u32 i) {
    return (u8)p.token_bytes[(u64)token * p.width + 2 + i];
}

// Writes the last bytes of what was generated, at most TAIL of its last TAIL tokens; returns how many. One thread's.
__device__ inline u32 write_tail(const SampleParams &p, const SamplePoint &s, u8 *text) {
    u8 reversed[TAIL];
    u32 len = 0;
    const u32 generated = s.history_len > s.prompt_tokens ? s.history_len - s.prompt_tokens : 0;
    for (u32 back = 0; back < TAIL && back < generated; back++) {
        const u32 token = p.words[s.history + s.history_len - 1 - back];
        for (u32 i = token_length(p, token); i > 0 && len < TAIL; i--) reversed[len++] = token_byte(p, token, i - 1);
    }
    for (u32 i = 0; i < len; i++) text[i] = reversed[len - 1 - i];
    return len;
}

// Whether the text up to `end` ends with a stop string.
__device__ inline bool stops(const SampleParams &p, const SamplePoint &s, const u8 *text, u32 end) {
    u32 at = s.stop_strings;
    for (u32 n = 0; n < s.stop_strings_len; n++) {
        const u32 len = p.words[at];
        bool same = len <= end;
        for (u32 i = 0; same && i < len; i++) same = text[end - len + i] == p.words[at + 1 + i];
        if (same) return true;
        at += 1 + len;
    }
    return false;
}

// SPEC 5.17.7.
__device__ inline u32 finish_code(const SampleParams &p, const SamplePoint &s, u32 token) {
    __shared__ u8 text[TAIL + MAX_TOKEN_BYTES];
    __shared__ u32 tail, stop_token, stop_string;
    if (thread_index() == 0) {
        tail = write_tail(p, s, text);
        stop_token = stop_string = 0;
    }
    __syncthreads();
    const u32 length = token_length(p, token);
    for (u32 i = thread_index(); i < length; i += BLOCK_THREADS) text[tail + i] = token_byte(p, token, i);
    for (u32 i = thread_index(); i < s.stop_tokens_len; i += BLOCK_THREADS)
        if (p.words[s.stop_tokens + i] == token) atomicOr(&stop_token, 1u);
    __syncthreads();
    for (u32 i = thread_index(); i < length; i += BLOCK_THREADS)
        if (stops(p, s, text, tail + i + 1)) atomicOr(&stop_string, 1u);
    __syncthreads();
    if (stop_token) return 1;
    if (stop_string) return 2;
    const u32 generated = s.history_len > s.prompt_tokens ? s.history_len - s.prompt_tokens : 0;
    return (u64)generated + 1 >= s.max_tokens ? 3 : 0;
}

KERNEL(sample, BLOCK_THREADS, SampleParams) {
    const SamplePoint s = p.points[blockIdx.x];
    u32 *seen = p.seen + (u64)blockIdx.x * p.vocabulary;
    u32 *weights = p.weights + (u64)blockIdx.x * p.vocabulary;
    i32 *logits = (i32 *)weights;
    count_seen(p, s, seen);
    for (u32 v = thread_index(); v < p.vocabulary; v += BLOCK_THREADS) logits[v] = adjusted(p, s, seen, v);
    const u64 best = largest(logits, p.vocabulary);
    u32 token = ~(u32)best;
    if (s.temperature != 0) {
        const u32 max = (u32)(best >> 32) ^ 1u << 31;
        for (u32 v = thread_index(); v < p.vocabulary; v += BLOCK_THREADS) weights[v] = weight_of(s, max - (u32)logits[v]);
        __syncthreads();
        token = draw_token(s, weights, p.vocabulary, least_kept(s, weights, p.vocabulary));
    }
    const u32 finish = finish_code(p, s, token);
    if (thread_index() == 0) p.out[s.row] = (i32)((token & 0xffffff) | finish << 24);
}
