"""Makes the tiny worlds: complete miniatures of Stable Diffusion 3, SDXL and FLUX.1 as diffusers folders, and a small
captioned style set.

    python -m pip install -r tools/requirements.txt
    python tools/tiny_world.py --out assets

Everything is drawn, written and trained here, from seeds: no outside pictures, texts or weights. The
models, tokenizers and schedulers are the classes of transformers and diffusers, and saved by them.
On two idle cores the whole takes about three hours (by the measured cost of a step); each finished stage is kept in
--work, and a stopped run goes on from its last checkpoint.

The weights under assets/ were made in several sittings: of the autoencoder's 3800 steps the first 2750 saw finer
stripes than `scenes.draw_any` draws now, of the tiny SD3's 8000 steps the first 4000 followed a cosine, of the tiny
SDXL's 3000 steps the first 2250 had no noise offset, and of the tiny FLUX.1's 6200 steps the first 250 did not count the
pads, the first 750 had twice the learning rate, and the length was changed on the way (5200 to 6500).

Seeds fix the pictures, captions and draws. The weights agree only as far as floating point does
between machines: a second run elsewhere gives other models of the same quality.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

import torch

from tinyworld import autoencoder, check, denoiser, style, text, words
from tinyworld.flux import Flux
from tinyworld.sd3 import Sd3
from tinyworld.sdxl import Sdxl

KINDS = {kind.name: kind for kind in (Sd3(), Flux(), Sdxl())}

README = """\
Made by `tools/tiny_world.py`; nothing in here was taken from anywhere else. All pictures and captions are
synthetic, and all weights were trained on them alone; they fall under this repository's licence.

- `tiny-sd3/`, `tiny-flux/`, `tiny-sdxl/`: complete models in miniature, in the layout of diffusers (f16 weights).
  They draw simple scenes: one or two of circle, square, triangle, star, heart, cross; in red, orange,
  yellow, green, blue, purple, white, black; small, plain or big; at nine places; on a grey, cream, pink,
  pale blue or brown background. 128 x 128 pixels. Trained with all captions at 77 CLIP tokens, and 77 (SD3) or
  512 (FLUX.1) of T5. The FLUX.1 learned from the SD3, guidance included.
  The SD3 is in the program, for `plumb demo`, and in the package; the other two are in the repository alone, for tests
  and for `plumb demo --model`.
- `tiny-style/`: twenty captioned pictures (`train/`) and four more (`validation/`) in a look that the
  models have never seen: striped and outlined things on blueprint paper.
"""


def stage(work: Path, marker: str, what: str, make) -> None:
    if (work / marker).exists():
        print(f"{what}: done before, in {work / marker}", flush=True)
        return
    print(f"{what}: begins", flush=True)
    make()


def pipeline(kind: denoiser.Kind, work: Path):
    """The parts in diffusers' own pipeline class, and the folder that each tokenizer came from."""
    from diffusers import FluxPipeline, StableDiffusion3Pipeline, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

    half = torch.float16
    projected = lambda name: CLIPTextModelWithProjection.from_pretrained(work / name, dtype=half)
    clip = lambda name: CLIPTokenizer.from_pretrained(work / name)
    t5 = dict(encoder=T5EncoderModel.from_pretrained(work / "text_encoder_3", dtype=half), tokenizer=T5Tokenizer.from_pretrained(work / "tokenizer_3"))
    shared = dict(scheduler=kind.scheduler(), vae=autoencoder.load(work, kind.vae).half())
    network = denoiser.load(kind, work).half()
    if kind.name == "sd3":
        made = StableDiffusion3Pipeline(
            transformer=network,
            text_encoder=projected("text_encoder"),
            tokenizer=clip("tokenizer"),
            text_encoder_2=projected("text_encoder_2"),
            tokenizer_2=clip("tokenizer_2"),
            text_encoder_3=t5["encoder"],
            tokenizer_3=t5["tokenizer"],
            **shared,
        )
        return made, {"tokenizer": "tokenizer", "tokenizer_2": "tokenizer_2", "tokenizer_3": "tokenizer_3"}
    plain = CLIPTextModel.from_pretrained(work / "text_encoder", dtype=half)
    if kind.name == "flux":
        made = FluxPipeline(transformer=network, text_encoder=plain, tokenizer=clip("tokenizer"), text_encoder_2=t5["encoder"], tokenizer_2=t5["tokenizer"], **shared)
        return made, {"tokenizer": "tokenizer", "tokenizer_2": "tokenizer_3"}
    made = StableDiffusionXLPipeline(unet=network, text_encoder=plain, tokenizer=clip("tokenizer"), text_encoder_2=projected("text_encoder_2"), tokenizer_2=clip("tokenizer_2"), **shared)
    return made, {"tokenizer": "tokenizer", "tokenizer_2": "tokenizer_2"}


