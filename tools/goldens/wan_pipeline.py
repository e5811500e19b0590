"""Goldens of sampling with Wan: latents that diffusers' WanPipeline makes of the miniature of tools/tiny_wan.py.

    python tools/goldens/wan_pipeline.py     (from the repository's root; needs diffusers, transformers)

writes tests/golden/wan_pipeline.safetensors: `noise`, the true rows of a caption and a negative prompt (`caption`, `negative`), what one network makes of it (`one`), and what two experts do (`two`), of which the
second is the first with its numbers times 1.25: with UniPC, a shift of 3, 8 steps, and guidances of 4 and 3.
"""

import json
import pathlib
import sys

import diffusers
import torch
import transformers
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import tiny_wan  # noqa: E402

OUT = tiny_wan.GOLDEN / "wan_pipeline.safetensors"
CAPTION, NEGATIVE = "a circle that turns red, clip", "a still picture"


@torch.no_grad()
def main():
    one = tiny_wan.pipeline()
    one.tokenizer.pad_token = one.tokenizer.convert_ids_to_tokens(0)
    parts = dict(one.components)
    second = WanTransformer3DModel.from_config(one.transformer.config)
    second.load_state_dict({name: 1.25 * tensor for name, tensor in one.transformer.state_dict().items()})
    two = WanPipeline(**{**parts, "transformer_2": second}, boundary_ratio=0.875)
    noise = torch.randn(1, tiny_wan.CHANNELS, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    rows = {}
    for name, text in (("caption", CAPTION), ("negative", NEGATIVE)):
        embedded = one.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=512)[0]
        assert embedded.shape[1] == 512
        rows[name] = embedded[0, : int((embedded[0] != 0).any(-1).sum())]
    embedded = {name: torch.nn.functional.pad(kept, (0, 0, 0, 512 - len(kept)))[None] for name, kept in rows.items()}
    common = dict(
        prompt_embeds=embedded["caption"], negative_prompt_embeds=embedded["negative"], height=64, width=64, num_frames=5, num_inference_steps=8, guidance_scale=4.0,
        output_type="latent", return_dict=False,
    )  # fmt: skip
    tensors = {
        "noise": noise,
        **rows,
        "one": one(**common, latents=noise.clone())[0],
        "two": two(**common, guidance_scale_2=3.0, latents=noise.clone())[0],
    }
    metadata = {
        "script": "tools/goldens/wan_pipeline.py",
        "versions": json.dumps({m.__name__: m.__version__ for m in (torch, diffusers, transformers)}),
    }
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, OUT, metadata=metadata)


if __name__ == "__main__":
    main()
