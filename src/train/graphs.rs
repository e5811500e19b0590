//! The passes of steps as CUDA graphs: those of each shape are recorded once, and asked for as a whole from then on.
//!
//! A graph does what was recorded, with the numbers that are in the same places by then. A number that the host put in by other ways
//! would stay that of the recording, and train a wrong LoRA without a word. So what the passes of a step read is written to
//! fixed places, everything else that may change is part of the shape, and before a graph is relied on, the step after
//! its recording is computed both ways: not a bit of the loss and the gradient may differ.

use std::collections::HashMap;

use candle_core::{DType, Device, Error, Result, Tensor};

use super::inputs::DenoiserBatch;
use super::step::{Inputs, Pass};
use crate::models::ConditioningTensors;
use crate::nn::flat::accumulate_all;
use crate::nn::{Graph, Kernels, Recorded};

/// Shapes with a graph of their own, at most: each keeps some memory. Those that come later are computed as without graphs.
const MOST_SHAPES: usize = 64;

/// What must be alike for a graph to be asked for again: the extents of all inputs, and the numbers that the host passes on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Shape {
    extents: Vec<Option<Vec<usize>>>,
    token_counts: Option<Vec<usize>>,
}

/// What becomes of the steps of a shape.
enum Stage {
    /// They are asked for as graphs, if the next one finds the same both ways.
    Recorded(Box<Passes>),
    /// They are asked for as graphs.
    Trusted(Box<Passes>),
    /// They are computed as without graphs.
    Left,
}

/// Recorded passes.
struct Passes {
    graph: Graph,
    /// Where it reads from, on the GPU, in f32.
    inputs: Inputs,
}

/// How the last pass was computed: both ways keep freed memory of their own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Each,
    Graph,
}

/// The graphs of a training.
pub struct Graphs {
    kernels: Kernels,
    /// What the adapters' gradient is added to, `[n]` in f32.
    gradient: Tensor,
    /// Where the loss is left, `[1]` in f32.
    loss: Tensor,
    stages: HashMap<Shape, Stage>,
    last: Option<Way>,
    notes: Vec<String>,
}

impl Graphs {
    /// For passes like this one; none where the kernels are not meant for graphs. A note says where they can be of no use.
    ///
    /// # Errors
    /// If the GPU has no room for another gradient of the adapters.
    pub fn of(pass: &Pass<'_>) -> Result<(Option<Self>, Option<&'static str>)> {
        let kernels = pass.denoiser.kernels();
        if !kernels.have_graphs() {
            return Ok((None, None));
        }
        let without = |why| Ok((None, Some(why)));
        if pass.dropout.0 > 0.0 {
            return without(
                "CUDA graphs are not used: dropout inside the adapters draws other numbers in each step",
            );
        }
        if pass.offload {
            return without(
                "CUDA graphs are not used: the inputs of blocks are offloaded to the CPU's memory",
            );
        }
        let graphs = Self {
            gradient: pass.values.zeros_like()?,
            loss: Tensor::zeros(1, DType::F32, pass.values.device())?,
            kernels: kernels.clone(),
            stages: HashMap::new(),
            last: None,
            notes: Vec::new(),
        };
        Ok((Some(graphs), None))
    }

    /// As [`Pass::backward`]; the loss.
    ///
    /// # Errors
    /// As there.
    pub fn backward(
        &mut self,
        pass: &Pass<'_>,
        batch: &DenoiserBatch,
        number: u64,
        factor: f64,
        gradient: &Tensor,
    ) -> Result<f64> {
        let inputs = Inputs::of(batch);
        let shape = shape_of(&inputs);
        let each = |own: &mut Self, factor: f64, gradient: &Tensor| {
            own.turn_to(Way::Each)?;
            Ok::<_, Error>(pass.backward(batch, number, factor, gradient)?.loss)
        };
        match self.stages.remove(&shape) {
            None => {
                let loss = each(self, factor, gradient)?;
                let stage = self.record(pass, &inputs)?;
                self.stages.insert(shape, stage);
                Ok(loss)
            }
            Some(Stage::Left) => {
                self.stages.insert(shape, Stage::Left);
                each(self, factor, gradient)
            }
            Some(Stage::Recorded(recorded)) => {
                let sum = gradient.zeros_like()?;
                let loss = each(self, 1.0, &sum)?;
                let stage = self.compared(recorded, &inputs, (&sum, loss))?;
                self.stages.insert(shape, stage);
                accumulate_all(&self.kernels, gradient, &[(0, sum)], factor)?;
                Ok(loss)
            }
            Some(Stage::Trusted(mut recorded)) => {
                let loss = self.replay(&mut recorded, &inputs)?;
                self.stages.insert(shape, Stage::Trusted(recorded));
                let sum = (0, self.gradient.clone());
                accumulate_all(&self.kernels, gradient, &[sum], factor)?;
                Ok(loss)
            }
        }
    }

    /// What there is to be told since the last time.
    pub fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Before something else is computed that needs much memory.
    ///
    /// # Errors
    /// If the device fails.
    pub fn pause(&mut self) -> Result<()> {
        self.turn_to(Way::Each)
    }

    fn turn_to(&mut self, way: Way) -> Result<()> {
        if self.last.replace(way).is_some_and(|last| last != way) {
            self.kernels.give_back()?;
        }
        Ok(())
    }

