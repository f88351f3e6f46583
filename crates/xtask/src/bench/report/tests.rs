//! That all contenders read the same, whatever the workload.

use std::time::Duration;

use omnimap_testkit::{skip, within};

use super::contender::Contender;
use super::pages::PAGE_BYTES;
use super::workload::{READ, Scale};
use super::{write_packed, writes};

#[test]
fn contenders_read_the_same_bytes_in_every_workload() {
    let directory = tempfile::tempdir().unwrap();
    let (plain, packed) = (directory.path().join("plain"), directory.path().join("packed"));
    let file_bytes = 512 * PAGE_BYTES;
    writes::write_pages(&plain, file_bytes).unwrap();
    write_packed(&packed, file_bytes).unwrap();
    let budget_bytes = 128 * PAGE_BYTES;
    let scale = Scale { file_bytes, budget_bytes, runs: 1, operations: Some(600), quick: true };
    for workload in READ {
        let mut read = Vec::new();
        for task in workload.tasks(&scale, &plain, &packed) {
            if let Some(obstacle) = task.contender.obstacle(true) {
                skip(&obstacle);
                continue;
            }
            let contender = task.contender;
            match within(Duration::from_secs(60), move || task.run()) {
                Ok(measured) => read.push((contender, measured.checksum, measured.operations)),
                // Where the file system has no direct I/O.
                Err(error) if contender == Contender::Stream => skip(&format!("{error:#}")),
                Err(error) => panic!("{workload:?}, {contender:?}: {error:#}"),
            }
        }
        let (_, checksum, operations) = read[0];
        assert!(checksum != 0 && operations > 0, "{workload:?}");
        for (contender, sum, count) in read {
            assert_eq!((sum, count), (checksum, operations), "{workload:?}, {contender:?}");
        }
    }
}
