use expect_test::{Expect, expect};
use safetensors::tensor::{Dtype, TensorView};

use super::naming::FusedPart;
use super::*;
use crate::lora::SaveDtype;

const THIRDS: &[usize] = &[1, 1, 1];
const WITH_MLP: &[usize] = &[1, 4];

fn naming() -> Naming {
    Naming {
        family: "f",
        component: "transformer",
        kohya: Spelling::Native,
        network_module: "networks.lora_f",
        implementation: "https://example.org/f",
        base_version: Some("f1"),
        metadata_marks: &["eff"],
        widths: &[("out", 7)],
        only_where_stated: false,
        ai_toolkit: AiToolkitNaming::Diffusers,
        ai_toolkit_modules: &["blocks."],
        rows: vec![
            Row::new("blocks.{}.q", "n.{}.qkv").part(0, THIRDS),
            Row::new("blocks.{}.k", "n.{}.qkv").part(1, THIRDS),
            Row::new("blocks.{}.v", "n.{}.qkv").part(2, THIRDS),
            Row::new("blocks.{}.o", "n.{}.lin").part(0, WITH_MLP),
            Row::new("blocks.{}.mlp", "n.{}.lin").part(1, WITH_MLP),
            Row::new("norm.linear", "final.1").swapped(),
            Row::new("out", "final.2"),
        ],
    }
}

/// Numbers that are the same for the same name, none of them zero.
fn matrix(shape: &[usize], name: &str) -> Matrix {
    let seed: u32 = name.bytes().map(u32::from).sum();
    let value = |i: u32| ((seed * 7 + i * 13) % 31) as f32 / 8.0 + 0.125;
    Matrix {
        shape: shape.to_vec(),
        values: (0..shape.iter().product::<usize>() as u32)
            .map(value)
            .collect(),
    }
}

fn module(name: &str, outputs: usize, rank: usize, inputs: usize, alpha: f64) -> Module {
    Module {
        name: name.to_owned(),
        a: matrix(&[rank, inputs], name),
        b: matrix(&[outputs, rank], &format!("{name}B")),
        alpha,
    }
}

/// B A alpha / rank, row major.
fn update(module: &Module) -> Vec<f64> {
    let (rank, width) = (module.rank(), module.a.row_len());
    let rows = module.b.values.chunks_exact(rank);
    rows.flat_map(|row| {
        (0..width).map(move |column| {
            let dot = |r: usize| f64::from(row[r]) * f64::from(module.a.values[r * width + column]);
            (0..rank).map(dot).sum::<f64>() * module.scale()
        })
    })
    .collect()
}

fn options(target: Target, dtype: Option<SaveDtype>) -> WriteOptions {
    WriteOptions {
        target,
        dtype,
        source: SaveDtype::F32,
        metadata: BTreeMap::new(),
    }
}

fn read_back(bytes: &[u8]) -> Vec<Module> {
    let namings = [naming()];
    let options = ReadOptions {
        namings: &namings,
        family: None,
        without_text_encoders: false,
        expert: None,
        config: None,
        damaged: false,
    };
    read(bytes, "l", &options).unwrap().modules
}

fn through_kohya(modules: &[Module]) -> Vec<Module> {
    let (bytes, _) = write(modules.to_vec(), &naming(), &options(Target::Kohya, None)).unwrap();
    read_back(&bytes)
}

#[test]
fn modules_become_adapters_of_linears_and_convolutions() {
    let mut modules = vec![module("z", 4, 2, 3, 1.0), module("a", 4, 2, 27, 2.0)];
    modules[1].a.shape = vec![2, 3, 3, 3];
    modules[1].b.shape = vec![4, 2, 1, 1];
    let set = adapters(modules.clone()).unwrap();
    let tensors: Vec<_> = set.tensors().collect();
    for (module, place) in [(&modules[1], 0), (&modules[0], 2)] {
        for (matrix, (name, shape, range)) in [&module.a, &module.b].iter().zip(&tensors[place..]) {
            assert_eq!(
                (shape, &set.values()[range.clone()]),
                (&matrix.shape, &matrix.values[..]),
                "{name}"
            );
        }
        assert_eq!(set.get(&module.name).unwrap().scale(), module.scale());
    }
    assert!(adapters(vec![modules[0].clone(), modules[0].clone()]).is_err());
}

