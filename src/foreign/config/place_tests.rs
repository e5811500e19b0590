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

#[test]
fn what_a_data_set_switches_off_is_off_for_it() {
    let off = "flip_aug = false\ncaption_dropout_rate = 0";
    let options = "--caption_dropout_rate 0.3 --flip_aug";
    let found = kohya(options, "", &[("", off), ("", off)]);
    for absent in ["flip", "caption_dropout"] {
        assert!(!found.experiment.contains(absent), "{}", found.experiment);
    }
    for option in ["--flip_aug", "--caption_dropout_rate"] {
        assert_eq!(row(&found, option).0, Status::Overridden, "{option}");
    }
    // Where one of two has it off, the other keeps it.
    let found = kohya("--flip_aug", "", &[("", "flip_aug = false"), ("", "")]);
    assert_eq!(found.experiment.matches("flip = true").count(), 1);
    assert_eq!(row(&found, "--flip_aug").0, Status::Effective);
    let general = "shuffle_caption = true\ncolor_aug = true";
    let off = "shuffle_caption = false\ncolor_aug = false";
    let found = kohya("", general, &[("", off)]);
    assert!(!found.experiment.contains("shuffle_tags"));
    assert_eq!(row(&found, "general.color_aug").0, Status::Overridden);
    let found = kohya("--color_aug", "", &[("", "color_aug = false")]);
    assert_eq!(row(&found, "--color_aug").0, Status::Overridden);
    // What is on again further in counts.
    let on = [("flip_aug = false", "flip_aug = true")];
    let found = kohya("--flip_aug", "", &on);
    assert_eq!(found.experiment.matches("flip = true").count(), 1);
}

#[test]
fn a_directory_of_diffusion_pipe_may_have_neither_repeats_nor_shuffling() {
    let run = "output_dir = 'o'\nepochs = 1\nmicro_batch_size_per_gpu = 1\ndataset = 'd.toml'\n\
        [model]\ntype = 'sdxl'\ncheckpoint_path = '/m/x.safetensors'\ndtype = 'bfloat16'\n[adapter]\ntype = 'lora'\nrank = 4\n\
        [optimizer]\ntype = 'adamw'\nlr = 1e-4\n";
    let sets = "resolutions = [512]\nnum_repeats = 5\ncache_shuffle_num = 6\n\
        [[directory]]\npath = '/a'\nnum_repeats = 1\ncache_shuffle_num = 0\n[[directory]]\npath = '/b'\n";
    let found = imported(&[("run.toml", run), ("d.toml", sets)]);
    let first = found.experiment.find("\"/a\"").expect("the first");
    let second = found.experiment.find("\"/b\"").expect("the second");
    let first = &found.experiment[first..second];
    assert!(!first.contains("shuffle_tags"), "{first}");
    assert!(!first.contains("repeats = 5"), "{first}");
    assert_eq!(found.experiment.matches("repeats = 5").count(), 1);
    // A delimiter of all directories is that of one that shuffles.
    let sets = "resolutions = [512]\ncache_shuffle_delimiter = ';'\n[[directory]]\npath = '/a'\ncache_shuffle_num = 2\n";
    let found = imported(&[("run.toml", run), ("d.toml", sets)]);
    assert!(!found.experiment.contains("shuffle_tags"));
    let (status, _) = row(&found, "directory[0].cache_shuffle_num");
    assert_eq!(status, Status::NotSupported);
}

#[test]
fn megapixels_of_simpletuners_run_are_those_of_its_data_sets() {
    let config = r#"{"model_family": "sdxl", "pretrained_model_name_or_path": "/m/x.safetensors", "resolution_type": "area",
        "max_train_steps": 9, "data_backend_config": "b.json"}"#;
    let backends = r#"[{"id": "a", "type": "local", "instance_data_dir": "/a", "resolution": 512, "resolution_type": "pixel_area"},
        {"id": "b", "type": "local", "instance_data_dir": "/b", "resolution": 1.0}]"#;
    let found = imported(&[("config.json", config), ("b.json", backends)]);
    assert_eq!(row(&found, "[0].resolution").0, Status::Effective);
    let (status, why) = row(&found, "[1].resolution");
    assert_eq!(status, Status::NotSupported);
    assert!(why.contains("megapixels"), "{why}");
}

