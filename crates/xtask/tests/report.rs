//! `cargo xtask bench report` as a program: what it writes. Not how fast anything is.

use std::fs;
use std::process::Command;

use serde_json::Value;

#[test]
fn a_report_is_written_as_text_as_json_and_as_plots() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("output");
    let status = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["bench", "report", "--quick", "--bytes", "4194304", "--budget", "1048576"])
        .args(["--operations", "300", "--read-ahead-kib", "0", "--only", "uniform,strided,first-touches"])
        .arg("--directory")
        .arg(directory.path())
        .arg("--output")
        .arg(&output)
        .status()
        .unwrap();
    assert!(status.success());

    let text = fs::read_to_string(output.join("benchmarks.md")).unwrap();
    for part in ["## Targets", "## Uniform random, 1 thread", "## Strided scan", "benchmarks/latency.svg"] {
        assert!(text.contains(part), "{part} is not in the report:\n{text}");
    }
    let plot = fs::read_to_string(output.join("benchmarks/latency.svg")).unwrap();
    assert!(plot.starts_with("<svg") && plot.contains("buffer pool"));

    let json = fs::read_to_string(output.join("benchmarks.json")).unwrap();
    for written in [&text, &json] {
        assert!(!written.contains(&*directory.path().to_string_lossy()), "a path of this machine");
    }
    let json: Value = serde_json::from_str(&json).unwrap();
    let workloads = json["workloads"].as_array().unwrap();
    assert_eq!(workloads.len(), 3);
    assert!(!json["verdicts"].as_array().unwrap().is_empty());
    for workload in workloads {
        let contenders = workload["contenders"].as_array().unwrap();
        assert!(!contenders.is_empty(), "{workload}");
        for contender in contenders {
            let run = &contender["runs"][0];
            assert_eq!(run["checksum"], contenders[0]["runs"][0]["checksum"], "{workload}");
            assert!(run["operations"].as_u64().unwrap() > 0);
        }
    }
}
