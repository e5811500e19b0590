//! `plumb import config`: other trainers' files as Experiments, and the table of what becomes of every setting.

use std::path::{Path, PathBuf};

use expect_test::expect_file;
use plumb::foreign::config::Trainer;

use crate::util::{Ran, plumb};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/trainers")
}

/// Imports a fixture and holds the Experiment and the table against their golden files.
fn check(files: &[&str], golden: &str, more: &[&str]) -> Ran {
    let folder = tempfile::tempdir().expect("a folder");
    let paths: Vec<String> = files
        .iter()
        .map(|file| root().join(file).display().to_string())
        .collect();
    let mut args = vec!["import", "config"];
    args.extend(paths.iter().map(String::as_str));
    args.extend_from_slice(more);
    args.extend_from_slice(&["--out", "exp.toml"]);
    let ran = plumb(folder.path(), &args);
    let table = ran.stdout.replace(&root().display().to_string(), "");
    let experiment = std::fs::read_to_string(folder.path().join("exp.toml")).unwrap_or_default();
    let golden =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/import/{golden}"));
    expect_file![golden.with_extension("txt")].assert_eq(&table);
    expect_file![golden.with_extension("toml")].assert_eq(&experiment);
    // What was written is an Experiment that the other commands read.
    let file = folder.path().join("exp.toml");
    plumb::experiment::Experiment::open(&file, &Default::default())
        .unwrap_or_else(|e| panic!("{e}"));
    ran
}

#[test]
fn an_ai_toolkit_config_full_of_text_encoder_settings_is_told_one_by_one() {
    let file = ["ai-toolkit/flux-text-encoders.yaml"];
    let ran = check(&file, "ai-toolkit-flux", &[]).expect(3);
    for said in [
        "for FLUX T5 gets 512 tokens and CLIP 77, always",
        "FLUX gets CLIP's pooled output and T5's last hidden state",
        "kept and read by nothing: text encoders get `train.lr`",
        "toolkit/train_tools.py:546-564",
    ] {
        assert!(ran.stdout.contains(said), "{said}\n{}", ran.stdout);
    }
    check(&file, "ai-toolkit-flux-kept", &["--keep-recipe"]).expect(3);
    check(&["ai-toolkit/sdxl.yaml"], "ai-toolkit-sdxl", &[]).expect(3);
    // What the window writes; the steps of it are micro-batches.
    check(&["ai-toolkit/window-flux.yaml"], "ai-toolkit-window", &[]).expect(3);
}

#[test]
fn musubi_tuners_runs_are_read_with_their_clips() {
    let ran = check(&["musubi/wan.sh"], "musubi-wan", &[]).expect(3);
    for said in [
        "dataset.windows = slide:8",
        "`full` takes up to max_frames",
        "without it musubi-tuner takes a clip's frames as they come",
        "musubi-tuner has no such option",
    ] {
        assert!(ran.stdout.contains(said), "{said}\n{}", ran.stdout);
    }
    check(&["musubi/klein.toml"], "musubi-klein", &["--keep-recipe"]).expect(0);
    check(&["musubi/zimage.sh"], "musubi-zimage", &[]).expect(0);
}

#[test]
fn ai_toolkits_configs_of_wan_and_z_image_are_read() {
    let ran = check(&["ai-toolkit/wan.yaml"], "ai-toolkit-wan", &[]).expect(3);
    for said in [
        "Wan's UMT5 gets 512 tokens and its mask",
        "ai-toolkit spreads num_frames over the whole clip",
    ] {
        assert!(ran.stdout.contains(said), "{said}\n{}", ran.stdout);
    }
    check(&["ai-toolkit/zimage.yaml"], "ai-toolkit-zimage", &[]).expect(3);
}

