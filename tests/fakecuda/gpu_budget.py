"""What a step may ask of a GPU: reads of its values by the function that makes them, and operations by method.

A read that is new stands here with its reason, or is taken out of the code. The numbers of operations are those of two
passes over two blocks with seven adapted layers each, hooks and optimiser included.
"""

from __future__ import annotations

# One of each kind of set-up and step; the others are run by --all.
AT_EACH_CHANGE = (
    *("lora", "dora", "pissa+ba-lora", "adalora", "elalora", "increlora", "relora", "fira", "fourierft", "lora-ga"),
    *("goat", "full"),
)
SLACK = 1.02
# Two a step: the sums of its passes, before the optimiser acts on them, and the norm of the gradient.
READS = {"training.passes:forward_backward": 1, "distributed.strategy:Strategy.step": 1}
# Norms of gradients, updates and, once, of weights.
LOGGED_READS = {"training.diagnostics:summed": 3}
# By case, beside those: decompositions, whose success the machine is told, and choices that hang on them.
READS_OF: dict[str, dict[str, int]] = {
    "relora": {"adapters.adapter:load_tensors": 28},  # at a restart
    "pissa+ba-lora": {"methods.ba_lora:leading_share": 2, "adapters.svd:largest": 4, "adapters.svd:exact": 2},
    "lora-pro": {"methods.lora_pro:closest": 2},
    "preconditioned": {"methods.preconditioned:Preconditioned.inverses": 2},
    "fedsvd": {"methods.fedsvd:factorise": 14},  # when it exchanges its factors
    "increlora": {
        "methods.increlora:Increlora.after_step": 1,
        "methods.increlora:Increlora.scores": 1,
        "methods.increlora:Increlora.keep_reserve": 1,
    },
    "elalora": {"methods.elalora:read": 1},
}
# Copies to the GPU that are not queued.
SENDS_OF: dict[str, dict[str, int]] = {"relora": {"adapters.adapter:load_tensors": 28}}
# In fp16 they overflow in both of two steps, by their nature: random bases, scaled for many more inputs.
OVERFLOWS = ("randlora",)
OPERATIONS: dict[str, int] = {}
