//! Against diffusers' schedulers, see `tools/goldens/samplers.py`.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use super::{Sampler, SamplerRun, Spacing};
use crate::diffusion::{Prediction, Process};

fn golden() -> HashMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/samplers.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).expect("the golden")
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
    let golden = golden();
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

#[test]
fn a_flow_knows_one_sampler_and_a_schedule_has_an_end() {
    let flow = Process::new(Prediction::Flow);
    let refused = SamplerRun::new(Sampler::Ddim, flow, 4, 1.0, Spacing::Trained);
    assert!(refused.is_err_and(|e| e.to_string().contains("`euler`")));
    let ddpm = Process::new(Prediction::Epsilon);
    for steps in [0, 1000] {
        let refused = SamplerRun::new(Sampler::Ddim, ddpm, steps, 1.0, Spacing::Trained);
        assert!(refused.is_err_and(|e| e.to_string().contains("1 to 999")));
    }
    assert!(SamplerRun::new(Sampler::Euler, ddpm, 999, 1.0, Spacing::Trained).is_ok());
}
