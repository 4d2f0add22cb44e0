"""Model types whose files name each tensor as the model names its parameter, known without transformers.

To ask transformers (`lrft.model.stored`) takes the code of the model and of all that it stands on: more processor time
than a merge of a small model. For these types it has no rule that renames, splits or joins a tensor of a linear layer.
"""

from __future__ import annotations

from pathlib import Path

from lrft.errors import CheckFailed
from lrft.utils.files import read_json

OWN_NAMES = frozenset(
    {
        *("arcee", "cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2", "gptj", "granite"),
        *("llama", "ministral", "ministral3", "mistral", "olmo", "olmo2", "olmo3", "opt", "phi", "phi3", "qwen2"),
        *("qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2"),
    }
)


def reads_own_names(folder: Path) -> bool:
    """Whether a tensor that the files of the model in `folder` have under a parameter's name is that parameter."""
    try:
        config = read_json(folder / "config.json")
    except CheckFailed:  # whoever asks transformers is told what is wrong with it
        return False
    return (
        isinstance(config, dict)
        and config.get("model_type") in OWN_NAMES
        and not {"auto_map", "quantization_config"} & config.keys()
    )
