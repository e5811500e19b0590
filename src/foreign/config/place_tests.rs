//! Settings that stand in several places: of the run, of all data sets and of one, or twice in one table.

use super::knowledge::Status;
use super::tests::{imported, row};

/// A command line of kohya's with more options, and its data sets: those of `sets` with one subset each, in `/a`, `/b` and so on.
fn kohya(more: &str, general: &str, sets: &[(&str, &str)]) -> super::Imported {
    let command = format!(
        "accelerate launch sdxl_train_network.py --pretrained_model_name_or_path /m/sd_xl_base_1.0.safetensors \
         --network_module networks.lora --output_dir o --max_train_steps 10 --network_train_unet_only \
         --dataset_config d.toml {more}"
    );
    let mut text = format!("[general]\n{general}\n");
    for (n, (set, subset)) in sets.iter().enumerate() {
        let folder = char::from(b'a' + u8::try_from(n).expect("few"));
        text += &format!(
            "[[datasets]]\nresolution = 512\n{set}\n[[datasets.subsets]]\nimage_dir = \"/{folder}\"\n{subset}\n"
        );
    }
    imported(&[("run.sh", &command), ("d.toml", &text)])
}

/// PyYAML and Python's JSON keep the last of two equal keys, with all that is below it.
#[test]
fn of_two_sections_of_one_name_the_last_counts_whole() {
    let text = "job: extension\nconfig:\n  name: x\n  process:\n  - type: sd_trainer\n    training_folder: out\n    datasets:\n    \
        - {folder_path: /old1, num_repeats: 7, flip_x: true}\n    - {folder_path: /old2}\n    train: {batch_size: 8, lr: 5e-3}\n    \
        model: {name_or_path: /m/sdxl.safetensors, arch: sdxl}\n    network: {type: lora, linear: 4}\n    \
        datasets:\n    - {folder_path: /new}\n    train: {steps: 20}\n";
    let found = imported(&[("c.yaml", text)]);
    for absent in ["/old", "repeats", "flip", "0.005", "batch_size = 8"] {
        assert!(
            !found.experiment.contains(absent),
            "{absent}: {}",
            found.experiment
        );
    }
    assert_eq!(found.experiment.matches("[[dataset]]").count(), 1);
    for (name, line) in [
        ("datasets[0].num_repeats", "datasets` in line 13"),
        ("train.lr", "train` in line 15"),
    ] {
        let (status, why) = row(&found, &format!("config.process[0].{name}"));
        assert_eq!(status, Status::Overridden);
        assert_eq!(why, format!("`config.process[0].{line} counts"));
    }
    let json = r#"{"training_method": "LORA", "model_type": "STABLE_DIFFUSION_XL_10_BASE", "base_model_name": "/m/x.safetensors",
        "epochs": 1, "optimizer": {"optimizer": "ADAMW", "weight_decay": 0.5}, "optimizer": {"optimizer": "ADAMW"}}"#;
    let found = imported(&[("c.json", json)]);
    let (status, why) = row(&found, "optimizer.weight_decay");
    assert_eq!(status, Status::Overridden);
    assert_eq!(why, "the later `optimizer` counts");
    assert!(!found.experiment.contains("0.5"));
}
