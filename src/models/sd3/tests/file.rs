//! A LoRA file through the network: written, read back, and loaded by diffusers.

use super::*;
use crate::lora::{SaveDtype, file};
use crate::models::testing::{predict, trained, write_lora};

#[test]
fn a_saved_lora_read_back_gives_the_same_prediction() {
    let golden = golden("dual");
    let (model, inputs) = (golden.model(), golden.inputs(0));
    let set = trained(&model, "all-linear");
    let expected = predict(&*model, &inputs, &set);
    let without = inputs.call(&*model, &Tape::off(&Kernels::NONE), &Bound::none());
    assert!(
        difference(without.tensor(), &expected) > 1e-2,
        "the adapters do nothing"
    );
    for (dtype, limit) in [
        (SaveDtype::F32, 1e-6),
        (SaveDtype::F16, 1e-2),
        (SaveDtype::Bf16, 1e-1),
    ] {
        let read = file::read(&write_lora(&SD3, &set, dtype), "lora", SD3.denoiser()).unwrap();
        read.adapters.check(model.linears()).unwrap();
        let error = difference(&predict(&*model, &inputs, &read.adapters), &expected);
        println!("{dtype:?}: {error:.1e}");
        assert!(error < limit, "{dtype:?}: {error:.1e}");
    }
}

#[test]
fn diffusers_loads_a_saved_lora_and_predicts_the_same() {
    for name in MODELS {
        golden(name).check_lora_file_in_diffusers();
    }
}
