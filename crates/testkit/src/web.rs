//! A web server of one object that does what a test tells it, also what no server should.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// What a request meets instead of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misconduct {
    /// The connection is cut after half of the body.
    Reset,
    /// A status and no body; 503 comes with the code of a service that wants fewer requests.
    Status(u16),
    /// The connection ends in order, after half of the body.
    Truncated,
    /// A body that is shorter than the range, and says so in its length alone.
    WrongLength,
    /// Bytes of another place, which says so.
    WrongRange,
    /// Half of the body, and then nothing.
    Stalled,
    /// No answer at all.
    Silent,
    /// So much time, then the answer.
    Late(Duration),
    /// What was asked for is done at once, and the answer comes after so much time.
    Slow(Duration),
    /// The object is replaced just before.
    Replaced,
    /// What was asked for is done, and the connection ends without an answer.
    Lost,
}

/// What names the version of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validator {
    /// An ETag that stands for the bytes.
    Strong,
    /// One that stands for the meaning, and a date.
    Weak,
    /// Last-Modified alone.
    Date,
    /// Nothing.
    Nothing,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// GET, HEAD, …
    pub method: String,
    /// The path with the query.
    pub target: String,
    /// The bytes that were asked for.
    pub range: Option<Range<u64>>,
    /// The ETag that the object had to have.
    pub if_match: Option<String>,
    /// The generation that the object had to have (Google Cloud Storage).
    pub if_generation: Option<String>,
    /// Who asked.
    pub authorization: Option<String>,
    /// What is to be noted of the object, as header lines.
    pub metadata: String,
    /// What was sent.
    pub body: Vec<u8>,
}

/// Serves one object at all paths, on this machine.
pub struct WebServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// The server ends.
    ended: Condvar,
}

/// What some requests meet.
struct Rule {
    /// Those of this method alone.
    method: Option<&'static str>,
    misconduct: Misconduct,
    times: u32,
}

struct State {
    object: Option<Arc<Vec<u8>>>,
    version: u64,
    /// What was noted of the object when it was put, as header lines.
    metadata: String,
    validator: Validator,
    ranges: bool,
    conditions: bool,
    misconduct: Vec<Rule>,
    asked: Vec<Asked>,
    connections: Vec<TcpStream>,
    ends: bool,
}

