//! Tests of denoisers against goldens: files of `tools/goldens` with a model of diffusers, inputs, outputs, adapters and
//! gradients.

#![expect(clippy::disallowed_methods, reason = "fixtures need no durable writes")]

pub(super) use crate::nn::testing::difference;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value as Json;

use super::opened::{Lists, wanted};
use super::peers::Script;
use super::{
    Architecture, ConditioningTensors, Denoiser, Error, Family, OpenedDenoiser, Placement, Source,
    StepShape,
};
use crate::autograd::{Tape, Value};
use crate::diffusion::{Level, add_noise};
use crate::lora::{
    AdapterSet, Bound, Dropout, FileOptions, LinearShape, SaveDtype, bind::Recompute, file,
    metadata, targets,
};
use crate::nn::Kernels;
use crate::nn::testing::memory::live;
use crate::nn::weights::Weights;
use crate::optim::{Optimizer, OptimizerOptions, clip_gradient_norm};
use crate::vae::Extents;

/// A golden file.
pub(super) struct Golden {
    pub(super) family: &'static Family,
    pub(super) name: String,
    pub(super) tensors: HashMap<String, Tensor>,
    pub(super) metadata: HashMap<String, String>,
}

pub(super) fn golden_path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(file)
}

impl Golden {
    pub(super) fn read(family: &'static Family, name: &str) -> Self {
        let path = golden_path(&format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        Self {
            family,
            name: name.to_owned(),
            tensors,
            metadata: header.metadata().clone().unwrap(),
        }
    }

    pub(super) fn json(&self, key: &str) -> Json {
        serde_json::from_str(&self.metadata[key]).unwrap()
    }

    pub(super) fn get(&self, name: &str) -> Tensor {
        self.find(name).unwrap()
    }

    fn find(&self, name: &str) -> Option<Tensor> {
        let tensor = self.tensors.get(&format!("golden.{name}"))?;
        Some(tensor.to_dtype(DType::F32).unwrap())
    }

    /// The `i`th set of inputs.
    pub(super) fn inputs(&self, i: usize) -> Inputs {
        let get = |what: &str| self.get(&format!("{i}.{what}"));
        let counts = self.find(&format!("{i}.token_counts"));
        let counts = counts.map(|t| t.to_vec1::<f32>().unwrap());
        Inputs {
            latents: get("latents"),
            timesteps: get("timesteps"),
            conditioning: ConditioningTensors {
                guidance: self.find(&format!("{i}.guidance")),
                time_ids: self.find(&format!("{i}.time_ids")),
                reference: self.find(&format!("{i}.reference")),
                token_counts: counts.map(|c| c.into_iter().map(|n| n as usize).collect()),
                ..ConditioningTensors::new(get("context"), get("pooled"))
            },
            target: get("target"),
        }
    }

    /// The model's own tensors, in bf16.
    pub(super) fn weights(&self) -> HashMap<String, Tensor> {
        let own = self
            .tensors
            .iter()
            .filter(|(name, _)| !name.starts_with("golden."));
        own.map(|(name, tensor)| (name.clone(), tensor.clone()))
            .collect()
    }

    /// Writes the model as diffusers would, and gives the folder.
    pub(super) fn folder(&self) -> tempfile::TempDir {
        self.folder_with(&self.weights(), &self.metadata["config"])
    }

    pub(super) fn folder_with(
        &self,
        weights: &HashMap<String, Tensor>,
        config: &str,
    ) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let part = folder.path().join(self.family.denoiser());
        std::fs::create_dir(&part).unwrap();
        std::fs::write(part.join("config.json"), config).unwrap();
        let file = part.join("diffusion_pytorch_model.safetensors");
        candle_core::safetensors::save(weights, file).unwrap();
        folder
    }

    pub(super) fn model(&self) -> Model {
        load(self.family, self.folder().path()).unwrap()
    }

