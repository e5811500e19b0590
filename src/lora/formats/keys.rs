//! The many ways in which programs name the tensors of a LoRA.

use super::naming::Spelling;
use crate::lora::file::stored::TensorRole;

/// What a tensor's name in a LoRA file says about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TensorKey {
    /// A part of an adapter on the denoiser, and PEFT's name of the adapter where the tensor has it.
    Denoiser(ModuleAddress, TensorRole, Option<String>),
    /// An adapter on a text encoder.
    TextEncoder,
    /// Of a kind that is not read, with the kind's name.
    Other(&'static str),
}

/// Where an adapter sits, as the file says it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ModuleAddress {
    pub(super) convention: Convention,
    /// The module's name without what the convention puts around it.
    pub(super) module: String,
}

/// Who puts what in front of a module's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Convention {
    /// `transformer.` or `unet.`: diffusers, ai-toolkit.
    Component,
    /// `lora_unet_`: kohya's scripts, ComfyUI.
    Kohya,
    /// `base_model.model.`: PEFT itself.
    Peft,
    /// `diffusion_model.`: ComfyUI's own, which SimpleTuner and OneTrainer can write.
    Comfy,
    /// `lora_transformer_`: OneTrainer.
    OneTrainer,
    /// `lycoris_`: SimpleTuner by way of LyCORIS.
    Lycoris,
    /// The module's name with nothing in front.
    Bare,
}

const PREFIXES: &[(&str, Convention)] = &[
    ("lora_unet_", Convention::Kohya),
    ("lora_transformer_", Convention::OneTrainer),
    ("lycoris_", Convention::Lycoris),
    ("base_model.model.", Convention::Peft),
    ("model.diffusion_model.", Convention::Comfy),
    ("diffusion_model.", Convention::Comfy),
    ("transformer.", Convention::Component),
    ("unet.", Convention::Component),
    // Fits every name, so it comes last.
    ("", Convention::Bare),
];

const SUFFIXES: &[(&str, TensorRole)] = &[
    (".lora_A.weight", TensorRole::A),
    (".lora_B.weight", TensorRole::B),
    (".lora_down.weight", TensorRole::A),
    (".lora_up.weight", TensorRole::B),
    (".lora.down.weight", TensorRole::A),
    (".lora.up.weight", TensorRole::B),
    ("_lora.down.weight", TensorRole::A),
    ("_lora.up.weight", TensorRole::B),
    (".lora_linear_layer.down.weight", TensorRole::A),
    (".lora_linear_layer.up.weight", TensorRole::B),
    (".alpha", TensorRole::Alpha),
];

/// What wrappers of a model leave in the names of its modules: `torch.compile`, data parallelism, PEFT around PEFT, and a
/// component's name inside.
const WRAPPERS: &[&str] = &[
    "_orig_mod.",
    "module.",
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "unet.",
];

/// What in a tensor's name tells that it is not of a plain LoRA, and the words for its kind.
const OTHER_KINDS: &[(&str, &str)] = &[
    (".lora_magnitude_vector", "of DoRA"),
    (".dora_scale", "of DoRA"),
    (".hada_", "of LoHa"),
    (".lokr_", "of LoKr"),
    (".lora_mid.", "of a convolution's third factor (Tucker)"),
    (".processor.qkv_lora", "of XLabs' scripts"),
    (".processor.proj_lora", "of XLabs' scripts"),
    ("_norm.scale", "of a BFL control LoRA"),
    (".lora_B.bias", "of a bias's LoRA"),
    (".lora_up.bias", "of a bias's LoRA"),
    (".lora_embedding_", "of an embedding's LoRA"),
    (".modules_to_save.", "of a module that was trained whole"),
    (".lora_E", "of AdaLoRA"),
    (".ranknum", "of AdaLoRA"),
    (".oft_", "of OFT"),
    (".boft_", "of BOFT"),
    (".loha_", "of LoHa"),
    (".vera_", "of VeRA"),
    (".ia3_", "of IA3"),
    (".on_input", "of IA3"),
    (".hra_", "of HRA"),
    (".w_norm", "of a norm's change"),
    (".b_norm", "of a norm's change"),
    (".a1.weight", "of GLoRA"),
    (".a2.weight", "of GLoRA"),
    (".b1.weight", "of GLoRA"),
    (".b2.weight", "of GLoRA"),
];

