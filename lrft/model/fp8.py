"""8-bit floats with a scale for each output: codes (d, k) in float8_e4m3fn, kept as their bytes, and scales (d,).

float8_e4m3fn has 4 significant bits between 2^-6 and 448. A row's largest value becomes 448.

The product on a GPU with 8-bit float kernels takes the codes as they are, without a dense W. Its other factor must be
in 8 bits as well, and rounding it would be another model than the one that is evaluated on a CPU and merged. So it is
written as a sum of two, which bfloat16 with its 8 significant bits is: x = high + low.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max
# A bfloat16 that is rounded to 4 significant bits leaves a rest of at most 4 bits, 2^4 times smaller.
BELOW = 16.0
CAPABILITY = (8, 9)
"""of NVIDIA GPUs from which on they multiply 8-bit floats"""
PIECE = 16
"""sides of W are multiples of this for the kernel"""
SAME = 2.0**-6
"""largest difference to the definition, as a share of the largest output: that is bfloat16"""


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(codes uint8 (d, k), scales float32 (d,)) of W (d, k)."""
    wide = weight.detach().float()
    scales = wide.abs().amax(dim=1) / LARGEST
    codes = wide / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    return codes.clamp_(-LARGEST, LARGEST).to(DTYPE).view(torch.uint8), scales


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """W (d, k) in float32."""
    return codes.view(DTYPE).float().mul_(scales[:, None])


def takes(x: Tensor, shape: tuple[int, int]) -> bool:
    """Whether `product` gives W x here, W of `shape`, for x (..., k)."""
    fits = shape[0] % PIECE == 0 and shape[1] % PIECE == 0 and x.numel() > 0
    return x.dtype == torch.bfloat16 and fits and works(x.device)


@lru_cache(maxsize=16)
def works(device: torch.device) -> bool:
    """Whether this GPU has the kernel, and it gives what the definition gives; asked once."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY:
        return False
    try:
        with torch.no_grad():
            generator = torch.Generator(device).manual_seed(0)
            x, W = (torch.randn(n, 64, device=device, generator=generator).bfloat16() for n in (5, 32))
            codes, scales = quantize(W)
            expected = x.float() @ dequantize(codes, scales).T
            return bool((product(x, codes, scales).float() - expected).abs().max() <= SAME * expected.abs().max())
    except (RuntimeError, ValueError):  # torch was built without it
        return False


def product(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """W x + bias in bfloat16 for x (..., k) in bfloat16, by torch's product of 8-bit floats with a scale for each row.

    Exact but for 2^-21 of the largest value in its row of x, and for the rounding of the two products to bfloat16.
    """
    rows = x.reshape(-1, x.shape[-1]).float()
    _, exponent = torch.frexp(rows.abs().amax(dim=1, keepdim=True) / LARGEST)
    scale = torch.ldexp(torch.ones_like(rows[:, :1]), exponent)  # powers of two: dividing by them rounds nothing
    scaled = rows / scale
    high = scaled.to(DTYPE)
    low = scaled.sub_(high.float()).mul_(BELOW).to(DTYPE)
    both = torch._scaled_mm(
        torch.cat([high.view(torch.uint8), low.view(torch.uint8)]).view(DTYPE),
        codes.view(DTYPE).T,
        scale_a=torch.cat([scale, scale / BELOW]),
        scale_b=scales[None],
        out_dtype=torch.bfloat16,
    )
    y = both[: len(rows)].float() + both[len(rows) :].float()
    y = y if bias is None else y + bias
    return y.to(x.dtype).view(*x.shape[:-1], len(codes))
