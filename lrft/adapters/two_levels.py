"""Two levels of training: the lower tensors on the step's rows, the upper ones on auxiliary rows through a lower step.

As AutoLoRA's released code does it (Choe et al.'s Betty, arXiv 2207.02849: darts, one unrolled step, roll_back):

    1. a trial step of the lower tensors w -> w'
    2. of the upper ones, at w', v the auxiliary loss's gradient by w':
       its direct gradient - (g_upper(w' + eps v) - g_upper(w' - eps v)) / (2 eps),  g_upper that of the step's own loss
    3. back to w, and a step of the lower tensors beside the upper ones after theirs

The finite difference stands for the product of the mixed second derivatives with v; the inverse of the lower Hessian is
taken as the identity, without a factor of the learning rate.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from lrft.adapters.gradients import FurtherPasses, Gradients, StepPasses, combined, displaced, norm

LENGTH = 0.01
"""of eps v: darts_alpha"""
TINY = 1e-15
PASSES = FurtherPasses(own=3, auxiliary=1)
"""of `two_level_gradient`"""


def two_level_gradient(
    gradient: Gradients, passes: StepPasses, upper: Collection[nn.Parameter], length: float = LENGTH
) -> Gradients:
    """What both levels step along, from the step's own gradient."""
    above = set(upper)
    with passes.stepped({p: g for p, g in gradient.items() if p not in above}):
        hyper = hypergradient(passes, above, length)
    with passes.stepped(hyper):
        lower = passes.own()
    return {p: g for p, g in lower.items() if p not in above} | hyper


def hypergradient(passes: StepPasses, upper: Collection[nn.Parameter], length: float = LENGTH) -> Gradients:
    """The gradient of the upper tensors at the lower ones as they are now."""
    top = passes.auxiliary()
    direct = {p: g for p, g in top.items() if p in upper}
    v = {p: g for p, g in top.items() if p not in upper}
    eps = length / (norm(v) + TINY)
    with displaced(combined((eps, v))):
        plus = passes.own()
    with displaced(combined((-eps, v))):
        minus = passes.own()
    difference = combined((-0.5 / eps, plus), (0.5 / eps, minus))
    return combined((1.0, direct), (1.0, {p: g for p, g in difference.items() if p in upper}))
