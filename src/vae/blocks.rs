//! The parts of the autoencoder: convolution, group norm, residual block, the innermost level.

use candle_core::{Device, Result, Tensor};

use crate::nn::{
    AttentionMask, Conv2dOptions, Kernels, attention, conv2d, group_norm, group_norm_silu, linear,
};

/// Epsilon of every group norm, fixed in all implementations.
const EPS: f64 = 1e-6;

/// Gives the tensor of this shape and canonical name; fails as its caller does, since `names` lists tensors by it
/// without having any.
pub(super) type Parameters<'a, E> = &'a dyn Fn(&[usize], &str) -> std::result::Result<Tensor, E>;

pub(super) struct Conv {
    weight_oikk: Tensor,
    bias_o: Tensor,
}

impl Conv {
    pub(super) fn load<E>(
        get: Parameters<'_, E>,
        name: &str,
        input: usize,
        output: usize,
        kernel: usize,
    ) -> std::result::Result<Self, E> {
        Ok(Self {
            weight_oikk: get(&[output, input, kernel, kernel], &format!("{name}.weight"))?,
            bias_o: get(&[output], &format!("{name}.bias"))?,
        })
    }

    pub(super) fn device(&self) -> &Device {
        self.bias_o.device()
    }

    pub(super) fn forward(
        &self,
        kernels: &Kernels,
        x: &Tensor,
        options: Conv2dOptions,
    ) -> Result<Tensor> {
        conv2d(kernels, x, &self.weight_oikk, Some(&self.bias_o), options)
    }
}

pub(super) struct Norm {
    weight_c: Tensor,
    bias_c: Tensor,
    groups: usize,
}

impl Norm {
    pub(super) fn load<E>(
        get: Parameters<'_, E>,
        name: &str,
        channels: usize,
        groups: usize,
    ) -> std::result::Result<Self, E> {
        Ok(Self {
            weight_c: get(&[channels], &format!("{name}.weight"))?,
            bias_c: get(&[channels], &format!("{name}.bias"))?,
            groups,
        })
    }

    fn forward(&self, kernels: &Kernels, x: &Tensor) -> Result<Tensor> {
        group_norm(kernels, x, &self.weight_c, &self.bias_c, self.groups, EPS)
    }

    pub(super) fn forward_silu(&self, kernels: &Kernels, x: &Tensor) -> Result<Tensor> {
        group_norm_silu(kernels, x, &self.weight_c, &self.bias_c, self.groups, EPS)
    }
}

/// `x + conv2(silu(norm2(conv1(silu(norm1(x))))))`, x through a 1 x 1 convolution where the width changes.
pub(super) struct ResNet {
    norm1: Norm,
    conv1: Conv,
    norm2: Norm,
    conv2: Conv,
    shortcut: Option<Conv>,
}

impl ResNet {
    pub(super) fn load<E>(
        get: Parameters<'_, E>,
        name: &str,
        input: usize,
        output: usize,
        groups: usize,
    ) -> std::result::Result<Self, E> {
        // diffusers has one exactly where the width changes (`use_in_shortcut`).
        let shortcut = (input != output)
            .then(|| Conv::load(get, &format!("{name}.conv_shortcut"), input, output, 1));
        Ok(Self {
            norm1: Norm::load(get, &format!("{name}.norm1"), input, groups)?,
            conv1: Conv::load(get, &format!("{name}.conv1"), input, output, 3)?,
            norm2: Norm::load(get, &format!("{name}.norm2"), output, groups)?,
            conv2: Conv::load(get, &format!("{name}.conv2"), output, output, 3)?,
            shortcut: shortcut.transpose()?,
        })
    }