    /// The network in f64, so that a difference of two losses has digits to spare.
    pub(super) fn model_in_f64(&self) -> Box<dyn Denoiser> {
        let folder = self.folder();
        let opened = open(self.family, folder.path()).unwrap();
        opened.build(&InF64(opened.weights())).unwrap()
    }

    /// Replaces the one file of [`Self::folder`] by shards with an index.
    pub(super) fn split_into_shards(&self, folder: &Path) {
        let part = folder.join(self.family.denoiser());
        std::fs::remove_file(part.join("diffusion_pytorch_model.safetensors")).unwrap();
        let mut shards = [HashMap::new(), HashMap::new(), HashMap::new()];
        let mut map = serde_json::Map::new();
        let file = |i: usize| format!("diffusion_pytorch_model-0000{}-of-00003.safetensors", i + 1);
        for (i, (name, tensor)) in self.weights().into_iter().enumerate() {
            map.insert(name.clone(), file(i % 3).into());
            shards[i % 3].insert(name, tensor);
        }
        for (i, shard) in shards.iter().enumerate() {
            candle_core::safetensors::save(shard, part.join(file(i))).unwrap();
        }
        let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
        std::fs::write(
            part.join("diffusion_pytorch_model.safetensors.index.json"),
            index,
        )
        .unwrap();
    }

    /// That the model predicts what diffusers' did for the first `count` sets of inputs.
    pub(super) fn check_forward(&self, model: &dyn Denoiser, count: usize, limit: f64) {
        for i in 0..count {
            let output = self
                .inputs(i)
                .call(model, &Tape::off(&Kernels::NONE), &Bound::none());
            let error = difference(output.tensor(), &self.get(&format!("{i}.output")));
            println!("{} inputs {i}: {error:.1e}", self.name);
            assert!(error < limit, "{} inputs {i}: {error:.1e}", self.name);
        }
    }

    /// That the model in another file of this network is the same: numbers bit for bit for the first `count` sets of inputs, linears,
    /// and the digest of the base model, whichever file it lies in.
    pub(super) fn check_single_file(&self, file: &str, count: usize) {
        let path = golden_path(file);
        self.check_same(&load(self.family, &path).unwrap(), count);
        let folder = self.folder();
        let digest = |path: &Path| digest(self.family, path);
        assert_eq!(digest(&path), digest(folder.path()));
    }

    /// That `other` gives this network's numbers bit for bit for the first `count` sets of inputs, and has its linears.
    pub(super) fn check_same(&self, other: &Model, count: usize) {
        let own = self.model();
        for i in 0..count {
            let inputs = self.inputs(i);
            let numbers = |model: &Model| {
                let flat = inputs.output(&**model).flatten_all().unwrap();
                flat.to_vec1::<f32>().unwrap()
            };
            assert!(numbers(other) == numbers(&own), "{} inputs {i}", self.name);
        }
        assert_eq!(other.linears(), own.linears());
    }

    /// That each row of the batches at `places` is predicted as it is alone.
    pub(super) fn check_rows_alone(&self, places: &[usize]) {
        let model = self.model();
        for &i in places {
            let inputs = self.inputs(i);
            let whole = inputs.output(&*model);
            for row in 0..2 {
                let expected = whole.narrow(0, row, 1).unwrap();
                let error = difference(&inputs.row(row).output(&*model), &expected);
                assert!(
                    error < 1e-6,
                    "{} inputs {i} row {row}: {error:.1e}",
                    self.name
                );
            }
        }
    }

    /// That rows of the context that are not seen need not be there, so that the store need not have them; nor a mask, when it would hide
    /// none.
    pub(super) fn check_unseen_rows(&self, place: usize) {
        let model = self.model();
        let whole = self.inputs(place);
        for row in 0..2 {
            let mut cut = whole.row(row);
            let counts = cut.conditioning.token_counts.clone().unwrap();
            cut.conditioning.context = cut.conditioning.context.narrow(1, 0, counts[0]).unwrap();
            let expected = whole.output(&*model).narrow(0, row, 1).unwrap();
            assert!(
                difference(&cut.output(&*model), &expected) < 1e-6,
                "{} {row}",
                self.name
            );
            cut.conditioning.token_counts = None;
            assert!(
                difference(&cut.output(&*model), &expected) < 1e-6,
                "{} {row}",
                self.name
            );
        }
    }

