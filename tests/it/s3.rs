//! An S3 server for tests, and what stands between it and the program: a proxy that does to requests what networks and servers do.
//!
//! The server is moto, of the Python peers. `PLUMB_S3_ENDPOINT` names another one that runs already and has a bucket `plumb-test`,
//! with its `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` in the environment.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use plumb::store::{Address, Remote};

/// Ends when its standard input does, and so with this process.
const MOTO: &str = "
import os, sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer('127.0.0.1', 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
os._exit(0)
";

/// Moto asks for a signature, and looks at none.
const SIGNED: &str = "Authorization: AWS4-HMAC-SHA256 Credential=AKIATEST/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=00\r\n";

pub(crate) const BUCKET: &str = "plumb-test";

/// A server that runs, with a prefix of its bucket that no other test has.
#[derive(Clone)]
pub(crate) struct S3 {
    /// `host:port`.
    pub(crate) server: String,
    pub(crate) prefix: String,
    /// Whether it takes requests with any signature.
    pub(crate) is_open: bool,
}

impl S3 {
    /// `None` where there is none to be had, with a word.
    pub(crate) fn start() -> Option<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("test-{}-{number}", std::process::id());
        if let Ok(endpoint) = std::env::var("PLUMB_S3_ENDPOINT") {
            let server = endpoint.trim_start_matches("http://").to_owned();
            let is_open = false;
            return Some(Self {
                server,
                prefix,
                is_open,
            });
        }
        static MOTO_PORT: OnceLock<Option<(u16, ChildStdin)>> = OnceLock::new();
        let Some((port, _)) = MOTO_PORT.get_or_init(start_moto) else {
            println!("skipped: PLUMB_PYTHON names no Python with moto and flask");
            return None;
        };
        let server = format!("127.0.0.1:{port}");
        let (status, _) = request(&server, "PUT", &format!("/{BUCKET}"), b"");
        assert!(matches!(status, 200 | 409), "{status}");
        Some(Self {
            server,
            prefix,
            is_open: true,
        })
    }

    pub(crate) fn address(&self) -> String {
        format!("s3://{BUCKET}/{}", self.prefix)
    }

    /// The environment of a program that speaks to it, or to a proxy before it.
    pub(crate) fn variables(&self, server: &str) -> BTreeMap<String, String> {
        let own = |name: &str, otherwise: &str| {
            let own = std::env::var(name).ok().filter(|_| !self.is_open);
            (name.to_owned(), own.unwrap_or_else(|| otherwise.to_owned()))
        };
        BTreeMap::from([
            own("AWS_ACCESS_KEY_ID", "AKIATEST"),
            own("AWS_SECRET_ACCESS_KEY", "hunter2hunter2"),
            ("AWS_ENDPOINT_URL".to_owned(), format!("http://{server}")),
        ])
    }

    pub(crate) fn remote(&self, server: &str) -> Remote {
        let address = Address::parse(&self.address()).expect("an address");
        Remote::new(address, &self.variables(server)).expect("a client")
    }

    /// Puts an object past the program.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        let path = format!("/{BUCKET}/{}/{name}", self.prefix);
        assert_eq!(request(&self.server, "PUT", &path, bytes).0, 200, "{name}");
    }

    pub(crate) fn get(&self, name: &str) -> Vec<u8> {
        let path = format!("/{BUCKET}/{}/{name}", self.prefix);
        let (status, bytes) = request(&self.server, "GET", &path, b"");
        assert_eq!(status, 200, "{name}");
        bytes
    }

    pub(crate) fn remove(&self, name: &str) {
        let path = format!("/{BUCKET}/{}/{name}", self.prefix);
        let (status, _) = request(&self.server, "DELETE", &path, b"");
        assert_eq!(status, 204, "{name}");
    }

    /// The names of its objects.
    pub(crate) fn names(&self) -> Vec<String> {
        let path = format!("/{BUCKET}?list-type=2&prefix={}/", self.prefix);
        let (status, bytes) = request(&self.server, "GET", &path, b"");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let is_whole = !text.contains("<IsTruncated>true");
        assert!(status == 200 && is_whole, "{status} {text}");
        let keys = text.split("<Key>").skip(1);
        let name = |key: &str| key.split("</Key>").next().unwrap_or_default().to_owned();
        keys.map(|key| name(key)[self.prefix.len() + 1..].to_owned())
            .collect()
    }
}

fn start_moto() -> Option<(u16, ChildStdin)> {
    let python = std::env::var_os("PLUMB_PYTHON")?;
    let mut child = Command::new(python)
        .args(["-c", MOTO])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let input = child.stdin.take()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take()?)
        .read_line(&mut line)
        .ok()?;
    Some((line.trim().parse().ok()?, input))
}

/// A request past the program; gives the status and the body. Moto lists with an error while another test removes an object of the
/// bucket, so errors of the server are asked again, as the program does.
fn request(server: &str, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {server}\r\n{SIGNED}Connection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let message = [head.as_bytes(), body].concat();
    let ask = || {
        let answer = forward(server, &message).expect("an answer");
        let (head, body) = split(&answer);
        (status(&head), body.to_vec())
    };
    let mut answers = std::iter::repeat_with(ask).take(10);
    let sound = answers.find(|(status, _)| *status < 500);
    sound.expect("an answer that is no error of the server")
}

