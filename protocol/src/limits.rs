//! Every limit of the system, in one file, with the relations between them asserted at compile time (`relations`).
//!
//! A number that comes from outside is compared with one of these *before* anything is allocated,
//! looped over or waited for. Changing a limit is a protocol change when it appears in SPEC.md.

mod relations;

/// Bytes of one BLAKE3 chunk; rows of a trace are padded to whole chunks.
pub const CHUNK_BYTES: usize = 1_024;

// ---- jobs and programs ----

/// Most token positions of one job.
pub const MAX_POSITIONS: usize = 131_072;
/// Most transformer layers of a program.
pub const MAX_LAYERS: usize = 512;
/// Most streamed layers: the transformer layers and the output layer.
pub const MAX_STREAMED_LAYERS: usize = MAX_LAYERS + 1;
/// Most tokens that one job generates.
pub const MAX_GENERATED_TOKENS: usize = 16_384;
/// Most commitment points of one job: one for each generated token (an embedding has one).
pub const MAX_POINTS: usize = MAX_GENERATED_TOKENS;
/// Most roots in one receipt: those of its last point. Points before it are there by their digests.
pub const MAX_RECEIPT_ROOTS: usize = MAX_STREAMED_LAYERS;
/// Most roots of one run, all points together: 8 MiB of them. A job that could have more is refused.
pub const MAX_RUN_ROOTS: usize = 1 << 18;
/// The highest temperature, in units of 1e-4.
pub const MAX_TEMPERATURE: u32 = 1_000_000;
/// The largest penalty of any kind, in units of 1e-4.
pub const MAX_PENALTY: u32 = 100_000;
/// The largest bias of one token's logit, in units of 1e-4.
pub const MAX_TOKEN_BIAS: u32 = 1_000_000;
/// Most tokens with a bias.
pub const MAX_LOGIT_BIAS: usize = 1_024;
/// Most texts that end a generation.
pub const MAX_STOP_STRINGS: usize = 4;
/// Most bytes of such a text.
pub const MAX_STOP_STRING_BYTES: usize = 32;
/// Most of the likeliest tokens of which a client is told the probabilities at each point.
pub const MAX_LOGPROBS: u8 = 20;
/// The same in OpenAI's older completions.
pub const MAX_COMPLETION_LOGPROBS: u8 = 5;
/// Most numbers in which a point's log-probabilities are told: that of the drawn token, and two for each likely one.
pub const MAX_LOGPROB_VALUES: usize = 1 + 2 * MAX_LOGPROBS as usize;
/// Most bytes of an opening of one point's log-probabilities: two chunks, and two paths to the root.
pub const MAX_LOGPROBS_OPENING_BYTES: usize = 4_096;
/// Most bytes of one hidden row, after padding.
pub const MAX_ROW_BYTES: usize = 256 * CHUNK_BYTES;
/// Most numbers in an output: of an embedding one hidden row, of a generation words and log-probabilities.
pub const MAX_OUTPUT_VALUES: usize = MAX_ROW_BYTES / 4;
/// Most workers that share the layers of one run.
pub const MAX_CREW: usize = 16;
/// Most auditors that a policy may ask for.
pub const MAX_AUDITORS: usize = 8;
/// Most positions of one pass through a pipeline of a generation.
pub const WORKER_STAGE_PASS: usize = 256;
/// Most streams of other workers that a worker of pipelines has at a time, before they are asked for.
pub const WORKER_STAGE_LINKS: usize = 64;
/// Most bytes of received rows that a worker keeps on disk.
pub const WORKER_STAGE_INPUT_BYTES: u64 = 8 << 30;
/// How long it keeps them: beyond the window of challenges.
pub const WORKER_STAGE_INPUT_MS: u64 = 2 * CHALLENGE_WINDOW_MS;
/// Most bytes of one input text.
pub const MAX_TEXT_BYTES: usize = 1 << 20;

// ---- checkpoints, to import ----

