//! Every place in which a checkpoint says something, and what is refused.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::*;
use crate::models;

fn assets(folder: &str) -> std::path::PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join(format!("assets/{folder}/scheduler/scheduler_config.json"))
}

/// A single file with one tensor of a denoiser, markers and metadata; and a YAML file beside it, if any.
fn single(
    family: &str,
    markers: &[&str],
    metadata: &[(&str, &str)],
    yaml: Option<&str>,
) -> Result<Schedule, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    let one = |shape| TensorView::new(Dtype::F32, shape, &[]).expect("a tensor");
    let number = 1f32.to_le_bytes();
    let weight = TensorView::new(Dtype::F32, vec![1], &number).expect("a tensor");
    let mut tensors = vec![("model.diffusion_model.input_blocks.0.0.weight", weight)];
    tensors.extend(markers.iter().map(|name| (*name, one(vec![0]))));
    let metadata: HashMap<_, _> = metadata
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let bytes = safetensors::serialize(tensors, Some(metadata)).expect("bytes");
    std::fs::write(&path, bytes).expect("written");
    if let Some(text) = yaml {
        std::fs::write(path.with_extension("yaml"), text).expect("written");
    }
    read(family, &path, None)
}

fn read(family: &str, path: &Path, named: Option<&Path>) -> Result<Schedule, String> {
    let components = models::family(family).expect("a family").components(path);
    let components = components.expect("a model");
    let denoiser = components.get("unet").expect("a denoiser");
    Schedule::read(&components, denoiser, false, named).map_err(|error| error.to_string())
}

