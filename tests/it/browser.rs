//! A page in headless Chromium: what it does when it is clicked and keyed, and what it says on the console.
//!
//! A script is appended to a copy of the page, acts on it, and writes what it finds into an element; the policy of the page is
//! widened by that script's hash and by nothing else.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use sha2::{Digest as _, Sha256};

/// What a page became.
pub(crate) struct Seen {
    /// What the script found, as JSON.
    pub(crate) found: serde_json::Value,
    /// What the console said: errors, warnings, refused requests.
    pub(crate) console: Vec<String>,
}

/// Debian's Chromium, or the browser that PLUMB_CHROMIUM names; `None` where there is none.
pub(crate) fn chromium() -> Option<PathBuf> {
    let named = std::env::var_os("PLUMB_CHROMIUM").map(PathBuf::from);
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&paths).map(|folder| folder.join("chromium"));
    let browser = named.or_else(|| found.find(|path| path.is_file()));
    if browser.is_none() {
        println!("skipped: there is no `chromium`, and PLUMB_CHROMIUM names none");
    }
    browser
}

/// Opens a page that is `width` px wide and runs `script` on it: the body of a function that gives what was found.
pub(crate) fn look(browser: &Path, page: &Path, (width, dark): (u32, bool), script: &str) -> Seen {
    let script = format!(
        "addEventListener('securitypolicyviolation', (e) => console.error('refused ' + e.blockedURI));\
         let found; try {{ found = (() => {{ {script} }})(); }} catch (e) {{ found = {{ failed: String(e) }}; }}\
         const out = document.createElement('pre'); out.id = 'found'; out.textContent = encodeURIComponent(JSON.stringify(found));\
         document.body.append(out);"
    );
    let html = std::fs::read_to_string(page).expect("a page");
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(script.as_bytes()));
    let allowed = html.replacen("script-src ", &format!("script-src 'sha256-{hash}' "), 1);
    assert_ne!(allowed, html, "the page has no policy");
    let watched = allowed.replace("</body>", &format!("<script>{script}</script></body>"));
    let copy = page.with_extension("watched.html");
    std::fs::write(&copy, watched).expect("a copy");
    dumped(browser, &copy, (width, dark))
}

/// Opens a page in a frame that is `width` px wide, as a window has at least 500, on a dark screen: gives by how many px the page is
/// wider than that, and the color of its paper.
pub(crate) fn look_at_phone(browser: &Path, page: &Path, width: u32) -> Seen {
    let name = page.file_name().expect("a name").to_string_lossy();
    let script = "const frame = document.querySelector('iframe'); frame.onload = () => {\
         const root = frame.contentDocument.documentElement, out = document.createElement('pre'); out.id = 'found';\
         const paper = frame.contentWindow.getComputedStyle(frame.contentDocument.body).backgroundColor;\
         out.textContent = encodeURIComponent(JSON.stringify({ wide: root.scrollWidth - root.clientWidth, paper }));\
         document.body.append(out); };";
    let html = format!(
        "<body><iframe src=\"{name}\" width=\"{width}\"></iframe><script>{script}</script></body>"
    );
    let frame = page.with_extension("frame.html");
    std::fs::write(&frame, html).expect("a page");
    dumped(browser, &frame, (600, true))
}

fn dumped(browser: &Path, page: &Path, (width, dark): (u32, bool)) -> Seen {
    let profile = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(browser);
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .args([
            "--virtual-time-budget=3000",
            "--allow-file-access-from-files",
            "--enable-logging=stderr",
            "--log-level=0",
        ])
        .arg(format!("--window-size={width},900"))
        .arg(format!("--user-data-dir={}", profile.path().display()));
    if dark {
        command.arg("--blink-settings=preferredColorScheme=0");
    }
    let output = command
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("the browser runs");
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let text = dom.split("<pre id=\"found\">").nth(1);
    let text = text.and_then(|rest| rest.split("</pre>").next());
    let text = text.unwrap_or_else(|| panic!("the script did not run\n{log}"));
    Seen {
        found: serde_json::from_str(&decoded(text)).expect("JSON"),
        console: (log.lines().filter(|line| line.contains("CONSOLE")))
            .map(str::to_owned)
            .collect(),
    }
}

/// Undoes `encodeURIComponent`.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
        match byte {
            b'%' => {
                let (high, low) = (digit().expect("a digit"), digit().expect("a digit"));
                bytes.push((high * 16 + low) as u8);
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}
