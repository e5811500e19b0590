"""Token ids of more than 10,000 captions by the route of every SD3 recipe variant.

Writes tests/golden/tokens.safetensors: the captions, and for each vocabulary one digest per caption (over all
routes) and one per route (over all captions, in the metadata), so that a test can tell where it differs.
Vocabularies: `tiny`, which `--train` makes under tests/golden/tokenizers/, and `real`, CLIP's and T5's own, from
the folder that PLUMB_TOKENIZERS names (clip/ and t5/).

    python tools/goldens/tokens.py [--train]
    python tools/goldens/tokens.py --show 17       caption 17 and its ids by each route

Needs transformers, tokenizers, sentencepiece, blake3, numpy, safetensors.
"""

import argparse
import io
import json
import os
import random
import shutil
import struct
import tempfile
import unicodedata
from pathlib import Path

import blake3
import numpy
import sentencepiece
import tokenizers
import transformers
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests/golden/tokenizers"
OUT = ROOT / "tests/golden/tokens.safetensors"

WORDS = """a an the of in on with and or photo painting sketch portrait cat dog red blue green small large old wooden
house tree river mountain night day light shadow masterpiece detailed cinematic style by artist woman man child
standing sitting running under over between bright dark soft cyberpunk watercolor 1girl solo looking at viewer
upper_body best-quality don't it's we're they've I'll she'd extraordinarily counterintuitively photorealistic
Pneumonoultramicroscopicsilicovolcanoconiosis antidisestablishmentarianism""".split()
PUNCTUATION = list(".,;:!?-_/\\|'\"`~@#$%^&*+=<>[]{}()") + ["!!!", "...", "--", ",,", "?!", "::", "</", "&&"]
SPACES = [" "] * 12 + ["  ", "\t", "\n", "\r\n", "\r", "\n\n", "\u00a0", "\u3000", "\u2028", "\u2009", "\x0b", "\x0c", "\x85", "\x1f"]
EMOJI = ["\U0001F600", "\U0001F468\u200d\U0001F469\u200d\U0001F467", "\U0001F1EF\U0001F1F5", "\U0001F44D\U0001F3FD", "\u2764\ufe0f", "\U0001F9D1\u200d\U0001F680", "\u263a", "1\ufe0f\u20e3", "\U0001F3F4\U000E0067\U000E0062\U000E007F"]
CJK = ["\u6771\u4eac", "\u4f60\u597d", "\u4e16\u754c", "\u3053\u3093\u306b\u3061\u306f", "\u30ab\u30bf\u30ab\u30ca", "\ud55c\uad6d\uc5b4", "\uff76\uff9e", "\U00020000", "\u3007", "\u3001", "\u300c\u732b\u300d"]
LIGATURES = ["\ufb01ne", "o\ufb00ice", "\ufb04oral", "\u00e6on", "\u0153uvre", "\ufb05", "\u01c6", "\u2122", "\u2116", "\u00bd", "\u210c", "\u3388"]
QUOTES = ["\u201cquoted\u201d", "it\u2019s", "\u2018single\u2019", "\u00abguillemets\u00bb", "\u201elow\u201c", "5\u2032 6\u2033", "\u2013", "\u2014", "\u2026", "\u2022", "\u00e2\u20ac\u2122s"]
DIGITS = ["0", "42", "1234567890", "3.14", "1,000", "2024-01-01", "\u0661\u0662\u0663", "\uff11\uff12", "\u00b2", "\u2167", "\u2460", "1e-5", "0x1F", "\u096b", "\u0bf0"]
MARKUP = ["<b>bold</b>", "&amp;", "&lt;x&gt;", "&#39;", "&nbsp;", "<lora:name:0.8>", "{a|b|c}", "[from:to:0.5]", "BREAK", "AND", "<!-- c -->", "**bold**", "`code`", "$x^2$", "\\n", "%20"]
SPECIALS = ["<|startoftext|>", "<|endoftext|>", "<|ENDOFTEXT|>", "<|endoftext", "|>", "</s>", "<s>", "<pad>", "<unk>", "<extra_id_0>", "<extra_id_99>", "<extra_id_100>", "<PAD>", "</w>", "cat</w>", "\u2581", "\u2581cat", "\uff1cpad\uff1e", "<|end\u00adoftext|>", "!</w>"]
COMBINING = ["e\u0301", "cafe\u0301", "\u0301", " \u0301x", "a\u0323\u0307", "n\u0303", "A\u030a", "\u1e9b\u0323", "\u0958", "\u2126", "\u212b", "q\u0307\u0323", "\u0930\u094d\u0915", "\u0e01\u0e33", "\u1100\u1161\u11a8", "x\u200d", "\u200be\u200b", "\ufeff", "\u0130", "\u00df", "\u1e9e", "\u03a3\u03a3", "\u01c5"]
FULLWIDTH = ["\uff26\uff35\uff2c\uff2c", "\uff43\uff41\uff54\uff01", "\uff08\uff58\uff09", "\uff1a\uff11\uff0e\uff12", "\uff5e", "\uffe5"]
RTL = ["\u0645\u0631\u062d\u0628\u0627", "\u05e9\u05dc\u05d5\u05dd", "\u200f\u05d0", "\u202eabc\u202c", "\u0627\u0644\u0642\u0650\u0637\u0651", "\u067e\u06cc"]
SCRIPTS = ["\u041f\u0440\u0438\u0432\u0435\u0442", "\u0393\u03b5\u03b9\u03ac", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u0561\u0580", "\u10d2\u10d0", "\u12a0", "\u13a0\ua7af", "caf\u00e9", "na\u00efve", "\u0141\u00f3d\u017a", "stra\u00dfe", "\u0130stanbul", "\u1ec7"]
CONTROLS = ["\0", "\0\1", "\0\2", "a\0b", "\x01", "\x07", "\x7f", "\x80", "\u200b", "\u00ad", "\u2060", "\ufffd", "\ufffe", "\U0010FFFF", "\ue000", "\x1c", "\x1e"]
URLS = ["https://example.com/a_b?c=d&e=%20#f", "www.test.org", "user@mail.net", "C:\\path\\file.png", "#hashtag", "@name", "10.0.0.1:80"]
WEIGHTS = ["(red)", "(big:1.3)", "((deep:1.2))", "(a:b:0.5)", "(x:)", "(:1.1)", "()", "(unclosed", "closed)", "\\(escaped\\)", "\\(", "\\)", "(a \\(b\\):1.1)", "(w: 1_0.5 )", "(w:1__0)", "(w:nan)", "(w:+.5e3)", "(w:\uff11.\uff15)", "(w:1.2.3)", "(a)(b)", "x(y)z", ")(", "(((", ")))", "(multi\nline:1.1)", "(a (b (c:1.1):1.2):1.3)", "(w:\u00b2)", "(w:\t1.5\n)", "(w:0x10)", "(w:infinity)", "(w:1e)"]
GROUPS = [WORDS, PUNCTUATION, EMOJI, CJK, LIGATURES, QUOTES, DIGITS, MARKUP, SPECIALS, COMBINING, FULLWIDTH, RTL, SCRIPTS, CONTROLS, URLS, WEIGHTS]

# The vectors of known answers, and one of each kind of thing.
BY_HAND = [
    "", " ", "\n", "\t \n", "!", "!!", "a cat!", "wow!!! nice", "A  Cat\n sits.", "don't stop", "x y z 123", "a_b-c/d",
    "hello<|endoftext|>world", "emoji \U0001F600 end", "a cat", "A Cat, sitting!", "a \n\n cat.\n", "\u201ccurly\u201d it\u2019s caf\u00e9",
    "{x: 1} ~ ^ \\ `", "hello</s>world", "a<pad>b", "<extra_id_0>", "a (red) cat, (big:1.3) dog", "A photo of a cat, (masterpiece:1.2)",
    "A photo of a cat, (masterpiece:1.2), \u6771\u4eac caf\u00e9 \ufb01", "\uff26\uff35\uff2c\uff2c", "\ufb01ne", "&amp; x", "&amp; <b>", "\u4f60\u597dworld",
    "\0", "\u200b", "a,b", "a, b,,c,", "first line\nsecond line", "  padded first \r\nsecond", "cat " * 200, "cat " * 900, "!" * 300,
    "word" * 300, "\u6771" * 400, "\U0001F600" * 120, "a" * 5000, "(" * 60 + "x" + ")" * 60, "((((x", "x))))", "'s 't 're 've 'm 'll 'd 'S 'RE",
    "1" * 200, "e" + "\u0301" * 40, "\u0f77\u0fb3" * 20,
] + ["lorem " * n + tail for n in (70, 73, 74, 75, 76) for tail in ("", "supercalifragilistic", "Pneumonoultramicroscopicsilicovolcanoconiosis end", "!!", "\u6771\u4eac\u6771\u4eac")]


def captions(seed=20260101, count=10_400):
    rng = random.Random(seed)
    found = dict.fromkeys(BY_HAND)
    for group in GROUPS:
        found.update(dict.fromkeys(group))
    assigned = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    low = [c for c in assigned if ord(c) < 0x3000]
    while len(found) < count:
        found[one(rng, assigned, low)] = None
    return list(found)


def one(rng, assigned, low):
    kind = rng.random()
    if kind < 0.30:  # what people write
        words = [rng.choice(WORDS) for _ in range(rng.randint(1, 14))]
        text = ""
        for word in words:
            word = rng.choice([word, word, word, word.upper(), word.capitalize(), f"({word}:1.{rng.randint(0, 9)})"])
            text += word + rng.choice([" ", " ", ", ", ",", ". ", "! ", " - "])
        return rng.choice([text, text.strip(), text.strip(" ,.!-")])
    if kind < 0.80:  # pieces of every kind, glued and spaced
        groups = rng.sample(GROUPS, rng.randint(1, 4))
        text = ""
        for _ in range(rng.randint(1, 9)):
            text += rng.choice(rng.choice(groups)) + (rng.choice(SPACES) if rng.random() < 0.6 else "")
        return text
    if kind < 0.86:  # prompt syntax, at random
        alphabet = ["(", ")", "(", ")", "\\(", "\\)", ":", ":1.2", " ", "cat", "a", "\n", ",", "!", "0", ".", "_", "\\"]
        return "".join(rng.choice(alphabet) for _ in range(rng.randint(2, 30)))
    if kind < 0.985:  # any characters
        pool = rng.choice([assigned, low])
        return "".join(rng.choice(pool) for _ in range(rng.randint(1, 12)))
    if kind < 0.998:  # about the length of CLIP's window
        return "".join(rng.choice(WORDS) + rng.choice([" ", ", "]) for _ in range(rng.randint(45, 90)))
    return "".join(rng.choice(rng.choice(GROUPS)) + rng.choice(SPACES) for _ in range(500))


# Tokenizers ------------------------------------------------------------------------------------------------


def byte_symbols():
    """GPT-2's printable stand-ins for bytes, in CLIP's order of ids."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(0x100 + n) for n in range(256 - len(printable))]


def train():
    """A CLIP-like and a T5-like tokenizer, a few hundred tokens each, on the words of the captions."""
    rng = random.Random(7)
    lines = [" ".join(rng.choice(WORDS) for _ in range(12)) for _ in range(400)]
    lines += [" ".join(rng.choice(rng.choice(GROUPS)) for _ in range(8)) for _ in range(400)]
    shutil.rmtree(TINY, ignore_errors=True)

    learner = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    blank = transformers.CLIPTokenizer().backend_tokenizer
    learner.normalizer, learner.pre_tokenizer = blank.normalizer, blank.pre_tokenizer
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=900, end_of_word_suffix="</w>", initial_alphabet=byte_symbols(), show_progress=False)
    learner.train_from_iterator(lines, trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    symbols = byte_symbols()
    names = dict.fromkeys(symbols + [s + "</w>" for s in symbols] + ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"])
    vocab = {name: index for index, name in enumerate(names)}
    clip = TINY / "clip"
    clip.mkdir(parents=True)
    (clip / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (clip / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    save_json(transformers.CLIPTokenizer.from_pretrained(clip), clip)

    t5 = TINY / "t5"
    t5.mkdir()
    rules = t5 / "rules.tsv"
    sources = {chr(0xFF01 + n): chr(0x21 + n) for n in range(94)}
    sources |= {c: unicodedata.normalize("NFKC", c) for c in "\ufb00\ufb01\ufb02\ufb03\ufb04\u2122\u2026\u00bd\u2116\u00a0\u3000"}
    sources |= {a + m: unicodedata.normalize("NFC", a + m) for a in "aeioun" for m in "\u0300\u0301\u0302\u0303\u0308"}
    sources |= {c: " " for c in "\t\n\r"} | {"\u200b": " ", "\u00ad": ""}
    hexes = lambda text: " ".join(f"{ord(c):X}" for c in text)
    rules.write_text("".join(f"{hexes(a)}\t{hexes(b)}\n" for a, b in sources.items() if a != b))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(t5 / "spiece"), vocab_size=700, model_type="unigram", hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, normalization_rule_tsv=str(rules), character_coverage=0.98, num_threads=1, minloglevel=2,
    )
    rules.unlink()
    (t5 / "spiece.vocab").unlink()
    save_json(transformers.T5Tokenizer.from_pretrained(t5), t5)


def save_json(tokenizer, folder):
    """Its tokenizer.json, on one line to keep it small."""
    text = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()), ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")


def load(folder):
    """The tokenizers of the variants, as each makes them."""
    clip = transformers.CLIPTokenizer.from_pretrained(folder / "clip")
    kohya_g = transformers.CLIPTokenizer.from_pretrained(folder / "clip")
    kohya_g.pad_token_id = 0
    with tempfile.TemporaryDirectory() as second:
        # tokenizer_2 of diffusers' SD3 and SDXL folders: `!` is an added special token.
        for name in ("vocab.json", "merges.txt"):
            shutil.copyfile(folder / "clip" / name, Path(second) / name)
        special = lambda content: dict(content=content, lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
        bos, eos = clip.bos_token, clip.eos_token
        config = {
            "added_tokens_decoder": {"0": special("!"), str(clip.bos_token_id): special(bos), str(clip.eos_token_id): special(eos)},
            "bos_token": bos, "eos_token": eos, "unk_token": eos, "pad_token": "!", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer",
        }
        (Path(second) / "tokenizer_config.json").write_text(json.dumps(config))
        diffusers_g = transformers.CLIPTokenizer.from_pretrained(second)
    t5 = transformers.T5TokenizerFast.from_pretrained(folder / "t5")
    return clip, kohya_g, diffusers_g, t5


# Routes ----------------------------------------------------------------------------------------------------


def plain(tokenizer, texts, length):
    """The call that diffusers and every trainer but Stability's makes."""
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True)["input_ids"]


