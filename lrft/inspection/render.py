"""Output of `lrft inspect`: terminal tables and inspect.png."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lrft.inspection.beside import BesideReport
from lrft.inspection.inspect import GroupReport, Inspection, ModuleReport, grouped
from lrft.inspection.spectra import USED
from lrft.report.loss_plot import dress, png
from lrft.utils.text import aligned, count, decimals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCHES = (10.0, 11.0)
ENDS = 5  # modules shown of the most and of the least changed
NO_DEPTH = "outside"


def lines(found: Inspection) -> list[str]:
    """Tables of modules, roles and depths, with what their columns mean."""
    shown, title = ends(found.modules)
    named = "module", "rank"
    heads = ("norm", "relative", "stable", "effective", "used", "intruders")
    total = found.total
    blocks = [
        [f"{' + '.join(found.methods)} on {found.base}: {count(total.modules, 'module')}"],
        [title, *aligned([(*named, *heads), *(module_row(one) for one in shown)])],
        ["by role", *aligned([("role", "modules", *heads), *(group_row(*one) for one in found.by_role.items())])],
        ["by depth", *aligned([("layer", "modules", *heads), *(group_row(*one) for one in found.by_depth.items())])],
        aligned([("", "modules", *heads), group_row("all", total)]),
        [
            "norm        Frobenius norm of the update; for groups, over all modules",
            "relative    norm over the norm of the base weights",
            "stable      rank ||dW||_F^2 / ||dW||_2^2; effective: exp of the entropy of its singular values",
            f"used        singular values above {USED:g} of the largest, next to the nominal rank; groups show means",
            f"intruders   of the {found.top} leading left singular vectors of the merged weight, those whose |cosine| "
            f"with each of the base's is below {found.epsilon:g}",
        ],
    ]
    if found.beside:
        blocks.insert(
            -1,
            [
                "beside the layers",
                *aligned([("trained", "numbers", "norm", "relative"), *map(beside_row, found.beside)]),
            ],
        )
    if found.left_out:
        left_out = count(len(found.left_out), "tensor")
        blocks.append([f"not inspected: {left_out} outside linear layers, e.g. {found.left_out[0]}"])
    if not found.by_depth:
        del blocks[3]
    return "\n\n".join("\n".join(block) for block in blocks).split("\n")


def ends(modules: Sequence[ModuleReport]) -> tuple[list[ModuleReport], str]:
    """The modules to show, most changed first, and what they are."""
    ordered = sorted(modules, key=lambda one: one.relative or 0.0, reverse=True)
    if len(ordered) <= 2 * ENDS:
        return ordered, "modules, most changed first"
    return [*ordered[:ENDS], *ordered[-ENDS:]], f"the {ENDS} most and the {ENDS} least changed modules"


def module_row(one: ModuleReport) -> tuple[str, ...]:
    update = one.update
    figures = (
        decimals(update.norm, 4),
        percent(one.relative),
        f"{update.stable_rank:.2f}",
        f"{update.effective_rank:.2f}",
    )
    return (one.name, str(one.rank), *figures, f"{one.used_rank}/{one.rank}", str(one.intruders))


def beside_row(one: BesideReport) -> tuple[str, ...]:
    """A row of what was trained beside the layers; dashes where the base has no such tensor."""
    shown = "-" if one.norm is None else decimals(one.norm, 4)
    return (one.place, str(one.numbers), shown, percent(one.relative))


def group_row(name: str | int, group: GroupReport) -> tuple[str, ...]:
    ranks = (f"{value:.2f}" for value in (group.stable_rank, group.effective_rank, group.used_rank))
    return (
        str(name),
        str(group.modules),
        decimals(group.norm, 4),
        percent(group.relative),
        *ranks,
        str(group.intruders),
    )


def percent(relative: float | None) -> str:
    return "-" if relative is None else decimals(relative, 5)


def picture(found: Inspection) -> bytes:
    """A PNG of 1000 x 1100 pixels: relative norm by depth and role, spectra of the updates by role, intruders."""
    return png(INCHES, lambda figure: _draw(figure, found))


def _draw(figure: Figure, found: Inspection) -> None:
    norms, spectra, intruders = figure.subplots(3, 1)
    roles = list(found.by_role)
    colours = dict(zip(roles, _colours(len(roles)), strict=True))
    _draw_norms(norms, found, colours)
    _draw_spectra(spectra, found, colours)
    _draw_intruders(intruders, found)
    handles, labels = spectra.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=7, frameon=False)


def _colours(count: int) -> Iterable[tuple[float, ...]]:
    from matplotlib import colormaps

    wheel = colormaps["tab10"]
    return [wheel(at % 10) for at in range(count)]


def _draw_norms(axes: Axes, found: Inspection, colours: dict[str, tuple[float, ...]]) -> None:
    """Modules of one role at one depth, such as experts, stand together as one point."""
    groups = grouped(found.modules, [(one.role, one.depth) for one in found.modules])
    for role, colour in colours.items():
        line = sorted(
            (at, group.relative or 0.0) for (word, at), group in groups.items() if word == role and at is not None
        )
        axes.plot([at for at, _ in line], [100 * relative for _, relative in line], "o-", color=colour, ms=4, lw=1.4)
    axes.set_ylim(bottom=0)
    dress(axes, "norm of the update, % of the base's")
    axes.set_xlabel("layer")


def _draw_spectra(axes: Axes, found: Inspection, colours: dict[str, tuple[float, ...]]) -> None:
    """The median over a role's modules of each singular value."""
    for role, colour in colours.items():
        kept = [one.update.values for one in found.modules if one.role == role]
        length = min(len(values) for values in kept)
        medians = [statistics.median(values[at] for values in kept) for at in range(length)]
        drawn = [(at + 1, value) for at, value in enumerate(medians) if value > 1e-12]
        axes.plot([at for at, _ in drawn], [value for _, value in drawn], "o-", color=colour, ms=3, lw=1.4, label=role)
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter("")
    dress(axes, "singular values of the update")
    axes.set_xlabel("number (medians over the modules of a role)")


def _draw_intruders(axes: Axes, found: Inspection) -> None:
    counts = {str(depth): group.intruders for depth, group in found.by_depth.items()}
    outside = [one.intruders for one in found.modules if one.depth is None]
    counts |= {NO_DEPTH: sum(outside)} if outside else {}
    axes.bar(range(len(counts)), list(counts.values()), color="#7d5ba6")
    axes.set_ylim(0, max([1, *counts.values()]) * 1.1)
    dress(axes, f"intruder dimensions\n(top {found.top}, |cos| < {found.epsilon:g})")
    axes.locator_params(axis="y", integer=True, nbins=5)
    if not any(counts.values()):
        axes.text(0.5, 0.5, "none", ha="center", transform=axes.transAxes)
    every = -(-len(counts) // 24)  # as many names as fit
    axes.set_xticks(range(0, len(counts), every), list(counts)[::every])
    axes.set_xlabel("layer")
