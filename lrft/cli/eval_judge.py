"""`lrft eval --judge`: another model chooses between the two answers of each row."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrft.errors import UsageError
from lrft.utils.text import count

if TYPE_CHECKING:
    from lrft.tracking.console import Reporter


@dataclass(frozen=True)
class Judge:
    """key: the environment variable that holds it; without one, none is sent."""

    url: str
    model: str
    key: str

    def refuse_unusable(self) -> None:
        """Raises UsageError for an address that no request can be sent to."""
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"--judge: expected an address such as http://127.0.0.1:8000/v1 (got {self.url})")
        if "@" in self.url or "?" in self.url:  # the command is kept beside the run
            raise UsageError("--judge: the address holds a key or password", "Put it into the variable of --judge-key.")


def judged(facts: dict[str, Any], judge: Judge, page: Path | None, reporter: Reporter) -> dict[str, Any]:
    """`facts` of a comparison with the judge's verdicts. Replies are kept beside `page`, for the next time."""
    from lrft.cli.eval import telling
    from lrft.judging.endpoint import Endpoint
    from lrft.judging.verdicts import Kept, facts_of, words
    from lrft.judging.verdicts import judge as ask

    endpoint = Endpoint(judge.url, judge.model, os.environ.get(judge.key) or None)
    kept = Kept(None if page is None else page.with_suffix(".replies.jsonl"), f"{judge.url} {judge.model}")
    first, second = facts["first"], facts["second"]
    for name, found in facts["data"].items():
        answers = found["answers"]
        if not answers:
            raise UsageError(f"{name}: there are no answers to judge: its rows have no prompt")
        reporter.line(f"{judge.model} judges {count(len(answers), 'row')} of {name}, each in both orders")
        verdicts = ask(answers, endpoint, kept, telling(reporter, len(answers)))
        found["judge"] = facts_of(verdicts, judge.model, first, second)
        for answer, one in zip(answers, verdicts, strict=True):
            answer["verdicts"], answer["judged"] = one["verdicts"], words(one, first, second)
    return facts
