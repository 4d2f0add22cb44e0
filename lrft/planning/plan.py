"""`lrft plan`: parameters, memory breakdown, steps, tokens, time, and their division over devices.

Nothing is loaded but the config, the tokenizer and the data: the model is made of fake tensors.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrft import data
from lrft.adapters import compose
from lrft.adapters.adapter import Adapter, AdapterLinear
from lrft.adapters.attach import attach_sites, prune_base, select_sites, trained_in
from lrft.adapters.beside import names_for
from lrft.adapters.gradients import FurtherPasses
from lrft.adapters.modules_to_save import SavedModule
from lrft.adapters.reach import uncalled
from lrft.adapters.unfit import is_in
from lrft.data.passes import PassSize
from lrft.data.sampler import auxiliary_schedule, batch_schedule, tokens_of
from lrft.distributed import arriving, fsdp, processes, zero2
from lrft.errors import LrftError, Problem, RecipeError
from lrft.loading.evaluation_interval import evaluations
from lrft.loading.from_recipe import added_by, made, sketched_head, tokens_for
from lrft.loading.others import Found
from lrft.loading.pass_size import finds_tokens
from lrft.model import linear, placement
from lrft.model.experts import word_of
from lrft.model.layers import blocks_of, decoder_of
from lrft.model.load import imagine_quantized
from lrft.model.quantized import count, load_library
from lrft.objectives.base import START
from lrft.optim.base import Optimizer
from lrft.planning import activation_memory, communication
from lrft.planning import communication as planning_communication
from lrft.planning.communication import H100_MEMORY, Memory, Ring, alone, efficiency, sent
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


@dataclass(frozen=True)
class Imagined:
    """What is known of the adapted model from its shapes alone."""

    modules: list[dict[str, Any]]
    """by last word: layers, d, k, trained"""
    parameters: int
    trained: int
    matrix: int
    """weights of its linear layers that are called"""
    blocks: int
    outside: int
    """bytes of the base outside of the blocks"""
    weights: int
    """bytes of the base"""
    adapter: int
    """bytes of the adapters' tensors"""
    gradients: int
    """bytes of the gradients that are kept until the step"""
    state: int
    """bytes of the optimiser's state"""
    copies: int
    """of each row, side by side"""
    micro: int
    """rows of a pass"""
    largest: int
    """tokens of the largest micro-batch"""
    kept: Any
    """activations of its pass (`activation_memory`)"""


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
    processes.make_accelerator(compute)
    if recipe.model.quantization != "none":
        load_library()
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


def imagine_adapted(
    recipe: Recipe,
    source: Path,
    composition: compose.Composition,
    longest: Sequence[int],
    micro: int,
    active: torch.dtype,
    labels: Sequence[str] = (),
) -> Imagined:
    """The recipe's model with its adapters, of fake tensors.

    longest: tokens of each sequence of the largest micro-batch of `micro` rows, in one copy. active: in which it
    computes. labels: of the data.
    """
    with imagined(recipe, source, labels) as model:
        parameters = count(model)
        prune_base(model, composition, recipe.where)
        try:
            within = fsdp.within_blocks(model)
        except NotImplementedError as error:  # transformers knows no embedding of its text
            sentence = str(error).partition(". ")[0].partition("; ")[0]
            raise LrftError(f"{type(model).__name__} cannot answer text alone: {sentence}") from error
        outside = sum(p.numel() * p.element_size() for p in model.parameters() if p not in within)
        passed_over = uncalled(model)
        sites = select_sites(model, recipe.adapter, composition, recipe.where, passed_over)
        tokens = tokens_for(recipe, source)
        names = names_for(model, recipe.adapter, [site.name for site in sites], recipe.where, tokens)
        attached = attach_sites(model, sites, composition, seed=0, fresh=False, where=recipe.where, names=names)
        model.train()
        copies = max(adapter.copies for adapter in attached.modules.values())
        kept = activation_memory.activations(
            model,
            activation_memory.Batch(
                [*longest] * copies, active, hardware.device().type, packed=recipe.data.packing is not False
            ),
            kind=recipe.training.gradient_checkpointing,
        )
        adapter = sum(p.numel() * p.element_size() for p in attached.tensors().values())
        used = (module for name, module in linear.named_linears(model) if name not in passed_over)
        return Imagined(
            modules=by_module(model),
            parameters=parameters,
            trained=sum(p.numel() for p in attached.trained().values()),
            matrix=sum(d * k for d, k in map(linear.shape, used)),
            blocks=len(blocks_of(decoder_of(model))),
            outside=outside,
            weights=sum(p.numel() * p.element_size() for p in model.parameters()) - adapter,
            adapter=adapter,
            gradients=gradient_bytes(composition, attached),
            state=optimizer_bytes(composition, attached, made(recipe.training.optimizer, "optimizers")),
            copies=copies,
            micro=micro,
            largest=copies * sum(longest),
            kept=kept,
        )


