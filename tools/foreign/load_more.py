"""Lets musubi-tuner, ai-toolkit and SimpleTuner load a cache of Wan 2.1, FLUX.2 klein, Z-Image or Chroma that `plumb export cache` wrote, with their
own data sets and caches, which must find every entry: an encoder that is called raises. What they load is compared with
`plumb inspect conditioning` and `plumb inspect latents`, bit for bit where nothing is scaled; a clip with what the trainer's own code caches
of it (musubi_more.py).

    PLUMB=target/debug/plumb python tools/foreign/load_more.py musubi --trainer CLONE --family wan --model MODEL --out FOLDER

With the Python of musubi_more.py, aitoolkit_more.py and simpletuner_more.py.
"""

import importlib
import json
import sys
from pathlib import Path

import wan
from common import ASSETS, CAPTIONS, arguments, dataset, without
from load import never, plumb

FLAVORS = {"chroma": "hd", "wan": "t2v-1.3b", "flux2": "klein-base-4b", "zimage": "base"}


def exported(args, name):
    """The folder of pictures with the trainer's cache in it, the Experiment and the pictures' captions. Squares alone, which go through
    everybody's buckets; SimpleTuner takes no caption from an empty line."""
    left_out = ("03", "04") + (("00",) if name == "simpletuner" else ())
    folder = args.out / "pictures"
    files = dataset(folder, {k: v for k, v in CAPTIONS.items() if k not in left_out})
    clips = args.family == "wan" and name == "musubi"
    more = ""
    if clips:
        beside = args.out / "moving"
        wan.clip(beside, ASSETS / "tiny-style/train/01.png")
        more = f'[[dataset]]\npath = "{beside}"\nresolution = {wan.SIDE}\nbucket_step = 16\nbucket = false\nframes = 5\nwindows = "slide:4"\n'
    experiment = args.out / "exp.toml"
    experiment.write_text(
        f'[model]\nfamily = "{args.family}"\nflavor = "{FLAVORS[args.family]}"\npath = "{args.model.resolve()}"\n'
        f'[store]\npath = "{args.out / "store"}"\n'
        f'[[dataset]]\npath = "{folder}"\nresolution = 128\nbucket = false\nallow_empty_captions = true\n{more}'
    )
    out = args.out / "st" if name == "simpletuner" else folder
    plumb("encode", experiment)
    print(plumb("export", "cache", experiment, "--for", name, "--out", out, "--overwrite").strip())
    return folder, experiment, files