def first_line(text):
    """kohya: the first of the caption file's lines, stripped."""
    lines = io.StringIO(text, newline=None).readlines()
    return lines[0].strip() if lines else ""


def balanced_parts(text):
    """Stability's prompt syntax, one level of it: yields (text, whether a parenthesis opened it at level zero)."""
    level, begin = 0, 0
    for at, char in enumerate(text):
        if char == "(":
            if level == 0:
                yield text[begin:at]
                begin = at
            level += 1
        elif char == ")":
            level -= 1
            if level == 0:
                yield text[begin : at + 1]
                begin = at + 1
    yield text[begin:]


def unweighted(text):
    for part in balanced_parts(text):
        if len(part) < 2 or part[0] != "(" or part[-1] != ")":
            yield part
            continue
        inner = part[1:-1]
        head, colon, tail = inner.rpartition(":")
        if colon and head:
            try:
                float(tail)
                inner = head
            except ValueError:
                pass
        yield from unweighted(inner)


class Reference:
    """Stability's SDTokenizer over a tokenizer of transformers, as far as the ids of the first chunk go."""

    def __init__(self, tokenizer, starts, pad, max_length, min_length):
        self.tokenizer, self.pad, self.max_length, self.min_length = tokenizer, pad, max_length, min_length
        empty = tokenizer("")["input_ids"]
        self.start, self.end = (empty[:1], empty[1]) if starts else ([], empty[0])
        self.known = {}

    def word(self, word):
        if word not in self.known:
            self.known[word] = self.tokenizer(word)["input_ids"][len(self.start) : -1]
        return self.known[word]

    def __call__(self, text):
        text = text.replace("\\)", "\0\1").replace("\\(", "\0\2")
        ids = list(self.start)
        for part in unweighted(text):
            part = part.replace("\0\1", ")").replace("\0\2", "(").replace("\n", " ")
            for word in part.split(" "):
                group = self.word(word) if word else []
                free = self.max_length - 1 - len(ids)
                if len(group) > free:
                    return self.finish(ids + (group[:free] if len(group) >= 8 else []))
                ids += group
        return self.finish(ids)

    def finish(self, ids):
        ids = ids + [self.end]
        return ids + [self.pad] * (self.min_length - len(ids))


