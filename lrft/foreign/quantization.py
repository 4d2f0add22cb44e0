"""Keys of transformers' BitsAndBytesConfig, which every trainer on top of it takes in some form."""

from lrft.foreign.entries import Missing, Needless, Table, To

BITS = "model.quantization: nf4 for 4 bits, int8 for 8"
SCALES = "model.quantization nf4 and fp4 always quantise the scales too"

KEYS: Table = {
    "load_in_4bit": To("model.quantization", "flag", "nf4", "model.quantization: nf4"),
    "load_in_8bit": To("model.quantization", "flag", "int8", "model.quantization: int8"),
    "bnb_4bit_quant_type": To("model.quantization.type", says="model.quantization: nf4 or fp4"),
    "bnb_4bit_compute_dtype": To("training.precision", "precision"),
    "bnb_4bit_use_double_quant": Needless(SCALES),
    "bnb_4bit_quant_storage": Needless("storage of the codes is chosen to fit distributed.strategy"),
    "llm_int8_threshold": Missing("int8 is that of bitsandbytes with its default threshold"),
}