impl WebServer {
    /// Begins to serve.
    pub fn start(bytes: Vec<u8>) -> WebServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = State {
            object: Some(Arc::new(bytes)),
            version: 1,
            metadata: String::new(),
            validator: Validator::Strong,
            ranges: true,
            conditions: true,
            misconduct: Vec::new(),
            asked: Vec::new(),
            connections: Vec::new(),
            ends: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), ended: Condvar::new() });
        let accepting = shared.clone();
        thread::spawn(move || {
            for connection in listener.incoming() {
                let Ok(connection) = connection else { continue };
                let mut state = accepting.lock();
                if state.ends {
                    return;
                }
                connection.set_nodelay(true).unwrap();
                state.connections.push(connection.try_clone().unwrap());
                let shared = accepting.clone();
                thread::spawn(move || while let Some(()) = serve(&shared, &connection) {});
            }
        });
        WebServer { address, shared }
    }

    /// Where the object is.
    pub fn url(&self) -> String {
        format!("http://{}/object", self.address)
    }

    /// The address that it listens at.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Another version, or none.
    pub fn replace(&self, bytes: Option<Vec<u8>>) {
        let mut state = self.shared.lock();
        state.put(bytes, String::new());
    }

    /// The object's bytes, if there is one.
    pub fn object(&self) -> Option<Vec<u8>> {
        self.shared.lock().object.as_deref().cloned()
    }

    /// How versions are named from now on.
    pub fn set_validator(&self, validator: Validator) {
        self.shared.lock().validator = validator;
    }

    /// Whether parts can be asked for.
    pub fn set_ranges(&self, yes: bool) {
        self.shared.lock().ranges = yes;
    }

    /// Whether conditions of requests are looked at.
    pub fn set_conditions(&self, yes: bool) {
        self.shared.lock().conditions = yes;
    }

    /// What the next `times` requests meet.
    pub fn misbehave(&self, misconduct: Misconduct, times: u32) {
        self.shared.lock().misconduct.push(Rule { method: None, misconduct, times });
    }

    /// What the next `times` requests of a method meet.
    pub fn misbehave_at(&self, method: &'static str, misconduct: Misconduct, times: u32) {
        self.shared.lock().misconduct.push(Rule { method: Some(method), misconduct, times });
    }

    /// From now on nothing is done wrong.
    pub fn behave(&self) {
        self.shared.lock().misconduct.clear();
    }

    /// All requests since this was asked last.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.shared.lock().asked)
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ends = true;
        for connection in &state.connections {
            let _ = connection.shutdown(Shutdown::Both);
        }
        drop(state);
        self.shared.ended.notify_all();
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn put(&mut self, bytes: Option<Vec<u8>>, metadata: String) {
        self.object = bytes.map(Arc::new);
        self.metadata = metadata;
        self.version += 1;
    }

    fn tag(&self) -> String {
        format!("\"version-{}\"", self.version)
    }

    /// What an answer says of the object's version.
    fn validator(&self) -> String {
        let (tag, metadata) = (self.tag(), &self.metadata);
        let date = format!("Last-Modified: Wed, 01 Jan 2025 00:00:{:02} GMT\r\n", self.version % 60);
        let generation = format!("x-goog-generation: {}\r\n", self.version);
        match self.validator {
            Validator::Strong => format!("ETag: {tag}\r\n{generation}{date}{metadata}"),
            Validator::Weak => format!("ETag: W/{tag}\r\n{date}"),
            Validator::Date => date,
            Validator::Nothing => String::new(),
        }
    }

    fn holds(&self, asked: &Asked) -> bool {
        let is_tag = asked.if_match.as_ref().is_none_or(|wanted| *wanted == self.tag());
        let is_generation =
            asked.if_generation.as_ref().is_none_or(|wanted| *wanted == self.version.to_string());
        !self.conditions || (is_tag && is_generation)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits, but not beyond the end of the server.
    fn sleep(&self, time: Duration) {
        let state = self.lock();
        drop(self.ended.wait_timeout_while(state, time, |state| !state.ends));
    }
}

/// Answers one request; nothing, if there will be no further one.
fn serve(shared: &Shared, connection: &TcpStream) -> Option<()> {
    let asked = read_request(connection)?;
    let misconduct = {
        let mut state = shared.lock();
        state.asked.push(asked.clone());
        let of_it = |rule: &&mut Rule| rule.method.is_none_or(|method| method == asked.method);
        let misconduct = state.misconduct.iter_mut().find(of_it).map(|rule| {
            rule.times -= 1;
            rule.misconduct
        });
        state.misconduct.retain(|rule| rule.times > 0);
        misconduct
    };
    match misconduct {
        Some(Misconduct::Silent) => {
            shared.sleep(Duration::from_secs(600));
            return None;
        }
        Some(Misconduct::Late(time)) => shared.sleep(time),
        Some(Misconduct::Replaced) => shared.lock().put(Some(b"replaced".to_vec()), String::new()),
        Some(Misconduct::Status(status)) => return refuse(connection, status, ""),
        _ => {}
    }
    let (object, validator, ranges, holds) = {
        let mut state = shared.lock();
        let holds = state.holds(&asked);
        if asked.method == "PUT" && holds {
            state.put(Some(asked.body), asked.metadata);
        }
        (state.object.clone(), state.validator(), state.ranges, holds)
    };
    match misconduct {
        Some(Misconduct::Slow(time)) => shared.sleep(time),
        Some(Misconduct::Lost) => {
            let _ = connection.shutdown(Shutdown::Both);
            return None;
        }
        _ => {}
    }
    let Some(object) = object else { return refuse(connection, 404, "") };
    if !holds {
        return refuse(connection, 412, &validator);
    }
    if asked.method == "PUT" {
        return send(
            connection,
            format!("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n{validator}\r\n").as_bytes(),
        );
    }
    let length = object.len() as u64;
    let Some(range) = asked.range.filter(|_| ranges) else {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{validator}\r\n");
        send(connection, head.as_bytes())?;
        return if asked.method == "HEAD" { Some(()) } else { send(connection, &object) };
    };
    if range.start >= length {
        return refuse(connection, 416, &validator);
    }
    let range = range.start..range.end.min(length);
    send_part(shared, connection, &object, range, &validator, misconduct)
}