    fn record(&mut self, pass: &Pass<'_>, inputs: &Inputs) -> Result<Stage> {
        if self.stages.len() == MOST_SHAPES {
            self.notes.push(format!(
                "CUDA graphs: {MOST_SHAPES} shapes are recorded; steps of others are computed one operation after the other"
            ));
        }
        if self.stages.len() >= MOST_SHAPES {
            return Ok(Stage::Left);
        }
        let inputs = placed(inputs, self.gradient.device())?;
        let made = self.kernels.record(|| {
            self.kernels
                .hold(&[pass.values, &self.gradient, &self.loss]);
            self.kernels.clear(&self.gradient)?;
            self.kernels.clear(&self.loss)?;
            let (_, loss) = pass.compute(&inputs, None, 1.0, &self.gradient)?;
            let loss = (0, loss.into_tensor().reshape(1)?);
            accumulate_all(&self.kernels, &self.loss, &[loss], 1.0)
        });
        let made = made.map_err(|error| {
            Error::Msg(format!(
                "CUDA graphs: {error}; train without `--cuda-graphs`, and please report this"
            ))
        })?;
        Ok(match made {
            Recorded::Graph(graph) => Stage::Recorded(Box::new(Passes { graph, inputs })),
            Recorded::Refused(why) => {
                // Behind the first line there may be a backtrace.
                let why = why.lines().next().unwrap_or_default();
                self.notes.push(format!(
                    "CUDA graphs are not used for steps of this shape: {why}"
                ));
                Stage::Left
            }
        })
    }

    /// The loss of a graph's passes. The gradient is in its place.
    fn replay(&mut self, recorded: &mut Passes, inputs: &Inputs) -> Result<f64> {
        self.turn_to(Way::Graph)?;
        let (from, to) = (tensors(inputs), tensors(&recorded.inputs));
        for (from, to) in from.into_iter().flatten().zip(to.into_iter().flatten()) {
            self.kernels.overwrite(to, from)?;
        }
        recorded.graph.launch()?;
        self.loss.to_dtype(DType::F64)?.squeeze(0)?.to_scalar()
    }

    /// What becomes of a graph whose passes are to give this gradient and loss.
    fn compared(
        &mut self,
        mut recorded: Box<Passes>,
        inputs: &Inputs,
        (gradient, loss): (&Tensor, f64),
    ) -> Result<Stage> {
        let found = self.replay(&mut recorded, inputs)?;
        let numbers = |t: &Tensor| t.to_vec1::<f32>();
        let (wanted, made) = (numbers(gradient)?, numbers(&self.gradient)?);
        let differ = (wanted.iter().zip(&made))
            .filter(|(a, b)| a.to_bits() != b.to_bits())
            .count();
        if found.to_bits() == loss.to_bits() && differ == 0 {
            if !(self.stages.values()).any(|stage| matches!(stage, Stage::Trusted(_))) {
                self.notes.push(
                    "CUDA graphs: a recorded step gives the same bits; the next of its shape are asked for as a whole"
                        .to_owned(),
                );
            }
            return Ok(Stage::Trusted(recorded));
        }
        let all = wanted.len();
        self.notes.push(format!(
            "CUDA graphs are not used for steps of this shape: one gives a loss of {found:e}, not {loss:e}, and {differ} of {all} other numbers \
             of the gradient; please report this"
        ));
        Ok(Stage::Left)
    }
}

/// All tensors, in one order.
fn tensors(inputs: &Inputs) -> [Option<&Tensor>; 9] {
    let Inputs {
        noisy,
        target,
        timesteps,
        weights,
        conditioning,
    } = inputs;
    // By name: a field that is added has to be thought of here.
    let ConditioningTensors {
        context,
        pooled,
        token_counts: _,
        guidance,
        time_ids,
        reference,
    } = conditioning;
    [
        Some(noisy),
        Some(target),
        Some(timesteps),
        Some(weights),
        Some(context),
        Some(pooled).filter(|pooled| pooled.elem_count() > 0),
        guidance.as_ref(),
        time_ids.as_ref(),
        reference.as_ref(),
    ]
}

fn shape_of(inputs: &Inputs) -> Shape {
    let extents = |tensor: Option<&Tensor>| tensor.map(|tensor| tensor.dims().to_vec());
    Shape {
        extents: tensors(inputs).map(extents).to_vec(),
        token_counts: inputs.conditioning.token_counts.clone(),
    }
}

/// The same on the GPU in f32, where nobody else has them.
fn placed(inputs: &Inputs, device: &Device) -> Result<Inputs> {
    let place = |tensor: &Tensor| match tensor.elem_count() {
        0 => Ok(tensor.clone()),
        _ => tensor.to_dtype(DType::F32)?.to_device(device),
    };
    let some = |tensor: &Option<Tensor>| tensor.as_ref().map(place).transpose();
    let given = &inputs.conditioning;
    Ok(Inputs {
        noisy: place(&inputs.noisy)?,
        target: place(&inputs.target)?,
        timesteps: place(&inputs.timesteps)?,
        weights: place(&inputs.weights)?,
        conditioning: ConditioningTensors {
            context: place(&given.context)?,
            pooled: place(&given.pooled)?,
            token_counts: given.token_counts.clone(),
            guidance: some(&given.guidance)?,
            time_ids: some(&given.time_ids)?,
            reference: some(&given.reference)?,
        },
    })
}

#[cfg(all(test, feature = "cuda"))]
#[path = "graphs_tests.rs"]
mod tests;
