//! The whole network: embeddings of time and sizes, the way down, the middle, the way up.
//!
//! Shapes: b batch, c channels, h w latent height and width, d width of the timestep's vector.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::architecture::{Addition, Architecture, Level, SIZES};
use super::layers::{Conv, GroupNorm, Pass, ResNet, ResNetSize, Transformer, TransformerSize};
use crate::autograd::{Tape, Value};
use crate::lora::Bound;
use crate::models::linear::Linear;
use crate::models::transformer::{Loaded, check_shapes, picture_dims};
use crate::models::{ConditioningTensors, Denoiser, Error, Source};
use crate::nn::{Conv2dOptions, Kernels, sinusoids};

/// How a level's last convolution halves the picture: with zeros on all sides (`downsample_padding` 1), unlike the VAE's.
const HALVE: Conv2dOptions = Conv2dOptions {
    stride: 2,
    ..Conv2dOptions::SAME
};

/// A UNet with frozen weights.
pub(super) struct UNet {
    architecture: Architecture,
    kernels: Kernels,
    /// Two linears with a SiLU between, for the timestep and for pooled vector and sizes.
    time: [Linear; 2],
    addition: Option<[Linear; 2]>,
    conv_in: Conv,
    down: Vec<(Vec<Arc<Layer>>, Option<Conv>)>,
    /// The second has no transformer.
    middle: [Arc<Layer>; 2],
    up: Vec<(Vec<Arc<Layer>>, Option<Conv>)>,
    norm_out: GroupNorm,
    conv_out: Conv,
}

/// A residual block and, at some levels, a transformer: what is run again under gradient checkpointing.
struct Layer {
    resnet: ResNet,
    transformer: Option<Transformer>,
}

impl Layer {
    fn forward(&self, pass: Pass<'_>, x: &Value, vector: &Value) -> Result<Value> {
        let x = self.resnet.forward(pass, x, vector)?;
        match &self.transformer {
            Some(transformer) => transformer.forward(pass, &x),
            None => Ok(x),
        }
    }
}

impl UNet {
    /// Builds the network from tensors by canonical name.
    pub(super) fn build(a: Architecture, source: &dyn Source) -> Loaded<Self> {
        let first = a.levels.first().map_or(0, |level| level.width);
        let builder = Builder {
            architecture: &a,
            // diffusers' `time_embed_dim`, which no released config sets otherwise.
            time: 4 * first,
            source,
        };
        let pair = |name: &str, inputs| {
            Ok::<_, Error>([
                Linear::load(
                    source,
                    &format!("{name}.linear_1"),
                    (4 * first, inputs),
                    true,
                )?,
                Linear::load(
                    source,
                    &format!("{name}.linear_2"),
                    (4 * first, 4 * first),
                    true,
                )?,
            ])
        };
        let addition = a.addition.map(|added| {
            let inputs = added.pooled_width + SIZES * added.size_channels;
            pair("add_embedding", inputs)
        });
        let same = Conv2dOptions::SAME;
        Ok(Self {
            kernels: source.kernels(),
            time: pair("time_embedding", first)?,
            addition: addition.transpose()?,
            conv_in: Conv::load(source, "conv_in", (first, a.in_channels, 3), same)?,
            down: builder.down()?,
            middle: builder.middle()?,
            up: builder.up()?,
            norm_out: GroupNorm::load(source, "conv_norm_out", first, a.groups, a.eps)?,
            conv_out: Conv::load(source, "conv_out", (a.out_channels, first, 3), same)?,
            architecture: a,
        })
    }

    fn check_inputs(
        &self,
        latents: &Value,
        timesteps: &Tensor,
        conditioning: &ConditioningTensors,
    ) -> Result<()> {
        conditioning.refuse_reference()?;
        let own = &self.architecture;
        let (b, _, h, w) = picture_dims(latents)?;
        let m = conditioning.context.dims3()?.1;
        let told = match (own.addition, &conditioning.time_ids) {
            (Some(added), Some(ids)) => Some((added.pooled_width, ids)),
            (Some(_), None) => {
                bail!(
                    "denoiser input `time_ids`: this network has a size embedding, found no input"
                )
            }
            (None, _) => None,
        };
        check_shapes(&[
            ("latents", latents.dims(), &[b, own.in_channels, h, w]),
            ("timesteps", timesteps.dims(), &[b]),
            (
                "context",
                conditioning.context.dims(),
                &[b, m, own.context_width],
            ),
        ])?;
        if let Some((pooled_width, ids)) = told {
            check_shapes(&[
                ("pooled", conditioning.pooled.dims(), &[b, pooled_width]),
                ("time_ids", ids.dims(), &[b, SIZES]),
            ])?;
        }
        if m == 0 || h == 0 || w == 0 {
            bail!("denoiser input of no tokens or no pixels");
        }
        Ok(())
    }

