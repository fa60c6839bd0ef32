//! What must hold between limits, checked when this is compiled.

use super::*;

/// Upper bound of a canonical job apart from its tokens.
const JOB_FIXED_BYTES: usize =
    512 + MAX_LOGIT_BIAS * 8 + MAX_STOP_TOKENS * 4 + MAX_STOP_STRINGS * (MAX_STOP_STRING_BYTES + 4);
/// Upper bound of what a receipt has of each point: the digest.
const POINTS_BYTES: usize = MAX_POINTS * 32;
/// Upper bound of a worker's receipt apart from its roots.
const RECEIPT_FIXED_BYTES: usize = 512;
/// Upper bound of the segments of a receipt.
const SEGMENTS_BYTES: usize = MAX_CREW * 160;
/// Upper bound of what stands around a move's values in a message or entry.
const DISPUTE_FIXED_BYTES: usize = 512;
/// Upper bound of the terms of a dispute.
const TERMS_BYTES: usize = 2 * CLAIM_BYTES + MAX_STREAMED_LAYERS * 32 + JOB_FIXED_BYTES + DISPUTE_FIXED_BYTES;
/// Upper bound of a claim: the signed run, its words, and the roots and log-probabilities at the disputed point.
const CLAIM_BYTES: usize = POINTS_BYTES
    + MAX_POINTS * 4
    + 2 * MAX_RECEIPT_ROOTS * 32
    + RECEIPT_FIXED_BYTES
    + SEGMENTS_BYTES
    + MAX_LOGPROBS_OPENING_BYTES;
/// Most levels of the tree of a blob. A range of two chunks or more has two paths, and there are half as many of these.
const TREE_LEVELS: usize = 30;
/// Upper bound of all moves but those of the last round: a frontier of every step, all descents, and the revealed chunks.
const PLAYED_BYTES: usize =
    2 * (MAX_MOVE_VALUES * 32 + 7 * (1 << DESCENT_LEVELS) * 32 + CHUNK_BYTES + MAX_ROUNDS * DISPUTE_FIXED_BYTES);