/// What a configuration says, and whether it is read for a flow.
fn config(file: &str, changes: Value) -> Result<Schedule, String> {
    let text = std::fs::read_to_string(assets(file)).expect("the asset");
    let mut config: serde_json::Map<String, Value> = serde_json::from_str(&text).expect("JSON");
    for (field, value) in changes.as_object().expect("an object") {
        match value {
            Value::String(gone) if gone == "(gone)" => config.remove(field),
            value => config.insert(field.clone(), value.clone()),
        };
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("scheduler_config.json");
    std::fs::write(&path, Value::Object(config).to_string()).expect("written");
    config::read(&path, file != "tiny-sdxl").map_err(|error| error.to_string())
}

fn short(said: Result<Schedule, String>) -> (Option<Prediction>, Option<bool>, Option<Shift>) {
    let said = said.expect("read");
    (
        said.prediction.map(|p| p.value),
        said.zero_terminal_snr.map(|b| b.value),
        said.shift.map(|s| s.value),
    )
}

const V: Option<Prediction> = Some(Prediction::Velocity);
const EPSILON: Option<Prediction> = Some(Prediction::Epsilon);

#[test]
fn single_files_say_it_by_tensors_metadata_and_a_yaml() {
    for family in ["sdxl", "sd1"] {
        let said = |markers: &[&str], metadata: &[(&str, &str)], yaml| {
            let (prediction, zero, shift) = short(single(family, markers, metadata, yaml));
            assert_eq!(shift, None);
            (prediction, zero)
        };
        assert_eq!(said(&[], &[], None), (None, None));
        assert_eq!(said(&["v_pred"], &[], None), (V, None));
        assert_eq!(said(&["v_pred", "ztsnr"], &[], None), (V, Some(true)));
        assert_eq!(said(&["ztsnr"], &[], None), (None, Some(true)));
        let below = "model.diffusion_model.v_pred";
        assert_eq!(said(&[below], &[], None), (V, None));
        for (key, value, prediction) in [
            ("modelspec.prediction_type", "v", V),
            ("modelspec.prediction_type", "V_prediction", V),
            ("modelspec.prediction_type", "epsilon", EPSILON),
            ("modelspec.predict_key", "v", V),
            ("modelspec.architecture", "stable-diffusion-v2-768-v", V),
            (
                "modelspec.architecture",
                "stable-diffusion-xl-v1-base",
                None,
            ),
            ("modelspec.prediction_type", "", None),
        ] {
            assert_eq!(
                said(&[], &[(key, value)], None),
                (prediction, None),
                "{key} {value}"
            );
        }
        let kohya = [
            ("ss_v_parameterization", "True"),
            ("ss_zero_terminal_snr", "True"),
        ];
        assert_eq!(said(&[], &kohya, None), (V, Some(true)));
        let kohya = [
            ("ss_v_parameterization", "False"),
            ("ss_zero_terminal_snr", "None"),
        ];
        assert_eq!(said(&[], &kohya, None), (EPSILON, None));
        let yaml = "model:\n  params:\n    parameterization: \"v\"  # as trained\n";
        assert_eq!(said(&[], &[], Some(yaml)), (V, None));
        let sgm =
            "scaling_config:\n  target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling\n";
        assert_eq!(said(&[], &[], Some(sgm)), (V, None));
        assert_eq!(said(&[], &[], Some("model: {}\n")), (None, None));
    }
}

#[test]
fn edm_and_contradictions_are_refused_by_name() {
    let refused = |markers: &[&str], metadata: &[(&str, &str)], why: &str| {
        let said = single("sdxl", markers, metadata, None).expect_err("refused");
        assert!(said.contains(why) && !said.contains('\n'), "{said}");
    };
    for name in ["edm_vpred.sigma_max", "edm_mean", "edm_std"] {
        refused(
            &[name],
            &[],
            &format!("tensor `{name}`: its noise schedule is that of EDM"),
        );
    }
    let (key, why) = (
        "modelspec.predict_key",
        "the model contradicts itself: tensor `v_pred`",
    );
    refused(&["v_pred"], &[(key, "epsilon")], why);
    refused(
        &[],
        &[(key, "x0")],
        "`modelspec.predict_key`: expected epsilon or v, found `x0`",
    );
    refused(&["v_pred"], &[("ss_v_parameterization", "False")], why);
    let odd = "`ss_zero_terminal_snr`: expected True or False, found `maybe`";
    refused(&[], &[("ss_zero_terminal_snr", "maybe")], odd);
    refused(
        &["ztsnr"],
        &[(key, "epsilon")],
        "its last step is pure noise",
    );
    let escape = "\u{1b}[31m".repeat(100_000);
    let said = single("sdxl", &[], &[(key, &escape)], None).expect_err("refused");
    assert!(said.len() < 2000 && !said.contains('\u{1b}'));
}

#[test]
fn what_a_person_names_counts_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model.safetensors");
    let tensors = ["model.diffusion_model.input_blocks.0", "v_pred"];
    let tensors = tensors.map(|n| (n, TensorView::new(Dtype::F32, vec![0], &[]).expect("one")));
    let bytes = safetensors::serialize(tensors, None).expect("bytes");
    std::fs::write(&model, bytes).expect("written");
    assert_eq!(short(read("sdxl", &model, None)), (V, None, None));
    let file = assets("tiny-sdxl");
    for named in [file.as_path(), file.parent().expect("a folder")] {
        let said = short(read("sdxl", &model, Some(named)));
        assert_eq!(said, (EPSILON, Some(false), None));
    }
}

#[test]
fn a_schedulers_configuration_is_read_as_diffusers_does() {
    let sdxl = |changes| short(config("tiny-sdxl", changes));
    assert_eq!(sdxl(json!({})), (EPSILON, Some(false), None));
    let v = json!({"prediction_type": "v_prediction", "rescale_betas_zero_snr": true});
    assert_eq!(sdxl(v), (V, Some(true), None));
    let silent = json!({"prediction_type": null, "rescale_betas_zero_snr": "(gone)"});
    assert_eq!(sdxl(silent), (None, None, None));
    let shift = |file, changes| short(config(file, changes)).2;
    let resolution = Some(Shift::By(ShiftRule::Resolution));
    assert_eq!(shift("tiny-sd3", json!({})), Some(Shift::Fixed(3.0)));
    assert_eq!(
        shift("tiny-sd3", json!({"shift": 5})),
        Some(Shift::Fixed(5.0))
    );
    assert_eq!(
        shift("tiny-sd3", json!({"shift": "(gone)"})),
        Some(Shift::Fixed(1.0))
    );
    assert_eq!(
        shift("tiny-sd3", json!({"use_dynamic_shifting": true})),
        resolution
    );
    assert_eq!(shift("tiny-flux", json!({})), resolution);
    let schnell = json!({"use_dynamic_shifting": false, "shift": 1.0});
    assert_eq!(shift("tiny-flux", schnell), Some(Shift::Fixed(1.0)));
}