    /// The timestep, and what is added to it, as the activated vector [b, d] that every residual block takes.
    fn vector(
        &self,
        pass: Pass<'_>,
        timesteps: &Tensor,
        conditioning: &ConditioningTensors,
    ) -> Result<Value> {
        let tape = pass.tape;
        let like = &conditioning.context;
        let mlp = |[first, second]: &[Linear; 2], x: Tensor| {
            let hidden = first.forward(tape, pass.adapters, &Value::constant(x))?;
            second.forward(tape, pass.adapters, &tape.silu(&hidden)?)
        };
        let channels = self.architecture.levels[0].width;
        let mut vector = mlp(
            &self.time,
            sinusoids(tape.kernels(), timesteps, channels, like)?,
        )?;
        let told = (
            &self.addition,
            self.architecture.addition,
            &conditioning.time_ids,
        );
        if let (Some(linears), Some(Addition { size_channels, .. }), Some(ids)) = told {
            let b = ids.dim(0)?;
            // Each of a picture's numbers has a sinusoid of its own; the weights expect them behind the pooled vector.
            let sizes = sinusoids(tape.kernels(), &ids.flatten_all()?, size_channels, like)?;
            let sizes = sizes.reshape((b, SIZES * size_channels))?;
            let added = Tensor::cat(&[&conditioning.pooled, &sizes], 1)?;
            vector = tape.add(&vector, &mlp(linears, added)?)?;
        }
        tape.silu(&vector)
    }

    /// The way down and the middle: the result, and what the way up takes beside it.
    fn inwards(&self, run: &mut Runner<'_>, latents: &Value) -> Result<(Value, Vec<Value>)> {
        let Pass { tape, adapters, .. } = run.pass;
        let mut x = self.conv_in.forward(tape, adapters, latents)?;
        let mut kept = vec![x.clone()];
        for (layers, halve) in &self.down {
            for layer in layers {
                x = run.layer(layer, &[&x])?;
                kept.push(x.clone());
            }
            if let Some(halve) = halve {
                x = halve.forward(tape, adapters, &x)?;
                kept.push(x.clone());
            }
        }
        for layer in &self.middle {
            x = run.layer(layer, &[&x])?;
        }
        Ok((x, kept))
    }

    fn outwards(&self, run: &mut Runner<'_>, x: Value, mut kept: Vec<Value>) -> Result<Value> {
        let Pass { tape, adapters, .. } = run.pass;
        let mut x = x;
        for (layers, double) in &self.up {
            for layer in layers {
                let Some(beside) = kept.pop() else {
                    bail!("the way up is longer than the way down");
                };
                x = run.layer(layer, &[&x, &beside])?;
            }
            if let (Some(double), Some(next)) = (double, kept.last()) {
                // Halving rounded odd sides up; doubling cuts them to where they were.
                let (_, _, h, w) = next.tensor().dims4()?;
                let doubled = tape.upsample_nearest_2x(&x)?;
                let doubled = tape.narrow(&tape.narrow(&doubled, 2, 0, h)?, 3, 0, w)?;
                x = double.forward(tape, adapters, &doubled)?;
            }
        }
        Ok(x)
    }
}

impl Denoiser for UNet {
    fn forward(
        &self,
        tape: &Tape,
        adapters: &Bound,
        latents: &Value,
        timesteps: &Tensor,
        conditioning: &ConditioningTensors,
    ) -> Result<Value> {
        self.check_inputs(latents, timesteps, conditioning)?;
        let context = Value::constant(conditioning.context.clone());
        let pass = Pass {
            tape,
            adapters,
            context: &context,
        };
        let vector = self.vector(pass, timesteps, conditioning)?;
        let mut run = Runner {
            pass,
            vector: &vector,
            number: 0,
        };
        let (x, kept) = self.inwards(&mut run, latents)?;
        let x = self.outwards(&mut run, x, kept)?;
        let x = self.norm_out.forward(tape, &x, true)?;
        self.conv_out.forward(tape, adapters, &x)
    }

    fn dtype(&self) -> DType {
        self.conv_out.bias().dtype()
    }

    fn device(&self) -> &Device {
        self.conv_out.bias().device()
    }

    fn kernels(&self) -> &Kernels {
        &self.kernels
    }
}

/// Runs the layers one after another.
struct Runner<'a> {
    pass: Pass<'a>,
    vector: &'a Value,
    /// Of the next layer.
    number: usize,
}

