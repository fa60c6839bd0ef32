//! Conversations to text, by the chat template inside a package.
//!
//! A template is a Jinja program that somebody else wrote. It runs without files, clock or network, for a bounded number
//! of steps, and its text is bounded. Where it asks for the time it gets the date of the request, or [`Date::DEFAULT`]:
//! what it makes of a conversation is a function of the request alone, so that a client can make it again.

mod clock;
mod json;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use lockstep_protocol::limits::{
    MAX_CHAT_MESSAGES, MAX_ROLE_BYTES, MAX_TEMPLATE_DEPTH, MAX_TEMPLATE_STEPS, MAX_TEXT_BYTES,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};

use crate::error::ModelError;
use crate::package::Package;
use crate::tokenizer::Tokenizer;

pub use self::clock::{Date, NoDate};

/// The name under which the engine knows the template.
const NAME: &str = "chat_template";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows. At most [`MAX_ROLE_BYTES`].
    pub role: String,
    /// What is said.
    pub content: String,
    /// The speaker's name, where one is given. At most [`MAX_ROLE_BYTES`].
    pub name: Option<String>,
}

impl ChatMessage {
    fn to_value(&self) -> Value {
        let fields = [("role", Some(&self.role)), ("content", Some(&self.content)), ("name", self.name.as_ref())];
        Value::from_pairs(fields.into_iter().filter_map(|(key, text)| Some((key, text?.as_str()))))
    }
}

/// What a template is given beside the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rendering {
    /// Ends the text with the head of the assistant's next message.
    pub add_generation_prompt: bool,
    /// The date that the template sees; midnight of it.
    pub date: Date,
}

impl Default for Rendering {
    fn default() -> Self {
        Self { add_generation_prompt: true, date: Date::DEFAULT }
    }
}

/// Why a conversation has no text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template can't be read.
    #[error("the chat template can't be read: {0}")]
    Syntax(String),
    /// The template refuses this conversation, or fails on it.
    #[error("the chat template refuses this conversation: {0}")]
    Refused(String),
    /// No message, or too many.
    #[error("there are {0} messages; 1 to {MAX_CHAT_MESSAGES} are allowed")]
    Messages(usize),
    /// A role or a name is too long.
    #[error("a message's role or name is longer than {MAX_ROLE_BYTES} bytes")]
    Role,
    /// The text is too long.
    #[error("the conversation comes to more than {MAX_TEXT_BYTES} bytes")]
    TooLong,
    /// The template takes too many steps.
    #[error("the chat template takes more than {MAX_TEMPLATE_STEPS} steps on this conversation")]
    Steps,
}

/// A chat template, ready to be used.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Reads a template. `bos` and `eos` are what it knows as `bos_token` and `eos_token`; empty where the model has none.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`].
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let load = || -> Result<(), Error> {
            // As transformers sets Jinja up.
            environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
            environment.set_fuel(Some(MAX_TEMPLATE_STEPS));
            environment.set_recursion_limit(MAX_TEMPLATE_DEPTH);
            environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
            environment.add_filter("tojson", json::to_json);
            environment.add_function("raise_exception", raise_exception);
            environment.add_template_owned(NAME, source.to_owned())
        };
        caught(load).map_err(TemplateError::Syntax)?;
        Ok(Self { environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// That of a decoder that has one. As its `bos_token` it is given what the tokenizer puts before a text, and as its
    /// `eos_token` the first token that stops.
    ///
    /// # Errors
    /// [`ModelError::Package`] where it can't be read.
    pub fn of(package: &Package, tokenizer: &Tokenizer) -> Result<Option<Self>, ModelError> {
        let Some(source) = package.template()?.filter(|_| package.program().is_decoder()) else {
            return Ok(None);
        };
        let name = |token: Option<u32>| token.and_then(|token| tokenizer.name(token)).unwrap_or_default();
        let (bos, eos) = (name(tokenizer.before_text()), name(package.manifest().stop_tokens.first().copied()));
        Self::new(source, &bos, &eos).map(Some).map_err(|error| ModelError::Package(error.to_string()))
    }

    /// The text of a conversation, as it is tokenised: special tokens are written out in it, and none are added.
    ///
    /// # Errors
    /// See [`TemplateError`].
    pub fn render(&self, messages: &[ChatMessage], rendering: Rendering) -> Result<String, TemplateError> {
        check(messages)?;
        let date = rendering.date;
        let strftime = move |format: &str| date.format(format);
        let variables = context! {
            messages => messages.iter().map(ChatMessage::to_value).collect::<Value>(),
            tools => (),
            documents => (),
            add_generation_prompt => rendering.add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            strftime_now => Value::from_function(strftime),
        };
        let mut text = Text { bytes: Vec::new(), is_full: false };
        let render = || {
            let template = self.environment.get_template(NAME)?;
            template.render_captured_to(variables, &mut text).map(drop)
        };
        let mut is_out_of_fuel = false;
        let rendered = caught(|| render().inspect_err(|error| is_out_of_fuel = error.kind() == ErrorKind::OutOfFuel));
        match rendered {
            _ if text.is_full => Err(TemplateError::TooLong),
            Err(_) if is_out_of_fuel => Err(TemplateError::Steps),
            Err(reason) => Err(TemplateError::Refused(reason)),
            Ok(()) => String::from_utf8(text.bytes).map_err(|error| TemplateError::Refused(error.to_string())),
        }
    }
}

fn check(messages: &[ChatMessage]) -> Result<(), TemplateError> {
    if messages.is_empty() || messages.len() > MAX_CHAT_MESSAGES {
        return Err(TemplateError::Messages(messages.len()));
    }
    let is_long = |text: &str| text.len() > MAX_ROLE_BYTES;
    if messages.iter().any(|m| is_long(&m.role) || m.name.as_deref().is_some_and(is_long)) {
        return Err(TemplateError::Role);
    }
    let bytes = messages.iter().fold(0_usize, |sum, message| sum.saturating_add(message.content.len()));
    if bytes > MAX_TEXT_BYTES { Err(TemplateError::TooLong) } else { Ok(()) }
}

/// The engine's failures and panics alike.
fn caught<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.detail().map_or_else(|| error.to_string(), str::to_owned)),
        Err(_) => Err("the template engine panicked".into()),
    }
}

/// A template's own complaint.
fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// What a template writes, up to [`MAX_TEXT_BYTES`].
struct Text {
    bytes: Vec<u8>,
    is_full: bool,
}

impl io::Write for Text {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + part.len() > MAX_TEXT_BYTES {
            self.is_full = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
