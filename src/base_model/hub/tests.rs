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
    };
    let one = address("hf://owner/name/ae.safetensors");
    let text = match fetch(&one, &options, &Silent) {
        Err(error) => error.to_string(),
        Ok(path) => panic!("{}", path.display()),
    };
    assert!(text.contains("HF_HUB_OFFLINE"), "{text}");
    let repository = folder.path().join("models--owner--name");
    let snapshot = repository.join("snapshots/0123abcd");
    std::fs::create_dir_all(repository.join("refs")).expect("a folder");
    std::fs::create_dir_all(&snapshot).expect("a folder");
    std::fs::write(repository.join("refs/main"), "0123abcd").expect("written");
    std::fs::write(snapshot.join("ae.safetensors"), "x").expect("written");
    let found = fetch(&one, &options, &Silent).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(found, snapshot.join("ae.safetensors"));
    let by_commit = address("hf://owner/name@0123abcd");
    let found = fetch(&by_commit, &options, &Silent).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(found, snapshot);
}
