"""FRoD, weights in a basis that all layers of a kind have in common. AAAI 2026, doi 10.1609/aaai.v40i31.39813.

    W_i = U_i diag(l_i) V'    for the layers i of one kind, with one V (k, k) and columns of U_i of length one,
    W_i' = U_i (diag(l_i + z_i) + S_i) V',    S_i zero but for the same few entries off the diagonal

U_i = W_i V'^-1 diag(1 / l_i), so W_i' x = W_i (x + V'^-1 diag(1 / l_i) (diag(z_i) + S_i) V' x): no U is kept.
V = R' E as in PEFT: Q R are all W_i below each other, Q_i the rows of W_i, E the eigenvectors of the mean of
(Q_i' Q_i + alpha I)^-1; of fewer rows than columns, V has the right singular vectors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import dropout

from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.calibration import CalibrationContext
from lrft.adapters.part import CalibrationResult, Method
from lrft.adapters.peft_type import Named, PeftType
from lrft.model import linear as layers

LEAST = 1e-3
"""of the largest value: what is smaller is none, and U has no direction for it. Kinds of layers with fewer outputs in
all than inputs have such."""


@dataclass(frozen=True)
class Frod(Method):
    """Trains the weight's own values in a basis that the layers of a kind share, and a few entries that mix its
    directions."""

    name: ClassVar[str] = "frod"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "doi 10.1609/aaai.v40i31.39813"
    equation: ClassVar[str] = "U (diag(l + z) + S) V', W = U diag(l) V' with one V for the layers of a kind, S sparse"
    parameters: ClassVar[str] = "k + sparse_rate k^2; the rank is not used"
    exports: ClassVar[str] = "PEFT FROD, or merged model"
    evidence: ClassVar[str] = "basis, places, forward, gradients and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 2e-3
    rate_source: ClassVar[str] = "ours: a third of svfit's, for values that are below one"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    peft_type: ClassVar[str] = "FROD"

    sparse_rate: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Entries of S, over k^2."""
    projection_prng_key: Annotated[int, Field(ge=0, lt=9223372036854775808)] = 0
    """Seed of their places, which are saved."""
    regularization_alpha: Annotated[float, Field(gt=0)] = 1e-3
    """What is added to the diagonal of Q_i' Q_i before it is inverted."""

    @classmethod
    def in_peft(cls) -> PeftType:
        words = ("sparse_rate", "projection_prng_key", "regularization_alpha")
        return FrodType(
            "FROD",
            FrodAdapter,
            {"s": Named("frod_lambda_s_values", "n"), "z": Named("frod_lambda_l", "k")},
            options={word: word for word in words},
            fixed={"save_projection": (True,)},
            rank="",
            training=("progressbar", "runtime_offload_base_weight"),
            dropout="frod_dropout",
            conv1d=True,
            shared={"V": Named("frod_V", "kk"), "places": Named("frod_s_indices", "in")},
            whole=False,
        )

    def shared(self, sites: Sequence[Site]) -> nn.Module:
        return Bases(sites, self)

    def build(self, site: Site) -> Adapter:
        return FrodAdapter(site, self.entries(site.k))

    def entries(self, k: int) -> int:
        if k < 2:
            raise ValueError("frod's entries are off a diagonal: it needs two inputs")
        return max(1, min(int(k * k * self.sparse_rate), k * k - k))

    def calibrate(self, context: CalibrationContext) -> CalibrationResult:
        """V of every kind of layers, from their weights alone."""
        found: dict[str, dict[str, Tensor]] = {}
        for sites in kinds(context.sites).values():
            V = context.agree(basis(sites, context.weight, self.regularization_alpha))
            found |= {site.name: {"V": V} for site in sites}
        return found

    def initialize_from(self, adapter: Any, W0: Tensor, seen: Mapping[str, Tensor]) -> None:
        V = adapter.shared.V[kind_of(adapter.site.name)]
        V.copy_(seen["V"])
        adapter.start.copy_(values(W0, V))