/// diffusers' script for klein takes the layers of another model where it is told nothing else.
#[test]
fn diffusers_scripts_of_the_newer_models_are_read() {
    let ran = check(&["diffusers/klein.sh"], "diffusers-klein", &[]).expect(3);
    for said in [
        "[9, 18, 27]  [10, 20, 30]",
        "the layers of FLUX.2-dev's Mistral",
        "--keep-recipe keeps qwen3.tokens.max_tokens = 256",
        "klein has no guidance embedding",
        "the script trains no text encoder",
    ] {
        assert!(ran.stdout.contains(said), "{said}\n{}", ran.stdout);
    }
    let kept = check(
        &["diffusers/klein.sh"],
        "diffusers-klein-kept",
        &["--keep-recipe"],
    );
    let kept = kept.expect(3).stdout;
    assert!(
        kept.contains("has flux2/klein-base-4b:diffusers-script"),
        "{kept}"
    );
    check(&["diffusers/zimage.sh"], "diffusers-zimage", &[]).expect(3);
    check(&["diffusers/kontext.sh"], "diffusers-kontext", &[]).expect(3);
    // The layers that mend it are those of the pipeline.
    let mended = "accelerate launch train_dreambooth_lora_flux2_klein.py --pretrained_model_name_or_path a/klein-4B \
        --instance_data_dir d --instance_prompt x --text_encoder_out_layers 9 18 27";
    let text = import_text(&[("klein.sh", mended)], 0);
    assert!(!text.contains("differs"), "{text}");
}

/// Of each trainer, the batch size is that of one process.
#[test]
fn the_processes_of_a_run_become_micro_batches() {
    let kohya = |launcher: &str| {
        format!(
            "{launcher} sdxl_train_network.py --pretrained_model_name_or_path m --train_data_dir d --network_module networks.lora \
             --network_dim 4 --learning_rate 1e-4 --max_train_steps 9 --train_batch_size 4 --gradient_accumulation_steps 2"
        )
    };
    let accelerate =
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_processes: 3\n";
    let one_trainer = |more: &str| {
        format!(
            "{{\"training_method\": \"LORA\", \"model_type\": \"STABLE_DIFFUSION_XL_10_BASE\", \"base_model_name\": \"m\", \
             \"batch_size\": 2, \"epochs\": 1 {more}}}"
        )
    };
    let simple_tuner = "MODEL_FAMILY=sdxl\nPRETRAINED_MODEL_NAME_OR_PATH=m\nTRAIN_BATCH_SIZE=1\nMAX_NUM_STEPS=9\n\
                        GRADIENT_ACCUMULATION_STEPS=2\nTRAINING_NUM_PROCESSES=4\n";
    let check = |files: &[(&str, &str)], expected: &str| {
        let folder = tempfile::tempdir().expect("a folder");
        let mut args = vec!["import", "config"];
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("written");
            args.push(name);
        }
        args.extend(["--out", "exp.toml"]);
        let ran = plumb(folder.path(), &args);
        let made = std::fs::read_to_string(folder.path().join("exp.toml")).expect("made");
        let found = made
            .lines()
            .find(|line| line.starts_with("gradient_accumulation"));
        let found = found
            .unwrap_or_default()
            .split(" #")
            .next()
            .unwrap_or_default();
        assert_eq!(found, expected, "{made}\n{}\n{}", ran.stdout, ran.stderr);
        format!("{made}{}{}", ran.stdout, ran.stderr)
    };
    let said = check(
        &[("k.sh", &kohya("accelerate launch --num_processes 2"))],
        "gradient_accumulation = 4",
    );
    assert!(said.contains("times --num_processes"), "{said}");
    assert!(
        said.contains("each of 2 processes has the batch size"),
        "{said}"
    );
    let six = "gradient_accumulation = 6";
    check(
        &[
            ("k.sh", &kohya("accelerate launch --config_file a.yaml")),
            ("a.yaml", accelerate),
        ],
        six,
    );
    check(
        &[
            ("k.sh", &kohya("accelerate launch --num_processes 1")),
            ("a.yaml", accelerate),
        ],
        "gradient_accumulation = 2",
    );
    check(
        &[("k.sh", &kohya("torchrun --nnodes 2 --nproc-per-node=8"))],
        "gradient_accumulation = 32",
    );
    for launcher in [
        "torchrun --nproc_per_node gpu",
        "accelerate launch --multi_gpu",
    ] {
        let said = check(&[("k.sh", &kohya(launcher))], "gradient_accumulation = 2");
        assert!(
            said.contains("does not say on how many GPUs it runs"),
            "{said}"
        );
    }
    check(&[("config.env", simple_tuner)], "gradient_accumulation = 8");
    let multi = one_trainer(", \"multi_gpu\": true, \"device_indexes\": \"0,2\"");
    check(&[("c.json", &multi)], "gradient_accumulation = 2");
    let single = one_trainer(", \"multi_gpu\": false, \"device_indexes\": \"0,2\"");
    check(&[("c.json", &single)], "");
}

