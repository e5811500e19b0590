//! The rules of the house, held against the sources: layers, budgets, one version of what must be one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const MAX_FILE_LINES: usize = 500;
const MAX_FN_LINES: usize = 80;

/// Module, and what of ours it may use. `src/lib.rs` shows the same table to readers.
const LAYERS: &[(&str, &[&str])] = &[
    ("digest", &[]),
    // Every module reads files within bounds and shows foreign text: see `may_use`.
    ("files", &[]),
    ("monitor", &[]),
    ("rng", &[]),
    ("shown", &[]),
    ("store", &["digest", "monitor"]),
    ("device", &[]),
    ("nn", &["device", "digest", "rng"]),
    ("autograd", &["nn"]),
    ("optim", &["nn"]),
    ("diffusion", &[]),
    ("ranks", &["device", "digest", "monitor", "nn"]),
    ("lora", &["autograd", "digest", "nn", "rng"]),
    ("text", &["digest", "monitor", "nn"]),
    ("recipe", &["digest", "text"]),
    ("vae", &["autograd", "digest", "nn", "recipe"]),
    (
        "models",
        &[
            "autograd",
            "diffusion",
            "digest",
            "lora",
            "nn",
            "recipe",
            "text",
            "vae",
        ],
    ),
    (
        "experiment",
        &["diffusion", "digest", "models", "optim", "recipe", "store"],
    ),
    (
        "base_model",
        &[
            "device",
            "digest",
            "experiment",
            "models",
            "monitor",
            "nn",
            "recipe",
            "text",
            "vae",
        ],
    ),
    (
        "dataset",
        &["digest", "experiment", "monitor", "recipe", "rng"],
    ),
    (
        "foreign",
        &[
            "dataset",
            "diffusion",
            "digest",
            "experiment",
            "models",
            "monitor",
            "optim",
            "recipe",
            "text",
        ],
    ),
    (
        "cache",
        &[
            "base_model",
            "dataset",
            "digest",
            "experiment",
            "models",
            "monitor",
            "recipe",
            "store",
            "vae",
        ],
    ),
];

/// The verbs, each of which may use those before it and every module above.
const VERBS: &[&str] = &[
    "convert", "encode", "worker", "sample", "train", "probe", "compare", "audit", "inspect",
];

/// What a module may use of ours; None for what is no module.
fn may_use(module: &str) -> Option<Vec<&'static str>> {
    if let Some((_, listed)) = LAYERS.iter().find(|(name, _)| *name == module) {
        return Some(listed.iter().copied().chain(["files", "shown"]).collect());
    }
    let place = VERBS.iter().position(|verb| *verb == module)?;
    let below = LAYERS.iter().map(|(name, _)| *name);
    Some(below.chain(VERBS[..place].iter().copied()).collect())
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file under `folder`, with its text.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).expect("a folder of the project");
        for entry in entries {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                found.push((
                    path.strip_prefix(root()).expect("inside").to_path_buf(),
                    text,
                ));
            }
        }
    }
    found.sort();
    found
}

/// The sources of both crates, as they are shipped.
fn ours() -> Vec<(PathBuf, String)> {
    let both = ["core/src", "src"].into_iter();
    both.flat_map(sources).collect()
}

fn is_test_file(path: &Path) -> bool {
    path.components().any(|c| c.as_os_str() == "tests")
        || path.to_string_lossy().ends_with("tests.rs")
        || path.ends_with("testing.rs")
}

/// The text before the unit tests, which may also be declared anywhere and stand in a file of their own.
fn without_tests(text: &str) -> &str {
    const TESTS: &str = "\n#[cfg(test)]\nmod ";
    let is_inline = |at: usize| {
        let line = text[at + TESTS.len()..].lines().next();
        line.is_some_and(|line| line.ends_with('{'))
    };
    let mut found = text.match_indices(TESTS);
    match found.find(|(at, _)| is_inline(*at)) {
        Some((at, _)) => &text[..at],
        None => text,
    }
}