/// Most bytes of one JSON file of a checkpoint.
pub const MAX_CHECKPOINT_JSON_BYTES: u64 = 4 << 20;
/// Most bytes of a safetensors header.
pub const MAX_SAFETENSORS_HEADER_BYTES: u64 = 16 << 20;
/// Most tensors of one safetensors file.
pub const MAX_SAFETENSORS_TENSORS: usize = 65_536;
/// Most safetensors files of one checkpoint.
pub const MAX_SAFETENSORS_SHARDS: usize = 256;
/// Longest header of a GGUF file: keys with the vocabulary, and the list of tensors.
pub const MAX_GGUF_HEADER_BYTES: u64 = 64 << 20;
/// Most keys of a GGUF file.
pub const MAX_GGUF_KEYS: usize = 4_096;
/// Longest name of a key or tensor in a GGUF file.
pub const MAX_GGUF_NAME_BYTES: usize = 256;
/// Most rows or columns of a matrix, as a checkpoint's configuration gives them: products of two fit `u64`. The limits
/// of programs are tighter and checked later.
pub const MAX_CHECKPOINT_DIMENSION: u32 = 1 << 24;
/// Most transformer layers of a checkpoint: a program has the embedding and the output beside them.
pub const MAX_CHECKPOINT_LAYERS: u32 = MAX_PROGRAM_LAYERS as u32 - 2;

// ---- packages ----

/// Most bytes of a package manifest.
pub const MAX_MANIFEST_BYTES: usize = 16 << 20;
/// Most blobs (tensors, tokenizer, template) of one package.
pub const MAX_BLOBS: usize = 65_536;
/// Most bytes of a tokenizer.
pub const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
/// Most bytes of a chat template.
pub const MAX_TEMPLATE_BYTES: u64 = 1 << 20;
/// Most tokens that end a generation by themselves.
pub const MAX_STOP_TOKENS: usize = 256;
/// Longest name of a model family.
pub const MAX_FAMILY_BYTES: usize = 64;
/// Most files that a package says it was made from.
pub const MAX_SOURCES: usize = 1_024;
/// Longest name of such a file.
pub const MAX_SOURCE_NAME_BYTES: usize = 256;
/// Most layers of a program, with the embedding and the output.
pub const MAX_PROGRAM_LAYERS: usize = 512;
/// Most ops of one layer.
pub const MAX_LAYER_OPS: usize = 256;
/// Most tensors of a program, and most parameters: their ids have 16 bits.
pub const MAX_PROGRAM_IDS: usize = u16::MAX as usize;
/// Most tables that one embedding adds up.
pub const MAX_EMBEDDING_TABLES: usize = 8;
/// Most heads of one attention.
pub const MAX_HEADS: usize = u16::MAX as usize;
/// Longest name of a tensor, parameter or layer.
pub const MAX_PROGRAM_NAME_BYTES: usize = 256;
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
pub const MAX_CONTROL_DOWN_BYTES: usize = 4 << 20;
/// Largest frame of a job stream: the result with its output and receipt.
pub const MAX_JOB_FRAME_BYTES: usize = 1 << 20;
/// Most values of rows in one frame between two workers of a pipeline.
pub const MAX_STAGE_VALUES: usize = 1 << 17;
/// Most bytes of the state of a tree of rows ([`crate::trace::RowTree::state`]): a chunk, or a value for each bit of the number of chunks.
pub const MAX_TREE_STATE_BYTES: usize = 64 * 32;
/// Largest frame between two workers of a pipeline.
pub const MAX_STAGE_FRAME_BYTES: usize = MAX_STAGE_VALUES * 4 + 64;
/// Most roots of a run in one message to a worker that is to sign for its layers.
pub const COUNTERSIGN_ROOTS: usize = 1 << 16;
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

