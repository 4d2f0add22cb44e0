"""Every method with the options that matter, as a recipe names it, and what tests of all methods do with a case."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable
from typing import Any

import pytest
import runs
import tiny
import torch

import lrft
from lrft import recipe, registry
from lrft.adapters import compose, gradient_checkpointing
from lrft.adapters.part import Part, Run
from lrft.model import linear

Count = Callable[[int, int, int], int]
RANK = 4
DOWN = {(24, 44), (24, 96)}
"""shapes of the second layers of feed-forward blocks"""


def pair(d: int, k: int, r: int) -> int:
    return r * (d + k)


def square(d: int, k: int, r: int) -> int:
    return round(((d + k) * r) ** 0.5) ** 2


def even_square(d: int, k: int, r: int) -> int:
    return (2 * (round(((d + k) * r) ** 0.5) // 2)) ** 2


def randlora(d: int, k: int, r: int) -> int:
    return math.ceil(min(d, k) / r) * (r + min(d, k))


def lokr(d: int, k: int, r: int, factor: int | None = None) -> int:
    """With the divisors of the sides that occur here; those of `factor` 12, where both matrices are products."""
    small = {12: 3, 24: 4, 44: 4, 72: 8, 96: 8} if factor is None else {12: 12, 24: 12, 44: 4, 72: 12, 96: 12}
    (n, m), larger = (small[d], small[k]), (d // small[d], k // small[k])
    first = r * (n + m) if factor and r < max(n, m) / 2 else n * m
    return first + (r * sum(larger) if r < max(larger) / 2 else math.prod(larger))


def salt(d: int, k: int, r: int, ratio: float) -> int:
    most = min(d, k)
    top = max(1, int(ratio * most))
    return 2 * top + 2 * (most - top) * r


def dota(d: int, k: int, r: int, n: int) -> int:
    """The factors of each side that occurs here, in two cores or three."""
    sizes = {12: [3, 4], 24: [4, 6], 44: [4, 11], 72: [8, 9], 96: [8, 12]}
    if n == 3:
        sizes = {12: [2, 2, 3], 24: [2, 3, 4], 44: [2, 2, 11], 72: [4, 3, 6], 96: [4, 4, 6]}
    sides = list(zip(sizes[d], sizes[k][::-1], strict=True))
    bonds = [1, *(min(r, area(sides[:m]), area(sides[m:])) for m in range(1, n)), 1]
    return sum(bonds[m] * i * j * bonds[m + 1] for m, (i, j) in enumerate(sides))


def area(sides: list[tuple[int, int]]) -> int:
    return math.prod(i * j for i, j in sides)


EIGENLORAX = {"adapters": tiny.loras(), "components": 5, "random": 2}
# method as in a recipe -> numbers trained for a layer of d outputs, k inputs at rank r
CASES: dict[str, tuple[Any, Count]] = {
    "lora": ("lora", pair),
    "rslora": ("rslora", pair),
    "lora+": ("lora+", pair),
    "pissa": ("pissa", pair),
    "loftq": ("loftq", pair),
    "pissa-exact": ({"pissa": {"svd": "exact"}}, pair),
    "dora": ("dora", lambda d, k, r: pair(d, k, r) + d),
    "mora": ("mora", even_square),
    "mora-1": ({"mora": {"type": 1}}, square),
    "mora-2": ({"mora": {"type": 2}}, square),
    "mora-3": ({"mora": {"type": 3}}, square),
    "mora-4": ({"mora": {"type": 4}}, square),
    "mora-6": ({"mora": {"type": 6}}, even_square),
    "pissa+rslora+lora+": (["pissa", "rslora", "lora+"], pair),
    "pissa+dora": (["pissa", "dora"], lambda d, k, r: pair(d, k, r) + d),
    "mora+dora": (["mora", "dora"], lambda d, k, r: even_square(d, k, r) + d),
    "rslora+dora+lora+": (["rslora", "dora", "lora+"], lambda d, k, r: pair(d, k, r) + d),
    "gralora": ("gralora", pair),
    "gralora-hybrid": ({"gralora": {"blocks": 2, "hybrid_rank": 2}}, pair),
    "melora": ({"melora": {"minis": 4}}, pair),
    "miss": ("miss", lambda d, k, r: r * d),
    "miss-mini": ({"miss": {"mini": 4}}, lambda d, k, r: r * 4),
    "bone": ({"bone": {"block": 4}}, lambda d, k, r: 4 * d),
    "fourierft": ({"fourierft": {"frequencies": 50}}, lambda d, k, r: 50),
    "c3a": ({"c3a": {"block": 4}}, lambda d, k, r: d * k // 4),
    "gralora+rslora+dora": (["gralora", "rslora", "dora"], lambda d, k, r: pair(d, k, r) + d),
    "hra": ("hra", lambda d, k, r: r * k),
    "loha": ("loha", lambda d, k, r: 2 * pair(d, k, r)),
    "loha+dora": (["loha", "dora"], lambda d, k, r: 2 * pair(d, k, r) + d),
    "lokr": ("lokr", lokr),
    "lokr-both": ({"lokr": {"factor": 12, "decompose_both": True}}, lambda d, k, r: lokr(d, k, r, 12)),
    "hira": ("hira", pair),
    "ia3": ({"ia3": {"inputs_of": ["down_proj", "mlp.c_proj"]}}, lambda d, k, r: k if (d, k) in DOWN else d),
    "lorma": ("lorma", lambda d, k, r: 2 * r * d),
    "lorma-inputs": ({"lorma": {"side": "inputs"}}, lambda d, k, r: 2 * r * k),
    "lorma-pi": ({"lorma": {"variant": "pi"}}, lambda d, k, r: 2 * r * d),
    "lorma-pi-inputs": ({"lorma": {"variant": "pi", "side": "inputs"}}, lambda d, k, r: 2 * r * k),
    "dcft": ({"dcft": {"kernel": 4}}, lambda d, k, r: (d + k) // 4 + 16),
    "flora-batched": ("flora-batched", pair),
    "lora-fa": ("lora-fa", lambda d, k, r: r * d),
    "lora-fa-orthonormal": ({"lora-fa": {"init": "orthonormal", "corrected": True}}, lambda d, k, r: r * d),
    "lora-fa-svd": ({"lora-fa": {"init": "svd"}}, lambda d, k, r: r * d),
    "lora-fa-mirror": ({"lora-fa": {"frozen": "B"}}, lambda d, k, r: r * k),
    "lora-fa+rslora+dora": (["lora-fa", "rslora", "dora"], lambda d, k, r: r * d + d),
    "olora": ("olora", pair),
    "milora": ("milora", pair),
    "milora+dora": (["milora", "dora"], lambda d, k, r: pair(d, k, r) + d),
    "lora-xs": ("lora-xs", lambda d, k, r: r * r),
    "lora-xs-exact": ({"lora-xs": {"svd": "exact"}}, lambda d, k, r: r * r),
    "lora-ensemble": ({"lora-ensemble": {"members": 3}}, lambda d, k, r: 3 * pair(d, k, r)),
    "alora": ({"alora": {"invocation_tokens": [85]}}, pair),
    "kasa": ("kasa", lambda d, k, r: pair(d, k, r) + r),
    "qalora": ({"qalora": {"group_size": 4}}, lambda d, k, r: pair(d, k // 4, r)),
    "velora": ({"velora": {"groups": 5}}, pair),
    "monteclora": ("monteclora", lambda d, k, r: pair(d, k, r) + r + 8),
    "full": ("full", lambda d, k, r: d * k),
    "full+dora": (["full", "dora"], lambda d, k, r: d * k + d),
    "relora": (["lora", "relora"], pair),
    "remora": ("remora", square),
    "rslora+relora+dora": (["rslora", "relora", "dora"], lambda d, k, r: pair(d, k, r) + d),
    "pissa+ba-lora": (["pissa", "ba-lora"], pair),
    "delora": ("delora", lambda d, k, r: pair(d, k, r) + 1),
    "delora+dora": (["delora", "dora"], lambda d, k, r: pair(d, k, r) + 1 + d),
    "singlora": ("singlora", lambda d, k, r: r * max(d, k)),
    "singlora+rslora": (["singlora", "rslora"], lambda d, k, r: r * max(d, k)),
    "nola": ({"nola": {"basis": 20}}, lambda d, k, r: 2 * 20),
    "nola+rslora+dora": ([{"nola": {"basis": 20}}, "rslora", "dora"], lambda d, k, r: 2 * 20 + d),
    "edora": ("edora", lambda d, k, r: r * r + d),
    "lora-dropout": ("lora-dropout", pair),
    "lora-dropout+lora+": ([{"lora-dropout": {"rescale": "inverted"}}, "lora+"], pair),
    "lora-dropout+pissa": (["pissa", {"lora-dropout": {"p": 0.2}}], pair),
    "pego": ({"pego": {"groups": 2}}, pair),
    "pego+dora": (["dora", {"pego": {"groups": 2}}], lambda d, k, r: pair(d, k, r) + d),
    "nuclear-norm": ("nuclear-norm", pair),
    "nuclear-norm+pissa": (["pissa", {"nuclear-norm": {"form": "exact"}}], pair),
    "lora-pro": ("lora-pro", pair),
    "lora-pro-weight": ({"lora-pro": {"moments": "weight"}}, pair),
    "lora-pro+pissa+rslora": (["lora-pro", "pissa", "rslora"], pair),
    "preconditioned": ("preconditioned", pair),
    "preconditioned+dora": (["preconditioned", "dora"], lambda d, k, r: pair(d, k, r) + d),
    "sorsa": ("sorsa", lambda d, k, r: r * (d + k + 1)),
    "sorsa-exact": ({"sorsa": {"svd": "exact", "squared": True}}, lambda d, k, r: r * (d + k + 1)),
    "fedsvd": ({"fedsvd": {"every": 2}}, pair),
    "fedsvd+dora": (["fedsvd", "dora"], lambda d, k, r: pair(d, k, r) + d),
    "early-late-dropout": ("early-late-dropout", pair),
    "tempbalance": ("tempbalance", pair),
    "adalora": ({"adalora": {"over": 1.0}}, lambda d, k, r: r * (d + k + 1)),
    "adalora+rslora+dora": ([{"adalora": {"over": 1.0}}, "rslora", "dora"], lambda d, k, r: r * (d + k + 1) + d),
    "sora": ("sora", lambda d, k, r: r * (d + k + 1)),
    "sora+rslora+dora": ([{"sora": {"rule": "released"}}, "rslora", "dora"], lambda d, k, r: r * (d + k + 1) + d),
    "dylora": ("dylora", pair),
    "dylora-all": ({"dylora": {"frozen": False, "strict": True, "use_rank": 2}}, pair),
    "prilora": ({"prilora": {"spread": 0.0, "every": 2.0}}, pair),
    "increlora": ({"increlora": {"over": 1.0}}, lambda d, k, r: r * (d + k + 1)),
    "increlora+dora": ([{"increlora": {"over": 1.0}}, "dora"], lambda d, k, r: r * (d + k + 1) + d),
    "elalora": ({"elalora": {"over": 1.0}}, lambda d, k, r: r * (d + k + 1)),
    "elalora+dora": ([{"elalora": {"over": 1.0}}, "dora"], lambda d, k, r: r * (d + k + 1) + d),
    "roselora": ("roselora", pair),
    "roselora+rslora+lora+": (["roselora", "rslora", "lora+"], pair),
    "lori": ("lori", lambda d, k, r: r * d),
    "aflora": ("aflora", lambda d, k, r: pair(d, k, r) + r + d),
    "lora-ga": ("lora-ga", pair),
    "lora-ga+rslora+dora": (["lora-ga", "rslora", "dora"], lambda d, k, r: pair(d, k, r) + d),
    # A start that is a step, made so small that half precision is told apart from it.
    "lora-one": ({"lora-one": {"gamma": 4096.0}}, pair),
    "lora-one+rslora+preconditioned": ([{"lora-one": {"gamma": 8192.0}}, "rslora", "preconditioned"], pair),
    "lora-one+dora": ([{"lora-one": {"gamma": 4096.0}}, "dora"], lambda d, k, r: pair(d, k, r) + d),
    "lora-sb": ("lora-sb", lambda d, k, r: r * r),
    "lora-sb-exact": ({"lora-sb": {"svd": "exact"}}, lambda d, k, r: r * r),
    "gora": ({"gora": {"least": 1.0, "most": 1.0, "step": 0.001}}, pair),
    "gora+lora+": ([{"gora": {"least": 1.0, "most": 1.0, "step": 0.001}}, "lora+"], pair),
    "goat": ({"goat": {"experts": 2}}, lambda d, k, r: pair(d, k, r) + 2 * k),
    "goat-lora": ({"goat": {"experts": 2, "init": "lora"}}, lambda d, k, r: pair(d, k, r) + 2 * k),
    "vera": ("vera", lambda d, k, r: r + d),
    "vera-saved": ({"vera": {"save_projection": True, "seed": 5}}, lambda d, k, r: r + d),
    "vera+dora": (["vera", "dora"], lambda d, k, r: r + 2 * d),
    "randlora": ("randlora", randlora),
    "randlora-sparse": ({"randlora": {"bases": "sparse", "by_count": True}}, randlora),
    "randlora-very-sparse+rslora": ([{"randlora": {"bases": "very-sparse"}}, "rslora"], randlora),
    "lotr": ("lotr", lambda d, k, r: r * r),
    "lotr+dora": ([{"lotr": {"init": "norm"}}, "dora"], lambda d, k, r: r * r + d),
    "galore": ("galore", lambda d, k, r: d * k),
    "dct-adamw": ("dct-adamw", lambda d, k, r: d * k),
    "fira": ("fira", lambda d, k, r: d * k),
    "frugal": ("frugal", lambda d, k, r: d * k),
    "flora": ("flora", lambda d, k, r: d * k),
    "fast-forward": ("fast-forward", pair),
    "fast-forward+dora": ([{"fast-forward": {"every": 1, "after": 0.0}}, "dora"], lambda d, k, r: pair(d, k, r) + d),
    "eva": ({"eva": {"rho": 1.0}}, pair),
    "eva+rslora+dora": ([{"eva": {"rho": 1.0}}, "rslora", "dora"], lambda d, k, r: pair(d, k, r) + d),
    "corda": ("corda", pair),
    "corda-kpm": ({"corda": {"mode": "kpm", "normalise": "max"}}, pair),
    "plop": ({"plop": {"kinds": 99}}, pair),
    "lamda++": ({"lamda++": {"spread": 0.0}}, pair),
    "comp-lora": ("comp-lora", pair),
    "gor": ("gor", pair),
    "norm-loss": ("norm-loss", pair),
    "orthonormal-constraint": ("orthonormal-constraint", pair),
    "spectral-reg": ("spectral-reg", pair),
    "lorb-correlation": ("lorb-correlation", pair),
    "allora": ("allora", pair),
    "loft": ("loft", pair),
    "lora-rite": ("lora-rite", pair),
    "lora-rite+pissa": (["lora-rite", "pissa"], pair),
    "riemannlora": ("riemannlora", pair),
    "low-rank-tickets": ("low-rank-tickets", pair),
    "lora-ggpo": ("lora-ggpo", pair),
    "coap": ({"coap": {"every": 2, "recompute": 2}}, lambda d, k, r: d * k),
    "online-subspace-descent": ("online-subspace-descent", lambda d, k, r: d * k),
    "blockllm": ({"blockllm": {"sparsity": 0.5, "every": 2}}, lambda d, k, r: d * k),
    "galore-plus": ({"galore-plus": {"head_size": 6, "warmup": 2}}, lambda d, k, r: d * k),
    "gradnormlorp": ("gradnormlorp", lambda d, k, r: d * k),
    "sst": ({"sst": {"every": 2, "warmup": 1}}, lambda d, k, r: min(d, k) * (d + k + 1)),
    "slope": ("slope", lambda d, k, r: d * k + pair(d, k, r)),
    "slope+lora": (["lora", {"slope": {"share": 0.5}}], lambda d, k, r: 2 * pair(d, k, r)),
    "welore": ({"welore": {"ranks": "recipe", "reduction": 0.9}}, pair),
    "svfit": ("svfit", lambda d, k, r: r),
    "svfit+dora": ([{"svfit": {"svd": "exact"}}, "dora"], lambda d, k, r: r + d),
    "loldu": ("loldu", lambda d, k, r: r),
    "curlora": ("curlora", lambda d, k, r: r * r),
    "curlora-released": ({"curlora": {"damping": 0.001, "replace": True}}, lambda d, k, r: r * r),
    "pmss": ("pmss", lambda d, k, r: r * r),
    "lora-mini": ({"lora-mini": {"width": 10}}, lambda d, k, r: 2 * 10 * r),
    "lora-mini+rslora+relora": (["lora-mini", "rslora", "relora"], lambda d, k, r: 2 * 64 * r),
    "lora2": ("lora2", lambda d, k, r: 8 * (d + k) + 2 * 8 * r + r),
    "lora2+dora": ([{"lora2": {"inner": 3}}, "dora"], lambda d, k, r: 3 * (d + k) + 7 * r + d),
    "lamda": ("lamda", lambda d, k, r: r * (d + r)),
    "lamda-svd+dora": ([{"lamda": {"init": "svd"}}, "dora"], lambda d, k, r: r * (d + r) + d),
    "salt": ("salt", lambda d, k, r: salt(d, k, r, 0.1)),
    "salt-half+dora": ([{"salt": {"ratio": 0.5}}, "dora"], lambda d, k, r: salt(d, k, r, 0.5) + d),
    "wara": ("wara", lambda d, k, r: 2 * pair(d, k, r)),
    "wara-tied+relora": ([{"wara": {"tied": True}}, "relora"], lambda d, k, r: pair(d, k, r) // 2),
    "sltrain": ("sltrain", lambda d, k, r: pair(d, k, r) + int(0.03 * d * k)),
    "sltrain+dora": ([{"sltrain": {"density": 0.2}}, "dora"], lambda d, k, r: pair(d, k, r) + int(0.2 * d * k) + d),
    "denselora": ("denselora", lambda d, k, r: r * r),
    "lors": ("lors", pair),
    "lors-released": ({"lors": {"gradient": "released"}}, pair),
    "reslora": ("reslora", lambda d, k, r: 0),
    "reslora+rslora+dora": ([{"reslora": {"previous": 3}}, "rslora", "dora"], lambda d, k, r: d),
    "lorta": ({"lorta": {"head_dim": 6}}, lambda d, k, r: 0),
    "lorta+dora": ([{"lorta": {"head_dim": 6}}, "dora"], lambda d, k, r: d),
    "dota": ("dota", lambda d, k, r: dota(d, k, r, 3)),
    "dota-2+dora": ([{"dota": {"cores": 2}}, "dora"], lambda d, k, r: dota(d, k, r, 2) + d),
    "eigenlorax": ({"eigenlorax": EIGENLORAX}, lambda d, k, r: 2 * 7 * r),
    "gradient-regularization": ("gradient-regularization", pair),
    "adversarial-model-perturbation": ({"adversarial-model-perturbation": {"steps": 2}}, pair),
    "sam": ("sam", pair),
    "booster": ({"booster": {"harmful": runs.other_rows()}}, pair),
    "bilora": ("bilora", lambda d, k, r: r * (d + k + 1)),
    "autolora": ("autolora", lambda d, k, r: r * (d + k + 1)),
    "autolora-ranks": ({"autolora-ranks": {"search": tiny.searched()}}, pair),
    "dora-dynamic": ({"dora-dynamic": {"over": 1.0}}, lambda d, k, r: r * (d + k + 1)),
    "ard-lora": ({"ard-lora": {"over": 1.0}}, lambda d, k, r: pair(d, k, r) + 1),
    "ard-lora+dora": ([{"ard-lora": {"over": 1.0}}, "dora"], lambda d, k, r: pair(d, k, r) + 1 + d),
    "maestro": ("maestro", pair),
    "cuttlefish": ({"cuttlefish": {"over": 1.0, "every": 2.0}}, pair),
    "weight-refactorization": ("weight-refactorization", pair),
    "fedsvd-both": ({"fedsvd": {"split": "both", "train_A": True, "moments": "momentum", "every": 2}}, pair),
    "lte": ({"lte": {"heads": 2, "merge": 1}}, lambda d, k, r: 2 * pair(d, k, r)),
    "diffora": ("diffora", lambda d, k, r: pair(d, k, r) + 1),
    "finegates": ("finegates", lambda d, k, r: pair(d, k, r) + d + k),
    "loram": ("loram", pair),
    "loraprune": ("loraprune", pair),
    "loraprune+rslora+lora+": ([{"loraprune": {"every": 1, "spare": True}}, "rslora", "lora+"], pair),
    "oft": ({"oft": {"oft_block_size": 4}}, lambda d, k, r: k // 4 * 6),
    "oft-exact": (
        {"oft": {"oft_block_size": 4, "use_cayley_neumann": False, "block_share": True}},
        lambda d, k, r: 6,
    ),
    "boft": ("boft", lambda d, k, r: 4 * k + d),
    "boft-butterflies": (
        {"boft": {"boft_block_size": 2, "boft_n_butterfly_factor": 2}},
        lambda d, k, r: 2 * 2 * k + d,
    ),
    "road": ({"road": {"group_size": 4}}, lambda d, k, r: d),
    "road-4": ({"road": {"group_size": 2, "variant": "road_4"}}, lambda d, k, r: 4 * d),
    "shira": ("shira", pair),
    "vblora": ({"vblora": {"num_vectors": 16, "vector_length": 4}}, lambda d, k, r: 16 * r * (d + k) // 4),
    "waveft": ({"waveft": {"n_frequency": 50}}, lambda d, k, r: 50),
    "pvera": ("pvera", lambda d, k, r: 2 * r + d),
    "tinylora": ({"tinylora": {"u": 5}}, lambda d, k, r: 0),
    "tinylora-exact+dora": ([{"tinylora": {"u": 5, "weight_tying": 0.5, "svd": "exact"}}, "dora"], lambda d, k, r: d),
    "unilora": ({"unilora": {"theta_d_length": 30}}, lambda d, k, r: 0),
    "osf": ("osf", lambda d, k, r: r * (d + k + 1)),
    "psoft": ("psoft", lambda d, k, r: r * (r - 1) // 2 + 2 * r),
    "psoft-series+dora": (
        [{"psoft": {"use_cayley_neumann": True, "psoft_mag_a": False, "svd": "randomized"}}, "dora"],
        lambda d, k, r: r * (r - 1) // 2 + r + d,
    ),
    "frod": ("frod", lambda d, k, r: k + max(1, int(k * k * 0.01))),
    "glora": ("glora", lambda d, k, r: 2 * pair(d, k, r)),
    "supertuning": ({"supertuning": {"sparsity": 0.9}}, lambda d, k, r: int(d * k * (1 - 0.9))),
    "peanut": ("peanut", lambda d, k, r: 2 * r * d),
    "peanut-deep": ({"peanut": {"depth": 2, "act_fn": "silu"}}, lambda d, k, r: 2 * r * d + 4 * r * r),
    "deft": ("deft", pair),
    "deft-qr": ({"deft": {"decomposition_method": "qr"}}, pair),
    "dress": ("dress", lambda d, k, r: d * k),
    "dress+lora": (["lora", {"dress": {"norm": "l1"}}], pair),
    "sara": ("sara", lambda d, k, r: int(0.05 * d * k)),
}
# Whose start is another one over a quantised base alone.
BY_ROUNDING = ("loftq",)
# What no LoRA of stock PEFT can say, by the beginnings of their cases.
NOT_A_LORA = (
    "alora",
    "blockllm",
    "boft",
    "bone",
    "c3a",
    "coap",
    "dct-adamw",
    "deft",
    "denselora",
    "dota",
    "dress",
    "finegates",
    "fira",
    "flora",
    "flora-batched",
    "fourierft",
    "frod",
    "frugal",
    "full",
    "galore",
    "glora",
    "goat",
    "gradnormlorp",
    "hira",
    "hra",
    "ia3",
    "kasa",
    "lokr",
    "lora-ensemble",
    "loraprune",
    "lorma",
    "lors",
    "mora",
    "oft",
    "online-subspace-descent",
    "peanut",
    "randlora",
    "remora",
    "road",
    "sara",
    "shira",
    "sst",
    "sltrain",
    "supertuning",
    "waveft",
)
# What no weight can say: the output is no linear function of the input.
NOT_MERGEABLE = ("alora", "denselora", "goat", "lora-ensemble")


def first_of_each_method() -> list[str]:
    """The first case that names it, for each method."""
    found: dict[str, str] = {}
    for case, (words, _) in CASES.items():
        for entry in recipe.parse_adapter({"method": words}).method:
            found.setdefault(entry.name, case)
    return list(dict.fromkeys(found.values()))


FIRSTS = first_of_each_method()
# What prunes blocks of which GPT-2 has none.
NOT_ON_GPT2 = ("dress", "loram", "loraprune")
# How a base stores its weights concerns an adapter's class and init, not each way to combine them: GPT-2, whose linear
# layers are stored (k, d), has a case for each method, and those whose options choose another class.
ON_GPT2 = [*(case for case in FIRSTS if case not in NOT_ON_GPT2), "mora-1", "lorma-pi"]


def has_own_form(case: str) -> bool:
    """Whether its method computes a layer's output in a way of its own: it builds the layer's adapter or wraps it.

    Of the others (inits, factors, optimisers, losses) that an adapter keeps its dtype, say, is what lora keeps.
    """
    entries = recipe.parse_adapter({"method": CASES[case][0]}).method
    parts = compose.compose((entry.name, entry.options) for entry in entries).parts
    return not BUILDERS.isdisjoint(entry.name for entry in entries) or any(type(p).wrap is not Part.wrap for p in parts)


def some(cases: Iterable[str], chosen: Container[str], *more: str) -> list[Any]:
    """The others run with --all alone."""
    return [pytest.param(case, *more, marks=[] if case in chosen else [pytest.mark.all]) for case in cases]


BUILDERS = {name for name, card in registry.methods().items() if card.builds}
FORMS = [case for case in FIRSTS if has_own_form(case)]
EVERY_CASE = pytest.mark.parametrize("case", CASES)
ONE_FOR_EACH = pytest.mark.parametrize("case", some(CASES, FIRSTS))
ONE_FOR_EACH_FORM = pytest.mark.parametrize("case", some(CASES, FORMS))
EVERY_BASE = pytest.mark.parametrize(
    ("case", "model_name"), [*some(CASES, CASES, "llama"), *some(ON_GPT2, FORMS, "gpt2")]
)
ONE_FOR_EACH_BASE = pytest.mark.parametrize(
    ("case", "model_name"), [*some(CASES, FIRSTS, "llama"), *some(ON_GPT2, FORMS, "gpt2")]
)
ONE_FOR_EACH_FORM_AND_BASE = pytest.mark.parametrize(
    ("case", "model_name"), [*some(CASES, FORMS, "llama"), *some(ON_GPT2, (), "gpt2")]
)


def attach(model: torch.nn.Module, case: str, seed: int = 0, **more: Any) -> Any:
    overrides = {tiny_target(model): {"rank": RANK + 2}}
    adapter = {"method": CASES[case][0], "rank": RANK, "overrides": overrides, **more}
    batches = [{"input_ids": ids, "labels": ids} for ids in (tiny.tokens(seed=8), tiny.tokens(seed=9))]
    return lrft.attach(model, adapter, seed=seed, batches=batches)


def composed(attached: Any) -> compose.Composition:
    return compose.compose((entry["name"], entry["options"]) for entry in attached.methods)


def late(attached: Any, size: float = 0.2) -> None:
    """Put trained tensors where no start is, at the end of a run of 100 steps."""
    tiny.disturb(list(attached.trained().values()), size=size)
    hooks(attached, "before_step", 99)


def hooks(attached: Any, name: str, step: int, optimizer: Any = None) -> None:
    """Call one hook of every part, as the training loop does."""
    composition = composed(attached)
    run = Run(step, 100, attached.model, attached.modules, optimizer, 0, lambda t: t)
    for part in composition.parts:
        getattr(part, name)(run)


def tiny_target(model: torch.nn.Module) -> str:
    """A layer that gets a rank of its own, so that ranks per module are never forgotten."""
    return "*.1.mlp.c_fc" if hasattr(model, "transformer") else "*.1.mlp.down_proj"


def compare_checkpointed(make: Callable[[], Any], case: str) -> None:
    """Gradients of a case's adapters over `make()`, by strength of checkpointing."""
    gradients = []
    for kind in ("none", "light", "medium", "full"):
        model, ids = make().train(), tiny.tokens()
        attached = attach(model, case)
        late(attached)
        if kind != "none":
            gradient_checkpointing.checkpoint(model, kind)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in attached.trained().items()})
    for name, plain in gradients[0].items():
        for again in gradients[1:]:
            assert torch.allclose(plain, again[name], rtol=1e-5, atol=1e-6), name


