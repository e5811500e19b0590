//! The names of modules in LoRA files, for every module of the published networks.

use std::collections::{BTreeMap, BTreeSet};

use expect_test::expect;
use plumb::lora::SaveDtype;
use plumb::lora::file::Matrix;
use plumb::lora::formats::{
    self, Module, Naming, ReadOptions, Spelling, Target, WriteOptions, naming::flat,
};
use plumb::models::lora_names::namings;

/// Every linear and convolution of a published network, with the shape of its weight.
pub(crate) fn network(name: &str) -> BTreeMap<String, Vec<usize>> {
    let text = include_str!("../golden/lora_modules.json");
    let golden: serde_json::Value = serde_json::from_str(text).expect("sound");
    let network = &golden["networks"][name];
    let shape = |value: &serde_json::Value| {
        serde_json::from_value::<Vec<usize>>(value.clone()).expect("sound")
    };
    let mut modules = BTreeMap::new();
    for (name, value) in network["modules"].as_object().expect("sound") {
        let Some(block) = value.as_object() else {
            modules.insert(name.clone(), shape(value));
            continue;
        };
        let (stem, range) = name.rsplit_once('.').expect("sound");
        let (first, last) = range.split_once('-').expect("sound");
        for number in first.parse::<usize>().expect("sound")..=last.parse().expect("sound") {
            for (part, value) in block {
                modules.insert(format!("{stem}.{number}.{part}"), shape(value));
            }
        }
    }
    assert_eq!(
        modules.len() as u64,
        network["count"].as_u64().expect("sound"),
        "{name}"
    );
    modules
}

const NETWORKS: &[(&str, &str)] = &[
    ("sd3.5-large", "sd3"),
    ("sd3.5-medium", "sd3"),
    ("flux1-dev", "flux1"),
    ("chroma", "chroma"),
    ("z-image", "zimage"),
    ("klein-base-4b", "flux2"),
    ("wan-14b", "wan"),
    ("sdxl", "sdxl"),
    ("sd1", "sd1"),
    ("unet_tiny", "sdxl"),
];

fn naming(family: &str) -> &'static Naming {
    namings()
        .iter()
        .find(|naming| naming.family == family)
        .expect("sound")
}

/// The modules that kohya's scripts train by default: everything in transformer blocks and around them.
fn usual(names: BTreeMap<String, Vec<usize>>) -> BTreeMap<String, Vec<usize>> {
    let starts = ["layers.", "blocks."];
    let marks = ["transformer_blocks.", ".attentions."];
    let in_block = |name: &str| {
        starts.iter().any(|start| name.starts_with(start))
            || marks.iter().any(|mark| name.contains(mark))
    };
    names
        .into_iter()
        .filter(|(name, _)| in_block(name))
        .collect()
}

#[test]
fn every_module_of_the_published_networks_has_one_name_on_each_side() {
    for (network_name, family) in NETWORKS {
        let naming = naming(family);
        let mut natives = BTreeMap::<String, BTreeSet<Option<usize>>>::new();
        for name in network(network_name).keys() {
            let place = naming
                .ours(name)
                .unwrap_or_else(|| panic!("{network_name}: {name}"));
            assert_eq!(place.ours, *name);
            let parts = natives.entry(flat(&place.native)).or_default();
            assert!(parts.insert(place.part.map(|part| part.index)), "{name}");
            let native = flat(&place.native);
            let back = naming.find(&native, Spelling::Native, true);
            assert!(back.contains(&place), "{native}");
            let back = naming.find(&flat(name), Spelling::Diffusers, true);
            assert_eq!(back, [place]);
        }
        for (native, parts) in natives {
            let expected = naming.find(&native, Spelling::Native, true);
            assert_eq!(parts.len(), expected.len(), "{native}");
        }
    }
}

/// (network, modules as diffusers has them, numbers of their adapters at rank 16, the same as kohya's scripts train
/// them). 722 and 304 are what kohya's scripts say when they start.
#[test]
fn as_many_modules_and_numbers_as_the_trainers_have() {
    for (network_name, family, ours, kohya) in [
        ("sdxl", "sdxl", (722, 42_557_440), (722, 42_557_440)),
        ("flux1-dev", "flux1", (494, 85_917_696), (304, 76_578_816)),
        // FLUX.1's without its 76 modulations.
        ("chroma", "chroma", (418, 65_372_160), (228, 56_033_280)),
        ("sd3.5-large", "sd3", (0, 0), (377, 67_395_584)),
        ("sd3.5-medium", "sd3", (0, 0), (263, 29_614_080)),
    ] {
        let mut native = BTreeMap::<String, (usize, usize)>::new();
        let (mut count, mut numbers) = (0, 0);
        for (name, shape) in usual(network(network_name)) {
            let inputs = shape[1];
            let entry = native
                .entry(naming(family).ours(&name).expect("sound").native)
                .or_default();
            *entry = (entry.0 + shape[0], inputs);
            count += 1;
            numbers += 16 * (shape[0] + inputs);
        }
        if ours.0 > 0 {
            assert_eq!((count, numbers), ours, "{network_name}");
        }
        let numbers = native
            .values()
            .map(|(outputs, inputs)| 16 * (outputs + inputs))
            .sum::<usize>();
        assert_eq!((native.len(), numbers), kohya, "{network_name}");
    }
}

