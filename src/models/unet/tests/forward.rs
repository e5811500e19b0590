//! The forward pass against diffusers.

use super::*;

/// Aimed at; the promise is 1e-4.
const LIMIT: f64 = 1e-5;

/// Square, wide, and with sides that do not halve evenly.
const INPUTS: usize = 3;

#[test]
fn the_prediction_equals_diffusers() {
    for name in MODELS {
        let golden = golden(name);
        golden.check_forward(&*golden.model(), INPUTS, LIMIT);
    }
}

#[test]
fn the_single_file_naming_gives_the_same_numbers_bit_for_bit() {
    for name in ["sdxl", "sd1"] {
        let golden = golden(name);
        let single = testing::load(family(name), &single_file(name)).unwrap();
        golden.check_same(&single, INPUTS);
        // Whichever file it lies in, the base model is the same.
        let folder = golden.folder();
        let digest = |path: &Path| testing::digest(family(name), path);
        assert_eq!(digest(&single_file(name)), digest(folder.path()));
    }
}

#[test]
fn a_row_of_a_batch_equals_the_row_alone() {
    for name in ["sdxl", "sd1"] {
        let golden = golden(name);
        let (model, inputs) = (golden.model(), golden.inputs(2));
        let whole = inputs.call(&*model, &Tape::off(&Kernels::NONE), &Bound::none());
        for row in 0..2 {
            let alone = inputs
                .row(row)
                .call(&*model, &Tape::off(&Kernels::NONE), &Bound::none());
            let of_whole = whole.tensor().narrow(0, row, 1).unwrap();
            assert_eq!(
                difference(alone.tensor(), &of_whole),
                0.0,
                "{name} row {row}"
            );
        }
    }
}

#[test]
fn inputs_that_do_not_fit_get_one_clear_line() {
    let golden = golden("sdxl");
    let (model, mut inputs) = (golden.model(), golden.inputs(0));
    inputs.conditioning.time_ids = None;
    assert_eq!(
        inputs.refused_by(&*model),
        "denoiser input `time_ids`: this network has a size embedding, found no input"
    );
    let mut inputs = golden.inputs(0);
    inputs.latents = Tensor::zeros((2, 4, 3, 8, 8), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(
        inputs.refused_by(&*model),
        "denoiser input `latents`: expected pictures of shape [batch, channels, height, width], found [2, 4, 3, 8, 8]"
    );
    let mut inputs = golden.inputs(0);
    inputs.conditioning.context = inputs.conditioning.context.narrow(2, 0, 19).unwrap();
    assert_eq!(
        inputs.refused_by(&*model),
        "denoiser input `context`: expected shape [2, 5, 20], found [2, 5, 19]"
    );
}
