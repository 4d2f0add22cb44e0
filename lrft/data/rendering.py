"""From a sample to pieces of text, each known to be trained or not.

Conversations are rendered by the chat template that the model will be used with. Nothing is searched for in
the result; an answer's span is a difference of renderings:

    head = render(messages[:i], add_generation_prompt=True)    what generation starts from
    end  = render(messages[:i + 1])                            the same and the answer
    full = render(messages)

`head` must be a prefix of `end`, and `end` of `full`; the answer's span is what `end` has beyond `head`. A
template that writes earlier turns otherwise than last ones breaks this, and is refused with the sample.
Of the span, everything up to the end-of-turn token is trained, the white space after that token is not.
Where the template writes no such token, the row ends after its last answer with the tokenizer's eos, trained.

Before a first turn that is an answer, and where a template has no generation prompt, what the template writes before
an answer is what its renderings of two different answers share. In the second case generation writes it itself, so it
is trained with the answer.

Special tokens typed by a person are data, unless the recipe says that they stand for the tokens. Where a sample holds
the text of one, it is put between two marks (characters that the sample does not hold) before rendering; what then
stands between marks is tokenised as plain text. The rendering without its marks must equal the rendering of the
unmarked sample, so a template that takes such text apart is noticed. All else goes through the tokenizer exactly as in
generation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lrft.data.chat_template import ChatTemplate, agree
from lrft.data.pieces import Piece, Rendered, Span, any_of, cut, free_marks
from lrft.data.records import BadRow
from lrft.data.report import NO_TOKEN
from lrft.data.sample import Sample
from lrft.data.tools import Tool, changed, texts_in
from lrft.data.turns import Message
from lrft.errors import DataError

# What the templates of models in use write around turns. `<s>` is not here: HTML strikes text out with it.
TURN_MARKS = re.compile(r"<[|｜][A-Za-z_▁]{2,40}[|｜]>|\[/?INST\]|<<SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos)>")


class Renderer:
    """Turns samples into pieces.

    template: the jinja text, or None for a tokenizer without one. train_on, options (data.template_options): as in the
    recipe.
    """

    def __init__(
        self, tokenizer: Any, template: str | None, train_on: str, options: Mapping[str, Any] | None = None
    ) -> None:
        self._train_on = train_on
        self.template = ChatTemplate(tokenizer, template, options)
        added = tokenizer.added_tokens_decoder.values()
        self._endings = tuple(token.content for token in added if token.content)
        self._closing = any_of(self._endings)
        special = {token.content for token in added if token.special}
        self._special = any_of(special | {str(t) for t in tokenizer.all_special_tokens} - {""})
        self._eos = str(tokenizer.eos_token)

    def __call__(self, sample: Sample) -> Rendered:
        """Raises BadRow when the template refuses the sample, DataError when spans cannot be told."""
        if sample.messages:
            return self._chat(sample)
        if sample.document is not None:
            return self._join([(sample.document, True)], sample.tokens)
        return self._join([(sample.prompt, self._train_on == "all"), (sample.answer, True)], sample.tokens)

    def special_in(self, sample: Sample) -> list[str]:
        """The special tokens whose text a sample holds, each once."""
        texts = [text for each in sample.sequences for text in each.texts]
        return list(dict.fromkeys(token for text in texts for token in self._special.findall(text)))

    def foreign_in(self, sample: Sample) -> list[str]:
        """Marks of other models' templates that a sample holds and this tokenizer has no token for, each once."""
        texts = [text for each in sample.sequences for text in each.texts]
        found = dict.fromkeys(mark for text in texts for mark in TURN_MARKS.findall(text))
        return [mark for mark in found if mark not in self._endings]

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[Piece, ...]:
        """The pieces that generation of the next answer starts from. Raises BadRow.

        Earlier answers are cut out as in training, so that the ids are those of a trained row.
        """
        messages = self.template.known_roles(messages)
        turns, known, marks = self._mark(messages, tools)
        full = self.template.render(turns, known, prompt=True)
        self._without_marks(full, marks, messages, tools, prompt=True)
        full += self.template.opening
        answers = [i for i, m in enumerate(turns[:-1]) if m["role"] == "assistant"]
        try:
            bounds = [self._bounds(turns, known, i, full) for i in answers]
        except DataError:
            # The template rewrites earlier answers: training was with last-assistant, which cuts none of them.
            bounds = []
        pieces, _ = cut(full, bounds, marks, self.template.opening)
        return tuple(pieces)

    def _join(self, parts: Sequence[tuple[str, bool]], tokens: bool) -> Rendered:
        """Pieces without a template from (text, trained) parts, the last being the answer; eos follows.

        tokens: the text of special tokens stands for them, and where one ends the last part no eos follows.
        """
        pieces: list[Piece] = []
        if tokens:
            return self._as_written(parts)
        for text, trained in parts:
            first, at = len(pieces), 0
            for found in self._special.finditer(text):
                pieces += [Piece(text[at : found.start()], trained)] if found.start() > at else []
                pieces.append(Piece(found[0], trained, plain=True))
                at = found.end()
            pieces += [Piece(text[at:], trained)] if at < len(text) else []
        return Rendered(tuple(pieces), (Span(first, len(pieces), parts[-1][0]),), add_eos=True, end=self._eos)

    def _as_written(self, parts: Sequence[tuple[str, bool]]) -> Rendered:
        """Pieces of texts that hold their special tokens; white space after the last of them is not trained."""
        answer = parts[-1][0]
        end = self._last_token(answer.rstrip())
        stop = len(answer.rstrip()) if end else len(answer)
        texts = [*parts[:-1], (answer[:stop], True), (answer[stop:], False)]
        pieces = [Piece(text, trained) for text, trained in texts if text]
        first = sum(bool(text) for text, _ in parts[:-1])
        return Rendered(tuple(pieces), (Span(first, first + 1, answer[:stop]),), add_eos=not end, end=end or self._eos)

    def _chat(self, sample: Sample) -> Rendered:
        messages, tools = self.template.known_roles(sample.messages), sample.tools
        self.template.refuse_unwritten(messages)
        turns, known, marks = (messages, tools, None) if sample.tokens else self._mark(messages, tools)
        full = self.template.render(turns, known)
        clean = self._without_marks(full, marks, messages, tools)
        answers = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i not in sample.untrained]
        if not answers:
            raise BadRow(NO_TOKEN, "no trained tokens: no answer has weight 1")
        chosen = answers[-1:] if self._train_on == "last-assistant" else answers
        bounds = [self._bounds(turns, known, i, full) for i in chosen]
        # No end-of-turn token: the row stops at the answer's last character and eos comes right there.
        start, stop = bounds[-1]
        end = self._closes(full[start:stop], _content(turns[chosen[-1]]))
        add_eos = not end and chosen[-1] == len(turns) - 1
        pieces, places = cut(full[:stop] if add_eos else full, bounds, marks, self.template.opening)
        if self._train_on == "all":
            pieces = [piece._replace(trained=True) for piece in pieces]
        references = [
            self._reference(messages[i], pieces[slice(*place)]) for i, place in zip(chosen, places, strict=True)
        ]
        spans = [Span(*place, text) for place, text in zip(places, references, strict=True)]
        altered = any(not _holds(clean, m) for m in messages)
        return Rendered(tuple(pieces), tuple(spans), add_eos, end or self._eos * add_eos, altered, templated=True)

    def _reference(self, message: Message, pieces: Sequence[Piece]) -> str:
        """What a generated answer is compared with: the content, or calls as the template writes them."""
        if "tool_calls" not in message:
            return _content(message)
        return self._special.sub("", "".join(piece.text for piece in pieces)).strip()

    def _bounds(self, turns: Sequence[Message], tools: Sequence[Tool], i: int, full: str) -> tuple[int, int]:
        """Where the trained text of answer i starts and ends in `full`."""
        head = self.template.render(turns[:i], tools, prompt=True) if i else self.template.before_answer([], tools)
        end = full if i == len(turns) - 1 else self.template.render(turns[: i + 1], tools)
        if not end.startswith(head):
            raise _otherwise_prompted(i, head, end, last=i == len(turns) - 1)
        if not full.startswith(head):
            raise _unstable(i, "the turns before the answer", head, full)
        written = _content(turns[i])
        if not full.startswith(end):
            # Some templates close every conversation with one more end token, not there between turns.
            shorter = end[: end.rfind(self._last_token(end.rstrip()))]
            if not (full.startswith(shorter) and self._closes(shorter[len(head) :].rstrip(), written)):
                raise _unstable(i, "the answer", end, full)
            end = shorter
        body = end[len(head) :].rstrip()
        if not self._closes(body, written):
            # White space at the end of the answer is the answer's; what the template adds is not.
            own = written[len(written.rstrip()) :]
            if own and end[len(head) + len(body) :].startswith(own):
                body += own
        return len(head), len(head) + len(body)

    def _closes(self, body: str, answer: str) -> str:
        """The added token that the template wrote after `answer`, at the end of `body`; "" for none."""
        token, answer = self._last_token(body), answer.strip()
        # An added token that is no special one may be the end of the answer itself.
        own = token and answer.endswith(token) and not body[: -len(token)].rstrip().endswith(answer)
        return "" if own else token

    def _last_token(self, text: str) -> str:
        """The added token that `text` ends with; "" for none."""
        if not text.endswith(self._endings):
            return ""
        return next((m[0] for m in self._closing.finditer(text) if m.end() == len(text)), "")

    def _mark(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[Sequence[Message], Sequence[Tool], tuple[str, str] | None]:
        """The messages and tools with the text of special tokens between marks, and the marks (None: no such text)."""
        texts = texts_in((messages, tools))
        if not any(self._special.search(text) for text in texts):
            return messages, tools, None
        opening, closing = free_marks(texts)

        def marked(text: str) -> str:
            return self._special.sub(lambda found: f"{opening}{found[0]}{closing}", text)

        return changed(list(messages), marked), changed(list(tools), marked), (opening, closing)

    def _without_marks(
        self,
        full: str,
        marks: tuple[str, str] | None,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        prompt: bool = False,
    ) -> str:
        """`full` without its marks. Raises BadRow when they are not around whole tokens, or changed the text."""
        if marks is None:
            return full
        opening, closing = marks
        clean = re.sub(f"{opening}({self._special.pattern}){closing}", r"\1", full)
        if opening in clean or closing in clean or clean != self.template.render(messages, tools, prompt):
            raise BadRow("special token in the text", "the chat template splits its text")
        return clean


def _content(message: Message) -> str:
    """ "" for a turn of calls alone."""
    return str(message.get("content") or "")


def _holds(written: str, message: Message) -> bool:
    """Whether the template wrote all that a turn says, where it says it as it is or within JSON."""
    calls = message.get("tool_calls", ())
    texts = [_content(message), message.get("reasoning_content", ""), *(call["function"]["name"] for call in calls)]
    stripped = [text.strip() for text in texts if text]
    return all(text in written or json.dumps(text, ensure_ascii=False)[1:-1] in written for text in stripped)


def _unstable(i: int, what: str, alone: str, whole: str) -> DataError:
    at = agree(alone, whole)
    return DataError(
        f"the chat template writes {what} (turn {i + 1}) differently once more turns follow: "
        f"{alone[at : at + 40]!r} became {whole[at : at + 40]!r}",
        "Set data.train_on: last-assistant, or set another data.chat_template.",
    )


def _otherwise_prompted(i: int, prompt: str, written: str, last: bool) -> DataError:
    at = agree(prompt, written)
    return DataError(
        f"generation of turn {i + 1} starts from {prompt[at : at + 40]!r}, where the chat template writes "
        f"{written[at : at + 40]!r} for the answer itself: what is trained would not be what is generated",
        "Set data.template_options so that both agree, leave thoughts out of earlier turns, or set another "
        "data.chat_template."
        if last
        else "Set data.train_on: last-assistant, data.template_options, or another data.chat_template.",
    )
