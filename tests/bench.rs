//! `lockstep bench`: that it runs, and that what it reports is what it says. Never how fast.

mod common;

use std::collections::BTreeSet;

use common::{lockstep, run, run_json, save_package, shipped_package, small_packages};
use lockstep_kernels::program::OP_NAMES;
use serde_json::{Value, json};

#[test]
fn a_liar_about_any_op_loses_its_dispute() {
    let temp = tempfile::tempdir().expect("a folder");
    let mut ops = BTreeSet::new();
    let decoder = save_package(temp.path(), lockstep_sim::models::decoder());
    // Few enough positions for the model with the shortest sequences; a decoder's word does not show every lie.
    let small = small_packages(temp.path()).into_iter().map(|package| (package, "6"));
    for (package, positions) in small.chain([(decoder, "70")]) {
        let mut command = lockstep();
        command
            .args([
                "bench",
                "dispute",
                "--json",
                "--threads",
                "1",
                "--rate-ms",
                "0",
                "--rate-samples",
                "2",
                "--positions",
                positions,
                "--package",
            ])
            .arg(&package);
        let out = run_json(&mut command);
        let disputes = out["disputes"].as_array().expect("a list");
        let rates = out["rates"].as_array().expect("a list");
        assert!(!rates.is_empty() && rates.iter().all(|rate| number(rate, "disputes_per_second") > 0.0), "{out}");
        assert_eq!(out["claimant_loses"], json!(disputes.len()), "{out}");
        for dispute in disputes {
            assert_eq!(
                (&dispute["verdict"], &dispute["kind"]),
                (&json!("claimant_loses"), &json!("proven")),
                "{dispute}"
            );
            let op = dispute["op"].as_str().expect("a name");
            // The referee came to the very op that was lied about.
            assert!(dispute["step"].as_str().is_some_and(|step| step.starts_with(&format!("{op}."))), "{dispute}");
            assert!(dispute["rounds"].as_u64().is_some_and(|rounds| (2..=6).contains(&rounds)), "{dispute}");
            assert!(dispute["referee_bytes"].as_u64().is_some_and(|bytes| bytes <= 128 << 10), "{dispute}");
            for seconds in ["referee_micros", "player_seconds", "layer_seconds", "prefill_seconds", "game_seconds"] {
                assert!(dispute[seconds].as_f64().is_some_and(|s| s > 0.0), "{seconds} of {dispute}");
            }
            ops.insert(op.to_owned());
        }
    }
    let expected = OP_NAMES.iter().copied().chain(["logprobs"]).map(str::to_owned);
    assert_eq!(ops, expected.collect(), "every op was lied about, and log-probabilities");
}

