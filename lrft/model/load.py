"""Load model, tokenizer and skeleton from a local folder, without network access."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import importlib.util
import logging as standard_logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrft.errors import LrftError, MissingError
from lrft.model.attention_kernels import KERNELS
from lrft.model.classes import auto_class
from lrft.model.head import Head, head_modules, settle
from lrft.model.weights import weight_files
from lrft.utils import threads
from lrft.utils.slow import verbose

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils.quantization_config import QuantizationConfigMixin

    from lrft.model.added_tokens import Added

# Formats of stored codes that transformers dequantises when it is told to.
DEQUANTIZED = ("fp8", "mxfp8", "mxfp4", "compressed-tensors")
# Types of models whose first position is the one behind the padding token's number.
COUNT_FROM_PADDING = frozenset(
    {
        *("camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "roberta-prelayernorm"),
        *("xlm-roberta", "xlm-roberta-xl", "xmod"),
    }
)


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    quantization: str = "none",
    attention: str = "auto",
    trust_remote_code: bool = False,
    head: Head | None = None,
    added: Added | None = None,
) -> PreTrainedModel:
    """The language model in `folder`, with the towers of one that also sees or hears: in eval mode, every parameter
    frozen and in `dtype`.

    quantization   nf4, fp4, int8 or fp8: the linear layers but for the output head become `QuantizedLinear`s, made of
                   the weights in `dtype`. A folder that is stored so already is read as it is, with "none".
    head           in the place of the language model's; what the files lack of it is made from its seed
    added          tokens that the files know nothing of: they get rows in embedding and head
    Raises:
        MissingError: no safetensors, or the attention kernel or the package that quantises is not installed.
        LrftError: transformers cannot read the folder, or the files lack weights that the model has.
    """
    refuse_missing(quantization)
    import_transformers()
    from lrft.model.added_tokens import make_rows
    from lrft.model.packed_attention import use_rowwise
    from lrft.model.taken_over import take_over

    weight_files(folder)
    config = load_config(folder, trust_remote_code)
    options: dict[str, Any] = {}
    if dequantize(config):
        options["config"] = config
    if head is not None:
        stored = copy.deepcopy(config)
        head.configure(config)
        options = {"config": config, "ignore_mismatched_sizes": True}
    if quantization != "none":
        if hasattr(config, "quantization_config"):
            raise LrftError(f"{folder} is already stored quantised", "Remove model.quantization.")
        # On the CPU whatever the machine has: the codes are the same everywhere.
        skipped = None if head is None else head_modules(load_skeleton(folder, trust_remote_code, head))
        options |= {"quantization_config": quantizer(quantization, dtype, skipped), "device_map": {"": "cpu"}}
    with quiet(), _readable(folder, "model"):
        loaded: Any = auto_class(config, folder, head).from_pretrained(
            str(folder),
            dtype=dtype,
            attn_implementation=KERNELS.get(attention, attention),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    model, loading = loaded
    absent = sorted({*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])})
    if head is not None:
        with _readable(folder, "weights"):
            settle(model, stored, head, absent)
    elif absent:  # transformers fills them with random numbers and goes on
        raise LrftError(f"The weights in {folder} lack {len(absent)} tensors of the model, e.g. {absent[0]}")
    take_over(model)
    if added is not None:
        make_rows(model, added)
    if quantization != "none":
        _leave_the_files(model)
    if getattr(model, "hf_quantizer", None) is not None:  # transformers would refuse to move or widen the model
        model.hf_quantizer.remove_quantization_config(model)
    use_rowwise(model)
    _keep_weights(model.config)
    return model.eval().requires_grad_(False)


def _keep_weights(config: PretrainedConfig) -> None:
    """Lets RWKV answer without writing to its weights.

    In evaluation it halves those of later blocks, so that float16 does not overflow, and what it makes of them; its
    logits are the same without, but for what the norms' epsilon makes of halves.
    """
    if config.model_type == "rwkv":
        config.rescale_every = 0


def _leave_the_files(model: nn.Module) -> None:
    """Copies what was not quantised, and gives back what quantising took.

    The rest lies in the mapped files, and as long as anything does, all that was read of them is memory of this
    process: the whole model, unquantised. What lies free between codes is kept by the C library until it is told.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc has it
        trim(0)


def dequantize(config: PretrainedConfig) -> bool:
    """Has transformers dequantise what is stored in a format that it can; whether it is. In place.

    It would by itself without a GPU, and keep layers of its own, which adapters cannot go on, with one.
    """
    sections = (getattr(each, "quantization_config", None) for each in (config, config.get_text_config()))
    found = next((section for section in sections if isinstance(section, dict)), {})
    if found.get("quant_method") not in DEQUANTIZED:
        return False
    found["dequantize"] = True
    return True


def refuse_missing(quantization: str, where: str = "model.quantization") -> None:
    """Raises MissingError when `quantization` requires a package that is not installed. Loads nothing."""
    if quantization not in ("none", "fp8") and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingError(f"{where}: {quantization} requires the package bitsandbytes", "pip install 'lrft[quant]'")


