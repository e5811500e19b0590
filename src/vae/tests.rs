use std::path::PathBuf;

use candle_core::{DType, Device, IndexOp as _};

use super::*;
use crate::recipe::latents::{AutoencoderArchitecture, LatentStatistics, VaeConfig};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.safetensors"))
}

struct Case {
    weights: Weights,
    config: VaeConfig,
    name: &'static str,
}

impl Case {
    fn open(name: &'static str) -> Self {
        let path = golden(name);
        let bytes = std::fs::read(&path).expect("golden");
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("header");
        let config = &header.metadata().as_ref().expect("metadata")["config"];
        Self {
            weights: Weights::open(&[path]).expect("opens"),
            config: VaeConfig::parse(config, name).expect("config"),
            name,
        }
    }

    fn all() -> [Self; 4] {
        [
            Self::open("vae_flux2"),
            Self::open("vae_sd3"),
            Self::open("vae_sdxl"),
            Self::open("vae_plain"),
        ]
    }

    fn vae(&self) -> AutoencoderKl {
        AutoencoderKl::load(&self.config.architecture, &self.weights).expect("loads")
    }

    fn tensor(&self, name: &str) -> Tensor {
        let name = format!("golden.{name}");
        let shape = self.weights.shape(&name).expect("there");
        self.weights.get(&shape, &name).expect("reads")
    }
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().and_then(|t| t.to_vec1()).expect("values")
}

/// The largest difference over the largest value.
fn relative(found: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(found.dims(), expected.dims());
    let (found, expected) = (values(found), values(expected));
    let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    found
        .iter()
        .zip(&expected)
        .map(|(f, e)| (f - e).abs())
        .fold(0f32, |most, off| {
            if off.is_nan() {
                f32::INFINITY
            } else {
                most.max(off)
            }
        })
        / largest
}

#[track_caller]
fn assert_close(found: &Tensor, expected: &Tensor, what: &str) {
    let error = relative(found, expected);
    assert!(error < 1e-5, "{what}: {error}");
}

#[test]
fn encoding_and_decoding_equal_diffusers() {
    for case in Case::all() {
        let vae = case.vae();
        let moments = vae.encode(&case.tensor("pixels")).expect("encodes");
        assert_close(&moments.mean, &case.tensor("mean"), case.name);
        assert_close(&moments.logvar, &case.tensor("logvar"), case.name);
        let pixels = vae.decode(&case.tensor("latents")).expect("decodes");
        assert_close(&pixels, &case.tensor("decoded"), case.name);
    }
}

#[test]
fn a_row_of_a_batch_equals_the_row_alone_bit_for_bit() {
    for case in Case::all() {
        let vae = case.vae();
        let (pixels, latents) = (case.tensor("pixels"), case.tensor("latents"));
        let all = vae.encode(&pixels).expect("encodes");
        let decoded = vae.decode(&latents).expect("decodes");
        for n in 0..2 {
            let one = vae
                .encode(&pixels.narrow(0, n, 1).expect("row"))
                .expect("encodes");
            assert_eq!(values(&all.mean.i(n).expect("row")), values(&one.mean));
            assert_eq!(values(&all.logvar.i(n).expect("row")), values(&one.logvar));
            let one = vae
                .decode(&latents.narrow(0, n, 1).expect("row"))
                .expect("decodes");
            assert_eq!(values(&decoded.i(n).expect("row")), values(&one));
        }
    }
}

#[test]
fn a_single_files_naming_loads_to_the_identical_output() {
    let case = Case::open("vae_sdxl");
    let file = Weights::open(&[golden("vae_original_names")]).expect("opens");
    let original = names::canonical(&file);
    let mut architecture = names::architecture(&original).expect("derived");
    architecture.encoder.norm_num_groups = case.config.architecture.encoder.norm_num_groups;
    assert_eq!(architecture, case.config.architecture);
    let vae = AutoencoderKl::load(&architecture, &original).expect("loads");
    assert_eq!(file.unused(), Vec::<String>::new());
    let (ours, theirs) = (case.vae(), vae);
    let pixels = case.tensor("pixels");
    let (a, b) = (
        ours.encode(&pixels).expect("a"),
        theirs.encode(&pixels).expect("b"),
    );
    assert_eq!(values(&a.mean), values(&b.mean));
    assert_eq!(values(&a.logvar), values(&b.logvar));
    let latents = case.tensor("latents");
    assert_eq!(
        values(&ours.decode(&latents).expect("a")),
        values(&theirs.decode(&latents).expect("b"))
    );
    let tensors = names::encoder_tensors(&architecture.encoder);
    assert_eq!(
        original.digest(&tensors).expect("digest"),
        names::canonical(&case.weights)
            .digest(&tensors)
            .expect("digest"),
        "the same encoder has one digest under both names"
    );
}