/// The module (first folder or file under `src` of its crate) a source file belongs to.
fn module_of(path: &Path) -> Option<String> {
    let inside = path.strip_prefix("core").unwrap_or(path);
    let first = inside.strip_prefix("src").ok()?.components().next()?;
    Some(
        first
            .as_os_str()
            .to_string_lossy()
            .trim_end_matches(".rs")
            .to_owned(),
    )
}

fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .filter(|(_, l)| !l.trim_start().starts_with("//"))
        .map(|(i, l)| (i + 1, l))
}

/// What of ours a line of code names, as `crate::NAME`.
fn named(code: &str) -> impl Iterator<Item = &str> {
    let end = |rest: &str| {
        rest.find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len())
    };
    // `use crate::{a, b::c}` names each of its parts.
    let single = code
        .split("crate::")
        .skip(1)
        .map(move |rest| &rest[..end(rest)]);
    let list = code.split_once("use crate::{").map_or("", |(_, list)| list);
    let several = list.split([',', '{', '}']).map(str::trim);
    single
        .chain(several.map(move |part| &part[..end(part)]))
        .filter(|name| !name.is_empty())
}

/// A file's code with each `use` in one line.
fn joined(text: &str) -> String {
    let (mut code, mut open) = (String::new(), false);
    for (_, line) in code_lines(without_tests(text)) {
        open = (open || line.trim_start().starts_with("use ") || line.contains(" use "))
            && !line.contains(';');
        code.push_str(line.trim());
        code.push(if open { ' ' } else { '\n' });
    }
    code
}