def kind_of(name: str) -> str:
    """The word that layers of one kind have in common: the last two of a name; the last where it follows a number."""
    words = name.split(".")
    if len(words) == 1 or words[-2].isdigit():
        return words[-1]
    if words[-3:] == ["attention", "output", "dense"]:
        return "attention_output"
    return "_".join(words[-2:])


def kinds(sites: Sequence[Site]) -> dict[str, list[Site]]:
    """In the order of their words. Raises ValueError for a kind whose layers have different inputs."""
    found: dict[str, list[Site]] = {}
    for site in sites:
        found.setdefault(kind_of(site.name), []).append(site)
    for kind, members in found.items():
        if odd := next((site for site in members if site.k != members[0].k), None):
            raise ValueError(
                f"frod has one basis for all layers that are called {kind}, and {odd.name} has {odd.k} inputs where "
                f"{members[0].name} has {members[0].k}: leave one of them out"
            )
    return dict(sorted(found.items()))


def basis(sites: Sequence[Site], weight: Callable[[Site], Tensor], ridge: float) -> Tensor:
    """V (k, k) of the layers of one kind, in float32 on the CPU: the very operations of PEFT, which counts it again
    when it loads a file. Where values are the same, as of two layers with half as many outputs as inputs each, rounding
    decides."""
    by_block = sorted(sites, key=lambda site: -1 if site.depth is None else site.depth)
    weights = [weight(site).float().cpu() for site in by_block]
    below, k = torch.cat(weights), sites[0].k
    if len(below) < k:
        return torch.linalg.svd(below, full_matrices=True).Vh.T
    Q, R = torch.linalg.qr(below)
    eye = torch.eye(k, dtype=below.dtype)
    inverses = [torch.linalg.inv(rows.T @ rows + ridge * eye) for rows in Q.split([len(W) for W in weights])]
    mean: Tensor = sum(inverses[1:], inverses[0]) / len(inverses)
    return R.T @ torch.linalg.eigh(mean).eigenvectors


def values(W: Tensor, V: Tensor) -> Tensor:
    """l (k,): the lengths of the columns of W V'^-1."""
    return torch.linalg.solve(V.double(), W.double().T).norm(dim=1)


def without_value(start: Tensor) -> Tensor:
    """(k,) bool of l."""
    return start <= LEAST * start.max()


class Bases(nn.Module):
    """By kind of layers: V (k, k), and the places (2, n) of the entries of S, rows and columns; frozen."""

    def __init__(self, sites: Sequence[Site], method: Frod) -> None:
        super().__init__()
        self.V, self.places = nn.ParameterDict(), nn.ParameterDict()
        self.ridge = method.regularization_alpha
        self.inverses: dict[str, tuple[int, Tensor]] = {}
        generator = torch.Generator().manual_seed(method.projection_prng_key)
        for kind, members in kinds(sites).items():
            k = members[0].k
            drawn = torch.randperm(k * k - k, generator=generator)[: method.entries(k)]
            rows, columns = drawn // (k - 1), drawn % (k - 1)
            places = torch.stack([rows, columns + (columns >= rows)]).int()
            self.V[kind] = nn.Parameter(torch.eye(k, dtype=members[0].dtype), requires_grad=False)
            self.places[kind] = nn.Parameter(places, requires_grad=False)

    def inverse(self, kind: str) -> Tensor:
        """V^-1 (k, k), made again when V was written to."""
        V = self.V[kind]
        known = self.inverses.get(kind)
        if known is None or known[0] != V._version or known[1].device != V.device:
            known = V._version, torch.linalg.inv(V.double()).to(V.dtype)
            self.inverses[kind] = known
        return known[1]