/// A single file of FLUX.2's authors says no more than its tensors' shapes: the groups of norms are theirs.
#[test]
fn flux2s_latents_are_scaled_by_the_running_statistics_of_patches() {
    let case = Case::open("vae_flux2");
    let encoder = &case.config.architecture.encoder;
    let numbers = |weights: &Weights| {
        let tensors = names::norm_tensors(encoder, weights).expect("reads");
        tensors.expect("a norm").map(|t| values(&t))
    };
    let [mean, variance] = numbers(&case.weights);
    let norm = encoder.patch_norm.expect("a norm");
    let statistics = LatentStatistics::of_batch_norm(norm, &mean, &variance).expect("numbers");
    let whole = AutoencoderArchitecture::Pictures(case.config.architecture.clone());
    let geometry = LatentGeometry::new(&whole, &statistics, 2);
    let (plain, scaled) = (case.tensor("mean"), case.tensor("normalized"));
    assert_close(
        &geometry.normalize(&plain).expect("scaled"),
        &scaled,
        "scaled",
    );
    assert_close(
        &geometry.denormalize(&scaled).expect("back"),
        &plain,
        "back",
    );
    let row = geometry.normalize(&plain.i(1).expect("row")).expect("one");
    assert_close(&row, &scaled.i(1).expect("row"), "one sample");
    // As trainers store them: the reference's order of a patch's numbers.
    let joined = scaled.i(0).and_then(|t| t.reshape((4, 3, 2, 2, 2)));
    let joined = joined.and_then(|t| t.permute((0, 2, 4, 1, 3))?.reshape((16, 3, 2)));
    let apart = geometry.apart(&joined.expect("joined")).expect("apart");
    assert_eq!(
        values(&apart.expect("patches")),
        values(&scaled.i(0).expect("row"))
    );
    assert!(
        geometry
            .apart(&scaled.i(0).expect("row"))
            .expect("as it is")
            .is_none()
    );
    let odd = Tensor::zeros((4, 3, 4), DType::F32, &Device::Cpu).expect("zeros");
    let refused = geometry.normalize(&odd).expect_err("odd").to_string();
    assert!(
        refused.starts_with("latents: expected a height and a width that are multiples of 2"),
        "{refused}"
    );

    let file = Weights::open(&[golden("vae_flux2_original_names")]).expect("opens");
    let original = names::canonical(&file);
    let mut architecture = names::architecture(&original).expect("derived");
    architecture.encoder.norm_num_groups = encoder.norm_num_groups;
    assert_eq!(architecture, case.config.architecture);
    let tensors = names::encoder_tensors(encoder);
    let digest = |weights: &Weights| weights.digest(&tensors).expect("digest");
    assert_eq!(digest(&original), digest(&case.weights));
    assert_eq!(numbers(&original), [mean, variance]);
    Decoder::load(&architecture, &original).expect("loads");
}

