"""A nuclear norm penalty. Scarvelis, Solomon, 2024, arXiv 2405.14544.

On the update dW = s B A, which is the paper's identity applied to the factors of a LoRA (forms bound and exact):

    |dW|_* = min over factors of s (|A|^2 + |B|^2) / 2,    with equality where A and B are balanced

AdamW's weight decay is not this term: it is not part of the gradient that Adam divides by its size.

On the Jacobian of the network f = g h, the paper's own subject (form jacobian):

    |J f|_* <= (|J h|^2 + |J g|^2) / 2,    |J h|^2 = E |h(x + t e) - h(x)|^2 / t^2 for small t, e from N(0, 1)

h leads from the embeddings to a block, g from there to the last hidden states at the tokens that predict. One pass of
noise serves both: g begins with the undisturbed h(x) and noise of its own. Dropout masks are those of the pass without
noise. Each token's hidden state is measured in units of its root mean square, at all three places: the paper has
absolute units, in which the halves of a decoder differ by orders of magnitude.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.adapter import Adapter, Delta, Factors, Site
from lrft.adapters.gradients import FurtherPasses
from lrft.adapters.part import Outputs, Part, Run
from lrft.model.halves import Seen, in_halves

TINY = 1e-12  # of a hidden state that is zero


@dataclass(frozen=True)
class NuclearNorm(Part):
    """Adds the sum of singular values to the loss, or a bound on it: of the update, or of the network's Jacobian."""

    name: ClassVar[str] = "nuclear-norm"
    kind: ClassVar[str] = "regulariser"
    paper: ClassVar[str] = "arXiv 2405.14544"
    equation: ClassVar[str] = "loss + c sum over layers |dW|_*, at most s (|A|^2 + |B|^2) / 2"
    evidence: ClassVar[str] = (
        "penalty compared with the singular values of the dense update; form: jacobian with those of the dense Jacobian"
    )
    requires: ClassVar[tuple[str, ...]] = ("pair",)
    only_with: ClassVar[dict[str, Any]] = {"split": ("form", ("jacobian",)), "noise": ("form", ("jacobian",))}

    strength: Annotated[float, Field(ge=0)] = 1e-4
    """c, weight of the penalty; no published value for adapters, default chosen by lrft."""
    form: Literal["bound", "exact", "jacobian"] = "bound"
    """bound: the squares of A and B; exact: the singular values themselves, by a decomposition of r x r; jacobian: not
    of the update, but of what the network does to its embeddings, by two more passes in each step."""
    after: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the run without the term: the bound would shrink A before B has grown. The default is ours."""
    split: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the blocks in h, the first half, of form: jacobian. The default is ours."""
    noise: Annotated[float, Field(gt=0)] = 0.01
    """Size t of the noise of form: jacobian, over a hidden state's root mean square. In bf16 rounding is about as large
    as the default's."""

    def advice(self, sites: Sequence[Site], offset_from_init: bool) -> list[str]:
        if not offset_from_init or self.form != "bound":
            return []
        return ["nuclear-norm: A and B do not start at zero here, and the bound is loose; consider form: exact."]

    def begun(self, run: Run) -> bool:
        return run.step >= self.after * run.total_steps

    def loss(self, run: Run) -> Tensor | None:
        if self.form == "jacobian" or not self.begun(run):
            return None
        measure = nuclear_norm if self.form == "exact" else bound
        return self.strength * torch.stack([measure(factors_of(a)) for a in run.adapters.values()]).sum()

    @property
    def looks_at_outputs(self) -> bool:
        return self.form == "jacobian"

    @property
    def further_passes(self) -> FurtherPasses:
        return FurtherPasses(own=2 if self.form == "jacobian" else 0)

    def output_loss(self, run: Run, outputs: Outputs) -> Tensor | None:
        if self.form != "jacobian" or not self.begun(run):
            return None
        seed = int(torch.randint(2**62, ()))  # of the generator that the caller has seeded

        def passed(**changes: Any) -> Seen:
            torch.manual_seed(seed)
            with in_halves(run.model, self.split, **changes) as seen:
                outputs.pass_again()
            return seen

        plain = passed()
        x, h = (
            state + self.noise * units(state).to(state.dtype) * torch.randn_like(state)
            for state in (plain.first, plain.middle)
        )
        noisy = passed(at_first=lambda _: x, at_middle=lambda _: h)
        squares = [
            relative_squares(disturbed[outputs.places], state[outputs.places]).sum()
            for disturbed, state in ((noisy.middle, plain.middle), (noisy.last, plain.last))
        ]
        return self.strength * torch.stack(squares).sum() / (2 * self.noise**2 * len(outputs.targets))


def wide(hidden: Tensor) -> Tensor:
    """In at least float32."""
    return hidden.to(torch.promote_types(hidden.dtype, torch.float32))


def units(hidden: Tensor) -> Tensor:
    """(..., 1): the root mean square of each hidden state, a constant."""
    return wide(hidden.detach()).square().mean(-1, keepdim=True).sqrt()


def relative_squares(disturbed: Tensor, hidden: Tensor) -> Tensor:
    """(n,): |disturbed - hidden|^2 of hidden states (n, width), in units of theirs."""
    return ((wide(disturbed) - wide(hidden)) / units(hidden).clamp_min(TINY)).square().sum(-1)


def factors_of(adapter: Adapter) -> Factors:
    """Factors of the outermost update that is added to the weight, whatever wraps it."""
    delta = next(module for module in adapter.modules() if isinstance(module, Delta))
    factors = delta.factors()
    if factors is None:
        raise TypeError(f"{adapter.site.name}: the update has no factors")
    return factors


def bound(factors: Factors) -> Tensor:
    """s (|A|^2 + |B|^2) / 2, at least the nuclear norm of s B A."""
    B, A, s = factors
    return s / 2 * (A.square().sum() + B.square().sum())


def nuclear_norm(factors: Factors) -> Tensor:
    """The sum of the singular values of s B A, with the subgradient U V', zero where a singular value is zero.

    The gradient does not go through the decomposition, which has none for equal singular values: sum(U' dW V) with U
    and V held fixed is the same number with the same gradient.
    """
    B, A, s = factors
    with torch.no_grad():
        Q, R = torch.linalg.qr(B)
        P, T = torch.linalg.qr(A.T)
        u, S, vh = torch.linalg.svd(R @ T.T, full_matrices=False)
        rounding = len(S) * torch.finfo(S.dtype).eps * S.max()
        u *= S.gt(rounding)
        U, V = Q @ u, P @ vh.T
    return s * ((U.T @ B) * (A @ V).T).sum()
