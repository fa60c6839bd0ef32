//! A job's settings and draws, as the program's last op wants them.

use lockstep_kernels::sampling::Sampling;
use lockstep_protocol::domain::Domain;
use lockstep_protocol::generation::Generation;
use lockstep_protocol::ids::Seed;

/// The settings of a job for a prompt of so many tokens.
pub fn sampling(generation: &Generation, prompt_tokens: u32) -> Sampling {
    let Generation {
        max_tokens,
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        logit_bias,
        stop_tokens,
        stop_strings,
        // What the client is told beside the words is nothing that is sampled.
        logprobs: _,
    } = generation;
    Sampling {
        prompt_tokens,
        max_tokens: *max_tokens,
        temperature: *temperature,
        top_k: *top_k,
        top_p: *top_p,
        min_p: *min_p,
        repetition_penalty: *repetition_penalty,
        presence_penalty: *presence_penalty,
        frequency_penalty: *frequency_penalty,
        logit_bias: logit_bias.clone(),
        stop_tokens: stop_tokens.clone(),
        stop_strings: stop_strings.clone(),
    }
}

/// The draw at a point (SPEC 5.17): the first eight bytes, little-endian, of the hash of seed and position.
pub fn draw(seed: &Seed, point: u32) -> u64 {
    let mut bytes = [0; 36];
    bytes[..32].copy_from_slice(seed.as_bytes());
    bytes[32..].copy_from_slice(&point.to_le_bytes());
    let hash = Domain::Sample.hash(&bytes);
    let (first, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
    u64::from_le_bytes(*first)
}