    /// The adapters of a case, and the gradients that peft has for them, in the layout of the set.
    pub(super) fn adapters(&self, model: &Model, case: &str) -> (AdapterSet, Vec<f32>) {
        let alpha = self.json("alphas")[case].as_f64().unwrap();
        let there = |linear: &&LinearShape| {
            self.tensors
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
                let tensor = self.get(&format!("{case}.{name}{ending}"));
                assert_eq!(tensor.dims(), shape);
                into.extend(tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            }
        }
        set.set_values(values).unwrap();
        (set, gradients)
    }

    /// That with the adapters of each case the prediction is diffusers' and every gradient peft's.
    pub(super) fn check_gradients(&self, cases: &[&str]) {
        let (model, inputs, name) = (self.model(), self.inputs(1), &self.name);
        for case in cases {
            let (set, expected) = self.adapters(&model, case);
            let (prediction, found) = gradients_of(&*model, &inputs, &set, Recompute::Never, None);
            let error = difference(prediction.tensor(), &self.get(&format!("{case}.output")));
            assert!(error < 1e-5, "{name} {case}: {error:.1e}");
            let mut worst: f64 = 0.0;
            for (tensor, _, range) in set.tensors() {
                let slice = |all: &[f32]| {
                    Tensor::from_slice(&all[range.clone()], range.len(), &Device::Cpu).unwrap()
                };
                let error = difference(&slice(&found), &slice(&expected));
                assert!(error < 1e-4, "{name} {case} {tensor}: {error:.1e}");
                worst = worst.max(error);
            }
            println!(
                "{name} {case}: prediction {error:.1e}, worst gradient {worst:.1e} of {} tensors",
                2 * set.adapters().len()
            );
        }
    }

    /// That diffusers takes a LoRA of ours whole and predicts as we do with it. Runs where `PLUMB_PYTHON` names a
    /// Python with diffusers and peft.
    pub(super) fn check_lora_file_in_diffusers(&self) {
        let (folder, inputs) = (self.folder(), self.inputs(0));
        let model = load(self.family, folder.path()).unwrap();
        for (preset, dtype) in [
            ("all-linear", SaveDtype::F32),
            ("attention", SaveDtype::Bf16),
        ] {
            let bytes = write_lora(self.family, &trained(&model, preset), dtype);
            // What the file holds, which in bf16 is not quite what was trained.
            let set = file::read(&bytes, "lora", self.family.denoiser())
                .unwrap()
                .adapters;
            let (lora, dump) = (
                folder.path().join("lora.safetensors"),
                folder.path().join("dump.safetensors"),
            );
            std::fs::write(&lora, bytes).unwrap();
            let mut dumped = HashMap::from([
                ("latents", inputs.latents.clone()),
                ("timesteps", inputs.timesteps.clone()),
                ("context", inputs.conditioning.context.clone()),
                ("pooled", inputs.conditioning.pooled.clone()),
                ("output", predict(&*model, &inputs, &set)),
            ]);
            if let Some(guidance) = &inputs.conditioning.guidance {
                dumped.insert("guidance", guidance.clone());
            }
            if let Some(ids) = &inputs.conditioning.time_ids {
                dumped.insert("time_ids", ids.clone());
            }
            if let Some(reference) = &inputs.conditioning.reference {
                dumped.insert("reference", reference.clone());
            }
            candle_core::safetensors::save(&dumped, &dump).unwrap();
            let script = Script::file("tools/check_lora.py")
                .arg(&lora)
                .arg(folder.path())
                .arg(&dump);
            if let Some(said) = script.run() {
                println!("{} {preset} {dtype:?}: {}", self.name, said.trim());
            }
        }
    }
}

