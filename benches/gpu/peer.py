"""The other side of `benches/gpu.rs`: one case through diffusers + peft or transformers, as a JSON object.

    python benches/gpu/peer.py '{"kind": "train", ...}'

`compare.py` starts it, each case in a process of its own, `lease.py` once for all cases. What a user of those libraries gets: bf16 weights on a
card, LoRA factors in f32 under autocast, gradient checkpointing on, torch's SDPA, AdamW of torch. Two more kinds
serve the table: `matmul` is the GPU's own rate, `floor` counts the operations of a step on the meta device.
"""

import json
import statistics
import sys
import time

import torch

WARM_UP = 3
TARGETS = {
    "FluxTransformer2DModel": r"(.*\.)?(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out))",
    "SD3Transformer2DModel": r"(.*\.)?(attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out))",
    "UNet2DConditionModel": r"(.*\.)?(attn[12]\.(to_[qkv]|to_out\.0))",
}


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(device, steps, turn):
    seconds = []
    for number in range(WARM_UP + steps):
        synchronize(device)
        start = time.perf_counter()
        turn()
        synchronize(device)
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - start)
    return {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}


def dtype_on(device):
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def model_of(case, device, dtype):
    import diffusers
    import peft

    config = json.loads(open(case["config"]).read())
    name = config.pop("_class_name")
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = getattr(diffusers, name).from_config(config)
    torch.set_default_dtype(torch.float32)
    model = model.to(dtype).train().requires_grad_(False)
    # The last block of SD3 drops its text: this query reaches no output, and we adapt nothing that cannot learn.
    dead = [f"transformer_blocks.{config['num_layers'] - 1}.attn.add_q_proj"] if name == "SD3Transformer2DModel" else None
    model.add_adapter(peft.LoraConfig(r=case["rank"], lora_alpha=case["rank"], target_modules=TARGETS[name], exclude_modules=dead))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return name, model


def batch_of(case, name, config, device):
    """A micro-batch on the host, and the forward pass that takes it. `device` is where it is made: meta, for a count."""
    batch, side, tokens = case["batch"], case["px"] // 8, case["tokens"]

    def made(*shape):
        return torch.randn(*shape, device=device)

    context = made(batch, tokens, getattr(config, "joint_attention_dim", None) or config.cross_attention_dim)
    sigma = (torch.arange(batch, device=device) + 0.5) / batch
    host = {"context": context, "sigma": sigma}
    if name == "FluxTransformer2DModel":
        channels = config.in_channels // 4
        host["pooled"] = made(batch, config.pooled_projection_dim)

        def forward(model, noisy, part):
            half = side // 2
            packed = noisy.view(batch, channels, half, 2, half, 2).permute(0, 2, 4, 1, 3, 5).reshape(batch, half * half, channels * 4)
            ids = torch.zeros(half, half, 3, device=noisy.device)
            ids[..., 1] = torch.arange(half, device=noisy.device)[:, None]
            ids[..., 2] = torch.arange(half, device=noisy.device)[None]
            words = torch.zeros(tokens, 3, device=noisy.device)
            guidance = torch.ones(batch, device=noisy.device)
            guess = model(packed, part["context"], part["pooled"], part["sigma"], ids.view(-1, 3), words, guidance, return_dict=False)[0]
            return guess.view(batch, half, half, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, side, side)
    elif name == "SD3Transformer2DModel":
        channels = config.in_channels
        host["pooled"] = made(batch, config.pooled_projection_dim)

        def forward(model, noisy, part):
            return model(noisy, part["context"], part["pooled"], part["sigma"] * 1000, return_dict=False)[0]
    else:
        channels = config.in_channels
        host["pooled"] = made(batch, config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)
        px = float(case["px"])
        host["sizes"] = torch.tensor([[px, px, 0, 0, px, px]] * batch, device=device)

        def forward(model, noisy, part):
            told = {"text_embeds": part["pooled"], "time_ids": part["sizes"]}
            return model(noisy, part["sigma"] * 1000, part["context"], added_cond_kwargs=told, return_dict=False)[0]

    host["latents"], host["noise"] = made(batch, channels, side, side), made(batch, channels, side, side)
    return host, forward


