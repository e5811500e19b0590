"""Conditioning: what the denoiser receives for a caption, put together from the store's entries as a recipe says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ._errors import Error
from ._recipe import Recipe
from ._text import shown

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class EncoderOutput:
    """What one encoder made of a caption, as f32."""

    hidden: np.ndarray | None
    """The sequence, [tokens, width]."""
    pooled: np.ndarray | None
    """The pooled vector, [width]."""
    token_count: int
    """Ids before padding: rows from here on are pads."""
    truncated: bool
    """Whether the caption was too long and was cut."""


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """What the denoiser receives for one caption: numpy arrays, or torch tensors after `torch()`."""

    context: Any
    """The sequences of all encoders as the recipe joins them, [tokens, width], f32."""
    pooled: Any
    """The pooled vectors, [width], f32; [0] for a recipe without."""
    mask: Any | None
    """[tokens], bool: True for rows that the denoiser sees. None where the recipe has none: then pads are attended to."""
    token_count: int | None
    """Rows that the denoiser sees, the first so many, where there is a mask."""
    encoders: Mapping[str, EncoderOutput]
    """What each encoder made, by its slot."""

    def torch(self, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Conditioning:
        """The same as torch tensors, where `dtype` is given rounded to it (the mask stays bool)."""
        import torch

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device=device, dtype=dtype)

        mask = None if self.mask is None else torch.from_numpy(self.mask).to(device)
        return dataclasses.replace(self, context=tensor(self.context), pooled=tensor(self.pooled), mask=mask)


def assemble(recipe: Recipe, outputs: Mapping[str, EncoderOutput]) -> Conditioning:
    """Puts the outputs of a caption together, by the same steps as `assemble` in plumb's `src/cache/conditioning.rs`."""
    rows = [_widened(np.concatenate(_columns(recipe, group, outputs), axis=1), recipe) for group in recipe.context]
    pooled = [_pooled(slot, outputs) for slot in recipe.pooled]
    context = np.concatenate(rows, axis=0)
    count = None
    # A recipe that masks pads has one group.
    if recipe.mask != "none" and len(recipe.context) == 1:
        counts = [outputs[slot].token_count for slot in recipe.context[0] if slot in outputs]
        # Encoders side by side share rows: a row is a pad where it is one of all.
        count = min(max(counts) + (recipe.mask == "pads_but_one"), len(context))
    return Conditioning(
        context=context,
        pooled=np.concatenate(pooled) if pooled else np.zeros(0, np.float32),
        mask=None if count is None else np.arange(len(context)) < count,
        token_count=count,
        encoders=dict(outputs),
    )


def drop_caption(
    recipe: Recipe,
    outputs: Mapping[str, EncoderOutput],
    empty: Mapping[str, EncoderOutput] | None,
    dropped: frozenset[str],
) -> dict[str, EncoderOutput]:
    """The outputs, with those of the `dropped` slots replaced by what stands for no caption."""
    replaced = dict(outputs)
    for slot in dropped & replaced.keys():
        if recipe.unconditional == "encoded_empty":
            if empty is None:
                raise Error(f"the entry of the empty caption is missing for {shown(slot)}")
            replaced[slot] = empty[slot]
            continue
        had = replaced[slot]
        # Of the same shape, so that contexts of a batch stay equally long.
        replaced[slot] = dataclasses.replace(
            had,
            hidden=None if had.hidden is None else np.zeros_like(had.hidden),
            pooled=None if had.pooled is None else np.zeros_like(had.pooled),
        )
    return replaced


def _columns(recipe: Recipe, group: tuple[str, ...], outputs: Mapping[str, EncoderOutput]) -> list[np.ndarray]:
    columns = []
    for slot in group:
        output = outputs.get(slot)
        if output is None:
            rows = dict(recipe.zero_rows).get(slot)
            if rows is None:
                raise Error(f"there is no entry of {shown(slot)}, and the recipe does not do without")
            columns.append(np.zeros((rows, recipe.context_width), np.float32))
            continue
        hidden = output.hidden
        if hidden is None or hidden.ndim != 2:
            raise Error(f"the entry of {shown(slot)} has no sequence, which the recipe's context needs")
        if slot in recipe.zeroed and output.token_count < len(hidden):
            hidden = hidden.copy()
            hidden[output.token_count :] = 0.0
        least = dict(recipe.filled_rows).get(slot, 0)
        if len(hidden) < least:
            hidden = np.pad(hidden, ((0, least - len(hidden)), (0, 0)))
        columns.append(hidden)
    if len({len(column) for column in columns}) > 1:
        raise Error(f"the sequences of {shown(', '.join(group))} have {[len(c) for c in columns]} rows, expected as many in each")
    return columns


def _widened(rows: np.ndarray, recipe: Recipe) -> np.ndarray:
    have, width = rows.shape[1], recipe.context_width
    if have > width:
        raise Error(f"the encoders give {have} channels, the denoiser takes {width}; this recipe is not this model's")
    # On the right, as `F.pad` in diffusers' SD3 pipeline.
    return np.pad(rows, ((0, 0), (0, width - have)))


def _pooled(slot: str, outputs: Mapping[str, EncoderOutput]) -> np.ndarray:
    output = outputs.get(slot)
    if output is None or output.pooled is None:
        raise Error(f"the entry of {shown(slot)} has no pooled vector, which the recipe needs")
    return output.pooled