class FrodAdapter(Adapter):
    """z (k,) and s (n,) zero; start (k,), which is l, frozen and set from the weight."""

    def __init__(self, site: Site, entries: int) -> None:
        super().__init__(site)
        self.kind = kind_of(site.name)
        self.z = nn.Parameter(torch.zeros(site.k, dtype=site.dtype))
        self.s = nn.Parameter(torch.zeros(entries, dtype=site.dtype))
        self.start = nn.Parameter(torch.ones(site.k, dtype=site.dtype), requires_grad=False)

    def change(self, x: Tensor) -> Tensor:
        """V'^-1 diag(1 / l) (diag(z) + S) V' x for x (..., k); directions without a value stay as they are."""
        rows, columns = self.shared.places[self.kind].long()
        S = torch.diag(self.z).index_put((rows, columns), self.s)
        share = torch.where(without_value(self.start), 0, 1 / self.start)
        return (x @ self.shared.V[self.kind] @ S.T * share) @ self.shared.inverse(self.kind)

    def weight(self, W0: Tensor) -> Tensor:
        eye = torch.eye(self.site.k, dtype=W0.dtype, device=W0.device)
        return W0 + W0 @ self.change(eye).T

    def forward(self, x: Tensor, base: Any) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            seen = x.to(self.site.dtype)
            seen = dropout(seen, self.dropout) if self.dropout and self.training else seen
            change = self.change(seen).to(layers.dtype(base))
        y = base(x)
        return y + layers.product(base, change).to(y.dtype)


@dataclass(frozen=True)
class FrodType(PeftType):
    """A file has l + z, and the bases and places of every kind of layers; l is counted from the base."""

    def config(self, method: Any, adapters: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
        return super().config(method, adapters, modules) | {"progressbar": False}

    def unfit(self, adapters: Mapping[str, Any], weight: Callable[[Site], Tensor]) -> str:
        """PEFT counts U with a V that it counts again, not with that of the file: both have to be the same."""
        for kind, sites in kinds([adapter.site for adapter in adapters.values()]).items():
            shared = adapters[sites[0].name].shared
            V, own = basis(sites, weight, shared.ridge), shared.V[kind].cpu()
            if (V - own).abs().max() > 1e-4 * V.abs().max():
                return f"the basis of {kind} is not the one that PEFT counts on this machine"
        for name, adapter in adapters.items():
            none = without_value(adapter.start)
            rows = adapter.shared.places[adapter.kind][0].long()
            if adapter.z[none].any() or adapter.s[none[rows]].any():
                return f"{name} has numbers in directions in which the weights have no value"
        return ""

    def written(self, adapter: Any) -> dict[str, Tensor]:
        return {self.tensors["s"].ending: adapter.s, self.tensors["z"].ending: adapter.start + adapter.z}

    def shared_of(self, shared: Any, sites: Sequence[Site]) -> dict[str, Tensor]:
        found = {f"frod_V.{kind}": V for kind, V in shared.V.items()}
        found |= {f"frod_s_indices.{kind}": places.long() for kind, places in shared.places.items()}
        return found | {f"frod_s_size.{kind}": torch.tensor(V.shape) for kind, V in shared.V.items()}

    def common(self, ending: str) -> str:
        found = re.fullmatch(r"frod_(V|s_indices|s_size)\.(.+)", ending)
        return f"{'places' if found[1] == 's_indices' else found[1]}.{found[2]}" if found else ""

    def read_shared(self, shared: Mapping[str, Tensor], sites: Sequence[Site]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in shared.items() if not name.startswith("s_size.")}

    def completed(
        self,
        method: Any,
        tensors: Mapping[str, Mapping[str, Tensor]],
        shared: Mapping[str, Tensor],
        sites: Sequence[Site],
        weight: Callable[[Site], Tensor],
    ) -> dict[str, dict[str, Tensor]]:
        made = {}
        for site in sites:
            own, kind = tensors[site.name], f"V.{kind_of(site.name)}"
            if kind not in shared:
                raise ValueError(f"{site.name}: its file lacks the basis {kind}")
            start = values(weight(site), shared[kind])
            z, none = own["z"] - start, without_value(start)
            moved = z.abs() > LEAST * start.max()
            rows = shared[f"places.{kind_of(site.name)}"][0]
            if (moved & none).any() or (own["s"] != 0)[none[rows]].any():
                raise ValueError(
                    f"{site.name}: its file changes directions in which the weights have no value, and what PEFT takes "
                    f"for U there is rounding"
                )
            made[site.name] = {"s": own["s"], "start": start.float(), "z": z.float()}
        return made
