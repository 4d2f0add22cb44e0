"""Linear layers with a frozen 4- or 8-bit weight.

bitsandbytes quantises and dequantises all but fp8; the product is made here, from the dequantised weight, so that
training, evaluation and merging see one and the same W. Its own layers do not: in evaluation on a CPU, a 4-bit layer
rearranges and rounds its scales for good, and an 8-bit layer rounds its inputs too.

    nf4, fp4   16 levels; a scale for each 64 numbers, itself in 8 bits with a scale for each 256 of them and one mean
    int8       256 levels; a scale for each output
    fp8        8-bit floats; a scale for each output (`lrft.model.fp8`)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from lrft.errors import MissingError
from lrft.model import fp8, output_cache
from lrft.model.head import head_modules
from lrft.model.streamed import content
from lrft.utils.divided import whole

KINDS = ("nf4", "fp4", "int8", "fp8")
OF_BITSANDBYTES = ("nf4", "fp4", "int8")
WIDE = ("int8", "fp8")
"""kinds that are made in float32, whatever the dtype asked for"""
BLOCK = 64
BLOCK_OF_SCALES = 256
LARGEST_INT8 = 127.0


class QuantizedLinear(nn.Module):
    """W x + bias for x (..., k). W (d, k) is frozen; `codes` and what else it is made of are as bitsandbytes has them.

    Scales are kept as the bits of their float32: a cast of the model must not round them.
    """

    codes: nn.Parameter
    scales: nn.Parameter
    bias: nn.Parameter | None
    like: Tensor
    is_layer: ClassVar[bool] = True
    """whether it stands in the model itself, and not inside of a layer"""

    def __init__(
        self,
        kind: str,
        shape: tuple[int, int],
        tensors: dict[str, Tensor],
        bias: Tensor | None,
        *,
        dtype: torch.dtype,
        transposed: bool = False,
        blocks: tuple[int, int] = (BLOCK, BLOCK_OF_SCALES),
    ) -> None:
        """transposed: the layer that was quantised stores (k, d). dtype: of the model around it."""
        super().__init__()
        self.kind, self.shape, self.transposed, self.blocks = kind, shape, transposed, blocks
        for name, tensor in tensors.items():
            bits = tensor.float().view(torch.int32) if tensor.is_floating_point() else tensor
            self.register_parameter(name, nn.Parameter(bits, requires_grad=False))
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        # Follows the model's dtype and device.
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=tensors["codes"].device), persistent=False)

    def made(self, dtype: torch.dtype) -> Tensor:
        """W (d, k), made anew. Not differentiable: the codes are frozen."""
        narrow = torch.float32 if dtype == torch.float64 else dtype
        if self.kind == "fp8":
            return fp8.dequantize(self._whole("codes"), self._floats("scales")).to(dtype)
        return (self._of_int8() if self.kind == "int8" else self._of_4_bits(narrow)).to(dtype)

    def making(self, dtype: torch.dtype) -> int:
        """Bytes that `made` takes, W included."""
        d, k = self.shape
        wide = 4 if self.kind in WIDE and dtype != torch.float32 else 0
        return d * k * (dtype.itemsize + wide)

    def _of_int8(self) -> Tensor:
        return self._whole("codes").float().mul_((self._floats("scales") / LARGEST_INT8)[:, None])

    def _of_4_bits(self, dtype: torch.dtype) -> Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        block, block_of_scales = self.blocks
        d, k = self.shape
        if hasattr(self, "scales_of_scales"):
            inner = QuantState(
                absmax=self._floats("scales_of_scales"),
                code=self._floats("levels"),
                blocksize=block_of_scales,
                dtype=torch.float32,
            )
            scales, mean = self._whole("scales"), self._floats("mean")
        else:
            inner, scales, mean = None, self._floats("scales"), None
        state = QuantState(
            absmax=scales,
            # Blocks run on from one row to the next. The kernel for AVX-512 takes their scales from the wrong places
            # where a row ends inside of one (bitsandbytes 0.50.2, 64 < k): it is given one long row then.
            shape=torch.Size((d, k) if k % block == 0 else (1, d * k)),
            blocksize=block,
            quant_type=self.kind,
            dtype=dtype,
            offset=mean,
            state2=inner,
        )
        return dequantize_4bit(self._whole("codes"), state).view(d, k)

    def _floats(self, name: str) -> Tensor:
        return self._whole(name).view(torch.float32)

    def _whole(self, name: str) -> Tensor:
        """Gathered where it is divided over processes: between passes, all of them must ask for it."""
        return whole(content(self.get_parameter(name)).data)

    @property
    def weight(self) -> Tensor:
        """W (d, k) in the model's dtype, for models that ask a layer for it; made anew each time."""
        return self.made(self.like.dtype)

    @property
    def numbers(self) -> int:
        """How many numbers the layer stands for."""
        d, k = self.shape
        return d * k + (0 if self.bias is None else d)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.bias)

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """W x + bias in x's dtype, or autocast's. Keeps nothing for the backward pass: W is made again there."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return _Product.apply(x, None if bias is None else bias.to(x.dtype), self)

    def times(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`product`, outside of autograd and autocast."""
        if self.kind == "fp8" and fp8.takes(x, self.shape):
            return fp8.product(x, self._whole("codes"), self._floats("scales"), bias)
        return _product(x, (*x.shape[:-1], self.shape[0]), lambda: self.made(x.dtype).T, bias)

    def extra_repr(self) -> str:
        d, k = self.shape
        return f"{self.kind}, outputs={d}, inputs={k}, bias={self.bias is not None}"


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: QuantizedLinear) -> Tensor:
        y = output_cache.played()
        if y is None:
            with torch.autocast(x.device.type, enabled=False):
                y = layer.times(x, bias)
        output_cache.record(x, y)
        ctx.layer = layer
        return y

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        layer = ctx.layer
        back = _product(slope, (*slope.shape[:-1], layer.shape[1]), lambda: layer.made(slope.dtype))
        return back, None, None


