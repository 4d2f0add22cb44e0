"""The version of lrft."""

from pathlib import Path

__version__ = "0.1.0"


def built_from() -> str:
    """The version with the commit that an installed package was built from: 0.1.0+g1a2b3c4. Of a checkout, whose files
    may be of any commit, the version alone."""
    from importlib import metadata

    if (Path(__file__).parents[1] / "pyproject.toml").exists():
        return __version__
    try:
        installed = metadata.version("lrft")
    except metadata.PackageNotFoundError:
        return __version__
    return installed if installed.startswith(__version__) else __version__
