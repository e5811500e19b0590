"""Reads the trainers' caches as check.py compares them: (context, pooled) of a caption, and the latents of a picture."""

import gzip
import io
import json
import sqlite3
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file


def joined(family, sequences, pooled):
    """As each family's denoiser gets it: SD3's CLIPs side by side, filled up to T5's width, above T5; SDXL's CLIPs side by side."""
    if family == "sd3":
        clips = torch.cat(sequences[:2], -1)
        t5 = sequences[2]
        context = torch.cat([torch.nn.functional.pad(clips, (0, t5.shape[-1] - clips.shape[-1])), t5.to(clips.dtype)], 0)
        return context, torch.cat(pooled, -1)
    if family == "sdxl":
        return torch.cat(sequences, -1), pooled[-1]
    return sequences[-1], pooled[0]


def load_pt(path):
    data = Path(path).read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def stored(folder):
    """The entries of a cache of diffusion-pipe, in their order."""
    con = sqlite3.connect(folder / "metadata.db")
    entries = []
    for shard, index in con.execute("SELECT shard, shard_index FROM items").fetchall():
        offset, size = con.execute(f"SELECT offset, size FROM shard_{shard}").fetchall()[index]
        data = (folder / f"shard_{shard}.bin").read_bytes()[offset : offset + size]
        entries.append(torch.load(io.BytesIO(data), weights_only=True))
    return entries


def texts_of(folder, case, file, caption):
    stem, family, trainer = Path(file).stem, case["family"], case["trainer"]
    if trainer == "kohya-ss/sd-scripts":
        suffix = {"sd3": "_sd3_te", "flux1": "_flux_te", "sdxl": "_te_outputs"}[family]
        npz = {k: torch.from_numpy(np.array(v)) for k, v in np.load(folder / f"{stem}{suffix}.npz").items()}
        if family == "sd3":
            return joined("sd3", [npz["lg_out"], npz["lg_out"][:, :0], npz["t5_out"]], [npz["lg_pooled"]])
        if family == "flux1":
            return npz["t5_out"], npz["l_pooled"]
        return torch.cat([npz["hidden_state1"], npz["hidden_state2"]], -1), npz["pool2"]
    if trainer == "kohya-ss/musubi-tuner":
        made = load_file(folder / f"{stem}_fk_te.safetensors")
        return tuple(next(v for k, v in made.items() if k.startswith(name)) for name in ("t5_vec_", "clip_l_pooler_"))
    if trainer == "ostris/ai-toolkit":
        made = [load_file(p) for p in (folder / "_t_e_cache").glob(f"{stem}_*.safetensors")]
        return (made[0]["text_embed"][0], made[0]["pooled_embed"][0]) if made else None
    if trainer == "bghira/SimpleTuner":
        import hashlib

        made = list((folder / case["texts"]["folder"]).glob(hashlib.md5(caption.encode()).hexdigest() + "-*.pt"))
        if not made:
            return None
        made = load_pt(made[0])
        return made["prompt_embeds"][0], made["pooled_prompt_embeds"]
    if trainer == "Nerogar/OneTrainer":
        made = onetrainer(folder, "text", file)
        parts = lambda part: [made[name] for i in (1, 2, 3) if (name := f"text_encoder_{i}_{part}") in made]
        sequences, pooled = parts("hidden_state"), parts("pooled_state")
        return joined(family, sequences, pooled)
    folder, i = folder / case["texts"]["folder"], list(case["captions"]).index(file)
    parts = [stored(folder / f"text_embeddings_{n + 1}")[i] for n in range({"sd3": 3, "flux1": 2}[family])]
    if family == "sd3":
        return joined(
            "sd3", [parts[0]["prompt_embed"], parts[1]["prompt_2_embed"], parts[2]["t5_prompt_embed"]],
            [parts[0]["pooled_prompt_embed"], parts[1]["pooled_prompt_2_embed"]],
        )
    return parts[1]["t5_embed"], parts[0]["clip_embed"]


def onetrainer(folder, group, file):
    """Rows are found by their place: that of the picture's file name in the concept."""
    aggregate = next((folder / "workspace-cache/image").rglob("aggregate.pt"))
    paths = [Path(row["image_path"]).name for row in torch.load(aggregate, weights_only=True)]
    return torch.load(next((folder / f"workspace-cache/{group}").rglob(f"{paths.index(file)}.pt")), weights_only=True)


def latents_of(folder, case, file):
    stem, trainer = Path(file).stem, case["trainer"]
    if trainer == "kohya-ss/sd-scripts":
        suffix = {"sd3": "sd3", "flux1": "flux", "sdxl": "sdxl"}[case["family"]]
        npz = np.load(next(folder.glob(f"{stem}_*x*_{suffix}.npz")))
        return torch.from_numpy(next(npz[k] for k in npz.files if k.startswith("latents")))
    if trainer == "kohya-ss/musubi-tuner":
        made = load_file(next(folder.glob(f"{stem}_*x*_fk.safetensors")))
        return next(v for k, v in made.items() if k.startswith("latents_1x"))
    if trainer == "ostris/ai-toolkit":
        return load_file(next((folder / "_latent_cache").glob(f"{stem}_*.safetensors")))["latent"].float()
    if trainer == "bghira/SimpleTuner":
        import hashlib

        path = folder / case["latents"]["folder"] / (hashlib.sha256(stem.encode()).hexdigest() + ".pt")
        return load_pt(path) if path.exists() else None
    if trainer == "Nerogar/OneTrainer":
        return onetrainer(folder, "image", file)["latent_image"].float()
    i = list(case["captions"]).index(file)
    return stored(folder / case["latents"]["folder"])[i]["latents"].float()
