use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};

use super::*;
use crate::monitor::{Recorder, Silent};
use crate::nn::weights::{DigestMemo, Weights};
use crate::recipe::latents::{AutoencoderArchitecture, Rate, Resampling, WanArchitecture, Window};

const SIZE: Size = Size {
    width: 16,
    height: 8,
};

/// The VAE of diffusers' golden numbers.
fn vae(folder: &Path) -> VaePart {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vae_wan.safetensors");
    let bytes = std::fs::read(&path).expect("golden");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("header");
    let config = &header.metadata().as_ref().expect("metadata")["config"];
    let wan = WanArchitecture::parse(config, "vae_wan").expect("config");
    let statistics = wan.encoder.statistics();
    let config = (AutoencoderArchitecture::Wan(wan), statistics);
    let weights = Weights::open(&[path]).expect("opens");
    let mut memo = DigestMemo::open(&folder.join("memo.json"));
    VaePart::new(config, weights, None, &mut memo).expect("a VAE")
}

/// A folder of numbered frames, each of which is another.
fn clip(folder: &Path, frames: u32) -> PathBuf {
    let folder = folder.join("clip");
    std::fs::create_dir(&folder).expect("a folder");
    for n in 0..frames {
        let color = |x: u32, y: u32| Rgb([(n * 20) as u8, (x * 15) as u8, (y * 30) as u8]);
        let frame = RgbImage::from_fn(SIZE.width, SIZE.height, color);
        let file = folder.join(format!("{n}.png"));
        frame.save(file).expect("saved");
    }
    folder
}

fn view(start: u32, frames: u32) -> View {
    View {
        resized: SIZE,
        left: 0,
        top: 0,
        bucket: SIZE,
        flip: false,
        resampling: Resampling::Spec,
        window: Some(Window {
            rate: Rate::new(16, 1).expect("a rate"),
            start,
            frames,
        }),
    }
}

fn viewed(path: &Path, views: Vec<View>) -> Viewed<'_> {
    Viewed {
        picture: path,
        digest: ClipFile::open(path).expect("a clip").digest,
        size: SIZE,
        views: views.into(),
    }
}

const ON: (&Device, &Kernels) = (&Device::Cpu, &Kernels::NONE);

#[test]
fn windows_of_a_clip_are_entries_of_their_own_with_an_axis_for_frames() {
    let folder = tempfile::tempdir().expect("folder");
    let vae = vae(folder.path());
    let path = clip(folder.path(), 10);
    let store = Store::open_or_create(&folder.path().join("store")).expect("a store");
    let of = viewed(&path, vec![view(0, 9), view(1, 9), view(0, 1)]);
    let plan =
        PicturePlan::new(&vae, &store, &[of.clone(), of.clone()], Part::WHOLE).expect("a plan");
    // Three channels of 3, 3 and 1 frames of 1 x 2, in f32; no variance, which Wan's latents are not drawn by.
    let bytes = 3 * (3 + 3 + 1) * 2 * 4 + 3 * about_record_bytes("", 0);
    assert_eq!(plan.missing(), Missing { entries: 3, bytes });
    let stats = plan
        .encode(ON, &mut Pauses::none(&store), &Silent)
        .expect("encodes");
    assert_eq!((stats.views, stats.encoded, stats.failed), (3, 3, 0));
    let reader = store.reader_of(&[vae.fingerprint]).expect("a reader");
    let mut means = Vec::new();
    for (view, shape) in of
        .views
        .iter()
        .zip([[3, 3, 1, 2], [3, 3, 1, 2], [3, 1, 1, 2]])
    {
        let entry = LatentKey::new(vae.fingerprint, of.digest, *view).fingerprint();
        let entry = reader.get(&vae.fingerprint, &entry).expect("readable");
        let entry = entry.expect("there");
        assert!(entry.part("logvar").is_none());
        let mean = tensors::to_tensor(entry.part("mean").expect("a mean")).expect("a tensor");
        assert_eq!(mean.dims(), shape);
        means.push(
            mean.flatten_all()
                .and_then(|m| m.to_vec1::<f32>())
                .expect("numbers"),
        );
    }
    assert_ne!(means[0], means[1], "another window is another clip");
    // The VAE is causal: the first frame of latents is that of the first frame alone.
    let first: Vec<f32> = means[0].chunks(2).step_by(3).flatten().copied().collect();
    assert_eq!(first, means[2]);
    let again = PicturePlan::new(&vae, &store, &[of], Part::WHOLE).expect("a plan");
    assert_eq!(again.missing(), Missing::default());
    assert_eq!(
        again
            .encode(ON, &mut Pauses::none(&store), &Silent)
            .expect("nothing to do")
            .present,
        3
    );
}

#[test]
fn a_clip_that_was_changed_or_ends_too_early_is_told_and_passed_over() {
    let folder = tempfile::tempdir().expect("folder");
    let vae = vae(folder.path());
    let path = clip(folder.path(), 6);
    let store = Store::open_or_create(&folder.path().join("store")).expect("a store");
    let beyond = viewed(&path, vec![view(2, 5)]);
    let whole = viewed(&path, vec![view(0, 5)]);
    let changed = Viewed {
        digest: Digest::of(b"another file"),
        ..whole.clone()
    };
    let plan =
        PicturePlan::new(&vae, &store, &[beyond, changed, whole], Part::WHOLE).expect("a plan");
    let told = Recorder::default();
    let stats = plan
        .encode(ON, &mut Pauses::none(&store), &told)
        .expect("encodes the rest");
    assert_eq!((stats.encoded, stats.failed), (1, 2));
    let problems = told.problems();
    assert!(problems[0].contains("frames 2 to 7"), "{problems:?}");
    assert!(problems[1].contains("clip"), "{problems:?}");
}

/// What makes the denoiser's latents of the VAE's is in no weight of Wan's, and so a part of the spec.
#[test]
fn other_statistics_are_another_spec() {
    let folder = tempfile::tempdir().expect("folder");
    let vae = vae(folder.path());
    let AutoencoderArchitecture::Wan(mut wan) = vae.architecture.clone() else {
        panic!("another VAE");
    };
    wan.encoder.latents_std[1] += 0.25;
    let mut other = vae.spec.clone();
    other.architecture = AutoencoderArchitecture::Wan(wan).encoder();
    assert_ne!(other.fingerprint(), vae.fingerprint);
    let json = serde_json::to_value(&vae.spec).expect("a spec");
    assert_eq!(
        json["architecture"]["latents_mean"],
        json!([0.25, -0.5, 0.125])
    );
    let back: crate::recipe::latents::LatentSpec = serde_json::from_value(json).expect("back");
    assert_eq!(back, vae.spec);
}