def check_fresh_equals_base(case: str, model_name: str) -> None:
    model, ids = tiny.make(model_name), tiny.tokens()
    before = tiny.logits(model, ids)
    if composed(attach(model, case)).init_changes_output and case not in BY_ROUNDING:
        assert not torch.equal(tiny.logits(model, ids), before)
        return
    assert (tiny.logits(model, ids) - before).abs().max() <= 1e-5 * before.abs().max()


def check_fast_path_equals_definition(case: str, model_name: str) -> None:
    model = tiny.make(model_name).double()
    attached = attach(model, case)
    late(attached)
    for name, layer in attached.layers().items():
        if not layer.adapter.mergeable:
            continue
        x = torch.randn(2, 3, layer.adapter.site.k, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        W = layer.adapter.weight(linear.dense(layer.base))
        expected = torch.nn.functional.linear(x, W, layer.base.bias)
        assert torch.allclose(layer(x), expected, rtol=1e-10, atol=1e-10), name
        assert torch.allclose(attached.delta(name), W - linear.dense(layer.base), rtol=1e-9, atol=1e-9), name


def check_gradients_reach_every_trained_tensor_by_the_second_step(case: str, model_name: str) -> None:
    model, ids = tiny.make(model_name).train(), tiny.tokens()
    attached = attach(model, case)
    start = attached.state_dict()
    ours = set(map(id, attached.tensors().values()))  # of these, parts may set the frozen ones
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if id(p) not in ours}
    optimizer = torch.optim.AdamW(attached.trained().values(), lr=1e-2)
    composition = composed(attached)
    for step in range(2):
        optimizer.zero_grad()
        run = Run(step, 100, model, attached.modules, optimizer, 0, lambda t: t, held_out=lambda: 1.0)
        for part in composition.parts:
            part.before_step(run)
        model(input_ids=ids, labels=ids).loss.backward()
        for part in composition.parts:
            part.after_backward(run)
        optimizer.step()
        for part in composition.parts:
            part.after_step(run)
    may_not_move = {role for part in composition.parts for role in part.may_not_move}
    for name, p in attached.trained().items():
        assert p.grad is not None, name
        if name.rsplit(".", 1)[-1] not in may_not_move:
            assert p.grad.abs().max() > 0, name
            assert not torch.equal(p.detach(), start[name]), name
    for name, p in model.named_parameters():
        if name in frozen:
            assert torch.equal(p, frozen[name]), name