def assemble(kind: denoiser.Kind, work: Path, out: Path) -> None:
    """One folder as diffusers writes it; tokenizer files for older programs beside."""
    folder = out / f"tiny-{kind.name}"
    shutil.rmtree(folder, ignore_errors=True)
    made, tokenizers = pipeline(kind, work)
    made.save_pretrained(folder, safe_serialization=True)
    for config in folder.glob("*/config.json"):
        said = json.loads(config.read_text())
        said.pop("_name_or_path", None)  # where it lay while it was made
        config.write_text(json.dumps(said, indent=2) + "\n")
    for saved, origin in tokenizers.items():
        for file in ("vocab.json", "merges.txt", "spiece.model"):
            if (work / origin / file).exists():
                shutil.copy(work / origin / file, folder / saved / file)


def report_sizes(out: Path) -> None:
    for model in sorted(p for p in out.glob("tiny-*") if p.is_dir()):
        sizes = {part.name: sum(f.stat().st_size for f in part.rglob("*") if f.is_file()) for part in sorted(model.iterdir()) if part.is_dir()}
        print(f"{sum(sizes.values()):>9} bytes  {model}  {sizes}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("assets"), help="where tiny-sd3/ and the others go")
    parser.add_argument("--work", type=Path, default=Path("target/tiny-world"), help="checkpoints and contact sheets")
    parser.add_argument("--only", choices=KINDS, action="append", help="make this world alone (may be given again)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="also measure obedience, recipe sensitivity, and train a trial LoRA")
    args = parser.parse_args()
    torch.set_num_threads(args.processes)
    random.seed(args.seed)
    work, seed = args.work, args.seed
    work.mkdir(parents=True, exist_ok=True)
    stage(work, "tokenizer_3/tokenizer.json", "tokenizers", lambda: words.make(work, seed))
    stage(work, "text_encoder_3/model.safetensors", "text encoders", lambda: text.train(work, seed))
    stage(work, "vae/diffusion_pytorch_model.safetensors", "autoencoder", lambda: autoencoder.train(work, seed, args.processes))
    kinds = [KINDS[name] for name in args.only or KINDS]
    for kind in kinds:
        weights = "diffusion_pytorch_model.safetensors"
        stage(work, f"{kind.vae}/{weights}", f"{kind.name}: autoencoder", lambda: autoencoder.train(work, seed, args.processes, kind.vae))
        stage(work, f"{kind.name}-denoiser/{weights}", f"{kind.name}: denoiser", lambda: denoiser.train(kind, work, seed, args.processes))
        assemble(kind, work, args.out)
    shutil.rmtree(args.out / "tiny-style", ignore_errors=True)
    style.write_set(args.out / "tiny-style", seed)
    (args.out / "README.md").write_text(README)
    report_sizes(args.out)
    print("next: tools/goldens/tiny_sd3.py and tiny_pipelines.py, whose results belong to these weights", flush=True)
    for kind in kinds if args.check else []:
        print(json.dumps({kind.name: {"obeyed": check.obeyed(kind, work, seed)}}), flush=True)
        trial = style.Trial(kind, work, args.out / "tiny-style", seed)
        print(json.dumps({kind.name: {"lora": trial.run(rank=16, steps=250, batch=8, rate=2e-3)}}), flush=True)
    if args.check and "sd3" in (args.only or KINDS):
        print(json.dumps({"sensitivity": check.sensitivity(work, seed)}), flush=True)


if __name__ == "__main__":
    main()
