"""Calibration data for data-dependent initialisation: activations and gradients of the base model.

Nothing here holds all gradients. Products of a gradient with a thin matrix are made layer by layer during one backward
pass; whole gradients are made for a few layers at a time, with one pass over the rows for each few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrft.adapters import svd
from lrft.adapters.adapter import Site
from lrft.model import linear
from lrft.model.modes import frozen_evaluation
from lrft.utils.seeds import seed_of

Batch = Mapping[str, Tensor]
IGNORE = -100  # the label of a token that does not count in the loss
# Numbers of whole gradients held at once.
GRADIENTS_AT_ONCE = 2**29


def no_rows(_: Any) -> Any:
    raise ValueError("needs calibration data: pass batches, as in attach(..., batches=...)")


@dataclass
class CalibrationContext:
    """The base `model` and rows of the data that it will be trained on. All figures are those of all processes."""

    model: nn.Module
    batches: Callable[[int], Iterable[Batch]] = no_rows
    """micro-batches of this process's share of the first n rows: the same ones whenever they are asked for"""
    loss: Callable[[Batch], Tensor] = no_rows
    """sum of the cross-entropy over a batch's trained tokens"""
    tokens: Callable[[Batch], float] = no_rows
    """number of trained tokens in a batch, each with its weight"""
    reduce: Callable[[Tensor], Tensor] = lambda t: t
    """sum over all processes"""
    agree: Callable[[Any], Any] = lambda value: value
    """broadcast a tensor from the first process"""
    seed: int = 0
    sites: Sequence[Site] = ()
    folder: Path | None = None
    """where the base's files are; None: where the model says"""

    def weight(self, site: Site) -> Tensor:
        """W (d, k) in the adapter's dtype."""
        return linear.dense(self.model.get_submodule(site.name)).to(site.dtype)

    def inputs(
        self, rows: int, collect: Callable[[str, Tensor], None], *, trained_only: bool = False
    ) -> dict[str, str]:
        """Call `collect(site's name, x)` with the inputs x (n, k) that each site sees of `rows` rows, without padding.

        trained_only: without the tokens that do not count in the loss, either.

        Sites that are given the very same input, as queries, keys and values are, are collected under the first of
        them: returned is {site: the site under whose name its inputs came}. x is in the adapter's dtype.
        """
        leaders: dict[str, str] = {}
        last: dict[str, Any] = {}

        def seen(site: Site, x: Tensor) -> None:
            if site.name not in leaders:
                leaders[site.name] = last["leader"] if last.get("x") is x else site.name
            leader = leaders[site.name]
            last.update(x=x, leader=leader)
            if leader == site.name:
                mask = last["mask"]
                fits = mask is not None and mask.shape == x.shape[:-1]
                collect(leader, (x[mask] if fits else x.flatten(0, -2)).to(site.dtype))

        with frozen_evaluation(self.model), torch.no_grad(), ExitStack() as hooks:
            for site in self.sites:
                module = self.model.get_submodule(site.name)
                hooks.callback(
                    module.register_forward_pre_hook(lambda _, given, site=site: seen(site, given[0])).remove
                )
            for batch in self.batches(rows):
                last.update(x=None, mask=kept_tokens(batch, trained_only))
                self.loss(batch)
        return leaders

    def right_products(self, rows: int, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """G N (d, p) by site for N = factors[site] (k, p), G (d, k) the gradient of the mean token loss of `rows` rows.

        Exact: an output's gradient is multiplied with the thin x N, and G is never made.
        """
        return self._gradients(rows, self._chosen(factors), lambda name, x, g: g.T @ (x @ factors[name]))

    def left_products(self, rows: int, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """G' M (k, p) by site for M = factors[site] (d, p)."""
        return self._gradients(rows, self._chosen(factors), lambda name, x, g: x.T @ (g @ factors[name]))

    def gradients(self, rows: int) -> Iterator[tuple[Site, Tensor]]:
        """(site, G (d, k)) for every site, G the gradient of the mean token loss of `rows` rows, a few at a time."""
        few: list[Site] = []
        for site in self.sites:
            if few and sum(s.d * s.k for s in (*few, site)) > GRADIENTS_AT_ONCE:
                yield from self._whole(rows, few)
                few = []
            few.append(site)
        yield from self._whole(rows, few)

    def _whole(self, rows: int, few: Sequence[Site]) -> Iterator[tuple[Site, Tensor]]:
        found = self._gradients(rows, few, lambda name, x, g: g.T @ x)
        for site in few:
            yield site, found.pop(site.name)

    def _chosen(self, factors: Mapping[str, Tensor]) -> list[Site]:
        return [site for site in self.sites if site.name in factors]

    def _gradients(
        self, rows: int, sites: Sequence[Site], product: Callable[[str, Tensor, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Sum over the rows of product(site, inputs (n, k), gradients of the outputs (n, d)), over all their tokens."""
        sums: dict[str, Tensor] = {}

        def watch(site: Site, given: tuple[Tensor, ...], out: Tensor) -> None:
            x = given[0].detach()

            def add(g: Tensor) -> None:
                # What a half-precision pass gives is summed in the adapter's dtype.
                part = product(site.name, x.flatten(0, -2).to(site.dtype), g.flatten(0, -2).to(site.dtype))
                sums[site.name] = sums[site.name] + part if site.name in sums else part

            out.register_hook(add)

        tokens = 0.0
        reached: list[float] = []
        embedding: nn.Module = self.model.get_input_embeddings()  # type: ignore[operator]
        with frozen_evaluation(self.model), torch.enable_grad(), ExitStack() as hooks:
            # No weight is trained here: gradients flow because the first hidden states ask for them.
            hooks.callback(embedding.register_forward_hook(lambda _, __, out: out.requires_grad_()).remove)
            for site in sites:
                module = self.model.get_submodule(site.name)
                hooks.callback(
                    module.register_forward_hook(lambda _, given, out, site=site: watch(site, given, out)).remove
                )
            for batch in self.batches(rows):
                tokens += self.tokens(batch)
                self.loss(batch).backward()
        device = next(self.model.parameters()).device
        for site in sites:  # a process without rows, or without a token for one expert, adds nothing
            reached.append(1.0 if site.name in sums else 0.0)
            x, g = (torch.zeros(0, size, dtype=site.dtype, device=device) for size in (site.k, site.d))
            sums.setdefault(site.name, product(site.name, x, g))
        counts = self.reduce(torch.tensor([tokens, *reached], dtype=torch.float64, device=device)).tolist()
        total = counts[0]
        silent = [site.name for site, times in zip(sites, counts[1:], strict=True) if not times]
        if silent or not total:
            raise ValueError(f"no gradient reaches {', '.join(silent[:3]) or 'any layer: no trained tokens'}")
        found = {site.name: self.reduce(sums[site.name]) / total for site in sites}
        odd = [name for name, made in found.items() if not made.isfinite().all()]
        if odd:
            raise ValueError(f"the gradient of {odd[0]} is not finite on the first {rows} rows: check these rows")
        return found


def kept_tokens(batch: Batch, trained_only: bool) -> Tensor | None:
    """Which tokens (B, T) of a batch are looked at, None for all: not padding, and not those that are not trained."""
    padding, labels = batch.get("attention_mask"), batch.get("labels")
    mask = padding.bool() if padding is not None and padding.ndim == 2 else None
    if trained_only and labels is not None:
        mask = labels != IGNORE if mask is None else mask & (labels != IGNORE)
    return mask


def gradient_triplets(
    context: CalibrationContext, rows: int, rounds: int, seed: int, *, times: int
) -> dict[str, svd.Triplets]:
    """By site, nearly the `times` r leading singular triplets of the gradient of the mean token loss of `rows` rows.

    The gradient itself is never made: a basis of 4r vectors is multiplied with it from both sides, 2 (1 + rounds)
    passes over the rows in all. Exact where the gradient's rank is 4r or less.
    """
    probes = {}
    for site in context.sites:
        generator = torch.Generator().manual_seed(seed_of(seed, site.name))
        drawn = torch.randn(site.k, min(4 * site.rank, site.d, site.k), dtype=site.dtype, generator=generator)
        probes[site.name] = drawn.to(next(context.model.get_submodule(site.name).parameters()).device)
    # The products are sums over all processes, the same bits on each, and so are the bases made of them.
    for _ in range(1 + rounds):
        columns = {name: torch.linalg.qr(made).Q for name, made in context.right_products(rows, probes).items()}
        images = context.left_products(rows, columns)
        probes = {name: torch.linalg.qr(image).Q for name, image in images.items()}
    found = {}
    for site in context.sites:
        basis, image = columns[site.name], images[site.name].T
        U, S, V = svd.largest(image, min(times * site.rank, len(image)))
        found[site.name] = (basis @ U, S, V)
    return found
