//! What the network is made of. Every layer takes one frame after the other and keeps what later frames need of it: a convolution over
//! time its last two inputs. So a clip of any length needs the memory of a few frames of each level.

use candle_core::{Result, Tensor, bail};

use super::super::blocks::{Conv, Parameters};
use crate::nn::winograd::Winograd;
use crate::nn::{
    AttentionMask, Conv2dOptions, Kernels, attention, conv2d_sum, linear, pixel_norm,
    pixel_norm_silu,
};

/// The frames of a stream that a layer remembers. All layers of a network begin a clip with none.
#[derive(Default)]
pub(super) struct State {
    first: History,
    second: History,
    /// Whether the clip's first frame has passed.
    begun: bool,
}

#[cfg(test)]
impl State {
    /// How many frames it keeps.
    pub(super) fn frames(&self) -> usize {
        self.first.0.len() + self.second.0.len()
    }
}

/// The last frames that a convolution over time was given.
#[derive(Default)]
struct History(Vec<Tensor>);

impl History {
    /// Adds a frame and drops what no window of `window` frames reaches from the next one.
    fn push(&mut self, frame: &Tensor, window: usize) {
        self.0.push(frame.clone());
        if self.0.len() >= window {
            self.0.remove(0);
        }
    }
}

/// A convolution over time and space; causal: a frame's result depends on it and the two before, zeros before the first.
pub(super) struct Conv3 {
    kernel: Kernel,
    taps: usize,
    bias_o: Tensor,
    options: Conv2dOptions,
}

enum Kernel {
    /// A convolution over space for each place in time, the last for the frame itself: `[O, I, K, K]`.
    Plain(Vec<Tensor>),
    /// On a CPU: with fewer products.
    Winograd(Winograd),
}

impl Conv3 {
    /// Of a `kernel` of [time, side].
    pub(super) fn load<E: From<candle_core::Error>>(
        get: Parameters<'_, E>,
        name: &str,
        (input, output): (usize, usize),
        [time, side]: [usize; 2],
    ) -> std::result::Result<Self, E> {
        let weight = get(
            &[output, input, time, side, side],
            &format!("{name}.weight"),
        )?;
        let bias_o = get(&[output], &format!("{name}.bias"))?;
        // Of tensors that are only listed there are no numbers.
        let taps = if weight.elem_count() == 0 { 0 } else { time };
        let tap = |tap| weight.narrow(2, tap, 1)?.squeeze(2)?.contiguous();
        Ok(Self {
            kernel: match Winograd::new(&weight, &bias_o)? {
                Some(kernel) => Kernel::Winograd(kernel),
                None => Kernel::Plain((0..taps).map(tap).collect::<Result<_>>()?),
            },
            taps,
            bias_o,
            options: match side {
                1 => Conv2dOptions::POINTWISE,
                _ => Conv2dOptions::SAME,
            },
        })
    }

    pub(super) fn device(&self) -> &candle_core::Device {
        self.bias_o.device()
    }

    /// The next frame's result, to which `plus` is added.
    fn next(
        &self,
        kernels: &Kernels,
        history: &mut History,
        frame: &Tensor,
        plus: Option<&Tensor>,
    ) -> Result<Tensor> {
        let window: Vec<&Tensor> = history.0.iter().chain([frame]).collect();
        let y = self.of_window(kernels, &window, plus);
        history.push(frame, self.taps);
        y
    }

    /// The result of these frames, of which the last is the newest; those before the first are zeros, and not computed. `plus` is added.
    fn of_window(
        &self,
        kernels: &Kernels,
        frames: &[&Tensor],
        plus: Option<&Tensor>,
    ) -> Result<Tensor> {
        let taps = match &self.kernel {
            Kernel::Winograd(kernel) => return kernel.forward(frames, plus),
            Kernel::Plain(taps) => taps,
        };
        let newest_first: Vec<_> = frames
            .iter()
            .copied()
            .rev()
            .zip(taps.iter().rev())
            .collect();
        let y = conv2d_sum(kernels, &newest_first, Some(&self.bias_o), self.options)?;
        match plus {
            Some(plus) => y + plus,
            None => Ok(y),
        }
    }
}

/// A norm over the channels of each pixel.
pub(super) struct Norm {
    gain_c: Tensor,
}

impl Norm {
    /// `spread` is how many axes of length 1 the file has after the channels.
    fn load<E: From<candle_core::Error>>(
        get: Parameters<'_, E>,
        name: &str,
        channels: usize,
        spread: usize,
    ) -> std::result::Result<Self, E> {
        let mut shape = vec![1; spread + 1];
        shape[0] = channels;
        Ok(Self {
            gain_c: get(&shape, &format!("{name}.gamma"))?.flatten_all()?,
        })
    }

    fn silu(&self, kernels: &Kernels, x: &Tensor) -> Result<Tensor> {
        pixel_norm_silu(kernels, x, &self.gain_c)
    }
}