    pub(super) fn forward(&self, kernels: &Kernels, x: &Tensor) -> Result<Tensor> {
        // Each normalised picture lives only for its statement: at 1024 px one is up to a gigabyte.
        let h = self.conv1.forward(
            kernels,
            &self.norm1.forward_silu(kernels, x)?,
            Conv2dOptions::SAME,
        )?;
        let h = self.norm2.forward_silu(kernels, &h)?;
        let h = self.conv2.forward(kernels, &h, Conv2dOptions::SAME)?;
        match &self.shortcut {
            Some(shortcut) => shortcut.forward(kernels, x, Conv2dOptions::POINTWISE)? + h,
            None => x + h,
        }
    }
}

/// The innermost level: a residual block, a self-attention of one head, a residual block.
pub(super) struct MidBlock {
    first: ResNet,
    /// None where `mid_block_add_attention` is false.
    attention: Option<Attention>,
    second: ResNet,
}

impl MidBlock {
    pub(super) fn load<E>(
        get: Parameters<'_, E>,
        name: &str,
        width: usize,
        groups: usize,
        attention: bool,
    ) -> std::result::Result<Self, E> {
        let attention =
            attention.then(|| Attention::load(get, &format!("{name}.attentions.0"), width, groups));
        Ok(Self {
            first: ResNet::load(get, &format!("{name}.resnets.0"), width, width, groups)?,
            attention: attention.transpose()?,
            second: ResNet::load(get, &format!("{name}.resnets.1"), width, width, groups)?,
        })
    }

    pub(super) fn forward(&self, kernels: &Kernels, x: &Tensor) -> Result<Tensor> {
        let mut x = self.first.forward(kernels, x)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(kernels, &x)?;
        }
        self.second.forward(kernels, &x)
    }
}

/// Self-attention of one head over all pixels of the level, beside the residual.
struct Attention {
    norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

struct Linear {
    weight_oi: Tensor,
    bias_o: Tensor,
}

impl Linear {
    fn load<E>(get: Parameters<'_, E>, name: &str, width: usize) -> std::result::Result<Self, E> {
        Ok(Self {
            weight_oi: get(&[width, width], &format!("{name}.weight"))?,
            bias_o: get(&[width], &format!("{name}.bias"))?,
        })
    }

    fn forward(&self, kernels: &Kernels, x: &Tensor) -> Result<Tensor> {
        linear(kernels, x, &self.weight_oi, Some(&self.bias_o))
    }
}

impl Attention {
    fn load<E>(
        get: Parameters<'_, E>,
        name: &str,
        width: usize,
        groups: usize,
    ) -> std::result::Result<Self, E> {
        Ok(Self {
            norm: Norm::load(get, &format!("{name}.group_norm"), width, groups)?,
            q: Linear::load(get, &format!("{name}.to_q"), width)?,
            k: Linear::load(get, &format!("{name}.to_k"), width)?,
            v: Linear::load(get, &format!("{name}.to_v"), width)?,
            out: Linear::load(get, &format!("{name}.to_out.0"), width)?,
        })
    }

    fn forward(&self, kernels: &Kernels, x_bchw: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = x_bchw.dims4()?;
        let n = h * w;
        let y_bnc = self.norm.forward(kernels, x_bchw)?;
        let y_bnc = y_bnc.reshape((b, c, n))?.transpose(1, 2)?.contiguous()?;
        // One head as wide as the level: `attention_head_dim` of diffusers' `UNetMidBlock2D` is its width here.
        let head = |part: &Linear| part.forward(kernels, &y_bnc)?.reshape((b, n, 1, c));
        let (q_bnhd, k_bnhd, v_bnhd) = (head(&self.q)?, head(&self.k)?, head(&self.v)?);
        let scale = 1.0 / (c as f64).sqrt();
        let y_bnc = attention(
            kernels,
            &q_bnhd,
            &k_bnhd,
            &v_bnhd,
            scale,
            None,
            &AttentionMask::None,
        )?;
        let y_bnc = self.out.forward(kernels, &y_bnc)?;
        x_bchw + y_bnc.transpose(1, 2)?.contiguous()?.reshape((b, c, h, w))?
    }
}
