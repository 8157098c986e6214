//! How a program ended: its code or signal, its output, what it took.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

/// The end of a program's run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The command line, for messages.
    pub command: String,
    /// Exit code, when it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// It ran into the time limit and was killed.
    pub timed_out: bool,
    /// All it wrote on stdout.
    pub stdout: Vec<u8>,
    /// All it wrote on stderr.
    pub stderr: Vec<u8>,
    /// Time from start to end.
    pub wall: Duration,
    /// Processor time in the program.
    pub user_time: Duration,
    /// Processor time in the kernel on its behalf. Kernel workers of io_uring count, as they are its threads.
    pub system_time: Duration,
    /// The most memory it held, in bytes; see [`crate::process`] for how it is taken.
    pub peak_rss_bytes: u64,
}

impl Outcome {
    /// stdout as text.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// stderr as text.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Processor time in the program and in the kernel.
    pub fn cpu_time(&self) -> Duration {
        self.user_time + self.system_time
    }

    /// stdout as JSON lines. Panics at a line that is none; a last line without its end is left out where the
    /// program was killed, as it may have been cut.
    pub fn json_lines(&self) -> Vec<Value> {
        self.parse(&self.stdout)
    }

    /// stderr as JSON lines, for runs whose stdout carries data.
    pub fn json_lines_stderr(&self) -> Vec<Value> {
        self.parse(&self.stderr)
    }

    /// The events on stdout of this type.
    pub fn events(&self, kind: &str) -> Vec<Value> {
        self.json_lines().into_iter().filter(|event| event["type"] == kind).collect()
    }

    /// The `result` event, which has to be the last line on stdout and the only one of its type.
    pub fn result(&self) -> Value {
        let lines = self.json_lines();
        let count = lines.iter().filter(|event| event["type"] == "result").count();
        match lines.last() {
            Some(last) if last["type"] == "result" && count == 1 => last.clone(),
            _ => panic!("not one result event at the end of stdout, but {count} anywhere\n{self}"),
        }
    }

    /// Panics, with all that is known, unless the program ended with this code.
    #[track_caller]
    pub fn assert_code(&self, code: i32) -> &Outcome {
        assert!(self.code == Some(code) && !self.timed_out, "exit code {code} expected\n{self}");
        self
    }

    /// Panics unless stderr holds each of these texts.
    #[track_caller]
    pub fn assert_stderr(&self, texts: &[&str]) -> &Outcome {
        let stderr = self.stderr_text();
        for text in texts {
            assert!(stderr.contains(text), "\"{text}\" expected on stderr\n{self}");
        }
        self
    }

    fn parse(&self, output: &[u8]) -> Vec<Value> {
        let mut text = String::from_utf8_lossy(output).into_owned();
        if self.signal.is_some() {
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            text.truncate(whole);
        }
        let parse = |line: &str| match serde_json::from_str(line) {
            Ok(value) => value,
            Err(error) => panic!("no JSON: {line}: {error}\n{self}"),
        };
        text.lines().filter(|line| !line.is_empty()).map(parse).collect()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ended = match (self.timed_out, self.code, self.signal) {
            (true, ..) => "ran into the time limit".to_owned(),
            (_, Some(code), _) => format!("exit code {code}"),
            (_, _, Some(signal)) => format!("signal {signal}"),
            _ => "ended in an unknown way".to_owned(),
        };
        writeln!(formatter, "{}: {ended} after {:?}", self.command, self.wall)?;
        writeln!(formatter, "--- stdout\n{}--- stderr\n{}---", tail(&self.stdout), tail(&self.stderr))
    }
}

/// The end of an output, where the reason of a failure stands; data on stdout would flood the report.
fn tail(output: &[u8]) -> String {
    const SHOWN: usize = 4096;
    let start = output.len().saturating_sub(SHOWN);
    let cut = if start > 0 { format!("… {start} bytes before …\n") } else { String::new() };
    cut + &String::from_utf8_lossy(&output[start..])
}