/// Most bytes of a key file.
pub const MAX_KEY_FILE_BYTES: u64 = 128;
/// Most connected workers of one coordinator.
pub const MAX_WORKERS: usize = 16_384;
/// Most connections from one address that have not said hello yet, where the operator says nothing else.
pub const DEFAULT_PENDING_CONNECTIONS: usize = 256;
/// Most concurrent streams that a worker may open towards its coordinator, each direction kind.
pub const MAX_STREAMS: u32 = 256;
/// Most concurrent package streams that one worker is served.
pub const MAX_PACKAGE_STREAMS: u32 = 8;
/// QUIC receive window of one stream, in bytes.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// QUIC receive window of one connection, in bytes.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// What a client may send before its connection is taken: a handshake's worth.
pub const MAX_INCOMING_BYTES: u64 = 64 << 10;
/// Pieces taken from a stream at a time: what came in as many packets.
pub const STREAM_READ_PIECES: usize = 32;
/// Most roots and words of a run of which the engine is told at once.
pub const MAX_STREAMED_TOGETHER: usize = 256;
/// Messages that may wait for a worker that does not read. A lease takes at most an assignment and its end, so a worker
/// that is honest and alive never comes near it.
pub const MAX_OUTBOX_MESSAGES: usize = 4 * MAX_IN_FLIGHT as usize;
/// Control messages that a worker may send at once: all its models, and all its assignments several times over.
pub const CONTROL_BURST_MESSAGES: u64 = MAX_HELD_MODELS as u64 + 4 * MAX_IN_FLIGHT as u64;
/// Control messages that a worker may go on sending.
pub const CONTROL_MESSAGES_PER_SECOND: u64 = 2 * MAX_IN_FLIGHT as u64;
/// Job streams at once for assignments that are over: honest where a cancellation crossed them.
pub const STRAY_BURST_STREAMS: u64 = 2 * MAX_IN_FLIGHT as u64;
/// Such streams that a worker may go on opening.
pub const STRAY_STREAMS_PER_SECOND: u64 = 1;
/// Parts of packages that are made at a time for workers, for each core.
pub const OPENINGS_PER_CORE: usize = 2;
/// How long a worker may take to read the last message before its connection is closed.
pub const LAST_WORD_MS: u64 = 2_000;
/// How long all sessions together may take to say good-bye when the coordinator goes down.
pub const GOODBYE_MS: u64 = 3_000;

// ---- leases ----

/// Most assignments that one worker may hold.
pub const MAX_IN_FLIGHT: u32 = 64;
/// What a worker is taken to do in a millisecond when it does not say: 1 G multiply-accumulates a second.
pub const DEFAULT_MACS_PER_MS: u64 = 1_000_000;
/// Above this no speed is believed: 10^18 multiply-accumulates a second.
pub const MAX_MACS_PER_MS: u64 = 1_000_000_000_000_000;
/// How often a worker says that it lives.
pub const HEARTBEAT_MS: u64 = 2_000;
/// A worker that was silent for so long has left.
pub const SILENCE_MS: u64 = 10_000;
/// A new connection says hello within this time, where the operator says nothing else.
pub const HELLO_MS: u64 = 5_000;
/// The longest time that an operator may give it.
pub const MAX_HELLO_MS: u64 = 60_000;
/// The shortest lease.
pub const LEASE_MIN_MS: u64 = 30_000;
/// The longest lease.
pub const LEASE_MAX_MS: u64 = 6 * 60 * 60 * 1_000;
/// A lease lasts so many times the expected run time.
pub const LEASE_FACTOR: u64 = 8;
/// A worker that says it holds the model begins within this time, after what it has in hand already.
pub const BEGIN_MS: u64 = 30_000;
/// A worker that has to pull the model first begins within this time.
pub const LEASE_PULL_MS: u64 = 10 * 60 * 1_000;
/// What a worker may take for each token that it generates, beside the work itself.
pub const TOKEN_MS: u64 = 10_000;
/// The shortest prompt by which a worker's speed is measured: a short one is run like a single token.
pub const MEASURED_PROMPT_TOKENS: usize = 128;
/// How often at least the machine wants to be called while it waits for anything.
pub const TICK_MS: u64 = 1_000;
/// A longer pause between two calls is the coordinator's own downtime, which is charged to nobody.
pub const STALL_MS: u64 = 3 * TICK_MS;
/// So many failures of a worker in a row, at any jobs, are forgiven; then it is given nothing for a while.
pub const FORGIVEN_FAILURES: u32 = 3;
/// The first pause after failures, of a worker or of a job; each further one is twice as long.
pub const PAUSE_MIN_MS: u64 = 1_000;
/// The longest such pause.
pub const PAUSE_MAX_MS: u64 = 5 * 60 * 1_000;
/// Jobs that a worker refused that are remembered until its session ends.
pub const MAX_REFUSED_JOBS: usize = 1_024;
/// A job that failed for so long, since its first failure, is given up at the next one.
pub const JOB_PATIENCE_MS: u64 = 24 * 60 * 60 * 1_000;
/// A worker that was told to reveal a run shows it within this time.
pub const REVEAL_MS: u64 = 30_000;
/// Most runs that a worker has committed to and not shown yet, before it is given nothing more.
pub const MAX_WAITING_RUNS: usize = MAX_IN_FLIGHT as usize;
/// What each side of a dispute may take for all its moves, on top of the time that its computation takes.
pub const DISPUTE_BASE_MS: u64 = 120_000;
/// The longest such time.
pub const DISPUTE_MAX_MS: u64 = LEASE_MAX_MS;
/// Workers that were halted in a lockstep audit sign what they streamed within this time.
pub const HALT_MS: u64 = 60_000;
/// How long after its end a job may be challenged.
pub const CHALLENGE_WINDOW_MS: u64 = 24 * 60 * 60 * 1_000;
/// A run may be challenged for so long after a challenge of it has ended, also beyond that window.
pub const CHALLENGE_AGAIN_MS: u64 = 60 * 60 * 1_000;
/// Most challenges that are pending: played, or waiting for their turn.
pub const MAX_CHALLENGES: usize = 512;
/// With each so many pending challenges the least stake of a new one doubles.
pub const CHALLENGES_PER_DOUBLING: usize = 16;
/// Most challenges that are played at a time.
pub const MAX_PLAYED_CHALLENGES: usize = 128;
/// Most of them in which one key is the claimant: it has to play them all in time.
pub const MAX_CHALLENGES_PER_CLAIMANT: usize = 4;
/// A worker that took a run back is given nothing for so long: time to test its machine.
pub const FAULTY_MS: u64 = 10 * 60 * 1_000;
/// So many runs of a worker are accepted before it may take one back again.
pub const RETRACT_JOBS: u32 = 1_000;
/// Credits that a new worker gets where the operator says nothing else: the bonds of some hundred leases of large jobs.
pub const DEFAULT_GRANT_CREDITS: u64 = 1_000_000_000_000;
/// Most new workers that get their first credits in an hour, where the operator says nothing else: keys cost nothing, and
/// every account is kept for ever.
pub const DEFAULT_GRANTS_PER_HOUR: u32 = 1_024;
/// Most accounts that a coordinator opens by itself; they all fit into one export of the ledger.
pub const MAX_GRANTED_ACCOUNTS: usize = MAX_LEDGER_LINES / 2;
/// How often it is looked for somebody who could make a missing audit.
pub const ABSENCE_LOOK_MS: u64 = 10_000;
/// Where so many looks in a row found nobody, the missing audits are given up: after half a minute.
pub const ABSENCE_LOOKS: u32 = 3;
/// How long an audit may take as a whole, on top of the time for its run, before it is given up.
pub const AUDIT_PATIENCE_MS: u64 = 10 * 60 * 1_000;
/// A job at which so many different workers failed has failed.
pub const MAX_FAILURES: usize = 5;
/// Most workers that a job remembers for having broken the rules at it.
pub const MAX_BARRED_WORKERS: usize = 256;

