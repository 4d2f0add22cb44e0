"""PEFT: adapter_config.json of a saved LoRA, which says how an adapter was built, not on what it was trained."""

from lrft.foreign import lora

TITLE = "PEFT"
SIGNS = ("peft_type", "base_model_name_or_path", "inference_mode", "r", "fan_in_fan_out", "task_type")
COMMANDS = ()

KEYS = lora.KEYS

DEFAULTS = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0}
