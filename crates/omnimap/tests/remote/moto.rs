//! A second opinion on the protocol: the S3 of moto (PyPI), a server that others wrote in another language.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use omnimap::{MapOptions, remote};
use omnimap_testkit::within;

use crate::server::{options, url};
use crate::{LIMIT, MIB, bytes};

struct Moto(Child, SocketAddr);

impl Moto {
    /// `OMNIMAP_MOTO` is the program: `cargo xtask long` installs it.
    fn start() -> Moto {
        let program = std::env::var_os("OMNIMAP_MOTO").expect("cargo xtask long says where moto_server is");
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &free.port().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begin = Instant::now();
        let mut connection = loop {
            match TcpStream::connect(free) {
                Ok(connection) => break connection,
                Err(error) => assert!(begin.elapsed() < LIMIT / 5, "moto does not listen: {error}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let head =
            "PUT /bucket HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        connection.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Moto(child, free)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "long: cargo xtask long"]
fn another_server_agrees() {
    within(LIMIT, || {
        let moto = Moto::start();
        let directory = tempfile::tempdir().unwrap();
        let mut map = MapOptions::new();
        map.remote(options(moto.1)).budget(8 * MIB).changes(directory.path());
        for length in [MIB + 5, 40 * MIB + 7] {
            let mut expected = bytes(length);
            let store = omnimap::store::MemoryStore::new("source", expected.clone());
            remote::put(&url("object"), &options(moto.1), std::sync::Arc::new(store), |_| ()).unwrap();
            assert!(map.open(url("object")).unwrap()[..] == expected, "what was put is there");
            let mut mapping = map.open_mut(url("object")).unwrap();
            for at in [0, 1000, length as usize - 1] {
                mapping[at] = !expected[at];
                expected[at] = !expected[at];
            }
            mapping.sync().unwrap();
            drop(mapping);
            let reading = map.open(url("object")).unwrap();
            assert!(reading[..] == expected, "what was published is there");
            let mut writing = map.open_mut(url("object")).unwrap();
            writing[5] = 1;
            let other = omnimap::store::MemoryStore::new("source", vec![7; length as usize]);
            remote::put(&url("object"), &options(moto.1), std::sync::Arc::new(other), |_| ()).unwrap();
            let mut into = [0; 10];
            let fresh = map.open(url("object")).unwrap();
            fresh.read_at(100, &mut into).unwrap();
            assert_eq!(into, [7; 10]);
            assert!(writing.sync().is_err(), "a conflict");
            assert!(map.open(url("object")).unwrap().iter().all(|byte| *byte == 7), "theirs stays");
            drop(writing);
            omnimap::WorkingCopy::discard(&url("object"), directory.path()).unwrap();
        }
    });
}