impl Convention {
    /// The namings in which a module's name may be, the likelier first, and whether dots are underscores.
    pub(super) fn spellings(self) -> (&'static [Spelling], bool) {
        const NATIVE_FIRST: &[Spelling] = &[Spelling::Native, Spelling::Diffusers];
        const OURS_FIRST: &[Spelling] = &[Spelling::Diffusers, Spelling::Native];
        match self {
            Self::Kohya => (NATIVE_FIRST, true),
            Self::Comfy => (NATIVE_FIRST, false),
            Self::OneTrainer | Self::Lycoris => (OURS_FIRST, true),
            Self::Component | Self::Peft | Self::Bare => (OURS_FIRST, false),
        }
    }
}

impl TensorKey {
    pub(super) fn of(name: &str) -> Self {
        let name = &without_compile(name);
        // First: adapters of text encoders have the same endings as the denoiser's.
        let text = ["lora_te", "text_encoder"];
        if text
            .iter()
            .any(|start| without_wrappers(name).starts_with(start))
        {
            return Self::TextEncoder;
        }
        // Before the endings: `.lora_mid.weight` and XLabs' names end like those of plain LoRA.
        if let Some((_, kind)) = OTHER_KINDS.iter().find(|(mark, _)| name.contains(mark)) {
            return Self::Other(kind);
        }
        if name.ends_with(".diff") || name.ends_with(".diff_b") {
            return Self::Other("of a whole weight's change");
        }
        let parsed = SUFFIXES
            .iter()
            .find_map(|(suffix, part)| Some((name.strip_suffix(suffix)?, *part, None)));
        let Some((path, part, adapter)) = parsed.or_else(|| with_adapter_name(name)) else {
            return Self::Other("of an unknown kind");
        };
        let mut path = path;
        while let Some(inside) = path.strip_prefix("module.") {
            path = inside;
        }
        let found = PREFIXES
            .iter()
            .find_map(|(prefix, convention)| Some((path.strip_prefix(prefix)?, *convention)));
        match found {
            Some((module, convention)) if !module.is_empty() => {
                let module = without_processor(without_wrappers(module));
                Self::Denoiser(ModuleAddress { convention, module }, part, adapter)
            }
            _ => Self::Other("of an unknown kind"),
        }
    }
}

/// PEFT's own way to write a tensor's name, with that of the adapter in it: `proj_out.lora_A.default.weight`.
fn with_adapter_name(name: &str) -> Option<(&str, TensorRole, Option<String>)> {
    let name = name.strip_suffix(".weight")?;
    let (path, adapter) = name.rsplit_once('.')?;
    let parts = [(".lora_A", TensorRole::A), (".lora_B", TensorRole::B)];
    let found = parts
        .iter()
        .find_map(|(suffix, part)| Some((path.strip_suffix(suffix)?, *part)));
    found.map(|(path, part)| (path, part, Some(adapter.to_owned())))
}

/// Without the marks of `torch.compile`, which may be at the model or at each block.
fn without_compile(name: &str) -> String {
    let dotted = name.replace("._orig_mod.", ".");
    let flat = dotted.replace("__orig_mod_", "_");
    flat.strip_prefix("_orig_mod.").unwrap_or(&flat).to_owned()
}

fn without_wrappers(mut module: &str) -> &str {
    while let Some(inside) = WRAPPERS
        .iter()
        .find_map(|wrapper| module.strip_prefix(wrapper))
    {
        module = inside;
    }
    module
}

