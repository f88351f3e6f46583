//! A link to a server that is far away: each request waits, and all answers share a bandwidth.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Stands between clients and a server of this machine.
pub struct SlowLink {
    address: SocketAddr,
    link: Arc<Link>,
}

struct Link {
    server: SocketAddr,
    latency: Duration,
    bytes_per_second: u64,
    /// When the line is free again.
    free_at: Mutex<Instant>,
    requests: AtomicU64,
    bytes: AtomicU64,
    bytes_sent: AtomicU64,
    ends: AtomicBool,
    told: Mutex<Option<Told>>,
}

/// Whom a request's first line is told before it is passed on.
type Told = Box<dyn Fn(&str) + Send>;

impl SlowLink {
    /// Begins to pass on.
    pub fn start(server: SocketAddr, latency: Duration, bytes_per_second: u64) -> SlowLink {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let link = Arc::new(Link {
            server,
            latency,
            bytes_per_second,
            free_at: Mutex::new(Instant::now()),
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            bytes_sent: AtomicU64::new(0),
            ends: AtomicBool::new(false),
            told: Mutex::default(),
        });
        let accepting = link.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.ends.load(Ordering::Relaxed) {
                    return;
                }
                accepting.join(client);
            }
        });
        SlowLink { address, link }
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests and bytes of answers since this was asked last.
    pub fn counts(&self) -> (u64, u64) {
        (self.link.requests.swap(0, Ordering::Relaxed), self.link.bytes.swap(0, Ordering::Relaxed))
    }

    /// Tells each request's first line before it goes on its way.
    pub fn on_request(&self, told: impl Fn(&str) + Send + 'static) {
        *self.link.told.lock().unwrap() = Some(Box::new(told));
    }

    /// Bytes of requests since this was asked last.
    pub fn bytes_sent(&self) -> u64 {
        self.link.bytes_sent.swap(0, Ordering::Relaxed)
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        self.link.ends.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

impl Link {
    fn join(self: &Arc<Self>, client: TcpStream) {
        let Ok(server) = TcpStream::connect(self.server) else { return };
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
        }
        // What comes after an answer is a new request.
        let answered = Arc::new(AtomicBool::new(true));
        let (link, asked) = (self.clone(), answered.clone());
        let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        thread::spawn(move || {
            pass(&from, &to, |bytes| {
                link.bytes_sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                if asked.swap(false, Ordering::Relaxed) {
                    link.requests.fetch_add(1, Ordering::Relaxed);
                    if let Some(told) = &*link.told.lock().unwrap() {
                        told(String::from_utf8_lossy(bytes).lines().next().unwrap_or_default());
                    }
                    thread::sleep(link.latency);
                }
            });
        });
        let link = self.clone();
        thread::spawn(move || {
            pass(&server, &client, |bytes| {
                let count = bytes.len();
                answered.store(true, Ordering::Relaxed);
                link.bytes.fetch_add(count as u64, Ordering::Relaxed);
                link.take_line(count);
            });
        });
    }

    /// Waits until so many bytes have passed.
    fn take_line(&self, count: usize) {
        let time = Duration::from_secs_f64(count as f64 / self.bytes_per_second as f64);
        let until = {
            let mut free_at = self.free_at.lock().unwrap();
            *free_at = (*free_at).max(Instant::now()) + time;
            *free_at
        };
        thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

fn pass(mut from: &TcpStream, mut to: &TcpStream, before: impl Fn(&[u8])) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count) = from.read(&mut bytes) {
        if count == 0 {
            break;
        }
        before(&bytes[..count]);
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
