//! Azure's and Google's storage.
//!
//! Azure is its own emulator, Azurite, by Node; `PLUMB_AZURITE` names its program. Of Google's emulators that can be had none knows the calls that
//! are made here, the XML API's with conditions. But for the names of two headers these are S3's, so moto answers them, behind a proxy
//! that knows both names: what of Google's servers is otherwise is not seen.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use plumb::monitor::Silent;
use plumb::store::{Address, GcOptions, Place, PushOptions, Remote, Store};

use crate::object_storage::{CAPTIONS, assert_sound, gc, push, store};
use crate::s3::{BUCKET, Fault, S3, proxy};
use crate::store_util::{add, entry, readable, scratch, spec};
use crate::util::plumb_with;
use crate::world::World;

/// Starts Azurite, makes a container, prints the port, and ends when its standard input does.
const AZURITE: &str = r#"
const { spawn } = require('child_process');
const [ program, container, account, key ] = process.argv.slice(1);
const server = spawn(process.execPath, [program, '--inMemoryPersistence', '--blobPort', '0', '--silent', '--skipApiVersionCheck', '--disableTelemetry']);
let said = '', port;
server.stdout.on('data', (some) => {
    said += some;
    const found = said.match(/listens on http:\/\/127\.0\.0\.1:(\d+)/);
    if (found && !port) make(port = found[1]);
});
function make(port) {
    const date = new Date().toUTCString(), version = '2021-08-06';
    const text = 'PUT' + '\n'.repeat(12) + `x-ms-date:${date}\nx-ms-version:${version}\n/${account}/${account}/${container}\nrestype:container`;
    const sign = require('crypto').createHmac('sha256', Buffer.from(key, 'base64')).update(text).digest('base64');
    const headers = { 'x-ms-date': date, 'x-ms-version': version, 'Content-Length': 0, Authorization: `SharedKey ${account}:${sign}` };
    require('http').request({ host: '127.0.0.1', port, method: 'PUT', path: `/${account}/${container}?restype=container`, headers },
        (answer) => console.log(answer.statusCode === 201 ? port : `no container: ${answer.statusCode}`)).end();
}
process.stdin.on('data', () => {}).on('end', () => { server.kill('SIGKILL'); process.exit(); });
"#;
/// Azurite's own, which everybody knows.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Storage, and how a program finds it.
struct Cloud {
    /// Up to the prefix.
    bucket: String,
    prefix: String,
    variables: BTreeMap<String, String>,
}

fn variables<const N: usize>(pairs: [(&str, String); N]) -> BTreeMap<String, String> {
    pairs.map(|(name, value)| (name.to_owned(), value)).into()
}

fn azure() -> Option<Cloud> {
    static PORT: OnceLock<Option<(u16, ChildStdin)>> = OnceLock::new();
    let start = || {
        let program = std::env::var_os("PLUMB_AZURITE")?;
        let mut child = Command::new("node")
            .args(["-e", AZURITE])
            .arg(program)
            .args([BUCKET, ACCOUNT, KEY])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let input = child.stdin.take()?;
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take()?);
        output.read_line(&mut line).ok()?;
        let port = line.trim().parse();
        Some((port.unwrap_or_else(|_| panic!("Azurite: {line}")), input))
    };
    let Some((port, _)) = PORT.get_or_init(start) else {
        println!("skipped: PLUMB_AZURITE names no Azurite, or there is no node");
        return None;
    };
    Some(Cloud {
        bucket: "az://".to_owned(),
        prefix: "test/of=it+".to_owned(),
        variables: variables([
            ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT.to_owned()),
            ("AZURE_STORAGE_ACCOUNT_KEY", KEY.to_owned()),
            (
                "AZURE_STORAGE_ENDPOINT",
                format!("http://127.0.0.1:{port}/{ACCOUNT}"),
            ),
        ]),
    })
}

fn google() -> Option<Cloud> {
    let s3 = S3::start().filter(|s3| s3.is_open)?;
    let server = proxy(&s3.server, |_, _, _| Fault::None);
    let key = r#"{"private_key": "hunter2hunter2", "private_key_id": "1", "client_email": "a@b", "disable_oauth": true}"#;
    Some(Cloud {
        bucket: "gs://".to_owned(),
        prefix: s3.prefix,
        variables: variables([
            ("GOOGLE_BASE_URL", format!("http://{server}")),
            ("GOOGLE_SERVICE_ACCOUNT_KEY", key.to_owned()),
        ]),
    })
}

impl Cloud {
    fn address(&self, of: &str) -> String {
        format!("{}{BUCKET}/{}/{of}", self.bucket, self.prefix)
    }

    /// Runs the program with its variables, or others in their place, as a machine that has its own caches.
    fn run(
        &self,
        world: &World,
        machine: &str,
        args: &[&str],
        others: &[(&str, &str)],
    ) -> crate::util::Ran {
        let caches = world.path(machine).display().to_string();
        let own = self.variables.iter();
        let mut all: Vec<(&str, &str)> = own.map(|(n, v)| (n.as_str(), v.as_str())).collect();
        all.push(("XDG_CACHE_HOME", &caches));
        all.extend(others);
        plumb_with(&world.path(""), args, &all)
    }