/// The trainers' own examples, with settings of text encoders that people add.
#[test]
fn configs_of_the_newer_models_are_read() {
    let says = |ran: Ran, all: &[&str]| {
        for said in all {
            assert!(ran.stdout.contains(said), "{said}\n{}", ran.stdout);
        }
    };
    let read = |file: &str, golden: &str, status: i32| check(&[file], golden, &[]).expect(status);
    says(
        read("simpletuner/klein/config.json", "simpletuner-klein", 3),
        &[
            "SimpleTuner sets it to 512 and goes on",
            "--keep-recipe keeps qwen3.forward.hidden_layers = [10, 20, 30]",
            "a quarter of klein's tokens is counted",
            "dataset.references = /data/before",
        ],
    );
    read("simpletuner/zimage/config.json", "simpletuner-zimage", 3);
    says(
        read("simpletuner/wan/config.json", "simpletuner-wan", 3),
        &[
            "video.num_frames = 77  ->  dataset.frames = 73",
            "takes a clip's first frames as they come",
        ],
    );
    says(
        read("simpletuner/chroma/config.json", "simpletuner-chroma", 3),
        &["s below 0.5 becomes s*s"],
    );
    says(
        read("onetrainer/klein.json", "onetrainer-klein", 3),
        &[
            "klein's layers are 9, 18 and 27",
            "train.shift = resolution",
        ],
    );
    read("onetrainer/zimage.json", "onetrainer-zimage", 0);
    says(
        read("onetrainer/chroma.json", "onetrainer-chroma", 3),
        &[
            "plumb has nothing like `INVERTED_PARABOLA`",
            "t5.forward.mask           pads_uniform    pads_but_one",
        ],
    );
    says(
        read("diffusion-pipe/chroma.toml", "diffusion-pipe-chroma", 3),
        &[
            "model.files.vae = /models/FLUX.1-dev/vae",
            "diffusion-pipe reads no such name",
        ],
    );
    says(
        read("diffusion-pipe/wan.toml", "diffusion-pipe-wan", 3),
        &["for wan/2.2-t2v-a14b-low", "dataset.frames = [33, 65]"],
    );
    read("diffusion-pipe/klein.toml", "diffusion-pipe-klein", 0);
    read("diffusion-pipe/zimage.toml", "diffusion-pipe-zimage", 3);
    says(
        read("ai-toolkit/chroma.yaml", "ai-toolkit-chroma", 3),
        &[
            "four times as many tokens are counted as Chroma has",
            "T5 gets 512 tokens and no mask",
        ],
    );
    says(
        read("ai-toolkit/kontext.yaml", "ai-toolkit-kontext", 3),
        &[
            "dataset.references = /data/before",
            "name it as sample.references",
        ],
    );
}

/// What would be trained as another model is not.
#[test]
fn a_model_that_the_trainer_takes_for_another_is_refused() {
    let refused = |name: &str, text: &str, said: &str| {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(name), text).expect("written");
        let ran = plumb(
            folder.path(),
            &["import", "config", name, "--out", "exp.toml"],
        )
        .expect(2);
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
    };
    let path = r#"{"model_family": "flux2", "model_type": "lora", "pretrained_model_name_or_path": "black-forest-labs/FLUX.2-klein-base-4B"}"#;
    refused(
        "config.json",
        path,
        "as SimpleTuner takes a path without a model_flavour for",
    );
    let both = "python wan_train_network.py --task t2v-A14B --dit low.safetensors --dit_high_noise high.safetensors";
    refused(
        "wan.sh",
        both,
        "say which with --model wan/2.2-t2v-a14b-high",
    );
    let dev = "accelerate launch train_dreambooth_lora_flux2.py --pretrained_model_name_or_path a/b --instance_data_dir d";
    refused("dev.sh", dev, "it is for FLUX.2 [dev]");
}

#[test]
fn kohyas_command_lines_config_files_and_data_sets_are_read() {
    check(&["kohya/sdxl.sh"], "kohya-sdxl", &[]).expect(3);
    // The data set is found where the config names it. Of its two parts one has a batch size of its own.
    check(&["kohya/flux.toml"], "kohya-flux", &["--keep-recipe"]).expect(3);
    check(&["kohya/chroma.sh"], "kohya-chroma", &["--keep-recipe"]).expect(3);
}

