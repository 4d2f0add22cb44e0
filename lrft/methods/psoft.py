"""PSOFT, the weight's leading part turned inside. Wu et al., 2025, openreview FSHrinMArK; as in PEFT.

    W' = W + B (diag(b) R diag(a) - I) A,    R = (I + Q) (I - Q)^-1,    B = U S,  A = V'

U, S, V are the r leading singular triplets of W, Q is skew-symmetric; a and b start at one. pissa_init shares S out,
B = U sqrt(S), A = sqrt(S) V'. A factor alpha / r would be divided out of S again, so there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, FactoredDelta, Factors, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType
from lrft.adapters.svd import leading
from lrft.methods.oft import cayley, series


@dataclass(frozen=True)
class Psoft(Method):
    """Turns the weight's leading singular directions among each other, and scales them."""

    name: ClassVar[str] = "psoft"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "openreview FSHrinMArK"
    equation: ClassVar[str] = "W + U S (diag(b) R diag(a) - I) V', R orthogonal of r x r by Cayley's transform"
    parameters: ClassVar[str] = "r (r - 1) / 2 + 2 r"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, PEFT PSOFT, or merged model"
    evidence: ClassVar[str] = "forward, gradients, merge and frozen matrices compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 6e-4
    rate_source: ClassVar[str] = "as oft, whose rotations are made the same way"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta",)
    peft_type: ClassVar[str] = "PSOFT"

    ab_svd_init: Literal["psoft_init", "pissa_init"] = "psoft_init"
    """Where S stands: beside U, so that A has orthonormal rows, or its root on both sides."""
    psoft_mag_a: bool = True
    """Train a, a factor for each direction of the inputs."""
    psoft_mag_b: bool = True
    """Train b, a factor for each direction of the outputs."""
    use_cayley_neumann: bool = False
    """The cut series instead of the inverse: faster, and orthogonal only where Q is small."""
    num_cayley_neumann_terms: Annotated[int, Field(ge=2)] = 5
    """Terms of the series."""
    svd: Literal["exact", "randomized"] = "exact"
    """exact: the full decomposition, slow for large layers, which PEFT counts again; randomized: within 2 % of the
    leading energy, for which PEFT's own type has no word."""

    @classmethod
    def in_peft(cls) -> PeftType:
        words = ("ab_svd_init", "psoft_mag_a", "psoft_mag_b", "use_cayley_neumann", "num_cayley_neumann_terms")
        return PsoftType(
            "PSOFT",
            PsoftAdapter,
            {
                "Q": Named("psoft_R.weight", "n"),
                "a": Named("psoft_R.vector_a", "r"),
                "b": Named("psoft_R.vector_b", "r"),
            },
            options={word: word for word in words},
            fixed={"psoft_orth": (True,), "psoft_svd": ("full",), "cayley_neumann_eps": (None,)},
            training=("psoft_alpha", "psoft_svd_lowrank_niter", "random_seed"),
            dropout="psoft_dropout",
            whole=False,
        )

    def build(self, site: Site) -> Delta:
        most = min(site.d, site.k)
        if not 2 <= site.rank <= most:
            raise ValueError(f"psoft turns two to {most} singular directions of a {site.d} x {site.k} layer")
        return PsoftAdapter(site, self)

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        if self.svd == "exact":
            B, A = principal(W0, adapter.site.rank, self.ab_svd_init)
        else:
            U, S, V = leading(W0, adapter.site.rank)
            B, A = shared_out(U, S, V.T, self.ab_svd_init)
        adapter.A.copy_(A)
        adapter.B.copy_(B)


def principal(W: Tensor, r: int, how: str) -> tuple[Tensor, Tensor]:
    """B (d, r) and A (r, k) of W (d, k).

    A pair of singular vectors has no sign, yet which one it has matters here: R mixes the pairs. PEFT saves neither B
    nor A and takes what LAPACK gives for float32 on the CPU, so the same is asked here."""
    U, S, Vh = torch.linalg.svd(W.float().cpu(), full_matrices=False)
    return shared_out(U[:, :r], S[:r], Vh[:r], how)


def shared_out(U: Tensor, S: Tensor, Vh: Tensor, how: str) -> tuple[Tensor, Tensor]:
    return (U * S, Vh) if how == "psoft_init" else (U * S.sqrt(), S.sqrt()[:, None] * Vh)


class PsoftAdapter(FactoredDelta):
    """A (r, k) and B (d, r) frozen, set from the weight; Q (r (r - 1) / 2,) zero, an upper triangle row by row; a and b
    (r,) one, where they are trained."""

    upper: Tensor

    def __init__(self, site: Site, method: Psoft) -> None:
        super().__init__(site)
        r, self.how = site.rank, method.ab_svd_init
        self.terms = method.num_cayley_neumann_terms if method.use_cayley_neumann else 0
        self.A = nn.Parameter(torch.zeros(r, site.k, dtype=site.dtype), requires_grad=False)
        self.B = nn.Parameter(torch.zeros(site.d, r, dtype=site.dtype), requires_grad=False)
        self.Q = nn.Parameter(torch.zeros(r * (r - 1) // 2, dtype=site.dtype))
        self.a = nn.Parameter(torch.ones(r, dtype=site.dtype)) if method.psoft_mag_a else None
        self.b = nn.Parameter(torch.ones(r, dtype=site.dtype)) if method.psoft_mag_b else None
        self.register_buffer("upper", torch.triu_indices(r, r, 1), persistent=False)

    def change(self) -> Tensor:
        """diag(b) R diag(a) - I (r, r): a small turn keeps its digits."""
        r = self.site.rank
        Q = self.Q.new_zeros(r, r).index_put((self.upper[0], self.upper[1]), self.Q)
        Q = Q - Q.T
        turn = series(Q, self.terms) if self.terms else cayley(-Q)
        for factors in (self.a, None if self.b is None else self.b[:, None]):
            if factors is not None:
                turn = turn * factors + torch.diag(factors.flatten() - 1)
        return turn

    def factors(self) -> Factors:
        with torch.autocast(self.Q.device.type, enabled=False):
            return Factors(self.B @ self.change(), self.A, 1.0)


@dataclass(frozen=True)
class PsoftType(PeftType):
    """A file has Q, a and b alone: B and A are counted from the base again, here as in PEFT. Nothing in it can tell
    whether they come out as where it was trained; PEFT's own answer would be another there, too."""

    def unfit(self, adapters: Mapping[str, Any], weight: Callable[[Site], Tensor]) -> str:
        for name, own in adapters.items():
            B, A = principal(weight(own.site), own.site.rank, own.how)
            pairs = ((own.A.cpu(), A), (own.B.cpu(), B))
            if any((mine - theirs).abs().max() > 1e-3 * theirs.abs().max() for mine, theirs in pairs):
                return f"the singular vectors of {name} are not those that PEFT counts on this machine"
        return ""

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
            B, A = principal(weight(site), site.rank, method.ab_svd_init)
            made[site.name] = {**tensors[site.name], "A": A, "B": B}
        return made