def normalized(args, mean):
    """As the denoiser takes latents, in the form in which trainers keep them."""
    import torch
    from safetensors.torch import load_file

    vae = json.loads((args.model / "vae/config.json").read_text())
    if args.family == "wan":
        channels = lambda numbers: torch.tensor(numbers).view(-1, 1, 1, 1)  # noqa: E731
        return (mean - channels(vae["latents_mean"])) / channels(vae["latents_std"])
    if args.family == "flux2":
        state = load_file(args.model / "vae/diffusion_pytorch_model.safetensors")
        c, h, w = mean.shape
        patches = mean.view(c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3).reshape(c * 4, h // 2, w // 2)
        each = lambda name: state[f"bn.{name}"].view(-1, 1, 1).float()  # noqa: E731
        return (patches - each("running_mean")) / torch.sqrt(each("running_var") + vae["batch_norm_eps"])
    return (mean - vae["shift_factor"]) * vae["scaling_factor"]


def musubi(args, folder, files):
    sys.path.insert(0, str(args.trainer / "src"))
    theirs = importlib.import_module("musubi_more")
    without(*theirs.ABSENT)
    import torch
    from multiprocessing import Value

    architecture = theirs.FAMILIES[args.family].architecture
    data = theirs.image_dataset(folder, architecture)
    data.set_seed(0, Value("i", 0))
    data.prepare_for_training()
    for i in range(len(data)):
        batch = data[i]
        bucket, at = data.batch_manager.bucket_batch_indices[i]
        file = f"{data.batch_manager.buckets[bucket][at].item_key}.png"
        latents = batch["latents"][0]
        if args.family == "wan":
            rows = batch["t5"][0]
            # WanModel.forward fills each caption up to `text_len` rows.
            context = torch.cat([rows, rows.new_zeros(512 - rows.size(0), rows.size(1))])
        elif args.family == "flux2":
            context = batch["ctx_vec"][0]
        else:
            context = batch["llm_embed"][0]
            # ZImageNetworkTrainer.scale_shift_latents
            latents = (latents - 0.1159) * 0.3611
        yield file, context, latents
    if args.family == "wan":
        moving(args, folder, theirs)


def moving(args, folder, theirs):
    """The clip's windows as VideoDataset loads them, against what the trainer's own code makes of the clip."""
    from multiprocessing import Value

    import torch
    from musubi_tuner.dataset.image_video_dataset import VideoDataset

    own = args.out / "own"
    own.mkdir()
    wan.clip(own, ASSETS / "tiny-style/train/01.png")
    of = theirs.OfWan(args.model, args.out, torch.float32)
    with theirs.without_autocast():
        for batch in theirs.video_dataset(own, "wan").retrieve_text_encoder_output_cache_batches(1):
            of.texts(batch)
        for _, batch in theirs.video_dataset(own, "wan").retrieve_latent_cache_batches(1):
            of.latents(batch)
    found = []
    for place in (folder / "clips", own):
        data = VideoDataset(
            resolution=(wan.SIDE, wan.SIDE), caption_extension=".txt", batch_size=1, num_repeats=1, enable_bucket=False,
            bucket_no_upscale=False, target_frames=[5], video_jsonl_file=str(own / "clips.jsonl"), cache_directory=str(place),
            architecture="wan",
        )  # fmt: skip
        data.set_seed(0, Value("i", 0))
        data.prepare_for_training()
        items = {Path(i.latent_cache_path).name: n for bucket in data.batch_manager.buckets.values() for n, i in enumerate(bucket)}
        found.append({name: data[n] for name, n in items.items()})
    exported_, made = found
    assert exported_.keys() == made.keys() and len(made) == 2, (exported_.keys(), made.keys())
    for name, batch in exported_.items():
        for key in ("latents",):
            error = float((batch[key][0] - made[name][key][0]).abs().max())
            assert error < 1e-4, f"{name}: {error}"
        error = float((batch["t5"][0] - made[name]["t5"][0]).abs().max())
        assert error < 1e-4, f"{name}: embeddings {error}"
    print(f"{len(made)} windows of a clip as the trainer itself makes them, to 1e-4")


def ai_toolkit(args, folder, files):
    sys.path.insert(0, str(args.trainer))
    theirs = importlib.import_module("aitoolkit_more")
    without(*theirs.ABSENT)
    import torch

    theirs.alone(args.trainer)
    sd = theirs.model_of(args.family, args.model, torch.float32)
    sd.encode_prompt = sd.encode_images = never
    for item in theirs.data_set(folder, sd).file_list:
        item.load_prompt_embedding()
        made = item.prompt_embeds.text_embeds
        context = made[0]
        if args.family == "chroma":
            # True tokens, and the pad that its denoiser adds to the mask (`modify_mask_to_attend_padding`).
            context = context[: int(item.prompt_embeds.attention_mask.sum()) + 1]
        yield Path(item.path).name, context, item.get_latent()


def simpletuner(args, folder, files):
    sys.path.insert(0, str(args.trainer))
    without("kernels", "opentelemetry")
    theirs = importlib.import_module("simpletuner_more")
    import torch

    model, vae = theirs.model_of(args.family, args.model, torch.float32)
    model._encode_prompts = never
    backend, cache = theirs.text_cache(model, args.family, args.out / "st/text")
    latents = theirs.vae_cache(args.out / "st/vae", folder, vae)
    latents.cache_data_backend = backend
    for name, caption in files.items():
        record = [{"prompt": caption, "key": caption, "metadata": {}}]
        made = cache.compute_prompt_embeddings_with_model(record, return_concat=True, load_from_cache=True)
        context = made["prompt_embeds"][0]
        if args.family == "zimage":
            context = model.convert_text_embed_for_pipeline(made)["prompt_embeds"][0]
        if args.family == "chroma":
            context = context[made["attention_masks"][0] > 0]
        yield name, context, latents._read_from_storage(latents.generate_vae_cache_filename(str(folder / name))[0])
    cache.process_write_batches = False


def main():
    name = sys.argv.pop(1)
    args = arguments(__doc__, list(FLAVORS))
    args.out.mkdir(parents=True, exist_ok=True)
    folder, experiment, files = exported(args, name)
    loader = {"ai-toolkit": ai_toolkit, "simpletuner": simpletuner, "musubi": musubi}[name]
    import torch
    from safetensors.torch import load_file

    seen, temp = 0, args.out / "want.safetensors"
    for file, context, latents in loader(args, folder, files):
        plumb("inspect", "conditioning", experiment, "--caption", files[file], "--out", temp)
        want = load_file(temp)["context"][0]
        assert torch.equal(context, want), f"{file}: context"
        plumb("inspect", "latents", experiment, "--picture", folder / file, "--out", temp)
        mean = normalized(args, load_file(temp)["mean"][0])
        assert latents.shape == mean.shape, f"{file}: {latents.shape}, expected {mean.shape}"
        error = float((latents - mean).abs().max())
        assert error < 1e-5, f"{file}: latents {error}"
        seen += 1
    assert seen == len(files), f"{seen} of {len(files)} pictures"
    print(f"{name} {args.family}: {seen} pictures, embeddings equal, latents as the denoiser takes them; nothing encoded anew")


if __name__ == "__main__":
    main()
