"""Makes the tiny world: a complete miniature Stable Diffusion 3 folder and a small captioned style set.

    python -m pip install -r tools/requirements.txt
    python tools/tiny_world.py --out assets

Everything is drawn, written and trained here, from seeds: no outside pictures, texts or weights. The
models, tokenizers and the scheduler are the classes of transformers and diffusers, and saved by them.
On two idle cores the whole should take about an hour (text encoders 8 minutes, autoencoder 10, denoiser
35 to 40, by the measured cost of a step); each finished stage is kept in --work, and a stopped run goes
on from its last checkpoint.

The weights under assets/ are from a shorter run: the denoiser had 2600 steps (the last 500 with every row
of padding) where this script gives it 6500, and of the autoencoder's 3800 steps the first 2750 saw finer
stripes than `scenes.draw_any` draws now. They obey colour, place, size and background; of shapes the
judge in `check.py` recognises 60 %.

Seeds fix the pictures, captions and draws. The weights agree only as far as floating point does
between machines: a second run elsewhere gives another model of the same quality.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

import torch

from tinyworld import autoencoder, check, denoiser, style, text, words

README = """\
Made by `tools/tiny_world.py`; nothing in here was taken from anywhere else. All pictures and captions are
synthetic, and all weights were trained on them alone; they fall under this repository's licence.

- `tiny-sd3/`: a complete Stable Diffusion 3 model in miniature, in the layout of diffusers (f16 weights).
  It draws simple scenes: one or two of circle, square, triangle, star, heart, cross; in red, orange,
  yellow, green, blue, purple, white, black; small, plain or big; at nine places; on a grey, cream, pink,
  pale blue or brown background. 128 x 128 pixels. Trained with all captions at 77 CLIP and 77 T5 tokens.
- `tiny-style/`: twenty captioned pictures (`train/`) and four more (`validation/`) in a look that the
  model has never seen: striped and outlined things on blueprint paper.
"""


def stage(work: Path, marker: str, what: str, make) -> None:
    if (work / marker).exists():
        print(f"{what}: done before, in {work / marker}", flush=True)
        return
    print(f"{what}: begins", flush=True)
    make()


def assemble(work: Path, out: Path, seed: int) -> None:
    """The parts through diffusers' own pipeline class into one folder; tokenizer files for older programs beside."""
    from diffusers import FlowMatchEulerDiscreteScheduler, AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

    folder = out / "tiny-sd3"
    shutil.rmtree(folder, ignore_errors=True)
    half = torch.float16
    StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel.from_pretrained(work / "transformer", torch_dtype=half),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(work / "scheduler"),
        vae=AutoencoderKL.from_pretrained(work / "vae", torch_dtype=half),
        text_encoder=CLIPTextModelWithProjection.from_pretrained(work / "text_encoder", dtype=half),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(work / "text_encoder_2", dtype=half),
        tokenizer_2=CLIPTokenizer.from_pretrained(work / "tokenizer_2"),
        text_encoder_3=T5EncoderModel.from_pretrained(work / "text_encoder_3", dtype=half),
        tokenizer_3=T5Tokenizer.from_pretrained(work / "tokenizer_3"),
    ).save_pretrained(folder, safe_serialization=True)
    for config in folder.glob("*/config.json"):
        said = json.loads(config.read_text())
        said.pop("_name_or_path", None)  # where it lay while it was made
        config.write_text(json.dumps(said, indent=2) + "\n")
    for part in ("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer_2/vocab.json", "tokenizer_2/merges.txt", "tokenizer_3/spiece.model"):
        shutil.copy(work / part, folder / part)
    shutil.rmtree(out / "tiny-style", ignore_errors=True)
    style.write_set(out / "tiny-style", seed)
    (out / "README.md").write_text(README)


def report_sizes(out: Path) -> None:
    total = 0
    for folder in sorted(p for p in [*out.glob("tiny-sd3/*"), out / "tiny-style"] if p.is_dir()):
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        total += size
        print(f"{size:>9} bytes  {folder}")
    print(f"{total:>9} bytes  in all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("assets"), help="where tiny-sd3/ and tiny-style/ go")
    parser.add_argument("--work", type=Path, default=Path("target/tiny-world"), help="checkpoints and contact sheets")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="also measure obedience, recipe sensitivity, and train a trial LoRA")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    random.seed(args.seed)
    work, seed = args.work, args.seed
    work.mkdir(parents=True, exist_ok=True)
    stage(work, "tokenizer_3/tokenizer.json", "tokenizers", lambda: words.make(work, seed))
    stage(work, "text_encoder_3/model.safetensors", "text encoders", lambda: text.train(work, seed))
    stage(work, "vae/diffusion_pytorch_model.safetensors", "autoencoder", lambda: autoencoder.train(work, seed, args.threads))
    stage(work, "scheduler/scheduler_config.json", "denoiser", lambda: denoiser.train(work, seed, args.threads))
    assemble(work, args.out, seed)
    report_sizes(args.out)
    print("next: python tools/goldens/tiny_sd3.py, whose results belong to these weights", flush=True)
    if args.check:
        print(json.dumps({"obeyed": check.obeyed(work, seed)}), flush=True)
        print(json.dumps({"sensitivity": check.sensitivity(work, seed)}), flush=True)
        trial = style.Trial(work, args.out / "tiny-style", seed)
        print(json.dumps({"lora": trial.run(rank=16, steps=250, batch=8, rate=2e-3, sheet=work / "lora.png")}), flush=True)


if __name__ == "__main__":
    main()
