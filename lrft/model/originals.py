"""Weights as the files of a base have them, beside the same base loaded in other precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from lrft.errors import CheckFailed
from lrft.model import linear
from lrft.model.stored import Stored
from lrft.model.weight_names import weight_keys
from lrft.model.weights import weight_files


class Originals:
    """Weights in the files that a model without adapters was loaded from. folder: None for where the model says.

    Raises ValueError where that is no folder with weights.
    """

    def __init__(self, model: Any, folder: Path | None = None) -> None:
        from safetensors import safe_open

        self.model = model
        self.folder = folder or Path(getattr(model, "name_or_path", ""))
        if not self.folder.is_dir() or not self.folder.name:
            raise ValueError("it needs the files of the base, and the model does not say where they are")
        self.files: dict[str, Any] = {}
        for path in weight_files(self.folder):
            file = safe_open(path, framework="pt")
            self.files |= dict.fromkeys(file.keys(), file)
        self.stored = Stored(model, self.files)

    def weight(self, name: str) -> Tensor:
        """W (d, k) of the linear layer `name`, as stored. Raises ValueError where it is not one tensor of the files."""
        try:
            key = weight_keys([name], self.stored)[name]
        except CheckFailed as error:
            raise ValueError(str(error)) from None
        found: Tensor = self.files[key].get_tensor(key)
        return linear.as_rows(found, linear.stored_transposed(self.model.get_submodule(name)))