def _product(x: Tensor, shape: tuple[int, ...], made: Callable[[], Tensor], bias: Tensor | None = None) -> Tensor:
    """x times the matrix that `made` makes, plus bias; of `shape`.

    The memory of the result comes before that of the matrix. A result that is kept would otherwise lie behind a matrix
    that is not, and the C library cannot give the hole between to the next matrix: aligned memory asks for more than
    its size. All of the model's weights would add up in such holes.
    """
    y = x.new_empty(shape)
    rows, out = x.reshape(-1, x.shape[-1]), y.view(-1, shape[-1])
    if bias is None:
        torch.mm(rows, made(), out=out)
    else:
        torch.addmm(bias, rows, made(), out=out)
    return y


def quantizable(model: Any, skipped: list[str] | None = None) -> dict[str, bool]:
    """The linear layers of a transformers model that are quantised -> whether each stores (k, d).

    skipped: modules that stay as they are, None for the output layer.
    """
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = HfQuantizer.get_modules_to_not_convert(model, skipped, model._keep_in_fp32_modules)
    found: dict[str, bool] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        transposed = isinstance(module, Conv1D)
        if (transposed or type(module) is nn.Linear) and should_convert_module(name, kept):
            found[name] = transposed
    return found


def imagine(model: Any, kind: str) -> None:
    """Every layer of a transformers model that would be quantised becomes one without content, in place."""
    layers, dtype = quantizable(model, head_modules(model) or None), dtype_of(model)

    def imagined(name: str, module: Any) -> QuantizedLinear | None:
        if name not in layers:
            return None
        d, k = module.weight.T.shape if layers[name] else module.weight.shape
        return QuantizedLinear(kind, (d, k), _empty(kind, d, k), module.bias, dtype=dtype, transposed=layers[name])

    replace_modules(model, imagined)


