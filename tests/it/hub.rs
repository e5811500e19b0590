//! Models named by their address on the hub, from a local server that behaves as the hub does: file lists by revision,
//! small files at once, large ones by a redirect to another host, ranges, tokens, and what can go wrong.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::util::{Ran, listing, plumb_with};
use crate::world::{World, tiny_sd3};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const REPO: &str = "someone/tiny";

/// A request's path, and the token that came with it.
type Seen = Vec<(String, Option<String>)>;

struct Hub {
    files: BTreeMap<String, Vec<u8>>,
    port: u16,
    /// Wanted of everyone who asks for a file.
    token: Option<&'static str>,
    /// The next large file breaks off in the middle.
    breaks: AtomicBool,
    seen: Mutex<Seen>,
}

impl Hub {
    /// Serves the miniature, and files that nobody should ask for.
    fn serve(token: Option<&'static str>) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut files = BTreeMap::new();
        for file in listing(&tiny_sd3()) {
            let bytes = std::fs::read(tiny_sd3().join(&file)).expect("read");
            files.insert(file, bytes);
        }
        for extra in [
            "README.md",
            "sd3.safetensors",
            "text_encoder/model.fp16.safetensors",
            "text_encoder/pytorch_model.bin",
        ] {
            files.insert(extra.to_owned(), b"not wanted".to_vec());
        }
        let hub = Arc::new(Self {
            files,
            port: listener.local_addr().expect("an address").port(),
            token,
            breaks: AtomicBool::new(false),
            seen: Mutex::default(),
        });
        let served = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that went away is its own business.
                let _ = served.answer(stream);
            }
        });
        hub
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let (mut token, mut range) = (None, None);
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "authorization" => token = Some(value.to_owned()),
                "range" => range = value.strip_prefix("bytes=").map(str::to_owned),
                _ => {}
            }
        }
        let allowed = self
            .token
            .is_none_or(|wanted| token.as_deref() == Some(&format!("Bearer {wanted}")));
        self.seen
            .lock()
            .expect("no panic")
            .push((path.clone(), token));
        let at_repo = |prefix: &str| {
            path.strip_prefix(&format!("{prefix}{REPO}/"))
                .map(str::to_owned)
        };
        if let Some(revision) = at_repo("/api/models/") {
            let known = ["revision/main", &format!("revision/{COMMIT}")].contains(&&*revision);
            if !known {
                return reply(&mut stream, "404 Not Found", &[], b"{}");
            }
            let siblings: Vec<_> = self
                .files
                .keys()
                .map(|f| serde_json::json!({"rfilename": f}))
                .collect();
            let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
            return reply(&mut stream, "200 OK", &[], body.as_bytes());
        }
        if let Some(file) = path.strip_prefix("/cdn/") {
            return self.send(&mut stream, file, range.as_deref(), &[]);
        }
        let Some(file) = at_repo("/").and_then(|p| {
            let file = p.strip_prefix(&format!("resolve/{COMMIT}/"))?;
            Some(file.to_owned())
        }) else {
            return reply(&mut stream, "401 Unauthorized", &[], b"");
        };
        if !allowed {
            return reply(&mut stream, "403 Forbidden", &[], b"gated");
        }
        let commit = ("x-repo-commit", COMMIT.to_owned());
        if file.ends_with(".safetensors") {
            // The same machine under another name, as another host.
            let elsewhere = format!("http://localhost:{}/cdn/{file}", self.port);
            let etag = format!("\"{:064x}\"", file.len());
            let headers = [
                commit,
                ("x-linked-etag", etag + &file.replace('/', "-")),
                ("location", elsewhere),
            ];
            return reply(&mut stream, "302 Found", &headers, b"");
        }
        let etag = ("etag", format!("\"{}\"", file.replace('/', "-")));
        self.send(&mut stream, &file, range.as_deref(), &[commit, etag])
    }

    fn send(
        &self,
        stream: &mut TcpStream,
        file: &str,
        range: Option<&str>,
        headers: &[(&str, String)],
    ) -> std::io::Result<()> {
        let Some(bytes) = self.files.get(file) else {
            return reply(stream, "404 Not Found", &[], b"");
        };
        let (start, end) = range.and_then(|r| r.split_once('-')).unwrap_or(("0", ""));
        let start: usize = start.parse().unwrap_or(0);
        let end: usize = end.parse().map_or(bytes.len(), |end: usize| end + 1);
        let part = &bytes[start.min(bytes.len())..end.min(bytes.len())];
        let place = format!("bytes {start}-{}/{}", end.max(1) - 1, bytes.len());
        let mut headers = headers.to_vec();
        headers.push(("content-range", place));
        if part.len() > 1000 && self.breaks.swap(false, Ordering::SeqCst) {
            return reply_short(
                stream,
                "206 Partial Content",
                &headers,
                part,
                part.len() / 2,
            );
        }
        reply(stream, "206 Partial Content", &headers, part)
    }

    fn asked_for(&self, file: &str) -> bool {
        let seen = self.seen.lock().expect("no panic");
        seen.iter().any(|(path, _)| path.ends_with(file))
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

fn reply(
    stream: &mut TcpStream,
    status: &str,
    headers: &[(&str, String)],
    body: &[u8],
) -> std::io::Result<()> {
    reply_short(stream, status, headers, body, body.len())
}

/// Sends the first `sent` bytes of the body that it announces.
fn reply_short(
    stream: &mut TcpStream,
    status: &str,
    headers: &[(&str, String)],
    body: &[u8],
    sent: usize,
) -> std::io::Result<()> {
    let mut head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n",
        body.len()
    );
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(&body[..sent])
}