/// Old files of diffusers name an attention's linears by its processor: `attn1.processor.to_out` is
/// `attn1.to_out.0`.
fn without_processor(module: &str) -> String {
    let Some((attention, linear)) = module.split_once(".processor.") else {
        return module.to_owned();
    };
    let index = if linear == "to_out" { ".0" } else { "" };
    format!("{attention}.{linear}{index}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_many_programs() {
        let text = |name: &str| match TensorKey::of(name) {
            TensorKey::Denoiser(address, part, adapter) => {
                let adapter = adapter.map_or(String::new(), |name| format!(" {name}"));
                format!(
                    "{:?} {} {part:?}{adapter}",
                    address.convention, address.module
                )
            }
            other => format!("{other:?}"),
        };
        let names = [
            "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
            "unet.mid_block.attentions.0.proj_in.lora.down.weight",
            "unet.mid_block.attn1.processor.to_out_lora.up.weight",
            "unet.mid_block.attn1.processor.to_q_lora.up.weight",
            "lora_unet_double_blocks_0_img_attn_qkv.alpha",
            "base_model.model.proj_out.lora_B.default.weight",
            "diffusion_model.double_blocks.0.img_attn.qkv.lora_up.weight",
            "lora_transformer_proj_out.lora_down.weight",
            "lycoris_proj_out.lora_down.weight",
            "double_blocks.0.img_attn.qkv.lora_A.weight",
            "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha",
            "text_encoder_2.text_model.x.lora_A.weight",
            "text_encoders.clip_l.transformer.x.lora_up.weight",
            "lora_unet_x.dora_scale",
            "lora_unet_x.hada_w1_a",
            "lora_unet_x.lokr_w1",
            "double_blocks.0.processor.qkv_lora1.down.weight",
            "double_blocks.0.img_attn.norm.query_norm.scale",
            "time_in.in_layer.lora_B.bias",
            "lora_unet_x.lora_mid.weight",
            "lora_unet_x.diff",
            "transformer.lora_A.weight",
            "lora_unet_.alpha",
            "x.weight",
            "_orig_mod.proj_out.lora_A.weight",
            "transformer._orig_mod.transformer_blocks.0._orig_mod.attn.to_q.lora_A.weight",
            "lora_unet__orig_mod_double_blocks_0__orig_mod_img_attn_qkv.alpha",
            "module.transformer.proj_out.lora_A.weight",
            "unet.module.conv_in.lora_B.weight",
            "base_model.model._orig_mod.module.proj_out.lora_A.weight",
            "transformer.base_model.model.proj_out.lora_A.my_style.weight",
            "module.text_encoder.x.lora_A.weight",
            "model.diffusion_model.out.2.lora_up.weight",
            "lora_unet_x.b1.weight",
            "base_model.model.conv_in.modules_to_save.weight",
        ];
        let lines: Vec<_> = names.map(|name| format!("{name}: {}", text(name))).to_vec();
        expect_test::expect![[r#"
            transformer.transformer_blocks.0.attn.to_q.lora_A.weight: Component transformer_blocks.0.attn.to_q A
            unet.mid_block.attentions.0.proj_in.lora.down.weight: Component mid_block.attentions.0.proj_in A
            unet.mid_block.attn1.processor.to_out_lora.up.weight: Component mid_block.attn1.to_out.0 B
            unet.mid_block.attn1.processor.to_q_lora.up.weight: Component mid_block.attn1.to_q B
            lora_unet_double_blocks_0_img_attn_qkv.alpha: Kohya double_blocks_0_img_attn_qkv Alpha
            base_model.model.proj_out.lora_B.default.weight: Peft proj_out B default
            diffusion_model.double_blocks.0.img_attn.qkv.lora_up.weight: Comfy double_blocks.0.img_attn.qkv B
            lora_transformer_proj_out.lora_down.weight: OneTrainer proj_out A
            lycoris_proj_out.lora_down.weight: Lycoris proj_out A
            double_blocks.0.img_attn.qkv.lora_A.weight: Bare double_blocks.0.img_attn.qkv A
            lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha: TextEncoder
            text_encoder_2.text_model.x.lora_A.weight: TextEncoder
            text_encoders.clip_l.transformer.x.lora_up.weight: TextEncoder
            lora_unet_x.dora_scale: Other("of DoRA")
            lora_unet_x.hada_w1_a: Other("of LoHa")
            lora_unet_x.lokr_w1: Other("of LoKr")
            double_blocks.0.processor.qkv_lora1.down.weight: Other("of XLabs' scripts")
            double_blocks.0.img_attn.norm.query_norm.scale: Other("of a BFL control LoRA")
            time_in.in_layer.lora_B.bias: Other("of a bias's LoRA")
            lora_unet_x.lora_mid.weight: Other("of a convolution's third factor (Tucker)")
            lora_unet_x.diff: Other("of a whole weight's change")
            transformer.lora_A.weight: Bare transformer A
            lora_unet_.alpha: Other("of an unknown kind")
            x.weight: Other("of an unknown kind")
            _orig_mod.proj_out.lora_A.weight: Bare proj_out A
            transformer._orig_mod.transformer_blocks.0._orig_mod.attn.to_q.lora_A.weight: Component transformer_blocks.0.attn.to_q A
            lora_unet__orig_mod_double_blocks_0__orig_mod_img_attn_qkv.alpha: Kohya double_blocks_0_img_attn_qkv Alpha
            module.transformer.proj_out.lora_A.weight: Component proj_out A
            unet.module.conv_in.lora_B.weight: Component conv_in B
            base_model.model._orig_mod.module.proj_out.lora_A.weight: Peft proj_out A
            transformer.base_model.model.proj_out.lora_A.my_style.weight: Component proj_out A my_style
            module.text_encoder.x.lora_A.weight: TextEncoder
            model.diffusion_model.out.2.lora_up.weight: Comfy out.2 B
            lora_unet_x.b1.weight: Other("of GLoRA")
            base_model.model.conv_in.modules_to_save.weight: Other("of a module that was trained whole")"#]].assert_eq(&lines.join("\n"));
    }
}
