"""transformers' way of loading with `fp8`: each linear layer is quantised when its weight has been read.

transformers quantises one weight after the other by a class that is registered with it; of the whole model only codes
are ever in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lrft.model import fp8
from lrft.model.quantized import QuantizedLinear, quantizable, replace_modules

NAME = "lrft-fp8"


@register_quantization_config(NAME)
class Fp8Config(QuantizationConfigMixin):
    """skipped: names of modules that stay as they are; None for the output layer alone. dtype: of the model around."""

    def __init__(self, skipped: list[str] | None, dtype: torch.dtype) -> None:
        self.quant_method: Any = NAME
        self.skipped, self.dtype = skipped, dtype


@register_quantizer(NAME)
class Fp8Quantizer(HfQuantizer):
    """Keeps the scales until all weights are read; the layers' weights are their codes until then."""

    quantization_config: Fp8Config

    def __init__(self, quantization_config: Fp8Config, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self.layers: dict[str, bool] = {}
        """name of each layer that is quantised -> whether it stores (k, d)"""
        self.scales: dict[str, Tensor] = {}

    @property
    def is_trainable(self) -> bool:
        return True

    def is_serializable(self) -> bool:
        return False

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        self.layers = quantizable(model, self.quantization_config.skipped)

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        name = param_name.removesuffix(".weight")
        return name != param_name and name in self.layers

    def get_quantize_ops(self) -> ConversionOps:
        return Fp8Quantize(self)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        replace_modules(model, lambda name, module: self.layer(module, name) if name in self.scales else None)
        return model

    def layer(self, module: Any, name: str) -> QuantizedLinear:
        codes, dtype = module.weight.data, self.quantization_config.dtype
        tensors, shape = {"codes": codes, "scales": self.scales[name]}, (codes.shape[0], codes.shape[1])
        return QuantizedLinear("fp8", shape, tensors, module.bias, dtype=dtype, transposed=self.layers[name])


class Fp8Quantize(ConversionOps):
    """A weight in the model's dtype -> its codes, in the place of the weight."""

    def __init__(self, quantizer: Fp8Quantizer) -> None:
        self.quantizer = quantizer

    def convert(self, input_dict: dict[str, Any], *_: Any, model: Any = None, **__: Any) -> dict[str, Any]:
        made = {}
        for key, value in input_dict.items():
            weight: Tensor = value[0] if isinstance(value, list) else value
            name = key.removesuffix(".weight")
            if name == key or name not in self.quantizer.layers:  # made in one conversion with one that is
                made[key] = weight
                continue
            made[key], self.quantizer.scales[name] = fp8.quantize(weight.T if self.quantizer.layers[name] else weight)
            model.get_submodule(name)._is_hf_initialized = True  # or transformers would fill codes with its own start
        return made
