//! From a request's bytes to jobs. Blocks: runs on a thread for blocking work.

use std::sync::Arc;

use lockstep_model::tokenizer::{TokenizeError, TooLong};
use lockstep_protocol::generation::{Generation, SAMPLING_ONE};
use lockstep_protocol::ids::Seed;
use lockstep_protocol::job::RequestInput;
use lockstep_protocol::limits::{
    DEFAULT_COMPLETION_TOKENS, MAX_LOGIT_BIAS, MAX_OUTPUT_VALUES, MAX_PENALTY, MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS,
    MAX_STOP_TOKENS, MAX_TEMPERATURE, MAX_TEXT_BYTES, MAX_TOKEN_BIAS,
};
use lockstep_protocol::machine::AuditPolicy;

use super::conversation;
use super::decimal::{signed, unsigned};
use super::request::{ChatRequest, Common, CompletionRequest, Extension, Stop};
use crate::config::ClientCaps;
use crate::http::error::ApiError;
use crate::http::jobs::{Order, nonces, random, wished};
use crate::http::prepare::{check_tokens, known_tokens, too_long};
use crate::http::read::{read, shown};
use crate::http::request::AuditWish;
use crate::models::{Model, Models};

/// Which of the two kinds of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A message.
    Chat,
    /// A text.
    Completion,
}

/// A request as jobs: for each prompt in turn, one for each answer to it.
#[derive(Debug)]
pub struct Prepared {
    /// On which model.
    pub model: Arc<Model>,
    /// The jobs.
    pub order: Order,
    /// How to answer.
    pub shape: Shape,
    /// Whether in events.
    pub stream: bool,
    /// Whether those end with the counts of tokens.
    pub include_usage: bool,
    /// Tokens of all prompts, each counted once.
    pub prompt_tokens: usize,
    /// The text that a conversation became.
    pub rendered: Option<String>,
    /// Texts that end an answer.
    pub stops: Vec<Vec<u8>>,
    /// Whether log-probabilities are wanted.
    pub logprobs: bool,
}

/// What the two kinds of requests say each in its own way.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// Most tokens of an answer, where there is a number.
    max_tokens: Option<u64>,
    /// Which log-probabilities, as a job says it.
    logprobs: u8,
}

/// What requests are prepared with.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// The served models.
    pub models: &'a Models,
    /// How jobs are audited whose clients do not ask for more.
    pub audit: AuditPolicy,
    /// What one client may ask for.
    pub caps: ClientCaps,
}

/// A prompt with its tokens.
struct Prompt {
    input: RequestInput,
    tokens: Vec<u32>,
}

