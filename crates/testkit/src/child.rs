//! Tests that end a process do it in a child: the test runs itself again.

use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const VARIABLE: &str = "OMNIMAP_TEST_CHILD";

/// In the test: runs the test named `name` again in a child and gives what became of it. In the child: `None`.
///
/// # Panics
/// If the child takes longer than `limit`; it is killed then.
pub fn in_child(name: &str, limit: Duration) -> Option<Output> {
    if is_child(name) {
        return None;
    }
    let program = std::env::current_exe().expect("the test's own program");
    let mut child = Command::new(program)
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(VARIABLE, name)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a child of the test");
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().expect("the child's status") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the child {name} was not done within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut output = Output { status, stdout: Vec::new(), stderr: Vec::new() };
    child.stdout.take().expect("piped").read_to_end(&mut output.stdout).expect("its output");
    child.stderr.take().expect("piped").read_to_end(&mut output.stderr).expect("its errors");
    Some(output)
}

/// Whether this process is the child that runs a test.
pub fn is_child(name: &str) -> bool {
    std::env::var(VARIABLE).as_deref() == Ok(name)
}
