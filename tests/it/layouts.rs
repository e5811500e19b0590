//! The bundled miniature in the layouts that people have checkpoints in: names, single files, GGUF.

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};

use crate::world::{World, tiny_sd3};

pub(crate) type Tensors = HashMap<String, Tensor>;

/// The tensors of a part of the miniature of SD3, such as `transformer`.
pub(crate) fn part(name: &str) -> Tensors {
    part_of(&tiny_sd3(), name)
}

/// The tensors of a part of a folder.
pub(crate) fn part_of(model: &Path, name: &str) -> Tensors {
    let folder = model.join(name);
    let file = ["diffusion_pytorch_model.safetensors", "model.safetensors"];
    let file = file
        .map(|f| folder.join(f))
        .into_iter()
        .find(|f| f.is_file());
    candle_core::safetensors::load(file.expect("a file"), &Device::Cpu).expect("tensors")
}

pub(crate) fn save(tensors: &Tensors, path: &Path) {
    candle_core::safetensors::save(tensors, path).expect("saved");
}

pub(crate) fn prefixed(tensors: Tensors, prefix: &str) -> Tensors {
    let name = |(name, tensor)| (format!("{prefix}{name}"), tensor);
    tensors.into_iter().map(name).collect()
}

/// The transformer under the names of Stability's files.
pub(crate) fn stability(mut from: Tensors) -> Tensors {
    let mut out = Tensors::new();
    let mut fused = Vec::new();
    for name in from.keys() {
        for (q, k, v, theirs) in [
            ("attn.to_q", "attn.to_k", "attn.to_v", "x_block.attn.qkv"),
            (
                "attn.add_q_proj",
                "attn.add_k_proj",
                "attn.add_v_proj",
                "context_block.attn.qkv",
            ),
        ] {
            if name.contains(q) {
                fused.push((name.clone(), [q, k, v], theirs));
            }
        }
    }
    for (name, parts, theirs) in fused {
        let [q, k, v] =
            parts.map(|part| from.remove(&name.replace(parts[0], part)).expect("there"));
        let tensor = Tensor::cat(&[q, k, v], 0).expect("fused");
        out.insert(
            name.replace("transformer_blocks", "joint_blocks")
                .replace(parts[0], theirs),
            tensor,
        );
    }
    let last = from
        .keys()
        .filter_map(|n| n.split('.').nth(1)?.parse::<usize>().ok());
    let last = format!(
        "transformer_blocks.{}.norm1_context",
        last.max().expect("blocks")
    );
    for (name, tensor) in from {
        let swapped = name.starts_with("norm_out.linear") || name.starts_with(&last);
        let tensor = if swapped {
            let halves = tensor.chunk(2, 0).expect("halves");
            Tensor::cat(&[&halves[1], &halves[0]], 0).expect("swapped")
        } else {
            tensor
        };
        let renames = [
            ("pos_embed.proj.", "x_embedder.proj."),
            ("pos_embed.pos_embed", "pos_embed"),
            (
                "time_text_embed.timestep_embedder.linear_1",
                "t_embedder.mlp.0",
            ),
            (
                "time_text_embed.timestep_embedder.linear_2",
                "t_embedder.mlp.2",
            ),
            ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
            ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
            ("norm_out.linear", "final_layer.adaLN_modulation.1"),
            ("proj_out", "final_layer.linear"),
            ("transformer_blocks", "joint_blocks"),
            ("norm1_context.linear", "context_block.adaLN_modulation.1"),
            ("norm1.linear", "x_block.adaLN_modulation.1"),
            ("attn.to_out.0", "x_block.attn.proj"),
            ("attn.to_add_out", "context_block.attn.proj"),
            ("attn.norm_added_", "context_block.attn.ln_"),
            ("attn.norm_", "x_block.attn.ln_"),
            ("ff_context.net.0.proj", "context_block.mlp.fc1"),
            ("ff_context.net.2", "context_block.mlp.fc2"),
            ("ff.net.0.proj", "x_block.mlp.fc1"),
            ("ff.net.2", "x_block.mlp.fc2"),
        ];
        let rename = |name: String, (ours, theirs): &(&str, &str)| name.replace(ours, theirs);
        out.insert(renames.iter().fold(name, rename), tensor);
    }
    out
}