impl Terms<'_> {
    /// Reads, checks, renders and tokenises a conversation.
    ///
    /// # Errors
    /// What to tell the client.
    pub fn chat(&self, body: &[u8]) -> Result<Prepared, ApiError> {
        let (request, common): (ChatRequest, Common) = (read(body)?, read(body)?);
        let model = self.decoder(&common.model)?;
        request.check()?;
        let asked = Asked { max_tokens: request.max_tokens()?, logprobs: request.logprobs()? };
        let text = render(&model, &request, common.lockstep.as_ref())?;
        // The template has written the special tokens out.
        let tokens = tokenise(&model, "messages", &text, false)?;
        let prompt = Prompt { input: RequestInput::Text(text.clone()), tokens };
        let prepared = self.prepare(model, &common, vec![prompt], asked, Shape::Chat)?;
        Ok(Prepared { rendered: Some(text), ..prepared })
    }

    /// Reads, checks and tokenises texts to go on with.
    ///
    /// # Errors
    /// What to tell the client.
    pub fn completion(&self, body: &[u8]) -> Result<Prepared, ApiError> {
        let (request, common): (CompletionRequest, Common) = (read(body)?, read(body)?);
        let model = self.decoder(&common.model)?;
        request.check(&common)?;
        let prompt = |input: &RequestInput| {
            let tokens = match input {
                RequestInput::Text(text) => tokenise(&model, "prompt", text, true)?,
                RequestInput::Tokens(tokens) => check_tokens(&model, "prompt", tokens)?,
            };
            Ok(Prompt { input: input.clone(), tokens })
        };
        let prompts = request.prompt.0.iter().map(prompt).collect::<Result<_, _>>()?;
        let max_tokens = request.max_tokens.or(Some(DEFAULT_COMPLETION_TOKENS.into()));
        let asked = Asked { max_tokens, logprobs: request.logprobs()? };
        self.prepare(model, &common, prompts, asked, Shape::Completion)
    }

    fn decoder(&self, name: &str) -> Result<Arc<Model>, ApiError> {
        let model = self.models.resolve(name).ok_or_else(|| ApiError::no_model(name))?;
        if model.is_decoder() {
            return Ok(Arc::clone(model));
        }
        let message = "This model is an encoder and generates no text: see POST /v1/embeddings.";
        Err(ApiError::parameter("model", message).with_code("wrong_kind_of_model"))
    }

    fn prepare(
        &self,
        model: Arc<Model>,
        common: &Common,
        prompts: Vec<Prompt>,
        asked: Asked,
        shape: Shape,
    ) -> Result<Prepared, ApiError> {
        let default = Extension::default();
        let extension = common.lockstep.as_ref().unwrap_or(&default);
        let stream = common.stream.unwrap_or(false);
        check_stream(common, extension, stream)?;
        let choices = self.choices(common.n, prompts.len())?;
        let nonces = nonces(extension.nonce.as_ref(), choices * prompts.len())?;
        let seed = seed(common.seed, extension.seed)?;
        let (policy, audits_asked) = wished(self.audit, extension.audit);
        let settings = Generation { logprobs: asked.logprobs, ..settings(&model, common)? };
        let mut jobs = Vec::with_capacity(nonces.len());
        let prompt_tokens = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
        let mut nonces = nonces.into_iter();
        for prompt in prompts {
            let max_tokens = self.max_tokens(&model, prompt.tokens.len(), &settings, asked.max_tokens)?;
            let generation = Generation { max_tokens, ..settings.clone() };
            generation.check().map_err(|error| ApiError::invalid(format!("{error}.")))?;
            for (choice, nonce) in (0..choices).zip(nonces.by_ref()) {
                let seed = choice_seed(seed, choice as u32);
                let (tokens, generation) = (prompt.tokens.clone(), generation.clone());
                let spec = model.generation(&prompt.input, tokens, generation, (nonce, seed), policy);
                jobs.push((spec.job.id(), spec));
            }
        }
        Ok(Prepared {
            model,
            order: Order {
                jobs,
                wait: extension.wait.unwrap_or(true),
                chosen_nonces: extension.nonce.is_some(),
                audits_asked,
            },
            shape,
            stream,
            include_usage: common.stream_options.unwrap_or_default().include_usage.unwrap_or(false),
            prompt_tokens,
            rendered: None,
            logprobs: settings.logprobs > 0,
            stops: settings.stop_strings,
        })
    }

    /// Answers to each prompt.
    fn choices(&self, n: Option<u64>, prompts: usize) -> Result<usize, ApiError> {
        let most = self.caps.max_choices as usize;
        if prompts > most {
            let message = format!("prompt has {prompts} prompts; at most {most} answers are given to one request.");
            return Err(ApiError::parameter("prompt", message));
        }
        let (asked, each) = (n.unwrap_or(1), most / prompts.max(1));
        match usize::try_from(asked) {
            Ok(choices) if (1..=each).contains(&choices) => Ok(choices),
            _ => {
                let why = if prompts > 1 { format!(" for each of {prompts} prompts") } else { String::new() };
                let message = format!(
                    "n is {asked}; 1 to {each} are allowed{why}, as at most {most} answers are given to one request."
                );
                Err(ApiError::parameter("n", message))
            }
        }
    }

    /// Most tokens of an answer: what is asked for, or all that there is room for.
    fn max_tokens(
        &self,
        model: &Model,
        prompt: usize,
        settings: &Generation,
        asked: Option<u64>,
    ) -> Result<u32, ApiError> {
        let context = model.max_tokens();
        // The last token is not put in again. An output has only so many values.
        let room = (context + 1).saturating_sub(prompt);
        let most = model.max_generated(self.caps.max_tokens).min(MAX_OUTPUT_VALUES / settings.values_per_point());
        let Some(asked) = asked else {
            return Ok(u32::try_from(room.min(most)).unwrap_or(u32::MAX));
        };
        if asked == 0 || asked > most as u64 {
            let message = format!("max_tokens is {asked}; 1 to {most} are allowed here.");
            return Err(ApiError::parameter("max_tokens", message));
        }
        if asked > room as u64 {
            let message = format!(
                "This model's maximum context length is {context} tokens; the prompt has {prompt}, which leaves {room} (the \
                 last one takes no position), and {asked} are asked for."
            );
            return Err(ApiError::parameter("max_tokens", message).with_code("context_length_exceeded"));
        }
        Ok(u32::try_from(asked).unwrap_or(u32::MAX))
    }
}

