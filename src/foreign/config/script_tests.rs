//! Command lines of scripts that work with variables, and dollar signs in paths.

use super::knowledge::Status;
use super::tests::{imported, row};

const RUN: &str = "accelerate launch sdxl_train_network.py --pretrained_model_name_or_path /m/x.safetensors --train_data_dir /a \
    --output_dir o --max_train_steps 10 --network_train_unet_only";

#[test]
fn options_in_variables_and_lists_are_read() {
    for text in [
        format!(
            "ARGS=(--learning_rate 3e-4 --network_dim 64)\n{RUN} --network_module networks.lora \"${{ARGS[@]}}\"\n"
        ),
        format!(
            "A=\"--network_dim 64\"\nA+=\" --learning_rate 3e-4\"\n{RUN} --network_module networks.lora $A\n"
        ),
        format!(
            "{RUN} --network_module networks.lora --network_dim ${{DIM:-64}} --learning_rate \"${{LR:=3e-4}}\"\n"
        ),
    ] {
        let found = imported(&[("run.sh", &text)]);
        for said in [
            "rank = 64",
            "learning_rate = 3e-4",
            "targets = [\"transformer\"]",
        ] {
            assert!(
                found.experiment.contains(said),
                "{said}: {}",
                found.experiment
            );
        }
        assert!(
            !found.notes.iter().any(|note| note.contains("left alone")),
            "{:?}",
            found.notes
        );
    }
}

#[test]
fn what_a_variable_may_hold_is_not_said_to_be_unwritten() {
    let text = format!("{RUN} --network_module networks.lora $EXTRA\n");
    let found = imported(&[("run.sh", &text)]);
    let (status, why) = row(&found, "$EXTRA");
    assert_eq!(status, Status::NotSupported);
    assert!(why.contains("may stand for more options"), "{why}");
    assert_eq!(row(&found, "--network_module").0, Status::Effective);
    assert!(
        found
            .table()
            .contains("not written in what can be read, so that")
    );
    let plain = imported(&[("run.sh", &format!("{RUN} --network_module networks.lora\n"))]);
    assert!(plain.table().contains("not written, so that"));
}

#[test]
fn a_variable_under_a_condition_is_no_fact() {
    let text = format!(
        "LR=1e-4\nif [ \"$1\" = hi ]; then\n  LR=5e-4\nfi\n{RUN} --learning_rate $LR --output_name n_$(date +%s)\n"
    );
    let found = imported(&[("run.sh", &text)]);
    assert!(!found.experiment.contains("e-4"), "{}", found.experiment);
    for (place, variable) in [
        ("--learning_rate", "`$LR`"),
        ("--output_name", "`n_$(date +%s)`"),
    ] {
        let (status, why) = row(&found, place);
        assert_eq!(status, Status::NotSupported);
        assert!(
            why.starts_with(&format!("a variable stands in {variable}")),
            "{why}"
        );
    }
    let note = "`$LR` is set in line 3 under a condition";
    assert!(
        found.notes.iter().any(|found| found.starts_with(note)),
        "{:?}",
        found.notes
    );
}

/// An Experiment reads `$NAME` in a path, and no trainer does.
#[test]
fn a_dollar_sign_of_a_path_is_none_of_a_variable() {
    let text = "job: extension\nconfig:\n  name: x\n  process:\n  - type: sd_trainer\n    training_folder: out\n    \
        model: {name_or_path: /m/$x.safetensors, arch: sdxl}\n    network: {type: lora, linear: 4}\n    \
        datasets:\n    - {folder_path: '/im/$HOME'}\n    train: {steps: 20}\n";
    let found = imported(&[("c.yaml", text)]);
    for said in ["\"/im/$$HOME\"", "\"/m/$$x.safetensors\""] {
        assert!(found.experiment.contains(said), "{}", found.experiment);
    }
    let text = format!("{RUN} --vae '/v/$HOME' --network_weights \"$HOME/l.safetensors\"\n");
    let found = imported(&[("run.sh", &text)]);
    for said in ["vae = \"/v/$$HOME\"", "from = \"$HOME/l.safetensors\""] {
        assert!(found.experiment.contains(said), "{}", found.experiment);
    }
}

/// argparse knows a name as it is declared, and not with the other dash.
#[test]
fn a_name_with_another_dash_is_not_known() {
    let found = imported(&[("run.sh", &format!("{RUN} --learning-rate 1\n"))]);
    let (status, why) = row(&found, "--learning-rate");
    assert_eq!(status, Status::Unknown);
    assert!(why.contains("it does know `learning_rate`"), "{why}");
}