/// The VAE under the names of the original code; its attention is made of 1 x 1 convolutions there.
pub(crate) fn original_vae(from: Tensors) -> Tensors {
    let levels = 4;
    let mut out = Tensors::new();
    for (name, tensor) in from {
        let mut theirs = name.clone();
        for n in 0..levels {
            let (ours, its) = (format!("up_blocks.{n}."), format!("up.{}.", levels - 1 - n));
            if theirs.contains(&ours) {
                theirs = theirs.replace(&ours, &its);
                break;
            }
        }
        for (ours, its) in [
            ("mid_block.resnets.0.", "mid.block_1."),
            ("mid_block.resnets.1.", "mid.block_2."),
            ("mid_block.attentions.0.", "mid.attn_1."),
            ("group_norm.", "norm."),
            ("to_q.", "q."),
            ("to_k.", "k."),
            ("to_v.", "v."),
            ("to_out.0.", "proj_out."),
            ("down_blocks.", "down."),
            ("resnets.", "block."),
            ("downsamplers.0.", "downsample."),
            ("upsamplers.0.", "upsample."),
            ("conv_norm_out.", "norm_out."),
            ("conv_shortcut.", "nin_shortcut."),
        ] {
            theirs = theirs.replace(ours, its);
        }
        let is_projection = theirs.contains("attn_1.") && tensor.rank() == 2;
        let tensor = if is_projection {
            let square = tensor.unsqueeze(2).and_then(|t| t.unsqueeze(3));
            square.expect("a convolution")
        } else {
            tensor
        };
        out.insert(theirs, tensor);
    }
    out
}

/// A CLIP text tower under OpenCLIP's names: queries, keys and values in one tensor, the projection transposed.
pub(crate) fn open_clip(mut from: Tensors) -> Tensors {
    let mut out = Tensors::new();
    let queries = |name: &String| name.contains("self_attn.q_proj.");
    for name in from
        .keys()
        .filter(|n| queries(n))
        .cloned()
        .collect::<Vec<_>>()
    {
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"]
            .map(|p| from.remove(&name.replace("q_proj", p)).expect("there"));
        let fused = Tensor::cat(&[q, k, v], 0).expect("fused");
        let name = name.replace("self_attn.q_proj.", "attn.in_proj_");
        from.insert(name, fused);
    }
    let projection = from.remove("text_projection.weight").expect("there");
    let projection = projection.t().and_then(|t| t.contiguous());
    out.insert("text_projection".to_owned(), projection.expect("a matrix"));
    for (name, tensor) in from {
        let theirs = [
            ("text_model.embeddings.token_embedding.", "token_embedding."),
            (
                "text_model.embeddings.position_embedding.weight",
                "positional_embedding",
            ),
            ("text_model.final_layer_norm.", "ln_final."),
            ("text_model.encoder.layers.", "transformer.resblocks."),
            ("self_attn.out_proj.", "attn.out_proj."),
            ("layer_norm1.", "ln_1."),
            ("layer_norm2.", "ln_2."),
            ("mlp.fc1.", "mlp.c_fc."),
            ("mlp.fc2.", "mlp.c_proj."),
        ]
        .iter()
        .fold(name, |name, (ours, theirs)| name.replace(ours, theirs));
        out.insert(theirs, tensor);
    }
    out
}

