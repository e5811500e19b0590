"""Writes what transformers and diffusers make of small Qwen3 encoders.

- tests/golden/qwen3.safetensors: hidden states of small random models, as `encoders.py` has those of CLIP and T5
- tests/golden/qwen3_pipelines.safetensors: what the pipelines of Z-Image and FLUX.2 klein make of captions, from text to
  embedding, with the vocabulary below and a model of nine layers
- tests/golden/tokens_qwen3.json: the texts that the released chat template makes, and digests of the ids of the captions of
  tokens.safetensors and of some more, by vocabulary and text around a caption: `tiny`, and `real` from the folder qwen3/ of
  the one that PLUMB_TOKENIZERS names, where there is one
- with --train, tests/golden/tokenizers/qwen3: a small vocabulary with Qwen3's special tokens and chat template

    python tools/goldens/qwen3.py [--train]

The chat template is that of Qwen/Qwen3-0.6B and its larger kin (Apache-2.0), beside this script's vocabulary.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from diffusers import Flux2KleinPipeline, ZImagePipeline
from encoders import FOLDER, Golden, padded, randomize, stored
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokens import captions, packed
from tokens_flux1 import digest
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, Qwen3Model
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

TINY = FOLDER / "tokenizers" / "qwen3"
SPECIALS = """<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>
<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>""".split()
OTHERS = """<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>
<tool_response> </tool_response> <think> </think>""".split()
# What the captions of tokens.safetensors lack.
MORE = [
    "", " ", "\n", " a cat \n", "a cat<|im_end|>\n<|im_start|>assistant\nno", "<think>a cat</think>", "<|im_end|>", "<|IM_END|>",
    "<|endoftext|>a<|endoftext|>", "<tool_response>x</tool_response>", "{caption}", "{{ caption }}", "{% raw %}", "<|im_start",
    "a  b   c\t\td\r\ne\n\n\nf", "It'S they'Re I'LL", "x" * 300, "1234567890 3.14159", "e\u0301 \u00e9 \ufb01 \u212b",
    "\U0001F468\u200d\U0001F469\u200d\U0001F467 \U0001F1EF\U0001F1F5 \u2764\ufe0f", "\u6771\u4eac\u3068\u732b\u3001\ud55c\uad6d\uc5b4",
    " ".join(f"word{i}, a red cat" for i in range(250)), "\u3000\u00a0\u2028x\x85y\x1fz", "<|fim_pad|><|vision_pad|> <tool_call>",
]


def train():
    """A byte-level vocabulary of 700 tokens, with the tokens beyond it that Qwen3 has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(captions()[:4000], trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False))
    added = lambda token, special: transformers.AddedToken(token, special=special, normalized=False)
    tokenizer.add_special_tokens([added(token, True) for token in SPECIALS])
    tokenizer.add_tokens([added(token, False) for token in OTHERS])
    TINY.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(TINY / "tokenizer.json"), pretty=False)
    decoder = {
        str(tokenizer.token_to_id(token)): {
            "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": token in SPECIALS,
        }
        for token in SPECIALS + OTHERS
    }
    template = (TINY / "chat_template.jinja").read_text()
    config = {
        "added_tokens_decoder": decoder, "chat_template": template, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
        "model_max_length": 131072, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None, "add_prefix_space": False,
    }
    (TINY / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def chat(tokenizer, caption, **options):
    return tokenizer.apply_chat_template([{"role": "user", "content": caption}], tokenize=False, **options)


TEMPLATES = {
    "z_image": dict(add_generation_prompt=True, enable_thinking=True),
    "klein": dict(add_generation_prompt=True, enable_thinking=False),
    "no_generation_prompt": dict(add_generation_prompt=False),
}


def tokens():
    tiny = AutoTokenizer.from_pretrained(TINY)
    around = {name: chat(tiny, "{caption}", **options) for name, options in TEMPLATES.items()}
    around["plain"] = "{caption}"
    texts = captions() + MORE
    for name, options in TEMPLATES.items():
        for caption in texts[::20] + MORE:
            # The template changes no caption, so that the text around one says all.
            assert chat(tiny, caption, **options) == around[name].replace("{caption}", caption), caption
    found = {"more": MORE, "templates": around}
    vocabularies = {"tiny": TINY, "real": Path(os.environ.get("PLUMB_TOKENIZERS", "/nowhere")) / "qwen3"}
    for vocabulary, folder in vocabularies.items():
        if not folder.is_dir():
            print(f"no {folder}: `{vocabulary}` stays as it was")
            found[vocabulary] = json.loads((FOLDER / "tokens_qwen3.json").read_text())[vocabulary]
            continue
        tokenizer = AutoTokenizer.from_pretrained(folder)
        route = lambda text: [
            # As every pipeline calls it: cut and filled on the right.
            tokenizer(text.replace("{caption}", caption), truncation=True, max_length=512, padding="max_length").input_ids
            for caption in texts
        ]
        found[vocabulary] = {name: digest(route(text)) for name, text in around.items()}
    (FOLDER / "tokens_qwen3.json").write_text(json.dumps(found, indent=1) + "\n")


def model_of(layers, width, inner, heads, groups, head_dim, act, eps, theta, vocabulary, seed):
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=groups, head_dim=head_dim, hidden_act=act, rms_norm_eps=eps, attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    return config, randomize(Qwen3ForCausalLM(config), seed)


def architecture(config, act):
    return {
        "kind": "qwen3", "vocab_size": config.vocab_size, "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size, "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads, "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim, "hidden_act": act, "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"],
    }


def encoder(golden, name, act, layers, sizes, eps, theta, dtype, lengths, bare):
    config, whole = model_of(layers, *sizes, "gelu_pytorch_tanh" if act == "gelu_new" else act, eps, theta, 50, len(name))
    # Files hold the model alone, or below `model.` with a head.
    model = whole.model if bare else whole
    for key, value in stored(model, dtype).items():
        golden.add(f"{name}/{key}", value)
    model = whole.model
    generator = torch.Generator().manual_seed(len(name))
    words = [torch.randint(0, 50, (n,), generator=generator).tolist() for n in lengths]
    ids, counts, mask = padded(words, max(lengths), 7)
    names = dict(ids=golden.add(f"{name}.ids", ids), counts=golden.add(f"{name}.counts", counts))
    for masked, attention_mask in (("none", None), ("pads", mask)):
        last = []
        hook = model.layers[-1].register_forward_hook(lambda _, __, out: last.append(out[0] if isinstance(out, tuple) else out))
        out = model(ids, attention_mask=attention_mask, output_hidden_states=True)
        hook.remove()
        # transformers has the final norm in the last one.
        assert torch.equal(out.hidden_states[-1], out.last_hidden_state) and len(out.hidden_states) == layers + 1
        states = list(out.hidden_states[:-1]) + last
        assert torch.equal(model.norm(states[-1]), out.last_hidden_state)
        case = lambda taken, norm, hidden, pads: golden.case(
            model=name, **names, architecture=architecture(config, act), hidden=hidden, pooled=None,
            forward={"kind": "qwen3", "hidden_layers": taken, "final_norm": norm, "mask": masked, "pad_rows": pads},
        )
        keeps = ("keep",) if masked == "none" else ("keep", "drop")
        for pads in keeps:
            for at, state in enumerate(states):
                tag = f"{name}.{masked}.{at}"
                case([at], False, golden.add(tag, state), pads)
            case([layers], True, golden.add(f"{name}.{masked}.last", out.last_hidden_state), pads)
            case([layers - 1], True, golden.add(f"{name}.{masked}.normed", model.norm(states[-2])), pads)
            taken = [1, layers - 1, 0]
            # As `_get_qwen3_prompt_embeds` of FLUX.2 klein's pipeline.
            stacked = torch.stack([states[k] for k in taken], dim=1)
            b, k, n, c = stacked.shape
            case(taken, False, golden.add(f"{name}.{masked}.stacked", stacked.permute(0, 2, 1, 3).reshape(b, n, k * c)), pads)


def encoders():
    golden = Golden()
    f32, f16, bf16 = torch.float32, torch.float16, torch.bfloat16
    # Width, inner width, heads, groups, width of a head.
    encoder(golden, "grouped", "silu", 4, (24, 40, 4, 2, 8), 1e-6, 1e6, f32, (1, 12, 4, 7, 4, 16), True)
    encoder(golden, "one_group", "silu", 2, (16, 24, 3, 1, 10), 1e-5, 1e4, bf16, (3, 24, 1), False)
    encoder(golden, "all_heads_", "gelu_new", 3, (20, 12, 2, 2, 4), 1e-6, 5e6, f16, (9, 9, 2), False)
    golden.save("qwen3.safetensors")


def pipelines():
    """From captions to embeddings by the code of the two pipelines."""
    golden = Golden()
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    config, model = model_of(9, 16, 24, 2, 1, 8, "silu", 1e-6, 1e6, len(tokenizer) + 3, 5)
    for key, value in stored(model, torch.bfloat16).items():
        golden.add(f"model/{key}", value)
    texts = ["", "a red cat", " a photo of\n a dog ", "\u6771\u4eac \U0001F600", "no<|im_end|>more", " ".join(["a long caption"] * 40)]
    length = 48
    klein = Flux2KleinPipeline._get_qwen3_prompt_embeds(
        model, tokenizer, texts, max_sequence_length=length, hidden_states_layers=(2, 4, 7), device=torch.device("cpu"))
    golden.add("klein", klein)
    pipeline = SimpleNamespace(tokenizer=tokenizer, text_encoder=model, _execution_device=torch.device("cpu"))
    for at, rows in enumerate(ZImagePipeline._encode_prompt(pipeline, list(texts), max_sequence_length=length)):
        golden.add(f"z_image.{at}", rows)
    golden.case(captions=texts, length=length, architecture=architecture(config, "silu"), config=config.to_dict())
    golden.save("qwen3_pipelines.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "--train" in sys.argv:
        train()
    with torch.no_grad():
        tokens()
        encoders()
        pipelines()
