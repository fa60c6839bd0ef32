//! Signals that ask the program to end.

use std::io;

/// Waits for SIGTERM or SIGINT.
///
/// # Errors
/// Signals can't be listened to.
#[cfg(unix)]
pub async fn first() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Waits for Ctrl-C.
///
/// # Errors
/// Signals can't be listened to.
#[cfg(not(unix))]
pub async fn first() -> io::Result<()> {
    tokio::signal::ctrl_c().await
}