/// A UNet of one residual block a level and two levels under the names of the original code, whose blocks are numbered
/// through.
pub(crate) fn original_unet(from: Tensors) -> Tensors {
    let attends = |side: &str, level: usize| {
        let inner = format!("{side}.{level}.attentions.");
        from.keys().any(|name| name.starts_with(&inner))
    };
    let upsampler = 1 + usize::from(attends("up_blocks", 0));
    let mut places: Vec<(String, String)> = vec![
        ("time_embedding.linear_1.".into(), "time_embed.0.".into()),
        ("time_embedding.linear_2.".into(), "time_embed.2.".into()),
        ("add_embedding.linear_1.".into(), "label_emb.0.0.".into()),
        ("add_embedding.linear_2.".into(), "label_emb.0.2.".into()),
        ("conv_in.".into(), "input_blocks.0.0.".into()),
        ("conv_norm_out.".into(), "out.0.".into()),
        ("conv_out.".into(), "out.2.".into()),
        (
            "down_blocks.0.downsamplers.0.conv.".into(),
            "input_blocks.2.0.op.".into(),
        ),
        (
            "up_blocks.0.upsamplers.0.conv.".into(),
            format!("output_blocks.1.{upsampler}.conv."),
        ),
        ("mid_block.resnets.0.".into(), "middle_block.0.".into()),
        ("mid_block.attentions.0.".into(), "middle_block.1.".into()),
        ("mid_block.resnets.1.".into(), "middle_block.2.".into()),
    ];
    for level in 0..2 {
        let down = format!("input_blocks.{}.", 2 * level + 1);
        places.push((
            format!("down_blocks.{level}.resnets.0."),
            format!("{down}0."),
        ));
        places.push((
            format!("down_blocks.{level}.attentions.0."),
            format!("{down}1."),
        ));
        for i in 0..2 {
            let up = format!("output_blocks.{}.", 2 * level + i);
            places.push((format!("up_blocks.{level}.resnets.{i}."), format!("{up}0.")));
            places.push((
                format!("up_blocks.{level}.attentions.{i}."),
                format!("{up}1."),
            ));
        }
    }
    let inside = [
        ("norm1.", "in_layers.0."),
        ("conv1.", "in_layers.2."),
        ("time_emb_proj.", "emb_layers.1."),
        ("norm2.", "out_layers.0."),
        ("conv2.", "out_layers.3."),
        ("conv_shortcut.", "skip_connection."),
    ];
    let rename = |name: &str| {
        let (ours, theirs) = places
            .iter()
            .find(|(ours, _)| name.starts_with(ours.as_str()))
            .unwrap_or_else(|| panic!("no place for {name}"));
        let rest = &name[ours.len()..];
        let inner = inside
            .iter()
            .find(|(inner, _)| ours.contains("resnets") && rest.starts_with(inner));
        match inner {
            Some((inner, its)) => format!("{theirs}{its}{}", &rest[inner.len()..]),
            None => format!("{theirs}{rest}"),
        }
    };
    from.iter()
        .map(|(name, t)| (rename(name), t.clone()))
        .collect()
}

/// T5 under llama.cpp's names.
pub(crate) fn llama_cpp(from: Tensors) -> Tensors {
    let rename = |name: String| {
        [
            ("encoder.embed_tokens.", "token_embd."),
            ("shared.", "token_embd."),
            ("encoder.block.", "enc.blk."),
            ("encoder.final_layer_norm", "enc.output_norm"),
            ("layer.0.layer_norm", "attn_norm"),
            ("layer.1.layer_norm", "ffn_norm"),
            (
                "layer.0.SelfAttention.relative_attention_bias",
                "attn_rel_b",
            ),
            ("layer.0.SelfAttention.", "attn_"),
            ("layer.1.DenseReluDense.wi_0", "ffn_gate"),
            ("layer.1.DenseReluDense.wi_1", "ffn_up"),
            ("layer.1.DenseReluDense.wo", "ffn_down"),
        ]
        .iter()
        .fold(name, |name, (ours, theirs)| name.replace(ours, theirs))
    };
    from.into_iter()
        .map(|(name, t)| (rename(name), t))
        .collect()
}

