"""Replays one training step of plumb under `[model] compute = "fp8"` in diffusers, torchao and peft, and compares.

    plumb train EXPERIMENT --dump-step K step.safetensors
    python tools/replay_step_fp8.py step.safetensors path/to/base

The base model's linears are torchao's Float8Linear, as diffusers' `--do_fp8_training` makes them, emulated in f32. A number between two codes goes
to either for a difference in its last bit, and all that follows is another rounding: torchao's own step is another one when its input is changed by
a millionth. So the check is that plumb's step is as near to torchao's as some of those are (within one and a half of the largest of their distances), in the
prediction and in the gradients of all adapters together; and how far a step without fp8 is from it is printed beside. Single layers are compared
number by number: tools/goldens/fp8.py.
"""

import sys

import torch
from replay_step import asked, load_with_adapters, loss_of, noisy_of_flow, predicted
from torchao.float8 import Float8LinearConfig, convert_to_float8_training

NUDGES = (1e-6, -1e-6, 3e-6)


def in_fp8(module, name):
    """Whether plumb multiplies by a module's weight in fp8: diffusers' own filter, and no matrix of less than 4096 numbers."""
    if not isinstance(module, torch.nn.Linear):
        return True
    sizes = module.in_features, module.out_features
    return name != "proj_out" and all(size % 16 == 0 for size in sizes) and sizes[0] * sizes[1] >= 4096


def to_fp8(transformer):
    convert_to_float8_training(transformer, module_filter_fn=in_fp8, config=Float8LinearConfig(emulate=True))
    if not any(type(module).__name__ == "Float8Linear" for module in transformer.modules()):
        sys.exit("no linear is large enough for fp8")


def step(base, dump, metadata, change, nudge):
    """The prediction, and the gradients of all adapters, each as one vector."""
    transformer, parameters = load_with_adapters(base, dump, metadata, change)
    prediction = predicted(transformer, dump, noisy_of_flow(dump) * (1 + nudge))
    loss_of(dump, prediction, dump["noise"] - dump["latents"]).backward()
    gradients = torch.cat([parameters[name].grad.flatten() for name in sorted(parameters)])
    return prediction.detach().flatten(), gradients


def main():
    base, dump, metadata = asked(__doc__, "the base model's diffusers folder, of a model that is trained by flow matching")
    names = sorted(name for name in dump if name.startswith("gradient."))
    ours = dump["prediction"].flatten(), torch.cat([dump[name].flatten() for name in names])
    theirs = step(base, dump, metadata, to_fp8, 0.0)
    nudged = [step(base, dump, metadata, to_fp8, nudge) for nudge in NUDGES]
    whole = step(base, dump, metadata, lambda _: None, 0.0)
    far = False
    for i, what in enumerate(("prediction", "gradients")):
        distance = lambda other: ((other[i] - theirs[i]).norm() / theirs[i].norm()).item()
        own = max(map(distance, nudged))
        print(
            f"{what}: plumb's is {distance(ours):.2e} from torchao's, whose own are within {own:.2e} of each other; "
            f"without fp8 it is {distance(whole):.2e} from it"
        )
        far |= distance(ours) > 1.5 * own
    sys.exit(1 if far else 0)


if __name__ == "__main__":
    main()
