"""The tiny SD3's conditioning under any of the recipes that differ from the reference in a few fields, computed by
transformers. A recipe is the table of fields that stands in an Experiment under [recipe.deviate], by dotted name; a field
that is not known here is refused, so that no name can promise what was not done."""

import torch
import torch.nn.functional as F

from . import words
from .sd3 import Sd3

REFERENCE = {
    "clip_l.tokens.pad": "end",
    "clip_g.tokens.pad": 0,
    "t5.tokens.min_tokens": 77,
    "t5.tokens.max_tokens": "none",
    "clip_l.forward.hidden_layer": -2,
    "clip_g.forward.hidden_layer": -2,
    "clip_g.forward.projection": "apply",
    "t5.forward.mask": "none",
    "assembly.pads.t5": "keep",
}


class Recipe:
    """The reference with some fields otherwise."""

    def __init__(self, deviate: dict):
        unknown = set(deviate) - set(REFERENCE)
        if unknown:
            raise ValueError(f"not computed here: {sorted(unknown)}")
        self.fields = REFERENCE | deviate

    def ids(self, world: words.Words, captions: list[str]):
        """Three [N, T] tensors of ids, and where each has pads."""
        clip = world.clip(captions, padding="max_length", max_length=words.CLIP_LENGTH, truncation=True, return_tensors="pt")
        pads = clip.attention_mask == 0
        end = world.clip.eos_token_id

        def padded(slot):
            pad = self.fields[f"{slot}.tokens.pad"]
            return clip.input_ids.masked_fill(pads, end if pad == "end" else pad)

        # The captions of this world are far shorter than any of the lengths: nothing is cut.
        t5 = world.t5(captions, padding="max_length", max_length=self.fields["t5.tokens.min_tokens"], truncation=False, return_tensors="pt")
        return padded("clip_l"), padded("clip_g"), t5.input_ids, t5.attention_mask

    @torch.no_grad()
    def encode(self, encoders, world: words.Words, captions: list[str]) -> dict[str, torch.Tensor]:
        """context [B, 77 + T, D] and pooled [B, L + G]."""
        l_ids, g_ids, t_ids, t_true = self.ids(world, captions)
        l = encoders.l(l_ids, output_hidden_states=True)
        g = encoders.g(g_ids, output_hidden_states=True)
        masked = self.fields["t5.forward.mask"] == "pads"
        t = encoders.t(t_ids, attention_mask=t_true if masked else None).last_hidden_state
        if self.fields["assembly.pads.t5"] == "zero":
            t = t * t_true[..., None]
        rows = [out.hidden_states[self.fields[f"{slot}.forward.hidden_layer"]] for slot, out in (("clip_l", l), ("clip_g", g))]
        both = torch.cat(rows, dim=-1)
        both = F.pad(both, (0, t.shape[-1] - both.shape[-1]))
        # CLIP's pooled row is that of the first end token, through the final norm.
        end = g_ids.argmax(dim=-1)
        plain = g.last_hidden_state[torch.arange(len(end)), end]
        g_pooled = g.text_embeds if self.fields["clip_g.forward.projection"] == "apply" else plain
        return {"context": torch.cat([both, t], dim=1), "pooled": torch.cat([l.text_embeds, g_pooled], dim=-1)}


class Sd3Under(Sd3):
    """The tiny SD3, its captions encoded by a recipe."""

    def __init__(self, deviate: dict):
        self.recipe = Recipe(deviate)

    def encode(self, encoders, world, captions):
        return self.recipe.encode(encoders, world, captions)
