"""lrft: low-rank fine-tuning from a recipe.

The Python surface is four names; each loads torch only when it is used.

    attach(model, adapter, ...)           put adapters into any module with linear layers
    load_adapter(model, folder)           the same from a saved adapter
    merge(adapter, out, ...)              adapter + base folder -> merged folder
    __version__
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lrft.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from lrft.adapters.attached import Attached

__all__ = ["__version__", "attach", "load_adapter", "merge"]


def attach(
    model: nn.Module,
    adapter: dict[str, Any],
    *,
    seed: int = 0,
    tokenizer: Any = None,
    batches: Sequence[Mapping[str, Tensor]] | None = None,
) -> Attached:
    """Freeze `model` and put adapters beside its linear layers, in place.

    `adapter` has the keys of a recipe's `adapter` section: {"method": "lora", "rank": 8, "target_modules": ["q_proj"]}.
    Adapters are float32 whatever the base's dtype, float64 over a float64 base. Random values depend on `seed` and the
    layers' names only. Raises RecipeError with every mistake in `adapter`. "all-linear" leaves out what cannot carry an
    adapter, and what a language model of transformers does not train when it reads text (found by a few tokens): the
    result's `left_out` says which and why. A layer that a pattern names is not asked for that. Layers of bitsandbytes
    give their codes to `lrft.model.quantized.QuantizedLinear`, which stays in the model.

    tokenizer   for train_tokens, and for options of methods, that name tokens by their text
    batches     calibration data for methods that need it: inputs of a causal language model of transformers,
                with "labels" (B, T); all of them are looked at
    """
    from lrft import recipe
    from lrft.adapters import targets
    from lrft.adapters.attach import attach_adapter, prune_base
    from lrft.adapters.beside import token_ids
    from lrft.adapters.calibration import CalibrationContext
    from lrft.adapters.compose import compose_section
    from lrft.adapters.reach import uncalled_by_text
    from lrft.errors import LrftError
    from lrft.model.pruned import whole_again
    from lrft.model.taken_over import take_over
    from lrft.objectives.cross_entropy import trained_tokens
    from lrft.objectives.sft import TokenLoss

    section = recipe.parse_adapter(adapter)
    take_over(model)
    prune_base(model, compose_section(section))
    context = None
    if batches is not None:
        context = CalibrationContext(
            model, batches=lambda rows: batches, loss=TokenLoss(model), tokens=trained_tokens, seed=seed
        )
    try:
        presets = set(section.target_modules) <= set(targets.PRESETS)
        passed_over = uncalled_by_text(model) if presets else {}
        left_out = targets.choose(model, section, lambda key: key, passed_over).left_out
        tokens = token_ids(section, tokenizer, (), lambda key: key) if section.train_tokens else []
        attached, _ = attach_adapter(
            model, section, seed=seed, context=context, uncalled=passed_over, tokens=tokens, tokenizer=tokenizer
        )
    except LrftError:
        whole_again(model)
        raise
    attached.left_out = left_out
    return attached


def load_adapter(model: nn.Module, folder: str | Path) -> Attached:
    """Put a saved adapter, lrft's or PEFT's, into `model`, in place. Raises CheckFailed when a file does not fit the
    model or itself."""
    from pathlib import Path

    from lrft.adapters.peft_import import load_any

    return load_any(model, Path(folder))


def merge(adapter: str | Path, out: str | Path, **options: Any) -> Any:
    """Write base + adapter as a plain model folder. `lrft.export.merge.merge_adapter` documents options and result."""
    from lrft.export.merge import merge_adapter as run

    return run(adapter, out, **options)
