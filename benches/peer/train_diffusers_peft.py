"""The other side of `benches/train.rs`: the same weights and inputs through diffusers + peft on the CPU, f32, AdamW.

    python benches/peer/train_diffusers_peft.py --write NAME FOLDER     writes a model of random weights, f32
    python benches/peer/train_diffusers_peft.py CASE                    a JSON object: one side of a case

A case makes one step and writes its prediction beside the inputs; then, for each line on standard input, makes the steps of a turn and
answers with the seconds they took, by the clock and of processor time; and at the end the peak of its memory.
"""

import json
import pathlib
import resource
import sys
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "tools"))

MODELS = {
    "100m": ("SD3Transformer2DModel", dict(
        sample_size=32, patch_size=2, in_channels=16, out_channels=16, num_layers=5, attention_head_dim=64, num_attention_heads=12,
        joint_attention_dim=4096, caption_projection_dim=768, pooled_projection_dim=2048, pos_embed_max_size=96, qk_norm="rms_norm")),
    "z-image": ("ZImageTransformer2DModel", dict(dim=768, n_layers=10, n_refiner_layers=2, n_heads=6, n_kv_heads=6)),
    "klein": ("Flux2Transformer2DModel", dict(
        num_layers=2, num_single_layers=9, attention_head_dim=128, num_attention_heads=6, joint_attention_dim=7680,
        axes_dims_rope=(32, 32, 32, 32), guidance_embeds=False)),
    "wan": ("WanTransformer3DModel", dict(num_attention_heads=6, attention_head_dim=128, ffn_dim=4480, num_layers=8)),
}


def resident_mib():
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


def write(name, folder):
    import diffusers
    import torch

    torch.manual_seed(0)
    kind, sizes = MODELS[name]
    model = getattr(diffusers, kind)(**sizes)
    with torch.no_grad():
        for parameter in ("x_pad_token", "cap_pad_token"):
            if hasattr(model, parameter):  # made without numbers
                getattr(model, parameter).normal_(std=0.02)
    model.save_pretrained(folder, safe_serialization=True)


def run(case):
    import peft
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file, save_file

    import denoisers

    torch.set_num_threads(case["threads"])
    imported = resident_mib()
    model = denoisers.load_from(case["folder"]).train().requires_grad_(False)
    model.add_adapter(peft.LoraConfig(r=case["rank"], lora_alpha=case["rank"], target_modules=case["targets"]))
    if case["checkpointing"]:
        model.enable_gradient_checkpointing()
    adapters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(adapters, lr=1e-4)
    given = load_file(case["inputs"])
    x, noise, sigmas = given["latents"], given["noise"], given["sigmas"]
    s = sigmas.reshape(-1, *[1] * (x.dim() - 1))

    def step():
        guess = denoisers.predict(model, (1 - s) * x + s * noise, sigmas * 1000, given["context"], given.get("pooled"))
        loss = F.mse_loss(guess, noise - x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return guess.detach()

    save_file({"prediction": step().contiguous()}, pathlib.Path(case["inputs"]).with_name("theirs.safetensors"))
    said = {"values": sum(p.numel() for p in adapters), "imported_mib": imported}
    print(json.dumps(said), flush=True)
    for _ in sys.stdin:
        start, start_cpu = time.perf_counter(), time.process_time()
        for _ in range(case["steps"]):
            step()
        print(time.perf_counter() - start, time.process_time() - start_cpu, flush=True)
    print(json.dumps({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--write":
        write(*sys.argv[2:])
    else:
        run(json.loads(sys.argv[1]))