def weigh(recipe: Recipe, other: Found, matrix: int) -> tuple[int, int]:
    """(bytes of a model that answers beside the trained one and was not loaded for it, weights of its linear layers).

    matrix: the latter of the recipe's base
    """
    if other.is_base:
        tensors = [t for named in other.saved.tensors.values() for t in named.values()] if other.saved else []
        return sum(t.numel() * t.element_size() for t in tensors), matrix
    plain = recipe.model_copy(update={"model": recipe.model.model_copy(update={"quantization": "none"})})
    with imagined(plain, other.folder) as model:
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        return size, sum(d * k for d, k in (linear.shape(module) for _, module in linear.named_linears(model)))


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


def imagined(recipe: Recipe, source: Path, labels: Sequence[str] = ()) -> AbstractContextManager[Any]:
    """The recipe's base in `source`, of fake tensors, in the number format in which it would be frozen.

    labels: that its head tells apart, where it has one.
    """
    compute = hardware.computation(recipe.training.precision)
    return imagine_quantized(
        source,
        dtype=hardware.DTYPES[hardware.frozen_dtype(recipe.model.precision, compute)],
        quantization=recipe.model.quantization,
        trust_remote_code=recipe.model.trust_remote_code,
        head=sketched_head(recipe, labels),
        added=added_by(recipe, source),
    )


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


def optimizer_bytes(composition: compose.Composition, attached: Any, optimizer: Optimizer) -> int:
    """What the recipe's optimiser says of each trained tensor; a part that has one, or keeps much, says it."""
    owner = composition.optimizer_owner
    sizes = [(site.d, site.k, site.rank) for site in attached.sites]
    own = sum(4 * part.kept_numbers(*size) for part in composition.parts for size in sizes)
    if owner is None:
        return own + sum(optimizer.state_bytes(p) for p in attached.trained().values())
    return own + sum(4 * owner.optimizer_numbers(*size) for size in sizes)


def gradient_bytes(composition: compose.Composition, attached: Any) -> int:
    """Of all that is trained, unless the optimiser takes gradients as they arrive; then it says what it keeps."""
    owner = composition.optimizer_owner
    if owner is None or not owner.gradients_taken:
        return sum(4 * p.numel() for p in attached.trained().values())
    return sum(4 * owner.gradient_numbers(site.d, site.k, site.rank) for site in attached.sites)


def by_module(model: nn.Module) -> list[dict[str, Any]]:
    """Linear layers by their last word and shape: how many, and what is trained of them or beside them."""
    counted: Counter[tuple[str, int, int]] = Counter()
    trained: Counter[tuple[str, int, int]] = Counter()
    saved = [name for name, module in model.named_modules() if isinstance(module, SavedModule)]
    frozen, in_full = [f"{name}.base" for name in saved], [f"{name}.trained" for name in saved]
    for name, module in model.named_modules():
        if linear.is_linear(module) and not is_in(name, frozen):
            word = word_of(name.removesuffix(".base").removesuffix(".trained"))
            counted[(word, *linear.shape(module))] += 1
            trained[(word, *linear.shape(module))] += trained_in(module) if is_in(name, in_full) else 0
        if isinstance(module, AdapterLinear):
            word = word_of(name)
            adapter: Adapter = module.adapter
            trained[(word, adapter.site.d, adapter.site.k)] += sum(
                p.numel() for p in adapter.parameters() if p.requires_grad
            )
    return [
        {"module": word, "layers": n, "d": d, "k": k, "trained": trained[word, d, k]}
        for (word, d, k), n in counted.items()
    ]


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 if Path("/proc/self/statm").exists() else 0
