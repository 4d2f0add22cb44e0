"""k-quants of a .gguf file, by llama.cpp's own program: which tensor gets how many bits is its recipe.

No package of the index brings the program or its function ready for use (llama-cpp-python compiles llama.cpp), so it is
looked for on the PATH, where every installation of llama.cpp puts it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from lrft.errors import LrftError, MissingError

PROGRAM = "llama-quantize"
UNQUANTISED = "f32"  # what it is made from: the update is rounded once
BY_CONVERTER = ("f32", "f16", "bf16", "q8_0")


def find_quantizer(dtype: str) -> str | None:
    """The program's path; None for a dtype that the converter writes itself. Raises MissingError."""
    if dtype in BY_CONVERTER:
        return None
    found = shutil.which(PROGRAM)
    if found is None:
        raise MissingError(
            f"dtype={dtype} requires llama.cpp's program {PROGRAM} on the PATH",
            "It comes with llama.cpp: `brew install llama.cpp`, or a release of ggml-org/llama.cpp. q8_0 needs none.",
        )
    return found


def quantize(program: str, file: Path, dtype: str) -> None:
    """Put the k-quant in the place of the file. Raises LrftError with the program's last words."""
    out = file.with_name("quantized.gguf")
    done = subprocess.run([program, str(file), str(out), dtype.upper()], capture_output=True, text=True, check=False)
    if done.returncode or not out.is_file():
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise LrftError(f"{PROGRAM} failed: {lines[-1] if lines else f'exit code {done.returncode}'}")
    out.replace(file)
