"""Model, tokenizer and skeleton of a local folder. Nothing here asks the network."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrft.errors import LrftError, MissingError

from .weights import weight_files

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    folder: Path, *, dtype: torch.dtype, attention: str = "auto", trust_remote_code: bool = False
) -> PreTrainedModel:
    """The causal language model in `folder`: in eval mode, every parameter frozen and in `dtype`.

    Raises:
        MissingError: no safetensors, or the attention kernel is not installed.
        LrftError: transformers cannot read the folder, or the files lack weights that the model has.
    """
    _import_transformers()
    from transformers import AutoModelForCausalLM

    from .rowwise import use_rowwise

    weight_files(folder)
    with quiet(), _readable(folder, "model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            attn_implementation=None if attention == "auto" else attention,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    model, loading = loaded
    absent = sorted(loading["missing_keys"])
    if absent:  # transformers fills them with random numbers and goes on
        raise LrftError(f"The weights in {folder} lack {len(absent)} tensors of the model, e.g. {absent[0]}")
    use_rowwise(model)
    return model.eval().requires_grad_(False)


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`. Raises LrftError when there is none that transformers can read."""
    _import_transformers()
    from transformers import AutoTokenizer

    with quiet(), _readable(folder, "tokenizer"):
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code, local_files_only=True)


def load_config(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """The model's configuration. Raises LrftError when transformers cannot read it."""
    _import_transformers()
    from transformers import AutoConfig

    with quiet(), _readable(folder, "configuration"):
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code, local_files_only=True)


def skeleton(folder: Path, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of `folder` on the meta device: names and shapes, nothing read but the config."""
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(folder, trust_remote_code)
    with quiet(), _readable(folder, "configuration"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def imagined(folder: Path, *, dtype: torch.dtype, trust_remote_code: bool = False) -> Iterator[PreTrainedModel]:
    """The model of `folder` in `dtype`, of fake tensors: on the CPU by their own account, with shapes and no content.

    Inside, everything that is made of tensors is as fake. Nothing is read but the config.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    from .rowwise import use_rowwise

    config = load_config(folder, trust_remote_code)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with quiet(), _readable(folder, "configuration"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
        use_rowwise(model)
        yield model.eval().requires_grad_(False)


def position_limit(config: PretrainedConfig) -> int | None:
    """The longest sequence in tokens that the model's positions allow, or None when its config names none.

    The tokenizer's `model_max_length` is not asked: it is often a placeholder of 10^30.
    """
    text = config.get_text_config()
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        limit = getattr(text, key, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    return None


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Around imports of large libraries, without the garbage collector, which takes a quarter of their time.

    They make half a million objects that stay; the collector would look at them again and again as they come. In a
    process that sets objects aside for good, as `cli` does, these are as well: it then never looks at them.
    """
    collecting, aside = gc.isenabled(), gc.get_freeze_count() > 0
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if not aside:
            gc.unfreeze()  # what was young is old now, in one step
        if collecting:
            gc.enable()


def _import_transformers() -> None:
    """At one time what transformers imports by and by when a model and a tokenizer are loaded."""
    if "transformers.modeling_utils" not in sys.modules:
        with importing():
            from transformers import (  # noqa: F401
                AutoConfig,
                AutoModelForCausalLM,
                AutoTokenizer,
                PreTrainedModel,
                PreTrainedTokenizerFast,
            )


@contextlib.contextmanager
def _readable(place: Path, what: str) -> Iterator[None]:
    """Turns what transformers raises on an unusable folder into one sentence with the place."""
    from safetensors import SafetensorError

    try:
        yield
    except ImportError as error:
        raise MissingError(f"The {what} {place} needs a package that is not installed: {error}") from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        hint = None
        if "trust_remote_code" in str(error):
            hint = "Read that code first; model.trust_remote_code: true then allows it."
        raise LrftError(f"transformers cannot read the {what} {place}: {error}", hint) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' progress bars and notices, and puts both back."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