#[test]
fn fused_adapters_keep_the_update_of_every_part() {
    // Ranks and scales differ; `k` has no adapter.
    let parts = [
        module("blocks.0.q", 5, 2, 5, 2.0),
        module("blocks.0.v", 5, 3, 5, 6.0),
    ];
    let fused = fuse::fuse(
        "n.0.qkv".to_owned(),
        vec![
            (
                FusedPart {
                    index: 0,
                    units: THIRDS,
                },
                parts[0].clone(),
            ),
            (
                FusedPart {
                    index: 2,
                    units: THIRDS,
                },
                parts[1].clone(),
            ),
        ],
    )
    .unwrap();
    assert_eq!(
        (fused.a.shape.clone(), fused.b.shape.clone(), fused.alpha),
        (vec![5, 5], vec![15, 5], 5.0)
    );
    let whole = update(&fused);
    assert_eq!(whole[..25], update(&parts[0])[..]);
    assert_eq!(whole[25..50], [0.0; 25]);
    assert_eq!(whole[50..], update(&parts[1])[..]);
}

#[test]
fn alpha_grows_with_the_rank_and_numbers_stay_as_they_are() {
    let modules = [
        module("blocks.0.k", 4, 2, 4, 1.0),
        module("blocks.0.q", 4, 2, 4, 1.0),
        module("blocks.0.v", 4, 2, 4, 1.0),
    ];
    let (bytes, _) = write(modules.to_vec(), &naming(), &options(Target::Kohya, None)).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let alpha = stored.tensor("lora_unet_n_0_qkv.alpha").unwrap();
    assert_eq!(
        (alpha.shape(), alpha.data()),
        (&[][..], &3f32.to_le_bytes()[..])
    );
    assert_eq!(read_back(&bytes), modules);
}

#[test]
fn parts_come_back_as_they_were() {
    for names in [
        &["q", "k", "v"][..],
        &["q", "v"],
        &["k"],
        &["o", "mlp"],
        &["mlp"],
    ] {
        let mut modules: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(i, part)| {
                let outputs = if *part == "mlp" { 24 } else { 6 };
                module(
                    &format!("blocks.3.{part}"),
                    outputs,
                    1 + i,
                    6,
                    1.0 + i as f64,
                )
            })
            .collect();
        modules.sort_by(|l, r| l.name.cmp(&r.name));
        assert_eq!(through_kohya(&modules), modules, "{names:?}");
    }
}

#[test]
fn a_fused_adapter_with_one_a_is_split_and_fused_again_bit_for_bit() {
    let whole = module("n.0.qkv", 12, 3, 4, 1.5);
    let names = ["q", "k", "v"].map(|part| format!("blocks.0.{part}"));
    let parts = fuse::split(&whole, &names, THIRDS).unwrap();
    assert!(
        parts
            .iter()
            .all(|part| part.a == whole.a && part.rank() == 3)
    );
    let joined: Vec<f64> = parts.iter().flat_map(update).collect();
    assert_eq!(joined, update(&whole));
    let parts = parts.into_iter().enumerate();
    let again = parts.map(|(index, module)| {
        (
            FusedPart {
                index,
                units: THIRDS,
            },
            module,
        )
    });
    assert_eq!(
        fuse::fuse(whole.name.clone(), again.collect()).unwrap(),
        whole
    );
}

#[test]
fn a_new_adapter_whose_b_is_zero_keeps_its_a_in_every_part() {
    let mut whole = module("n.0.qkv", 6, 3, 2, 3.0);
    whole.b.values.fill(0.0);
    let names = ["q", "k", "v"].map(|part| format!("blocks.0.{part}"));
    let parts = fuse::split(&whole, &names, THIRDS).unwrap();
    assert_eq!(parts.len(), 3);
    assert!(parts.iter().all(|part| part.a == whole.a));
}

