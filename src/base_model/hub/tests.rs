use super::*;
use crate::monitor::Silent;

fn address(text: &str) -> Address {
    Address::parse(text).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn addresses_are_read_and_shown_alike() {
    for text in [
        "hf://owner/name",
        "hf://owner/name@main",
        "hf://owner/na.me-1@refs/pr/3",
        "hf://owner/name/ae.safetensors",
        "hf://owner/name/split_files/vae/ae.safetensors@5f2c",
    ] {
        assert!(Address::is_one(Path::new(text)));
        assert_eq!(address(text).to_string(), text);
    }
    let one = address("hf://owner/name/a/b.gguf@v1");
    assert_eq!(one.repo, "owner/name");
    assert_eq!(one.inside.as_deref(), Some("a/b.gguf"));
    assert_eq!(one.revision.as_deref(), Some("v1"));
    assert!(!Address::is_one(Path::new("models/hf")));
    for text in [
        "hf://owner",
        "hf://",
        "hf:///name",
        "hf://owner/..",
        "hf://owner/name/../../x",
        "hf://owner/name@",
        "hf://owner/name@../x",
        "hf://owner/name@a@b",
        "hf://owner/na\\me",
    ] {
        assert!(Address::parse(text).is_err(), "{text}");
    }
}

fn chosen(text: &str, files: &[&str]) -> Vec<String> {
    let files: Vec<String> = files.iter().map(|f| (*f).to_owned()).collect();
    let mut chosen = wanted(&address(text), &files).unwrap_or_else(|e| panic!("{e}"));
    chosen.sort();
    chosen
}

#[test]
fn of_a_pipeline_only_what_is_used_is_taken_and_once() {
    let files = [
        "README.md",
        "model_index.json",
        "flux1-dev.safetensors",
        "ae.safetensors",
        "scheduler/scheduler_config.json",
        "scheduler/README.md",
        "safety_checker/model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
        "text_encoder_2/config.json",
        "text_encoder_2/model.safetensors.index.json",
        "text_encoder_2/model-00001-of-00002.safetensors",
        "text_encoder_2/model-00002-of-00002.safetensors",
        "text_encoder_2/model.safetensors.index.fp16.json",
        "text_encoder_2/model.fp16-00001-of-00002.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ];
    assert_eq!(
        chosen("hf://o/n", &files),
        [
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "text_encoder_2/config.json",
            "text_encoder_2/model-00001-of-00002.safetensors",
            "text_encoder_2/model-00002-of-00002.safetensors",
            "text_encoder_2/model.safetensors.index.json",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "transformer/config.json",
            "transformer/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.fp16.safetensors",
        ]
    );
    assert_eq!(
        chosen("hf://o/n/ae.safetensors@main", &files),
        ["ae.safetensors"]
    );
    assert_eq!(
        chosen("hf://o/n/tokenizer", &files),
        ["tokenizer/merges.txt", "tokenizer/vocab.json"]
    );
    let part = ["config.json", "model.safetensors", "pytorch_model.bin"];
    assert_eq!(chosen("hf://o/n", &part), part[..2]);
}

#[test]
fn a_repository_of_many_files_asks_for_one() {
    let files = ["clip_l.safetensors", "t5xxl_fp16.safetensors", "README.md"].map(str::to_owned);
    let refused = |text: &str| match wanted(&address(text), &files) {
        Err(error) => error.to_string(),
        Ok(files) => panic!("{files:?}"),
    };
    let text = refused("hf://o/n");
    assert!(
        text.contains("hf://o/n/clip_l.safetensors") && text.contains("`t5xxl_fp16.safetensors`"),
        "{text}"
    );
    assert!(refused("hf://o/n/nowhere").contains("name one"));
    let none = wanted(&address("hf://o/n"), &["README.md".to_owned()]);
    assert!(none.is_err());
}

#[test]
fn the_cache_is_used_offline() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = Options {
        cache: folder.path().to_owned(),
        endpoint: "http://127.0.0.1:1".to_owned(),
        token: None,
        offline: true,
        verified: None,
    };
    let one = address("hf://owner/name/ae.safetensors");
    let text = match fetch(&one, &options, &Silent) {
        Err(error) => error.to_string(),
        Ok(path) => panic!("{}", path.display()),
    };
    assert!(text.contains("HF_HUB_OFFLINE"), "{text}");
    let repository = folder.path().join("models--owner--name");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = repository.join("snapshots").join(commit);
    std::fs::create_dir_all(repository.join("refs")).expect("a folder");
    std::fs::create_dir_all(&snapshot).expect("a folder");
    std::fs::write(repository.join("refs/main"), commit).expect("written");
    std::fs::write(snapshot.join("ae.safetensors"), "x").expect("written");
    let found = fetch(&one, &options, &Silent).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(found, snapshot.join("ae.safetensors"));
    let by_commit = address(&format!("hf://owner/name@{commit}"));
    let found = fetch(&by_commit, &options, &Silent).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(found, snapshot);
}

/// A cache with one file in the layout of huggingface_hub, called by `name`.
#[cfg(unix)]
fn cache_with(folder: &Path, name: &str, content: &str) -> PathBuf {
    let repository = folder.join("models--owner--name");
    let snapshot = repository.join("snapshots").join("a".repeat(40));
    for made in [
        &repository.join("refs"),
        &repository.join("blobs"),
        &snapshot,
    ] {
        std::fs::create_dir_all(made).expect("a folder");
    }
    std::fs::write(repository.join("refs/main"), "a".repeat(40)).expect("written");
    std::fs::write(repository.join("blobs").join(name), content).expect("written");
    let pointer = snapshot.join("ae.safetensors");
    let target = format!("../../blobs/{name}");
    std::os::unix::fs::symlink(target, &pointer).expect("a link");
    pointer
}

#[cfg(unix)]
#[test]
fn nothing_in_a_cache_is_believed_but_by_its_hash() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = Options {
        cache: folder.path().join("hub"),
        endpoint: "http://127.0.0.1:1".to_owned(),
        token: None,
        offline: true,
        verified: Some(folder.path().join("hub.json")),
    };
    let one = address("hf://owner/name/ae.safetensors");
    let says = |part: &str| match fetch(&one, &options, &Silent) {
        Err(error) => assert!(error.to_string().contains(part), "{error}"),
        Ok(path) => panic!("{}", path.display()),
    };
    // `git hash-object` of "hello" and a line feed.
    let hash = "ce013625030ba8dba906f756967f9e9ca394464a";
    let pointer = cache_with(&options.cache, hash, "hello\n");
    assert_eq!(fetch(&one, &options, &Silent).expect("sound"), pointer);
    let refs = options.cache.join("models--owner--name/refs/main");
    let blob = options.cache.join("models--owner--name/blobs").join(hash);
    std::fs::write(&blob, "hellO\n").expect("written");
    says("another hash than its name says");
    std::fs::write(&blob, "hello\n").expect("written");
    for bad in ["/etc", "../../..", "", "\u{1b}[2J", &"A".repeat(40)] {
        std::fs::write(&refs, bad).expect("written");
        says("expected a commit (40 hexadecimal digits)");
    }
    std::fs::write(&refs, "a".repeat(40)).expect("written");
    fetch(&one, &options, &Silent).expect("sound");
    std::fs::remove_file(&pointer).expect("removed");
    let outside = folder.path().join(hash);
    std::fs::write(&outside, "hello\n").expect("written");
    std::os::unix::fs::symlink(&outside, &pointer).expect("a link");
    says("it leads out of the cache");
}