fn check_stream(common: &Common, extension: &Extension, stream: bool) -> Result<(), ApiError> {
    if !stream && common.stream_options.is_some() {
        return Err(ApiError::parameter("stream_options", "stream_options are given without stream."));
    }
    if stream && extension.wait == Some(false) {
        return Err(ApiError::parameter("stream", "A client that does not wait gets no stream."));
    }
    if stream && extension.audit == Some(AuditWish::Hold) {
        let message = "An answer that is held until it is audited can't be streamed before.";
        return Err(ApiError::parameter("stream", message));
    }
    Ok(())
}

/// The text of a conversation.
fn render(model: &Model, request: &ChatRequest, extension: Option<&Extension>) -> Result<String, ApiError> {
    let template = model.chat_template().ok_or_else(|| {
        let message = "This model has no chat template: see POST /v1/completions.";
        ApiError::parameter("model", message).with_code("wrong_kind_of_model")
    })?;
    conversation::render(template, &request.messages, extension)
}

fn tokenise(model: &Model, param: &'static str, text: &str, special: bool) -> Result<Vec<u32>, ApiError> {
    let bad = |message: String| ApiError::parameter(param, message);
    if text.len() > MAX_TEXT_BYTES {
        return Err(bad(format!("The prompt has {} bytes; at most {MAX_TEXT_BYTES} are allowed.", text.len())));
    }
    let tokenizer = model.tokenizer();
    let tokens = if special { tokenizer.encode(text, TooLong::Refuse) } else { tokenizer.encode_rendered(text) };
    tokens.map_err(|error| match error {
        TokenizeError::TooLong { tokens, .. } => too_long(param, model.max_tokens(), tokens),
        other => bad(format!("The prompt has no tokens: {other}.")),
    })
}

/// How tokens are drawn. The number of tokens is not in it yet.
fn settings(model: &Model, common: &Common) -> Result<Generation, ApiError> {
    let one = SAMPLING_ONE;
    let unsigned = |param, value: Option<f64>, default, min, max| match value {
        None => Ok(default),
        Some(value) => unsigned(param, value, min, max),
    };
    let penalty = |param, value: Option<f64>| value.map_or(Ok(0), |value| signed(param, value, MAX_PENALTY as i32));
    Ok(Generation {
        max_tokens: 1,
        temperature: unsigned("temperature", common.temperature, one, 0, MAX_TEMPERATURE)?,
        top_k: match common.top_k {
            None | Some(-1) => 0,
            Some(top_k) => u32::try_from(top_k).map_err(|_| ApiError::parameter("top_k", "top_k is out of range."))?,
        },
        top_p: unsigned("top_p", common.top_p, one, 1, one)?,
        min_p: unsigned("min_p", common.min_p, 0, 0, one)?,
        repetition_penalty: unsigned("repetition_penalty", common.repetition_penalty, one, one / 10, MAX_PENALTY)?,
        presence_penalty: penalty("presence_penalty", common.presence_penalty)?,
        frequency_penalty: penalty("frequency_penalty", common.frequency_penalty)?,
        logit_bias: logit_bias(model, common)?,
        stop_tokens: stop_tokens(model, common.stop_token_ids.as_deref().unwrap_or_default())?,
        stop_strings: stop_strings(common.stop.as_ref())?,
        logprobs: 0,
    })
}

