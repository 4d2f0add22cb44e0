"""The tools whose configurations are understood, by the name that `lrft init --tool` takes."""

from lrft.foreign import axolotl, litgpt, llama_factory, mlx_lm, ms_swift, peft, torchtune, trl, unsloth

TOOLS = {
    "axolotl": axolotl,
    "llama-factory": llama_factory,
    "ms-swift": ms_swift,
    "torchtune": torchtune,
    "trl": trl,
    "litgpt": litgpt,
    "mlx-lm": mlx_lm,
    "unsloth": unsloth,
    "peft": peft,
}