#[test]
fn configs_of_the_other_trainers_are_read() {
    check(&["simpletuner/config/config.json"], "simpletuner-flux", &[]).expect(3);
    check(&["simpletuner/sdxl.env"], "simpletuner-sdxl", &[]).expect(3);
    check(&["diffusers/flux.sh"], "diffusers-flux", &[]).expect(3);
    check(&["diffusers/sd3.sh"], "diffusers-sd3", &[]).expect(3);
    check(&["onetrainer/sdxl.json"], "onetrainer-sdxl", &[]).expect(3);
    check(&["onetrainer/flux.json"], "onetrainer-flux", &[]).expect(3);
    // What the window saves has every part of every model and every parameter of every optimizer.
    let saved = ["onetrainer/saved-by-the-window.json"];
    check(&saved, "onetrainer-saved", &["--keep-recipe"]).expect(3);
    check(&["diffusion-pipe/flux.toml"], "diffusion-pipe-flux", &[]).expect(3);
    check(&["diffusion-pipe/sdxl.toml"], "diffusion-pipe-sdxl", &[]).expect(3);
}

/// Imports a config that is written here, with others beside it, and gives the Experiment's text.
fn import_text(files: &[(&str, &str)], status: i32) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).expect("written");
    }
    let args = ["import", "config", files[0].0, "--out", "exp.toml"];
    plumb(folder.path(), &args).expect(status);
    std::fs::read_to_string(folder.path().join("exp.toml")).expect("an Experiment")
}

/// The table of a command line that is written here.
fn table_of(command: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("run.sh"), command).expect("written");
    let args = ["import", "config", "run.sh", "--out", "exp.toml"];
    plumb(folder.path(), &args).stdout
}

/// Settings that people write at the values that they have anyway, or for another model.
#[test]
fn what_asks_for_nothing_is_not_called_lost() {
    let kohya = "accelerate launch sdxl_train_network.py --pretrained_model_name_or_path=sd_xl_base_1.0.safetensors \
                 --network_module=networks.lora --network_dim=8 --train_data_dir=p --output_dir=o --max_train_steps=9 \
                 --min_timestep=0 --max_timestep=1000 --text_encoder_lr=0";
    let table = table_of(kohya);
    for (setting, says) in [
        ("--max_timestep = 1000", "at this value it asks for nothing"),
        ("--min_timestep = 0", "at this value it asks for nothing"),
        ("--text_encoder_lr = 0", "no text encoder is trained"),
    ] {
        let line = table.split(setting).nth(1).unwrap_or_default();
        let why = line.lines().nth(1).unwrap_or_default();
        assert!(why.contains(says), "{setting}: {why}\n{table}");
    }
    let some = table_of(&kohya.replace("--max_timestep=1000", "--max_timestep=600"));
    let lost = some.split("LOST").nth(1).unwrap_or_default();
    assert!(lost.contains("--max_timestep = 600"), "{some}");

    let musubi = |script: &str, more: &str| {
        let command = format!(
            "accelerate launch src/musubi_tuner/{script} --dit d.safetensors --network_dim 8 --max_train_steps 9 --output_dir o \
             --output_name n --guidance_scale 3.5 {more}"
        );
        table_of(&command)
    };
    let kontext = musubi("flux_kontext_train_network.py", "");
    assert!(
        kontext.contains("gets 1 in training, whatever is written"),
        "{kontext}"
    );
    let wan = musubi("wan_train_network.py", "--task t2v-1.3B");
    assert!(
        wan.contains("read for HunyuanVideo and FramePack alone"),
        "{wan}"
    );
}