def loss_of(model, forward, host, device, dtype):
    part = {key: value.to(device, non_blocking=True) for key, value in host.items()}
    s = part["sigma"][:, None, None, None]
    noisy = (1 - s) * part["latents"] + s * part["noise"]
    part["context"], part["pooled"] = part["context"].to(dtype), part["pooled"].to(dtype)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        guess = forward(model, noisy.to(dtype), part)
    return torch.nn.functional.mse_loss(guess.float(), part["noise"] - part["latents"])


def train(case, device):
    import diffusers
    import peft

    dtype = dtype_on(device)
    name, model = model_of(case, device, dtype)
    if case.get("checkpointing") is not False:
        model.enable_gradient_checkpointing()
    host, forward = batch_of(case, name, model.config, torch.device("cpu"))
    if case.get("compile") == "blocks":  # each kind of block once: the whole of FLUX takes minutes
        model._repeated_blocks = getattr(model, "_repeated_blocks", None) or ["JointTransformerBlock"]
        model.compile_repeated_blocks()
    elif case.get("compile"):
        model = torch.compile(model)
    adapters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(adapters, lr=1e-4)

    def step():
        loss = loss_of(model, forward, host, device, dtype)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adapters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step.loss = loss.item()

    seconds = timed(device, case["steps"], step)
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "peft": peft.__version__}
    return {"seconds": seconds, "loss": step.loss, "adapter_parameters": sum(p.numel() for p in adapters)} | versions


def floor(case, _device):
    """Operations of one step without recomputation: the least that any order of the same sums takes."""
    from torch.utils.flop_counter import FlopCounterMode

    meta = torch.device("meta")
    name, model = model_of(case, meta, torch.float32)
    host, forward = batch_of(case, name, model.config, meta)
    with FlopCounterMode(display=False) as counter:
        part = host
        guess = forward(model, (part["latents"] + part["noise"]), part)
        guess.square().mean().backward()
    return {"operations": counter.get_total_flops()}


def encoder_of(case, device, dtype):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    clip = {"clip-g": (1280, 32, 20), "clip-small": (128, 2, 2)}
    t5 = {"t5-xxl": (4096, 10240, 24, 64), "t5-small": (128, 256, 2, 2)}
    torch.set_default_dtype(dtype)
    with torch.device(device):
        if case["model"] in clip:
            width, layers, heads = clip[case["model"]]
            config = CLIPTextConfig(vocab_size=49408, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
                                    num_attention_heads=heads, max_position_embeddings=77, hidden_act="gelu", projection_dim=width, eos_token_id=2)
            model = CLIPTextModelWithProjection._from_config(config)
        else:
            width, inner, layers, heads = t5[case["model"]]
            config = T5Config(vocab_size=32128, d_model=width, d_kv=64, d_ff=inner, num_layers=layers, num_heads=heads, feed_forward_proj="gated-gelu")
            model = T5EncoderModel._from_config(config)
    torch.set_default_dtype(torch.float32)
    return model.eval()


def encode(case, device):
    import transformers

    clip = case["model"].startswith("clip")
    model = encoder_of(case, device, dtype_on(device))
    end = 49407 if clip else 1
    rows = [[(i * 7919 + j * 104729) % 30000 + 2 for j in range(case["tokens"] - 1)] + [end] for i in range(case["batch"])]
    ids = torch.tensor(rows)

    @torch.inference_mode()
    def turn():
        if clip:
            out = model(ids.to(device), output_hidden_states=True)
            return out.hidden_states[-2].cpu(), out.text_embeds.cpu()
        return (model(ids.to(device))[0].cpu(),)

    return {"seconds": timed(device, case["steps"], turn), "torch": torch.__version__, "transformers": transformers.__version__}


