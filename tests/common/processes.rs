//! Coordinators and workers as processes of their own, and a client.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::lockstep;

/// How long anything may take before a test calls it stuck. Not a measure: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// A running program whose lines can be waited for. Killed with -9 when it is dropped.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    /// Starts the command.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the program starts");
        let stdout = BufReader::new(child.stdout.take().expect("standard output is piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                println!("    {line}");
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The rest of the next line that contains `mark`.
    pub fn after(&self, mark: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|e| panic!("no line with {mark:?}: {e}"));
            if let Some((_, rest)) = line.split_once(mark) {
                return rest.to_owned();
            }
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// SIGTERM, and the exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        let kill = Command::new("kill").arg(self.child.id().to_string()).status().expect("kill runs");
        assert!(kill.success());
        self.child.wait().expect("it ends").code()
    }

    /// The exit code once it has ended by itself.
    pub fn ended(&mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A coordinator, and where it is.
pub struct Coordinator {
    pub process: Process,
    pub http: String,
    /// `KEY@HOST:PORT`.
    pub address: String,
}

impl Coordinator {
    /// On free ports.
    pub fn start(package: &Path, data: &Path, options: &[&str]) -> Self {
        Self::start_at(package, data, "127.0.0.1:0", "127.0.0.1:0", options)
    }

    /// On given ports, as after a crash.
    pub fn start_at(package: &Path, data: &Path, listen: &str, http: &str, options: &[&str]) -> Self {
        let mut command = lockstep();
        command.args(["coordinator", "--allow-any-worker", "--listen", listen, "--http", http, "--package"]);
        // Tests ask before their workers have come, and workers come late on a busy machine.
        command.env("LOCKSTEP_WORKER_WAIT_SECONDS", "600");
        let process = Process::start(command.arg(package).arg("--data-dir").arg(data).args(options));
        let http = process.after("clients: ").trim_end_matches("/v1").to_owned();
        let address = process.after("--coordinator ");
        Self { process, http, address }
    }

    /// Kills it with -9 and starts it again where it was.
    pub fn restart(mut self, package: &Path, data: &Path, options: &[&str]) -> Self {
        self.process.kill();
        let listen = self.address.split_once('@').expect("KEY@ADDR").1.to_owned();
        let http = self.http.trim_start_matches("http://").to_owned();
        Self::start_at(package, data, &listen, &http, options)
    }

    /// A worker of it.
    pub fn worker(&self, data: &Path) -> Process {
        self.worker_with(data, &[])
    }

    /// The same with more options.
    pub fn worker_with(&self, data: &Path, options: &[&str]) -> Process {
        let mut command = lockstep();
        command.args(["worker", "--threads", "1", "--coordinator", &self.address]);
        Process::start(command.arg("--data-dir").arg(data).args(options))
    }

    /// The connected workers.
    pub fn workers(&self) -> Vec<Value> {
        let workers: Value = serde_json::from_str(&self.get("/v1/workers").1).expect("JSON");
        workers["data"].as_array().expect("a list").clone()
    }

    /// POST of JSON; the events of the answer as they come.
    pub fn stream(&self, path: &str, body: &Value) -> impl Iterator<Item = Value> + use<> {
        let response = agent().post(format!("{}{path}", self.http)).send_json(body).expect("an answer");
        assert_eq!(response.status().as_u16(), 200);
        let lines = BufReader::new(response.into_body().into_reader()).lines().map_while(Result::ok);
        let data = lines.filter_map(|line| Some(line.strip_prefix("data: ")?.to_owned()));
        let events = data.take_while(|data| data != "[DONE]");
        events.map(|data| serde_json::from_str(&data).expect("JSON"))
    }

    /// GET; status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut response = agent().get(format!("{}{path}", self.http)).call().expect("an answer");
        (response.status().as_u16(), response.body_mut().read_to_string().expect("a text"))
    }

    /// POST of JSON; status and JSON.
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let mut response = agent().post(format!("{}{path}", self.http)).send_json(body).expect("an answer");
        (response.status().as_u16(), response.body_mut().read_json().expect("JSON"))
    }

    /// The receipt of a job, once it is done. `access` came with the answer to its submission.
    pub fn receipt(&self, job: &str, access: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, status) = self.get(&format!("/v1/jobs/{job}?access={access}"));
            let status: Value = serde_json::from_str(&status).expect("JSON");
            if status["status"] == "done" {
                let (code, receipt) = self.get(&format!("/v1/jobs/{job}/receipt?access={access}"));
                assert_eq!(code, 200, "{receipt}");
                return serde_json::from_str(&receipt).expect("JSON");
            }
            assert!(status["status"] != "failed" && Instant::now() < deadline, "job {job}: {status}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build().into()
}