/// Rates of 0, one for all or one of several: kohya's optimizer leaves out what has one.
#[test]
fn a_rate_of_0_trains_no_text_encoder_of_kohyas() {
    let table = |script: &str, module: &str, more: &str| {
        table_of(&format!(
            "accelerate launch {script} --pretrained_model_name_or_path m.safetensors --network_module networks.{module} \
             --network_dim 8 --train_data_dir p --output_dir o --max_train_steps 9 {more}"
        ))
    };
    let scripts = [
        ("sdxl_train_network.py", "lora"),
        ("flux_train_network.py", "lora_flux"),
        ("sd3_train_network.py", "lora_sd3"),
    ];
    let trains = |table: &str| table.contains("this run trains LoRAs of the text encoders too");
    for (script, module) in scripts {
        for (more, some) in [
            ("--learning_rate 1e-4", true),
            ("--text_encoder_lr 1e-5", true),
            ("--text_encoder_lr 0", false),
            ("--text_encoder_lr 0 0", false),
            ("--learning_rate 0 --unet_lr 1e-4", false),
            (
                "--learning_rate 0 --unet_lr 1e-4 --text_encoder_lr 1e-5",
                true,
            ),
            // CLIP-L alone is left out: of SD3, CLIP-G is not.
            ("--text_encoder_lr 0 1e-5", module == "lora_sd3"),
            ("--text_encoder_lr 1e-5 0", true),
            (
                "--text_encoder_lr 0 1e-5 --network_args train_t5xxl=True",
                module != "lora",
            ),
        ] {
            let table = table(script, module, more);
            assert_eq!(trains(&table), some, "{script} {more}\n{table}");
            let lost = table.split("LOST").nth(1).unwrap_or_default();
            let lost = lost.contains("--text_encoder_lr");
            let asks = more.contains("--text_encoder_lr");
            assert_eq!(lost, some && asks, "{script} {more}\n{table}");
        }
    }
    let none = table(
        "train_network.py",
        "lora",
        "--unet_lr 0 --learning_rate 1e-4",
    );
    let lost = none.split("LOST").nth(1).unwrap_or_default();
    assert!(lost.contains("0 leaves the denoiser out"), "{none}");
}

/// A LoRA that musubi-tuner or sd-scripts merge before they train is plumb's training adapter, whole and alone.
#[test]
fn base_weights_lie_beneath_the_lora() {
    let musubi = "accelerate launch src/musubi_tuner/zimage_train_network.py --dit z.safetensors --network_dim 8 --output_dir o \
                 --scale_weight_norms 1";
    let kohya = "accelerate launch flux_train_network.py --pretrained_model_name_or_path m.safetensors --network_dim 8 --output_dir o \
                 --scale_weight_norms 1";
    for command in [musubi, kohya] {
        let import = |more: &str| import_text(&[("run.sh", &format!("{command} {more}"))], 3);
        let beneath = "training_adapter = \"a.safetensors\"";
        for taken in [
            "",
            "--base_weights_multiplier 1",
            "--base_weights_multiplier 1.0 1.0",
        ] {
            let text = import(&format!("--base_weights a.safetensors {taken}"));
            assert!(text.contains(beneath), "{taken}\n{text}");
        }
        for (more, why) in [
            (
                "--base_weights a.safetensors --base_weights_multiplier 0.5",
                "none with a multiplier",
            ),
            (
                "--base_weights a.safetensors b.safetensors",
                "takes one file here, not 2",
            ),
        ] {
            assert!(!import(more).contains("training_adapter"), "{more}");
            let table = table_of(&format!("{command} {more}"));
            let lost = table.split("LOST").nth(1).unwrap_or_default();
            assert!(lost.contains(why), "{more}\n{table}");
        }
        let alone = table_of(&format!("{command} --base_weights_multiplier 0.5"));
        assert!(
            alone.contains("read where base_weights is written"),
            "{alone}"
        );
    }
}

