//! Against diffusers' schedulers, see `tools/goldens/samplers.py`.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use super::{Sampler, SamplerRun, Spacing};
use crate::diffusion::{Prediction, Process};

fn golden(name: &str) -> HashMap<String, Tensor> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    candle_core::safetensors::load(golden.join(name), &Device::Cpu).expect("the golden")
}

/// The formula that stands for a network.
fn network(x: &Tensor, timestep: f64) -> Tensor {
    let curve = (x * 1.3).and_then(|x| x.tanh()).and_then(|x| x * 0.8);
    curve
        .and_then(|x| x + 0.3 * (timestep / 100.0).cos())
        .expect("computed")
}

fn distance(ours: &Tensor, theirs: &Tensor) -> f32 {
    let difference = (ours - theirs).and_then(|d| d.abs()?.max_all()?.to_scalar::<f32>());
    let scale = theirs.abs().and_then(|t| t.max_all()?.to_scalar::<f32>());
    difference.expect("a distance") / scale.expect("a scale")
}

#[test]
fn every_sampler_takes_the_steps_of_diffusers() {
    let golden = golden("samplers.safetensors");
    let kinds = [
        ("epsilon", Prediction::Epsilon, false, &[1, 4, 20][..]),
        ("v_prediction", Prediction::Velocity, false, &[1, 4, 20]),
        ("zero_snr", Prediction::Velocity, true, &[20]),
    ];
    for (name, sampler) in [
        ("euler", Sampler::Euler),
        ("euler_ancestral", Sampler::EulerAncestral),
        ("ddim", Sampler::Ddim),
        ("dpmpp2m", Sampler::Dpmpp2m),
        ("dpmpp2m_karras", Sampler::Dpmpp2mKarras),
    ] {
        for (kind, prediction, zero_terminal_snr, counts) in kinds {
            let process = Process {
                prediction,
                zero_terminal_snr,
            };
            for &steps in counts {
                let key = format!("{name}.{kind}.{steps}");
                let pictures = &golden[&format!("{key}.pictures")];
                let told = golden[&format!("{key}.timesteps")]
                    .to_vec1::<f32>()
                    .expect("numbers");
                let mut run =
                    SamplerRun::new(sampler, process, steps, 1.0, Spacing::Trained).expect("a run");
                let mut x = golden["start"].clone();
                for (i, told) in told.into_iter().enumerate() {
                    assert_eq!(run.timestep(i), f64::from(told), "{key}, step {i}");
                    let prediction = network(&x, run.timestep(i));
                    let noise = || golden["noises"].narrow(0, i, 1);
                    x = run.step(i, &x, &prediction, noise).expect("a step");
                    let theirs = pictures.narrow(0, i, 1).expect("theirs");
                    let error = distance(&x, &theirs);
                    assert!(error < 1e-4, "{key}, step {i}: off by {error}");
                }
                assert_eq!(run.num_steps(), steps);
            }
        }
    }
}

/// Against `tools/goldens/unipc.py`.
#[test]
fn unipc_takes_the_steps_of_diffusers_as_wan_has_them() {
    let golden = golden("unipc.safetensors");
    for shift in [3.0, 5.0, 12.0] {
        for steps in [1, 2, 3, 20, 50] {
            let key = format!("{shift}.{steps}");
            let pictures = &golden[&format!("{key}.pictures")];
            let told = golden[&format!("{key}.timesteps")].to_vec1::<f32>();
            let flow = Process::new(Prediction::Flow);
            let run = SamplerRun::new(Sampler::Unipc, flow, steps, shift, Spacing::Even);
            let (mut run, mut x) = (run.expect("a run"), golden["start"].clone());
            for (i, told) in told.expect("numbers").into_iter().enumerate() {
                assert_eq!(run.timestep(i), f64::from(told), "{key}, step {i}");
                let prediction = network(&x, run.timestep(i));
                let none = || unreachable!("UniPC draws no noise");
                x = run.step(i, &x, &prediction, none).expect("a step");
                let error = distance(&x, &pictures.narrow(0, i, 1).expect("theirs"));
                assert!(error < 1e-5, "{key}, step {i}: off by {error}");
            }
        }
    }
}

#[test]
fn a_flow_knows_two_samplers_and_a_schedule_has_an_end() {
    let flow = Process::new(Prediction::Flow);
    let refused = SamplerRun::new(Sampler::Ddim, flow, 4, 1.0, Spacing::Trained);
    assert!(refused.is_err_and(|e| e.to_string().contains("`euler`")));
    let ddpm = Process::new(Prediction::Epsilon);
    assert!(SamplerRun::new(Sampler::Unipc, ddpm, 4, 1.0, Spacing::Trained).is_err());
    for steps in [0, 1000] {
        let refused = SamplerRun::new(Sampler::Ddim, ddpm, steps, 1.0, Spacing::Trained);
        assert!(refused.is_err_and(|e| e.to_string().contains("1 to 999")));
    }
    assert!(SamplerRun::new(Sampler::Euler, ddpm, 999, 1.0, Spacing::Trained).is_ok());
}