/// A world whose model is `address`, with a cache of its own.
fn world(address: &str) -> World {
    let world = World::new();
    world.edit(
        &format!("path = {:?}", tiny_sd3().display().to_string()),
        &format!("path = {address:?}"),
    );
    world
}

fn run(world: &World, hub: &str, variables: &[(&str, &str)], args: &[&str]) -> Ran {
    let cache = world.path("hub").display().to_string();
    let mut all = vec![
        ("HF_ENDPOINT", hub),
        ("HF_HUB_CACHE", &cache),
        ("HF_HOME", &cache),
        ("HF_TOKEN", ""),
        ("HF_HUB_OFFLINE", ""),
    ];
    all.extend(variables);
    plumb_with(&world.path(""), args, &all)
}

const ENCODE: &[&str] = &["encode", "exp.toml"];

#[test]
fn a_model_is_downloaded_once_and_then_used_from_the_cache() {
    let hub = Hub::serve(None);
    hub.breaks.store(true, Ordering::SeqCst);
    let world = world("hf://someone/tiny");
    run(&world, &hub.endpoint(), &[], ENCODE).expect(0);
    assert!(!hub.breaks.load(Ordering::SeqCst), "no download broke off");
    for file in ["README.md", "/sd3.safetensors", "fp16.safetensors", ".bin"] {
        assert!(!hub.asked_for(file), "{file} was asked for");
    }
    // The usual layout, byte for byte.
    let snapshot = format!("hub/models--someone--tiny/snapshots/{COMMIT}");
    let kept = world.read(&format!(
        "{snapshot}/transformer/diffusion_pytorch_model.safetensors"
    ));
    assert!(kept == hub.files["transformer/diffusion_pytorch_model.safetensors"]);
    let kept = world.read("hub/models--someone--tiny/refs/main");
    assert_eq!(kept, COMMIT.as_bytes());

    // Another run asks which files there are, and for none of them.
    hub.seen.lock().expect("no panic").clear();
    run(&world, &hub.endpoint(), &[], &["train", "exp.toml"]).expect(0);
    let asked = hub.seen.lock().expect("no panic").len();
    assert_eq!(asked, 1, "{:?}", hub.seen.lock().expect("no panic"));

    let nowhere = "http://127.0.0.1:1";
    run(&world, nowhere, &[("HF_HUB_OFFLINE", "1")], ENCODE).expect(0);
    run(&world, nowhere, &[], ENCODE)
        .expect(0)
        .says("what is in the cache is used");
    run(
        &world,
        nowhere,
        &[],
        &["model", "check", "hf://someone/tiny@main"],
    )
    .expect(0);
    // The model is the one of the folder.
    let local = World::new();
    local.copy_folder(&world.path("store"), "store");
    let report = local
        .run(&["encode", "exp.toml", "--json"])
        .expect(0)
        .json();
    assert_eq!(report["captions"][2]["encoded"], 0);
}

#[test]
fn a_file_of_a_repository_and_a_commit_can_be_named() {
    let hub = Hub::serve(None);
    let world = World::new();
    world.edit(
        "[recipe]",
        &format!("[model.files]\nvae = \"hf://someone/tiny/vae@{COMMIT}\"\n[recipe]"),
    );
    run(&world, &hub.endpoint(), &[], ENCODE).expect(0);
    assert!(hub.asked_for("vae/config.json"));
    assert!(!hub.asked_for("model_index.json"));
}

#[test]
fn a_gated_repository_wants_a_token() {
    let hub = Hub::serve(Some("secret"));
    let world = world("hf://someone/tiny");
    let says = |variables: &[(&str, &str)], text: &str| {
        run(&world, &hub.endpoint(), variables, ENCODE)
            .expect(1)
            .says("someone/tiny is gated, private or not there")
            .says("HF_TOKEN")
            .says(text);
    };
    says(&[], "(403)");
    says(&[("HF_TOKEN", "wrong")], "the one that is set may not");
    world.write("hub/token", "secret\n");
    run(&world, &hub.endpoint(), &[], ENCODE).expect(0);
}

#[test]
fn what_is_not_there_gets_one_line() {
    let hub = Hub::serve(None);
    let says = |address: &str, hub: &str, variables: &[(&str, &str)], text: &str| {
        let world = world(address);
        let ran = run(&world, hub, variables, ENCODE).says(text);
        assert_eq!(ran.stderr.trim_end().lines().count(), 1, "{}", ran.stderr);
        assert!([1, 2].contains(&ran.status), "{}", ran.stderr);
    };
    let here = hub.endpoint();
    says(
        "hf://someone/tiny@v9",
        &here,
        &[],
        "no repository someone/tiny with a revision `v9`",
    );
    says(
        "hf://someone/else",
        &here,
        &[],
        "gated, private or not there",
    );
    says(
        "hf://someone/tiny/none.safetensors",
        &here,
        &[],
        "hf://someone/tiny/none.safetensors",
    );
    says("hf://someone", &here, &[], "is not an address on the hub");
    says(
        "hf://someone/tiny",
        "http://127.0.0.1:1",
        &[],
        "cannot be reached",
    );
    says(
        "hf://someone/tiny",
        &here,
        &[("HF_HUB_OFFLINE", "true")],
        "HF_HUB_OFFLINE is set",
    );
}