/// Of each, what a reading of the names alone would get wrong.
#[test]
fn what_a_setting_does_is_what_the_trainers_code_does() {
    // The mean of the logit-normal: for SD3 the draw is the noise level itself, for FLUX a place in a list that falls from noise.
    let sd3 = "accelerate launch sd3_train_network.py --pretrained_model_name_or_path m.safetensors \
        --weighting_scheme logit_normal --logit_mean 0.5 --lr_scheduler linear --lr_warmup_steps 10% --network_alpha 0";
    let text = import_text(&[("sd3.sh", sd3)], 3);
    for line in ["logit_mean = 0.5", "warmup_steps = 0.1"] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(!text.contains("\nalpha"), "{text}");
    // A learning rate of 1 is a factor of Prodigy's.
    let prodigy = "accelerate launch train_dreambooth_lora_flux.py --pretrained_model_name_or_path a/b \
        --instance_data_dir /data --instance_prompt cat --optimizer prodigy --learning_rate 1.0 --max_train_steps 10";
    let text = import_text(&[("flux.sh", prodigy)], 3);
    assert!(!text.contains("\nlearning_rate"), "{text}");
    // Each data set's rules look at its own settings; what is not written counts with its default.
    let options = r#"{"model_family": "sdxl", "model_type": "lora", "data_backend_config": "data.json", "learning_rate": 1e-4}"#;
    let sets = r#"[{"id": "a", "instance_data_dir": "/a", "caption_strategy": "textfile", "crop": true},
        {"id": "b", "instance_data_dir": "/b", "caption_strategy": "textfile", "crop": false, "crop_aspect": "square"}]"#;
    let text = import_text(&[("config.json", options), ("data.json", sets)], 3);
    let found = |line: &str| text.matches(&format!("\n{line}")).count();
    assert_eq!(found("bucket = false"), 1, "{text}");
    for line in [
        "path = \"hf://stabilityai/stable-diffusion-xl-base-1.0\"",
        "dropout = 0.1",
        "caption_dropout = 0.1",
        "epochs = 1",
        "epsilon = 1e-6",
    ] {
        assert_eq!(found(line), 1, "{line}\n{text}");
    }
}

/// Names of a config before its version 8, and the denoiser's part under the name of another.
#[test]
fn an_older_config_of_onetrainer_is_read_as_onetrainer_reads_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = r#"{"__version": 7, "model_type": "FLUX_DEV_1", "training_method": "LORA", "base_model_name": "a/b",
        "weight_dtype": "FLOAT_8", "prior": {"weight_dtype": "NONE", "learning_rate": 0.5, "guidance_scale": 2.0},
        "transformer": {"learning_rate": 0.1}, "lora_layer_preset": "attn-only", "lora_layers": "attn"}"#;
    std::fs::write(folder.path().join("old.json"), text).expect("written");
    let ran = plumb(
        folder.path(),
        &["import", "config", "old.json", "--out", "exp.toml"],
    );
    ran.expect(3);
    let experiment = std::fs::read_to_string(folder.path().join("exp.toml")).expect("written");
    for line in [
        "weights = \"fp8\" # prior.weight_dtype",
        "learning_rate = 0.5 # prior.learning_rate",
        "guidance = 2 # prior.guidance_scale",
        "targets = [\"attention\"] # lora_layers",
    ] {
        assert!(experiment.contains(line), "{line}\n{experiment}");
    }
}