def quantizer(quantization: str, dtype: torch.dtype, skipped: list[str] | None = None) -> QuantizationConfigMixin:
    """transformers' words for a kind. skipped: modules that stay as they are; None for the output layer."""
    from transformers import BitsAndBytesConfig

    from lrft.model.fp8_loading import Fp8Config

    if quantization == "fp8":
        return Fp8Config(skipped, dtype)
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    # The scales in 8 bits too, as QLoRA has them (Dettmers et al., 2023, arXiv 2305.14314, section 3): 4.13 bits for
    # each weight in place of 4.5, without a loss that its authors could measure.
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skipped,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`. Raises LrftError when there is none that transformers can read."""
    with importing():
        from transformers import AutoTokenizer

    with quiet(), _readable(folder, "tokenizer"):
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code, local_files_only=True)


def load_config(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """The model's configuration. Raises LrftError when transformers cannot read it."""
    with importing():
        from transformers import AutoConfig

    with quiet(), _readable(folder, "configuration"):
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code, local_files_only=True)


def load_skeleton(
    folder: Path, trust_remote_code: bool = False, head: Head | None = None, added: Added | None = None
) -> PreTrainedModel:
    """The model of `folder` on the meta device: names and shapes, nothing read but the config. head, added: as
    `load_model`"""
    import torch

    from lrft.model.added_tokens import make_rows

    config = load_config(folder, trust_remote_code)
    if head is not None:
        head.configure(config)
    with quiet(), _readable(folder, "configuration"), torch.device("meta"):
        model = auto_class(config, folder, head).from_config(config, trust_remote_code=trust_remote_code)
        if added is not None:
            make_rows(model, added)
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def imagine_quantized(
    folder: Path,
    *,
    dtype: torch.dtype,
    quantization: str = "none",
    trust_remote_code: bool = False,
    head: Head | None = None,
    added: Added | None = None,
) -> Iterator[PreTrainedModel]:
    """The model of `folder` in `dtype`, of fake tensors: on the CPU by their own account, with shapes and no content.

    Inside, everything that is made of tensors is as fake. Nothing is read but the config.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

    from lrft.model.added_tokens import make_rows
    from lrft.model.packed_attention import use_rowwise
    from lrft.model.quantized import imagine

    config = load_config(folder, trust_remote_code)
    if head is not None:
        head.configure(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with quiet(), _readable(folder, "configuration"):
            # First on the meta device: some towers look at the content of what they are made of, and a fake has none.
            with torch.device("meta"), unset_fake_temporarily():
                auto = auto_class(config, folder, head)
                model = auto.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
                if added is not None:
                    make_rows(model, added)
            _take_memory(model)
            if quantization != "none":
                imagine(model, quantization)
        use_rowwise(model)
        yield model.eval().requires_grad_(False)


def _take_memory(model: nn.Module) -> None:
    """Puts tensors of the CPU in the places of those of the meta device. One that has several places keeps them."""
    import torch

    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            new = made.setdefault(id(parameter), torch.nn.Parameter(torch.empty_like(parameter, device="cpu")))
            setattr(module, name, new)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, made.setdefault(id(buffer), torch.empty_like(buffer, device="cpu")))


def position_limit(config: PretrainedConfig) -> int | None:
    """The longest sequence in tokens that the model's positions allow, or None when its config names none.

    The tokenizer's `model_max_length` is not asked: it is often a placeholder of 10^30.
    """
    text = config.get_text_config()
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        limit = getattr(text, key, None)
        if isinstance(limit, int) and limit > 0:
            return limit - ((text.pad_token_id or 0) + 1 if text.model_type in COUNT_FROM_PADDING else 0)
    return None


def embedding_rows(config: PretrainedConfig) -> int | None:
    """How many tokens the model has an embedding for, or None when its config does not say."""
    rows = getattr(config.get_text_config(), "vocab_size", None)
    return rows if isinstance(rows, int) and rows > 0 else None


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Around imports of large libraries, without the garbage collector, which takes a quarter of their time.

    They make half a million objects that stay; the collector would look at them again and again as they come. In a
    process that sets objects aside for good, as `cli` does, these are as well: it then never looks at them. How threads
    wait is settled here too, since torch's OpenMP reads it when it is loaded.
    """
    if "torch" not in sys.modules:
        threads.settle()
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


def import_transformers() -> None:
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
        raise MissingError(f"The {what} {place} requires a package that is not installed: {error}") from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        hint = None
        if "trust_remote_code" in str(error):
            hint = (
                "Review that code first; then allow it with model.trust_remote_code: true, or lrft eval "
                "--trust-remote-code."
            )
        raise LrftError(f"transformers cannot read the {what} {place}: {error}", hint) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the progress bars and notices of transformers and bitsandbytes, and puts them back; not under
    `--verbose`."""
    from transformers.utils import logging

    if verbose():
        logging.set_verbosity_info()
        yield
        return
    quantizing = standard_logging.getLogger("bitsandbytes")
    level = quantizing.level
    quantizing.setLevel(standard_logging.ERROR)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        quantizing.setLevel(level)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