const _: () = {
    assert!(MAX_ROW_BYTES.is_multiple_of(CHUNK_BYTES));
    assert!(MAX_OUTPUT_VALUES * 4 <= MAX_ROW_BYTES);
    // The values of one point lie in two chunks, each below at most as many parents as the output has levels.
    assert!(MAX_LOGPROB_VALUES * 4 <= CHUNK_BYTES);
    assert!(2 * (CHUNK_BYTES + (MAX_ROW_BYTES / CHUNK_BYTES).ilog2() as usize * 64) <= MAX_LOGPROBS_OPENING_BYTES);
    // An assignment, a result, a manifest and an opening each fit in a frame of their stream.
    assert!((MAX_POSITIONS + MAX_POINTS) * 4 + JOB_FIXED_BYTES <= MAX_CONTROL_DOWN_BYTES);
    assert!(MAX_HELD_MODELS * 32 + JOB_FIXED_BYTES <= MAX_CONTROL_DOWN_BYTES);
    assert!(MAX_HELD_MODELS * 32 + 3 * MAX_NAME_BYTES + 256 <= MAX_CONTROL_UP_BYTES);
    assert!(MAX_REASON_BYTES + 256 <= MAX_CONTROL_UP_BYTES);
    assert!(
        MAX_OUTPUT_VALUES * 4 + POINTS_BYTES + MAX_RECEIPT_ROOTS * 32 + RECEIPT_FIXED_BYTES + SEGMENTS_BYTES
            <= MAX_JOB_FRAME_BYTES
    );
    assert!(COUNTERSIGN_ROOTS * 32 + 256 <= MAX_CONTROL_DOWN_BYTES && MAX_POINTS * 4 + 64 <= MAX_STAGE_FRAME_BYTES);
    assert!(MAX_STAGE_FRAME_BYTES <= STREAM_WINDOW_BYTES as usize && MAX_ROW_BYTES / 4 <= MAX_STAGE_VALUES);
    // Rows that were handed over fit in a frame of a job stream, with what proves them wrong.
    assert!(MAX_STAGE_VALUES * 4 + MAX_TREE_STATE_BYTES + 1_024 <= MAX_JOB_FRAME_BYTES);
    assert!(CHUNK_BYTES <= MAX_TREE_STATE_BYTES);
    assert!(CLAIM_BYTES <= MAX_JOB_FRAME_BYTES && MAX_POINTS <= MAX_OUTPUT_VALUES);
    assert!(MAX_MANIFEST_BYTES + 64 <= MAX_PACKAGE_REPLY_BYTES);
    assert!(MAX_OPENING_BYTES + 64 <= MAX_PACKAGE_REPLY_BYTES);
    // A record holds a whole job or a whole result; a receipt in JSON holds a job and all its runs
    // (a token or output value takes at most 12 characters, a root 67).
    assert!(MAX_POSITIONS * 4 + JOB_FIXED_BYTES <= MAX_RECORD_BYTES);
    assert!(MAX_JOB_FRAME_BYTES + MAX_RUN_ROOTS * 32 <= MAX_RECORD_BYTES);
    assert!(MAX_STREAMED_LAYERS <= MAX_RUN_ROOTS && TERMS_BYTES + DISPUTE_FIXED_BYTES <= MAX_RECORD_BYTES);
    assert!(
        (MAX_POSITIONS + MAX_OUTPUT_VALUES) * 12
            + (MAX_AUDITORS + 1) * ((MAX_POINTS + MAX_RECEIPT_ROOTS) * 67 + 4 * (RECEIPT_FIXED_BYTES + SEGMENTS_BYTES))
            + MAX_STATEMENTS * 1_024
            <= MAX_RECEIPT_JSON_BYTES
    );
    // Whoever waits for a head when the coordinator goes down still gets it.
    assert!(LOG_HEAD_MS + LOG_HEAD_WAIT_MS <= HTTP_GRACE_MS);
    // A proof in JSON: a hash takes 67 characters, an entry with its names far below a KiB.
    assert!(
        MAX_LOG_ENTRIES * (MAX_LOG_PATH * 67 + 1_024)
            + MAX_LOG_PATH * 67
            + MAX_LOG_HEAD_JSON_BYTES
            + MAX_COSIGNATURES * 512
            <= MAX_LOG_PROOF_JSON_BYTES
    );
    assert!(DRAWS_PER_CHAIN.is_multiple_of(DRAW_CHECKPOINT));
    assert!(MAX_AUDITORS < MAX_AWARDS);
    // A move holds a frontier of every step, or all openings with their paths; and it fits where it travels.
    assert!(1 << DESCENT_LEVELS <= MAX_MOVE_VALUES);
    assert!(MAX_MOVE_VALUES * 32 + DISPUTE_FIXED_BYTES <= MAX_MOVE_BYTES);
    assert!(MAX_READ_BYTES + MAX_READS * (TREE_LEVELS * 64 + 64 + 4) + DISPUTE_FIXED_BYTES <= MAX_MOVE_BYTES);
    assert!(MAX_MOVE_BYTES + DISPUTE_FIXED_BYTES <= MAX_JOB_FRAME_BYTES);
    assert!(TERMS_BYTES + DISPUTE_FIXED_BYTES <= MAX_DISPUTE_ENTRY_BYTES);
    // Whoever is asked to move is told the job, the terms and every move before.
    assert!(
        MAX_POSITIONS * 4 + JOB_FIXED_BYTES + TERMS_BYTES + PLAYED_BYTES + DISPUTE_FIXED_BYTES
            <= MAX_CONTROL_DOWN_BYTES
    );
    assert!(MAX_DISPUTE_ENTRIES <= u16::MAX as usize);
    assert!(
        MAX_DISPUTE_FILE_BYTES
            >= MAX_MANIFEST_BYTES
                + TERMS_BYTES
                + PLAYED_BYTES
                + 2 * MAX_MOVE_BYTES
                + MAX_DISPUTE_ENTRIES * DISPUTE_FIXED_BYTES
    );
    assert!(MOVE_MIN_MS >= 3 * HEARTBEAT_MS && MOVE_MIN_MS + GRACE_MS < DISPUTE_BASE_MS);
    // Openings start and end at chunk groups when a worker pulls in order.
    assert!((MAX_OPENING_CHUNKS as u64).is_multiple_of(GROUP_CHUNKS));
    // A frame is never larger than what a connection lets in.
    assert!(MAX_JOB_FRAME_BYTES <= STREAM_WINDOW_BYTES as usize);
    assert!(MAX_CONTROL_DOWN_BYTES <= STREAM_WINDOW_BYTES as usize);
    assert!(STREAM_WINDOW_BYTES <= CONNECTION_WINDOW_BYTES);
    assert!(MAX_IN_FLIGHT + MAX_PACKAGE_STREAMS < MAX_STREAMS);
    assert!(STREAM_READ_PIECES * (1 << 16) <= STREAM_WINDOW_BYTES as usize);
    assert!(MAX_INCOMING_BYTES <= CONNECTION_WINDOW_BYTES as u64);
    // An honest worker is never cut off: it may be sent, and may answer and open, twice what it can hold.
    assert!(MAX_OUTBOX_MESSAGES >= 2 * MAX_IN_FLIGHT as usize);
    assert!(CONTROL_BURST_MESSAGES >= MAX_HELD_MODELS as u64 + 2 * MAX_IN_FLIGHT as u64);
    assert!(CONTROL_MESSAGES_PER_SECOND * HEARTBEAT_MS > 1_000);
    assert!(STRAY_BURST_STREAMS >= MAX_IN_FLIGHT as u64);
    // Silence is judged only after several heartbeats were missed, and never after the lease.
    assert!(3 * HEARTBEAT_MS < SILENCE_MS);
    assert!(SILENCE_MS < LEASE_MIN_MS);
    assert!(HELLO_MS <= SILENCE_MS && HELLO_MS <= MAX_HELLO_MS);
    assert!(DEFAULT_PENDING_CONNECTIONS <= MAX_WORKERS);
    // A pause that counts as the workers' is short against what they are given.
    assert!(TICK_MS < STALL_MS && STALL_MS + 3 * HEARTBEAT_MS < SILENCE_MS);
    assert!(BEGIN_MS <= LEASE_PULL_MS && PAUSE_MAX_MS < JOB_PATIENCE_MS);
    assert!(LAST_WORD_MS <= GOODBYE_MS);
    // A worker gives up a pull well before its lease does.
    assert!(PULL_PATIENCE_MS < LEASE_PULL_MS);
    assert!(WORKER_OUTBOX_MESSAGES >= MAX_IN_FLIGHT as usize);
    // What is still played is never forgotten for another dispute, and tried again before its time runs out.
    assert!(WORKER_DISPUTES < WORKER_DISPUTES_KEPT && WORKER_DISPUTE_KEEP_MS > DISPUTE_MAX_MS);
    assert!(WORKER_DISPUTE_PAUSE_MAX_MS < DISPUTE_BASE_MS);
    // All that a worker kept may be offered again at the start of a session.
    assert!(WORKER_KEPT_RESULTS as u64 <= STRAY_BURST_STREAMS);
    // A client's time to wait covers its upload.
    assert!(HTTP_HEAD_MS + HTTP_BODY_MS <= HTTP_WAIT_MS);
    assert!(MAX_HTTP_REQUESTS <= MAX_HTTP_CONNECTIONS && MAX_HTTP_CONNECTIONS_PER_ADDRESS < MAX_HTTP_REQUESTS);
    assert!(LEASE_MIN_MS + LEASE_PULL_MS < LEASE_MAX_MS);
    assert!(MAX_POSITIONS <= MAX_UNFINISHED_TOKENS);
    assert!(STORE_BATCH <= STORE_QUEUE);
    // The engine takes its inputs in batches, and all its commits find room in the store's queue.
    assert!(STORE_BATCH <= MAX_ENGINE_INPUTS);
    // What waits for the engine of all runs takes less than 64 MiB: a root with its place takes 48 bytes.
    assert!(MAX_ENGINE_INPUTS * MAX_STREAMED_TOGETHER * 48 < 64 << 20);
    assert!(MAX_PENDING_COMMITS < STORE_QUEUE);
    // A checkpoint of the largest size is a program that a job may be about, in a manifest that is let in.
    assert!(MAX_CHECKPOINT_LAYERS as usize <= MAX_LAYERS);
    assert!(MAX_PROGRAM_IDS < MAX_BLOBS);
    assert!(MAX_TOKENIZER_BYTES <= MAX_BLOB_BYTES);
    assert!(MAX_SOURCES * (4 + MAX_SOURCE_NAME_BYTES + 8 + 32) <= MAX_MANIFEST_BYTES / 2);
    assert!(MAX_REQUEST_INPUTS <= STORE_QUEUE);
    assert!(MAX_TEXT_BYTES <= MAX_HTTP_BODY_BYTES);
};