/// `x + conv2(silu(norm2(conv1(silu(norm1(x))))))`, x through a 1 x 1 convolution where the width changes.
pub(super) struct ResNet {
    norm1: Norm,
    conv1: Conv3,
    norm2: Norm,
    conv2: Conv3,
    shortcut: Option<Conv3>,
}

impl ResNet {
    pub(super) fn load<E: From<candle_core::Error>>(
        get: Parameters<'_, E>,
        name: &str,
        input: usize,
        output: usize,
    ) -> std::result::Result<Self, E> {
        let part = |part: &str| format!("{name}.{part}");
        let shortcut = (input != output)
            .then(|| Conv3::load(get, &part("conv_shortcut"), (input, output), [1, 1]));
        Ok(Self {
            norm1: Norm::load(get, &part("norm1"), input, 3)?,
            conv1: Conv3::load(get, &part("conv1"), (input, output), [3, 3])?,
            norm2: Norm::load(get, &part("norm2"), output, 3)?,
            conv2: Conv3::load(get, &part("conv2"), (output, output), [3, 3])?,
            shortcut: shortcut.transpose()?,
        })
    }

    fn next(&self, kernels: &Kernels, state: &mut State, x: &Tensor) -> Result<Tensor> {
        let h = self.norm1.silu(kernels, x)?;
        let h = self.conv1.next(kernels, &mut state.first, &h, None)?;
        let h = self.norm2.silu(kernels, &h)?;
        let shortcut = match &self.shortcut {
            Some(shortcut) => shortcut.of_window(kernels, &[x], None)?,
            None => x.clone(),
        };
        let plus = Some(&shortcut);
        self.conv2.next(kernels, &mut state.second, &h, plus)
    }
}

/// Self-attention of one head over all pixels of a frame, beside the residual.
pub(super) struct Attention {
    norm: Norm,
    qkv: Linear,
    out: Linear,
}

/// A 1 x 1 convolution, as a layer over pixels.
struct Linear {
    weight_oi: Tensor,
    bias_o: Tensor,
}

impl Linear {
    fn load<E: From<candle_core::Error>>(
        get: Parameters<'_, E>,
        name: &str,
        input: usize,
        output: usize,
    ) -> std::result::Result<Self, E> {
        let weight = get(&[output, input, 1, 1], &format!("{name}.weight"))?;
        Ok(Self {
            weight_oi: weight.flatten_from(weight.rank().min(2) - 1)?,
            bias_o: get(&[output], &format!("{name}.bias"))?,
        })
    }

    fn forward(&self, kernels: &Kernels, x: &Tensor) -> Result<Tensor> {
        linear(kernels, x, &self.weight_oi, Some(&self.bias_o))
    }
}

impl Attention {
    pub(super) fn load<E: From<candle_core::Error>>(
        get: Parameters<'_, E>,
        name: &str,
        width: usize,
    ) -> std::result::Result<Self, E> {
        Ok(Self {
            norm: Norm::load(get, &format!("{name}.norm"), width, 2)?,
            qkv: Linear::load(get, &format!("{name}.to_qkv"), width, 3 * width)?,
            out: Linear::load(get, &format!("{name}.proj"), width, width)?,
        })
    }

    fn forward(&self, kernels: &Kernels, x_1chw: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = x_1chw.dims4()?;
        let n = h * w;
        let y_bnc = pixel_norm(kernels, x_1chw, &self.norm.gain_c)?;
        let y_bnc = y_bnc.reshape((b, c, n))?.transpose(1, 2)?.contiguous()?;
        let qkv = self.qkv.forward(kernels, &y_bnc)?;
        let head = |k: usize| qkv.narrow(2, k * c, c)?.contiguous()?.reshape((b, n, 1, c));
        let (q_bnhd, k_bnhd, v_bnhd) = (head(0)?, head(1)?, head(2)?);
        let scale = 1.0 / (c as f64).sqrt();
        let mask = AttentionMask::None;
        let y_bnc = attention(kernels, &q_bnhd, &k_bnhd, &v_bnhd, scale, None, &mask)?;
        let y_bnc = self.out.forward(kernels, &y_bnc)?;
        x_1chw + y_bnc.transpose(1, 2)?.contiguous()?.reshape((b, c, h, w))?
    }
}

/// Halves the sides, and the number of frames where `time` is there.
pub(super) struct Down {
    conv: Conv,
    time: Option<Conv3>,
}

impl Down {
    pub(super) fn load<E: From<candle_core::Error>>(
        get: Parameters<'_, E>,
        name: &str,
        width: usize,
        time: bool,
    ) -> std::result::Result<Self, E> {
        Ok(Self {
            conv: Conv::load(get, &format!("{name}.resample.1"), width, width, 3)?,
            time: time_conv(get, name, (width, width), time)?,
        })
    }

