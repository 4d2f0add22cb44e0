"""Installed packages against what lrft and they themselves declare to need: from metadata, nothing is imported."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

# Packages whose needs of each other are compared; what else is installed is not lrft's matter.
LOOKED_AT = (
    *("torch", "transformers", "accelerate", "datasets", "safetensors", "tokenizers", "huggingface-hub", "peft"),
    *("deepspeed", "bitsandbytes", "gguf", "numpy", "pydantic", "typer", "rich", "pyyaml", "matplotlib", "triton"),
)
LRFT = "lrft"


@dataclass(frozen=True)
class Need:
    """`package` as `by` needs it. extra: of lrft, "" for what is always needed. installed: a version, or None."""

    by: str
    package: str
    wanted: str
    installed: str | None
    extra: str = ""

    @property
    def fits(self) -> bool:
        return self.installed is not None and self._bounds().contains(self.installed, prereleases=True)

    def _bounds(self) -> SpecifierSet:
        return Requirement(f"{self.package}{self.wanted}").specifier

    def sentence(self) -> str:
        """What is wrong, in words, for one that does not fit."""
        found = f"{self.installed} is installed" if self.installed else "it is not installed"
        return f"{self.by} needs {self.package}{self.wanted or ' (any version)'}; {found}"


def version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def needs() -> list[Need]:
    """What lrft needs, and what each of its extras does. Empty where lrft is not installed as a package."""
    found = []
    for requirement in _requirements(LRFT):
        extras = [extra for extra in _extras(LRFT) if _asked_by(requirement, extra)]
        for extra in extras or [""]:
            found.append(_need(LRFT, requirement, extra))
    return found


def extras() -> dict[str, bool]:
    """{extra of lrft: whether all that it needs is installed and fits}."""
    wanted = needs()
    names = dict.fromkeys(need.extra for need in wanted if need.extra)
    return {name: all(need.fits for need in wanted if need.extra == name) for name in names}


def pairs() -> list[Need]:
    """Installed packages of `LOOKED_AT` and lrft that do not have another of them as they need it."""
    wrong = [need for need in needs() if not need.extra and not need.fits]
    # An extra's package that is there in another version is a mistake; one that is not there is a choice.
    wrong += [need for need in needs() if need.extra and need.installed and not need.fits]
    for package in LOOKED_AT:
        for requirement in _requirements(package):
            if requirement.name.lower().replace("_", "-") in LOOKED_AT and not _any_extra(package, requirement):
                need = _need(package, requirement)
                if need.installed and not need.fits:
                    wrong.append(need)
    return list(dict.fromkeys(wrong))


def _need(by: str, requirement: Requirement, extra: str = "") -> Need:
    return Need(by, requirement.name, str(requirement.specifier), version(requirement.name), extra)


def _requirements(package: str) -> list[Requirement]:
    """What the metadata of an installed package ask for on this system; none for one that is not installed."""
    try:
        lines = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or any(_holds(requirement, extra) for extra in ("", *_extras(package))):
            found.append(requirement)
    return found


def _extras(package: str) -> list[str]:
    return metadata.metadata(package).get_all("Provides-Extra") or []


def _holds(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _asked_by(requirement: Requirement, extra: str) -> bool:
    return not _holds(requirement, "") and _holds(requirement, extra)


def _any_extra(package: str, requirement: Requirement) -> bool:
    return any(_asked_by(requirement, extra) for extra in _extras(package))