// ---- queues ----

/// Most unfinished jobs; more are refused as busy.
pub const MAX_UNFINISHED_JOBS: usize = 65_536;
/// Most tokens of all unfinished jobs together, where each root that a run may stream counts as eight: 1 GiB of them.
pub const MAX_UNFINISHED_TOKENS: usize = 256 << 20;
/// Most finished jobs that the machine remembers, to answer a repeated submission.
pub const MAX_REMEMBERED_JOBS: usize = 65_536;
/// Most audits, and most first runs, that one scheduling round tries in vain.
pub const MAX_STUCK_JOBS_TRIED: usize = 64;
/// Inputs that wait for the engine. Whoever has more is held up, and so are the streams that it reads from.
pub const MAX_ENGINE_INPUTS: usize = 4_096;
/// Commits that are on their way to the disk before no more inputs are taken.
pub const MAX_PENDING_COMMITS: usize = 64;
/// Events that a slow watcher may lag behind before it loses some.
pub const MAX_EVENT_LAG: usize = 16_384;
/// Most writes that wait for the store.
pub const STORE_QUEUE: usize = 4_096;
/// Most writes that go into one durable commit.
pub const STORE_BATCH: usize = 512;
/// How long a foreign lock on the store is waited out before a write counts as failed.
pub const STORE_BUSY_MS: u64 = 1_000;
/// How long the store waits before it tries again to write what the disk refused.
pub const STORE_RETRY_MS: u64 = 500;
/// Pages of the store's log, of 4 KiB each, after which it is written back into the file.
pub const STORE_CHECKPOINT_PAGES: u32 = 4_096;
/// How far ahead of itself the clock is reserved in the store, so that one write serves many readings.
pub const CLOCK_RESERVE_MS: u64 = 10_000;
/// Most bytes of one record of the job machine.
pub const MAX_RECORD_BYTES: usize = 16 << 20;