#[test]
fn the_statistics_of_flux2_are_part_of_the_weights_and_refused_where_they_are_absent() {
    let case = Case::open("vae_flux2");
    let encoder = &case.config.architecture.encoder;
    let mut tensors: std::collections::HashMap<String, Tensor> = case
        .weights
        .names()
        .into_iter()
        .filter(|name| !name.ends_with("num_batches_tracked"))
        .map(|name| {
            let shape = case.weights.shape(&name).expect("shape");
            let tensor = case.weights.get(&shape, &name).expect("reads");
            (name, tensor)
        })
        .collect();
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("vae.safetensors");
    let mut saved = |change: &dyn Fn(&mut std::collections::HashMap<String, Tensor>)| {
        change(&mut tensors);
        candle_core::safetensors::save(&tensors, &path).expect("saves");
        Weights::open(std::slice::from_ref(&path)).expect("opens")
    };
    let list = names::encoder_tensors(encoder);
    let other = saved(&|tensors| {
        let mean = tensors["bn.running_mean"].affine(1.0, 0.5).expect("moved");
        tensors.insert("bn.running_mean".to_owned(), mean);
    });
    assert_ne!(
        other.digest(&list).expect("digest"),
        case.weights.digest(&list).expect("digest")
    );
    let without = saved(&|tensors| drop(tensors.remove("bn.running_var")));
    let refused = without.digest(&list).expect_err("absent").to_string();
    assert!(
        refused.contains("tensor `bn.running_var` is missing from"),
        "{refused}"
    );
    let refused = names::norm_tensors(encoder, &without).expect_err("absent");
    assert!(
        refused.to_string().contains("`bn.running_var`"),
        "{refused}"
    );
}

#[test]
fn the_lists_of_tensors_are_what_loading_reads() {
    for case in Case::all() {
        let weights = names::canonical(&case.weights);
        let a = &case.config.architecture;
        assert_eq!(
            names::architecture(&weights)
                .expect("derived")
                .encoder
                .layers_per_block,
            a.encoder.layers_per_block
        );
        let mut listed: Vec<_> = names::encoder_tensors(&a.encoder)
            .into_iter()
            .chain(names::decoder_tensors(a))
            .collect();
        listed.sort();
        let stored: Vec<_> = weights
            .names()
            .into_iter()
            .filter(|n| !n.starts_with("golden.") && !n.ends_with("num_batches_tracked"))
            .collect();
        assert_eq!(
            listed
                .iter()
                .map(|(name, _)| name.clone())
                .collect::<Vec<_>>(),
            stored
        );
        weights.require(&listed).expect("shapes");
    }
}

#[test]
fn names_of_older_diffusers_are_read() {
    let case = Case::open("vae_sd3");
    let old: std::collections::HashMap<String, Tensor> = case
        .weights
        .names()
        .into_iter()
        .map(|name| {
            let tensor = case
                .weights
                .get(&case.weights.shape(&name).expect("shape"), &name);
            let old = name
                .replace(".to_q.", ".query.")
                .replace(".to_k.", ".key.")
                .replace(".to_v.", ".value.")
                .replace(".to_out.0.", ".proj_attn.");
            (old, tensor.expect("reads"))
        })
        .collect();
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("old.safetensors");
    candle_core::safetensors::save(&old, &path).expect("saves");
    let weights = names::canonical(&Weights::open(&[path]).expect("opens"));
    let vae = AutoencoderKl::load(&case.config.architecture, &weights).expect("loads");
    let latents = case.tensor("latents");
    assert_eq!(
        values(&vae.decode(&latents).expect("old")),
        values(&case.vae().decode(&latents).expect("new"))
    );
}

#[test]
fn shapes_and_weights_that_do_not_fit_get_one_line() {
    let case = Case::open("vae_sd3");
    let vae = case.vae();
    for bad in [(1, 4, 24, 40), (1, 3, 4, 40), (1, 3, 24, 7), (0, 3, 24, 40)] {
        let pixels = Tensor::zeros(bad, DType::F32, &Device::Cpu).expect("zeros");
        assert!(vae.encode(&pixels).is_err(), "{bad:?}");
    }
    let latents = Tensor::zeros((1, 4, 3, 5), DType::F32, &Device::Cpu).expect("zeros");
    assert!(vae.decode(&latents).is_err());
    let mut wider = case.config.architecture.clone();
    wider.encoder.block_out_channels[3] = 32;
    let error = AutoencoderKl::load(&wider, &case.weights)
        .err()
        .expect("refused")
        .to_string();
    assert!(
        error.contains("down_blocks.3") && error.contains("expected [32, 16, 3, 3]"),
        "{error}"
    );
    let other = Weights::open(&[golden("vae_plain")]).expect("opens");
    let error = AutoencoderKl::load(&case.config.architecture, &other)
        .err()
        .expect("refused");
    assert!(!error.to_string().contains('\n'));
}
