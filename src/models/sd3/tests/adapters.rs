//! Adapters through the network: gradients against peft, against finite differences, and dropout.

use super::*;
use crate::lora::{AdapterSet, Dropout, LinearShape, bind::Recompute, targets};

/// The adapters of a case of a golden, and the gradients that peft has for them, in the layout of the set.
fn adapters_of(golden: &Golden, model: &dyn Denoiser, case: &str) -> (AdapterSet, Vec<f32>) {
    let alpha = golden.json("alphas")[case].as_f64().unwrap();
    let there = |linear: &&LinearShape| {
        golden
            .tensors
            .contains_key(&format!("golden.{case}.{}.lora_A.weight", linear.name))
    };
    let shapes = model
        .linears()
        .iter()
        .filter(there)
        .map(|linear| (linear.clone(), 4, alpha));
    let mut set = AdapterSet::zeroed(shapes).unwrap();
    let mut values = Vec::new();
    let mut gradients = Vec::new();
    for (name, shape, _) in set.tensors() {
        for (into, ending) in [(&mut values, ""), (&mut gradients, ".grad")] {
            let tensor = golden.get(&format!("{case}.{name}{ending}"));
            assert_eq!(tensor.dims(), shape);
            into.extend(tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        }
    }
    set.set_values(values).unwrap();
    (set, gradients)
}

fn mse(tape: &Tape, prediction: &Value, target: &Tensor) -> Value {
    tape.mse(prediction, target, None).unwrap()
}

fn gradients_of(
    model: &dyn Denoiser,
    inputs: &Inputs,
    set: &AdapterSet,
    recompute: Recompute,
    dropout: Option<Dropout>,
) -> (Value, Vec<f32>) {
    let tape = Tape::recording();
    let dtype = inputs.latents.dtype();
    let bound = set
        .bind(&tape, dtype, &Device::Cpu, dropout)
        .unwrap()
        .with_recompute(recompute);
    let prediction = inputs.call(model, &tape, &bound);
    let loss = mse(&tape, &prediction, &inputs.target);
    let mut gradients = tape.backward(&loss).unwrap();
    let mut flat = vec![0.0; set.values().len()];
    bound.collect(&mut gradients, 1.0, &mut flat).unwrap();
    (prediction, flat)
}

#[test]
fn every_adapters_gradient_equals_pefts() {
    for name in MODELS {
        let golden = Golden::read(name);
        let (model, inputs) = (golden.model(), golden.inputs(1));
        for case in ["all", "attention"] {
            let (set, expected) = adapters_of(&golden, &*model, case);
            let (prediction, found) = gradients_of(&*model, &inputs, &set, Recompute::Never, None);
            let error = error_of(prediction.tensor(), &golden.get(&format!("{case}.output")));
            assert!(error < 1e-5, "{name} {case}: {error:.1e}");
            let mut worst: f64 = 0.0;
            for (tensor, _, range) in set.tensors() {
                let slice = |all: &[f32]| {
                    Tensor::from_slice(&all[range.clone()], range.len(), &Device::Cpu).unwrap()
                };
                let error = error_of(&slice(&found), &slice(&expected));
                assert!(error < 1e-4, "{name} {case} {tensor}: {error:.1e}");
                worst = worst.max(error);
                if error > 1e-5 {
                    println!("{tensor} {error:.1e}");
                }
            }
            println!(
                "{name} {case}: prediction {error:.1e}, worst gradient {worst:.1e} of {} tensors",
                2 * set.adapters().len()
            );
        }
    }
}

#[test]
fn running_blocks_again_gives_the_same_gradients() {
    let golden = Golden::read("dual");
    let (model, inputs) = (golden.model(), golden.inputs(1));
    let some = Some(Dropout {
        probability: 0.3,
        seed: 5,
        pass: 2,
    });
    for (case, dropout) in [
        ("attention", None),
        ("attention", some),
        ("all", None),
        ("all", some),
    ] {
        let (set, _) = adapters_of(&golden, &*model, case);
        let (_, kept) = gradients_of(&*model, &inputs, &set, Recompute::Never, dropout);
        for recompute in [Recompute::EveryBlock, Recompute::Blocks([1].into())] {
            let (_, again) = gradients_of(&*model, &inputs, &set, recompute.clone(), dropout);
            // With adapters on modulations, the conditioning vector's gradient is a sum over blocks, and
            // adding up block by block rounds otherwise.
            let flat = |all: &[f32]| Tensor::from_slice(all, all.len(), &Device::Cpu).unwrap();
            let error = error_of(&flat(&again), &flat(&kept));
            assert!(
                error < 1e-6,
                "{case} {recompute:?} {dropout:?}: {error:.1e}"
            );
            assert!(
                case == "all" || kept == again,
                "{case} {recompute:?} {dropout:?}"
            );
        }
    }
}

#[test]
fn dropout_changes_with_its_pass_only() {
    let golden = Golden::read("plain");
    let (model, inputs) = (golden.model(), golden.inputs(1));
    let (set, _) = adapters_of(&golden, &*model, "attention");
    let run = |probability, pass| {
        let dropout = Some(Dropout {
            probability,
            seed: 1,
            pass,
        });
        gradients_of(&*model, &inputs, &set, Recompute::Never, dropout).1
    };
    let none = gradients_of(&*model, &inputs, &set, Recompute::Never, None).1;
    assert!(run(0.5, 1) == run(0.5, 1) && run(0.0, 1) == none);
    assert!(run(0.5, 1) != run(0.5, 2) && run(0.5, 1) != none);
    let tape = Tape::recording();
    assert!(
        set.bind(
            &tape,
            DType::F32,
            &Device::Cpu,
            Some(Dropout {
                probability: 1.0,
                seed: 1,
                pass: 1
            })
        )
        .is_err()
    );
}

#[test]
fn every_adapter_on_every_preset_gets_a_gradient() {
    for name in MODELS {
        let golden = Golden::read(name);
        let (model, inputs) = (golden.model(), golden.inputs(0));
        for preset in Sd3.presets() {
            let chosen =
                targets::select(model.linears(), &[preset.name.to_owned()], Sd3.presets()).unwrap();
            let mut set = AdapterSet::new(&chosen, 2, 2.0, 3).unwrap();
            // B starts at zero, which gives A no gradient.
            set.values_mut().iter_mut().for_each(|value| *value += 0.01);
            let (_, found) = gradients_of(&*model, &inputs, &set, Recompute::Never, None);
            for (tensor, _, range) in set.tensors() {
                assert!(
                    found[range].iter().any(|&g| g != 0.0),
                    "{name} {}: {tensor}",
                    preset.name
                );
            }
        }
    }
}

/// The networks in f64, so that a difference of two losses has digits to spare.
fn in_f64(golden: &Golden) -> (MmDit, Inputs) {
    let folder = golden.folder();
    let named = Named::open(
        Sd3.components(folder.path())
            .unwrap()
            .get("transformer")
            .unwrap(),
    )
    .unwrap();
    let wide = |tensor: Tensor| tensor.to_dtype(DType::F64).unwrap();
    let model = MmDit::build(named.architecture.clone(), &|shape, name| {
        named.get(shape, name).map(wide)
    });
    let inputs = golden.inputs(1);
    let inputs = Inputs {
        latents: wide(inputs.latents),
        timesteps: inputs.timesteps,
        conditioning: ConditioningTensors {
            context: wide(inputs.conditioning.context),
            pooled: wide(inputs.conditioning.pooled),
        },
        target: wide(inputs.target),
    };
    (model.unwrap(), inputs)
}

#[test]
fn each_a_and_b_receives_the_gradient_that_finite_differences_give() {
    for name in MODELS {
        let golden = Golden::read(name);
        let (model, inputs) = in_f64(&golden);
        let (set, _) = adapters_of(&golden, &model, "all");
        let (_, gradients) = gradients_of(&model, &inputs, &set, Recompute::Never, None);
        let loss = |set: &AdapterSet| {
            let tape = Tape::off();
            let bound = set.bind(&tape, DType::F64, &Device::Cpu, None).unwrap();
            let prediction = inputs.call(&model, &tape, &bound);
            mse(&tape, &prediction, &inputs.target)
                .tensor()
                .to_scalar::<f64>()
                .unwrap()
        };
        let mut worst: f64 = 0.0;
        // The last block drops what its context's queries find.
        let unused = format!(
            "transformer_blocks.{}.attn.add_q_proj.",
            if name == "dual" { 2 } else { 1 }
        );
        for (tensor, _, range) in set.tensors() {
            // Along the gradient itself, with steps that f32 masters hold exactly enough: the difference divided by
            // what the masters really moved.
            let unused = tensor.starts_with(&unused);
            let norm = gradients[range.clone()]
                .iter()
                .map(|g| f64::from(*g).powi(2))
                .sum::<f64>()
                .sqrt();
            assert_eq!(norm == 0.0, unused, "{name} {tensor}");
            let moved = |sign: f64| {
                let mut moved = set.clone();
                for i in range.clone() {
                    // Where there is no gradient: any direction will do.
                    let direction = if unused {
                        1.0
                    } else {
                        f64::from(gradients[i]) / norm
                    };
                    let step = sign * 1e-4 * direction;
                    moved.values_mut()[i] += step as f32;
                }
                moved
            };
            let (up, down) = (moved(1.0), moved(-1.0));
            let expected: f64 = range
                .clone()
                .map(|i| {
                    f64::from(gradients[i])
                        * (f64::from(up.values()[i]) - f64::from(down.values()[i]))
                })
                .sum();
            let found = loss(&up) - loss(&down);
            let error = (found - expected).abs() / expected.abs().max(1e-12);
            worst = worst.max(error);
            assert!(
                error < 1e-5,
                "{name} {tensor}: {found:e} by differences, {expected:e} by gradient"
            );
        }
        println!("{name}: worst difference {worst:.1e}");
    }
}
