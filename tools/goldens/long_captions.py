"""Writes tests/golden/clip_long.safetensors: what captions of more than 77 tokens become under kohya's sd-scripts (windows of
75 tokens, joined to one sequence), under ComfyUI (whole windows, words kept whole) and under diffusion-pipe (whole windows).

    python tools/goldens/long_captions.py KOHYA SD35 DIFFUSION_PIPE

KOHYA is a checkout of kohya-ss/sd-scripts, SD35 of Stability-AI/sd3.5, whose tokenizer is ComfyUI's (comfy/sd1_clip.py),
DIFFUSION_PIPE of tdrussell/diffusion-pipe. Of each only the functions that count are run, on a small random encoder and the
tokenizer of tests/golden/tokenizers/clip.
"""

import ast
import json
import sys
import types
from pathlib import Path

import torch
import transformers
from encoders import Golden, randomize, stored
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

TOKENIZER = Path(__file__).resolve().parents[2] / "tests/golden/tokenizers/clip"
WORDS = "a cat dog photo of the red house don't 1girl masterpiece extraordinarily photorealistic watercolor, wow!!! detailed! !x".split()


def captions():
    generator = torch.Generator().manual_seed(3)
    word = lambda: WORDS[int(torch.randint(len(WORDS), (1,), generator=generator))]
    texts = ["", "a cat", "! " * 74, "! " * 75, "! " * 76, "cat " * 40, "! " * 150, "! " * 151, "photorealistic " * 9 + "a " * 60 + "photorealistic"]
    texts += [" ".join(word() for _ in range(count)) for count in (10, 15, 20, 30, 45, 60, 90)]
    return texts