def vae(case, device):
    import diffusers

    shapes = {
        "vae": dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, norm_num_groups=32),
        "vae-small": dict(block_out_channels=(32, 64), layers_per_block=1, latent_channels=4, norm_num_groups=8),
    }
    shape, blocks = shapes[case["model"]], len(shapes[case["model"]]["block_out_channels"])
    model = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        use_quant_conv=False, use_post_quant_conv=False, **shape,
    )  # fmt: skip
    model.to(device).eval()
    pixels = torch.randn(case["batch"], 3, case["px"], case["px"])

    @torch.inference_mode()
    def turn():
        moments = model.encode(pixels.to(device)).latent_dist
        return moments.mean.cpu(), moments.logvar.cpu()

    return {"seconds": timed(device, case["steps"], turn), "torch": torch.__version__, "diffusers": diffusers.__version__}


def parts(case, device):
    """Each kind of operation alone, forward and back, as torch's own functions do it."""
    import torch.nn.functional as F

    dtype, b, n, h, d, r = dtype_on(device), case["batch"], case["tokens"], case["heads"], case["width"], case["rank"]
    c = h * d

    def made(*shape, spread=1.0, leaf=False):
        return (torch.randn(*shape, device=device) * spread).to(dtype).requires_grad_(leaf)

    x, wide, packed = made(b, n, c, leaf=True), made(b, n, 4 * c, leaf=True), made(b, n, h, d, leaf=True)
    vector, square, up, bias, gain = made(b, 1, c, spread=0.1), made(c, c, spread=0.02), made(4 * c, c, spread=0.02), made(c), made(d)
    down_a, down_b = made(r, c, spread=0.02, leaf=True), made(c, r, spread=0.02, leaf=True)
    angles = torch.rand(n, 1, d // 2, device=device) * 6
    cos, sin = angles.cos().repeat_interleave(2, -1), angles.sin().repeat_interleave(2, -1)

    def rope(q):
        real, imaginary = q.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([-imaginary, real], -1).flatten(-2)
        return (q.float() * cos + turned.float() * sin).to(q.dtype)

    def attention(q):
        heads = q.transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)

    operations = {
        "linear": (x, lambda x: F.linear(x, square, bias)),
        "linear with adapter": (x, lambda x: F.linear(x, square, bias) + F.linear(F.linear(x, down_a), down_b)),
        "linear to four times the width": (x, lambda x: F.linear(x, up)),
        "attention": (packed, attention),
        "norm of heads and rope": (packed, lambda x: rope(F.rms_norm(x, (d,), gain, 1e-6))),
        "norm and modulation": (x, lambda x: F.layer_norm(x, (c,), eps=1e-6) * (1 + vector) + vector),
        "gated residual": (x, lambda x: x + vector * x),
        "GELU": (wide, lambda x: F.gelu(x, approximate="tanh")),
    }

    def turn(leaf, operation):
        out = operation(leaf)
        out.backward(out.detach())
        leaf.grad = None

    return {"parts": {name: timed(device, case["steps"], lambda: turn(*pair)) for name, pair in operations.items()}}


def matmul(case, device):
    """What the GPU does of bf16 (on the CPU f32) products of large squares, in operations a second."""
    side = case["side"]
    a, b = torch.randn(2, side, side, device=device, dtype=dtype_on(device))
    repeats = case["repeats"]

    def turn():
        for _ in range(repeats):
            a @ b

    seconds = timed(device, 5, turn)
    return {"operations_a_second": 2 * side**3 * repeats / seconds["median"]}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    kinds = {"train": train, "floor": floor, "encode": encode, "vae": vae, "matmul": matmul, "parts": parts}
    torch.manual_seed(0)
    print(json.dumps(kinds[asked["kind"]](asked, torch.device(asked["device"]))))
