"""What does a wrong recipe cost a LoRA? Trains LoRAs on miniatures whose recipe is known, with the same pictures, seed and
steps, under the right recipe and under wrong ones, and has `plumb compare` measure each against the one that was trained
right: under the right recipe, as a program samples it, and under the wrong one, as its trainer validates it.

    python tools/probe_worlds.py --out target/worlds --only t5-256
    python tools/misalignment.py --plumb target/release/plumb --worlds target/worlds --work target/misalignment

Writes docs/misalignment.json (every number) and docs/misalignment.png and misalignment-flux.png (pictures), and prints the table that docs/misalignment.md has. Each
finished LoRA and measurement is kept in --work, and a stopped run goes on. The table that is there has the first seed and, of four recipes,
the second: an hour on a busy machine of two cores.
"""

import argparse
import json
import math
import random
import subprocess
from pathlib import Path

from PIL import Image, ImageDraw

from probe_worlds import WORLDS
from tinyworld import scenes, style

REPOSITORY = Path(__file__).parent.parent
TRAIN, HELD_OUT = 20, 32
STEPS, BATCH, RATE, RANK = 120, 4, 2e-3, 16
QUANTILE = 2.040  # of Student's t, for 32 pictures
SWAPPED = "swapped captions"
# Those that probe_worlds.py makes bases under, and two that FLUX.1's trainers differ in: its T5 has 512 tokens.
RECIPES = WORLDS | {"t5-77": {"t5.tokens.min_tokens": 77, "t5.tokens.max_tokens": 77}}
# Which wrong recipes are tried on which base; its own recipe is the right one.
BASES = {
    "tiny-sd3": ["t5-154", "t5-256", "t5-zeroed-pads", "clip-g-end-pad", "clip-last-layer", SWAPPED],
    "t5-256": ["reference", SWAPPED],
    "tiny-flux": ["t5-77", "t5-256", "t5-masked", "t5-zeroed-pads", SWAPPED],
}
SD3 = 'family = "sd3"\nflavor = "3.5-large"'
MODELS = {"tiny-flux": 'family = "flux1"\nflavor = "dev"'}
FILE, SHEETS = "misalignment.json", {"tiny-sd3": "misalignment.png", "tiny-flux": "misalignment-flux.png"}
AT_HOME = ["t5-77", "t5-256", "t5-zeroed-pads", "clip-last-layer"]
PROMPTS = [
    "blueprint style, a big red heart in the center",
    "a small yellow star in the top left corner, blueprint style",
    "a green circle on the left and an orange square on the right, blueprint style",
    "blueprint style, a purple triangle above a white cross",
]


def write_pictures(folder: Path, seed: int) -> None:
    """The style that the bases have not seen: TRAIN pictures, the same with each caption at the next picture, and HELD_OUT
    that are never trained from."""
    rng = random.Random(f"{seed} misalignment")
    drawn = []
    while len(drawn) < TRAIN + HELD_OUT:
        scene = scenes.random_scene(rng, two=0.7)
        drawn.append((scenes.draw_style(rng, scene), style.style_caption(rng, scene)))
    train, held_out = drawn[:TRAIN], drawn[TRAIN:]
    turned = [(picture, train[(k + 1) % TRAIN][1]) for k, (picture, _) in enumerate(train)]
    for name, pairs in (("train", train), ("swapped", turned), ("held-out", held_out)):
        (folder / name).mkdir(parents=True)
        for k, (picture, caption) in enumerate(pairs):
            picture.save(folder / name / f"{k:02}.png", optimize=True)
            (folder / name / f"{k:02}.txt").write_text(caption + "\n")


