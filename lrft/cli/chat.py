"""`lrft chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.cli import error_output
from lrft.cli.answering import opened, show
from lrft.cli.arguments import (
    Base,
    MaxNewTokens,
    Seed,
    TargetPath,
    Temperature,
    TopP,
    TrustRemoteCode,
)
from lrft.errors import LrftError, UsageError

if TYPE_CHECKING:
    from lrft.serving.conversation import Conversation


def chat(
    target: TargetPath,
    system: Annotated[str | None, typer.Option("--system", help="The system turn that it begins with.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    base: Base = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Talk with a model in the chat template that it was trained with. /help lists what else can be typed.

    Example: lrft chat runs/first
    """
    trained = opened(target, base, trust_remote_code)
    from lrft.evaluation.sampling import Sampling
    from lrft.serving.conversation import Conversation

    if not trained.asking.chat:
        raise UsageError(f"{target} has no chat template", "lrft generate --prompt continues plain text.")
    conversation = Conversation(trained, Sampling(temperature, top_p, seed), max_new_tokens, show)
    conversation.system(system or "")
    if sys.stdin.isatty():
        print("/help lists commands; Ctrl-C ends an answer, Ctrl-D the conversation")
    for line in typed_lines():
        if not turn(conversation, line):
            return


def turn(conversation: Conversation, line: str) -> bool:
    """Answer or obey one line. False to leave. A mistake is said and ends nothing."""
    from lrft.serving.conversation import obey

    try:
        if line.startswith("/"):
            said = obey(conversation, line)
            if said is None:
                return False
            print(said)
        elif line:
            conversation.say(line)
            print()
    except LrftError as error:
        error_output.tell(error)
    return True


def typed_lines() -> Iterator[str]:
    """What is typed, line by line, until the end of the input. Ctrl-C at the prompt begins a new line."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            yield input(prompt).strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            if not prompt:
                raise
            print()