/// A GGUF file of `architecture`: matrices of the types that `choose` gives, the rest as they are.
pub(crate) fn gguf(
    tensors: &Tensors,
    architecture: &str,
    choose: impl Fn(&str) -> Option<GgmlDType>,
) -> Vec<u8> {
    let text = |s: &str| [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat();
    let (mut header, mut data) = (b"GGUF\x03\0\0\0".to_vec(), Vec::new());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend(1u64.to_le_bytes());
    header.extend(text("general.architecture"));
    header.extend(8u32.to_le_bytes());
    header.extend(text(architecture));
    for (name, tensor) in tensors {
        let wide = tensor.to_dtype(DType::F32).expect("f32");
        let (kind, bytes) = match choose(name)
            .filter(|_| tensor.rank() == 2 && !name.contains("attn_rel_b"))
        {
            Some(dtype) => {
                let quantised = QTensor::quantize(&wide, dtype).expect("quantised");
                let kind = match dtype {
                    GgmlDType::Q8_0 => 8u32,
                    GgmlDType::Q4K => 12,
                    other => panic!("{other:?}"),
                };
                (kind, quantised.data().expect("bytes").into_owned())
            }
            None if tensor.dtype() == DType::F32 => {
                let values: Vec<f32> = tensor.flatten_all().and_then(|t| t.to_vec1()).expect("f32");
                (0, values.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
            None if tensor.dtype() == DType::BF16 => {
                let values: Vec<half::bf16> = tensor
                    .flatten_all()
                    .and_then(|t| t.to_vec1())
                    .expect("bf16");
                (30, values.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
            None => {
                let values: Vec<half::f16> =
                    tensor.flatten_all().and_then(|t| t.to_vec1()).expect("f16");
                (1, values.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
        };
        header.extend(text(name));
        header.extend((tensor.rank() as u32).to_le_bytes());
        header.extend(
            tensor
                .dims()
                .iter()
                .rev()
                .flat_map(|d| (*d as u64).to_le_bytes()),
        );
        header.extend(kind.to_le_bytes());
        data.resize(data.len().next_multiple_of(32), 0);
        header.extend((data.len() as u64).to_le_bytes());
        data.extend(bytes);
    }
    header.resize(header.len().next_multiple_of(32), 0);
    header.extend(data);
    header
}

/// `tensors` with every linear layer in 8 bits, as ComfyUI's converters do with or without scales.
pub(crate) fn fp8(tensors: &Tensors, scaled: bool) -> Tensors {
    let mut out = Tensors::new();
    let number = |x: f32| Tensor::new(&[x], &Device::Cpu).expect("a number");
    for (name, tensor) in tensors {
        let is_table = name.contains("embed") || name.contains("shared") || name.contains("bias");
        let Some(layer) = name
            .strip_suffix("weight")
            .filter(|_| tensor.rank() == 2 && !is_table)
        else {
            out.insert(name.clone(), tensor.clone());
            continue;
        };
        let wide = tensor.to_dtype(DType::F32).expect("f32");
        let largest = wide.abs().and_then(|t| t.max_all()?.to_scalar::<f32>());
        let scale = if scaled {
            largest.expect("a number") / 448.0
        } else {
            1.0
        };
        let stored = (wide / f64::from(scale)).and_then(|t| t.to_dtype(DType::F8E4M3));
        out.insert(name.clone(), stored.expect("fp8"));
        if scaled {
            out.insert(format!("{layer}scale_weight"), number(scale));
            out.insert(format!("{layer}scale_input"), number(1.0));
        }
    }
    if scaled {
        let mark = number(0.0).to_dtype(DType::F8E4M3).expect("fp8");
        out.insert("scaled_fp8".to_owned(), mark);
    }
    out
}

/// A world whose model is Stability's single file `sd3.safetensors` (denoiser and VAE), with whatever else is
/// given below `[model.files]`.
pub(crate) fn single_file_world(bundled: &[(&str, &str)], files: &str) -> World {
    let world = World::new();
    let mut all = prefixed(stability(part("transformer")), "model.diffusion_model.");
    all.extend(prefixed(original_vae(part("vae")), "first_stage_model."));
    for (name, prefix) in bundled {
        all.extend(prefixed(part(name), prefix));
    }
    save(&all, &world.path("sd3.safetensors"));
    world.edit(
        &format!("path = {:?}", tiny_sd3().display().to_string()),
        &format!("path = \"sd3.safetensors\"\n[model.files]\n{files}"),
    );
    world
}

/// The lines that name the miniature's configurations and tokenizers, which no single file has.
pub(crate) fn small_files() -> String {
    let mut lines = String::new();
    for (key, file) in [
        ("clip_l_config", "text_encoder/config.json"),
        ("clip_g_config", "text_encoder_2/config.json"),
        ("t5_config", "text_encoder_3/config.json"),
        ("vae_config", "vae/config.json"),
        ("clip_l_tokenizer", "tokenizer"),
        ("t5_tokenizer", "tokenizer_3"),
    ] {
        let path = tiny_sd3().join(file).display().to_string();
        lines.push_str(&format!("{key} = {path:?}\n"));
    }
    lines
}