#[test]
fn a_schedule_that_is_not_here_is_refused_with_both_values() {
    for (file, changes, why) in [
        (
            "tiny-sdxl",
            json!({"prediction_type": "sample"}),
            "`prediction_type`: expected epsilon or v_prediction, found `sample`",
        ),
        (
            "tiny-sdxl",
            json!({"prediction_type": 3}),
            "`prediction_type`: expected a text, found 3",
        ),
        (
            "tiny-sdxl",
            json!({"rescale_betas_zero_snr": 1}),
            "expected true or false, found 1",
        ),
        (
            "tiny-sdxl",
            json!({"beta_schedule": "linear"}),
            "`beta_schedule`: expected scaled_linear",
        ),
        (
            "tiny-sdxl",
            json!({"beta_end": 0.024}),
            "`beta_end`: expected 0.012, which plumb trains and samples with, found 0.024",
        ),
        (
            "tiny-sdxl",
            json!({"beta_start": "(gone)"}),
            "`beta_start`: expected 0.00085, found none",
        ),
        (
            "tiny-sdxl",
            json!({"num_train_timesteps": 500}),
            "expected 1000",
        ),
        (
            "tiny-sdxl",
            json!({"trained_betas": [0.1]}),
            "`trained_betas`: expected none",
        ),
        (
            "tiny-sdxl",
            json!({"_class_name": "EDMEulerScheduler"}),
            "one of EDM",
        ),
        (
            "tiny-sdxl",
            json!({"timestep_type": "continuous"}),
            "one of EDM",
        ),
        (
            "tiny-sdxl",
            json!({"_class_name": "FlowMatchEulerDiscreteScheduler"}),
            "rectified flow",
        ),
        (
            "tiny-sdxl",
            json!({"prediction_type": "flow_prediction"}),
            "rectified flow",
        ),
        (
            "tiny-sd3",
            json!({"_class_name": "DDPMScheduler"}),
            "expected a scheduler of rectified flow, found `DDPMScheduler`",
        ),
        ("tiny-sd3", json!({"shift": 0}), "expected a number above 0"),
        (
            "tiny-sd3",
            json!({"num_train_timesteps": 500}),
            "expected 1000",
        ),
        (
            "tiny-flux",
            json!({"max_shift": 1.3}),
            "`max_shift`: expected 1.15",
        ),
        (
            "tiny-flux",
            json!({"time_shift_type": "linear"}),
            "`time_shift_type`: expected exponential",
        ),
    ] {
        let said = config(file, changes.clone()).expect_err("refused");
        assert!(
            said.contains(why) && !said.contains('\n'),
            "{changes}: {said}"
        );
    }
}

#[test]
fn a_lora_of_another_prediction_is_told_by_each_key_that_says_so() {
    let told = |pairs: &[(&str, &str)], process| {
        let metadata = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        trained_otherwise(&metadata, process).join("; ")
    };
    let epsilon = Process::new(Prediction::Epsilon);
    let v = Process::new(Prediction::Velocity);
    let zero = Process {
        zero_terminal_snr: true,
        ..v
    };
    for (pairs, process, expected) in [
        (
            &[
                ("modelspec.prediction_type", "epsilon"),
                ("ss_v_parameterization", "False"),
            ][..],
            v,
            "prediction epsilon (`modelspec.prediction_type`); prediction epsilon (`ss_v_parameterization`)",
        ),
        (
            &[("modelspec.predict_key", "v")],
            epsilon,
            "prediction v (`modelspec.predict_key`)",
        ),
        (&[("modelspec.prediction_type", "v")], zero, ""),
        (
            &[("ss_zero_terminal_snr", "True")],
            v,
            "zero_terminal_snr true (`ss_zero_terminal_snr`)",
        ),
        // kohya's scripts write it whatever is predicted.
        (&[("ss_zero_terminal_snr", "False")], zero, ""),
        (&[("ss_v_parameterization", "None")], v, ""),
        (&[("modelspec.prediction_type", "sample")], v, ""),
        // Some write Stable Diffusion's word for all models.
        (
            &[("modelspec.prediction_type", "epsilon")],
            Process::new(Prediction::Flow),
            "",
        ),
    ] {
        assert_eq!(told(pairs, process), expected, "{pairs:?}");
    }
}