#[test]
fn what_one_data_set_goes_without_is_told_with_its_folder() {
    let run = "python flux_2_train_network.py --model_version klein-base-4b --dit /m/flux-2-klein-base-4b.safetensors --vae /m/ae.safetensors \
        --text_encoder /m/t --network_module networks.lora_flux_2 --network_dim 4 --max_train_steps 9 --dataset_config d.toml";
    let set = |folder: &str, more: &str| {
        format!(
            "[[datasets]]\nimage_directory = \"{folder}\"\ncache_directory = \"/c{folder}\"\n{more}\n"
        )
    };
    let general =
        "[general]\nresolution = [512, 512]\nenable_bucket = true\nbucket_no_upscale = true\n";
    let text = format!(
        "{general}{}{}",
        set("/a", ""),
        set("/b", "enable_bucket = false")
    );
    let found = imported(&[("run.sh", run), ("d.toml", &text)]);
    let (status, why) = row(&found, "general.bucket_no_upscale");
    assert_eq!(status, Status::NotSupported);
    assert!(why.starts_with("`/b` goes without it: "), "{why}");
    assert!(
        found
            .table()
            .contains("bucket_no_upscale = true  ->  dataset.no_upscale = true")
    );
    // A set of its own may have it off.
    let text = format!(
        "{general}{}{}",
        set("/a", "bucket_no_upscale = false"),
        set("/b", "")
    );
    let found = imported(&[("run.sh", run), ("d.toml", &text)]);
    assert_eq!(found.experiment.matches("no_upscale = true").count(), 1);
}

#[test]
fn values_of_data_sets_that_a_run_has_one_of_are_lost_where_they_differ() {
    let sets = [("batch_size = 8", ""), ("batch_size = 1", "")];
    let found = kohya("", "", &sets);
    for place in ["datasets[0].batch_size", "datasets[1].batch_size"] {
        let (status, why) = row(&found, place);
        assert_eq!(status, Status::NotSupported, "{place}");
        let said =
            "data sets have it at 8 and 1, and plumb has one value for all: train.batch_size = 1";
        assert_eq!(why, said);
    }
    // As many are no difference.
    let same = [("batch_size = 8", ""), ("batch_size = 8", "")];
    let (status, _) = row(&kohya("", "", &same), "datasets[1].batch_size");
    assert_eq!(status, Status::Effective);
    // One that only some have is another than none.
    let sets = [("", "caption_dropout_rate = 0.1"), ("", ""), ("", "")];
    let found = kohya("", "", &sets);
    let (status, why) = row(&found, "datasets[0].subsets[0].caption_dropout_rate");
    assert_eq!(status, Status::NotSupported);
    assert!(
        why.starts_with("data sets have it at 0.1 and the default"),
        "{why}"
    );
    let all = "--caption_dropout_rate 0.1";
    let (status, _) = row(&kohya(all, "", &sets), "--caption_dropout_rate");
    assert!(!status.is_lost());
    let off = [("", "caption_dropout_rate = 0.0"), ("", "")];
    let found = kohya(all, "", &off);
    assert_eq!(
        row(&found, "--caption_dropout_rate").0,
        Status::NotSupported
    );
}

#[test]
fn a_condition_may_stand_in_another_place_and_is_each_data_sets_own() {
    let found = kohya("--shuffle_caption", "", &[("", "keep_tokens = 2")]);
    assert!(
        found.experiment.contains("keep_tags = 2"),
        "{}",
        found.experiment
    );
    let options = "--keep_tokens 2 --caption_separator \";\"";
    let found = kohya(options, "", &[("", "shuffle_caption = true"), ("", "")]);
    assert_eq!(found.experiment.matches("keep_tags = 2").count(), 1);
    assert_eq!(row(&found, "--caption_separator").0, Status::NotSupported);
    let found = kohya("--keep_tokens 2", "", &[("", "")]);
    assert_eq!(row(&found, "--keep_tokens").0, Status::Inert);
    // A rate of 0 drops no tags.
    let off = "--keep_tokens 2 --caption_tag_dropout_rate 0";
    assert_eq!(
        row(&kohya(off, "", &[("", "")]), "--keep_tokens").0,
        Status::Inert
    );

    let config = r#"{"model_family": "sdxl", "pretrained_model_name_or_path": "/m/x.safetensors", "instance_prompt": "a zeb",
        "max_train_steps": 9, "data_backend_config": "b.json"}"#;
    let backends = r#"[{"id": "a", "type": "local", "instance_data_dir": "/a", "caption_strategy": "instanceprompt"},
        {"id": "b", "type": "local", "instance_data_dir": "/b", "caption_strategy": "textfile"}]"#;
    let found = imported(&[("config.json", config), ("b.json", backends)]);
    let default = "default_caption = \"a zeb\"";
    assert_eq!(
        found.experiment.matches(default).count(),
        1,
        "{}",
        found.experiment
    );
    assert_eq!(row(&found, "instance_prompt").0, Status::Effective);
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