#[test]
fn a_pipeline_of_which_parts_are_missing_is_not_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = Options {
        cache: folder.path().to_owned(),
        endpoint: "http://127.0.0.1:1".to_owned(),
        token: Some("secret".to_owned()),
        offline: true,
        verified: None,
    };
    assert!(!format!("{options:?}").contains("secret"));
    let snapshot = folder
        .path()
        .join("models--owner--name/snapshots")
        .join("a".repeat(40));
    let put = |file: &str, text: &str| {
        let path = snapshot.join(file);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, text).expect("written");
    };
    put("vae/diffusion_pytorch_model.safetensors", "x");
    let parts = r#"{"vae": ["diffusers", "AutoencoderKL"], "text_encoder_3": [null, null],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"], "feature_extractor": ["a", "b"]}"#;
    put("model_index.json", parts);
    let pipeline = address(&format!("hf://owner/name@{}", "a".repeat(40)));
    match fetch(&pipeline, &options, &Silent) {
        Err(error) => assert!(error.to_string().contains("has no `scheduler`"), "{error}"),
        Ok(path) => panic!("{}", path.display()),
    }
    put("scheduler/scheduler_config.json", "{}");
    assert_eq!(
        fetch(&pipeline, &options, &Silent).expect("whole"),
        snapshot
    );
}
