"""`lrft push`: a result on the hub."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.cli.answer import answering
from lrft.cli.arguments import AsJson, loading, tell_choice
from lrft.errors import UsageError
from lrft.utils.text import byte_size

if TYPE_CHECKING:
    from lrft.publishing.push_card import Told

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def push(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FOLDER", help="A run (its best adapter), or a folder of an adapter, model or GGUF."
        ),
    ],
    to: Annotated[str, typer.Option("--to", metavar="OWNER/NAME", help="The repository; it is made when missing.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public. Default: private.")] = False,
    base_name: Annotated[
        str | None, typer.Option("--base-name", metavar="OWNER/NAME", help="The base on the hub, if it was local.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="The base's, as the hub names it. Default: as its README says.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent, and send nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Publish an adapter, a merged model or a GGUF on the hub, with a model card. Private unless --public.

    Example: lrft push runs/first/merged --to me/first
    """
    for option, value in (("--to", to), ("--base-name", base_name)):
        if value is not None and not REPOSITORY.fullmatch(value):
            raise UsageError(f"{option} must be OWNER/NAME (got {value})")
    with loading():
        from lrft.publishing.push import upload
        from lrft.publishing.push_card import card
        from lrft.publishing.scan import refuse_private
        from lrft.publishing.stage import stage
        from lrft.publishing.told import chosen_folder, private_here, tell_of
        from lrft.utils import files

    folder = chosen_folder(source)
    tell_choice(source, folder)
    told = tell_of(folder, to, base_name, licence)
    beside = tempfile.TemporaryDirectory(prefix=".push-", dir=folder.resolve().parent)
    with beside as made, answering(as_json) as reporter:
        ready = Path(made)
        stage(folder, ready, told.base)
        files.write_text(ready / "README.md", card(told))
        refuse_private(ready, private_here(folder))
        sizes = [f"{path.name} ({byte_size(path.stat().st_size)})" for path in sorted(ready.iterdir())]
        reporter.table([("files", ["   ".join(sizes)]), ("base", [told.base])])
        for lack in lacks(told):
            reporter.warn(lack)
        if dry_run:
            for line in (ready / "README.md").read_text(encoding="utf-8").splitlines():
                reporter.line(line)
            reporter.line("nothing was sent: --dry-run")
            return
        address = upload(ready, to, public=public, message=f"{told.kind} by lrft")
        reporter.table([("published", [address, "public if it was new" if public else "private if it was new"])])


def lacks(told: Told) -> list[str]:
    """What the card cannot say."""
    found = []
    if not told.base_on_hub:
        found.append(f"the base is known as {told.base} alone: other tools find it by --base-name OWNER/NAME")
    if told.licence is None:
        found.append("the base's licence is not known: name it with --license")
    return found
