"""`lrft plan`: parameters, memory breakdown, steps, tokens, time, and their division over devices.

Nothing is loaded but the config, the tokenizer and the data: the model is made of fake tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lrft import data
from lrft.adapters import compose
from lrft.adapters.gradients import FurtherPasses
from lrft.data.passes import PassSize
from lrft.data.sampler import auxiliary_schedule, batch_schedule, tokens_of
from lrft.distributed import arriving, fsdp, zero2
from lrft.distributed.accelerator import make_accelerator
from lrft.errors import Problem, RecipeError
from lrft.loading.evaluation_interval import evaluations
from lrft.loading.from_recipe import made, sketched_head
from lrft.loading.others import Found
from lrft.loading.pass_size import finds_tokens
from lrft.model import placement
from lrft.model.conversion import DEQUANTIZED_FROM, recorded
from lrft.model.quantized import load_library
from lrft.objectives.base import START
from lrft.planning import communication
from lrft.planning import communication as planning_communication
from lrft.planning.communication import H100_MEMORY, Memory, Ring, alone, efficiency, sent
from lrft.planning.imagined import imagine_adapted, weigh
from lrft.planning.speed import seconds_of_a_weight, speed_here
from lrft.planning.streaming import MEMORY, PCIE, Link, Placement, placements
from lrft.planning.time_parts import Sizes, Speeds, TimeParts, time_parts
from lrft.recipe import Recipe
from lrft.recipe.schema import MOST_TOKENS
from lrft.utils import hardware

# Steps whose micro-batches are looked at to find the largest.
STEPS_SEEN = 2000
# Share of the measured speed of matrix products at which a whole step runs: what lies between them takes the rest.
EFFICIENCY = 0.75


@dataclass(frozen=True)
class Plan:
    """Everything that `lrft plan` says."""

    modules: list[dict[str, Any]]
    """by module name: layers, d, k, trainable parameters"""
    parameters: int
    trained: int
    steps: int
    tokens: int
    """tokens in the whole run, prompts included"""
    largest: int
    """tokens of the largest micro-batch"""
    memory: dict[str, Memory]
    """by strategy"""
    rings: dict[str, tuple[Ring, ...]]
    """communication per step, by strategy"""
    strategy: str
    """strategy chosen by the recipe"""
    why: str
    """reason for the choice"""
    flops: float
    """FLOPs of the run, over all devices"""
    speed: float
    """measured matrix-multiplication speed, FLOP/s"""
    time: TimeParts
    evaluations: int
    """the one before the first step included"""
    devices: int
    """devices over all nodes"""
    nodes: int
    placements: dict[str, Placement]
    """of the base on one device, by `model.placement`; none for several devices"""
    placement: str
    """that of the run, by the recipe or its auto"""
    link: Link
    dequantized_from: str = ""
    """format in which the base is stored, where it was dequantised"""

    @property
    def seconds(self) -> float:
        """Seconds of the whole run."""
        return self.time.total

    @property
    def communication(self) -> dict[str, float]:
        """Bytes that a device sends in a step, by strategy."""
        return {name: sent(found) for name, found in self.rings.items()}

    @property
    def exchange(self) -> dict[str, float]:
        """Seconds that this takes by itself, by strategy, over the links that `communication` assumes."""
        return {name: planning_communication.exchange(found) for name, found in self.rings.items()}

    @property
    def efficiency(self) -> dict[str, tuple[float, float]]:
        """Share of a step in which devices compute, by strategy: with nothing of the exchange behind it, and with all
        that can be."""
        step = self.time.steps / self.steps
        waits = {name: (planning_communication.exchange(found), alone(found)) for name, found in self.rings.items()}
        return {
            name: (efficiency(step, 0.0, each), efficiency(step, each - alone, alone))
            for name, (each, alone) in waits.items()
        }


def make_plan(
    recipe: Recipe,
    source: Path,
    prepared: data.Prepared,
    devices: int,
    size: PassSize | None = None,
    nodes: int = 1,
    others: Sequence[Found] = (),
) -> Plan:
    """The plan of a recipe whose data are prepared. Raises RecipeError.

    devices: of all `nodes` together. size: of a pass, where the recipe leaves it open and it has been found.
    others: the models that the objective's options name.
    """
    t = recipe.training
    compute = hardware.computation(t.precision)
    active = hardware.DTYPES[hardware.OF_COMPUTATION[compute]]
    # What a process needs before it trains: the libraries, also those that are loaded by their first use.
    make_accelerator(compute)
    load_library(recipe.model.quantization)
    speed = speed_here(active)
    process = resident() if not torch.cuda.is_available() else 0
    schedule = batch_schedule(recipe, prepared.train)
    composition = compose.compose_section(recipe.adapter)
    if devices > 1 and recipe.distributed.strategy == "zero2":
        zero2.refuse_parts(recipe, composition)
    size = pass_size(recipe, devices) if size is None else size
    arriving.refuse(recipe, devices)
    further = composition.further_passes
    passed = passed_over(recipe, prepared, schedule, further)
    longest = max((largest_batch(rows, order, devices, size) for rows, order, _ in passed), key=sum)
    found = imagine_adapted(recipe, source, composition, longest, size.rows, active, list(prepared.report.labels))
    kept, weights = found.kept, found.weights
    beside = [weigh(recipe, other, found.matrix) for other in others if other.option != START]
    held = sum(size for size, _ in beside)
    whole = Memory(
        process, weights, found.adapter, found.gradients, found.state, kept.kept, kept.logits, kept.moment, held
    )
    tokens = found.copies * tokens_of(prepared.train, schedule)
    passes = -(-t.global_batch_size // (size.rows * devices))
    if size.tokens is not None:
        passes = math.ceil(tokens_of(prepared.train, schedule) / (schedule.total_steps * size.tokens * devices))
    divided = (found.blocks, found.outside, devices, nodes)
    memory, rings = (
        communication.over_devices(whole, *divided),
        communication.rings(whole, passes, *divided, sums=1 + further.own + further.auxiliary, forward=further.base),
    )
    if composition.acting_between_passes:  # zero2 is refused
        memory.pop("zero2", None)
        rings.pop("zero2", None)
    strategy, why = chosen(recipe, weights, list(memory))
    answered = found.copies * sum(times * tokens_of(rows, order) for rows, order, times in passed)
    flops = communication.operations(answered, found.matrix, found.trained, t.gradient_checkpointing)
    named = sum(matrix for _, matrix in beside)
    forwards = made(t.objective, "objectives").forwards()
    asked = found.matrix * forwards.step + named
    flops += 2.0 * tokens * (asked + further.base * found.matrix)  # forward alone
    sizes = Sizes(
        found.matrix,
        asked,
        found.matrix * forwards.before,
        found.blocks,
        weights,
        found.adapter + found.state,
        found.copies,
    )
    speeds = Speeds(speed * EFFICIENCY * devices, seconds_of_a_weight(active))
    parts = time_parts(recipe, prepared, schedule, sizes, speeds, flops, size.rows)
    link = PCIE if torch.cuda.is_available() else MEMORY
    placed, where = dict[str, Placement](), placement.RESIDENT
    if devices == 1:
        where, copies = placed_as(recipe, source)
        each, blocks = parts.steps / schedule.total_steps, found.blocks if copies else 0
        both = passes * (1 + further.own + further.auxiliary)
        placed = placements(whole, blocks, found.outside, each, link, both=both, forward=passes * further.base)
        mine = placed.get(where, placed[placement.RESIDENT])
        memory[strategy], parts = mine.memory, replace(parts, steps=mine.seconds * schedule.total_steps)
    return Plan(
        modules=found.modules,
        parameters=found.parameters,
        trained=found.trained,
        steps=schedule.total_steps,
        tokens=tokens,
        largest=found.largest,
        memory=memory,
        rings=rings,
        strategy=strategy,
        why=why,
        flops=flops,
        speed=speed,
        time=parts,
        evaluations=evaluations(recipe, prepared, schedule),
        devices=devices,
        nodes=nodes,
        placements=placed,
        placement=where,
        link=link,
        dequantized_from=recorded(source).get(DEQUANTIZED_FROM, ""),
    )


def placed_as(recipe: Recipe, source: Path) -> tuple[str, bool]:
    """(the placement that a run on one device would have, whether its blocks would be copied if it were streamed).

    A CPU copies nothing that it can read where it lies, in the dtype in which it computes.
    """
    kind, trusted = recipe.model.quantization, recipe.model.trust_remote_code
    dtype = hardware.DTYPES[
        hardware.frozen_dtype(recipe.model.precision, hardware.computation(recipe.training.precision))
    ]
    device, head = hardware.device(), sketched_head(recipe)
    copies = device.type == "cuda" or bool(
        placement.narrower(source, dtype, quantization=kind, head=head, trust_remote_code=trusted)
    )
    wanted = recipe.model.placement
    if wanted == "auto" and recipe.training.compile:
        return placement.RESIDENT, copies
    return placement.chosen(wanted, source, device, dtype=dtype, quantization=kind), copies


def passed_over(
    recipe: Recipe, prepared: data.Prepared, schedule: data.BatchSchedule, further: FurtherPasses
) -> list[tuple[data.Rows, data.BatchSchedule, int]]:
    """Rows of the steps, their order, and how often a step passes over its own forward and backward."""
    passed = [(prepared.train, schedule, 1 + further.own)]
    beside = auxiliary_schedule(recipe, prepared.auxiliary, schedule.total_steps)
    if prepared.auxiliary is not None and beside is not None:
        passed.append((prepared.auxiliary, beside, further.auxiliary))
    return passed


def chosen(recipe: Recipe, weights: int, names: list[str]) -> tuple[str, str]:
    """The strategy chosen by the recipe among `names`, and why. Raises RecipeError when it cannot be had.

    weights: bytes of the whole base. Where there is no GPU to ask, the memory of those in `communication` is assumed.
    """
    wanted, over, first = recipe.distributed.strategy, recipe.distributed.shard_over, names[0]
    if first == "one device":
        return first, ""
    here = hardware.gpu_memory(hardware.device())
    memory = int(H100_MEMORY) if here is None else here
    kind = fsdp.strategy(wanted, weights, memory)
    why = f"distributed.strategy: {wanted}"
    if wanted == "auto":
        most = f"{placement.MOST_OF_A_DEVICE:.0%} of a GPU's {memory / 1e9:.0f} GB"
        why += f", as the base takes {'more' if kind == 'fsdp' else 'no more'} than {most}"
    if kind in ("ddp", "zero2"):
        return kind, why
    if kind not in names:
        raise RecipeError([Problem(recipe.where("distributed.strategy"), f"distributed.strategy: {fsdp.NO_BLOCKS}")])
    every = "fsdp over all"
    return (every, f"{why}, shard_over: all") if over == "all" and every in names else (kind, why)


def pass_size(recipe: Recipe, devices: int) -> PassSize:
    """The recipe's; for auto, all that a device gets of a step, as far as a trial would go."""
    t = recipe.training
    rows = math.ceil(t.global_batch_size / devices) if t.micro_batch_size == "auto" else t.micro_batch_size
    found = finds_tokens(recipe, hardware.device().type)
    tokens = None if t.micro_batch_tokens == "auto" else t.micro_batch_tokens
    return PassSize(rows, MOST_TOKENS if found else tokens, padded=recipe.data.packing is False)


def largest_batch(rows: data.Rows, schedule: data.BatchSchedule, devices: int, size: PassSize) -> list[int]:
    """Tokens of each sequence of the largest micro-batch, padding included where rows are padded."""
    most, found = 0, list[int]()
    for step in range(min(schedule.total_steps, STEPS_SEEN)):
        for ids in size.passes(rows, schedule.rows(step), world=devices):
            tokens = size.tokens_of(rows, ids)
            if tokens > most:
                sequences = (len(one) for i in ids for one, _ in rows.sequences(i))
                padded = [int(rows.longest[ids].max())] * int(rows.counts[ids].sum())
                most, found = tokens, padded if size.padded else list(sequences)
    return found


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 if Path("/proc/self/statm").exists() else 0
