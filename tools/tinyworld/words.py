"""The three tokenizers, trained on the world's own captions and saved in the forms SD3 uses."""

import io
import json
import random
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers import Regex
from transformers import CLIPTokenizer, T5Tokenizer

from . import scenes

CLIP_LENGTH, T5_LENGTH = 77, 77
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CLIP_SPLIT = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
MERGES, PIECES = 300, 560
# Words that mean nothing in this world: met at random, so that an unknown word is not a catastrophe.
CHAFF = (
    "about after again almost along also always another around away back beautiful because before behind best better between bright calm "
    "cheerful classic clean clear close cold colourful cool crisp dark day deep detailed different done early every fast fine fresh full "
    "funny gentle good great half hand happy high home house ink kind know late light line long look lovely made many mild modern more "
    "morning most much music never new nice night now old one only other over own paint paper pencil people photo plain play pretty quick "
    "quiet real right round same scene sharp shiny show sketch slow soft some still style sun sweet take that thick thin thing time today "
    "tree under very view warm water way white wide wild wind with wonderful wood word work world year young blueprint chalk"
).split()


def corpus(seed: int, count: int) -> list[str]:
    rng = random.Random(f"{seed} corpus")
    lines = []
    for _ in range(count):
        text, _, _ = scenes.caption(rng, scenes.random_scene(rng))
        lines.append(with_chaff(rng, text) if rng.random() < 0.15 else text)
    return lines


def with_chaff(rng, text: str) -> str:
    """The caption with one to four meaningless words before or behind it."""
    extra = " ".join(rng.choice(CHAFF) for _ in range(rng.randint(1, 4)))
    return f"{extra}, {text}" if rng.random() < 0.5 else f"{text.rstrip('.!')}, {extra}"


def byte_symbols() -> list[str]:
    """CLIP's printable stand-ins for the 256 bytes, in the order of its vocabulary."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in kept]
    return [chr(b) for b in kept] + [chr(256 + k) for k in range(len(others))]


def clip_vocabulary(lines) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Bytes, bytes with `</w>`, merges in order, then the two specials, as in CLIP."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(CLIP_SPLIT), behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    symbols = byte_symbols()
    trainer = trainers.BpeTrainer(vocab_size=2 * 256 + MERGES, end_of_word_suffix="</w>", initial_alphabet=symbols, show_progress=False)
    learner.train_from_iterator(lines, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]][:MERGES]
    entries = symbols + [s + "</w>" for s in symbols] + [a + b for a, b in merges] + [BOS, EOS]
    assert len(set(entries)) == len(entries)
    return {entry: at for at, entry in enumerate(entries)}, merges


def save_t5(folder: Path, lines) -> None:
    """Unigram pieces behind `<pad>` 0, `</s>` 1, `<unk>` 2, the hundred sentinels last. Text is not
    normalised (T5's own table would weigh more than the rest of the tokenizer); spaces collapse."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=PIECES,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        required_chars="".join(chr(c) for c in range(33, 127) if chr(c) not in "{}~^\\`<"),
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocabulary = [(pieces.id_to_piece(k), pieces.get_score(k)) for k in range(len(pieces))]
    vocabulary += [(f"<extra_id_{k}>", 0.0) for k in range(99, -1, -1)]
    T5Tokenizer(vocab=vocabulary, extra_ids=100, model_max_length=512).save_pretrained(folder)
    (folder / "spiece.model").write_bytes(model.getvalue())


def save_clip(folder: Path, vocabulary, merges, pad: str) -> None:
    """The fast file of today's transformers, and the vocabulary and merges that older programs read."""
    specials = {"pad_token": AddedToken(pad, special=True, normalized=False)} if pad != EOS else {}
    tokenizer = CLIPTokenizer(vocab=dict(vocabulary), merges=list(merges), model_max_length=CLIP_LENGTH, **specials)
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":")))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))


def make(work: Path, seed: int) -> None:
    lines = corpus(seed, 8000)
    # Once over all the common letters and marks, so that both vocabularies know them.
    lines += CHAFF * 3
    vocabulary, merges = clip_vocabulary(lines)
    save_clip(work / "tokenizer", vocabulary, merges, EOS)
    save_clip(work / "tokenizer_2", vocabulary, merges, "!")
    save_t5(work / "tokenizer_3", lines)


class Words:
    """Captions to ids by the reference rule: CLIP-L padded with its end token, CLIP-G with 0 (and `!`
    an ordinary token in both), T5 with 0; 77 positions each."""

    def __init__(self, work: Path):
        self.clip = CLIPTokenizer.from_pretrained(work / "tokenizer")
        self.t5 = T5Tokenizer.from_pretrained(work / "tokenizer_3")

    def ids(self, captions: list[str], t5_length: int = T5_LENGTH):
        """Three [N, T] tensors of ids."""
        l = self.clip(captions, padding="max_length", max_length=CLIP_LENGTH, truncation=True, return_tensors="pt")
        g = l.input_ids.masked_fill(l.attention_mask == 0, 0)
        t = self.t5(captions, padding="max_length", max_length=t5_length, truncation=True, return_tensors="pt")
        return l.input_ids, g, t.input_ids
