//! The forward pass against diffusers.

use super::*;

/// Aimed at; the promise is 1e-4.
const LIMIT: f64 = 1e-5;

/// With pictures and captions that fill a multiple of 32 and that do not, batches of captions of different lengths, and a caption of one token.
const INPUTS: usize = 5;

/// The places of those with rows that are none of a caption's.
const PADDED: [usize; 3] = [2, 3, 4];

#[test]
fn the_prediction_equals_diffusers() {
    for name in MODELS {
        let golden = golden(name);
        for i in PADDED {
            assert!(golden.inputs(i).conditioning.token_counts.is_some());
        }
        golden.check_forward(&*golden.model(), INPUTS, LIMIT);
    }
}

#[test]
fn the_single_file_naming_gives_the_same_numbers_bit_for_bit() {
    for name in MODELS {
        let golden = golden(name);
        let path = golden_path(&format!("zimage_{name}_single.safetensors"));
        let (single, folder) = (load(&path).unwrap(), golden.model());
        for i in 0..INPUTS {
            let call = |model: &dyn Denoiser| {
                let tape = Tape::off(&Kernels::NONE);
                let output = golden.inputs(i).call(model, &tape, &Bound::none());
                let flat = output.tensor().flatten_all().unwrap();
                flat.to_vec1::<f32>().unwrap()
            };
            assert!(call(&*single) == call(&*folder), "{name}, inputs {i}");
        }
        assert_eq!(single.linears(), folder.linears());
        // Whichever file it lies in, the base model is the same.
        let folder = golden.folder();
        let digest = |path: &Path| testing::digest(&ZIMAGE, path);
        assert_eq!(digest(&path), digest(folder.path()));
    }
}

#[test]
fn a_row_of_a_batch_equals_the_row_alone() {
    let golden = golden("two");
    let model = golden.model();
    for i in [1, 2, 3] {
        let inputs = golden.inputs(i);
        let call = |inputs: &Inputs| {
            let tape = Tape::off(&Kernels::NONE);
            inputs.call(&*model, &tape, &Bound::none()).into_tensor()
        };
        let whole = call(&inputs);
        for row in 0..2 {
            let expected = whole.narrow(0, row, 1).unwrap();
            assert!(error_of(&call(&inputs.row(row)), &expected) < 1e-6);
        }
    }
}

/// So that the store need not have them.
#[test]
fn rows_that_are_not_seen_need_not_be_there() {
    for name in MODELS {
        let golden = golden(name);
        let model = golden.model();
        let call = |inputs: &Inputs| {
            let tape = Tape::off(&Kernels::NONE);
            inputs.call(&*model, &tape, &Bound::none()).into_tensor()
        };
        let whole = golden.inputs(2);
        for row in 0..2 {
            let mut cut = whole.row(row);
            let counts = cut.conditioning.token_counts.clone().unwrap();
            cut.conditioning.context = cut.conditioning.context.narrow(1, 0, counts[0]).unwrap();
            let expected = call(&whole).narrow(0, row, 1).unwrap();
            assert!(error_of(&call(&cut), &expected) < 1e-6, "{name} {row}");
            // And without a mask, when nothing is hidden by it.
            cut.conditioning.token_counts = None;
            assert!(error_of(&call(&cut), &expected) < 1e-6, "{name} {row}");
        }
    }
}

#[test]
fn the_timestep_matters_and_nothing_else_is_told() {
    let golden = golden("two");
    let (model, mut inputs) = (golden.model(), golden.inputs(0));
    let call = |inputs: &Inputs| {
        let tape = Tape::off(&Kernels::NONE);
        inputs.call(&*model, &tape, &Bound::none()).into_tensor()
    };
    let before = call(&inputs);
    inputs.timesteps = (inputs.timesteps * 0.9).unwrap();
    assert!(error_of(&call(&inputs), &before) > 1e-3);
}

#[test]
fn inputs_that_do_not_fit_get_one_clear_line() {
    let check = |change: &dyn Fn(&mut Inputs), expected: &str| {
        let golden = golden("two");
        let mut inputs = golden.inputs(0);
        change(&mut inputs);
        assert_eq!(inputs.refused_by(&*golden.model()), expected);
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    check(
        &|inputs| inputs.latents = zeros(&[2, 4, 7, 10]),
        "latents of 7 x 10: expected a height and a width that are multiples of 2",
    );
    check(
        &|inputs| inputs.conditioning.context = zeros(&[2, 5, 21]),
        "denoiser input `context`: expected shape [2, 5, 20], found [2, 5, 21]",
    );
    check(
        &|inputs| inputs.conditioning.pooled = zeros(&[2, 12]),
        "denoiser input `pooled`: expected shape [2, 0], found [2, 12]",
    );
    check(
        &|inputs| inputs.conditioning.guidance = Some(zeros(&[2])),
        "denoiser input `guidance`: this model has no guidance embedding, found an input",
    );
    check(
        &|inputs| inputs.conditioning.token_counts = Some(vec![5, 6]),
        "denoiser input `token_counts`: expected 2 numbers of 1 to 5, found [5, 6]",
    );
}
