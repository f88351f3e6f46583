//! execve(2): everything goes.

use std::process::Command;

use crate::on;
use crate::probe::{load, store};
use crate::subject::{PRIVATE, SHARED, page, pattern};

on!(f04_exec_removes_everything, [kernel, paged, device], |s| {
    let object = s.object(&pattern(4 * page()));
    let (shared, private) =
        (s.map(4 * page(), SHARED, Some(&object)), s.map(4 * page(), PRIVATE, Some(&object)));
    store(shared, 200).unwrap();
    store(private, 201).unwrap();
    let path = object.path().display().to_string();
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let maps = run("cat", &["/proc/self/maps"]);
    assert!(maps.contains("[stack]") && !maps.contains(&path) && !maps.contains("omnimap:"), "{maps}");
    let descriptors = run("ls", &["-l", "/proc/self/fd"]);
    assert!(
        !descriptors.contains(&path)
            && !descriptors.contains("memfd")
            && !descriptors.contains("userfaultfd")
    );
    assert_eq!([load(shared), load(private)], [Ok(200), Ok(201)], "of the child alone");
});