def routes(folder):
    """Recipe variant and encoder -> function from captions to lists of ids."""
    clip, kohya_g, diffusers_g, t5 = load(folder)
    reference_l = Reference(clip, True, clip.eos_token_id, 77, 77)
    reference_g = Reference(clip, True, 0, 77, 77)
    reference_t5 = Reference(t5, False, 0, 99999999, 77)
    commas = lambda texts: [", ".join(text.split(",")) for text in texts]
    lines = lambda texts: [first_line(text) for text in texts]
    found = {
        "reference/clip_l": lambda texts: [reference_l(text) for text in texts],
        "reference/clip_g": lambda texts: [reference_g(text) for text in texts],
        "reference/t5": lambda texts: [reference_t5(text[:226]) for text in texts],
        "kohya/clip_l": lambda texts: plain(clip, lines(texts), 77),
        "kohya/clip_g": lambda texts: plain(kohya_g, lines(texts), 77),
        "kohya/t5": lambda texts: plain(t5, lines(texts), 256),
        "ai-toolkit/clip_l": lambda texts: plain(clip, commas(texts), 77),
        "ai-toolkit/clip_g": lambda texts: plain(diffusers_g, commas(texts), 77),
        "ai-toolkit/t5": lambda texts: plain(t5, commas(texts), 256),
    }
    # The others give the caption to the diffusers folder's tokenizers as it is, and differ in T5's length.
    for variant, length in {"diffusers": 256, "diffusion-pipe": 256, "simpletuner": 154, "onetrainer": 77}.items():
        found[variant + "/clip_l"] = lambda texts: plain(clip, texts, 77)
        found[variant + "/clip_g"] = lambda texts: plain(diffusers_g, texts, 77)
        found[variant + "/t5"] = lambda texts, length=length: plain(t5, texts, length)
    return dict(sorted(found.items()))


