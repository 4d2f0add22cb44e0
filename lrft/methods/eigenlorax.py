"""EigenLoRAx. Kaushik et al., 2025, arXiv 2502.04700: new adapters in the principal subspace of existing ones.

For each layer the columns of all given B, and those of all A', lie side by side; their mean is subtracted and not added
again; the first leading singular vectors of what is left, and random vectors orthogonal to them, are the frozen bases:
    dW = B_out B_in A_in A_out,    A_out (n, k), B_out (d, n) the bases, A_in (r, n) and B_in (n, r) trained
The released code starts both trained matrices at random or at a projected adapter, off the base; here B_in is zero,
which is a reconstruction. There is no factor alpha / r, and that of the given adapters does not matter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lrft.adapters import svd
from lrft.adapters.adapter import Delta, Site
from lrft.adapters.calibration import CalibrationContext
from lrft.adapters.part import CalibrationResult, Method
from lrft.methods.lora_mini import FourFactors
from lrft.utils.seeds import seed_of


@dataclass(frozen=True)
class Eigenlorax(Method):
    """Trains coefficients of directions that LoRAs of the same base, trained on other tasks, have in common."""

    name: ClassVar[str] = "eigenlorax"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2502.04700"
    equation: ClassVar[str] = "W + B_out B_in A_in A_out, the outer ones principal directions of given LoRAs"
    parameters: ClassVar[str] = "2 r n, n = components + random"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, or merged model"
    evidence: ClassVar[str] = "bases and update compared with the released code; the init is a reconstruction"
    learning_rate: ClassVar[float] = 4e-3
    rate_source: ClassVar[str] = "released scripts"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta",)

    adapters: str = ""
    """A folder: every adapter_model.safetensors in or below it is one of the given LoRAs, in PEFT's format."""
    components: Annotated[int, Field(ge=1)] = 32
    """Principal directions for each of A and B. The paper's example: 32."""
    random: Annotated[int, Field(ge=0)] = 32
    """Additional random directions. The paper's example for few given adapters: 32."""

    def build(self, site: Site) -> Delta:
        width, most = self.components + self.random, min(site.d, site.k)
        if width > most:
            raise ValueError(f"a {site.d} x {site.k} layer has {most} directions: lower components or random, {width}")
        return EigenloraxAdapter(site, width)

    def calibrate(self, context: CalibrationContext) -> CalibrationResult:
        """For each site its "A" (n, k) and "B" (d, n)."""
        given = read(self.adapters)
        found = {
            site.name: {word: self.basis(given, site, word, context.seed) for word in "AB"} for site in context.sites
        }
        agreed: CalibrationResult = context.agree(found)
        return agreed

    def basis(self, given: Mapping[Path, Mapping[str, Tensor]], site: Site, word: str, seed: int) -> Tensor:
        size, columns = (site.k if word == "A" else site.d), []
        for file, tensors in given.items():
            key = f"base_model.model.{site.name}.lora_{word}.weight"
            shape = tuple(tensors[key].shape) if key in tensors else None
            if shape is None or shape[word == "A"] != size:
                raise ValueError(f"{file} has {shape or 'no tensor'} for {key}: another base, or other target_modules")
            columns.append(tensors[key].to(site.dtype).T if word == "A" else tensors[key].to(site.dtype))
        stacked = torch.cat(columns, dim=1)
        if self.components > min(stacked.shape):
            raise ValueError(f"{min(stacked.shape)} directions are given for {site.name}: lower components")
        first, _, _ = svd.exact(stacked - stacked.mean(dim=1, keepdim=True), self.components)
        generator = torch.Generator().manual_seed(seed_of(seed, self.name, site.name, word))
        more = torch.rand(size, self.random, generator=generator, device="cpu").to(site.dtype)
        basis = torch.cat([first, torch.linalg.qr(torch.cat([first, more], dim=1)).Q[:, self.components :]], dim=1)
        return basis.T if word == "A" else basis

    def initialize_from(self, adapter: Any, W0: Tensor, seen: Mapping[str, Tensor]) -> None:
        adapter.A_out.copy_(seen["A"])
        adapter.B_out.copy_(seen["B"])


def read(folder: str) -> dict[Path, dict[str, Tensor]]:
    """The given LoRAs by file. Raises ValueError when there are none, or unreadable ones, or several bases."""
    if not folder:
        raise ValueError("needs LoRAs of the same base: name their folder, {eigenlorax: {adapters: FOLDER}}")
    files = sorted(Path(folder).rglob("adapter_model.safetensors"))
    if not files:
        raise ValueError(f"finds no adapter_model.safetensors in or below {folder}")
    found, bases = {}, set()
    for file in files:
        try:
            config = json.loads((file.parent / "adapter_config.json").read_text(encoding="utf-8"))
            found[file] = load_file(file)
        except (OSError, ValueError, SafetensorError) as error:
            raise ValueError(f"cannot read {file} and its adapter_config.json: {error}") from None
        bases.add(str(config.get("base_model_name_or_path")))
    if len(bases) > 1:
        raise ValueError(f"finds adapters of several bases below {folder}: {', '.join(sorted(bases))}")
    return found


class EigenloraxAdapter(FourFactors):
    """A_out and B_out frozen, set from the given adapters; A_in uniform in +-1/2, B_in zero."""

    def __init__(self, site: Site, width: int) -> None:
        super().__init__(site, width)
        nn.init.uniform_(self.A_in, -0.5, 0.5)
        self.A_out = nn.Parameter(torch.zeros(width, site.k, dtype=site.dtype), requires_grad=False)
        self.B_out = nn.Parameter(torch.zeros(site.d, width, dtype=site.dtype), requires_grad=False)