class Lab:
    def __init__(self, args):
        self.plumb, self.work, self.worlds = args.plumb.absolute(), args.work.absolute(), args.worlds.absolute()
        self.work.mkdir(parents=True, exist_ok=True)
        if not (self.work / "pictures").exists():
            write_pictures(self.work / "pictures.part", 23)
            (self.work / "pictures.part").rename(self.work / "pictures")

    def base(self, name: str) -> Path:
        return REPOSITORY / "assets" / name if name.startswith("tiny-") else self.worlds / name

    def experiment(self, base: str, recipe: str, pictures: str, name: str, seed: int = 0) -> Path:
        """An Experiment file, written."""
        file = self.work / base / f"{name}.toml"
        file.parent.mkdir(exist_ok=True)
        deviate = "".join(f"{field} = {json.dumps(value)}\n" for field, value in RECIPES[recipe].items())
        file.write_text(
            f'[model]\n{MODELS.get(base, SD3)}\npath = "{self.base(base)}"\n'
            f'[recipe.deviate]\n{deviate}[store]\npath = "../store"\n'
            f'[[dataset]]\npath = "../pictures/{pictures}"\nresolution = 128\nbucket_step = 16\n'
            f'[adapter]\nrank = {RANK}\ntargets = ["attention+mlp"]\n'
            f'[train]\noutput = "{name}"\nname = "lora"\nsteps = {STEPS}\nlearning_rate = {RATE}\nbatch_size = {BATCH}\n'
            f'warmup_steps = 10\nlr_schedule = "cosine"\ncaption_dropout = 0.1\nseed = {seed}\ncheckpoint_every = 0\n'
            f"[sample]\nprompts = {json.dumps(PROMPTS)}\nsteps = 20\nguidance = 3.5\nseed = 3\n"
        )
        return file

    def run(self, *arguments) -> str:
        done = subprocess.run([self.plumb, "--quiet", *map(str, arguments)], capture_output=True, text=True)
        if done.returncode not in (0, 3):
            raise SystemExit(f"plumb {' '.join(map(str, arguments))}: status {done.returncode}\n{done.stderr}")
        return done.stdout

    def lora(self, base: str, wrong: str, seed: int) -> Path:
        """A LoRA trained on a base under a recipe, or with captions at other pictures under the right one."""
        recipe, pictures = (right(base), "swapped") if wrong == SWAPPED else (wrong, "train")
        name = f"{wrong.replace(' ', '-')}-{seed}"
        made = self.work / base / name / "lora.safetensors"
        if not made.exists():
            experiment = self.experiment(base, recipe, pictures, name, seed)
            self.run("encode", experiment)
            self.run("train", experiment)
        return made

    def kept(self, base: str, wrong: str, seed: int, how: str) -> Path:
        return self.work / base / f"{wrong.replace(' ', '-')}-{seed}-{how}.json"

    def done(self, base: str, wrong: str) -> int:
        """How many seeds are measured, from the first on."""
        return next(seed for seed in range(1000) if not self.kept(base, wrong, seed, "right").exists())

    def measured(self, base: str, wrong: str, seed: int, how: str) -> dict:
        """B, trained wrong, against A, trained right. `how` captions are encoded: both by the `right` recipe, with the base model
        alone beside once, or each LoRA's by its `own`."""
        kept = self.kept(base, wrong, seed, how)
        if not kept.exists():
            a, b = self.lora(base, right(base), seed), self.lora(base, wrong, seed)
            data = self.experiment(base, right(base), "held-out", "measured")
            recipe = "own" if how == "own" else "experiment"
            alone = ["--base"] if wrong == SWAPPED and seed == 0 else []
            kept.write_text(self.run("--json", "compare", a, b, "--data", data, "--recipe", recipe, *alone))
        return json.loads(kept.read_text())


def right(base: str) -> str:
    return "reference" if base.startswith("tiny-") else base


def interval(rows: list[list[float]]):
    """The mean of differences, one row a seed, one column a picture, with a 95 % interval over pictures: each counts once, by its
    mean over seeds. What another seed does is told apart from it."""
    of_picture = [sum(column) / len(rows) for column in zip(*rows)]
    mean, count = sum(of_picture) / len(of_picture), len(of_picture)
    half = QUANTILE * math.sqrt(sum((d - mean) ** 2 for d in of_picture) / (count - 1) / count)
    return mean, mean - half, mean + half


def differences(reports: list[dict]):
    return [[picture["b"] - picture["a"] for picture in report["by_picture"]] for report in reports]


def row(lab: Lab, base: str, wrong: str) -> dict:
    seeds = lab.done(base, wrong)
    sampled_right = [lab.measured(base, wrong, seed, "right") for seed in range(seeds)]
    mean = lambda side: sum(report[side]["loss"] for report in sampled_right) / seeds
    found = {"base": base, "trained": wrong, "loss": mean("b"), "loss_right": mean("a"), "cost": interval(differences(sampled_right))}
    found["cost_by_seed"] = [report["difference"]["mean"] for report in sampled_right]
    if wrong in AT_HOME:
        # The wrong LoRA under the recipe that it knows, against the right one under the right recipe: is as much learned all the same?
        found["at_home"] = interval(differences([lab.measured(base, wrong, 0, "own")]))
    return found


def without(lab: Lab, base: str) -> float:
    """The loss of the base model alone under its own recipe."""
    return lab.measured(base, SWAPPED, 0, "right")["base"]


