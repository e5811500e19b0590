//! Two hosts at one store on object storage: each a network namespace with a cable of its own, which is pulled out in the middle.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use plumb::store::{Place, Store};

use crate::object_storage::check;
use crate::s3::{Fault, S3, proxy_on};
use crate::world::World;

/// A network namespace, and the addresses of the two ends of its cable.
struct Host {
    name: String,
    cable: String,
    outside: String,
}

impl Drop for Host {
    fn drop(&mut self) {
        // With it goes the cable.
        ip(&["netns", "del", &self.name]);
    }
}

fn ip(args: &[&str]) -> bool {
    let ran = Command::new("ip").args(args).stderr(Stdio::null()).status();
    ran.is_ok_and(|status| status.success())
}

impl Host {
    /// `None` where this machine lets nobody make one.
    fn new(number: u32) -> Option<Self> {
        let id = std::process::id();
        let name = format!("plumb{id}-{number}");
        let (cable, inner) = (format!("pl{id}-{number}"), format!("pl{id}-{number}i"));
        let address = |end: u32| format!("10.213.{}.{}", id % 250, 4 * number + end);
        if !ip(&["netns", "add", &name]) {
            return None;
        }
        let host = Self {
            name,
            cable,
            outside: address(1),
        };
        let (name, cable) = (host.name.as_str(), host.cable.as_str());
        let all = ip(&[
            "link", "add", cable, "type", "veth", "peer", "name", &inner, "netns", name,
        ]) && ip(&["addr", "add", &format!("{}/30", host.outside), "dev", cable])
            && ip(&["link", "set", cable, "up"])
            && ip(&[
                "-n",
                name,
                "addr",
                "add",
                &format!("{}/30", address(2)),
                "dev",
                &inner,
            ])
            && ip(&["-n", name, "link", "set", &inner, "up"]);
        all.then_some(host)
    }

    /// Starts the program there.
    fn plumb(&self, world: &World, s3: &S3, port: &str, args: &[&str]) -> Child {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name, env!("CARGO_BIN_EXE_plumb")])
            .args(args)
            .current_dir(world.path("."))
            .envs(s3.variables(&format!("{}:{port}", self.outside)))
            .env("XDG_CACHE_HOME", world.path(&self.name))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command.spawn().expect("started")
    }
}

#[test]
fn two_hosts_write_to_one_store_and_one_loses_its_network_for_a_while() {
    let Some(s3) = S3::start().filter(|s3| s3.is_open) else {
        return;
    };
    let (Some(one), Some(two)) = (Host::new(0), Host::new(1)) else {
        println!(
            "skipped: this machine makes no network namespaces with cables (`ip netns`, as root)"
        );
        return;
    };
    let world = World::new();
    let path = format!("path = \"{}\"", s3.address());
    world.edit("path = \"store\"", &path);
    // Most are asked of both.
    for (file, first) in [("one.txt", 0), ("two.txt", 100)] {
        let captions: Vec<String> = (first..first + 500)
            .map(|n| format!("circle {n}"))
            .collect();
        world.write(file, &captions.join("\n"));
    }
    let server = proxy_on("0.0.0.0", &s3.server, |_, _, _| Fault::Late(30));
    let (_, port) = server.rsplit_once(':').expect("a port");
    let start = |host: &Host, file: &str| {
        host.plumb(
            &world,
            &s3,
            port,
            &["encode", "exp.toml", "--captions", file],
        )
    };
    let (first, mut second) = (start(&one, "one.txt"), start(&two, "two.txt"));
    // From the first that comes until it is in the middle of pushing.
    let begun = Instant::now();
    while !s3.names().iter().any(|name| name.starts_with("packs/")) {
        assert!(begun.elapsed() < Duration::from_secs(120), "nothing came");
        std::thread::sleep(Duration::from_millis(10));
    }
    let was_running = second.try_wait().expect("a status").is_none();
    assert!(ip(&["link", "set", &two.cable, "down"]));
    std::thread::sleep(Duration::from_secs(3));
    assert!(ip(&["link", "set", &two.cable, "up"]));
    for child in [first, second] {
        let output = child.wait_with_output().expect("ended");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
    println!(
        "the second was {}running",
        if was_running { "" } else { "no more " }
    );
    let remote = s3.remote(&s3.server);
    let report = check(&remote).expect("checked");
    assert_eq!(report.problems, []);
    let place = Place::remote(remote, world.path("third"), false);
    let reader = Store::open_at(&place)
        .expect("a store")
        .reader()
        .expect("a reader");
    let specs = reader.specs().expect("specs");
    let found: Vec<usize> = specs
        .iter()
        .map(|spec| reader.entries(spec).len())
        .collect();
    assert_eq!(found, [600; 3]);
}
