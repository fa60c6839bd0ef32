//! Frames: a `u32` length and then so many bytes, the canonical encoding of one message.

use std::marker::PhantomData;

use thiserror::Error;

use crate::canonical::{Canonical, DecodeError, from_bytes, to_bytes};
use crate::limits::FRAME_HEADER_BYTES;

/// A message that travels in frames of its own.
pub trait Message: Canonical {
    /// Most bytes of a frame, without its length.
    const FRAME_CAP: usize;
}

/// Why a stream of frames is broken. There is no way on after it: the stream is closed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The frame is longer than its stream allows.
    #[error("a frame of {len} bytes; at most {cap} are allowed here")]
    TooLong {
        /// Its length.
        len: usize,
        /// The cap.
        cap: usize,
    },
    /// The frame is no message.
    #[error("a frame that can't be decoded: {0}")]
    Decode(#[from] DecodeError),
    /// The stream ended inside a frame.
    #[error("the stream ends inside a frame, after {got} bytes of it")]
    Truncated {
        /// How many bytes of the frame, its length included, had come.
        got: usize,
    },
}

/// A message as a frame, ready to be written.
///
/// # Errors
/// [`FrameError::TooLong`] when the message does not fit its stream's frames.
pub fn to_frame<M: Message>(message: &M) -> Result<Vec<u8>, FrameError> {
    let body = to_bytes(message);
    if body.len() > M::FRAME_CAP {
        return Err(FrameError::TooLong { len: body.len(), cap: M::FRAME_CAP });
    }
    let length = u32::try_from(body.len()).expect("frame caps are below 2^32");
    let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + body.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Collects the bytes of a stream and hands out its messages. It never holds more than the caller fed
/// it: a length that is announced allocates nothing.
///
/// Call order: [`FrameDecoder::feed`] what came, then [`FrameDecoder::next`] until it gives `None`, and
/// again; at the end of the stream [`FrameDecoder::finish`]. After an error the decoder keeps failing.
#[derive(Clone, Debug)]
pub struct FrameDecoder<M> {
    buffer: Vec<u8>,
    /// Bytes at the front of `buffer` that belong to messages already handed out.
    taken: usize,
    broken: Option<FrameError>,
    message: PhantomData<M>,
}

impl<M: Message> Default for FrameDecoder<M> {
    fn default() -> Self {
        Self { buffer: Vec::new(), taken: 0, broken: None, message: PhantomData }
    }
}

impl<M: Message> FrameDecoder<M> {
    /// A decoder at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes are fed.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] as soon as the length is there, [`FrameError::Decode`].
    #[expect(clippy::should_implement_trait, reason = "an iterator would end at None; this goes on")]
    pub fn next(&mut self) -> Result<Option<M>, FrameError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let result = self.decode_next();
        if let Err(error) = &result {
            self.broken = Some(error.clone());
        }
        result
    }

    /// Says whether the stream may end here.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] inside a frame, or the error that broke the stream before.
    pub fn finish(&self) -> Result<(), FrameError> {
        match (&self.broken, self.buffer.len() - self.taken) {
            (Some(error), _) => Err(error.clone()),
            (None, 0) => Ok(()),
            (None, got) => Err(FrameError::Truncated { got }),
        }
    }

    fn decode_next(&mut self) -> Result<Option<M>, FrameError> {
        let pending = &self.buffer[self.taken..];
        let Some((header, rest)) = pending.split_first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(None);
        };
        let len = u32::from_le_bytes(*header) as usize;
        if len > M::FRAME_CAP {
            return Err(FrameError::TooLong { len, cap: M::FRAME_CAP });
        }
        let Some(body) = rest.get(..len) else {
            return Ok(None);
        };
        let message = from_bytes(body)?;
        self.taken += FRAME_HEADER_BYTES + len;
        Ok(Some(message))
    }
}