/// That a training from a golden's start, on its latents, noise, noise levels and captions, has the losses that diffusers,
/// peft and torch's AdamW have.
pub(super) fn check_loss_curve(golden: &Golden) {
    const RATE: f64 = 1e-2;
    let model = golden.model();
    let there = |linear: &&LinearShape| {
        let name = format!("golden.curve.{}.lora_A.weight", linear.name);
        golden.tensors.contains_key(&name)
    };
    let chosen = model.linears().iter().filter(there);
    let mut set = AdapterSet::zeroed(chosen.map(|linear| (linear.clone(), 4, 4.0))).unwrap();
    let numbers = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let start = set.tensors().map(|(name, ..)| name).collect::<Vec<_>>();
    let start = start
        .iter()
        .flat_map(|name| numbers(golden.get(&format!("curve.{name}"))));
    let start = start.collect();
    set.set_values(start).unwrap();
    let values = set.to_device(&Device::Cpu).unwrap();
    let mut optimizer = Optimizer::new(
        OptimizerOptions::default(),
        set.values().len(),
        &Device::Cpu,
    )
    .unwrap();
    let losses = numbers(golden.get("curve.loss"));
    for (step, expected) in losses.iter().enumerate() {
        let find = |name: &str| Some(golden.find(&format!("curve.{name}"))?.get(step).unwrap());
        let get = |name: &str| find(name).unwrap();
        let (latents, noise, sigmas) = (get("latents"), get("noise"), get("sigmas"));
        let levels: Vec<Level> = numbers(sigmas.clone())
            .into_iter()
            .map(|sigma| Level::of_flow(f64::from(sigma)))
            .collect();
        let inputs = Inputs {
            latents: add_noise(&latents, &noise, &levels).unwrap(),
            timesteps: (sigmas * 1000.0).unwrap(),
            conditioning: ConditioningTensors {
                guidance: find("guidance"),
                token_counts: find("token_counts")
                    .map(|t| numbers(t).into_iter().map(|n| n as usize).collect()),
                reference: find("reference"),
                ..ConditioningTensors::new(get("context"), get("pooled"))
            },
            target: (noise - latents).unwrap(),
        };
        set.set_values(values.to_vec1().unwrap()).unwrap();
        let (prediction, gradient) = gradients_of(&*model, &inputs, &set, Recompute::Never, None);
        let loss = Tape::off(&Kernels::NONE)
            .mse(&prediction, &inputs.target, None)
            .unwrap();
        let loss = loss.tensor().to_scalar::<f32>().unwrap();
        let error = (loss - expected).abs() / expected;
        println!("step {}: {loss:.6}, {error:.1e} off", step + 1);
        assert!(error < 1e-4, "step {}: {loss} for {expected}", step + 1);
        let gradient = Tensor::from_slice(&gradient, gradient.len(), &Device::Cpu).unwrap();
        clip_gradient_norm(&Kernels::NONE, &gradient, Some(1.0)).unwrap();
        optimizer
            .step(&Kernels::NONE, &values, &gradient, RATE)
            .unwrap();
    }
    assert_eq!(losses.len(), 20);
}