// ---- workers ----

/// Models that stay loaded in a worker.
pub const WORKER_LOADED_MODELS: usize = 2;
/// Layers that may wait to be hashed; then the computation waits.
pub const WORKER_LAYERS_AHEAD: usize = 2;
/// Finished runs that a worker keeps until they are acknowledged; of more, those of the oldest leases are dropped.
pub const WORKER_KEPT_RESULTS: usize = MAX_WAITING_RUNS + MAX_IN_FLIGHT as usize;
/// Messages that wait for a worker's control stream; then whoever has more to say waits.
pub const WORKER_OUTBOX_MESSAGES: usize = 64;
/// Events that a slow watcher of a worker may lag behind before it loses some.
pub const WORKER_EVENT_LAG: usize = 4_096;
/// Runs whose roots a worker remembers, so that it can sign them when it is told to halt.
pub const WORKER_STREAMS: usize = 2 * WORKER_KEPT_RESULTS;
/// Runs that a worker remembers to take back where the next test of its machine fails.
pub const WORKER_UNPROVEN_RUNS: usize = 1_024;
/// Disputes that a worker plays at a time.
pub const WORKER_DISPUTES: usize = 64;
/// Disputed runs that a worker keeps from one round to the next.
pub const WORKER_TRACES: usize = 4;
/// Most memory of all of them, in bytes, as far as programs bound it; one may take more.
pub const WORKER_TRACE_BYTES: u64 = 4 << 30;
/// Disputed runs that nobody asked about for so long are dropped, and made again where somebody asks after all.
pub const WORKER_TRACE_IDLE_MS: u64 = 10 * 60 * 1_000;
/// Memory for the layer outputs of recent runs that a worker keeps where nothing else is said, in bytes.
pub const WORKER_KEPT_RUNS_BYTES: u64 = 512 << 20;
/// They are dropped after so long: most disputes begin with an audit, soon after the run.
pub const WORKER_KEPT_RUNS_MS: u64 = 60 * 60 * 1_000;
/// Disputes whose moves and entries a worker keeps on its disk.
pub const WORKER_DISPUTES_KEPT: usize = 1_024;
/// A dispute without a verdict is forgotten after so long, where room is needed.
pub const WORKER_DISPUTE_KEEP_MS: u64 = 90 * 24 * 60 * 60 * 1_000;
/// The pause after a move that could not be made; each further one is twice as long.
pub const WORKER_DISPUTE_PAUSE_MIN_MS: u64 = 1_000;
/// The longest such pause.
pub const WORKER_DISPUTE_PAUSE_MAX_MS: u64 = 30_000;
/// How long a drained worker waits for the acknowledgement of its last results.
pub const WORKER_LAST_WAIT_MS: u64 = SILENCE_MS;
/// Parts of a package that a worker asks for before the first of them has come.
pub const PULL_REQUESTS_AHEAD: usize = 4;
/// A coordinator that sends nothing of a package for so long is not waited for.
pub const PULL_PATIENCE_MS: u64 = 60_000;

/// A store that closes gives up what it could not write within this time; nothing of that was acknowledged.
pub const STORE_CLOSE_MS: u64 = 10_000;
/// A session taken over by another one with the same key within this time is worth a warning: two machines share a key.
pub const TAKEOVER_MS: u64 = 60_000;

// ---- HTTP ----

