"""The version of a build: that of lrft/version.py with the commit of the checkout, as 0.1.0+g1a2b3c4.

Everything else about the package stands in pyproject.toml.
"""

import ast
import re
import subprocess
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def written() -> str:
    tree = ast.parse((ROOT / "lrft" / "version.py").read_text(encoding="utf-8"))
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    return str(ast.literal_eval(assigned[0].value))


def commit() -> str:
    """+gHASH of a checkout, with .changed where files differ from it; "" where there is no git."""
    git = ["git", "-C", str(ROOT)]
    try:
        short = subprocess.run([*git, "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"+g{short.stdout.strip()}" + (".changed" if status.stdout.strip() else "")


def version() -> str:
    """An unpacked sdist has the version that it was built with in PKG-INFO."""
    info = ROOT / "PKG-INFO"
    found = re.search(r"^Version: (.+)$", info.read_text(encoding="utf-8"), re.M) if info.is_file() else None
    return found[1] if found else written() + (commit() if (ROOT / ".git").exists() else "")


setup(version=version())
