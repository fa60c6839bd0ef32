//! The protocol's messages over QUIC streams.

use bytes::Bytes;
use lockstep_protocol::limits::STREAM_READ_PIECES;
use lockstep_protocol::messages::{FrameDecoder, Message, to_frame};
use quinn::{RecvStream, SendStream};

use crate::LinkError;

/// Reads the messages of a stream. It holds at most one frame, whose cap is the message type's, and one read of at most
/// [`STREAM_READ_PIECES`].
#[derive(Debug)]
pub struct Frames<M> {
    stream: RecvStream,
    decoder: FrameDecoder<M>,
}

impl<M: Message> Frames<M> {
    /// A reader at the start of a stream.
    pub fn new(stream: RecvStream) -> Self {
        Self { stream, decoder: FrameDecoder::new() }
    }

    /// The next message; `None` when the other side has finished the stream between two frames. Nothing is lost when
    /// the future is dropped before it is ready.
    ///
    /// # Errors
    /// [`LinkError::Frame`] for a frame that breaks the rules, [`LinkError::Read`] for a stream that broke. There is no
    /// way on after either.
    pub async fn next(&mut self) -> Result<Option<M>, LinkError> {
        loop {
            if let Some(message) = self.decoder.next()? {
                return Ok(Some(message));
            }
            let mut pieces = [const { Bytes::new() }; STREAM_READ_PIECES];
            match self.stream.read_chunks(&mut pieces).await? {
                Some(count) => pieces[..count].iter().for_each(|piece| self.decoder.feed(piece)),
                None => return self.decoder.finish().map(|()| None).map_err(LinkError::from),
            }
        }
    }

    /// The next message, where all of it has been read; `None` where [`Frames::next`] might have to wait for it.
    ///
    /// # Errors
    /// [`LinkError::Frame`]. There is no way on after it.
    pub fn at_hand(&mut self) -> Result<Option<M>, LinkError> {
        Ok(self.decoder.next()?)
    }

    /// Tells the other side that the rest of the stream is of no use.
    pub fn stop(mut self) {
        // A stream that has ended needs no stopping.
        let _ = self.stream.stop(0_u32.into());
    }
}

/// Writes one message. A future that is dropped before it is ready may leave half a frame behind: the stream is of no
/// use then.
///
/// # Errors
/// [`LinkError::Frame`] for a message beyond its cap, [`LinkError::Write`] for a stream that broke.
pub async fn send<M: Message>(stream: &mut SendStream, message: &M) -> Result<(), LinkError> {
    stream.write_all(&to_frame(message)?).await?;
    Ok(())
}