#[test]
fn a_report_of_disputes_has_rows_that_can_be_compared() {
    let temp = tempfile::tempdir().expect("a folder");
    let package = small_packages(temp.path()).remove(0);
    let mut command = lockstep();
    command.args(["bench", "dispute", "--json", "--threads", "2", "--rate-ms", "0", "--positions", "6", "--package"]);
    let output = run(command.arg(package));
    let report = temp.path().join("d.json");
    std::fs::write(&report, &output.stdout).expect("a file");
    let report = report.to_str().expect("a path");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let all: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let rates: Vec<&Value> = all.iter().filter(|row| row["referee_threads"].is_number()).collect();
    assert_eq!(rates.iter().map(|row| row["referee_threads"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(2)]);
    for rate in rates {
        assert_measured(rate, &["disputes_per_second", "disputes_per_core_second"]);
        assert_eq!(rate["disputes_per_second_samples"].as_array().map(Vec::len), Some(5), "{rate}");
        assert!(rate["disputes_per_second_spread"].is_number() && rate["conditions"].is_object(), "{rate}");
    }
    let compared = rows(&["--compare", report, report]);
    let said = |figure: &str| {
        let of_figure = compared.iter().filter(|row| row["figure"] == figure);
        of_figure.map(|row| row["verdict"].as_str().expect("a word").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(said("disputes_per_second").len(), 2);
    assert!(said("disputes_per_second").iter().all(|verdict| verdict == "same" || verdict == "unclear"));
    assert!(!said("layer_seconds").is_empty() && said("layer_seconds").iter().all(|v| v == "no spread known"));
}

#[test]
fn what_can_not_be_measured_says_so_before_anything_runs() {
    let temp = tempfile::tempdir().expect("a folder");
    let encoder = small_packages(temp.path()).remove(0);
    let (encoder, decoder) = (encoder.to_str().expect("a path"), shipped_package().to_str().expect("a path"));
    for (arguments, says) in [
        (&["embed", "--package", decoder][..], "generates text"),
        (&["commit", "--package", decoder], "generates text"),
        (&["model", "--package", encoder], "does not generate text"),
        (&["audit", "--package", encoder], "does not generate text"),
        (&["ceilings", "--memory-mib", "17592186044416"], "1..="),
        (&["ceilings", "--threads", "100000"], "1..="),
        (&["ops", "--threads", "1000000"], "1..="),
        (&["model", "--batch", "2000000"], "1..="),
        (&["ops", "--op", "matmul", "--shape", "1x999999x1"], "too many"),
        (&["ops", "--op", "add", "--plot", "/nonexistent/x.svg"], "cannot write /nonexistent/x.svg"),
    ] {
        let output = run(lockstep().arg("bench").args(arguments));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(says) && output.stdout.is_empty(), "{arguments:?}: {stderr}");
    }
}

/// Where writing always fails, as on a full disk.
#[cfg(target_os = "linux")]
#[test]
fn a_report_that_can_not_be_written_is_an_error() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("a device");
    let mut command = lockstep();
    command.args(["bench", "ceilings", "--memory-mib", "1", "--budget-ms", "0", "--threads", "1"]);
    let output = command.stdout(full).output().expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cannot write to standard output"), "{stderr}");
}

#[test]
fn what_no_dispute_can_be_about_is_refused() {
    let temp = tempfile::tempdir().expect("a folder");
    let package = small_packages(temp.path()).remove(0);
    let garbage = temp.path().join("garbage.lsp");
    std::fs::write(&garbage, b"not a package").expect("a file");
    for (package, positions, says) in
        [(&package, "301", "300"), (&garbage, "8", "garbage.lsp"), (&temp.path().join("none"), "8", "none")]
    {
        let mut command = lockstep();
        let output = run(command.args(["bench", "dispute", "--positions", positions, "--package"]).arg(package));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
    }
}

/// Rows of a report in JSON lines.
fn rows(arguments: &[&str]) -> Vec<Value> {
    let output = run(lockstep().arg("bench").args(arguments).arg("--json"));
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key} of {row}"))
}

/// What every row has, and what it has of these figures.
fn assert_measured(row: &Value, figures: &[&str]) {
    for figure in figures {
        assert!(number(row, figure) > 0.0 && number(row, figure).is_finite(), "{figure} of {row}");
    }
    assert!(row["environment"]["cores"].as_u64().is_some_and(|cores| cores > 0), "{row}");
    assert!(row["disturbed"].is_array() && row["labels"].is_array(), "{row}");
}

#[test]
fn ceilings_are_those_of_memory_bytes_and_hashes() {
    let rows = rows(&["ceilings", "--memory-mib", "1", "--budget-ms", "0", "--threads", "2"]);
    let mut names = BTreeSet::new();
    for row in &rows {
        let name = row["ceiling"].as_str().expect("a name");
        let rate = if name.starts_with("int8") { "tera_ops_per_second" } else { "gigabytes_per_second" };
        assert_measured(row, &[rate]);
        names.insert((name.to_owned(), row["threads"].as_u64().expect("threads")));
    }
    assert_eq!(names.len(), rows.len(), "each ceiling once for each number of threads");
    for name in ["memory read", "int8 portable", "blake3 1 KiB", "blake3 256 MiB"] {
        assert!([1, 2].iter().all(|threads| names.contains(&(name.to_owned(), *threads))), "{name} of {names:?}");
    }
}

