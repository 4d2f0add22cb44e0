"""docs/scale.md: what 8B, 70B and 405B models take on 8, 64 and 512 GPUs, by `lrft.planning.communication`.

`scripts/scale sizes` counts parameters and activations on models of fake tensors, as `lrft plan` does, and keeps them
in docs/scale.json; `scripts/scale` makes the tables and the picture of these.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lrft.distributed.sizes import MESSAGE
from lrft.planning import communication, streaming
from lrft.planning.communication import H100_MEMORY, Memory, Ring, efficiency
from lrft.utils import files

ROOT = Path(__file__).parents[2]
# Of the published config.json of each Llama 3.1: width, width of the MLP, blocks, heads. All have 8 key-value heads,
# 128,256 words, and nothing tied.
SHAPES = {
    "8B": (4096, 14336, 32, 32),
    "70B": (8192, 28672, 80, 64),
    "405B": (16384, 53248, 126, 128),
}
RANK = 16
ROW = 2048
PASS = 4 * ROW
GPUS = (8, 64, 512)
PER_NODE = 8
# Least to set up first. The last two are DeepSpeed's, of which lrft runs zero2.
ORDER = ("one device", "ddp", "fsdp", "fsdp over all", "zero2", "zero3")
KINDS = ("none", "light", "medium", "full")
KIND = "full"
BATCH = 512
INK = "#7a7a7a"  # in between: legible on white and on black
PARTS = {
    "weights": ("frozen weights", "#4d87b8"),
    "adapter": ("trained weights", "#d9792b"),
    "gradients": ("gradients", "#e3b23c"),
    "optimizer": ("optimiser state", "#7fa650"),
    "activations": ("activations", "#9a7bb5"),
    "at_the_end": ("logits or one block", "#b0b0b0"),
}

Sizes = dict[str, Any]


# --- sizes, by fake tensors ---


def sizes(name: str) -> Sizes:
    """Numbers of parameters, and bytes of activations in a pass of PASS tokens, of one model."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import LlamaConfig, LlamaForCausalLM

    import lrft
    from lrft.adapters.targets import depth_of
    from lrft.distributed import fsdp
    from lrft.model.linear import named_linears, shape
    from lrft.planning import activation_memory
    from lrft.planning.activation_memory import Batch

    width, inner, blocks, heads = SHAPES[name]
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        tie_word_embeddings=False,
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).requires_grad_(False)
        parameters = sum(p.numel() for p in model.parameters())
        within = fsdp.within_blocks(model)
        outside = sum(p.numel() for p in model.parameters() if p not in within)
        matrix = {n: (depth_of(n) is not None, d * k) for n, m in named_linears(model) for d, k in [shape(m)]}
        attached = lrft.attach(model, {"method": "lora", "rank": RANK})
        model.train()
        kept = {
            kind: asdict(activation_memory.activations(model, Batch([PASS], torch.bfloat16, "cuda"), kind=kind))
            for kind in KINDS
        }
    return {
        "parameters": parameters,
        "outside": outside,
        "linear": sum(numbers for _, numbers in matrix.values()),
        "linear_in_blocks": sum(numbers for inside, numbers in matrix.values() if inside),
        "largest_in_blocks": max(numbers for inside, numbers in matrix.values() if inside),
        "blocks": blocks,
        "lora": sum(p.numel() for p in attached.trained().values()),
        "activations": kept,
    }


# --- what a run of them takes ---


@dataclass(frozen=True)
class Case:
    """One way to train one model."""

    model: str
    base: str
    """bf16 or nf4 below a LoRA, or full: every weight is trained"""
    strategy: str
    gpus: int
    memory: Memory
    sends: float
    """bytes a step"""
    compute: float
    """seconds a step"""
    communication: float
    """seconds a step, by itself"""
    alone: float
    """seconds of these in which no GPU can compute"""
    tokens: int
    """of a step"""

    @property
    def fits(self) -> bool:
        return self.memory.total <= H100_MEMORY

    @property
    def least(self) -> float:
        """Share of the time in which a GPU computes, with nothing hidden."""
        return efficiency(self.compute, 0.0, self.communication)

    @property
    def most(self) -> float:
        """The same with all hidden that can be."""
        return efficiency(self.compute, self.communication - self.alone, self.alone)

    @property
    def seconds(self) -> float:
        """Of a step whose communication is hidden where it can be."""
        return self.compute / self.most

    @property
    def speed(self) -> float:
        """Tokens a second, of such steps."""
        return self.tokens / self.seconds


