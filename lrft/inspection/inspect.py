"""Per-module analysis of an adapter's weight updates.

The base's safetensors files are read one target at a time; the model is built without its weights. Memory is that of
the adapter and of a few copies of the largest target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from lrft.adapters.adapter import Adapter, Delta, Factors, Site
from lrft.adapters.attached import SHARED
from lrft.adapters.peft_import import placed, read_peft
from lrft.adapters.storage import read_adapter
from lrft.errors import CheckFailed, UsageError
from lrft.export.merge import refuse_unmergeable
from lrft.export.merge_experts import is_expert, parts_of, weight_of_expert
from lrft.export.merge_head import stored_tensor
from lrft.export.merge_places import names_in, stored_weight, tensor_keys
from lrft.export.merge_shards import finite, refuse_unfit, thin, together, workers_for
from lrft.inspection import intruders, krylov, spectra
from lrft.inspection.beside import BesideReport, reports
from lrft.loading.base import base_of, refuse_other_base
from lrft.model.experts import word_of
from lrft.model.linear import as_rows
from lrft.model.load import load_skeleton
from lrft.model.stored import Stored
from lrft.model.weights import weight_files
from lrft.runs.locate import trusts_remote_code
from lrft.utils import hardware
from lrft.utils.adapter_folders import is_peft_folder
from lrft.utils.safetensors_stream import TensorReader

Key = TypeVar("Key")

KEPT = 64  # leading singular values of each spectrum that are written down
DIGITS = 6  # of a written singular value or cosine


@dataclass(frozen=True)
class Spectrum:
    """Frobenius norm, stable rank, and the KEPT largest singular values of a matrix."""

    norm: float
    stable_rank: float
    values: list[float]


@dataclass(frozen=True)
class UpdateSpectrum(Spectrum):
    effective_rank: float
    """needs all singular values, so it is computed for the update only"""


@dataclass(frozen=True)
class ModuleReport:
    """One adapted layer. `used_rank`: singular values of the update above `spectra.USED` of the largest."""

    name: str
    role: str
    """last component of the module name, such as q_proj"""
    depth: int | None
    d: int
    k: int
    rank: int
    """nominal rank of the site"""
    used_rank: int
    update: UpdateSpectrum
    base: Spectrum
    merged: Spectrum
    cosines: list[float]
    """per leading left singular vector of the merged weight: lower bound of its largest |cosine| with the base's"""
    cosines_at_most: list[float]
    """upper bound of the same: equal, or on the same side of epsilon"""
    intruders: int

    @property
    def relative(self) -> float | None:
        """Norm of the update over the base's; None over a base of zeros."""
        return self.update.norm / self.base.norm if self.base.norm else None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "relative": self.relative}


@dataclass(frozen=True)
class GroupReport:
    """Several modules together: norms over all of them, means of the ranks, the sum of the intruders."""

    modules: int
    norm: float
    relative: float | None
    stable_rank: float
    effective_rank: float
    used_rank: float
    intruders: int

    @classmethod
    def of(cls, modules: list[ModuleReport]) -> GroupReport:
        norm = math.hypot(*(one.update.norm for one in modules))
        below = math.hypot(*(one.base.norm for one in modules))

        def mean(values: Iterable[float]) -> float:
            return math.fsum(values) / len(modules)

        return cls(
            len(modules),
            norm,
            norm / below if below else None,
            mean(one.update.stable_rank for one in modules),
            mean(one.update.effective_rank for one in modules),
            mean(one.used_rank for one in modules),
            sum(one.intruders for one in modules),
        )


@dataclass(frozen=True)
class Inspection:
    """`modules` in the model's order."""

    adapter: str
    base: str
    methods: list[str]
    top: int
    epsilon: float
    modules: list[ModuleReport]
    left_out: list[str]
    """tensors of a PEFT folder that were not inspected"""
    beside: list[BesideReport] = field(default_factory=list)
    """what was trained beside the layers"""

    @property
    def total(self) -> GroupReport:
        return GroupReport.of(self.modules)

    @property
    def by_role(self) -> dict[str, GroupReport]:
        return grouped(self.modules, [one.role for one in self.modules])

    @property
    def by_depth(self) -> dict[int, GroupReport]:
        """Without the modules that lie outside the blocks."""
        inside = [(one, one.depth) for one in self.modules if one.depth is not None]
        found = grouped([one for one, _ in inside], [depth for _, depth in inside])
        return {depth: found[depth] for depth in sorted(found)}

    def to_dict(self) -> dict[str, Any]:
        return {
            "adapter": self.adapter,
            "base": self.base,
            "methods": self.methods,
            "top": self.top,
            "epsilon": self.epsilon,
            "used_threshold": spectra.USED,
            "total": asdict(self.total),
            "roles": {role: asdict(group) for role, group in self.by_role.items()},
            "depths": {str(depth): asdict(group) for depth, group in self.by_depth.items()},
            "modules": [one.to_dict() for one in self.modules],
            "left_out": self.left_out,
            "beside": [asdict(one) for one in self.beside],
        }