def load_library(kind: str) -> None:
    """Import bitsandbytes, as a run over a base of this kind does."""
    if kind in OF_BITSANDBYTES:
        import bitsandbytes  # noqa: F401


def is_quantized(model: nn.Module) -> bool:
    return any(isinstance(module, QuantizedLinear) and module.is_layer for module in model.modules())


class QuantizedPart(QuantizedLinear):
    """What a layer trains with in place of its weight: no layer of the model itself."""

    is_layer: ClassVar[bool] = False


def quantized(weight: Tensor, kind: str) -> QuantizedPart:
    """The codes of a matrix (d, k). Raises MissingError where bitsandbytes makes them and is not installed."""
    dtype, shape = weight.dtype, (weight.shape[0], weight.shape[1])
    if isinstance(weight, FakeTensor):
        return QuantizedPart(kind, shape, _empty(kind, *shape), None, dtype=dtype)
    if kind == "fp8":
        codes, scales = fp8.quantize(weight)
        return QuantizedPart(kind, shape, {"codes": codes, "scales": scales}, None, dtype=dtype)
    try:
        from bitsandbytes.functional import int8_vectorwise_quant, quantize_4bit
    except ImportError:
        raise MissingError(f"{kind} requires the package bitsandbytes", "pip install 'lrft[quant]'") from None
    if kind == "int8":
        codes, scales, _ = int8_vectorwise_quant(weight.half())
        return QuantizedPart(kind, shape, {"codes": codes, "scales": scales.flatten()}, None, dtype=dtype)
    codes, state = quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type=kind, compress_statistics=True)
    return QuantizedPart(kind, shape, of_state(codes, state), None, dtype=dtype, blocks=blocks_of(state))


def count(model: nn.Module) -> int:
    """How many numbers a model has, those of a quantised weight as before."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    inside = {id(p) for layer in layers for p in layer.parameters()}
    return sum(layer.numbers for layer in layers) + sum(p.numel() for p in model.parameters() if id(p) not in inside)


def replace_modules(model: nn.Module, made: Callable[[str, nn.Module], QuantizedLinear | None]) -> None:
    """Put what `made` has for a module in its place, everywhere that it is used."""
    known: dict[int, QuantizedLinear | None] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if id(module) not in known:
            known[id(module)] = made(name, module)
        new = known[id(module)]
        if name and new is not None:
            parent, _, word = name.rpartition(".")
            setattr(model.get_submodule(parent), word, new)


def dtype_of(model: nn.Module) -> torch.dtype:
    """That of a model around its quantised layers."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def of_state(codes: Tensor, state: Any) -> dict[str, Tensor]:
    """A 4-bit layer's tensors, from the codes and the state of bitsandbytes."""
    tensors = {"codes": codes.view(torch.uint8).reshape(-1, 1), "scales": state.absmax}
    if state.nested:
        tensors |= {"scales_of_scales": state.state2.absmax, "levels": state.state2.code}
        tensors["mean"] = state.offset.reshape(1)
    return tensors


def blocks_of(state: Any) -> tuple[int, int]:
    """Numbers that share a scale, and scales that share one."""
    return state.blocksize, state.state2.blocksize if state.nested else BLOCK_OF_SCALES


def _empty(kind: str, d: int, k: int) -> dict[str, Tensor]:
    """Tensors of the sizes that a quantised (d, k) has."""
    if kind in WIDE:
        codes = torch.zeros(d, k, dtype=torch.int8 if kind == "int8" else torch.uint8)
        return {"codes": codes, "scales": torch.zeros(d)}
    blocks = -(-d * k // BLOCK)
    return {
        "codes": torch.zeros(-(-d * k // 2), 1, dtype=torch.uint8),
        "scales": torch.zeros(blocks, dtype=torch.uint8),
        "scales_of_scales": torch.zeros(-(-blocks // BLOCK_OF_SCALES)),
        "levels": torch.zeros(256),
        "mean": torch.zeros(1),
    }