fn status(head: &str) -> u16 {
    let word = head.split(' ').nth(1).unwrap_or_default();
    word.parse().unwrap_or(0)
}

fn forward(server: &str, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server)?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Head and body of a request or an answer.
fn split(message: &[u8]) -> (String, &[u8]) {
    let end = message.windows(4).position(|w| w == b"\r\n\r\n");
    let end = end.map_or(message.len(), |end| end + 4);
    (
        String::from_utf8_lossy(&message[..end]).into_owned(),
        &message[end..],
    )
}

/// What a proxy does to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Nothing is asked of the server: it says 503 SlowDown.
    SlowDown,
    /// Nothing is asked of the server: it says 403 AccessDenied.
    Denied,
    /// The server does it, and says 500.
    DoneAndError,
    /// The answer ends in the middle.
    Cut,
    /// A byte of the answer's body is another.
    Flip,
    /// The connection is closed before anything.
    Close,
    /// The answer takes its time.
    Late(u64),
    /// A list as it was when it was first asked for.
    Stale,
}

/// A request as a proxy sees it: method, path with its query, number.
type Decide = dyn Fn(&str, &str, u64) -> Fault + Send + Sync;

/// Listens before a server; gives its own `host:port`.
pub(crate) fn proxy(
    server: &str,
    decide: impl Fn(&str, &str, u64) -> Fault + Send + Sync + 'static,
) -> String {
    proxy_on("127.0.0.1", server, decide)
}

/// The same, on another address of this machine.
pub(crate) fn proxy_on(
    address: &str,
    server: &str,
    decide: impl Fn(&str, &str, u64) -> Fault + Send + Sync + 'static,
) -> String {
    let listener = TcpListener::bind((address, 0)).expect("a port");
    let own = listener.local_addr().expect("an address").to_string();
    let server = server.to_owned();
    let decide: Arc<Decide> = Arc::new(decide);
    let lists: Arc<Mutex<BTreeMap<String, Vec<u8>>>> = Arc::default();
    let count = Arc::new(AtomicU64::new(0));
    // Ends with the process; what it serves is over by then.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (server, decide) = (server.clone(), decide.clone());
            let (lists, number) = (lists.clone(), count.fetch_add(1, Ordering::Relaxed));
            std::thread::spawn(move || {
                // Who is killed in the middle hangs up.
                let _ = serve(stream, &server, &*decide, number, &lists);
            });
        }
    });
    own
}

fn serve(
    mut stream: TcpStream,
    server: &str,
    decide: &Decide,
    number: u64,
    lists: &Mutex<BTreeMap<String, Vec<u8>>>,
) -> std::io::Result<()> {
    let request = read_request(&mut stream)?;
    let head = split(&request).0;
    let mut words = head.split(' ');
    let (method, path) = (
        words.next().unwrap_or_default().to_owned(),
        words.next().unwrap_or_default().to_owned(),
    );
    let fault = decide(&method, &path, number);
    if fault == Fault::Close {
        return Ok(());
    }
    if fault == Fault::SlowDown {
        return stream.write_all(&refusal(503, "SlowDown"));
    }
    if fault == Fault::Denied {
        return stream.write_all(&refusal(403, "AccessDenied"));
    }
    let is_list = path.contains("list-type=2");
    let mut answer = match lists.lock().expect("the lists").get(&path) {
        Some(old) if is_list && fault == Fault::Stale => old.clone(),
        _ => Vec::new(),
    };
    if answer.is_empty() {
        answer = forward(server, &request)?;
        if is_list && status(&split(&answer).0) == 200 {
            let mut lists = lists.lock().expect("the lists");
            lists.entry(path).or_insert_with(|| answer.clone());
        }
    }
    match fault {
        Fault::DoneAndError => answer = refusal(500, "InternalError"),
        Fault::Cut => {
            let head = split(&answer).0.len();
            answer.truncate(head + (answer.len() - head) / 2);
        }
        Fault::Flip => {
            let head = split(&answer).0.len();
            let middle = head + (answer.len() - head) / 2;
            if let Some(byte) = answer.get_mut(middle) {
                *byte ^= 1;
            }
        }
        Fault::Late(ms) => std::thread::sleep(Duration::from_millis(ms)),
        _ => {}
    }
    stream.write_all(&answer)
}

/// One request, with `Connection: close`, so that its answer ends with the connection. One without a signature gets one, as if what it
/// asks for were public, or as if its signature were S3's and not Google's. Google's condition that there is no such object is named as S3's.
fn read_request(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length, mut is_signed) = (Vec::new(), 0, false);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        let of_google = lower.starts_with("authorization: bearer");
        is_signed |= lower.starts_with("authorization:") && !of_google;
        if lower.starts_with("x-goog-if-generation-match: 0") {
            line = "If-None-Match: *\r\n".to_owned();
        }
        if line == "\r\n" {
            if !is_signed {
                head.extend_from_slice(SIGNED.as_bytes());
            }
            head.extend_from_slice(b"Connection: close\r\n\r\n");
            break;
        }
        if !lower.starts_with("connection:") && !of_google {
            head.extend_from_slice(line.as_bytes());
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    head.extend_from_slice(&body);
    Ok(head)
}

fn refusal(status: u16, code: &str) -> Vec<u8> {
    let body = format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>");
    format!(
        "HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
