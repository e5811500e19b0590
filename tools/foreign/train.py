"""Trains a LoRA of FLUX.1's miniature with kohya's own trainer, from the cache that `plumb export cache --for kohya` wrote, on a CPU.

Runs, of the scripts: FluxNetworkTrainer.train (flux_train_network.py, train_network.py) with its data set, its caching strategies, its
FLUX.1 and its networks/lora_flux.py. Not theirs: FLUX.1 has the miniature's sizes instead of those written into flux_models.configs, and
in place of the encoders and the VAE stands what raises when it is called, as nothing is encoded anew.

    PLUMB=target/debug/plumb python tools/foreign/train.py --trainer CLONE --family flux1 --out FOLDER

Needs what kohya.py needs. Prints the loss of each step, which a second training repeats; then of the same steps with every embedding of the
cache made zero, whose losses differ, so the cache is what was trained from.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from common import ASSETS, arguments
from kohya import REVISION, tokenizer_folder
from load import exported, never

STEPS = 4


class Absent(torch.nn.Module):
    """Stands for an encoder or a VAE: it can be moved about, and raises when it computes."""

    dtype, device = torch.float32, torch.device("cpu")
    forward = encode = never


def with_sizes_of(base):
    from library import flux_models

    config = json.loads((base / "transformer/config.json").read_text())
    params = flux_models.configs["dev"].params
    params.vec_in_dim, params.context_in_dim = config["pooled_projection_dim"], config["joint_attention_dim"]
    params.num_heads = config["num_attention_heads"]
    params.hidden_size = config["num_attention_heads"] * config["attention_head_dim"]
    params.axes_dim = config["axes_dims_rope"]


def losses(base, folder, out):
    """The loss of each step."""
    import flux_train_network
    from library import flux_utils, strategy_base

    for kind in ("TokenizeStrategy", "TextEncodingStrategy", "TextEncoderOutputsCachingStrategy", "LatentsCachingStrategy"):
        getattr(strategy_base, kind)._strategy = None
    flux_utils.load_clip_l = flux_utils.load_t5xxl = flux_utils.load_ae = lambda *_, **__: Absent()
    seen = []

    class Trainer(flux_train_network.FluxNetworkTrainer):
        def process_batch(self, *rest, **named):
            loss = super().process_batch(*rest, **named)
            seen.append(float(loss))
            return loss

    given = {
        "pretrained_model_name_or_path": base / "transformer/diffusion_pytorch_model.safetensors", "clip_l": "none", "t5xxl": "none", "ae": "none",
        "train_data_dir": folder.parent, "resolution": "128,128", "caption_extension": ".txt", "output_dir": out, "output_name": "lora",
        "network_module": "networks.lora_flux", "network_dim": 4, "max_train_steps": STEPS, "learning_rate": 1e-3, "seed": 1,
        "mixed_precision": "no", "max_data_loader_n_workers": 0, "optimizer_type": "AdamW", "guidance_scale": 1.0, "timestep_sampling": "sigmoid",
        "model_prediction_type": "raw", "tokenizer_cache_dir": tokenizer_folder(base, out),
    }
    flags = ["cache_latents_to_disk", "cache_latents", "cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk", "network_train_unet_only"]
    line = [f"--{name}" for name in flags] + [f"--{name}={value}" for name, value in given.items()]
    Trainer().train(flux_train_network.setup_parser().parse_args(line))
    return seen


def without_embeddings(folder):
    """Makes every number of the cached embeddings zero."""
    for file in folder.glob("*_flux_te.npz"):
        arrays = dict(np.load(file))
        for name in ("l_pooled", "t5_out"):
            arrays[name] = np.zeros_like(arrays[name])
        np.savez(file, **arrays)


def main():
    args = arguments(__doc__, ["flux1"])
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    folder, _, files = exported(args, "kohya", squares=True)
    # Its data set: folders of the form REPEATS_NAME in one folder.
    data = args.out / "data/1_pictures"
    data.parent.mkdir(exist_ok=True)
    if data.is_symlink():
        data.unlink()
    data.symlink_to(folder)
    sys.path.insert(0, str(args.trainer))
    base = ASSETS / "tiny-flux"
    with_sizes_of(base)
    trained, again = (losses(base, data, args.out / name) for name in ("trained", "again"))
    without_embeddings(folder)
    zeroed = losses(base, data, args.out / "zeroed")
    assert len(trained) == len(zeroed) == STEPS and np.isfinite(trained).all(), (trained, zeroed)
    assert trained == again, (trained, again)
    assert not np.allclose(trained, zeroed, rtol=1e-3), "the embeddings made no difference"
    shown = lambda all_: ", ".join(f"{loss:.4f}" for loss in all_)
    print(f"kohya {REVISION[:7]}, flux1: {len(files)} pictures, losses {shown(trained)}; with embeddings of zeros {shown(zeroed)}")


if __name__ == "__main__":
    main()