def functions(path, names, **known):
    """These functions and classes of a file, without the rest of it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if getattr(node, "name", None) in names]
    for node in found:
        # Annotations name types that are not here.
        for inner in ast.walk(node):
            if isinstance(inner, ast.arg):
                inner.annotation = None
            elif isinstance(inner, ast.FunctionDef):
                inner.returns = None
    scope = {"torch": torch, **known}
    exec(compile(ast.Module(found, type_ignores=[]), str(path), "exec"), scope)
    return types.SimpleNamespace(**{name: scope[name] for name in names})


class Cases:
    def __init__(self, model, tokenizer, architecture):
        self.golden, self.model, self.tokenizer, self.architecture = Golden(), model, tokenizer, architecture
        for key, value in stored(model, torch.float16).items():
            self.golden.add(f"clip/{key}", value)

    def tokenizer_with(self, pad):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(TOKENIZER)
        tokenizer.model_max_length = 77
        tokenizer.pad_token_id = pad
        return tokenizer

    def add(self, caption, tokens, ids, chunks, pooled_rule, hidden, pooled):
        name = f"case{len(self.golden.cases)}"
        forward = {
            "kind": "clip_text", "hidden_layer": -2, "final_norm": False, "pooled": pooled_rule, "projection": True,
            "mask": "none", "chunks": chunks,
        }
        self.golden.case(
            model="clip", caption=caption, tokens=tokens, architecture=self.architecture, forward=forward,
            ids=self.golden.add(name + ".ids", torch.tensor([ids])),
            counts=self.golden.add(name + ".counts", torch.tensor([len(ids)])),
            hidden=self.golden.add(name + ".hidden", hidden[None]), pooled=self.golden.add(name + ".pooled", pooled[None]),
        )


def kohya(cases, root):
    base = functions(root / "library/strategy_base.py", ["_get_input_ids"], Optional=None)
    sdxl = functions(root / "library/strategy_sdxl.py", ["_get_hidden_states_sdxl", "_pool_workaround"])
    strategy = types.SimpleNamespace()
    strategy._pool_workaround = types.MethodType(sdxl._pool_workaround, strategy)
    end = cases.tokenizer.eos_token_id
    first, second = cases.tokenizer_with(end), cases.tokenizer_with(0)
    for count in (2, 3):
        for caption in captions() if count == 3 else captions()[1::4]:
            length = count * 75 + 2
            windows = [base._get_input_ids(strategy, tokenizer, caption, length)[None] for tokenizer in (first, second)]
            hidden1, hidden2, pooled = sdxl._get_hidden_states_sdxl(strategy, *windows, first, second, cases.model, cases.model)
            for tokenizer, hidden, pad in ((first, hidden1, end), (second, hidden2, 0)):
                ids = tokenizer(caption, padding="max_length", truncation=True, max_length=length)["input_ids"]
                tokens = {"chunks": count, "min_tokens": 77, "max_tokens": 77, "truncation": "tokens", "pad_id": pad}
                chunks = {"join": "inner", "window": 77, "pad": pad, "end": end}
                if pad == 0:
                    cases.add(caption, tokens, ids, chunks, "first_eos", hidden[0], pooled[0])
                else:
                    # The pooled row of the first encoder is not used: that of its first window.
                    row = cases.model(windows[0][0, :1]).text_embeds[0]
                    cases.add(caption, tokens, ids, chunks, "first_eos", hidden[0], row)


def encoded(model, windows):
    outputs = [model(torch.tensor([ids]), output_hidden_states=True) for ids in windows]
    return torch.cat([o.hidden_states[-2][0] for o in outputs]), outputs[0].text_embeds[0]


def comfy(cases, root):
    names = ["SDTokenizer", "parse_parentheses", "token_weights", "escape_important", "unescape_important"]
    found = functions(root / "other_impls.py", names)
    end = cases.tokenizer.eos_token_id
    for pad in (end, 0):
        tokenizer = found.SDTokenizer(pad_with_end=pad == end, tokenizer=cases.tokenizer_with(end))
        for caption in captions():
            windows = [[token for token, _ in window] for window in tokenizer.tokenize_with_weights(caption)]
            tokens = {"chunks": "whole", "min_tokens": 77, "max_tokens": 77, "truncation": "whole_words", "pad_id": pad}
            cases.add(caption, tokens, sum(windows, []), {"join": "whole", "window": 77}, "first_eos", *encoded(cases.model, windows))


def diffusion_pipe(cases, root):
    found = functions(root / "models/sdxl.py", ["_get_input_ids", "get_prompt_embeds"])
    end = cases.tokenizer.eos_token_id
    tokenizer = cases.tokenizer_with(end)
    layer = types.SimpleNamespace(clip_skip=None)
    for caption in captions():
        content = found._get_input_ids(layer, [caption], tokenizer)
        hidden, pooled = found.get_prompt_embeds(layer, content, tokenizer, cases.model, return_pooled_prompt_embeds=True)
        ids = []
        for window in torch.split(content, 75, dim=-1):
            ids += [tokenizer.bos_token_id, *window[0].tolist(), end]
        tokens = {"chunks": "whole", "min_tokens": 0, "max_tokens": 77, "truncation": "tokens", "pad_id": end}
        cases.add(caption, tokens, ids, {"join": "whole", "window": 77}, "first_eos", hidden[0], pooled[0])


def main():
    torch.set_grad_enabled(False)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(TOKENIZER)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=24, num_hidden_layers=12, num_attention_heads=2,
        max_position_embeddings=77, hidden_act="gelu", layer_norm_eps=1e-5, projection_dim=8,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id, pad_token_id=0, attn_implementation="eager",
    )
    architecture = {
        "kind": "clip_text", "vocab_size": len(tokenizer), "hidden_size": 8, "intermediate_size": 24, "num_hidden_layers": 12,
        "num_attention_heads": 2, "max_position_embeddings": 77, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "projection_dim": 8, "eos_token_id": tokenizer.eos_token_id,
    }
    cases = Cases(randomize(CLIPTextModelWithProjection(config), seed=5), tokenizer, architecture)
    for make, root in zip((kohya, comfy, diffusion_pipe), sys.argv[1:], strict=True):
        make(cases, Path(root))
    cases.golden.save("clip_long.safetensors")


if __name__ == "__main__":
    main()
