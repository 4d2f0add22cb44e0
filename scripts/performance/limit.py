"""The physical limit of a training step: the frozen base alone, gradients only to activations, nothing wasted.

Plain torch for Llama-type weights. Rows are laid end to end without padding, attention is causal inside each row,
logits are made only where a token is labelled, some rows of them at a time. There is no adapter: whatever trains one
does this work and its own beside it. It may see as many rows at once as lrft does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.functional import cross_entropy, linear, rms_norm, scaled_dot_product_attention, silu

from performance.job import Job
from performance.recorder import Recorder
from performance.rows import Row, load

LOGITS_AT_ONCE = 512
PASS = 4  # rows, as in lrft's default micro-batch


def run(job: Job, recorder: Recorder) -> None:
    model = Llama.read(Path(job.model))
    steps = load(Path(job.rows))
    recorder.loaded(model.weights.values())
    for number in range(job.steps):
        batch = steps[number % len(steps)]
        loss = sum(model.backward(rows)[0] for rows in passes(batch.rows, job.options.get("rows_at_once", PASS)))
        recorder.loss(loss / batch.labelled)
        recorder.step()
        recorder.saw(tokens=batch.tokens, labelled=batch.labelled, checksum=batch.checksum)


def passes(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """The longest first, `size` at a time."""
    ordered = sorted(rows, key=lambda row: -len(row.tokens))
    return (ordered[start : start + size] for start in range(0, len(ordered), size))


class SwiGlu(torch.autograd.Function):
    """silu(gate) * up, of which only gate and up are kept."""

    @staticmethod
    def forward(ctx: FunctionCtx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        share = gate.sigmoid()
        active = share * gate
        slope = (share + active).addcmul_(share, active, value=-1)  # the derivative of silu
        return slope.mul_(up).mul_(grad), active.mul_(grad)


class Llama:
    """Weights by their names in the file, and the numbers of the configuration that the forward pass needs."""

    def __init__(self, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
        self.weights = weights
        self.layers = config["num_hidden_layers"]
        self.width = config["hidden_size"]
        self.heads = config["num_attention_heads"]
        self.groups = config["num_key_value_heads"]
        self.head = config.get("head_dim") or self.width // self.heads
        self.eps = config["rms_norm_eps"]
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if rope.get("rope_type", "default") != "default":
            raise ValueError(f"the limit knows only the plain rotary positions, not {rope['rope_type']}")
        self.theta = rope.get("rope_theta") or config.get("rope_theta", 10000.0)
        # Without a head of their own, the logits are made by the embedding.
        self.output = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])

    @classmethod
    def read(cls, folder: Path) -> Llama:
        """From a folder with one weight file: on the GPU in bfloat16 where there is one, else in float32."""
        device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
        weights = load_file(folder / "model.safetensors", device=device)
        return cls({k: w.to(dtype) for k, w in weights.items()}, json.loads((folder / "config.json").read_text()))

    def backward(self, rows: Sequence[Row]) -> tuple[float, Tensor]:
        """(Sum of the labelled tokens' losses, its gradient at the embeddings (T, width)) of rows laid end to end."""
        device = self.output.device
        ids = torch.tensor([token for row in rows for token in row.tokens], device=device)
        embedded = self.weights["model.embed_tokens.weight"][ids].requires_grad_()
        labels = torch.tensor([label for row in rows for label in row.labels], device=device)
        predicted = (labels != -100).nonzero().flatten()
        hidden = self.forward(embedded, [len(row.tokens) for row in rows])[predicted - 1]
        loss, gradient = self.loss(hidden.detach(), ids[predicted])
        hidden.backward(gradient)
        if embedded.grad is None:
            raise RuntimeError("no gradient has reached the embeddings")
        return loss, embedded.grad

    def loss(self, hidden: Tensor, targets: Tensor) -> tuple[float, Tensor]:
        """(Sum of the cross-entropies, its gradient at `hidden` (N, width)), some rows of logits at a time."""
        total, gradient = 0.0, torch.empty_like(hidden)
        for start in range(0, len(hidden), LOGITS_AT_ONCE):
            part = slice(start, start + LOGITS_AT_ONCE)
            logits = linear(hidden[part], self.output).float().requires_grad_()
            loss = cross_entropy(logits, targets[part], reduction="sum")
            loss.backward()
            gradient[part] = logits.grad.to(hidden.dtype) @ self.output
            total += loss.item()
        return total, gradient

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Hidden states (T, width) behind the last norm from embeddings (T, width) of rows of these sizes."""
        cos, sin = self.rotations(sizes, x)
        for number in range(self.layers):
            name = f"model.layers.{number}"
            x = x + self.attention(self.norm(x, f"{name}.input_layernorm"), f"{name}.self_attn", cos, sin, sizes)
            x = x + self.mlp(self.norm(x, f"{name}.post_attention_layernorm"), f"{name}.mlp")
        return self.norm(x, "model.norm")

    def attention(self, x: Tensor, name: str, cos: Tensor, sin: Tensor, sizes: Sequence[int]) -> Tensor:
        q = rotated(self.linear(x, f"{name}.q_proj").unflatten(-1, (self.heads, self.head)), cos, sin)
        k = rotated(self.linear(x, f"{name}.k_proj").unflatten(-1, (self.groups, self.head)), cos, sin)
        v = self.linear(x, f"{name}.v_proj").unflatten(-1, (self.groups, self.head))
        rows = zip(*(part.split(list(sizes)) for part in (q, k, v)), strict=True)
        return self.linear(torch.cat([self.attend(*row) for row in rows]), f"{name}.o_proj")

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One row's causal attention: (T, heads, head) and twice (T, groups, head) to (T, heads * head)."""
        q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
        y = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.groups != self.heads)
        return y[0].transpose(0, 1).flatten(1)

    def mlp(self, x: Tensor, name: str) -> Tensor:
        return self.linear(
            SwiGlu.apply(self.linear(x, f"{name}.gate_proj"), self.linear(x, f"{name}.up_proj")), f"{name}.down_proj"
        )

    def linear(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, x: Tensor, name: str) -> Tensor:
        return rms_norm(x, (self.width,), self.weights[f"{name}.weight"], self.eps)

    def rotations(self, sizes: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (T, 1, head / 2) of positions that start over in each row."""
        positions = torch.cat([torch.arange(size, device=like.device) for size in sizes])
        turns = torch.arange(0, self.head, 2, device=like.device, dtype=torch.float32) / self.head
        angles = positions[:, None, None] * self.theta**-turns
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (T, heads, head) with its two halves turned against each other."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