#[test]
fn halves_are_swapped_where_there_are_two_of_them() {
    let modules = [module("norm.linear", 4, 1, 2, 1.0)];
    let (bytes, _) = write(modules.to_vec(), &naming(), &options(Target::Kohya, None)).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let up = stored.tensor("lora_unet_final_1.lora_up.weight").unwrap();
    let b = &modules[0].b.values;
    let swapped: Vec<u8> = [b[2], b[3], b[0], b[1]]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    assert_eq!(up.data(), swapped);
    assert_eq!(read_back(&bytes), modules);
    let longer = [module("norm.linear", 6, 1, 2, 1.0)];
    assert_eq!(through_kohya(&longer), longer);
}

#[test]
fn the_sources_dtype_is_kept_where_it_holds_the_result() {
    let dtype = |alpha, source| {
        let modules = vec![module("out", 3, 3, 2, alpha)];
        let options = WriteOptions {
            source,
            ..options(Target::Diffusers, None)
        };
        write(modules, &naming(), &options).unwrap().1
    };
    assert_eq!(dtype(6.0, SaveDtype::Bf16), SaveDtype::Bf16);
    assert_eq!(dtype(0.75, SaveDtype::F16), SaveDtype::F16);
    assert_eq!(
        dtype(1.0, SaveDtype::F16),
        SaveDtype::F32,
        "a third is no power of two"
    );
    let options = options(Target::Kohya, Some(SaveDtype::F16));
    let (_, asked) = write(vec![module("out", 3, 3, 2, 1.0)], &naming(), &options).unwrap();
    assert_eq!(asked, SaveDtype::F16);
}

/// A file of f32 tensors made by hand.
fn file(metadata: &[(&str, &str)], tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let data: Vec<_> = tensors
        .iter()
        .map(|(_, shape)| 2f32.to_le_bytes().repeat(shape.iter().product()))
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
        (
            *name,
            TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap(),
        )
    });
    let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
    let metadata = metadata.iter().map(owned).collect();
    safetensors::serialize(views, Some(metadata)).unwrap()
}

fn pair(path: &str) -> [(String, Vec<usize>); 2] {
    [
        (format!("{path}.lora_down.weight"), vec![1, 2]),
        (format!("{path}.lora_up.weight"), vec![2, 1]),
    ]
}

fn check(metadata: &[(&str, &str)], tensors: &[(String, Vec<usize>)], expected: Expect) {
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(n, s)| (n.as_str(), s.as_slice()))
        .collect();
    check_with(&file(metadata, &tensors), None, false, expected);
}

fn check_with(bytes: &[u8], family: Option<&str>, without: bool, expected: Expect) {
    let mut other = naming();
    other.family = "g";
    other.metadata_marks = &["gee"];
    other.widths = &[("out", 9)];
    other.rows.truncate(6);
    let namings = [naming(), other];
    let options = ReadOptions {
        namings: &namings,
        family,
        without_text_encoders: without,
        expert: None,
        config: None,
        damaged: false,
    };
    let got = match read(bytes, "l.safetensors", &options) {
        Ok(file) => {
            let line = |m: &Module| format!(" {} r{} alpha {}", m.name, m.rank(), m.alpha);
            let modules: String = file.modules.iter().map(line).collect();
            format!(
                "{} {}{modules}, {} left out",
                file.format.name(),
                file.naming.family,
                file.left_out
            )
        }
        Err(error) => error.to_string(),
    };
    expected.assert_eq(&got);
}

