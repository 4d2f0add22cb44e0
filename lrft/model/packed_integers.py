"""Weights as GPTQ and AWQ store them: integers of a few bits, several in an int32, with a scale and a zero for each
group of inputs. W = scale * (integer - zero).

transformers reads them by gptqmodel alone, which compiles kernels when a model is loaded. The formats are those of the
libraries that introduced them:

    gptq   AutoGPTQ: an int32 holds inputs that follow each other, lowest bits first; zeros are stored less one, but
           under `checkpoint_format: gptq_v2`; g_idx is the group of each input
    awq    AutoAWQ's GEMM: an int32 holds eight outputs in the order 0 2 4 6 1 3 5 7; groups are inputs in turn
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrft.errors import LrftError
from lrft.model.weights import weight_files
from lrft.utils.safetensors_stream import DTYPES, Entry, TensorReader, TensorWriter, raw

PARTS = ("qweight", "qzeros", "scales", "g_idx")
"""the tensors of a layer in the place of its weight; g_idx of gptq alone, and not of all"""
BITS = (2, 4, 8)
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
FORMATS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
WORDS = {dtype: word for word, dtype in DTYPES.items()}


def form_of(method: str, section: Mapping[str, Any]) -> str:
    """Which layout of the format a checkpoint's `quantization_config` names. Raises LrftError for an unknown one."""
    key = "checkpoint_format" if method == "gptq" else "version"
    form = str(section.get(key) or section.get("format") or FORMATS[method][0]).lower()
    if form not in FORMATS[method]:
        raise LrftError(f"{key} {form} of {method} cannot be read: only {' and '.join(FORMATS[method])}")
    return form


def unpack(packed: Tensor, bits: int) -> Tensor:
    """int32 (..., n) -> int32 (..., n, 32 / bits), lowest bits first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return (packed[..., None] >> shifts) & (2**bits - 1)


def of_gptq(parts: Mapping[str, Tensor], bits: int, form: str) -> Tensor:
    """W (d, k) in float32 of qweight (k bits / 32, d), qzeros (groups, d bits / 32), scales (groups, d), g_idx (k,)."""
    codes = unpack(parts["qweight"].T, bits).flatten(1)
    zeros = unpack(parts["qzeros"], bits).flatten(1) + (0 if form == "gptq_v2" else 1)
    k, groups = codes.shape[1], len(parts["scales"])
    group = parts["g_idx"].long() if "g_idx" in parts else torch.arange(k) // (k // groups)
    scales = parts["scales"].float()
    return (codes - zeros.T[:, group]) * scales.T[:, group]


def of_awq(parts: Mapping[str, Tensor]) -> Tensor:
    """W (d, k) in float32 from qweight (k, d / 8), qzeros (groups, d / 8) and scales (groups, d)."""
    codes, zeros = (in_order(unpack(parts[name], 4)) for name in ("qweight", "qzeros"))
    each = len(codes) // len(zeros)
    scales = parts["scales"].float()
    return ((codes - zeros.repeat_interleave(each, 0)) * scales.repeat_interleave(each, 0)).T


def in_order(values: Tensor) -> Tensor:
    """(rows, n, 8) as AWQ interleaves them -> (rows, 8 n)."""
    return values[..., torch.tensor(ORDER).argsort()].flatten(1)


class Packed:
    """The packed layers of a model folder, over all its files."""

    def __init__(self, readers: list[TensorReader], method: str, section: Mapping[str, Any]) -> None:
        """Raises LrftError for a layout that cannot be read, and for parts without the others of their layer."""
        self.method, self.form = method, form_of(method, section)
        self.bits = int(section.get("bits") or section.get("w_bit") or 4)
        self.readers = {name: reader for reader in readers for name in reader.entries}
        self.layers = {name.removesuffix(".qweight") for name in self.readers if name.endswith(".qweight")}
        for name in self.readers:
            layer, _, part = name.rpartition(".")
            if part in PARTS and layer not in self.layers:
                raise LrftError(f"{name} belongs to no packed weight: this kind of {method} cannot be read")
        for layer in sorted(self.layers):
            absent = [part for part in PARTS[:3] if f"{layer}.{part}" not in self.readers]
            if absent:
                raise LrftError(f"{layer} has no {absent[0]}: this kind of {method} cannot be read")
            if self.bits_of(layer) not in (BITS if method == "gptq" else (4,)):
                raise LrftError(f"{layer} has {self.bits_of(layer)} bits: this kind of {method} cannot be read")

    def entry(self, layer: str, part: str) -> Entry | None:
        reader = self.readers.get(f"{layer}.{part}")
        return None if reader is None else reader.entries[f"{layer}.{part}"]

    def bits_of(self, layer: str) -> int:
        """By the shapes where they say it: layers may have other bits than the configuration names."""
        qweight, groups = self.entry(layer, "qweight"), self.entry(layer, "g_idx")
        if self.method == "awq" or qweight is None or groups is None:
            return self.bits
        return 32 * qweight.shape[0] // groups.shape[0]

    def shape(self, layer: str) -> tuple[int, int]:
        """(d, k)"""
        qweight = self.readers[f"{layer}.qweight"].entries[f"{layer}.qweight"].shape
        each = 32 // self.bits_of(layer)
        return (qweight[1] * each, qweight[0]) if self.method == "awq" else (qweight[1], qweight[0] * each)

    def weight(self, layer: str) -> Tensor:
        """W (d, k) in float32."""
        names = {part: f"{layer}.{part}" for part in PARTS}
        parts = {part: self.readers[name].tensor(name) for part, name in names.items() if name in self.readers}
        if self.method == "awq":
            return of_awq(parts)
        return of_gptq(parts, self.bits_of(layer), self.form)


def write_dense(folder: Path, out: Path, method: str, section: Mapping[str, Any], dtype: torch.dtype) -> dict[str, str]:
    """Writes the files of `folder` with dense weights in `dtype`, one weight in memory at a time; all other tensors as
    they are. Returns each tensor's file.

    section: the checkpoint's `quantization_config`. Raises LrftError for a layout that cannot be read.
    """
    files = weight_files(folder)
    placed: dict[str, str] = {}
    with ExitStack() as open_files:
        packed = Packed([open_files.enter_context(TensorReader(path)) for path in files], method, section)
        for path in files:
            mine = [name for name, reader in packed.readers.items() if reader.path == path]
            placed |= dict.fromkeys(_write(packed, mine, out / path.name, dtype), path.name)
    return placed


def _write(packed: Packed, names: list[str], path: Path, dtype: torch.dtype) -> list[str]:
    """A file with what becomes of these tensors; their new names."""
    announced: dict[str, tuple[str, tuple[int, ...], int]] = {}
    dense, kept = {}, []
    for name in names:
        layer, _, part = name.rpartition(".")
        if layer in packed.layers and part in PARTS:
            if part == "qweight":
                d, k = packed.shape(layer)
                announced[f"{layer}.weight"] = (WORDS[dtype], (d, k), d * k * dtype.itemsize)
                dense[f"{layer}.weight"] = layer
            continue
        entry = packed.readers[name].entries[name]
        announced[name] = (entry.dtype, entry.shape, entry.size)
        kept.append(name)
    with TensorWriter(path, announced, {"format": "pt"}) as writer:
        for name in kept:
            data = torch.empty(announced[name][2], dtype=torch.uint8)
            packed.readers[name].read(name, 0, raw(data))
            writer.write(name, 0, raw(data))
        for name, layer in dense.items():
            writer.write(name, 0, raw(packed.weight(layer).to(dtype)))
    return list(announced)
