//! Every limit of the system, in one file, with the relations between them asserted at compile time.
//!
//! A number that comes from outside is compared with one of these *before* anything is allocated,
//! looped over or waited for. Changing a limit is a protocol change when it appears in SPEC.md.

/// Bytes of one BLAKE3 chunk; rows of a trace are padded to whole chunks.
pub const CHUNK_BYTES: usize = 1_024;

// ---- jobs and programs ----

/// Most token positions of one job.
pub const MAX_POSITIONS: usize = 131_072;
/// Most transformer layers of a program.
pub const MAX_LAYERS: usize = 512;
/// Most streamed layers: the transformer layers and the output layer.
pub const MAX_STREAMED_LAYERS: usize = MAX_LAYERS + 1;
/// Most commitment points of one job (an embedding has one).
pub const MAX_POINTS: usize = 1;
/// Most roots in one receipt.
pub const MAX_RECEIPT_ROOTS: usize = MAX_POINTS * MAX_STREAMED_LAYERS;
/// Most bytes of one hidden row, after padding.
pub const MAX_ROW_BYTES: usize = 256 * CHUNK_BYTES;
/// Most numbers in the output of an embedding: one hidden row.
pub const MAX_OUTPUT_VALUES: usize = MAX_ROW_BYTES / 4;
/// Most auditors that a policy may ask for.
pub const MAX_AUDITORS: usize = 8;
/// Most bytes of one input text.
pub const MAX_TEXT_BYTES: usize = 1 << 20;

// ---- packages ----

/// Most bytes of a package manifest.
pub const MAX_MANIFEST_BYTES: usize = 16 << 20;
/// Most blobs (tensors, tokenizer, template) of one package.
pub const MAX_BLOBS: usize = 65_536;
/// Most bytes of one blob: 1 TiB.
pub const MAX_BLOB_BYTES: u64 = 1 << 40;
/// Chunks of one chunk group: the granularity of an outboard (16 KiB).
pub const GROUP_CHUNKS: u64 = 16;
/// Most chunks that one opening carries: 1 MiB of data.
pub const MAX_OPENING_CHUNKS: u32 = 1_024;
/// Most bytes of one opening: its data, all parents inside, and two paths to the root.
pub const MAX_OPENING_BYTES: usize = MAX_OPENING_CHUNKS as usize * (CHUNK_BYTES + 64) + 2 * 64 * 64;

// ---- messages ----

/// Bytes of the length that stands before every frame.
pub const FRAME_HEADER_BYTES: usize = 4;
/// Largest frame from a worker on its control stream.
pub const MAX_CONTROL_UP_BYTES: usize = 64 << 10;
/// Largest frame to a worker on its control stream: an assignment with all its tokens.
pub const MAX_CONTROL_DOWN_BYTES: usize = 1 << 20;
/// Largest frame of a job stream: the result with its output and receipt.
pub const MAX_JOB_FRAME_BYTES: usize = 512 << 10;
/// Largest request for a part of a package.
pub const MAX_PACKAGE_REQUEST_BYTES: usize = 1 << 10;
/// Largest answer with a part of a package: a whole manifest.
pub const MAX_PACKAGE_REPLY_BYTES: usize = MAX_MANIFEST_BYTES + (64 << 10);
/// Longest short text: software version, backend name.
pub const MAX_NAME_BYTES: usize = 128;
/// Longest reason that one side gives the other.
pub const MAX_REASON_BYTES: usize = 1_024;
/// Most models that a worker may announce.
pub const MAX_HELD_MODELS: usize = 1_024;

// ---- connections ----

/// Most connected workers of one coordinator.
pub const MAX_WORKERS: usize = 16_384;
/// Most connections from one address that have not said hello yet.
pub const MAX_PENDING_CONNECTIONS: usize = 256;
/// Most concurrent streams that a worker may open towards its coordinator, each direction kind.
pub const MAX_STREAMS: u32 = 256;
/// Most concurrent package streams that one worker is served.
pub const MAX_PACKAGE_STREAMS: u32 = 8;
/// QUIC receive window of one stream, in bytes.
pub const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// QUIC receive window of one connection, in bytes.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

// ---- leases ----

/// Most assignments that one worker may hold.
pub const MAX_IN_FLIGHT: u32 = 64;
/// How often a worker says that it lives.
pub const HEARTBEAT_MS: u64 = 2_000;
/// A worker that was silent for so long has left.
pub const SILENCE_MS: u64 = 10_000;
/// A new connection says hello within this time.
pub const HELLO_MS: u64 = 5_000;
/// The shortest lease.
pub const LEASE_MIN_MS: u64 = 30_000;
/// The longest lease.
pub const LEASE_MAX_MS: u64 = 6 * 60 * 60 * 1_000;
/// A lease lasts so many times the expected run time.
pub const LEASE_FACTOR: u64 = 8;
/// What a lease gets on top where the worker has to pull the model first.
pub const LEASE_PULL_MS: u64 = 60 * 60 * 1_000;
/// How long an audit waits for another worker before it is given up.
pub const AUDIT_PATIENCE_MS: u64 = 10 * 60 * 1_000;
/// A job whose leases failed so often has failed.
pub const MAX_FAILURES: u32 = 5;

// ---- queues ----

