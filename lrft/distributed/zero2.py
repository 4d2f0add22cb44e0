"""DeepSpeed ZeRO-2: gradients and optimiser state are sharded over processes.

Everybody holds the frozen base and the trained tensors whole, so that methods compute as ever. DeepSpeed clips, steps
and clears in one call, on copies of its own: what acts on gradients, trained tensors or the optimiser's state between
the passes of one step and those of the next has nothing to act on, and is refused.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrft.adapters import compose
from lrft.adapters.attached import Attached
from lrft.adapters.compose import Composition
from lrft.distributed import compile_lock
from lrft.distributed.sizes import MESSAGE
from lrft.distributed.strategy import Strategy
from lrft.errors import CheckFailed, MissingError, Problem, RecipeError
from lrft.optim.named_state import check_state
from lrft.recipe import Recipe
from lrft.utils import hardware

# AdamW's running means, of which DeepSpeed keeps parts; its count of steps is one for all tensors of a group.
MEANS = ("exp_avg", "exp_avg_sq")
COUNT = "step"
TOLD = 2000
"""length of the DeepSpeed output shown when it fails to start"""


def refuse(recipe: Recipe, processes: int) -> None:
    """Raises MissingError without DeepSpeed, RecipeError for parts that it leaves nothing to act on, where `processes`
    are to share a run by zero2."""
    if recipe.distributed.strategy != "zero2" or processes == 1:
        return
    refuse_parts(recipe, compose.compose_section(recipe.adapter))
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingError(
            f"{recipe.where('distributed.strategy')}: zero2 requires the package deepspeed",
            "pip install 'lrft[deepspeed]'",
        )


def refuse_parts(recipe: Recipe, composition: Composition) -> None:
    """Raises RecipeError for parts that act between passes."""
    acting = composition.acting_between_passes
    if acting:
        text = (
            f"adapter.method: {', '.join(acting)} acts on gradients, trained tensors or the optimiser between steps, "
            "or adds to the loss. Under distributed.strategy: zero2 DeepSpeed owns these: use ddp or fsdp"
        )
        raise RecipeError([Problem(recipe.where("adapter.method"), text)])


class Zero2(Strategy):
    name = "zero2"

    def __init__(
        self,
        accelerator: Any,
        losses: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        attached: Attached,
        limit: float | None,
    ) -> None:
        """optimizer: AdamW over the attached adapters' tensors. limit: of the gradient's norm, or None.

        Gives every process the first one's model.
        """
        numbers = sum(p.numel() for p in attached.trained().values())
        config = {
            # The loop counts rows and passes, and scales losses; DeepSpeed is to sum up and divide by processes alone.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0 if limit is None else limit,
            "zero_optimization": {
                "stage": 2,
                "reduce_bucket_size": min(numbers, MESSAGE // 4),
                # Each process needs the sums of its own part: else every pass sends all of them to everybody.
                "use_multi_rank_bucket_allreduce": False,
            },
            "zero_allow_untested_optimizer": True,  # of torch, not of DeepSpeed
        }
        # On a CPU it compiles with ninja, which lies beside the interpreter even where nothing has been activated.
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
        # DeepSpeed 0.19 calls a collective by the name that torch 2.13 has given up: no matter of the user's.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.all_gather_into_tensor", FutureWarning)
        compile_lock.refuse_left_behind()
        told = io.StringIO()
        try:
            with contextlib.redirect_stdout(told):  # it prints and logs what it finds and compiles
                import deepspeed

                self.engine, own, _, _ = deepspeed.initialize(
                    model=losses, optimizer=optimizer, config=config, dist_init_required=False
                )
        except Exception as error:  # no compiler, another CUDA than torch's, and each has its own kind
            if hardware.says_out_of_memory(error):
                raise
            raise MissingError(f"DeepSpeed failed to start: {error}", told.getvalue().strip()[-TOLD:]) from error
        super().__init__(accelerator, self.engine, own, attached)
        # AdamW makes the state of a group in that group's first step; DeepSpeed 0.19 looks for all of them after the
        # first group's, once, and finds no other.
        for group in own.param_groups:
            for flat in group["params"]:
                state = {entry: torch.zeros_like(flat) for entry in MEANS}
                where = flat.device if group.get("fused") else None
                own.optimizer.state[flat] = {**state, COUNT: torch.zeros((), device=where)}

    def of_pass(self, *, last: bool) -> AbstractContextManager[Any]:
        self.engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Raises CheckFailed before a pass that would leave out a trained tensor. DeepSpeed sums gradients in the order
        in which they are made: where processes left out different ones it would sum what does not belong together."""
        reached = leaves(loss)
        left_out = [name for name, parameter in self.attached.trained().items() if parameter not in reached]
        if left_out:
            others = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
            raise CheckFailed(
                f"no gradient reaches {left_out[0]}{others} in a pass of this process: "
                "under distributed.strategy: zero2 every pass must produce gradients for all trainable tensors",
                "Use fsdp, or exclude these layers with adapter.exclude_modules.",
            )
        self.engine.backward(loss)

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.utils import safe_get_full_grad

        for name, parameter in self.attached.trained().items():
            gradient = safe_get_full_grad(parameter)
            if gradient is not None:
                yield name, gradient

    def step(self, limit: float | None, clipped: Callable[[Tensor | float], None]) -> bool:
        """As for others, but that `clipped` is told when the step has been taken: its norm is known only then. A run
        that it refuses ends there, and saves nothing."""
        self.engine.step()
        clipped(float(self.engine.get_global_grad_norm()))
        # DeepSpeed writes into memory of its own. Who keeps what was made of a tensor has to learn that it is stale.
        torch.autograd.graph.increment_version(list(self.attached.trained().values()))
        return True

    def clear(self) -> None:
        """The step has done so."""

    def state(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        found: dict[str, Tensor] = {}
        for name, count in self._counts().items():
            parameter = self.attached.trained()[name]
            for entry in MEANS:
                # One at a time, and kept by who writes it: nobody else has to have room for the whole.
                mean = safe_get_full_optimizer_state(parameter, entry)
                if self.accelerator.is_main_process:
                    found[f"{name}/{entry}"] = mean.cpu()
            if self.accelerator.is_main_process:
                found[f"{name}/{COUNT}"] = count.clone()
        return found

    def load_state(
        self, tensors: Mapping[str, Tensor], expected: Collection[str], answer: Callable[[], Tensor]
    ) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        trained = self.attached.trained()
        check_state(tensors, expected, trained)
        for parameter in trained.values():
            safe_set_full_fp32_param(parameter, parameter.detach())
        if not expected:
            return
        self.rest(answer)
        for name, parameter in trained.items():
            for entry in MEANS:
                safe_set_full_optimizer_state(parameter, tensors[f"{name}/{entry}"].to(parameter.device), entry)
        for name, count in self._counts().items():
            count.copy_(tensors[f"{name}/{COUNT}"])

    def rest(self, answer: Callable[[], Tensor]) -> None:
        """A step of length zero with a gradient of zero: it changes no number, and DeepSpeed makes its state there."""
        before = [(group["lr"], group["weight_decay"]) for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = group["weight_decay"] = 0.0
        with self.of_pass(last=True):
            self.backward(answer() * 0.0)
        self.engine.step()
        for group, (lr, decay) in zip(self.optimizer.param_groups, before, strict=True):
            group["lr"], group["weight_decay"] = lr, decay

    def _counts(self) -> dict[str, Tensor]:
        """The optimiser's count of steps of each trained tensor, by name: one for all of a group."""
        states = self.optimizer.optimizer.state
        return {
            name: states[group["params"][0]][COUNT]
            for group in self.optimizer.param_groups
            for name in group["param_names"]
        }


def leaves(loss: Tensor) -> set[Tensor]:
    """The tensors that a backward pass from `loss` would give gradients."""
    found: set[Tensor] = set()
    seen: set[Any] = {None}
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += [node for node, _ in node.next_functions]
            if hasattr(node, "variable"):
                found.add(node.variable)
    return found