def packed(ids):
    return struct.pack(f"<{len(ids) + 1}I", len(ids), *ids)


def digests(folder, texts):
    per_caption = [blake3.blake3() for _ in texts]
    per_route = {}
    for name, route in routes(folder).items():
        whole = blake3.blake3()
        for caption, ids in zip(per_caption, route(texts), strict=True):
            caption.update(packed(ids))
            whole.update(packed(ids))
        per_route[name] = whole.hexdigest()
    return numpy.frombuffer(b"".join(d.digest()[:8] for d in per_caption), numpy.uint64), per_route


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--show", type=int)
    arguments = parser.parse_args()
    if arguments.train:
        train()
    vocabularies = {"tiny": TINY, "real": Path(os.environ["PLUMB_TOKENIZERS"])}
    texts = captions()
    if arguments.show is not None:
        print(repr(texts[arguments.show]))
        for vocabulary, folder in vocabularies.items():
            for name, route in routes(folder).items():
                print(vocabulary, name, *route([texts[arguments.show]])[0])
        return
    encoded = [text.encode() for text in texts]
    tensors = {
        "text": numpy.frombuffer(b"".join(encoded), numpy.uint8),
        "lengths": numpy.array([len(text) for text in encoded], numpy.uint32),
    }
    metadata = {"script": "tools/goldens/tokens.py", "transformers": transformers.__version__, "tokenizers": tokenizers.__version__}
    for vocabulary, folder in vocabularies.items():
        tensors[vocabulary], per_route = digests(folder, texts)
        metadata[vocabulary] = json.dumps(per_route)
    save_file(tensors, OUT, metadata)
    OUT.chmod(0o644)
    print(len(texts), "captions,", OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