/// That what a forward pass keeps on the tape is what the plan of memory counts, for every preset, with blocks kept and
/// with blocks run again.
pub(super) fn check_activations(golden: &Golden, latents: (usize, usize), context: usize) {
    let (family, folder) = (golden.family, golden.folder());
    let model = load(family, folder.path()).unwrap();
    let inputs = golden.inputs(0).resized(latents, context);
    let reference = inputs.conditioning.reference.as_ref();
    let reference = reference.map(|t| t.dims4().unwrap());
    // Of videos what is beyond batch, channels, height and width.
    let frames = match *inputs.latents.dims() {
        [_, _, frames, _, _] => frames,
        _ => 1,
    };
    for preset in family.presets {
        let set = trained(&model, preset.name);
        let step = StepShape {
            samples: inputs.latents.dim(0).unwrap(),
            latents: Extents {
                frames,
                ..Extents::picture(latents.0, latents.1)
            },
            reference: reference.map(|(_, _, h, w)| Extents::picture(h, w)),
            context,
            adapted: set
                .adapters()
                .iter()
                .map(|a| (a.name.clone(), a.rank))
                .collect(),
            attended: false,
        };
        let plan = model.opened.activations(&step);
        let inputs_only: u64 = plan.blocks.iter().map(|block| block.inputs).sum();
        for (recompute, expected) in [
            (Recompute::Never, plan.kept(0)),
            (Recompute::EveryBlock, plan.outside + inputs_only),
        ] {
            let pass = || {
                let tape = Tape::recording(&Kernels::NONE);
                let bound = set.bind(&tape, DType::F32, &Device::Cpu, None).unwrap();
                let bound = bound.with_recompute(recompute.clone());
                let before = live();
                let prediction = inputs.call(&*model, &tape, &bound);
                let loss = tape.mse(&prediction, &inputs.target, None).unwrap();
                drop(prediction);
                let kept = live() - before;
                drop(loss);
                kept as f64 / 4.0
            };
            // The first one also makes the scratch that kernels keep.
            pass();
            let kept = pass();
            let ratio = expected as f64 / kept;
            println!(
                "{} {} {recompute:?}: {ratio:.3} of {kept}",
                golden.name, preset.name
            );
            assert!(
                (0.93..1.15).contains(&ratio),
                "{} {}: {ratio}",
                golden.name,
                preset.name
            );
        }
    }
}

/// Tensors of files in f64, so that a difference of two losses has digits to spare.
struct InF64<'a>(&'a Weights);

impl Source for InF64<'_> {
    fn tensor(&self, shape: &[usize], name: &str) -> Result<Tensor, Error> {
        Ok(self.0.get(shape, name)?.to_dtype(DType::F64).unwrap())
    }
}

/// What a denoiser is given, and what it should have said.
pub(super) struct Inputs {
    pub(super) latents: Tensor,
    pub(super) timesteps: Tensor,
    pub(super) conditioning: ConditioningTensors,
    pub(super) target: Tensor,
}

impl Inputs {
    /// The same in f64, so that a difference of two losses has digits to spare.
    pub(super) fn in_f64(self) -> Self {
        let wide = |tensor: Tensor| tensor.to_dtype(DType::F64).unwrap();
        let conditioning = self.conditioning;
        Self {
            latents: wide(self.latents),
            timesteps: self.timesteps,
            conditioning: ConditioningTensors {
                context: wide(conditioning.context),
                pooled: wide(conditioning.pooled),
                reference: conditioning.reference.map(wide),
                ..conditioning
            },
            target: wide(self.target),
        }
    }

    pub(super) fn call(&self, model: &dyn Denoiser, tape: &Tape, adapters: &Bound) -> Value {
        self.try_call(model, tape, adapters).unwrap()
    }

    fn try_call(
        &self,
        model: &dyn Denoiser,
        tape: &Tape,
        adapters: &Bound,
    ) -> candle_core::Result<Value> {
        let latents = Value::constant(self.latents.clone());
        model.forward(
            tape,
            adapters,
            &latents,
            &self.timesteps,
            &self.conditioning,
        )
    }

    /// What the model predicts, without adapters.
    pub(super) fn output(&self, model: &dyn Denoiser) -> Tensor {
        let tape = Tape::off(&Kernels::NONE);
        self.call(model, &tape, &Bound::none()).into_tensor()
    }

    /// What the model says of inputs that it does not take.
    pub(super) fn refused_by(&self, model: &dyn Denoiser) -> String {
        let result = self.try_call(model, &Tape::off(&Kernels::NONE), &Bound::none());
        // candle adds a backtrace where one is asked for.
        let error = result.err().unwrap().to_string();
        error.lines().next().unwrap().to_owned()
    }