impl Runner<'_> {
    /// A layer on its inputs [b, c, h, w] joined by channel, keeping only these where blocks are run again for their
    /// gradients.
    fn layer(&mut self, layer: &Arc<Layer>, inputs: &[&Value]) -> Result<Value> {
        let Pass { tape, adapters, .. } = self.pass;
        let again = adapters.recomputes(self.number);
        self.number += 1;
        if !again {
            return run_layer(layer, self.pass, inputs, self.vector);
        }
        let (layer, adapters) = (Arc::clone(layer), adapters.clone());
        let context = self.pass.context.clone();
        let run = move |tape: &Tape, inputs: &[Value]| {
            let pass = Pass {
                tape,
                adapters: &adapters,
                context: &context,
            };
            let Some((vector, inputs)) = inputs.split_first() else {
                bail!("a layer without inputs");
            };
            let inputs: Vec<&Value> = inputs.iter().collect();
            Ok(vec![run_layer(&layer, pass, &inputs, vector)?])
        };
        let inputs = [&[self.vector], inputs].concat();
        match tape.checkpoint(&inputs, run)?.into_iter().next() {
            Some(x) => Ok(x),
            None => bail!("a layer gave nothing"),
        }
    }
}

fn run_layer(layer: &Layer, pass: Pass<'_>, inputs: &[&Value], vector: &Value) -> Result<Value> {
    match inputs {
        [x] => layer.forward(pass, x, vector),
        _ => layer.forward(pass, &pass.tape.cat(inputs, 1)?, vector),
    }
}

/// Builds the levels from tensors.
struct Builder<'a> {
    architecture: &'a Architecture,
    /// Width of the timestep's vector.
    time: usize,
    source: &'a dyn Source,
}

type Levels = Vec<(Vec<Arc<Layer>>, Option<Conv>)>;

impl Builder<'_> {
    /// A residual block and, where `depth` is not 0, a transformer beside it.
    fn layer(&self, place: &str, i: usize, inputs: usize, level: Level) -> Loaded<Arc<Layer>> {
        let own = self.architecture;
        let resnet = ResNetSize {
            inputs,
            outputs: level.width,
            time: self.time,
            groups: own.groups,
            eps: own.eps,
        };
        let transformer = TransformerSize {
            width: level.width,
            heads: level.heads,
            depth: level.depth,
            context: own.context_width,
            groups: own.groups,
            linear_projection: own.linear_projection,
        };
        let name = format!("{place}.attentions.{i}");
        let transformer =
            (level.depth > 0).then(|| Transformer::load(self.source, &name, transformer));
        Ok(Arc::new(Layer {
            resnet: ResNet::load(self.source, &format!("{place}.resnets.{i}"), resnet)?,
            transformer: transformer.transpose()?,
        }))
    }

    fn down(&self) -> Loaded<Levels> {
        let own = self.architecture;
        let mut width = own.levels.first().map_or(0, |level| level.width);
        let mut side = Vec::new();
        for (number, &level) in own.levels.iter().enumerate() {
            let place = format!("down_blocks.{number}");
            let mut layers = Vec::new();
            for i in 0..own.layers {
                layers.push(self.layer(&place, i, width, level)?);
                width = level.width;
            }
            let last = number + 1 == own.levels.len();
            let name = format!("{place}.downsamplers.0.conv");
            let halve = (!last).then(|| Conv::load(self.source, &name, (width, width, 3), HALVE));
            side.push((layers, halve.transpose()?));
        }
        Ok(side)
    }

    fn middle(&self) -> Loaded<[Arc<Layer>; 2]> {
        let own = self.architecture;
        let level = |depth| Level {
            depth,
            ..own.levels.last().copied().unwrap_or(Level {
                width: 0,
                depth: 0,
                heads: 1,
            })
        };
        let width = level(0).width;
        Ok([
            self.layer("mid_block", 0, width, level(own.middle_depth))?,
            self.layer("mid_block", 1, width, level(0))?,
        ])
    }

    fn up(&self) -> Loaded<Levels> {
        let own = self.architecture;
        // Widths of what the way down keeps, in its order.
        let mut kept = vec![own.levels.first().map_or(0, |level| level.width)];
        for (number, level) in own.levels.iter().enumerate() {
            let halved = usize::from(number + 1 < own.levels.len());
            kept.extend(std::iter::repeat_n(level.width, own.layers + halved));
        }
        let mut width = own.levels.last().map_or(0, |level| level.width);
        let mut side = Vec::new();
        for (number, &level) in own.levels.iter().rev().enumerate() {
            let place = format!("up_blocks.{number}");
            let mut layers = Vec::new();
            for i in 0..=own.layers {
                let inputs = width + kept.pop().unwrap_or(0);
                layers.push(self.layer(&place, i, inputs, level)?);
                width = level.width;
            }
            let last = number + 1 == own.levels.len();
            let (name, same) = (format!("{place}.upsamplers.0.conv"), Conv2dOptions::SAME);
            let double = (!last).then(|| Conv::load(self.source, &name, (width, width, 3), same));
            side.push((layers, double.transpose()?));
        }
        Ok(side)
    }
}
