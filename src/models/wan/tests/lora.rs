//! LoRA files under the names of the programs that train or load Wan.

use std::collections::{BTreeMap, BTreeSet};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::lora::SaveDtype;
use crate::lora::file::Matrix;
use crate::lora::formats::{
    Format, Module, Naming, ReadOptions, Target, WriteOptions, read, write,
};
use crate::models::wan::lora_names::naming;

const MODULES: [(&str, &str); 6] = [
    ("blocks.3.attn1.to_q", "blocks.3.self_attn.q"),
    ("blocks.3.attn1.to_out.0", "blocks.3.self_attn.o"),
    ("blocks.3.attn2.to_k", "blocks.3.cross_attn.k"),
    ("blocks.3.attn2.to_v", "blocks.3.cross_attn.v"),
    ("blocks.3.ffn.net.0.proj", "blocks.3.ffn.0"),
    ("blocks.3.ffn.net.2", "blocks.3.ffn.2"),
];

fn modules() -> Vec<Module> {
    let matrix = |shape: [usize; 2], first: usize| Matrix {
        shape: shape.to_vec(),
        values: (0..shape[0] * shape[1])
            .map(|i| (first + i) as f32 / 16.0)
            .collect(),
    };
    let module = |(i, (name, _)): (usize, &(&str, &str))| Module {
        name: (*name).to_owned(),
        a: matrix([2, 3], i),
        b: matrix([4, 2], i + 5),
        alpha: 2.0,
    };
    let mut all: Vec<_> = MODULES.iter().enumerate().map(module).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn read_back(bytes: &[u8]) -> (Format, Vec<Module>) {
    let namings = [naming(), crate::models::flux1::lora_names::naming()];
    let options = ReadOptions {
        namings: &namings,
        family: None,
        without_text_encoders: false,
        expert: None,
        config: None,
        damaged: false,
    };
    let imported = read(bytes, "l", &options).unwrap();
    assert_eq!(imported.naming.family, "wan");
    let mut modules = imported.modules;
    modules.sort_by(|a, b| a.name.cmp(&b.name));
    (imported.format, modules)
}

fn check(target: Target, name: &dyn Fn(&str, &str) -> String) {
    let options = WriteOptions {
        target,
        dtype: None,
        source: SaveDtype::F32,
        metadata: BTreeMap::new(),
    };
    let (bytes, _) = write(modules(), &naming(), &options).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let found: BTreeSet<String> = file.names().into_iter().map(str::to_owned).collect();
    for (ours, native) in MODULES {
        let expected = name(ours, native);
        assert!(
            found.contains(&expected),
            "{expected} is not among {found:?}"
        );
    }
    let (_, back) = read_back(&bytes);
    for (back, module) in back.iter().zip(modules()) {
        assert_eq!(back.name, module.name);
        assert_eq!(
            (&back.a.values, &back.b.values),
            (&module.a.values, &module.b.values)
        );
        assert_eq!(back.scale(), module.scale());
    }
    assert_eq!(back.len(), MODULES.len());
}

#[test]
fn each_program_gets_its_names() {
    check(Target::Diffusers, &|ours, _| {
        format!("transformer.{ours}.lora_A.weight")
    });
    // musubi-tuner's, by `networks/lora_wan.py`.
    check(Target::Kohya, &|_, native| {
        format!("lora_unet_{}.lora_down.weight", native.replace('.', "_"))
    });
    // `convert_to_original` of ai-toolkit's `toolkit/models/wan21/wan_lora_convert.py`.
    check(Target::AiToolkit, &|_, native| {
        format!("diffusion_model.{native}.lora_A.weight")
    });
}

/// As diffusion-pipe writes them (`save_adapter` of `models/wan/wan.py`), which ComfyUI reads.
#[test]
fn a_file_of_diffusion_pipe_is_read() {
    let bytes: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let tensors = MODULES.iter().flat_map(|(_, native)| {
        [("lora_A", vec![2, 3]), ("lora_B", vec![3, 2])]
            .map(|(part, shape)| (format!("diffusion_model.{native}.{part}.weight"), shape))
    });
    let views =
        tensors.map(|(name, shape)| (name, TensorView::new(Dtype::F32, shape, &bytes).unwrap()));
    let file = safetensors::serialize(views, None).unwrap();
    let (_, modules) = read_back(&file);
    let found: BTreeSet<_> = modules.iter().map(|m| m.name.as_str()).collect();
    let expected: BTreeSet<_> = MODULES.iter().map(|(ours, _)| *ours).collect();
    assert_eq!(found, expected);
}

#[test]
fn every_linear_has_its_two_names() {
    let golden = super::golden("two");
    let naming: Naming = naming();
    for linear in golden.model().linears() {
        let named = naming.ours(&linear.name);
        assert!(named.is_some_and(|n| n.native != n.ours), "{}", linear.name);
    }
}