    /// Of other extents, with made-up numbers.
    fn resized(&self, (h, w): (usize, usize), context: usize) -> Self {
        let (b, c) = (self.latents.dim(0).unwrap(), self.latents.dim(1).unwrap());
        let mut shape = self.latents.dims().to_vec();
        let sides = shape.len() - 2;
        shape[sides..].copy_from_slice(&[h, w]);
        let width = self.conditioning.context.dim(2).unwrap();
        let made = |shape: &[usize]| {
            crate::nn::testing::normal(1, shape)
                .to_dtype(DType::F32)
                .unwrap()
        };
        Self {
            latents: made(&shape),
            timesteps: self.timesteps.clone(),
            conditioning: ConditioningTensors {
                context: made(&[b, context, width]),
                // Half as high.
                reference: (self.conditioning.reference.as_ref()).map(|_| made(&[b, c, h / 2, w])),
                ..self.conditioning.clone()
            },
            target: made(&shape),
        }
    }

    /// One row of the batch.
    pub(super) fn row(&self, row: usize) -> Self {
        let take = |t: &Tensor| t.narrow(0, row, 1).unwrap();
        let whole = &self.conditioning;
        Self {
            latents: take(&self.latents),
            timesteps: take(&self.timesteps),
            conditioning: ConditioningTensors {
                context: take(&whole.context),
                pooled: take(&whole.pooled),
                token_counts: whole.token_counts.as_ref().map(|counts| vec![counts[row]]),
                guidance: whole.guidance.as_ref().map(take),
                time_ids: whole.time_ids.as_ref().map(take),
                reference: whole.reference.as_ref().map(take),
            },
            target: take(&self.target),
        }
    }
}

/// A denoiser, and what was known of it before it was loaded.
pub(super) struct Model {
    pub(super) opened: OpenedDenoiser,
    denoiser: Box<dyn Denoiser>,
}

impl Model {
    pub(super) fn linears(&self) -> &[LinearShape] {
        self.opened.linears()
    }
}

impl std::ops::Deref for Model {
    type Target = dyn Denoiser;

    fn deref(&self) -> &Self::Target {
        &*self.denoiser
    }
}

pub(super) fn open(family: &'static Family, path: &Path) -> Result<OpenedDenoiser, Error> {
    family.open(family.components(path)?)
}

pub(super) fn load(family: &'static Family, path: &Path) -> Result<Model, Error> {
    let opened = open(family, path)?;
    let denoiser = opened.load(&Placement::default())?;
    Ok(Model { opened, denoiser })
}

/// Tensors and linears of a network, and its parameters.
pub(super) fn listed(architecture: &dyn Architecture) -> (Lists, usize) {
    let lists = wanted(architecture).unwrap();
    let sizes = lists
        .0
        .iter()
        .map(|(_, shape)| shape.iter().product::<usize>());
    let parameters = sizes.sum();
    (lists, parameters)
}

/// The digest of the denoiser's weights.
pub(super) fn digest(family: &'static Family, path: &Path) -> crate::digest::Digest {
    let opened = open(family, path).unwrap();
    opened.check_whole().unwrap();
    opened.weights().digest(opened.tensors()).unwrap()
}

/// The message of a failure, with the folder's name replaced by a dot.
pub(super) fn message<T>(result: Result<T, Error>, folder: &Path) -> String {
    let error = result.err().unwrap().to_string();
    error.replace(&folder.display().to_string(), ".")
}