    /// There and back, by a second writer, and without what no run uses.
    fn store_goes_and_comes(&self) {
        let dir = scratch();
        let own = store(&dir.path().join("own"));
        let address = Address::parse(&self.address("store")).expect("an address");
        let remote = Remote::new(address, &self.variables).expect("a client");
        assert!(remote.find().is_err_and(|e| e.is_no_store()));
        for compress in [true, false] {
            let options = PushOptions {
                compress,
                ..PushOptions::default()
            };
            let pushed = push(&remote, &own, options);
            let all = if compress { (6, 6, 2) } else { (0, 0, 0) };
            assert_eq!((pushed.packs, pushed.index_parts, pushed.runs), all);
        }
        assert_sound(&remote);
        let copy = dir.path().join("copy");
        let pulled = Store::open_or_create(&copy).expect("a store");
        let report = remote.pull(&pulled, &Silent).expect("pulled");
        assert_eq!((report.packs, report.problems), (6, vec![]));
        let checked = Store::check(&copy, true, &Silent).expect("checked");
        assert_eq!((checked.problems, checked.entries), (vec![], 12));

        let open = |name: &str| {
            let place = Place::remote(remote.clone(), dir.path().join(name), false);
            Store::open_at(&place).expect("a store")
        };
        let (one, two) = (open("one"), open("two"));
        assert_eq!(readable(&one, 1, &CAPTIONS), CAPTIONS);
        for (writer, caption) in [(&one, "of one"), (&two, "of two")] {
            add(writer, 1, &[caption]).expect("added");
            let shared = writer.share(&Silent).expect("shared").expect("a report");
            assert_eq!((shared.packs, shared.problems), (1, vec![]));
        }
        let both = ["of one", "of two"];
        assert_eq!(readable(&open("three"), 1, &both), both);
        assert_sound(&remote);
        let options = GcOptions {
            now: SystemTime::now() + Duration::from_secs(3600),
            grace: Duration::ZERO,
            dry_run: false,
            without_runs: false,
        };
        let done = gc(&remote, &options).expect("collected");
        assert_eq!((done.packs_removed, done.entries_kept), (2, 12));
        let reader = open("four").reader().expect("a reader");
        let (id, _) = spec(1);
        assert!(!reader.contains(&id, &entry(&id, "of one").entry));
        assert_sound(&remote);
    }

    /// By the program: one machine encodes, another trains.
    fn is_trained_from(&self) {
        let world = World::new();
        let address = self.address("world");
        world.edit("path = \"store\"", &format!("path = \"{address}\""));
        let run = |machine: &str, args: &[&str]| self.run(&world, machine, args, &[]);
        run("one", &["encode", "exp.toml"]).expect(0).says("pushed");
        run("two", &["train", "exp.toml"]).expect(0);
        run("two", &["store", "check", &address, "--read-data"])
            .expect(0)
            .says("sound");
        run("two", &["store", "gc", &address, "--grace-hours", "0"])
            .expect(0)
            .says("0 entries removed");
    }

    /// What is wrong is told in one line, without a secret.
    fn refuses(&self, address: &str, others: &[(&str, &str)], says: &str) {
        let world = World::new();
        let begun = std::time::Instant::now();
        let ran = self.run(&world, "one", &["store", "check", address], others);
        let ran = ran.expect(1).says(says);
        let lines = ran.stderr.lines().count();
        assert!(lines == 1 && ran.stderr.len() < 600, "{}", ran.stderr);
        let secrets = [KEY, "hunter2"];
        assert!(
            !secrets.iter().any(|s| ran.stderr.contains(s)),
            "{}",
            ran.stderr
        );
        assert!(begun.elapsed() < Duration::from_secs(60), "{says}");
    }
}

#[test]
fn stores_on_azure() {
    let Some(cloud) = azure() else { return };
    cloud.store_goes_and_comes();
    cloud.is_trained_from();
    let here = cloud.address("world");
    cloud.refuses("az://no-such-container/x", &[], "make the container first");
    let wrong = "d3Jvbmcga2V5IHdyb25nIGtleSB3cm9uZyBrZXkgd3Jvbmcga2V5IHdyb25nIGtleSE=";
    let key = "AZURE_STORAGE_ACCOUNT_KEY";
    cloud.refuses(&here, &[(key, wrong)], key);
    cloud.refuses(&here, &[(key, "no base64")], "cannot be opened");
    cloud.refuses(
        &here,
        &[(key, "")],
        "no credentials: set AZURE_STORAGE_ACCOUNT_KEY",
    );
    let account = "AZURE_STORAGE_ACCOUNT_NAME";
    cloud.refuses(&here, &[(account, "")], "set AZURE_STORAGE_ACCOUNT_NAME");
    cloud.refuses(&here, &[(account, "somebody")], account);
}

#[test]
fn stores_on_googles_storage() {
    let Some(cloud) = google() else { return };
    cloud.store_goes_and_comes();
    cloud.is_trained_from();
    let here = cloud.address("world");
    cloud.refuses("gs://no-such-bucket/x", &[], "make the bucket first");
    let key = "GOOGLE_SERVICE_ACCOUNT_KEY";
    cloud.refuses(&here, &[(key, "hunter2hunter2")], "cannot be opened");
    let none = [(key, ""), ("HOME", "/nowhere")];
    cloud.refuses(&here, &none, "no credentials: set GOOGLE_SERVICE_ACCOUNT");
    let file = [(key, ""), ("GOOGLE_SERVICE_ACCOUNT", "/nowhere/key.json")];
    cloud.refuses(&here, &file, "/nowhere/key.json");
}