/// Most unfinished jobs; more are refused as busy.
pub const MAX_UNFINISHED_JOBS: usize = 65_536;
/// Most tokens of all unfinished jobs together: 256 MiB of them.
pub const MAX_UNFINISHED_TOKENS: usize = 64 << 20;
/// Most finished jobs that the machine remembers, to answer a repeated submission.
pub const MAX_REMEMBERED_JOBS: usize = 65_536;
/// Most audits that one scheduling round tries in vain.
pub const MAX_STUCK_AUDITS_TRIED: usize = 64;
/// Most writes that wait for the store.
pub const STORE_QUEUE: usize = 4_096;
/// Most writes that go into one durable commit.
pub const STORE_BATCH: usize = 512;
/// Most bytes of one record of the job machine.
pub const MAX_RECORD_BYTES: usize = 2 << 20;

// ---- HTTP ----

/// Most inputs of one embeddings request.
pub const MAX_REQUEST_INPUTS: usize = 256;
/// Most bytes of a request body.
pub const MAX_HTTP_BODY_BYTES: usize = 4 << 20;
/// Most HTTP requests that are answered at a time.
pub const MAX_HTTP_REQUESTS: usize = 1_024;
/// How long a client waits for an embedding before it is told to come back.
pub const HTTP_WAIT_MS: u64 = 120_000;
/// Most bytes of a receipt in JSON.
pub const MAX_RECEIPT_JSON_BYTES: usize = 16 << 20;
/// Most statements about one receipt: accepted, then audited and refuted for each run.
pub const MAX_STATEMENTS: usize = 1 + 2 * (MAX_AUDITORS + 1);

// ---- relations ----

/// Upper bound of a canonical job apart from its tokens.
const JOB_FIXED_BYTES: usize = 256;
/// Upper bound of a worker's receipt apart from its roots.
const RECEIPT_FIXED_BYTES: usize = 512;

const _: () = {
    assert!(MAX_ROW_BYTES.is_multiple_of(CHUNK_BYTES));
    assert!(MAX_OUTPUT_VALUES * 4 <= MAX_ROW_BYTES);
    // An assignment, a result, a manifest and an opening each fit in a frame of their stream.
    assert!(MAX_POSITIONS * 4 + JOB_FIXED_BYTES <= MAX_CONTROL_DOWN_BYTES);
    assert!(MAX_HELD_MODELS * 32 + JOB_FIXED_BYTES <= MAX_CONTROL_DOWN_BYTES);
    assert!(MAX_HELD_MODELS * 32 + 3 * MAX_NAME_BYTES + 256 <= MAX_CONTROL_UP_BYTES);
    assert!(MAX_REASON_BYTES + 256 <= MAX_CONTROL_UP_BYTES);
    assert!(MAX_OUTPUT_VALUES * 4 + MAX_RECEIPT_ROOTS * 32 + RECEIPT_FIXED_BYTES <= MAX_JOB_FRAME_BYTES);
    assert!(MAX_MANIFEST_BYTES + 64 <= MAX_PACKAGE_REPLY_BYTES);
    assert!(MAX_OPENING_BYTES + 64 <= MAX_PACKAGE_REPLY_BYTES);
    // A record holds a whole job or a whole result; a receipt in JSON holds a job and all its runs
    // (a token or output value takes at most 12 characters, a root 67).
    assert!(MAX_POSITIONS * 4 + JOB_FIXED_BYTES <= MAX_RECORD_BYTES);
    assert!(MAX_JOB_FRAME_BYTES <= MAX_RECORD_BYTES);
    assert!(
        (MAX_POSITIONS + MAX_OUTPUT_VALUES) * 12
            + (MAX_AUDITORS + 1) * (MAX_RECEIPT_ROOTS * 67 + 4 * RECEIPT_FIXED_BYTES)
            + MAX_STATEMENTS * 1_024
            <= MAX_RECEIPT_JSON_BYTES
    );
    // Openings start and end at chunk groups when a worker pulls in order.
    assert!((MAX_OPENING_CHUNKS as u64).is_multiple_of(GROUP_CHUNKS));
    // A frame is never larger than what a connection lets in.
    assert!(MAX_JOB_FRAME_BYTES <= STREAM_WINDOW_BYTES as usize);
    assert!(MAX_CONTROL_DOWN_BYTES <= STREAM_WINDOW_BYTES as usize);
    assert!(STREAM_WINDOW_BYTES <= CONNECTION_WINDOW_BYTES);
    assert!(MAX_IN_FLIGHT + MAX_PACKAGE_STREAMS < MAX_STREAMS);
    // Silence is judged only after several heartbeats were missed, and never after the lease.
    assert!(3 * HEARTBEAT_MS < SILENCE_MS);
    assert!(SILENCE_MS < LEASE_MIN_MS);
    assert!(LEASE_MIN_MS + LEASE_PULL_MS < LEASE_MAX_MS);
    assert!(MAX_POSITIONS <= MAX_UNFINISHED_TOKENS);
    assert!(STORE_BATCH <= STORE_QUEUE);
    assert!(MAX_REQUEST_INPUTS <= STORE_QUEUE);
    assert!(MAX_TEXT_BYTES <= MAX_HTTP_BODY_BYTES);
};
