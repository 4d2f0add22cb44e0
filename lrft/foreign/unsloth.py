"""Unsloth: the literal arguments of the calls in a Python file, each as FUNCTION.ARGUMENT."""

from lrft.foreign import lora, quantization, trainer
from lrft.foreign.entries import Missing, Needless, Table, To

TITLE = "Unsloth"
SIGNS = (
    "from_pretrained.model_name",
    "from_pretrained.max_seq_length",
    "get_peft_model.use_gradient_checkpointing",
    "get_peft_model.r",
)
COMMANDS = ()

_IMAGES = "lrft trains on text"
_TEXT = "rows are formatted by lrft: data.train with format, columns or prompt"

# The calls that are read, each with the name that its arguments have in the table below. A star stands for a class
# whose name ends so, as FastLanguageModel.from_pretrained.
CALLS = {
    "*Model.from_pretrained": "from_pretrained",
    "*Model.get_peft_model": "get_peft_model",
    "LoraConfig": "get_peft_model",
    **dict.fromkeys(
        (
            "TrainingArguments",
            "UnslothTrainingArguments",
            "SFTConfig",
            "DPOConfig",
            "ORPOConfig",
            "KTOConfig",
            "CPOConfig",
            "RewardConfig",
        ),
        "args",
    ),
    **dict.fromkeys(
        ("SFTTrainer", "UnslothTrainer", "DPOTrainer", "ORPOTrainer", "KTOTrainer", "CPOTrainer", "RewardTrainer"),
        "trainer",
    ),
    "load_dataset": "load_dataset",
    "train_on_responses_only": "train_on_responses_only",
    "get_chat_template": "get_chat_template",
}
# Names of arguments that are given by place.
POSITIONAL = {"from_pretrained": ("model_name",), "load_dataset": ("path", "name")}

KEYS: Table = {
    "from_pretrained.model_name": To("model.name", "unsloth_model"),
    "from_pretrained.revision": To("model.revision", "text"),
    "from_pretrained.max_seq_length": To("data.max_length"),
    "from_pretrained.dtype": To("training.precision", "precision"),
    "from_pretrained.load_in_4bit": quantization.KEYS["load_in_4bit"],
    "from_pretrained.load_in_8bit": quantization.KEYS["load_in_8bit"],
    "from_pretrained.load_in_16bit": Needless("model.precision: auto follows the computation"),
    "from_pretrained.full_finetuning": To("adapter.method", "flag", "full", "adapter.method: full"),
    "from_pretrained.trust_remote_code": To("model.trust_remote_code"),
    "from_pretrained.attn_implementation": To("model.attention", "attention"),
    "from_pretrained.token": Missing("a token belongs into the environment: HF_TOKEN"),
    "from_pretrained.": Needless("settings of Unsloth's loader"),
    **{f"get_peft_model.{name}": entry for name, entry in lora.KEYS.items() if name != "layers_pattern"},
    "get_peft_model.use_gradient_checkpointing": To("training.gradient_checkpointing", "checkpointing"),
    "get_peft_model.random_state": Needless("training.seed decides the init as well"),
    "get_peft_model.finetune_vision_layers": To(
        "adapter", "refused", _IMAGES, "adapter.target_modules: layers that text reaches"
    ),
    "get_peft_model.": Needless("adapter.target_modules names the layers"),
    **{f"args.{name}": entry for name, entry in trainer.KEYS.items()},
    "args.embedding_learning_rate": Missing("embeddings have the learning rate of the adapter"),
    "args.max_length": To("data.max_length"),
    "args.max_seq_length": To("data.max_length"),
    "args.max_prompt_length": Needless("data.max_length counts prompt and answer together"),
    "args.max_completion_length": Needless("data.max_length counts prompt and answer together"),
    "args.packing": To("data.packing"),
    "args.beta": To("training.objective.beta"),
    "args.loss_type": To("training.objective", "loss", says="training.objective: {dpo: {loss: ...}}"),
    "args.dataset_text_field": To("data.train.columns", "text_column", says="data.train.columns: {theirs: text}"),
    "args.dataset_kwargs": Needless(_TEXT),
    "args.dataset_num_proc": Needless("rows are tokenised by as many processes as help"),
    "trainer.class": To(
        "training.objective",
        "words",
        {
            "SFTTrainer": "sft",
            "UnslothTrainer": "sft",
            "DPOTrainer": "dpo",
            "ORPOTrainer": "orpo",
            "KTOTrainer": "kto",
            "CPOTrainer": "cpo",
            "RewardTrainer": "reward",
        },
        "training.objective: sft, dpo, simpo, orpo, cpo or kto",
    ),
    "trainer.max_seq_length": To("data.max_length"),
    "trainer.max_length": To("data.max_length"),
    "trainer.max_prompt_length": Needless("data.max_length counts prompt and answer together"),
    "trainer.packing": To("data.packing"),
    "trainer.beta": To("training.objective.beta"),
    "trainer.dataset_text_field": To("data.train.columns", "text_column", says="data.train.columns: {theirs: text}"),
    "trainer.": Needless(_TEXT),
    "load_dataset.path": To("data.train", "hub"),
    "load_dataset.name": To("data.train.configuration", says="data.train.path: hub:OWNER/NAME/CONFIGURATION"),
    "load_dataset.data_files": To("data.train", "text"),
    "load_dataset.split": To("data.train.split", "whole_split"),
    "load_dataset.": Missing(_TEXT),
    "train_on_responses_only.": Needless("data.train_on: assistant is the default, found by the chat template itself"),
    "get_chat_template.chat_template": Needless(
        "the tokenizer's own chat template is the default of data.chat_template"
    ),
    "get_chat_template.": Needless("roles and contents are found: formats messages and sharegpt"),
}

DEFAULTS = {
    **{f"args.{name}": value for name, value in trainer.DEFAULTS.items()},
    "get_peft_model.r": 16,
    "get_peft_model.lora_alpha": 16,
    "get_peft_model.lora_dropout": 0.0,
}