    /// None where the frame waits for the next one.
    fn next(&self, kernels: &Kernels, state: &mut State, x: &Tensor) -> Result<Option<Tensor>> {
        let x = self.conv.forward(kernels, x, Conv2dOptions::HALVE)?;
        let Some(time) = &self.time else {
            return Ok(Some(x));
        };
        let seen = &mut state.first.0;
        seen.push(x.clone());
        // A clip's first frame stands for itself; from then on two frames become one, of them and the last one before.
        if !std::mem::replace(&mut state.begun, true) {
            return Ok(Some(x));
        }
        if seen.len() < 3 {
            return Ok(None);
        }
        let y = time.of_window(kernels, &seen.iter().collect::<Vec<_>>(), None)?;
        seen.drain(..2);
        Ok(Some(y))
    }
}

/// Doubles the sides, and the number of frames where `time` is there.
pub(super) struct Up {
    conv: Conv,
    time: Option<Conv3>,
}

impl Up {
    pub(super) fn load<E: From<candle_core::Error>>(
        get: Parameters<'_, E>,
        name: &str,
        width: usize,
        time: bool,
    ) -> std::result::Result<Self, E> {
        Ok(Self {
            conv: Conv::load(get, &format!("{name}.resample.1"), width, width / 2, 3)?,
            time: time_conv(get, name, (width, 2 * width), time)?,
        })
    }

    fn next(&self, kernels: &Kernels, state: &mut State, x: &Tensor) -> Result<Vec<Tensor>> {
        let double = |x: &Tensor| self.conv.forward(kernels, x, Conv2dOptions::DOUBLE);
        let Some(time) = &self.time else {
            return Ok(vec![double(x)?]);
        };
        // A clip's first frame becomes one, and what follows does not see it: zeros are before the second.
        if !std::mem::replace(&mut state.begun, true) {
            return Ok(vec![double(x)?]);
        }
        let two = time.next(kernels, &mut state.first, x, None)?;
        let width = x.dim(1)?;
        // A frame's channels are the first half or the second.
        (0..2)
            .map(|n| double(&two.narrow(1, n * width, width)?))
            .collect()
    }
}

/// The convolution over time alone of a [`Down`] or [`Up`].
fn time_conv<E: From<candle_core::Error>>(
    get: Parameters<'_, E>,
    name: &str,
    widths: (usize, usize),
    time: bool,
) -> std::result::Result<Option<Conv3>, E> {
    time.then(|| Conv3::load(get, &format!("{name}.time_conv"), widths, [3, 1]))
        .transpose()
}

/// One layer of an encoder or decoder.
pub(super) enum Layer {
    Conv(Conv3),
    ResNet(Box<ResNet>),
    Attention(Box<Attention>),
    Down(Down),
    Up(Up),
    /// Norm, SiLU and the last convolution.
    Head(Norm, Conv3),
}

impl Layer {
    pub(super) fn head<E: From<candle_core::Error>>(
        get: Parameters<'_, E>,
        half: &str,
        input: usize,
        output: usize,
    ) -> std::result::Result<Self, E> {
        Ok(Self::Head(
            Norm::load(get, &format!("{half}.norm_out"), input, 3)?,
            Conv3::load(get, &format!("{half}.conv_out"), (input, output), [3, 3])?,
        ))
    }

    /// What comes out after the next frame went in: no frame, one or two.
    fn next(&self, kernels: &Kernels, state: &mut State, x: Tensor) -> Result<Vec<Tensor>> {
        let one = match self {
            Self::Conv(conv) => conv.next(kernels, &mut state.first, &x, None)?,
            Self::ResNet(block) => block.next(kernels, state, &x)?,
            Self::Attention(attention) => attention.forward(kernels, &x)?,
            Self::Down(down) => return Ok(down.next(kernels, state, &x)?.into_iter().collect()),
            Self::Up(up) => return up.next(kernels, state, &x),
            Self::Head(norm, conv) => {
                let h = norm.silu(kernels, &x)?;
                conv.next(kernels, &mut state.first, &h, None)?
            }
        };
        Ok(vec![one])
    }
}

/// Sends a frame through all layers, as far as it gets, and gives `out` what comes out at the end. One frame is all the way through
/// before the next one begins, so that few lie in memory at once.
pub(super) fn send(
    kernels: &Kernels,
    layers: &[Layer],
    states: &mut [State],
    frame: Tensor,
    out: &mut dyn FnMut(Tensor) -> Result<()>,
) -> Result<()> {
    let (Some((layer, layers)), Some((state, states))) =
        (layers.split_first(), states.split_first_mut())
    else {
        return out(frame);
    };
    for frame in layer.next(kernels, state, frame)? {
        send(kernels, layers, states, frame, out)?;
    }
    Ok(())
}

/// As many fresh states as there are layers.
pub(super) fn states(layers: &[Layer]) -> Vec<State> {
    layers.iter().map(|_| State::default()).collect()
}

/// Fails unless a frame has so many channels.
pub(super) fn check_channels(frame: &Tensor, channels: usize, what: &str) -> Result<()> {
    match frame.dims() {
        [1, c, _, _] if *c == channels => Ok(()),
        dims => bail!("the VAE expects {what} with {channels} channels, found {dims:?}"),
    }
}
