"""Keys of tools without a table here, and of older versions of those that have one, which a recipe has no place for."""

from lrft.foreign.entries import Missing, Needless, Table
from lrft.foreign.lora import LOFTQ

_ROWS = "rows have a system turn of their own, or a column system"
_CACHE = "tokenised rows are cached in lrft's own folder"
_REFERENCE = "the reference is the base with the adapter switched off, or the adapter of adapter.start_from"
_DPO = "docs/preferences.md lists what dpo has"
_ANSWERS = "answers are greedy, of at most evaluation.max_new_tokens tokens"
_SECRET = "a secret, which no recipe holds: services read theirs from the environment"
_TURNS = "turns are read with role and content, or with from and value"

KEYS: Table = {
    "task": Needless("training.objective says it; sequence-to-sequence models are not trained"),
    "compare": Missing("a key of the file that lrft compare takes"),
    "verify": Needless("lrft merge and lrft export always compare what they write with the adapter"),
    **dict.fromkeys(("resume", "restore_from"), Needless("lrft train RECIPE --resume")),
    "use_loftq": Missing(LOFTQ),
    **dict.fromkeys(
        ("num_processes", "nproc_per_node"), Needless("lrft train RECIPE --devices, or the launcher, says it")
    ),
    "max_target_length": Needless("data.max_length counts prompt and answer together"),
    **dict.fromkeys(("loss_weights", "ld_alpha", "f_divergence_type", "use_weighting", "dpop_lambda"), Missing(_DPO)),
    **dict.fromkeys(("pref_bco_weight", "ref_model_mixup_alpha", "ref_model_sync_steps"), Missing(_DPO)),
    "on_signal": Needless("SIGTERM and Ctrl-C always save a checkpoint before the run ends"),
    **dict.fromkeys(("generation", "generation_config", "generation_max_length"), Missing(_ANSWERS)),
    **dict.fromkeys(("ref_model_name_or_path", "reference_model"), Needless(_REFERENCE)),
    "dataset_keep_in_memory": Needless(_CACHE),
    "deduplicate": Missing("lrft data shows rows that occur twice; none is taken out"),
    "ignore_pad_token_for_loss": Needless("padding is masked by its place, whatever the token"),
    **dict.fromkeys(("train_on_eos", "train_on_eot"), Needless("the token that closes an answer is trained with it")),
    **dict.fromkeys(
        ("message_field_training", "message_field_training_detail"),
        Missing("a turn with train: false, or weight: 0, is shown and not trained"),
    ),
    **dict.fromkeys(("message_property_mappings", "message_field_role", "message_field_content"), Needless(_TURNS)),
    **dict.fromkeys(("default_system", "system_prompt"), Missing(_ROWS)),
    "tool_format": Needless("the chat template writes calls and tools"),
    "include_tokens_per_second": Needless("tokens are always counted"),
    **dict.fromkeys(("comet_api_key", "swanlab_api_key", "hf_hub_token"), Missing(_SECRET)),
    "torchdistx_path": Missing("training.optimizer has the optimisers that are there"),
}
