"""What diffusers' own pipelines make of the bundled miniatures of FLUX.1 and SDXL, for our end-to-end comparison.

    python tools/goldens/tiny_pipelines.py      # reads assets/, writes tests/golden/tiny_{flux,sdxl,sdxl_vpred}.safetensors

The pipelines are opened afresh (f16 weights, computed in f32), encode the captions, and sample the first of them from
given noise. Nothing of ours takes part. That of SD3 is `tiny_sd3.py`, which follows the authors' recipe instead.
"""

import json
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import EulerDiscreteScheduler, FluxPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
CAPTIONS = [
    "a big red heart in the center, on a cream background",
    "A small green star above a large blue circle! 🎈 大きな赤い星",
    "",
]
SIDE, STEPS, GUIDANCE = 128, 8, 3.5
ROWS = 80  # of a context that are kept; all of them take part in the sample


def open_pipeline(kind, name):
    made = kind.from_pretrained(ROOT / "assets" / name, torch_dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


def pixels_of(pipeline, latents):
    config = pipeline.vae.config
    return pipeline.vae.decode(latents / config.scaling_factor + (config.shift_factor or 0.0)).sample


def flux():
    pipeline = open_pipeline(FluxPipeline, "tiny-flux")
    context, pooled, _ = pipeline.encode_prompt(CAPTIONS, None, max_sequence_length=512)
    noise = torch.randn(1, 16, SIDE // 8, SIDE // 8)
    made = pipeline(
        CAPTIONS[0],
        height=SIDE,
        width=SIDE,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        latents=FluxPipeline._pack_latents(noise, 1, 16, SIDE // 8, SIDE // 8),
        max_sequence_length=512,
        output_type="latent",
    ).images
    latents = FluxPipeline._unpack_latents(made, SIDE, SIDE, pipeline.vae_scale_factor)
    return {"context": context[:, :ROWS], "pooled": pooled, "noise": noise, "latents": latents, "pixels": pixels_of(pipeline, latents)}


def sdxl():
    pipeline = open_pipeline(StableDiffusionXLPipeline, "tiny-sdxl")
    context, empty, pooled, empty_pooled = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=True)
    noise = torch.randn(1, 4, SIDE // 8, SIDE // 8)
    latents = pipeline(CAPTIONS[0], height=SIDE, width=SIDE, num_inference_steps=STEPS, guidance_scale=GUIDANCE, latents=noise, output_type="latent").images
    said = {"context": context, "pooled": pooled, "unconditional.context": empty[:1], "unconditional.pooled": empty_pooled[:1]}
    return said | {"noise": noise, "latents": latents, "pixels": pixels_of(pipeline, latents)}


def sdxl_vpred():
    """As NoobAI's v-prediction models are sampled: pure noise first, and guidance rescaled."""
    pipeline = open_pipeline(StableDiffusionXLPipeline, "tiny-sdxl")
    changes = dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, **changes)
    noise = torch.randn(1, 4, SIDE // 8, SIDE // 8)
    made = pipeline(
        CAPTIONS[0], height=SIDE, width=SIDE, num_inference_steps=20, guidance_scale=GUIDANCE, guidance_rescale=0.2, latents=noise, output_type="latent"
    )
    return {"noise": noise, "latents": made.images}


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    for name, make in (("flux", flux), ("sdxl", sdxl), ("sdxl_vpred", sdxl_vpred)):
        torch.manual_seed(0)
        about = {"script": "tools/goldens/tiny_pipelines.py", "captions": json.dumps(CAPTIONS), "steps": str(STEPS), "guidance": str(GUIDANCE)}
        about |= {m.__name__: m.__version__ for m in (torch, transformers, diffusers)}
        target = ROOT / f"tests/golden/tiny_{name}.safetensors"
        save_file({k: v.contiguous().clone() for k, v in make().items()}, target, metadata=about)
        print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