/// Sends a part of the object, as well as it behaves.
fn send_part(
    shared: &Shared,
    connection: &TcpStream,
    object: &[u8],
    range: Range<u64>,
    validator: &str,
    misconduct: Option<Misconduct>,
) -> Option<()> {
    let length = object.len();
    let body = &object[range.start as usize..range.end as usize];
    let half = &body[..body.len() / 2];
    let (shown, body) = match misconduct {
        Some(Misconduct::WrongRange) => (range.start + 1..range.end + 1, body),
        Some(Misconduct::WrongLength) => (range, half),
        _ => (range, body),
    };
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {}-{}/{length}\r\n{validator}\r\n",
        body.len(),
        shown.start,
        shown.end - 1,
    );
    send(connection, head.as_bytes())?;
    match misconduct {
        Some(Misconduct::Reset) => {
            send(connection, half)?;
            // Closed with nothing to linger for, a socket answers with a reset (socket(7)); the last copy goes with the thread.
            let _ = rustix::net::sockopt::set_socket_linger(connection, Some(Duration::ZERO));
            let peer = connection.peer_addr().ok();
            shared.lock().connections.retain(|other| other.peer_addr().ok() != peer);
            None
        }
        Some(Misconduct::Truncated) => {
            send(connection, half)?;
            let _ = connection.shutdown(Shutdown::Write);
            None
        }
        Some(Misconduct::Stalled) => {
            send(connection, half)?;
            shared.sleep(Duration::from_secs(600));
            None
        }
        _ => send(connection, body),
    }
}

fn refuse(connection: &TcpStream, status: u16, validator: &str) -> Option<()> {
    let body = if status == 503 { "<Error><Code>SlowDown</Code></Error>" } else { "" };
    let length = body.len();
    let head = format!("HTTP/1.1 {status} Refused\r\nContent-Length: {length}\r\n{validator}\r\n{body}");
    send(connection, head.as_bytes())
}

fn send(mut connection: &TcpStream, bytes: &[u8]) -> Option<()> {
    connection.write_all(bytes).ok()
}

/// One request.
fn read_request(connection: &TcpStream) -> Option<Asked> {
    // Nobody sends a second request before the first is answered.
    let mut reader = BufReader::new(connection);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let mut asked = Asked {
        method: words.next()?.to_owned(),
        target: words.next()?.to_owned(),
        range: None,
        if_match: None,
        if_generation: None,
        authorization: None,
        metadata: String::new(),
        body: Vec::new(),
    };
    let mut body = 0;
    let mut continues = false;
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => asked.range = parse_range(value),
            "authorization" => asked.authorization = Some(value.to_owned()),
            "if-match" => asked.if_match = Some(value.to_owned()),
            "x-goog-if-generation-match" => asked.if_generation = Some(value.to_owned()),
            "content-length" => body = value.parse().ok()?,
            "expect" => continues = true,
            name if name.contains("-meta-") => asked.metadata += &format!("{name}: {value}\r\n"),
            _ => {}
        }
    }
    if continues {
        send(connection, b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    reader.take(body).read_to_end(&mut asked.body).ok()?;
    Some(asked)
}

fn parse_range(text: &str) -> Option<Range<u64>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    Some(first.parse().ok()?..last.parse::<u64>().ok()? + 1)
}