/// Counted by other readers than ours.
#[test]
fn the_table_has_every_setting_of_the_file() {
    fn json(value: &serde_json::Value) -> usize {
        match value {
            serde_json::Value::Object(table) if !table.is_empty() => table.values().map(json).sum(),
            serde_json::Value::Array(list) if list.iter().any(serde_json::Value::is_object) => {
                list.iter().map(json).sum()
            }
            _ => 1,
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let rows = |file: &str| {
        let path = root().join(file).display().to_string();
        let ran = plumb(folder.path(), &["import", "config", &path, "--json"]).expect(3);
        let rows = ran.json()["settings"].as_array().expect("rows").clone();
        rows.iter()
            .filter(|row| row["written"] == true && row["file"] == 0)
            .count()
    };
    let text = |file: &str| std::fs::read_to_string(root().join(file)).expect("a fixture");
    for file in ["onetrainer/sdxl.json", "onetrainer/flux.json"] {
        let value = serde_json::from_str(&text(file)).expect("JSON");
        assert_eq!(rows(file), json(&value), "{file}");
    }
    for file in ["diffusion-pipe/flux.toml", "diffusion-pipe/sdxl.toml"] {
        let value: toml::Value = toml::from_str(&text(file)).expect("TOML");
        let value = serde_json::to_value(value).expect("JSON");
        assert_eq!(rows(file), json(&value), "{file}");
    }
    // A row for `key: value`; lists of texts are one.
    let yaml = text("ai-toolkit/flux-text-encoders.yaml");
    let settings = yaml.lines().filter(|line| {
        let line = line.trim_start().trim_start_matches("- ");
        let is_branch = line.ends_with(':') && line != "prompts:";
        !line.starts_with(['#', '"']) && line.contains(':') && !is_branch
    });
    assert_eq!(rows("ai-toolkit/flux-text-encoders.yaml"), settings.count());
}

/// What a training of NoobAI's v-prediction model asks for, and what it forgot.
#[test]
fn v_prediction_tags_and_long_captions_of_kohya_are_taken_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = "pretrained_model_name_or_path = \"noobaiXLNAIXL_vPred10Version.safetensors\"\n\
        network_module = \"networks.lora\"\nv_parameterization = true\nmax_token_length = 150\n\
        shuffle_caption = true\nkeep_tokens_separator = \"|||\"\ncaption_tag_dropout_rate = 0.1\n\
        train_data_dir = \"pictures\"\nmax_train_steps = 9\noutput_dir = \"out\"\n";
    std::fs::write(folder.path().join("a.toml"), config).expect("written");
    let args = [
        "import",
        "config",
        "a.toml",
        "--from",
        "kohya",
        "--keep-recipe",
    ];
    let said = plumb(folder.path(), &args).stdout;
    for line in [
        "flavor = \"noobai-vpred-1.0\"",
        "prediction = \"v\" # v_parameterization",
        "zero_terminal_snr = false # kohya's default",
        "clip_g.tokens.chunks = 2 # max_token_length",
        "shuffle_tags = true # shuffle_caption",
        "keep_tags_separator = \"|||\"",
        "tag_dropout = 0.1",
    ] {
        assert!(said.contains(line), "{line} is not in\n{said}");
    }
}

/// In diffusers' pipelines a scale of 0 switches classifier-free guidance off, which is 1 here, and 0 would leave out the prompt.
#[test]
fn a_guidance_of_nothing_is_taken_over_as_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let guidance = |arch: &str, scale: &str| {
        let config = format!(
            "job: extension\nconfig: {{name: a, process: [{{type: sd_trainer, \
             model: {{name_or_path: x, arch: {arch}}}, sample: {{guidance_scale: {scale}}}}}]}}\n"
        );
        std::fs::write(folder.path().join("a.yaml"), config).expect("written");
        let said = plumb(folder.path(), &["import", "config", "a.yaml"]).stdout;
        let line = said.lines().find(|line| line.starts_with("guidance = "));
        let value = line.and_then(|line| line.split(" #").next());
        value.unwrap_or_else(|| panic!("{said}")).to_owned()
    };
    assert_eq!(guidance("sdxl", "0"), "guidance = 1");
    assert_eq!(guidance("sdxl", "7.5"), "guidance = 7.5");
    // The input of an embedding.
    assert_eq!(guidance("flux", "0"), "guidance = 0");
}

#[test]
fn wrong_inputs_are_refused_in_one_line_that_says_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let write =
        |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    write("a.yaml", "x: 1\n");
    let import = |args: &[&str]| plumb(folder.path(), &[&["import", "config"], args].concat());
    import(&["a.yaml"])
        .expect(2)
        .says("--from (one of kohya, musubi, ai-toolkit");
    import(&["a.yaml", "--from", "ai-toolkit"])
        .expect(1)
        .says("it has no `config`");
    for trainer in Trainer::ALL {
        let ran = import(&["none.yaml", "--from", trainer.name()]);
        ran.expect(1).says("none.yaml: cannot be read");
    }
    let ran = import(&["a.yaml", "--from", "nobody"]).expect(2);
    ran.says("invalid value 'nobody'").says("musubi");
    import(&["none.yaml"])
        .expect(1)
        .says("none.yaml: cannot be read");
    import(&[]).expect(2);
    write(
        "other.yaml",
        "job: extension\nconfig: {name: a, process: [{type: sd_trainer, model: {name_or_path: x, arch: hidream}}]}\n",
    );
    import(&["other.yaml"])
        .expect(2)
        .says("of no family that plumb trains");
    write(
        "no.yaml",
        "job: extension\nconfig: {name: a, process: [{type: sd_trainer, model: {arch: flux}}]}\n",
    );
    import(&["no.yaml"]).expect(2).says("names no base model");
    let fixture = root().join("kohya/sdxl.sh").display().to_string();
    import(&[&fixture, "--model", "sdxl/base-2"])
        .expect(2)
        .says("base-2");
    write("there.toml", "");
    import(&[&fixture, "--out", "there.toml"])
        .expect(2)
        .says("is there already");
    // Without --out, the Experiment alone is on standard output.
    let ran = import(&[&fixture]).expect(3);
    assert!(ran.stdout.contains("[model]") && !ran.stdout.contains("taken over"));
    assert!(ran.stderr.contains("taken over"));
}