/// The prediction, and the gradients of a mean squared error in the layout of the set.
pub(super) fn gradients_of(
    model: &dyn Denoiser,
    inputs: &Inputs,
    set: &AdapterSet,
    recompute: Recompute,
    dropout: Option<Dropout>,
) -> (Value, Vec<f32>) {
    let tape = Tape::recording(&Kernels::NONE);
    let dtype = inputs.latents.dtype();
    let bound = set
        .bind(&tape, dtype, &Device::Cpu, dropout)
        .unwrap()
        .with_recompute(recompute);
    let prediction = inputs.call(model, &tape, &bound);
    let loss = tape.mse(&prediction, &inputs.target, None).unwrap();
    let mut gradients = tape.backward(&loss).unwrap();
    let flat = Tensor::zeros(set.values().len(), DType::F32, &Device::Cpu).unwrap();
    bound.collect(&mut gradients, 1.0, &flat).unwrap();
    (prediction, flat.to_vec1().unwrap())
}

/// Adapters as after training: B is not zero, ranks and alphas differ, alpha is not the rank.
pub(super) fn trained(model: &Model, preset: &str) -> AdapterSet {
    let presets = model.opened.family.presets;
    let chosen = targets::select(model.linears(), &[preset.to_owned()], presets).unwrap();
    let odd = |linear: &LinearShape| linear.name.ends_with("to_k");
    let shapes = chosen.into_iter().map(|linear| match odd(&linear) {
        true => (linear, 3, 1.0),
        false => (linear, 4, 8.0),
    });
    let mut set = AdapterSet::zeroed(shapes).unwrap();
    let normals =
        crate::rng::Rng::new(9, crate::rng::Stream::AdapterInit, 0, 0).normals(set.values().len());
    for (value, normal) in set.values_mut().iter_mut().zip(normals) {
        *value = 0.1 * normal;
    }
    set
}

pub(super) fn write_lora(family: &Family, set: &AdapterSet, dtype: SaveDtype) -> Vec<u8> {
    let flavor = &family.flavors[0];
    let info = metadata::FileInfo {
        architecture: flavor.architecture,
        base_version: flavor.base_version,
        title: "test",
        resolution: (1024, 1024),
    };
    let options = FileOptions {
        component: family.denoiser(),
        dtype,
        metadata: metadata::standard(set, &info),
    };
    file::write(set, &options).unwrap()
}

pub(super) fn predict(model: &dyn Denoiser, inputs: &Inputs, set: &AdapterSet) -> Tensor {
    let tape = Tape::off(&Kernels::NONE);
    let bound = set
        .bind(&tape, inputs.latents.dtype(), &Device::Cpu, None)
        .unwrap();
    inputs.call(model, &tape, &bound).into_tensor()
}

/// That every A and B gets the gradient that finite differences give, where `model` and `inputs` are in f64, so that a
/// difference of two losses has digits to spare. `unused` begins the names of those that the output does not depend on.
pub(super) fn check_finite_differences(
    what: &str,
    model: &dyn Denoiser,
    inputs: &Inputs,
    set: &AdapterSet,
    unused: &str,
) {
    let (_, gradients) = gradients_of(model, inputs, set, Recompute::Never, None);
    let loss = |set: &AdapterSet| {
        let prediction = Value::constant(predict(model, inputs, set));
        let loss = Tape::off(&Kernels::NONE)
            .mse(&prediction, &inputs.target, None)
            .unwrap();
        loss.tensor().to_scalar::<f64>().unwrap()
    };
    let mut worst: f64 = 0.0;
    for (tensor, _, range) in set.tensors() {
        // Along the gradient itself, with steps that f32 masters hold exactly enough: the difference divided by
        // what the masters really moved.
        let unused = tensor.starts_with(unused);
        let norm = gradients[range.clone()]
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum::<f64>()
            .sqrt();
        assert_eq!(norm == 0.0, unused, "{what} {tensor}");
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
                f64::from(gradients[i]) * (f64::from(up.values()[i]) - f64::from(down.values()[i]))
            })
            .sum();
        let found = loss(&up) - loss(&down);
        let error = (found - expected).abs() / expected.abs().max(1e-12);
        worst = worst.max(error);
        assert!(
            error < 1e-5,
            "{what} {tensor}: {found:e} by differences, {expected:e} by gradient"
        );
    }
    println!("{what}: worst difference {worst:.1e}");
}

