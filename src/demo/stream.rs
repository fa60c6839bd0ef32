//! A client that reads an answer while it is written.

use std::io::{BufRead, BufReader};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::sync::mpsc;

use super::network::agent;

/// What comes of an answer.
#[derive(Debug)]
pub enum Piece {
    /// More of its text.
    Text(String),
    /// The stream's last object: with the receipts, or with an error.
    Last(Value),
}

/// Asks for a stream, and passes on what comes, on a thread of its own.
pub fn read(url: String, body: Value) -> mpsc::UnboundedReceiver<Result<Piece>> {
    let (sender, pieces) = mpsc::unbounded_channel();
    tokio::task::spawn_blocking(move || {
        let told = follow(&url, &body, &|piece| {
            // Whoever listened may be gone.
            let _ = sender.send(Ok(piece));
        });
        if let Err(error) = told {
            let _ = sender.send(Err(error));
        }
    });
    pieces
}

fn follow(url: &str, body: &Value, tell: &dyn Fn(Piece)) -> Result<()> {
    let mut response = agent().post(url).send_json(body)?;
    let status = response.status();
    if !status.is_success() {
        bail!("{url} answered {status}: {}", response.body_mut().read_to_string()?);
    }
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        let line = line?;
        let Some(event) = line.strip_prefix("data: ").filter(|event| *event != "[DONE]") else { continue };
        let event: Value = serde_json::from_str(event).context("an event is no JSON")?;
        if event["error"].is_object() || event["lockstep"]["receipts"].is_array() {
            tell(Piece::Last(event));
            continue;
        }
        let text = event["choices"][0]["text"].as_str().unwrap_or_default();
        if !text.is_empty() {
            tell(Piece::Text(text.to_owned()));
        }
    }
    Ok(())
}