#[test]
fn names_as_kohyas_scripts_write_them() {
    let text = |family: &str, names: &[&str]| {
        let native = |name: &&str| flat(&naming(family).ours(name).expect("sound").native);
        names.iter().map(native).collect::<Vec<_>>().join("\n")
    };
    expect![[r#"
        input_blocks_4_1_transformer_blocks_0_attn1_to_q
        input_blocks_8_1_proj_in
        middle_block_1_transformer_blocks_9_ff_net_0_proj
        output_blocks_2_1_transformer_blocks_9_attn2_to_out_0
        output_blocks_3_1_proj_out
        input_blocks_2_0_in_layers_2
        input_blocks_3_0_op
        middle_block_2_emb_layers_1
        output_blocks_2_2_conv
        output_blocks_5_2_conv
        output_blocks_8_0_skip_connection
        label_emb_0_2"#]]
    .assert_eq(&text(
        "sdxl",
        &[
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            "down_blocks.2.attentions.1.proj_in",
            "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj",
            "up_blocks.0.attentions.2.transformer_blocks.9.attn2.to_out.0",
            "up_blocks.1.attentions.0.proj_out",
            "down_blocks.0.resnets.1.conv1",
            "down_blocks.0.downsamplers.0.conv",
            "mid_block.resnets.1.time_emb_proj",
            "up_blocks.0.upsamplers.0.conv",
            "up_blocks.1.upsamplers.0.conv",
            "up_blocks.2.resnets.2.conv_shortcut",
            "add_embedding.linear_2",
        ],
    ));
    expect![[r#"
        double_blocks_0_img_attn_qkv
        double_blocks_18_txt_attn_qkv
        double_blocks_0_txt_mod_lin
        single_blocks_37_linear1
        single_blocks_37_modulation_lin
        single_blocks_0_linear2
        final_layer_linear"#]]
    .assert_eq(&text(
        "flux1",
        &[
            "transformer_blocks.0.attn.to_k",
            "transformer_blocks.18.attn.add_v_proj",
            "transformer_blocks.0.norm1_context.linear",
            "single_transformer_blocks.37.proj_mlp",
            "single_transformer_blocks.37.norm.linear",
            "single_transformer_blocks.0.proj_out",
            "proj_out",
        ],
    ));
    expect![[r#"
        joint_blocks_0_x_block_attn_qkv
        joint_blocks_5_x_block_attn2_qkv
        joint_blocks_0_context_block_mlp_fc1
        joint_blocks_0_x_block_adaLN_modulation_1"#]]
    .assert_eq(&text(
        "sd3",
        &[
            "transformer_blocks.0.attn.to_k",
            "transformer_blocks.5.attn2.to_v",
            "transformer_blocks.0.ff_context.net.0.proj",
            "transformer_blocks.0.norm1.linear",
        ],
    ));
}

/// Adapters of rank 2, some of `odd_rank`, on all modules, whose sizes are divided by `divisor` where that is possible.
pub(crate) fn adapters(
    modules: BTreeMap<String, Vec<usize>>,
    divisor: usize,
    odd_rank: usize,
) -> Vec<Module> {
    let small = |size: usize| {
        if size.is_multiple_of(divisor) {
            size / divisor
        } else {
            size
        }
    };
    let mut number = 0u32;
    let mut matrix = |shape: Vec<usize>| {
        let mut next = || {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (number >> 8) as f32 / 2f32.powi(24) - 0.25
        };
        let values = (0..shape.iter().product()).map(|_| next()).collect();
        Matrix { shape, values }
    };
    let mut module = |(place, (name, shape)): (usize, (String, Vec<usize>))| {
        let rank = if place % 5 == 0 { odd_rank } else { 2 };
        let (a, b) = match shape[..] {
            [outputs, inputs] => (vec![rank, small(inputs)], vec![small(outputs), rank]),
            [outputs, inputs, h, w] => (
                vec![rank, small(inputs), h, w],
                vec![small(outputs), rank, 1, 1],
            ),
            _ => panic!("{name}"),
        };
        Module {
            name,
            a: matrix(a),
            b: matrix(b),
            alpha: rank as f64,
        }
    };
    modules.into_iter().enumerate().map(&mut module).collect()
}

fn there_and_back(modules: &[Module], naming: &Naming, target: Target) -> Vec<Module> {
    let options = WriteOptions {
        target,
        dtype: None,
        source: SaveDtype::F32,
        metadata: BTreeMap::new(),
    };
    let (bytes, dtype) = formats::write(modules.to_vec(), naming, &options).expect("sound");
    assert_eq!(dtype, SaveDtype::F32);
    let options = ReadOptions {
        namings: namings(),
        family: Some(naming.family),
        without_text_encoders: false,
        expert: None,
        config: None,
        damaged: false,
    };
    formats::read(&bytes, "l", &options).expect("sound").modules
}

#[test]
fn a_file_in_each_naming_is_read_back_bit_for_bit() {
    for (network_name, family) in NETWORKS {
        let naming = naming(family);
        let modules = adapters(network(network_name), 64, 3);
        for target in [Target::Diffusers, Target::Kohya] {
            let back = there_and_back(&modules, naming, target);
            assert!(back == modules, "{network_name} {target:?}");
        }
        let usual = adapters(usual(network(network_name)), 64, 3);
        let back = there_and_back(&usual, naming, Target::AiToolkit);
        assert!(back == usual, "{network_name}");
    }
}

#[test]
fn what_ai_toolkit_would_ignore_is_listed() {
    let naming = naming("flux1");
    let options = WriteOptions {
        target: Target::AiToolkit,
        dtype: None,
        source: SaveDtype::F32,
        metadata: BTreeMap::new(),
    };
    let error = formats::write(adapters(network("flux1-dev"), 64, 3), naming, &options)
        .expect_err("refused");
    expect!["adapters to write: ai-toolkit would ignore 10 of 504 modules: `context_embedder`, `norm_out.linear`, `proj_out`, `time_text_embed.guidance_embedder.linear_1`, `time_text_embed.guidance_embedder.linear_2`, `time_text_embed.text_embedder.linear_1`, `time_text_embed.text_embedder.linear_2`, `time_text_embed.timestep_embedder.linear_1`, `time_text_embed.timestep_embedder.linear_2`, `x_embedder`; choose another format"].assert_eq(&error.to_string());
}

/// The family that a file is taken for which nobody names, and whether that is a guess: of one double and one single block.
fn family_of(network_name: &str, target: Target, only: &str, architecture: &str) -> (String, bool) {
    let of_block = |name: &str| name.contains("transformer_blocks.0.");
    let modules = network(network_name)
        .into_iter()
        .filter(|(name, _)| of_block(name) && name.contains(only))
        .collect();
    let family = NETWORKS.iter().find(|(name, _)| *name == network_name);
    let metadata = [("modelspec.architecture", architecture)];
    let metadata = metadata.iter().filter(|(_, value)| !value.is_empty());
    let options = WriteOptions {
        target,
        dtype: None,
        source: SaveDtype::F32,
        metadata: metadata
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    };
    let naming = naming(family.expect("a network").1);
    let (bytes, _) = formats::write(adapters(modules, 1, 2), naming, &options).expect("sound");
    let options = ReadOptions {
        namings: namings(),
        family: None,
        without_text_encoders: false,
        expert: None,
        config: None,
        damaged: false,
    };
    let read = formats::read(&bytes, "l", &options).expect("a family");
    let guessed = read.notes.iter().any(|n| n.contains("says its family"));
    (read.naming.family.to_owned(), guessed)
}

/// FLUX.1 and FLUX.2 klein share most names in their authors' code, where the widths differ.
#[test]
fn files_of_flux2_are_told_from_those_of_flux1() {
    let sure = |family: &str| (family.to_owned(), false);
    for target in [Target::Kohya, Target::AiToolkit, Target::Diffusers] {
        assert_eq!(family_of("klein-base-4b", target, "", ""), sure("flux2"));
    }
    assert_eq!(family_of("flux1-dev", Target::Kohya, "", "").0, "flux1");
    assert_eq!(
        family_of("flux1-dev", Target::Kohya, "", "flux-1-dev/lora"),
        sure("flux1")
    );
    // What both have in one size.
    let queries =
        |architecture| family_of("klein-base-4b", Target::Kohya, ".attn.to_", architecture);
    assert_eq!(queries("").0, "flux2", "its single blocks are narrower");
    let double = |architecture| family_of("klein-base-4b", Target::Kohya, ".add_", architecture);
    assert_eq!(double(""), ("flux1".to_owned(), true));
    assert_eq!(double("flux-2-klein-base-4b/lora"), sure("flux2"));
    assert_eq!(double("flux-1-dev/lora"), sure("flux1"));
}