def whole(size: Sizes, base: str, kind: str = KIND) -> Memory:
    """Of one GPU that divides nothing."""
    kept = size["activations"][kind]
    if base == "full":  # bf16 weights and gradients; float32 copies of the weights and two moments
        numbers = size["parameters"]
        parts = {"weights": 0, "adapter": 2 * numbers, "gradients": 2 * numbers, "optimizer": 12 * numbers}
    else:
        trained = 4 * size["lora"]
        weights = 2 * size["parameters"]
        if base == "nf4":
            weights += communication.nf4_bytes(size["linear_in_blocks"]) - 2 * size["linear_in_blocks"]
        parts = {"weights": weights, "adapter": trained, "gradients": trained, "optimizer": 2 * trained}
    moment = kept["moment"] + (2 * size["largest_in_blocks"] if base == "nf4" else 0)  # one layer in bf16
    return Memory(process=0, activations=kept["kept"], logits=kept["logits"], moment=moment, **parts)


def cases(model: str, size: Sizes, base: str, gpus: int, *, rows: int | None = None) -> dict[str, Case]:
    """By strategy. rows: of a step, over all GPUs; left out, each GPU makes one pass of PASS tokens."""
    memory = whole(size, base)
    row_of_gpu = PASS // ROW if rows is None else -(-rows // gpus)
    passes = -(-row_of_gpu * ROW // PASS)
    tokens = gpus * row_of_gpu * ROW
    trained = size["linear"] if base == "full" else size["lora"]
    compute = communication.operations(tokens, size["linear"], trained, KIND) / (
        gpus * communication.H100_FLOPS * communication.MFU
    )
    nodes = -(-gpus // PER_NODE)
    if base == "full":
        first = "ddp" if gpus > 1 else "one device"
        parts = {first: memory} | deepspeed_memory(memory, size["blocks"], gpus)
        rings = {first: communication.rings(memory, passes, 0, 0, gpus, nodes)[first]}
        rings |= deepspeed_rings(memory, passes, size["blocks"], gpus, nodes)
    else:
        divided = (size["blocks"], 2 * size["outside"], gpus, nodes)
        parts, rings = communication.over_devices(memory, *divided), communication.rings(memory, passes, *divided)
    return {
        name: Case(
            *(model, base, name, gpus, part, communication.sent(rings[name]), compute),
            *(communication.exchange(rings[name]), communication.alone(rings[name]), tokens),
        )
        for name, part in parts.items()
    }


def deepspeed_memory(whole: Memory, blocks: int, gpus: int) -> dict[str, Memory]:
    """Of each GPU under ZeRO-2, and under ZeRO-3, which divides all weights as well."""
    if gpus == 1:
        return {}
    zero2 = communication.zero2(whole, gpus)
    weights, adapter = (communication.divided(held, blocks, gpus, 2) for held in (whole.weights, whole.adapter))
    return {"zero2": zero2, "zero3": replace(zero2, weights=weights, adapter=adapter)}


def deepspeed_rings(whole: Memory, passes: int, blocks: int, gpus: int, nodes: int) -> dict[str, tuple[Ring, ...]]:
    """ZeRO-2 is lrft's. ZeRO-3 gathers all weights in each pass, forward and backward, and leaves each GPU the sums of
    its part: half of a sum."""
    if gpus == 1:
        return {}
    summed = communication.summing(whole.gradients, MESSAGE, gpus, nodes)
    half = Ring(summed.size / 2, blocks, gpus, nodes)
    return {
        "zero2": communication.zero2_rings(whole, passes, gpus, nodes),
        "zero3": (communication.gathering(whole.weights + whole.adapter, 2 * passes, blocks, gpus, nodes), half),
    }


def chosen(found: dict[str, Case]) -> Case | None:
    return best([case for case in found.values() if case.fits])


def best(cases: Iterable[Case]) -> Case | None:
    """The fastest; the plainest of those that are equally fast; None of none."""
    return max(sorted(cases, key=lambda case: ORDER.index(case.strategy)), key=lambda case: case.speed, default=None)


def fewest(model: str, size: Sizes, base: str) -> str:
    """The least power of two of GPUs on which some strategy fits, with that strategy."""
    for gpus in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        found = chosen(cases(model, size, base, gpus))
        if found:
            return f"{gpus}" + (f" ({found.strategy})" if gpus > 1 else "")
    return "more than 512"


# --- tables ---


def gb(size: float) -> str:
    return f"{size / 1e9:,.1f}" if size >= 0.95e8 else f"{size / 1e9:.2f}"


def thousands(speed: float) -> str:
    """With three digits that count."""
    digits = 10 ** max(0, len(f"{speed:.0f}") - 3)
    return f"{round(speed / digits) * digits:,.0f}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]], words: int = 1) -> str:
    """words: columns from the left that hold words; the others hold numbers."""
    marks = ["---" if at < words else "---:" for at in range(len(head))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, marks, *lines])


def title(base: str) -> str:
    return "every weight trained" if base == "full" else f"LoRA, {base} base"


def choices(all_sizes: dict[str, Sizes]) -> str:
    def cell(found: Case | None) -> str:
        return "does not fit" if found is None else f"{found.strategy}: {thousands(found.speed)}"

    lines = [
        [model, title(base), fewest(model, size, base), *(cell(chosen(cases(model, size, base, n))) for n in GPUS)]
        for base in ("bf16", "nf4", "full")
        for model, size in all_sizes.items()
    ]
    return table(["model", "", "fewest GPUs", *(f"{n} GPUs: tokens/s" for n in GPUS)], lines, words=6)


def details(all_sizes: dict[str, Sizes], model: str) -> str:
    lines = []
    for base in ("bf16", "nf4"):
        for gpus in GPUS:
            found = cases(model, all_sizes[model], base, gpus)
            best = chosen(found)
            lines += [line(case, case is best) for case in found.values()]
    head = ["base", "GPUs", "strategy", "frozen", "trained, gradients, state", "activations", "at the end", "together"]
    head += ["fits 80 GB", "sends GB", "computes s", "sends s", "efficiency, nothing hidden", "all hidden", "tokens/s"]
    return table(head, lines, words=3)


def line(case: Case, best: bool) -> list[str]:
    m = case.memory
    return [
        *(case.base, f"{case.gpus}", f"**{case.strategy}**" if best else case.strategy, gb(m.weights)),
        *(gb(m.adapter + m.gradients + m.optimizer), gb(m.activations), gb(m.at_the_end), gb(m.total)),
        *("yes" if case.fits else "no", gb(case.sends), f"{case.compute:.2f}", f"{case.communication:.2f}"),
        *(f"{case.least:.0%}", f"{case.most:.0%}", thousands(case.speed)),
    ]


def against_full(all_sizes: dict[str, Sizes]) -> str:
    lines = []
    for model, size in all_sizes.items():
        for base in ("bf16", "full"):
            ddp = cases(model, size, base, 64)["ddp"]
            numbers = size["parameters"] if base == "full" else size["lora"]
            held = ddp.memory.adapter + ddp.memory.gradients + ddp.memory.optimizer
            lines.append([model, title(base), f"{numbers / 1e9:,.2f}", gb(ddp.sends), gb(held), gb(ddp.memory.total)])
    head = ["model", "", "numbers trained, 10^9", "ddp sends GB a step", "trained, gradients, state", "ddp together"]
    return table(head, lines, words=2)


def deepspeed(all_sizes: dict[str, Sizes]) -> str:
    lines = []
    for model, size in all_sizes.items():
        for base in ("bf16", "full"):
            found = cases(model, size, base, 64)
            memory = {name: case.memory for name, case in found.items()}
            memory |= deepspeed_memory(whole(size, base), size["blocks"], 64)
            saved = memory["ddp"].total - memory["zero2"].total
            zero2 = f"{gb(saved)} ({saved / memory['ddp'].total:.1%})"
            shared = [gb(memory[name].total) if name in memory else "-" for name in ("fsdp", "fsdp over all")]
            lines.append([model, title(base), gb(memory["ddp"].total), zero2, *shared, gb(memory["zero3"].total)])
    return table(["model", "", "ddp", "zero2 saves", "fsdp", "fsdp over all", "zero3"], lines, words=2)


def fixed_batch(all_sizes: dict[str, Sizes]) -> str:
    lines = []
    every = "fsdp over all"
    for model, base, strategy in (("8B", "bf16", "ddp"), ("8B", "bf16", "fsdp"), ("8B", "bf16", every),
                                  ("70B", "bf16", "fsdp"), ("70B", "bf16", every), ("70B", "nf4", "fsdp"),
                                  ("405B", "nf4", every)):  # fmt: skip
        for gpus in GPUS:
            case = cases(model, all_sizes[model], base, gpus, rows=BATCH).get(strategy)
            if case is None or not case.fits:
                continue
            rows = BATCH // gpus
            lines.append(
                [
                    *(model, base, strategy, f"{gpus}", f"{rows}", f"{-(-rows * ROW // PASS)}"),
                    *(f"{case.seconds:,.2f}", f"{case.least:.0%}", f"{case.most:.0%}"),
                    thousands(case.speed),
                ]
            )
    head = ["model", "base", "strategy", "GPUs", "rows of a GPU", "passes", "seconds a step"]
    return table([*head, "efficiency, nothing hidden", "all hidden", "tokens/s"], lines, words=3)


def checkpointing(all_sizes: dict[str, Sizes]) -> str:
    lines = [
        [kind, *(gb(replace(whole(size, "bf16", kind), weights=0, adapter=0, gradients=0, optimizer=0).total)
                 for size in all_sizes.values())]
        for kind in KINDS
    ]  # fmt: skip
    return table(["training.gradient_checkpointing", *all_sizes], lines)


@dataclass(frozen=True)
class Card:
    """A GPU that a base is streamed to."""

    name: str
    memory: float
    flops: float
    """dense bf16, summed in float32, a second"""
    link: float
    """bytes a second in one direction"""
    source: str


# GeForce tensor cores at their boost clock: 2 x 256 operations a cycle and SM, half of a data centre's when summed in
# float32. PCIe: 1.97 GB/s a lane in version 4, 3.94 in version 5.
CARDS = (
    Card("RTX 3050 Laptop", 4e9, 16 * 512 * 1.5e9, 8 * 1.97e9, "16 SMs at 1.5 GHz, PCIe 4.0 x8"),
    Card("RTX 4060", 8e9, 24 * 512 * 2.46e9, 8 * 1.97e9, "24 SMs at 2.46 GHz, PCIe 4.0 x8"),
    Card("RTX 4090", 24e9, 128 * 512 * 2.52e9, 16 * 1.97e9, "128 SMs at 2.52 GHz, PCIe 4.0 x16"),
    Card("H100 SXM", H100_MEMORY, communication.H100_FLOPS, 16 * 3.94e9, "PCIe 5.0 x16"),
)
PIECE = 64
"""tokens in which the size of a pass is looked for"""
LOGITS = 2**26 // 128256
"""tokens whose logits are made at once (`lrft.objectives.cross_entropy`)"""


def with_pass(memory: Memory, tokens: int, *, fixed: int) -> Memory:
    """What a pass of PASS tokens takes, with so many tokens. fixed: bytes of a moment that depend on no token."""
    share = tokens / PASS
    moment = round((memory.moment - fixed) * share) + fixed
    logits = min(memory.logits, round(memory.logits * tokens / LOGITS))
    return replace(memory, activations=round(memory.activations * share), moment=moment, logits=logits)


def streamed(all_sizes: dict[str, Sizes]) -> str:
    """Per card: what fits beside two blocks, and from which pass on the link limits nothing."""
    lines = []
    for model, base in ((m, b) for m in ("8B", "70B") for b in ("bf16", "nf4")):
        size = all_sizes[model]
        memory, blocks, outside = whole(size, base), size["blocks"], 2 * size["outside"]
        fixed = 2 * size["largest_in_blocks"] if base == "nf4" else 0
        two = streaming.held(memory, blocks, outside)
        within = memory.weights - outside
        for card in CARDS:
            link = streaming.Link("PCIe", card.link * communication.H100_LINKS.reached, behind=True)
            each = communication.operations(1, size["linear"], size["lora"], KIND) / (card.flops * communication.MFU)
            par = streaming.tokens_at_par(within, blocks, each, link)
            fits = [n for n in range(PIECE, 4 * PASS + 1, PIECE) if with_pass(two, n, fixed=fixed).total <= card.memory]
            most = fits[-1] if fits else 0
            seconds = streaming.seconds(most * each, streaming.copied(within, blocks, both=1), link)
            resident = with_pass(memory, PIECE, fixed=fixed).total <= card.memory
            shown = [f"{most:,}", thousands(most / seconds)] if most else ["does not fit", "-"]
            needs = with_pass(two, PIECE, fixed=fixed).total
            lines.append([model, base, f"{card.memory / 1e9:.0f} GB, {card.name}", "yes" if resident else "no",
                          gb(needs), f"{math.ceil(par / 100) * 100:,}", *shown])  # fmt: skip
    head = ["model", "base", "GPU", "fits resident", f"streamed, {PIECE} tokens: GB", "link hidden from, tokens a pass"]
    return table([*head, "most tokens a pass", "tokens/s with them"], lines, words=4)


def assumptions() -> str:
    links = communication.H100_LINKS
    return table(
        ["", "taken as", "from"],
        [
            ["GPU", f"H100 SXM, {communication.H100_MEMORY / 1e9:.0f} GB, "
             f"{communication.H100_FLOPS / 1e12:.0f} TFLOP/s dense bf16",
             "NVIDIA's data sheet"],
            ["share of it that computation reaches", f"{communication.MFU:.0%}",
             "The Llama 3 Herd of Models, table 4: 38 to 43 %"],
            ["inside a node of 8", f"NVLink, {links.inside / 1e9:.0f} GB/s in each direction", "NVIDIA's data sheet"],
            ["between nodes", f"InfiniBand, 400 Gb/s = {links.between / 1e9:.0f} GB/s for each GPU",
             "DGX H100's data sheet"],
            ["share of both that is reached", f"{links.reached:.0%}", "assumption"],
            ["a hop of a ring", f"{links.hop_inside * 1e6:.1f} µs inside, {links.hop_between * 1e6:.0f} µs between",
             "NCCL, src/graph/tuning.cc"],
            ["a pass", f"{PASS:,} tokens a GPU, gradient_checkpointing: {KIND}", "choice"],
            ["LoRA", f"rank {RANK} on every linear layer of the blocks; weights, gradients and AdamW in float32",
             "lrft's defaults"],
            ["nf4", f"{communication.NF4_BITS:.3f} bits for each weight of a linear layer in a block; the rest bf16",
             "QLoRA, double quantisation"],
            ["every weight trained", "16 bytes a parameter: bf16 weight and gradient, float32 copy and two moments",
             "ZeRO, section 3.1"],
            *([card.name, f"{card.flops / 1e12:.0f} TFLOP/s dense bf16, {card.link / 1e9:.1f} GB/s from the machine's "
               "memory", card.source] for card in CARDS),
        ],
        words=3,
    )  # fmt: skip


def tables(all_sizes: dict[str, Sizes]) -> dict[str, str]:
    """By the name of their place in the page."""
    return {
        "choices": choices(all_sizes),
        "against full": against_full(all_sizes),
        "deepspeed": deepspeed(all_sizes),
        **{model: details(all_sizes, model) for model in all_sizes},
        "fixed batch": fixed_batch(all_sizes),
        "checkpointing": checkpointing(all_sizes),
        "streamed": streamed(all_sizes),
        "assumptions": assumptions(),
    }


def page(text: str, all_sizes: dict[str, Sizes]) -> str:
    """`text` with its tables as they should be. Raises ValueError when a place is missing."""
    for name, made in tables(all_sizes).items():
        begin, end = f"<!-- {name}: written by scripts/scale -->", "<!-- end -->"
        pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
        text, places = re.subn(pattern, lambda _, t=f"{begin}\n{made}\n{end}": t, text, flags=re.S)
        if places != 1:
            raise ValueError(f"docs/scale.md has {places} places for {name}")
    return text


# --- picture ---


def bars(all_sizes: dict[str, Sizes], model: str) -> Iterator[tuple[str, Memory]]:
    """What is drawn of one model: memory of a GPU of 64."""
    drawn = (("bf16", "ddp"), ("bf16", "fsdp"), ("bf16", "fsdp over all"), ("nf4", "ddp"), ("nf4", "fsdp"),
             ("full", "zero3"))  # fmt: skip
    for base, strategy in drawn:
        words = f"{title(base)}\n{strategy}"
        yield words, cases(model, all_sizes[model], base, 64)[strategy].memory


def draw(all_sizes: dict[str, Sizes], path: Path) -> None:
    """One panel for each model, one bar for each way to train it."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    style = {"svg.hashsalt": "lrft", "svg.fonttype": "none", "text.color": INK, "xtick.color": INK, "ytick.color": INK}
    with mpl.rc_context({**style, "axes.edgecolor": INK, "axes.labelcolor": INK, "font.size": 9}):
        figure, panels = plt.subplots(1, len(all_sizes), figsize=(11, 3.4), layout="constrained")
        for panel, model in zip(panels, all_sizes, strict=True):
            found = list(bars(all_sizes, model))
            for place, (_, memory) in enumerate(found):
                left = 0.0
                for part, (_, colour) in PARTS.items():
                    size = getattr(memory, part) / 1e9
                    panel.barh(place, size, left=left, color=colour, height=0.7)
                    left += size
                panel.annotate(gb(memory.total), (left, place), (4, 0), textcoords="offset points", va="center")
            panel.axvline(communication.H100_MEMORY / 1e9, color="#b02a2a", linewidth=1)
            panel.set_yticks(
                range(len(found)), [words for words, _ in found] if panel is panels[0] else [""] * len(found)
            )
            panel.invert_yaxis()
            panel.margins(x=0.2)
            panel.set_title(f"{model}, GB of each of 64 GPUs", fontsize=10, loc="left", color=INK)
            panel.spines[["top", "right", "left"]].set_visible(False)
            panel.tick_params(axis="y", length=0)
            panel.patch.set_alpha(0)
        handles = [mpl.patches.Patch(color=colour, label=label) for label, colour in PARTS.values()]
        handles.append(mpl.lines.Line2D([], [], color="#b02a2a", label="80 GB"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
        figure.savefig(path, transparent=True, metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/scale", description=__doc__)
    parser.add_argument("action", nargs="?", choices=["sizes"], help="count parameters and activations anew")
    kept, written = ROOT / "docs" / "scale.json", ROOT / "docs" / "scale.md"
    if parser.parse_args().action == "sizes":
        files.write_json(kept, {name: sizes(name) for name in SHAPES})
    all_sizes = files.read_json(kept)
    files.write_text(written, page(written.read_text(encoding="utf-8"), all_sizes))
    draw(all_sizes, ROOT / "docs" / "scale.svg")


if __name__ == "__main__":
    main()
