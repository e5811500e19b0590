//! The forward pass against diffusers.

use super::*;

/// Aimed at; the promise is 1e-4.
const LIMIT: f64 = 1e-5;

fn check(golden: &Golden, model: &dyn Denoiser, what: &str) {
    for i in 0..3 {
        let output = golden.inputs(i).call(model, &Tape::off(), &Bound::none());
        let error = error_of(output.tensor(), &golden.get(&format!("{i}.output")));
        println!("{} {what}, inputs {i}: {error:.1e}", golden.name);
        assert!(
            error < LIMIT,
            "{} {what}, inputs {i}: {error:.1e}",
            golden.name
        );
    }
}

#[test]
fn the_prediction_equals_diffusers() {
    for name in MODELS {
        let golden = Golden::read(name);
        check(&golden, &*golden.model(), "folder");
    }
}

#[test]
fn a_folder_in_shards_gives_the_same_network() {
    let golden = Golden::read("dual");
    let folder = golden.folder();
    let transformer = folder.path().join("transformer");
    std::fs::remove_file(transformer.join("diffusion_pytorch_model.safetensors")).unwrap();
    let mut shards = [HashMap::new(), HashMap::new(), HashMap::new()];
    let mut map = serde_json::Map::new();
    let file = |i: usize| format!("diffusion_pytorch_model-0000{}-of-00003.safetensors", i + 1);
    for (i, (name, tensor)) in golden.weights().into_iter().enumerate() {
        map.insert(name.clone(), file(i % 3).into());
        shards[i % 3].insert(name, tensor);
    }
    for (i, shard) in shards.iter().enumerate() {
        candle_core::safetensors::save(shard, transformer.join(file(i))).unwrap();
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    std::fs::write(
        transformer.join("diffusion_pytorch_model.safetensors.index.json"),
        index,
    )
    .unwrap();
    check(&golden, &*load(folder.path()).unwrap(), "shards");
}

/// The network of a single file; heads as small as the goldens' cannot be told from it where queries have no norm.
fn single_file(path: &Path) -> MmDit {
    let components = Sd3.components(path).unwrap();
    let named = Named::open_with(components.get("transformer").unwrap(), 12).unwrap();
    MmDit::load(&named).unwrap()
}

#[test]
fn the_single_file_naming_gives_the_same_numbers_bit_for_bit() {
    for name in ["plain", "dual"] {
        let golden = Golden::read(name);
        let single = single_file(&golden_path(&format!("sd3_{name}_single.safetensors")));
        let folder = golden.model();
        check(&golden, &single, "single file");
        for i in 0..3 {
            let call = |model: &dyn Denoiser| {
                let output = golden.inputs(i).call(model, &Tape::off(), &Bound::none());
                output
                    .tensor()
                    .flatten_all()
                    .unwrap()
                    .to_vec1::<f32>()
                    .unwrap()
            };
            assert!(call(&single) == call(&*folder), "{name}, inputs {i}");
        }
        assert_eq!(single.linears(), folder.linears());
    }
}

#[test]
fn a_row_of_a_batch_equals_the_row_alone() {
    let golden = Golden::read("dual");
    let (model, inputs) = (golden.model(), golden.inputs(1));
    let whole = inputs.call(&*model, &Tape::off(), &Bound::none());
    for row in 0..2 {
        let take = |t: &Tensor| t.narrow(0, row, 1).unwrap();
        let alone = Inputs {
            latents: take(&inputs.latents),
            timesteps: take(&inputs.timesteps),
            conditioning: ConditioningTensors {
                context: take(&inputs.conditioning.context),
                pooled: take(&inputs.conditioning.pooled),
            },
            target: take(&inputs.target),
        };
        let alone = alone.call(&*model, &Tape::off(), &Bound::none());
        assert!(error_of(alone.tensor(), &take(whole.tensor())) < 1e-6);
    }
}

#[test]
fn inputs_that_do_not_fit_get_one_clear_line() {
    let golden = Golden::read("plain");
    let model = golden.model();
    let check = |change: &dyn Fn(&mut Inputs), expected: &str| {
        let mut inputs = golden.inputs(0);
        change(&mut inputs);
        let latents = Value::constant(inputs.latents.clone());
        let result = model.forward(
            &Tape::off(),
            &Bound::none(),
            &latents,
            &inputs.timesteps,
            &inputs.conditioning,
        );
        // candle adds a backtrace where one is asked for.
        let error = result.err().unwrap().to_string();
        assert_eq!(error.lines().next(), Some(expected));
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