def inspect_adapter(
    adapter: Path,
    *,
    base_model: str | None = None,
    top: int = spectra.TOP,
    epsilon: float = spectra.EPSILON,
    accept_other_base: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Inspection:
    """Measure an adapter folder, lrft's or PEFT's.

    base_model  folder or hub id, when it is not where the adapter says
    top         leading singular vectors of each merged weight that may be intruders
    epsilon     one is an intruder when no |cosine| with a singular vector of the base reaches this
    Raises UsageError (no adapter, or none that a weight can say), MissingError (no base), CheckFailed (damaged, other
    base, not finite).
    """
    left_out: tuple[str, ...] = ()
    if is_peft_folder(adapter):
        folder = read_peft(adapter)
        left_out = folder.left_out
        if not folder.saved.sites and SHARED not in folder.saved.tensors:
            raise UsageError(f"{adapter} adapts no layer, so there is no update to measure")
        source = base_of(folder.saved, base_model)
        saved = folder.saved
    else:
        saved = read_adapter(adapter)
        refuse_unmergeable(saved)
        source = base_of(saved, base_model)
        refuse_other_base(saved, source, accept_other_base)
    weights = weight_files(source)
    skeleton = load_skeleton(source, trusts_remote_code(adapter), saved.head, saved.added)
    stored = Stored(skeleton, names_in(weights))
    saved = placed(saved, skeleton, partial(stored_weight, stored, weights))
    keys = tensor_keys(saved, stored)
    found: dict[str, ModuleReport] = {}
    lock = Lock()

    def look(reader: TensorReader, name: str, adapter: Adapter) -> None:
        site = adapter.site
        one = measured(site, adapter, weight_of(site, reader, name), top, epsilon)
        with lock:
            found[site.name] = one
            progress(len(found), len(saved.sites))

    with workers_for(saved) as workers:  # decompositions gain more from several modules at once than from more cores
        for path in weights:
            with TensorReader(path) as reader:
                here = [name for name in reader.entries if name in keys]
                # Built one by one, as the jobs are asked for: what is made from a seed uses the global generator.
                together((partial(look, reader, name, saved.build(keys[name])) for name in here), workers)
        for site in filter(is_expert, saved.sites):
            W0 = weight_of_expert(site, parts_of(site, stored), partial(stored_tensor, weights))
            found[site.name] = measured(site, saved.build(site), W0, top, epsilon)
            progress(len(found), len(saved.sites))
    return Inspection(
        str(adapter),
        base_model or saved.info["base"]["name"],
        [entry["name"] for entry in saved.info["methods"]],
        top,
        epsilon,
        [found[site.name] for site in saved.sites],
        list(left_out),
        reports(saved, skeleton, stored, weights),
    )


def weight_of(site: Site, reader: TensorReader, name: str) -> Tensor:
    """W0 (d, k) in the adapter's dtype."""
    refuse_unfit(site, reader.entries[name], reader.dtype(name))
    W0 = as_rows(reader.tensor(name), site.transposed).to(site.dtype)
    if not finite(W0):
        raise CheckFailed(f"{reader.path}: {name} holds values that are not finite")
    return W0


@torch.no_grad()
def measured(site: Site, adapter: Adapter, W0: Tensor, top: int, epsilon: float) -> ModuleReport:
    device = hardware.device()
    weight, update, rounding = changed(adapter, W0)
    if not finite(weight):
        raise CheckFailed(f"{site.name}: base and adapter together give values that are not finite")
    values = spectra.values_of_product(update) if isinstance(update, Factors) else spectra.singular_values(update)
    W0, weight = (matrix.to(device, torch.float64) for matrix in (W0, weight))
    count = max(KEPT, top)
    before = krylov.leading(W0, count, 0) or spectra.decomposed(W0)
    after = krylov.leading(weight, count, top) or spectra.decomposed(weight)
    low, high = intruders.nearest(W0, before, after.vectors[:, :top], epsilon)
    return ModuleReport(
        name=site.name,
        role=word_of(site.name),
        depth=site.depth,
        d=site.d,
        k=site.k,
        rank=site.rank,
        used_rank=spectra.used_rank(values, rounding),
        update=UpdateSpectrum(*read_off(spectra.norm(values), values), effective_rank=spectra.effective_rank(values)),
        base=Spectrum(*read_off(spectra.norm(W0), before.values)),
        merged=Spectrum(*read_off(spectra.norm(weight), after.values)),
        cosines=[digits(cosine) for cosine in low.tolist()],
        cosines_at_most=[digits(cosine) for cosine in high.tolist()],
        intruders=int((high < epsilon).sum()),
    )


def read_off(norm: float, values: Tensor) -> tuple[float, float, list[float]]:
    """What a Spectrum holds of a matrix of this norm with these leading singular values."""
    return norm, spectra.stable_rank(norm, values[0].item()), [digits(value) for value in values[:KEPT].tolist()]


def changed(adapter: Adapter, W0: Tensor) -> tuple[Tensor, Tensor | Factors, float]:
    """(adapted weight (d, k), its update, what singular values rounding alone may give the update)."""
    factors = thin(adapter)
    if factors is not None:
        return torch.addmm(W0, factors.B, factors.A, alpha=factors.scale), factors, 0.0
    if isinstance(adapter, Delta):
        update = adapter.delta_weight()
        return W0 + update, update, 0.0
    weight = adapter.weight(W0)
    rounding = 4 * torch.finfo(W0.dtype).eps * torch.linalg.vector_norm(W0).item()
    return weight, weight.double() - W0.double(), rounding


def digits(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def grouped(modules: Sequence[ModuleReport], keys: Sequence[Key]) -> dict[Key, GroupReport]:
    """Modules with the same key together, in the order of their first one."""
    members: dict[Key, list[ModuleReport]] = {}
    for one, key in zip(modules, keys, strict=True):
        members.setdefault(key, []).append(one)
    return {key: GroupReport.of(found) for key, found in members.items()}