/// That every adapter of every preset gets a gradient.
pub(super) fn check_presets(golden: &Golden) {
    let (model, inputs) = (golden.model(), golden.inputs(0));
    for preset in golden.family.presets {
        let chosen = targets::select(
            model.linears(),
            &[preset.name.to_owned()],
            golden.family.presets,
        )
        .unwrap();
        let mut set = AdapterSet::new(&chosen, 2, 2.0, 3).unwrap();
        // B starts at zero, which gives A no gradient.
        set.values_mut().iter_mut().for_each(|value| *value += 0.01);
        let (_, found) = gradients_of(&*model, &inputs, &set, Recompute::Never, None);
        for (tensor, _, range) in set.tensors() {
            assert!(
                found[range].iter().any(|&g| g != 0.0),
                "{} {}: {tensor}",
                golden.name,
                preset.name
            );
        }
    }
}

/// That gradients are the same where blocks are run again for them, with dropout or without.
pub(super) fn check_recompute(golden: &Golden, some_block: usize) {
    check_recompute_of(golden, &["attention", "all"], some_block);
}

/// The same with some of the golden's adapters.
pub(super) fn check_recompute_of(golden: &Golden, cases: &[&str], some_block: usize) {
    let (model, inputs) = (golden.model(), golden.inputs(1));
    let some = Some(Dropout {
        probability: 0.3,
        seed: 5,
        pass: 2,
    });
    for (case, dropout) in cases.iter().flat_map(|case| [(*case, None), (*case, some)]) {
        let (set, _) = golden.adapters(&model, case);
        let (_, kept) = gradients_of(&*model, &inputs, &set, Recompute::Never, dropout);
        for recompute in [
            Recompute::EveryBlock,
            Recompute::Blocks([some_block].into()),
        ] {
            let (_, again) = gradients_of(&*model, &inputs, &set, recompute.clone(), dropout);
            // With adapters on modulations, the conditioning vector's gradient is a sum over blocks, and
            // adding up block by block rounds otherwise.
            let flat = |all: &[f32]| Tensor::from_slice(all, all.len(), &Device::Cpu).unwrap();
            let error = difference(&flat(&again), &flat(&kept));
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

/// The tests of adapters that every transformer has: `golden` is the small model that the slow ones take, `block` one of its
/// blocks, `inputs` some of its inputs.
macro_rules! adapter_tests {
    (golden: $golden:literal, block: $block:literal, inputs: $inputs:literal) => {
        use crate::models::testing::{
            check_activations, check_finite_differences, check_loss_curve, check_presets,
            check_recompute,
        };

        #[test]
        fn every_adapters_gradient_equals_pefts() {
            for name in MODELS {
                golden(name).check_gradients(&["all", "attention"]);
            }
        }

        #[test]
        fn twenty_steps_of_training_have_the_losses_of_peft_and_torch() {
            check_loss_curve(&golden($golden));
        }

        #[test]
        fn running_blocks_again_gives_the_same_gradients() {
            check_recompute(&golden($golden), $block);
        }

        #[test]
        fn every_adapter_on_every_preset_gets_a_gradient() {
            MODELS.map(golden).iter().for_each(check_presets);
        }

        #[test]
        fn each_a_and_b_receives_the_gradient_that_finite_differences_give() {
            let golden = golden($golden);
            let (set, _) = golden.adapters(&golden.model(), "all");
            let inputs = golden.inputs($inputs).in_f64();
            let model = golden.model_in_f64();
            check_finite_differences($golden, &*model, &inputs, &set, "nothing is unused");
        }

        #[test]
        fn diffusers_loads_a_saved_lora_and_predicts_the_same() {
            for name in MODELS {
                golden(name).check_lora_file_in_diffusers();
            }
        }

        #[test]
        fn a_pass_keeps_as_much_as_the_plan_of_memory_counts() {
            check_activations(&golden($golden), (24, 32), 40);
        }
    };
}
pub(super) use adapter_tests;