/// Most inputs of one embeddings request.
pub const MAX_REQUEST_INPUTS: usize = 256;
/// Most bytes of a request body.
pub const MAX_HTTP_BODY_BYTES: usize = 4 << 20;
/// Most HTTP requests that are answered at a time.
pub const MAX_HTTP_REQUESTS: usize = 1_024;
/// Most connections of clients: those that are being answered, and as many that are idle.
pub const MAX_HTTP_CONNECTIONS: usize = 2 * MAX_HTTP_REQUESTS;
/// Most of them from one address: it can't take the place of every request by itself.
pub const MAX_HTTP_CONNECTIONS_PER_ADDRESS: usize = MAX_HTTP_REQUESTS / 2;
/// Pieces of tokenising, hashing and reading that go on at a time for clients, for each core.
pub const HTTP_WORK_PER_CORE: usize = 2;
/// How long a client may take to send a request's head, or be idle.
pub const HTTP_HEAD_MS: u64 = 10_000;
/// How long a client may take to send a request's body.
pub const HTTP_BODY_MS: u64 = 30_000;
/// How long a client may leave an answer unread before its connection is closed.
pub const HTTP_WRITE_MS: u64 = 30_000;
/// How long requests that are being answered may go on after the order to stop.
pub const HTTP_GRACE_MS: u64 = 10_000;
/// Pause after the system refused a connection, for want of file descriptors say.
pub const HTTP_ACCEPT_PAUSE_MS: u64 = 100;
/// After so many seconds a client that was told to come back may do so.
pub const HTTP_RETRY_AFTER_SECONDS: u64 = 1;
/// How long a client waits while no worker is connected that could run its job, where the operator says nothing else.
pub const DEFAULT_WORKER_WAIT_MS: u64 = 5_000;
/// How long a client waits for an embedding before it is told to come back.
pub const HTTP_WAIT_MS: u64 = 120_000;
/// Requests for work that a client may send at once, where the operator says nothing else.
pub const DEFAULT_REQUEST_BURST: u64 = 256;
/// Requests for work that a client may go on sending each second, where the operator says nothing else.
pub const DEFAULT_REQUESTS_PER_SECOND: u64 = 32;
/// Tokens of prompts and answers that a client has each minute, where nothing else is said.
pub const DEFAULT_TOKENS_PER_MINUTE: u64 = 1_000_000;
/// Most tokens of one generated answer, where the operator says nothing else.
pub const DEFAULT_MAX_TOKENS: u32 = 4_096;
/// Most answers to one request, where the operator says nothing else.
pub const DEFAULT_MAX_CHOICES: u32 = 16;
/// Tokens of a completion whose request names no number, as OpenAI has it.
pub const DEFAULT_COMPLETION_TOKENS: u32 = 16;
/// A stream that has nothing to say says so this often, so that a client that is gone is noticed.
pub const HTTP_KEEP_ALIVE_MS: u64 = 5_000;
/// Pieces of a stream that wait for a client that reads slowly; then the answer waits.
pub const HTTP_STREAM_PIECES: usize = 64;
/// For each token that a client asks for it waits so much longer for a whole answer.
pub const HTTP_WAIT_PER_TOKEN_MS: u64 = 1_000;
/// Most bytes of a receipt in JSON.
pub const MAX_RECEIPT_JSON_BYTES: usize = 16 << 20;
/// Most statements about one receipt: accepted, then for each run audited, and refuted or withdrawn.
pub const MAX_STATEMENTS: usize = 1 + 2 * (MAX_AUDITORS + 1);

// ---- conversations ----

/// Most messages of one conversation.
pub const MAX_CHAT_MESSAGES: usize = 2_048;
/// Longest role of a message, and longest name of who wrote it.
pub const MAX_ROLE_BYTES: usize = 64;
/// Most steps that a template may take for one conversation: about a hundred for each message.
pub const MAX_TEMPLATE_STEPS: u64 = 1 << 20;
/// Deepest nesting of a template's values and calls.
pub const MAX_TEMPLATE_DEPTH: usize = 100;

// ---- transparency log ----

/// Most hashes of one path: a log has fewer than 2^64 entries, and a consistency path one hash more than levels.
pub const MAX_LOG_PATH: usize = 65;
/// Most entries of one proof. A job has a handful, and some dozens more for each dispute about it.
pub const MAX_LOG_ENTRIES: usize = 4_096;
/// Most cosignatures of a head in one proof.
pub const MAX_COSIGNATURES: usize = 256;
/// Most bytes of a signed head in JSON.
pub const MAX_LOG_HEAD_JSON_BYTES: usize = 4 << 10;
/// Most bytes of a proof in JSON.
pub const MAX_LOG_PROOF_JSON_BYTES: usize = 32 << 20;
/// How long writes may go on without a new head.
pub const LOG_HEAD_MS: u64 = 1_000;
/// A worker is asked to cosign a head of the log at most so often.
pub const COSIGN_MS: u64 = 5_000;
/// The pause between two workers that are asked to cosign: many are asked less often.
pub const COSIGN_SPREAD_MS: u64 = 5;
/// How long a client waits for a head that covers what it asked for.
pub const LOG_HEAD_WAIT_MS: u64 = 5_000;

