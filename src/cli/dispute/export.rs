//! `lockstep dispute export`

use std::path::PathBuf;

use clap::Args;
use lockstep_protocol::limits::MAX_DISPUTE_FILE_BYTES;

use super::Subject;
use crate::cli::files;
use crate::exit::Outcome;

/// Arguments of `lockstep dispute export`.
#[derive(Args)]
#[command(
    after_help = "The file holds the model's manifest and the signed transcript: all that `lockstep judge` needs. Its \
    openings may show a few of the job's numbers, and for a dispute over the first layer one of its tokens."
)]
pub struct ExportArgs {
    #[command(flatten)]
    subject: Subject,
    /// Save it here.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Fetches the file, and saves it as it came: also one that does not hold is evidence.
pub fn run(args: &ExportArgs) -> Outcome {
    let Subject { dispute, address, access_token } = &args.subject;
    let path = format!("disputes/{dispute}/file");
    let bytes = address.get_bytes(&path, access_token.as_ref(), MAX_DISPUTE_FILE_BYTES)?;
    files::write(&args.out, &bytes)?;
    println!("{} bytes in {}; check it with `lockstep judge`", bytes.len(), args.out.display());
    Ok(())
}
