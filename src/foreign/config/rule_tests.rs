//! What single settings of the trainers do, where another value of them, or another setting, decides.

use super::knowledge::Status;
use super::tests::{imported, row};
use super::{Imported, Options, import};

fn kohya(script: &str, more: &str) -> Imported {
    let command = format!(
        "accelerate launch {script} --pretrained_model_name_or_path /m/x.safetensors --train_data_dir /a --output_dir o \
         --max_train_steps 10 --network_train_unet_only {more}"
    );
    imported(&[("run.sh", &command)])
}

fn simple_tuner(options: &str, backend: &str) -> Imported {
    let config = format!(
        r#"{{"pretrained_model_name_or_path": "/m/x", "max_train_steps": 9, "data_backend_config": "b.json", {options}}}"#
    );
    let backends =
        format!(r#"[{{"id": "a", "type": "local", "instance_data_dir": "/a", {backend}}}]"#);
    imported(&[("config.json", &config), ("b.json", &backends)])
}

fn ai_toolkit(datasets: &str, train: &str) -> Imported {
    let text = format!(
        "job: extension\nconfig:\n  name: x\n  process:\n  - type: sd_trainer\n    training_folder: out\n    \
         model: {{name_or_path: /m/sdxl.safetensors, arch: sdxl}}\n    network: {{type: lora, linear: 4}}\n    \
         datasets:\n    - {{folder_path: /a, {datasets}}}\n    train: {{steps: 20, {train}}}\n"
    );
    imported(&[("c.yaml", &text)])
}

#[test]
fn a_value_that_asks_for_nothing_of_one_setting_does_of_another() {
    let lost = |found: Imported, place: &str| {
        assert_eq!(row(&found, place).0, Status::NotSupported, "{place}");
    };
    for name in [
        "only_instance_prompt",
        "prepend_instance_prompt",
        "is_regularisation_data",
    ] {
        let found = simple_tuner(r#""model_family": "sdxl""#, &format!(r#""{name}": true"#));
        lost(found, &format!("[0].{name}"));
    }
    let epochs = "--caption_dropout_every_n_epochs 1";
    lost(
        kohya("sdxl_train_network.py", epochs),
        "--caption_dropout_every_n_epochs",
    );
    let mean = "--weighting_scheme logit_normal --logit_mean 1";
    lost(kohya("flux_train_network.py", mean), "--logit_mean");
    let dims = "--network_module networks.lora_flux --network_args img_attn_dim=0";
    lost(
        kohya("flux_train_network.py", dims),
        "--network_args img_attn_dim",
    );
    for datasets in ["loss_multiplier: 0", "network_weight: 0", "scale: 0"] {
        let name = datasets.split(':').next().expect("a name");
        let place = format!("config.process[0].datasets[0].{name}");
        lost(ai_toolkit(datasets, "lr: 1e-4"), &place);
    }
    let least = "config.process[0].train.min_denoising_steps";
    lost(
        ai_toolkit("flip_x: true", "min_denoising_steps: 999"),
        least,
    );
}

#[test]
fn an_assistant_lora_of_no_strength_is_none() {
    let with = |strength: &str| {
        let options = r#""model_family": "z_image", "model_flavour": "turbo", "assistant_lora_path": "/m/a.safetensors""#;
        simple_tuner(
            &format!("{options}, \"assistant_lora_strength\": {strength}"),
            r#""crop": false"#,
        )
    };
    assert!(with("1").experiment.contains("training_adapter"));
    let found = with("0");
    assert!(!found.experiment.contains("training_adapter"));
    assert_eq!(row(&found, "assistant_lora_path").0, Status::Inert);
}

#[test]
fn a_state_of_another_run_is_not_gone_on_from() {
    let options = "--resume /state --initial_epoch 3";
    let found = kohya("sdxl_train_network.py", options);
    for option in ["--resume", "--initial_epoch"] {
        assert_eq!(row(&found, option).0, Status::NotSupported, "{option}");
    }
    let resumed = |value: &str| {
        let options = format!(r#""model_family": "sdxl", "resume_from_checkpoint": "{value}""#);
        row(
            &simple_tuner(&options, r#""crop": false"#),
            "resume_from_checkpoint",
        )
        .0
    };
    assert_eq!(resumed("latest"), Status::NotNeeded);
    assert_eq!(resumed("/o/checkpoint-500"), Status::NotSupported);
}

#[test]
fn a_lora_that_gives_its_rank_gives_alpha_and_modules_too() {
    let options = "--network_module networks.lora --network_weights /l.safetensors --dim_from_weights --network_dim 8";
    let found = kohya("sdxl_train_network.py", options);
    assert!(found.experiment.contains("from = \"/l.safetensors\""));
    for absent in ["rank =", "alpha =", "targets ="] {
        assert!(!found.experiment.contains(absent), "{}", found.experiment);
    }
    assert_eq!(row(&found, "--network_dim").0, Status::Inert);
    let other =
        "--network_module lycoris.kohya --network_weights /l.safetensors --dim_from_weights";
    let found = kohya("sdxl_train_network.py", other);
    assert_eq!(row(&found, "--network_module").0, Status::NotSupported);
}

#[test]
fn diffusion_pipes_constant_rate_counts_before_all_others() {
    let text = "output_dir = 'o'\nepochs = 1\nmicro_batch_size_per_gpu = 1\nforce_constant_lr = 1e-6\nwarmup_steps = 10\n\
        lr_scheduler = 'linear'\n[model]\ntype = 'sdxl'\ncheckpoint_path = '/m/x.safetensors'\ndtype = 'bfloat16'\nunet_lr = 4e-5\n\
        [adapter]\ntype = 'lora'\nrank = 4\n[optimizer]\ntype = 'adamw'\nlr = 1e-4\n";
    let found = imported(&[("run.toml", text)]);
    assert!(
        found.experiment.contains("learning_rate = 1e-6"),
        "{}",
        found.experiment
    );
    for place in [
        "warmup_steps",
        "lr_scheduler",
        "model.unet_lr",
        "optimizer.lr",
    ] {
        assert_eq!(row(&found, place).0, Status::Overridden, "{place}");
    }
    assert!(!found.experiment.contains("warmup"));
}

#[test]
fn z_image_has_two_names_in_simpletuner_and_plumbs_is_neither() {
    for name in ["z_image", "z-image"] {
        let options = format!(r#""model_family": "{name}", "model_flavour": "turbo""#);
        assert_eq!(simple_tuner(&options, r#""crop": false"#).family, "zimage");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.json");
    std::fs::write(&file, r#"{"model_family": "zimage"}"#).expect("written");
    let why = import(&[file], &Options::default()).expect_err("no such name");
    let said = "`model_family` is `zimage`, which is plumb's name of a family and none that simpletuner has for one";
    assert!(why.to_string().contains(said), "{why}");
}

#[test]
fn how_tags_are_dropped_is_lost_with_their_dropping() {
    let with = |on: bool| {
        let text = format!(
            r#"{{"training_method": "LORA", "model_type": "STABLE_DIFFUSION_XL_10_BASE", "base_model_name": "/m/x.safetensors",
            "epochs": 1, "concepts": [{{"path": "/a", "image": {{}},
            "text": {{"tag_dropout_enable": {on}, "tag_dropout_probability": 0.2}}}}]}}"#
        );
        row(
            &imported(&[("c.json", &text)]),
            "concepts[0].text.tag_dropout_probability",
        )
        .0
    };
    assert_eq!(with(true), Status::NotSupported);
    assert_eq!(with(false), Status::Inert);
}
