//! Where a step's time goes: each kind of operation of a transformer alone, forward and back, at a model's sizes.

use candle_core::{DType, Device, Tensor};
use plumb::autograd::{AttentionPart, LoraValues, Tape, Value};
use plumb::device;
use serde_json::{Map, Value as Json, json};

use super::{Backend, Result, Timings, count};

type Made = candle_core::Result<Value>;

/// Makes tensors of random numbers of one type on one device.
struct RandomTensors<'a> {
    device: &'a Device,
    dtype: DType,
}

impl RandomTensors<'_> {
    fn normals(&self, shape: &[usize], spread: f64) -> candle_core::Result<Tensor> {
        let made = Tensor::randn(0f32, spread as f32, shape, self.device)?;
        made.to_dtype(self.dtype)
    }
}

/// Seconds of each operation, by name, and how many sums or bytes it is.
pub(super) fn parts(case: &Json, backend: &Backend) -> Result<Json> {
    let device = &backend.device;
    let (tokens, batch) = (count(case, "tokens")?, count(case, "batch")?);
    let (heads, width) = (count(case, "heads")?, count(case, "width")?);
    let rank = count(case, "rank")?;
    let channels = heads * width;
    let make = RandomTensors {
        device,
        dtype: device::usual_dtype(device),
    };
    let x = make.normals(&[batch, tokens, channels], 1.0)?;
    let wide = make.normals(&[batch, tokens, 4 * channels], 1.0)?;
    let packed = make.normals(&[batch, tokens, heads, width], 1.0)?;
    let vector = make.normals(&[batch, channels], 0.1)?;
    let square = make.normals(&[channels, channels], 0.02)?;
    let up = make.normals(&[4 * channels, channels], 0.02)?;
    let bias = make.normals(&[channels], 0.1)?;
    let (down_a, down_b) = (
        make.normals(&[rank, channels], 0.02)?,
        make.normals(&[channels, rank], 0.02)?,
    );
    let gain = make.normals(&[width], 0.1)?;
    let angles = Tensor::rand(0f32, 6.0, (tokens, width / 2), device)?;
    let (cos, sin) = (angles.cos()?, angles.sin()?);
    let time = |input: &Tensor, op: &dyn Fn(&Tape, &Value) -> Made| once(backend, case, input, op);
    let constant = |t: &Tensor| Value::constant(t.clone());
    let mut found = Map::new();
    let mut put = |name: &str, timings: Timings| {
        found.insert(name.to_owned(), json!(timings));
    };
    put(
        "linear",
        time(&x, &|tape, x| {
            tape.linear(x, &(&square).into(), Some(&bias), None)
        })?,
    );
    put(
        "linear with adapter",
        time(&x, &|tape, x| {
            let lora = LoraValues {
                a: tape.leaf(down_a.clone()),
                b: tape.leaf(down_b.clone()),
                scale: 1.0,
                dropout: None,
            };
            tape.linear(x, &(&square).into(), Some(&bias), Some(&lora))
        })?,
    );
    put(
        "linear to four times the width",
        time(&x, &|tape, x| tape.linear(x, &(&up).into(), None, None))?,
    );
    put(
        "attention",
        time(&packed, &|tape, x| {
            let part = AttentionPart {
                q: Some(x),
                k: x,
                v: x,
            };
            let scale = 1.0 / (width as f64).sqrt();
            Ok(tape.joint_attention(&[part], scale)?.remove(0))
        })?,
    );
    put(
        "norm of heads and rope",
        time(&packed, &|tape, x| {
            tape.rope(&tape.rms_norm(x, Some(&gain), 1e-6)?, &cos, &sin)
        })?,
    );
    put(
        "norm and modulation",
        time(&x, &|tape, x| {
            tape.modulate(x, &constant(&vector), &constant(&vector), 1e-6)
        })?,
    );
    put(
        "gated residual",
        time(&x, &|tape, x| tape.gated_residual(x, &constant(&vector), x))?,
    );
    put("GELU", time(&wide, &|tape, x| tape.gelu_tanh(x))?);
    Ok(json!({ "parts": found }))
}

/// Forward and back through one operation.
fn once(
    backend: &Backend,
    case: &Json,
    input: &Tensor,
    op: &dyn Fn(&Tape, &Value) -> Made,
) -> Result<Timings> {
    Timings::of(&backend.device, case, || {
        let tape = Tape::recording(&backend.kernels);
        let leaf = tape.leaf(input.clone());
        let out = op(&tape, &leaf)?;
        // Any gradient of its shape does: time does not depend on the numbers.
        let seed = out.tensor().clone();
        tape.backward_from(&[(&out, seed)])?;
        Ok(())
    })
}
