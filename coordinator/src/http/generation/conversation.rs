//! A conversation as text: what the model's own template makes of it.

use lockstep_model::template::{ChatMessage, ChatTemplate, Date, Rendering, TemplateError};
use lockstep_protocol::limits::MAX_ROLE_BYTES;
use serde::Deserialize;
use serde_json::Value;

use super::request::{Extension, Message};
use crate::http::error::ApiError;
use crate::http::read::read;

/// The text of a conversation, as it is hashed and tokenised.
///
/// # Errors
/// What to tell the client.
pub fn render(
    template: &ChatTemplate,
    messages: &[Message],
    extension: Option<&Extension>,
) -> Result<String, ApiError> {
    let message = |(index, message): (usize, &Message)| {
        let content = message.text(&format!("messages[{index}]"))?;
        Ok(ChatMessage { role: role(index, &message.role)?.to_owned(), content, name: message.name.clone() })
    };
    let messages: Vec<_> = messages.iter().enumerate().map(message).collect::<Result<_, ApiError>>()?;
    let date = match extension.and_then(|extension| extension.date.as_deref()) {
        None => Date::DEFAULT,
        Some(date) => date.parse().map_err(|error| ApiError::parameter("lockstep.date", format!("{error}.")))?,
    };
    template.render(&messages, Rendering { add_generation_prompt: true, date }).map_err(|error| match error {
        TemplateError::Syntax(_) => ApiError::internal(format!("{error}.")),
        _ => ApiError::parameter("messages", format!("{error}.")),
    })
}

/// A role as templates know it. Those of tools are refused with what tools say.
fn role(index: usize, role: &str) -> Result<&str, ApiError> {
    match role {
        // What OpenAI calls the system since some models ago.
        "developer" | "system" => Ok("system"),
        "user" | "assistant" => Ok(role),
        other => {
            let other: String = other.chars().take(MAX_ROLE_BYTES).collect();
            let message = format!(
                "messages[{index}].role is {other:?}; those that are known here are developer, system, user and assistant."
            );
            Err(ApiError::parameter(format!("messages[{index}].role"), message))
        }
    }
}

/// What a request has of its conversation.
#[derive(Deserialize)]
struct Said {
    messages: Vec<Message>,
    #[serde(default)]
    lockstep: Option<Extension>,
}

/// The text that the coordinator makes of a conversation: of the body of `POST /v1/chat/completions`, or of its list of
/// messages alone. With it, whoever has a receipt can tell what was asked.
///
/// # Errors
/// It is no conversation, or none that the template takes.
pub fn conversation_text(template: &ChatTemplate, json: &str) -> Result<String, String> {
    let value: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let body = if value.is_array() { serde_json::json!({ "messages": value }) } else { value };
    let text = |said: Said| render(template, &said.messages, said.lockstep.as_ref());
    read(body.to_string().as_bytes()).and_then(text).map_err(|error| error.message().to_owned())
}