#[test]
fn each_naming_is_told_by_its_names() {
    let kohya = pair("lora_unet_final_2");
    check(&[], &kohya, expect!["kohya f out r1 alpha 1, 0 left out"]);
    check(
        &[("software", "{\"name\":\"ai-toolkit\"}")],
        &kohya,
        expect!["ai-toolkit f out r1 alpha 1, 0 left out"],
    );
    check(
        &[],
        &pair("diffusion_model.final.2"),
        expect!["comfyui f out r1 alpha 1, 0 left out"],
    );
    check(
        &[],
        &pair("lora_transformer_out"),
        expect!["onetrainer f out r1 alpha 1, 0 left out"],
    );
    check(
        &[],
        &pair("base_model.model.out"),
        expect!["peft f out r1 alpha 1, 0 left out"],
    );
    check(
        &[],
        &pair("transformer.out"),
        expect!["diffusers f out r1 alpha 1, 0 left out"],
    );
    check(
        &[],
        &pair("out"),
        expect!["bare module names f out r1 alpha 1, 0 left out"],
    );
    check(
        &[],
        &pair("lora_unet_out"),
        expect!["kohya f out r1 alpha 1, 0 left out"],
    );
    let json = ("lora_adapter_metadata", r#"{"transformer.lora_alpha": 4}"#);
    check(
        &[json],
        &pair("transformer.out"),
        expect!["diffusers f out r1 alpha 4, 0 left out"],
    );
}

#[test]
fn the_family_is_told_by_modules_metadata_or_the_person() {
    let both = pair("transformer.blocks.0.q");
    check(
        &[],
        &both,
        expect![
            "l.safetensors: its modules are there in several families, `f`, `g`, and nothing in it says which is meant; name one with --family, or for `plumb audit --lora` an Experiment"
        ],
    );
    check(
        &[("modelspec.architecture", "gee-1/lora")],
        &both,
        expect!["diffusers g blocks.0.q r1 alpha 1, 0 left out"],
    );
    let tensors: Vec<_> = both
        .iter()
        .map(|(n, s)| (n.as_str(), s.as_slice()))
        .collect();
    check_with(
        &file(&[], &tensors),
        Some("f"),
        false,
        expect!["diffusers f blocks.0.q r1 alpha 1, 0 left out"],
    );
    check_with(
        &file(&[], &tensors),
        Some("x"),
        false,
        expect!["l.safetensors: family: expected one of `f`, `g`, found `x`"],
    );
    check_with(
        &file(
            &[],
            &[
                ("transformer.out.lora_A.weight", &[1, 2]),
                ("transformer.out.lora_B.weight", &[2, 1]),
            ],
        ),
        Some("g"),
        false,
        expect![
            "l.safetensors: tensor `transformer.out.lora_A.weight`: no such module in family g, which fits best; 2 of 2 tensors are not known; near it: `blocks.N.o`, `blocks.N.k`, `blocks.N.q`"
        ],
    );
}

#[test]
fn a_family_that_is_guessed_is_said_to_be() {
    let both = pair("transformer.blocks.0.q");
    let both: Vec<_> = both
        .iter()
        .map(|(n, s)| (n.as_str(), s.as_slice()))
        .collect();
    let mut kin = naming();
    (kin.family, kin.only_where_stated) = ("g", true);
    let namings = [naming(), kin];
    let notes = |family| {
        let options = ReadOptions {
            namings: &namings,
            family,
            without_text_encoders: false,
            expert: None,
            config: None,
            damaged: false,
        };
        let read = read(&file(&[], &both), "l.safetensors", &options).expect("a LoRA");
        let about = |note: &&String| note.contains("says its family");
        (read.naming.family, read.notes.iter().find(about).cloned())
    };
    assert_eq!(
        notes(None),
        (
            "f",
            Some("nothing in it says its family: it is taken for one of f, and could be of another of `f`, `g`; --family says otherwise".to_owned())
        )
    );
    assert_eq!(notes(Some("g")), ("g", None));
    assert_eq!(notes(Some("f")), ("f", None));
}

#[test]
fn adapters_of_text_encoders_are_left_out_only_when_asked() {
    let tensors: [(&str, &[usize]); 4] = [
        ("lora_unet_final_2.lora_down.weight", &[1, 2]),
        ("lora_unet_final_2.lora_up.weight", &[2, 1]),
        ("lora_te1_x.lora_down.weight", &[1, 2]),
        ("lora_te1_x.lora_up.weight", &[2, 1]),
    ];
    let bytes = file(&[], &tensors);
    check_with(
        &bytes,
        None,
        false,
        expect![
            "l.safetensors: 2 tensors of text encoders, the first is `lora_te1_x.lora_down.weight`: plumb reads adapters of the denoiser only; `plumb import lora --without-text-encoders` makes a file without them"
        ],
    );
    check_with(
        &bytes,
        None,
        true,
        expect!["kohya f out r1 alpha 1, 2 left out"],
    );
    check_with(
        &file(&[], &tensors[2..]),
        None,
        true,
        expect!["l.safetensors: expected adapters of a denoiser, found none"],
    );
}

#[test]
fn other_files_are_refused_by_what_they_are() {
    check_with(
        b"",
        None,
        false,
        expect!["l.safetensors: not a safetensors file: it is empty"],
    );
    let one = |name: &str, shape: &[usize], expected| {
        check_with(&file(&[], &[(name, shape)]), None, false, expected);
    };
    one(
        "lora_unet_final_2.hada_w1_a",
        &[1, 2],
        expect![
            "l.safetensors: tensor `lora_unet_final_2.hada_w1_a`: a tensor of LoHa; expected plain LoRA, with names like `transformer.<module>.lora_A.weight` or `lora_unet_<module>.lora_down.weight`"
        ],
    );
    one(
        "lora_unet_final_2.dora_scale",
        &[1, 2],
        expect![
            "l.safetensors: tensor `lora_unet_final_2.dora_scale`: a tensor of DoRA; expected plain LoRA, with names like `transformer.<module>.lora_A.weight` or `lora_unet_<module>.lora_down.weight`"
        ],
    );
    one(
        "double_blocks.0.processor.qkv_lora1.down.weight",
        &[1, 2],
        expect![
            "l.safetensors: tensor `double_blocks.0.processor.qkv_lora1.down.weight`: a tensor of XLabs' scripts; expected plain LoRA, with names like `transformer.<module>.lora_A.weight` or `lora_unet_<module>.lora_down.weight`"
        ],
    );
    one(
        "blocks.0.q.weight",
        &[1, 2],
        expect![
            "l.safetensors: tensor `blocks.0.q.weight`: a tensor of an unknown kind; expected plain LoRA, with names like `transformer.<module>.lora_A.weight` or `lora_unet_<module>.lora_down.weight`"
        ],
    );
    one(
        "lora_unet_final_2.lora_down.weight",
        &[1, 2],
        expect!["l.safetensors: adapter on `final_2`: expected a lora_B tensor, found none"],
    );
    let twice = [&pair("transformer.out")[..], &pair("out")[..]].concat();
    check(&[], &twice, expect!["adapter on `out` is there twice"]);
    check(
        &[],
        &pair("lora_unet_final_3"),
        expect![
            "l.safetensors: tensor `lora_unet_final_3.lora_down.weight`: no such module in family f, which fits best; 2 of 2 tensors are not known; near it: `final_1`, `final_2`, `n_N_lin`"
        ],
    );
    let with = |a: &[usize], b: &[usize], expected| {
        let tensors = [
            ("lora_unet_n_0_qkv.lora_down.weight", a),
            ("lora_unet_n_0_qkv.lora_up.weight", b),
        ];
        check_with(&file(&[], &tensors), Some("f"), false, expected);
    };
    with(
        &[1, 2],
        &[7, 1],
        expect![
            "l.safetensors: tensor `lora_unet_n_0_qkv.lora_up.weight`: expected a multiple of 3 outputs, for blocks.0.q, blocks.0.k, blocks.0.v, found 7"
        ],
    );
    with(
        &[1, 2],
        &[6, 2],
        expect![
            "l.safetensors: tensor `lora_unet_n_0_qkv.lora_up.weight`: expected rank 1 as lora_A has, found 2 columns"
        ],
    );
    with(
        &[1, 2, 3],
        &[6, 1, 1],
        expect![
            "l.safetensors: tensor `lora_unet_n_0_qkv.lora_down.weight`: expected two dimensions, or four of a square window, none 0, found [1, 2, 3]"
        ],
    );
    with(
        &[1, 2, 3, 3],
        &[6, 1, 2, 1],
        expect![
            "l.safetensors: tensor `lora_unet_n_0_qkv.lora_up.weight`: expected two dimensions, or four of a square window, none 0, found [6, 1, 2, 1]"
        ],
    );
    with(
        &[1, 2, 3, 3],
        &[6, 1, 1, 1],
        expect![
            "kohya f blocks.0.k r1 alpha 1 blocks.0.q r1 alpha 1 blocks.0.v r1 alpha 1, 0 left out"
        ],
    );
}

#[test]
fn parts_that_do_not_fit_each_other_are_not_written() {
    let refused = |modules: Vec<Module>| {
        write(modules, &naming(), &options(Target::Kohya, None))
            .unwrap_err()
            .to_string()
    };
    expect!["adapters to write: `blocks.0.q` has 5 outputs and [4] inputs, expected 4 and [4] to be a part of `n.0.qkv`"].assert_eq(&refused(vec![module("blocks.0.q", 5, 1, 4, 1.0)]));
    expect!["adapters to write: `blocks.0.mlp` has 12 outputs and [4] inputs, expected 16 and [4] to be a part of `n.0.lin`"].assert_eq(&refused(vec![
        module("blocks.0.o", 4, 1, 4, 1.0),
        module("blocks.0.mlp", 12, 1, 4, 1.0),
    ]));
    expect!["adapters to write: kohya's scripts and ComfyUI would ignore 1 of 1 modules: `blocks.0.z`; choose another format"].assert_eq(&refused(vec![module("blocks.0.z", 4, 1, 4, 1.0)]));
}

#[test]
fn the_metadata_is_true_of_the_tensors_written() {
    let metadata = BTreeMap::from(
        [
            ("ss_network_module", "networks.lora_x"),
            ("ss_network_dim", "64"),
            ("modelspec.implementation", "x"),
            ("ss_base_model_version", "f1-special"),
            ("lora_adapter_metadata", "{}"),
            ("plumb", "{}"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned())),
    );
    let metadata_of = |target| {
        let options = WriteOptions {
            metadata: metadata.clone(),
            ..options(target, None)
        };
        let (bytes, _) = write(
            vec![module("blocks.0.o", 3, 2, 3, 1.0)],
            &naming(),
            &options,
        )
        .unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let all: BTreeMap<_, _> = header.metadata().clone().unwrap().into_iter().collect();
        let hashed = |key: &str| {
            let ends = ["sha256", ".digests"];
            key.starts_with("sshs_") || ends.iter().any(|end| key.ends_with(end))
        };
        let lines = all
            .iter()
            .filter(|(k, _)| !hashed(k))
            .map(|(k, v)| format!("{k} = {v}"));
        lines.collect::<Vec<_>>().join("\n")
    };
    expect![[r#"
        format = pt
        modelspec.implementation = https://example.org/f
        plumb = {}
        plumb.version = 2
        ss_base_model_version = f1-special
        ss_network_alpha = 1.0
        ss_network_args = {}
        ss_network_dim = 2
        ss_network_module = networks.lora_f"#]]
    .assert_eq(&metadata_of(Target::Kohya));
    expect![[r#"
        format = pt
        lora_adapter_metadata = {"transformer.alpha_pattern":{},"transformer.lora_alpha":2,"transformer.r":2,"transformer.rank_pattern":{},"transformer.target_modules":["blocks.0.o"]}
        modelspec.implementation = diffusers
        plumb = {}
        plumb.version = 2
        ss_base_model_version = f1-special
        ss_network_alpha = 2.0
        ss_network_dim = 2"#]].assert_eq(&metadata_of(Target::Diffusers));
    expect![[r#"
        format = pt
        modelspec.implementation = diffusers
        plumb = {}
        plumb.version = 2
        ss_base_model_version = f1-special
        ss_network_alpha = 2.0
        ss_network_dim = 2"#]]
    .assert_eq(&metadata_of(Target::AiToolkit));
}

#[test]
fn every_flipped_bit_of_a_file_of_ours_is_noticed() {
    let metadata = [
        ("plumb", r#"{"step":1}"#),
        ("modelspec.title", "stamps"),
        ("ss_steps", "100"),
    ];
    for target in [Target::Kohya, Target::Diffusers] {
        let modules = vec![
            module("out", 2, 2, 3, 1.0),
            module("blocks.0.q", 3, 1, 3, 1.0),
        ];
        let options = WriteOptions {
            metadata: metadata
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ..options(target, None)
        };
        let (sound, _) = write(modules, &naming(), &options).unwrap();
        assert!(notes_of(&sound).unwrap().is_empty());
        for place in 0..sound.len() {
            let mut bytes = sound.clone();
            bytes[place] ^= 1 << (place % 8);
            // Told or refused: it is never read as if nothing were.
            if let Ok(notes) = notes_of(&bytes) {
                assert_eq!(notes.len(), 1, "{target:?} byte {place}");
                let end = place.min(sound.len() - 20) + 20;
                let around = String::from_utf8_lossy(&sound[place.saturating_sub(20)..end]);
                let data = 8 + u64::from_le_bytes(*sound.first_chunk().unwrap()) as usize;
                assert!(place < data, "numbers are refused, not noted: {around}");
            }
        }
    }
}

/// What is noted of a file that is read.
fn notes_of(bytes: &[u8]) -> Result<Vec<String>, Error> {
    let namings = [naming()];
    let options = ReadOptions {
        namings: &namings,
        family: None,
        without_text_encoders: false,
        expert: None,
        config: None,
        damaged: false,
    };
    let read = read(bytes, "l", &options)?;
    Ok([read.problems, read.notes].concat())
}

#[test]
fn hashes_of_other_programs_are_told_and_of_earlier_plumbs_believed() {
    let tensors = [
        ("lora_unet_final_2.lora_down.weight", &[1usize, 2][..]),
        ("lora_unet_final_2.lora_up.weight", &[2, 1]),
    ];
    let plain = file(&[], &tensors);
    let data = 8 + u64::from_le_bytes(*plain.first_chunk().unwrap()) as usize;
    let right = crate::lora::metadata::sha256(std::iter::once(&plain[data..]));
    let wrong = "0".repeat(64);
    let spec = format!("0x{}", right.to_uppercase());
    for (key, value) in [
        ("sshs_model_hash", &right),
        ("modelspec.hash_sha256", &spec),
    ] {
        let sound = file(&[(key, value)], &tensors);
        assert!(notes_of(&sound).unwrap().is_empty(), "{key}");
        let stale = notes_of(&file(&[(key, &wrong)], &tensors)).unwrap();
        assert!(stale[0].contains(key) && stale.len() == 1, "{stale:?}");
        // Not a hash at all, as some tools write.
        assert!(
            notes_of(&file(&[(key, "none")], &tensors))
                .unwrap()
                .is_empty()
        );
        for ours in ["plumb", "plumb.converted"] {
            let sound = file(&[(key, value), (ours, "{}")], &tensors);
            assert!(notes_of(&sound).unwrap().is_empty(), "{key}");
            let damaged = file(&[(key, &wrong), (ours, "{}")], &tensors);
            let error = notes_of(&damaged).unwrap_err().to_string();
            assert!(
                error.contains("it is damaged, or another program changed it"),
                "{error}"
            );
        }
    }
}

#[test]
fn an_alpha_is_read_in_any_type() {
    let alpha = |dtype, bytes: &[u8], shape: &[usize]| {
        let one = 1f32.to_le_bytes().repeat(2);
        let tensors = [
            (
                "transformer.out.lora_A.weight",
                TensorView::new(Dtype::F32, vec![1, 2], &one),
            ),
            (
                "transformer.out.lora_B.weight",
                TensorView::new(Dtype::F32, vec![2, 1], &one),
            ),
            (
                "transformer.out.alpha",
                TensorView::new(dtype, shape.to_vec(), bytes),
            ),
        ];
        let tensors = tensors.map(|(name, view)| (name, view.unwrap()));
        let bytes = safetensors::serialize(tensors, None).unwrap();
        let namings = [naming()];
        let options = ReadOptions {
            namings: &namings,
            family: None,
            without_text_encoders: false,
            expert: None,
            config: None,
            damaged: false,
        };
        read(&bytes, "l", &options).map(|read| read.modules[0].alpha)
    };
    assert_eq!(alpha(Dtype::I64, &8i64.to_le_bytes(), &[]).unwrap(), 8.0);
    assert_eq!(alpha(Dtype::I32, &8i32.to_le_bytes(), &[1]).unwrap(), 8.0);
    assert_eq!(alpha(Dtype::I16, &8i16.to_le_bytes(), &[]).unwrap(), 8.0);
    assert_eq!(alpha(Dtype::U8, &[8], &[1, 1]).unwrap(), 8.0);
    assert_eq!(alpha(Dtype::F64, &0.1f64.to_le_bytes(), &[]).unwrap(), 0.1);
    let half = half::f16::from_f32(8.0).to_le_bytes();
    assert_eq!(alpha(Dtype::F16, &half, &[]).unwrap(), 8.0);
    let half = half::bf16::from_f32(8.0).to_le_bytes();
    assert_eq!(alpha(Dtype::BF16, &half, &[]).unwrap(), 8.0);
    for (bytes, shape) in [
        (f64::NAN.to_le_bytes().to_vec(), vec![]),
        (vec![0; 16], vec![2]),
    ] {
        assert!(alpha(Dtype::F64, &bytes, &shape).is_err());
    }
    assert!(alpha(Dtype::BOOL, &[1], &[]).is_err());
}

#[test]
fn a_config_beside_a_file_counts_where_the_file_is_pefts() {
    let text = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 4}"#;
    let alpha = |prefix: &str, own: &[(&str, &str)], config: Option<(&str, bool)>| {
        let names = ["lora_A", "lora_B"].map(|part| format!("{prefix}out.{part}.weight"));
        let tensors = [(names[0].as_str(), &[1usize, 2][..]), (&names[1], &[2, 1])];
        let namings = [naming()];
        let options = ReadOptions {
            namings: &namings,
            family: None,
            without_text_encoders: false,
            expert: None,
            config: config.map(|(text, named_by_peft)| ConfigBeside {
                text,
                named_by_peft,
            }),
            damaged: false,
        };
        match read(&file(own, &tensors), "l", &options) {
            Ok(read) => format!("{} {}", read.modules[0].alpha, read.notes.len()),
            Err(error) => error.to_string(),
        }
    };
    let peft = "base_model.model.";
    assert_eq!(alpha(peft, &[], Some((text, false))), "4 0");
    assert_eq!(alpha("", &[], Some((text, false))), "4 0");
    assert_eq!(alpha("transformer.", &[], Some((text, true))), "4 0");
    // The names are diffusers', which reads no such file: told, not guessed.
    assert_eq!(alpha("transformer.", &[], Some((text, false))), "1 1");
    assert_eq!(alpha(peft, &[], None), "1 1");
    assert_eq!(alpha("transformer.", &[], None), "1 0");
    let inside = [(
        "lora_adapter_metadata",
        r#"{"transformer.r": 1, "transformer.lora_alpha": 2}"#,
    )];
    assert_eq!(alpha("transformer.", &inside, Some((text, false))), "2 0");
    expect!["l: tensor `base_model.model.out.lora_A.weight`: the alpha of `out` is 2 by metadata `lora_adapter_metadata` and 4 by adapter_config.json; only one of them can be meant, remove the other"]
        .assert_eq(&alpha(peft, &inside, Some((text, false))));
    expect!["l: adapter_config.json, `use_dora`: found true: that is DoRA; plumb reads plain LoRA"]
        .assert_eq(&alpha(peft, &[], Some((r#"{"use_dora": true}"#, false))));
    expect!["l: tensor `base_model.model.out.lora_A.weight`: expected rank 16, as adapter_config.json says, found 1"]
        .assert_eq(&alpha(peft, &[], Some((r#"{"r": 16}"#, false))));
}

#[test]
fn several_adapters_in_one_file_are_refused() {
    let tensors = [
        ("base_model.model.out.lora_A.a.weight", &[1usize, 2][..]),
        ("base_model.model.out.lora_B.a.weight", &[2, 1]),
        ("base_model.model.blocks.0.q.lora_A.b.weight", &[1, 2]),
        ("base_model.model.blocks.0.q.lora_B.b.weight", &[2, 1]),
    ];
    let error = notes_of(&file(&[], &tensors)).unwrap_err().to_string();
    expect!["l: 2 adapters in one file (`a`, `b`), expected one; save each for itself"]
        .assert_eq(&error);
}

proptest::proptest! {
    #[test]
    fn reading_hostile_bytes_never_panics(cut in 0usize..2000, at in 0usize..2000, byte in 0u8..=255) {
        let modules = vec![module("out", 2, 2, 3, 1.0), module("blocks.0.q", 3, 1, 3, 1.0)];
        let (mut bytes, _) = write(modules, &naming(), &options(Target::Kohya, None)).unwrap();
        let place = at % bytes.len();
        bytes[place] = byte;
        bytes.truncate(bytes.len().saturating_sub(cut % 40));
        let namings = [naming()];
        let options = ReadOptions { namings: &namings, family: None, without_text_encoders: true, expert: None, config: None, damaged: false };
        let _ = read(&bytes, "l", &options);
    }
}