fn logit_bias(model: &Model, common: &Common) -> Result<Vec<(u32, i32)>, ApiError> {
    let vocabulary = model.package().program().vocab_size;
    let given = common.logit_bias.iter().flatten();
    let bias = |(token, bias): (&String, &f64)| {
        let known = token.parse().ok().filter(|token: &u32| *token < vocabulary);
        let wrong = || {
            let token = shown(token);
            let message = format!("logit_bias names {token:?}, which is not one of the model's {vocabulary} tokens.");
            ApiError::parameter("logit_bias", message)
        };
        let token = known.ok_or_else(wrong)?;
        Ok((token, signed(&format!("logit_bias.{token}"), *bias, MAX_TOKEN_BIAS as i32)?))
    };
    let mut all: Vec<(u32, i32)> = given.map(bias).collect::<Result<_, ApiError>>()?;
    all.sort_unstable();
    if all.len() > MAX_LOGIT_BIAS || all.windows(2).any(|two| two[0].0 == two[1].0) {
        let message = format!("logit_bias names a token twice, or more than {MAX_LOGIT_BIAS} tokens.");
        return Err(ApiError::parameter("logit_bias", message));
    }
    Ok(all)
}

/// The model's own and those asked for, ascending.
fn stop_tokens(model: &Model, asked: &[u32]) -> Result<Vec<u32>, ApiError> {
    let own = &model.package().manifest().stop_tokens;
    let all: std::collections::BTreeSet<u32> = own.iter().chain(asked).copied().collect();
    if all.len() > MAX_STOP_TOKENS {
        let message = format!(
            "stop_token_ids makes {} tokens that stop, the model's own included; at most {MAX_STOP_TOKENS} are allowed.",
            all.len()
        );
        return Err(ApiError::parameter("stop_token_ids", message));
    }
    known_tokens(model, "stop_token_ids", asked)?;
    Ok(all.into_iter().collect())
}

fn stop_strings(stop: Option<&Stop>) -> Result<Vec<Vec<u8>>, ApiError> {
    let texts = stop.map(Stop::texts).unwrap_or_default();
    if texts.len() > MAX_STOP_STRINGS {
        let message = format!("There are {} stop texts; at most {MAX_STOP_STRINGS} are allowed.", texts.len());
        return Err(ApiError::parameter("stop", message));
    }
    if let Some(text) = texts.iter().find(|text| !(1..=MAX_STOP_STRING_BYTES).contains(&text.len())) {
        let message = format!("A stop text has {} bytes; 1 to {MAX_STOP_STRING_BYTES} are allowed.", text.len());
        return Err(ApiError::parameter("stop", message));
    }
    Ok(texts.iter().map(|text| text.as_bytes().to_vec()).collect())
}

/// The seed of the first answer: as given in full; or the number, little-endian in two's complement, with zeros after it;
/// or one that nobody can guess.
fn seed(number: Option<i64>, full: Option<Seed>) -> Result<Seed, ApiError> {
    match (number, full) {
        (Some(_), Some(_)) => Err(ApiError::parameter("seed", "Give seed or lockstep.seed, not both.")),
        (None, Some(seed)) => Ok(seed),
        (None, None) => random().map(Seed::from_bytes),
        (Some(number), None) => {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            Ok(Seed::from_bytes(bytes))
        }
    }
}

/// The seed of a further answer to the same prompt: the answer's number, little-endian, is XORed into the last four bytes.
fn choice_seed(seed: Seed, choice: u32) -> Seed {
    let mut bytes = *seed.as_bytes();
    bytes[28..].iter_mut().zip(choice.to_le_bytes()).for_each(|(byte, number)| *byte ^= number);
    Seed::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_of_answers_differ_and_are_as_documented() {
        let first = seed(Some(-2), None).unwrap();
        assert_eq!(first.to_string(), format!("fe{}{}", "ff".repeat(7), "00".repeat(24)));
        assert_eq!(choice_seed(first, 0), first);
        assert_eq!(choice_seed(first, 0x0102).to_string(), format!("fe{}{}02010000", "ff".repeat(7), "00".repeat(20)));
        assert_ne!(seed(None, None).unwrap(), seed(None, None).unwrap());
        assert!(seed(Some(1), Some(first)).is_err());
    }
}