def another_seed(lab: Lab, base: str) -> dict:
    """How much two LoRAs differ that were trained alike, but for the seed: the size of a difference that means nothing."""
    first = BASES[base][0]
    seeds = lab.done(base, first)
    losses = [lab.measured(base, first, seed, "right")["a"]["loss"] for seed in range(seeds)]
    spread = [abs(a - b) for k, a in enumerate(losses) for b in losses[:k]]
    found = {"base": base, "without": without(lab, base), "trained_right": sum(losses) / seeds}
    return found | {"differences": spread}


def sheet(lab: Lab, base: str, file: Path) -> None:
    """Rows: prompts; columns: the base alone, the LoRA trained right, each trained wrong; all sampled under the right recipe."""
    data = lab.experiment(base, right(base), "held-out", "sampled")
    heads = ["no LoRA", "trained right", *BASES[base]]
    side, label = scenes.SIDE, 30
    page = Image.new("RGB", (len(heads) * (side + 4) + 4, label + len(PROMPTS) * (side + 4)), (255, 255, 255))
    pen = ImageDraw.Draw(page)
    for column, head in enumerate(heads):
        folder = lab.work / base / "sampled" / head.replace(" ", "-")
        if not folder.exists():
            lora = [] if column == 0 else ["--lora", lab.lora(base, right(base) if column == 1 else head, 0)]
            lab.run("sample", data, *lora, "--out", folder)
        pen.text((6 + column * (side + 4), 8), head, fill=(20, 20, 20))
        for k, picture in enumerate(sorted(folder.glob("*.png"))):
            page.paste(Image.open(picture), (4 + column * (side + 4), label + k * (side + 4)))
    page.quantize(192).save(file, optimize=True)


def table(rows: list[dict], spreads: list[dict]) -> str:
    number = lambda values: f"{values[0]:+.4f} [{values[1]:+.4f}, {values[2]:+.4f}]"
    lines = ["| base | LoRA trained under | its loss is higher by | seed by seed | under its own recipe |", "|---|---|---|---|---|"]
    for r in rows:
        home = number(r["at_home"]) if "at_home" in r else ""
        seeds = ", ".join(f"{cost:+.4f}" for cost in r["cost_by_seed"])
        lines.append(f"| {r['base']} | {r['trained']} | {number(r['cost'])} | {seeds} | {home} |")
    lines.append("")
    for spread in spreads:
        seeds = ", ".join(f"{difference:.4f}" for difference in spread["differences"])
        lines.append(
            f"{spread['base']}: loss without a LoRA {spread['without']:.4f}, with those trained right {spread['trained_right']:.4f}"
            + (f"; two that differ in their seed alone differ by {seeds}." if seeds else ".")
        )
    return "\n".join(lines) + "\n"


def kept_rows(file: Path, bases: list[str], of: str) -> list[dict]:
    """What the file has of other bases than these."""
    return [row for row in json.loads(file.read_text())[of] if row["base"] not in bases] if file.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plumb", type=Path, required=True)
    parser.add_argument("--worlds", type=Path, default=Path("target/worlds"))
    parser.add_argument("--work", type=Path, default=Path("target/misalignment"))
    parser.add_argument("--docs", type=Path, default=REPOSITORY / "docs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--base", choices=BASES, action="append", help="this base alone (may be given again)")
    args = parser.parse_args()
    lab, bases = Lab(args), args.base or list(BASES)
    args.docs.mkdir(exist_ok=True)
    # Seed after seed: whenever it is stopped, there is a table of those that are done.
    for seed in range(args.seeds):
        for base in bases:
            for wrong in BASES[base]:
                lab.measured(base, wrong, seed, "right")
        rows = [row(lab, base, wrong) for base in bases for wrong in BASES[base]]
        spreads = [another_seed(lab, base) for base in bases]
        rows, spreads = kept_rows(args.docs / FILE, bases, "rows") + rows, kept_rows(args.docs / FILE, bases, "another_seed") + spreads
        numbers = {"pictures": HELD_OUT, "steps": STEPS, "rows": rows, "another_seed": spreads}
        (args.docs / FILE).write_text(json.dumps(numbers, indent=1) + "\n")
        (args.work / "table.md").write_text(table(rows, spreads))
        if seed == 0:
            for base in bases:
                # One sheet for each family.
                if base in SHEETS:
                    sheet(lab, base, args.docs / SHEETS[base])
    print(table(rows, spreads))


if __name__ == "__main__":
    main()
