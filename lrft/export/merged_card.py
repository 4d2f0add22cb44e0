"""The README of a merged model."""

from __future__ import annotations

from pathlib import Path

from lrft.adapters.storage import SavedAdapter


def model_card(saved: SavedAdapter) -> str:
    """A short model card: what it is and how it was made. No local paths."""
    name = saved.info["base"]["name"] or ""  # a folder of PEFT need not say
    shown = Path(name).name if Path(name).is_absolute() or Path(name).exists() else name
    methods = ", ".join(entry["name"] for entry in saved.info["methods"])
    ranks = sorted({site.rank for site in saved.sites})
    return (
        "---\n" + f"base_model: {shown}\n" * bool(shown) + "library_name: transformers\ntags: [lrft]\n---\n\n"
        f"# {shown or 'A model'}, fine-tuned\n\n"
        f"{made_with(saved)}: {methods}, rank {', '.join(map(str, ranks))}, "
        f"{len(saved.sites)} linear layers.\n"
    )


def made_with(saved: SavedAdapter) -> str:
    by_lrft = "format" in saved.info
    return (
        f"Fine-tuned with lrft {saved.info.get('lrft', '')} and merged" if by_lrft else "A PEFT adapter, merged by lrft"
    )
