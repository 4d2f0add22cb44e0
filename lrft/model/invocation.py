"""Which tokens of a pass stand at or behind the last invocation of their row.

An invocation is a fixed sequence of tokens. A row is searched as a whole, so what a token gets depends on later ones:
tokens between two invocations are behind the first of them only as long as the second is not there. A pass that goes on
from a cache of keys and values goes on as its rows did: what is generated does not invoke.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lrft.model.layers import decoder_of

NO_TOKEN = -1


class Invocation(nn.Module):
    """What all layers of a model have in common that act from an invocation on.

    active   bool (B, T) of the pass that the model is in, in the shape of its token ids; None before the first one, and
             where no tokens are given: then all are
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__()
        self.tokens: Tensor
        self.register_buffer("tokens", torch.tensor(tokens, dtype=torch.long), persistent=False)
        self.active: Tensor | None = None
        self.ids: Tensor | None = None
        self.given: dict[str, Any] = {}
        self.rows: Tensor | None = None
        """bool (B,): whether the rows of the last pass without a cache were invoked"""

    def watch(self, model: Any) -> None:
        """From now on look at each pass through `model`, as long as anyone has this object.

        Token ids are seen where they are embedded, positions and masks where they reach the decoder: a model that also
        sees or hears embeds its text before. Raises ValueError for a model that is none of transformers'.
        """
        if not hasattr(model, "get_decoder") or not hasattr(model, "get_input_embeddings"):
            raise ValueError("it acts from a token on, and this model is no language model of transformers")
        decoder, me = decoder_of(model), weakref.ref(self)

        def at_decoder(_: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any]) -> None:
            if (own := me()) is not None:
                own.given = {**given, "input_ids": given.get("input_ids", inputs[0] if inputs else None)}
                if own.given["input_ids"] is None:
                    own.settle()

        def at_embedding(_: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any]) -> None:
            if (own := me()) is not None:
                own.ids = inputs[0] if inputs else next(iter(given.values()))
                if own.given.get("input_ids") is not None:
                    own.settle()

        handles = [
            decoder.register_forward_pre_hook(at_decoder, with_kwargs=True),
            model.get_input_embeddings().register_forward_pre_hook(at_embedding, with_kwargs=True),
        ]
        for handle in handles:
            weakref.finalize(self, handle.remove)

    def settle(self) -> None:
        """Find `active` of the pass whose ids and inputs are known."""
        given, self.given = self.given, {}
        ids, mask = self.ids, given.get("attention_mask")
        if ids is None or not len(self.tokens):
            return
        if isinstance(mask, Tensor) and mask.shape == ids.shape:
            ids = ids.masked_fill(mask == 0, NO_TOKEN)
        past = given.get("past_key_values")
        if past is not None and int(past.get_seq_length()) > 0:
            before = self.rows
            if before is None or len(before) != len(ids):  # its beginning went through without these layers
                before = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
            self.active = before[:, None].expand(ids.shape)
            return
        self.active = behind_invocation(ids, self.tokens, given.get("position_ids"))
        self.rows = self.active.any(dim=1)

    def among(self, x: Tensor) -> Tensor | None:
        """`active` in the shape (..., 1) for x (..., k). Raises ValueError for a layer that gets other tokens than the
        model."""
        if self.active is None:
            return None
        if x.shape[:-1].numel() != self.active.numel():
            raise ValueError(f"{x.shape[:-1].numel()} of {self.active.numel()} tokens reach this layer")
        return self.active.reshape(x.shape[:-1]).unsqueeze(-1)


def behind_invocation(ids: Tensor, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
    """bool (B, T): tokens from the first one of the last invocation of their row on; none in a row without.

    ids (B, T), tokens (n,). positions (B, T) or (1, T), or several such: where they do not go on by one a new row
    begins; None: one row each.
    """
    B, T = ids.shape
    at = torch.arange(T, device=ids.device).expand(B, T)
    row = torch.zeros_like(at)
    if positions is not None:
        if positions.ndim == 3:  # of several axes, alike for text
            positions = positions[0]
        steps = positions.expand(B, T).diff(dim=1) != 1
        row = torch.cat([row[:, :1], steps.long().cumsum(dim=1)], dim=1)
    n = len(tokens)
    if n > T:
        return torch.zeros_like(at, dtype=torch.bool)
    whole = (ids.unfold(1, n, 1) == tokens).all(dim=-1) & (row[:, : T - n + 1] == row[:, n - 1 :])
    starts = torch.where(whole, at[:, : T - n + 1], -1)
    last = torch.full_like(at, -1).scatter_reduce(1, row[:, : T - n + 1], starts, "amax")  # by row, of at most T
    own = last.gather(1, row)
    return (own >= 0) & (at >= own)


def looks_ahead(model: nn.Module) -> bool:
    """Whether what a layer of `model` answers at a token depends on later tokens, on purpose."""
    return any(isinstance(module, Invocation) for module in model.modules())