// ---- ledger and draws ----

/// Multiply-accumulates that cost one credit.
pub const MACS_PER_CREDIT: u64 = 1_000_000;
/// Most awards out of forfeited credits: all who ran the job, and the sides of its disputes.
pub const MAX_AWARDS: usize = 64;
/// Most accounts, postings or batches in one export of the ledger.
pub const MAX_LEDGER_LINES: usize = 65_536;
/// Most bytes of an export of the ledger in JSON.
pub const MAX_LEDGER_JSON_BYTES: usize = 256 << 20;
/// Draws of one chain of secrets; then the next chain begins, with an anchor of its own.
pub const DRAWS_PER_CHAIN: u32 = 1 << 20;
/// Secrets of a chain between two that are kept: the most hashes that a draw takes.
pub const DRAW_CHECKPOINT: u32 = 1_024;

// ---- disputes ----

/// Most steps of a disputed row: at most eight for each op of a layer, and those of layer 0 go with layer 1.
pub const MAX_STEPS: usize = 2 * MAX_LAYER_OPS * 8;
/// Most chaining values of one move: at least one for each step.
pub const MAX_MOVE_VALUES: usize = MAX_STEPS;
/// Most levels of a tree that one round descends.
pub const DESCENT_LEVELS: u32 = 8;
/// Most chaining values of one step's frontier.
pub const MAX_STEP_VALUES: u64 = 64;
/// Most bytes that one element reads, counted in whole chunks.
pub const MAX_READ_BYTES: usize = 64 << 10;
/// Most ranges that one element reads.
pub const MAX_READS: usize = MAX_READ_BYTES / CHUNK_BYTES;
/// Most bytes of one signed move.
pub const MAX_MOVE_BYTES: usize = 256 << 10;
/// Most bytes of one signed entry of a transcript.
pub const MAX_DISPUTE_ENTRY_BYTES: usize = 2 << 20;
/// Most rounds: the row, the ops, the chunk, its reveal, the openings.
pub const MAX_ROUNDS: usize = 4 + 1 + 3 + 1 + 1;
/// So many times the coordinator's own downtime is credited in one dispute.
pub const MAX_CREDITS: usize = 512;
/// Most entries of a transcript: begin and end, each side's move and notice in each round, an equivocation, credits.
pub const MAX_DISPUTE_ENTRIES: usize = 3 + 4 * MAX_ROUNDS + MAX_CREDITS;
/// Most bytes of a dispute's file.
pub const MAX_DISPUTE_FILE_BYTES: usize = MAX_MANIFEST_BYTES + (8 << 20);
/// Whatever a side has used up, for each of its moves it has so long.
pub const MOVE_MIN_MS: u64 = 10_000;
/// After its clock has run out a side may still move for so long, through anybody.
pub const GRACE_MS: u64 = 30_000;
/// So many moves of a side are refused with a reason; then what is not legal is ignored.
pub const MAX_REFUSED_MOVES: u32 = 8;
/// How often at least a coordinator writes down that it runs, while it has disputes.
pub const DISPUTE_HEARTBEAT_MS: u64 = 2_000;
/// While a side's clock runs, the coordinator asks it again this often.
pub const ASK_AGAIN_MS: u64 = 10_000;
/// Most verdicts that a worker is told once more when it connects.
pub const MAX_TOLD_VERDICTS: usize = 64;
/// Moves that may come at once over HTTP from one address, and how many a second go on coming.
pub const HTTP_MOVE_BURST: u64 = 32;
/// See [`HTTP_MOVE_BURST`].
pub const HTTP_MOVES_PER_SECOND: u64 = 4;
/// So many addresses' moves are measured one by one; more share one measure.
pub const MAX_MOVE_ADDRESSES: usize = 4_096;
/// Moves of disputes that a worker may bring at once.
pub const MOVE_BURST: u64 = 2 * MAX_DISPUTES as u64;
/// Moves that it may go on bringing.
pub const MOVES_PER_SECOND: u64 = 16;
/// Most disputes that are listed at a time.
pub const MAX_LISTED_DISPUTES: usize = 100;
/// Most disputes of one coordinator that go on at a time, and most that have ended and are remembered.
pub const MAX_DISPUTES: usize = 256;
