//! The forward pass against diffusers.

use super::*;
/// Aimed at; the promise is 1e-4.
const LIMIT: f64 = 1e-5;

#[test]
fn the_prediction_equals_diffusers() {
    for name in MODELS {
        let golden = golden(name);
        golden.check_forward(&*golden.model(), 3, LIMIT);
    }
}

#[test]
fn a_folder_in_shards_gives_the_same_network() {
    let golden = golden("dual");
    let folder = golden.folder();
    golden.split_into_shards(folder.path());
    golden.check_forward(&*load(folder.path()).unwrap(), 3, LIMIT);
}

/// Heads as small as the goldens' cannot be told from a single file where queries have no norm.
static SMALL_HEADS: Family = Family {
    open: |component| names::open_with(component, 12),
    ..SD3
};

#[test]
fn the_single_file_naming_gives_the_same_numbers_bit_for_bit() {
    for name in ["plain", "dual"] {
        let golden = golden(name);
        let file = golden_path(&format!("sd3_{name}_single.safetensors"));
        let single = testing::load(&SMALL_HEADS, &file).unwrap();
        golden.check_forward(&*single, 3, LIMIT);
        golden.check_same(&single, 3);
        assert_eq!(
            testing::digest(&SMALL_HEADS, &file),
            testing::digest(&SD3, golden.folder().path())
        );
    }
}

#[test]
fn a_row_of_a_batch_equals_the_row_alone() {
    golden("dual").check_rows_alone(&[1]);
}

#[test]
fn inputs_that_do_not_fit_get_one_clear_line() {
    let golden = golden("plain");
    let model = golden.model();
    let check = |change: &dyn Fn(&mut Inputs), expected: &str| {
        let mut inputs = golden.inputs(0);
        change(&mut inputs);
        assert_eq!(inputs.refused_by(&*model), expected);
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    check(
        &|inputs| inputs.latents = zeros(&[2, 4, 7, 8]),
        "latents of 7 x 8: expected a height and a width that are multiples of 2",
    );
    check(
        &|inputs| inputs.latents = zeros(&[2, 4, 8, 18]),
        "latents of 8 x 18: the position table of this model ends at 16 x 16",
    );
    check(
        &|inputs| inputs.latents = zeros(&[2, 3, 8, 8]),
        "denoiser input `latents`: expected shape [2, 4, 8, 8], found [2, 3, 8, 8]",
    );
    check(
        &|inputs| inputs.latents = zeros(&[2, 4, 3, 8, 8]),
        "denoiser input `latents`: expected pictures of shape [batch, channels, height, width], found [2, 4, 3, 8, 8]",
    );
    check(
        &|inputs| inputs.conditioning.context = zeros(&[2, 5, 21]),
        "denoiser input `context`: expected shape [2, 5, 20], found [2, 5, 21]",
    );
    check(
        &|inputs| inputs.conditioning.pooled = zeros(&[1, 28]),
        "denoiser input `pooled`: expected shape [2, 28], found [1, 28]",
    );
    check(
        &|inputs| inputs.timesteps = zeros(&[3]),
        "denoiser input `timesteps`: expected shape [2], found [3]",
    );
}