#[test]
fn a_model_is_measured_at_every_depth_and_batch() {
    let package = shipped_package().to_str().expect("a path");
    let rows = rows(&[
        "model",
        "--package",
        package,
        "--prefill",
        "9",
        "--decode",
        "4",
        "--depth",
        "0,256",
        "--batch",
        "1,2",
        "--samples",
        "1",
        "--threads",
        "2",
    ]);
    let shapes: Vec<_> = rows.iter().map(|row| (row["depth"].as_u64(), row["batch"].as_u64())).collect();
    assert_eq!(shapes, [(0, 1), (0, 2), (256, 1), (256, 2)].map(|(depth, batch)| (Some(depth), Some(batch))));
    for row in &rows {
        assert_measured(row, &["prefill_tokens_per_second", "decode_tokens_per_second", "commit_share"]);
        assert!(number(row, "commit_share") < 1.0, "{row}");
        // Rates are those of the samples beside them.
        let sample = row["prefill_seconds"][0].as_f64().expect("a sample");
        let tokens = 9.0 * number(row, "batch");
        assert!((number(row, "prefill_tokens_per_second") * sample / tokens - 1.0).abs() < 1e-9, "{row}");
        assert_eq!(row["threads"], 2);
    }
    let output = run(lockstep().args(["bench", "model", "--package", package, "--depth", "100"]));
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_encoder_is_measured_at_every_length_and_batch_in_every_format() {
    let temp = tempfile::tempdir().expect("a folder");
    let package = small_packages(temp.path()).remove(0);
    let package = package.to_str().expect("a path");
    let command =
        ["embed", "--package", package, "--batch", "1,3", "--tokens", "5,8", "--passes", "2", "--threads", "1"];
    let json = rows(&command);
    assert_eq!(json.len(), 4);
    for row in &json {
        assert_measured(row, &["sequences_per_second", "tokens_per_second", "commit_share"]);
        let tokens = number(row, "sequences_per_second") * number(row, "tokens");
        assert!((tokens / number(row, "tokens_per_second") - 1.0).abs() < 1e-9, "{row}");
    }
    let text = |format: &[&str]| {
        let output = run(lockstep().arg("bench").args(command).args(format));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let csv = text(&["--csv"]);
    assert!(csv.starts_with("model,backend,threads,batch,tokens,sequences_per_second,"), "{csv}");
    assert_eq!(csv.lines().count(), 5);
    assert_eq!(text(&["--markdown"]).lines().filter(|line| line.starts_with('|')).count(), 6);
    assert!(text(&[]).contains("sequences/s"));
}

#[test]
fn two_reports_are_compared_row_by_row() {
    let temp = tempfile::tempdir().expect("a folder");
    let write = |name: &str, rate: f64| {
        let path = temp.path().join(name);
        let line = json!({
            "bench": "embed", "batch": 1, "labels": ["batch"], "disturbed": [],
            "sequences_per_second": rate, "sequences_per_second_spread": 0.02,
        });
        std::fs::write(&path, format!("{line}\n")).expect("a file");
        path.to_str().expect("a path").to_owned()
    };
    let (a, b) = (write("a.json", 100.0), write("b.json", 150.0));
    for (files, verdict, ratio) in [([&a, &b], "better", 1.5), ([&b, &a], "worse", 1.0 / 1.5), ([&a, &a], "same", 1.0)]
    {
        let rows = rows(&["--compare", files[0], files[1]]);
        assert_eq!((rows.len(), &rows[0]["verdict"]), (1, &json!(verdict)));
        // A comparison asks for nothing that a measurement needs.
        let beside = run(lockstep().args(["bench", "embed", "--compare", files[0], files[1]]));
        assert!(beside.status.success(), "{}", String::from_utf8_lossy(&beside.stderr));
        assert!((number(&rows[0], "second_to_first") - ratio).abs() < 1e-12);
    }
    let output = run(lockstep().args(["bench", "--compare", &a, "/nonexistent"]));
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn ops_are_measured_against_the_ceilings_and_drawn() {
    let temp = tempfile::tempdir().expect("a folder");
    let plot = temp.path().join("roofline.svg");
    let quick = ["--budget-ms", "0", "--memory-mib", "1", "--threads", "2"];
    let drawn = ["ops", "--op", "matmul", "--shape", "2x64x48", "--plot", plot.to_str().expect("a path")];
    let rows = rows(&[&drawn[..], &quick].concat());
    assert_eq!(rows.iter().map(|row| row["variant"].as_str().expect("a name")).collect::<Vec<_>>(), ["w8", "w16"]);
    for row in &rows {
        assert_measured(
            row,
            &["median_micros", "samples", "gigabytes_per_second", "tera_ops_per_second", "roof_share", "int8_share"],
        );
        assert_eq!(
            (&row["op"], &row["shape"], &row["operations_counted"]),
            (&json!("matmul"), &json!("2x64x48"), &json!(12_288.0))
        );
        let rate = number(row, "operations_counted") / (1e6 * number(row, "median_micros"));
        assert!((number(row, "tera_ops_per_second") / rate - 1.0).abs() < 1e-9, "{row}");
    }
    let svg = std::fs::read_to_string(&plot).expect("a plot");
    assert!(svg.contains("matmul w8 2x64x48") && svg.contains("matmul w16 2x64x48"), "{svg}");
    for wrong in [
        &["ops", "--op", "nothing"][..],
        &["ops", "--op", "add", "--shape", "3"],
        &["ops", "--op", "add", "--shape", "axb"],
    ] {
        let output = run(lockstep().arg("bench").args(wrong));
        assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_coordinator_takes_in_all_records_beside_its_idle_workers() {
    let rows = rows(&[
        "net",
        "--idle",
        "3",
        "--jobs",
        "2",
        "--streams",
        "2",
        "--layers",
        "2",
        "--points",
        "3",
        "--machine-idle",
        "0,4",
        "--machine-waiting",
        "5",
        "--machine-points",
        "2",
        "--samples",
        "1",
        "--threads",
        "2",
        "--watch-seconds",
        "1",
    ]);
    let shapes: Vec<_> =
        rows.iter().map(|row| [&row["through"], &row["idle"], &row["points"]].map(ToString::to_string)).collect();
    let expected = [
        ["\"machine\"", "0", "3"],
        ["\"machine\"", "4", "3"],
        ["\"machine\"", "0", "3"],
        ["\"machine\"", "0", "2"],
        ["\"assignment\"", "0", "1"],
        ["\"assignment, no model\"", "0", "1"],
        ["\"assignment\"", "4", "1"],
        ["\"assignment, no model\"", "4", "1"],
        ["\"coordinator\"", "3", "3"],
    ];
    assert_eq!(shapes, expected);
    for row in rows[..4].iter().chain(&rows[8..]) {
        assert_measured(row, &["records_per_second", "runs_per_second"]);
        // Two layers and a word at each point.
        let records = 3.0 * number(row, "points");
        assert!((number(row, "records_per_second") / number(row, "runs_per_second") - records).abs() < 1e-6, "{row}");
    }
    rows[4..8].iter().for_each(|row| assert_measured(row, &["assignment_micros"]));
    assert_measured(&rows[8], &["handshakes_per_second", "coordinator_nanos", "derived_records_per_second"]);
    // One that was silent for too long, on a starved machine, may be on its way back.
    assert!(number(&rows[8], "workers_held") <= 3.0, "{}", rows[8]);
}