#[test]
fn each_module_uses_only_the_layers_below_it() {
    let mut wrong = Vec::new();
    for (path, text) in ours().iter().filter(|(p, _)| !is_test_file(p)) {
        let Some(module) = module_of(path).filter(|m| !["lib", "bin"].contains(&m.as_str())) else {
            continue;
        };
        let Some(allowed) = may_use(&module) else {
            wrong.push(format!("{}: `{module}` is in no layer", path.display()));
            continue;
        };
        for code in joined(text).lines() {
            for used in named(code) {
                if used != module && !allowed.contains(&used) {
                    let (path, code) = (path.display(), code.trim());
                    wrong.push(format!("{path}: `{module}` must not know `{used}`: {code}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A verb may use those before it, so that only the list keeps circles out; this looks at what is really used.
#[test]
fn no_modules_use_each_other_in_a_circle() {
    let mut uses: BTreeMap<String, std::collections::BTreeSet<String>> = BTreeMap::new();
    for (path, text) in ours().iter().filter(|(p, _)| !is_test_file(p)) {
        let Some(module) = module_of(path).filter(|m| !["lib", "bin"].contains(&m.as_str())) else {
            continue;
        };
        let code = joined(text);
        let used = code.lines().flat_map(named).filter(|used| *used != module);
        let used: Vec<String> = used.map(str::to_owned).collect();
        uses.entry(module).or_default().extend(used);
    }
    // Modules that use nothing that is left are taken away until none is left, or those that are in a circle.
    loop {
        let ready: Vec<String> = uses
            .iter()
            .filter(|(_, used)| used.iter().all(|used| !uses.contains_key(used)))
            .map(|(module, _)| module.clone())
            .collect();
        if ready.is_empty() {
            break;
        }
        uses.retain(|module, _| !ready.contains(module));
    }
    assert!(uses.is_empty(), "circles among {:?}", uses.keys());
}

/// What a family's folder has beside its network, so that it is told from helpers shared by families.
const FAMILY_FILE: &str = "lora_names.rs";

/// A family is its folder, its recipes and one line in the list: `tests/fake_family` shows that this is enough for one more,
/// and this test that no other place names those there are (but the demo, which has a miniature of some).
#[test]
fn a_family_is_named_in_its_folder_and_in_one_list() {
    let folders = |place: &str| {
        let entries = std::fs::read_dir(root().join(place)).expect("a folder of the project");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        paths.filter(|path| path.is_dir()).collect::<Vec<_>>()
    };
    let name = |path: &PathBuf| {
        path.file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned()
    };
    let modules = folders("src/models");
    let modules: Vec<_> = modules
        .iter()
        .filter(|path| path.join(FAMILY_FILE).is_file())
        .collect();
    let families: Vec<String> = folders("configs/recipes").iter().map(name).collect();
    assert!(
        modules.len() >= 3 && families.len() >= 4,
        "{modules:?} {families:?}"
    );
    let words: Vec<String> = (families.iter().map(|family| format!("\"{family}\"")))
        .chain(modules.iter().map(|module| format!("{}::", name(module))))
        .collect();
    let mut wrong = Vec::new();
    for (path, text) in ours().iter().filter(|(p, _)| !is_test_file(p)) {
        let own = modules
            .iter()
            .any(|module| root().join(path).starts_with(module));
        if own || path.ends_with("bin/plumb/demo.rs") {
            continue;
        }
        for (line, code) in code_lines(without_tests(text)) {
            let in_list = path.ends_with("models/mod.rs") && code.trim_start().starts_with('&');
            if let Some(word) = words.iter().find(|w| code.contains(w.as_str()) && !in_list) {
                wrong.push(format!("{}:{line}: names {word}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The folders of the kinds of text encoder, each with the names of its public types.
fn kinds_of_encoder() -> Vec<(String, Vec<String>)> {
    let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, text) in sources("src/text") {
        let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
        let [_, _, folder, _] = parts.as_slice() else {
            continue;
        };
        if ["tests", "tokenizer"].contains(&&**folder) {
            continue;
        }
        let declared = code_lines(&text).filter_map(|(_, line)| {
            let rest = line.strip_prefix("pub ")?;
            let rest = ["struct ", "enum ", "trait ", "fn ", "const ", "static "]
                .iter()
                .find_map(|word| rest.strip_prefix(word))?;
            Some(words(rest).next()?.to_owned())
        });
        kinds
            .entry(folder.to_string())
            .or_default()
            .extend(declared);
    }
    kinds.into_iter().collect()
}

/// The identifiers of a line of code, without what stands in quotes.
fn words(code: &str) -> impl Iterator<Item = &str> {
    let outside = code.split('"').step_by(2);
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    outside
        .flat_map(move |part| part.split(move |c| !is_part(c)))
        .filter(|word| !word.is_empty())
}

#[test]
fn a_kind_of_text_encoder_is_named_in_its_folder_and_in_the_list() {
    const LIST: &str = "src/text/mod.rs";
    let kinds = kinds_of_encoder();
    assert!(kinds.len() >= 2 && kinds.iter().all(|(_, types)| types.len() >= 3));
    let mut wrong = Vec::new();
    for (path, text) in ours().iter().filter(|(p, _)| !is_test_file(p)) {
        for (folder, types) in &kinds {
            if path.starts_with(Path::new("src/text").join(folder)) {
                continue;
            }
            for (line, code) in code_lines(without_tests(text)) {
                let is_type = |word: &str| types.iter().any(|name| name == word);
                let is_path = code.contains(&format!("text::{folder}"))
                    || path.starts_with("src/text") && words(code).any(|word| word == folder);
                let is_listed = path == Path::new(LIST)
                    && (code.contains(&format!("&{folder}::"))
                        || code == format!("pub mod {folder};"));
                if !is_listed && (is_path || words(code).any(is_type)) {
                    wrong.push(format!("{}:{line}: {}", path.display(), code.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Everybody else is given a `Kernels`, and knows nothing of what is behind it.
#[test]
fn only_nn_names_its_cuda_code() {
    let names_it = |text: &str| {
        let code: String = text.split_whitespace().collect();
        code.split("nn::").skip(1).any(|rest| {
            let list = rest.strip_prefix('{').map(|list| list.split(';').next());
            let mut parts = list.flatten().unwrap_or("").split([',', '{', '}']);
            rest.starts_with("cuda") || parts.any(|part| part.starts_with("cuda"))
        })
    };
    assert!(names_it("use crate::nn::{\n    Frozen, cuda::flat,\n};"));
    let others = ours().into_iter();
    let others = others.filter(|(path, _)| !path.starts_with("core/src/nn"));
    let wrong: Vec<PathBuf> = others
        .filter(|(_, text)| names_it(text))
        .map(|(path, _)| path)
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// (what, where it may stand)
type Rule = (&'static [&'static str], fn(&Path) -> bool);

#[test]
fn heavy_or_impure_things_stand_only_where_they_may() {
    let in_modules = |path: &Path, modules: &[&str]| {
        module_of(path).is_some_and(|m| modules.contains(&m.as_str()))
    };
    let rules: &[Rule] = &[
        (&["parquet::"], |p| p.starts_with("src/store")),
        (&["arrow_array::", "arrow_schema::"], |p| {
            p.starts_with("src/store") || p.starts_with("src/worker")
        }),
        (&["arrow_buffer::", "arrow_ipc::"], |p| {
            p.starts_with("src/worker")
        }),
        (&["clap::", "indicatif::", "println!", "eprintln!"], |p| {
            p.starts_with("src/bin")
        }),
        (&["std::env::", "SystemTime::now", "Instant::now"], |p| {
            p.starts_with("src/bin")
        }),
        (&["ureq::"], |p| {
            p.starts_with("src/base_model/hub") || p.ends_with("store/remote/http.rs")
        }),
        (&["object_store::", "tokio::"], |p| {
            p.starts_with("src/store/remote")
        }),
        (&["unsafe {", "unsafe fn"], |p| {
            let places = [
                "core/src/nn",
                "core/src/device",
                "src/store",
                "src/bin/plumb/allocator.rs",
            ];
            places.iter().any(|place| p.starts_with(place))
        }),
    ];
    let mut wrong = Vec::new();
    for (path, text) in ours().iter().filter(|(p, _)| !is_test_file(p)) {
        for (line, code) in code_lines(without_tests(text)) {
            for (words, may) in rules {
                if let Some(word) = words.iter().find(|w| code.contains(**w) && !may(path)) {
                    wrong.push(format!(
                        "{}:{line}: `{word}` does not belong here",
                        path.display()
                    ));
                }
            }
            let candle_free = [
                "digest",
                "monitor",
                "rng",
                "shown",
                "recipe",
                "store",
                "experiment",
            ];
            if code.contains("candle_core") && in_modules(path, &candle_free) {
                wrong.push(format!(
                    "{}:{line}: no candle below the numerics",
                    path.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_and_functions_stay_short() {
    let mut wrong = Vec::new();
    for (path, text) in ours().iter().filter(|(p, _)| !is_test_file(p)) {
        let text = without_tests(text);
        let lines: Vec<&str> = text.lines().collect();
        if lines.len() > MAX_FILE_LINES {
            wrong.push(format!(
                "{}: {} lines, at most {MAX_FILE_LINES}",
                path.display(),
                lines.len()
            ));
        }
        for (start, length) in functions(&lines) {
            if length > MAX_FN_LINES {
                wrong.push(format!(
                    "{}:{}: a function of {length} lines, at most {MAX_FN_LINES}",
                    path.display(),
                    start + 1
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// (first line, number of lines) of every function, as rustfmt lays them out.
fn functions(lines: &[&str]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        let words: Vec<&str> = code
            .split_whitespace()
            .take_while(|w| !w.contains('('))
            .collect();
        let is_fn = code.starts_with("fn ")
            || (words.contains(&"fn") || code.contains(" fn "))
                && (code.starts_with("pub")
                    || code.starts_with("const")
                    || code.starts_with("unsafe"));
        if !is_fn {
            continue;
        }
        let ends = |l: &&str| l.ends_with('{') || l.ends_with(';') || l.ends_with('}');
        if lines[start..]
            .iter()
            .find(|l| ends(l))
            .is_none_or(|l| !l.ends_with('{'))
        {
            continue;
        }
        let closing = format!("{}}}", " ".repeat(indent));
        if let Some(length) = lines[start..].iter().position(|l| *l == closing) {
            found.push((start, length + 1));
        }
    }
    found
}

#[test]
fn sources_are_ascii() {
    let mut wrong = Vec::new();
    for folder in ["core/src", "src", "tests", "benches"] {
        for (path, text) in sources(folder) {
            for (i, line) in text.lines().enumerate() {
                if let Some(c) = line.chars().find(|c| !c.is_ascii()) {
                    wrong.push(format!(
                        "{}:{}: `{c}`, write \\u{{..}}",
                        path.display(),
                        i + 1
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A registry takes 10 MB, compressed.
const MAX_PACKAGE_BYTES: u64 = 10_000_000;

#[test]
fn the_package_is_one_that_a_registry_takes() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("the manifest");
    let manifest: toml::Table = toml::from_str(&manifest).expect("TOML");
    let patterns = manifest["package"]["include"].as_array().expect("a list");
    let mut bytes = 0;
    for pattern in patterns {
        let pattern = pattern.as_str().and_then(|p| p.strip_prefix('/'));
        let pattern = pattern.expect("a path from the root, else it means any folder's");
        let selected = match pattern.strip_suffix('*') {
            None => bytes_under(&root().join(pattern)),
            Some(start) => {
                let files = std::fs::read_dir(root()).expect("the root").flatten();
                let begins =
                    |e: &std::fs::DirEntry| e.file_name().to_string_lossy().starts_with(start);
                files.filter(begins).map(|e| bytes_under(&e.path())).sum()
            }
        };
        assert!(selected > 0, "`{pattern}` selects nothing");
        bytes += selected;
    }
    assert!(
        bytes < MAX_PACKAGE_BYTES,
        "about {bytes} bytes compressed, expected below {MAX_PACKAGE_BYTES}"
    );
}

/// About what is left when compressed: of text a quarter, of weights hardly less.
fn bytes_under(path: &Path) -> u64 {
    let metadata = std::fs::metadata(path).expect("what the manifest includes");
    if metadata.is_file() {
        let is_text = path
            .extension()
            .is_some_and(|e| e != "safetensors" && e != "png");
        return metadata.len() / if is_text { 4 } else { 1 };
    }
    let entries = std::fs::read_dir(path).expect("a folder of the project");
    entries
        .map(|e| bytes_under(&e.expect("an entry").path()))
        .sum()
}

#[test]
fn there_is_one_version_of_each_crate_whose_types_we_share() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).expect("the lock file");
    for name in [
        "arrow-array",
        "candle-core",
        "half",
        "parquet",
        "safetensors",
        "tokenizers",
    ] {
        let count = lock.matches(&format!("\nname = \"{name}\"\n")).count();
        assert_eq!(count, 1, "{name} stands {count} times in Cargo.lock");
    }
}

/// A path comes from a person or from a file's name: what is in it must not steer a terminal (`src/shown.rs`).
#[test]
fn errors_show_paths_escaped() {
    let mut wrong = Vec::new();
    for (path, text) in ours() {
        let attributes = text.split("#[error(").skip(1);
        let is_raw = |rest: &str| {
            let attribute = rest.split(")]").next().unwrap_or_default();
            attribute.contains(".display()")
        };
        let count = attributes.filter(|rest| is_raw(rest)).count();
        if count > 0 {
            wrong.push(format!("{}: {count} errors", path.display()));
        }
    }
    assert!(
        wrong.is_empty(),
        "shown::path shows a path:\n{}",
        wrong.join("\n")
    );
}
