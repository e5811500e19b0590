//! Models named by their address on the hub, from a local server that behaves as the hub does: file lists by revision,
//! small files at once, large ones by a redirect to another host, ranges, tokens, and what can go wrong.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use sha2::Digest as _;

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
    /// The next large file has a wrong byte.
    damages: AtomicBool,
    /// Its list has names only, as some mirrors' do.
    is_bare: AtomicBool,
    /// What it calls the commit, and each file's hash, if not what they are.
    lies: Mutex<(Option<String>, Option<String>)>,
    seen: Mutex<Seen>,
    /// The ranges that were asked for.
    ranges: Mutex<Vec<String>>,
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
            damages: AtomicBool::new(false),
            is_bare: AtomicBool::new(false),
            lies: Mutex::default(),
            seen: Mutex::default(),
            ranges: Mutex::default(),
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
        let asked = &mut *self.ranges.lock().expect("no panic");
        asked.extend(range.clone().filter(|_| path.starts_with("/cdn/")));
        let at_repo = |prefix: &str| {
            path.strip_prefix(&format!("{prefix}{REPO}/"))
                .map(str::to_owned)
        };
        if let Some(revision) = at_repo("/api/models/") {
            let known = ["main", COMMIT].map(|r| format!("revision/{r}?blobs=true"));
            if !known.contains(&revision) {
                return reply(&mut stream, "404 Not Found", &[], b"{}");
            }
            return reply(&mut stream, "200 OK", &[], self.list().as_bytes());
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
        let Some(bytes) = self.files.get(&file) else {
            return reply(&mut stream, "404 Not Found", &[], b"");
        };
        let (hash, size) = (self.hash(&file), bytes.len().to_string());
        if is_large(&file) {
            // The same machine under another name, as another host.
            let elsewhere = format!("http://localhost:{}/cdn/{file}", self.port);
            let headers = [
                commit,
                ("x-linked-etag", format!("\"{hash}\"")),
                ("x-linked-size", size),
                ("location", elsewhere),
            ];
            return reply(&mut stream, "302 Found", &headers, b"");
        }
        let etag = ("etag", format!("W/\"{hash}\""));
        self.send(&mut stream, &file, range.as_deref(), &[commit, etag])
    }

    /// SHA-256 of a large file, Git's hash of a small one, or a lie.
    fn hash(&self, file: &str) -> String {
        if let Some(lie) = self.lies.lock().expect("no panic").1.clone() {
            return lie;
        }
        let bytes = &self.files[file];
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
        if is_large(file) {
            return hex(sha2::Sha256::digest(bytes).as_slice());
        }
        let head = format!("blob {}\0", bytes.len());
        hex(sha1::Sha1::digest([head.as_bytes(), bytes].concat()).as_slice())
    }

    fn list(&self) -> String {
        let describe = |(file, bytes): (&String, &Vec<u8>)| {
            if self.is_bare.load(Ordering::SeqCst) {
                return serde_json::json!({"rfilename": file});
            }
            let (hash, size) = (self.hash(file), bytes.len());
            let lfs = serde_json::json!({"sha256": hash, "size": size, "pointerSize": 134});
            match is_large(file) {
                true => serde_json::json!({"rfilename": file, "size": size, "lfs": lfs}),
                false => serde_json::json!({"rfilename": file, "size": size, "blobId": hash}),
            }
        };
        let siblings: Vec<_> = self.files.iter().map(describe).collect();
        let lie = self.lies.lock().expect("no panic").0.clone();
        let commit = lie.unwrap_or_else(|| COMMIT.to_owned());
        serde_json::json!({"sha": commit, "siblings": siblings}).to_string()
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
        let mut part = bytes[start.min(bytes.len())..end.min(bytes.len())].to_vec();
        if part.len() > 1000 && self.damages.swap(false, Ordering::SeqCst) {
            part[500] ^= 1;
        }
        let part = part.as_slice();
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

fn is_large(file: &str) -> bool {
    file.ends_with(".safetensors")
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
        ("XDG_CACHE_HOME", &cache),
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
    run(&world, &hub.endpoint(), &[], ENCODE)
        .expect(0)
        .says("hf://someone/tiny: downloading")
        .says(" MB, to ");
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

    // What broke off was not sent twice.
    let ranges = hub.ranges.lock().expect("no panic").clone();
    assert_eq!(ranges.len(), 1, "{ranges:?}");
    assert!(!ranges[0].starts_with("0-"), "{ranges:?}");

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
    let ran = run(&world, &hub.endpoint(), &[], ENCODE).expect(0);
    assert!(!(ran.stderr + &ran.stdout).contains("secret"));
    // It is for the hub, not for the servers that keep its large files.
    let seen = hub.seen.lock().expect("no panic");
    let with_token = |prefix: &str| {
        let mut there = seen.iter().filter(|(path, _)| path.starts_with(prefix));
        there.any(|(_, token)| token.as_deref() == Some("Bearer secret"))
    };
    assert!(with_token("/someone/tiny/resolve/") && !with_token("/cdn/"));
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

#[test]
fn what_is_damaged_on_its_way_or_in_the_cache_is_downloaded_again() {
    let hub = Hub::serve(None);
    hub.damages.store(true, Ordering::SeqCst);
    let world = world("hf://someone/tiny");
    let encode = || run(&world, &hub.endpoint(), &[], ENCODE);
    encode().expect(0);
    assert!(!hub.damages.load(Ordering::SeqCst), "nothing was damaged");
    let vae = "vae/diffusion_pytorch_model.safetensors";
    let place = format!("hub/models--someone--tiny/snapshots/{COMMIT}/{vae}");
    assert!(world.read(&place) == hub.files[vae]);

    let mut bytes = hub.files[vae].clone();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    world.write_bytes(&place, &bytes);
    let offline = [("HF_HUB_OFFLINE", "1")];
    run(&world, &hub.endpoint(), &offline, ENCODE)
        .expect(1)
        .says("another hash than its name says");
    encode().expect(0);
    assert!(world.read(&place) == hub.files[vae]);
    run(&world, &hub.endpoint(), &offline, ENCODE).expect(0);
}

#[test]
fn a_mirror_that_lists_names_only_is_asked_for_each_file() {
    let hub = Hub::serve(None);
    hub.is_bare.store(true, Ordering::SeqCst);
    let world = world("hf://someone/tiny");
    run(&world, &hub.endpoint(), &[], ENCODE).expect(0);
}

#[test]
fn what_a_server_calls_commit_or_hash_becomes_no_path() {
    let hub = Hub::serve(None);
    let says = |commit: Option<&str>, hash: Option<&str>, bare: bool, text: &str| {
        hub.is_bare.store(bare, Ordering::SeqCst);
        *hub.lies.lock().expect("no panic") = (commit.map(str::to_owned), hash.map(str::to_owned));
        let world = world("hf://someone/tiny");
        let before = listing(&world.path(""));
        run(&world, &hub.endpoint(), &[], ENCODE)
            .expect(1)
            .says(text);
        assert_eq!(listing(&world.path("")), before);
    };
    says(Some("../../../outside"), None, false, "expected a commit");
    says(Some("/etc"), None, false, "expected a commit");
    for bare in [false, true] {
        let text = "so it cannot be verified";
        says(None, Some("../../../outside"), bare, text);
        says(None, Some(""), bare, text);
    }
}
