"""From files to rows: nothing is lost in silence, and what cannot be used is named."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_tokenizers as tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prepared import CHAT, PAIR, answers, check_conservation, lines, prepare, section, texts

from lrft import data, registry
from lrft.data import preview
from lrft.data import tokenized_rows as data_encode
from lrft.data.cache import locked
from lrft.data.config import Input
from lrft.data.dataset import Row, Rows
from lrft.data.format import ALTERNATIVES, CLASSIC, REQUIRED, detect
from lrft.data.growing import GrowingRows
from lrft.data.hub import hub_name
from lrft.data.ingest import Found, collect
from lrft.data.pieces import Piece, Rendered
from lrft.data.records import BadRow
from lrft.data.report import SourceReport
from lrft.data.sample import Sample
from lrft.data.split import split
from lrft.data.tokenized_rows import tokenized
from lrft.errors import DataError, LrftError, MissingError, RecipeError
from lrft.recipe import DataEntry

# --- kinds of files ---


def test_the_same_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    rows = texts(3)
    table = "text\n" + "".join(row["text"] + "\n" for row in rows)
    (tmp_path / "c.csv").write_bytes(b"\xef\xbb\xbf" + table.replace("\n", "\r\n").encode())
    (tmp_path / "j.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "o.json").write_text(json.dumps({"version": 1, "data": rows}))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    lines(tmp_path / "l.jsonl", *rows)
    packed = {"l.jsonl.gz": ("gzip", "l.jsonl"), "C.CSV.ZST": ("zstd", "c.csv"), "j.json.zst": ("zstd", "j.json")}
    for name, (codec, plain) in packed.items():
        (tmp_path / name).write_bytes(pa.compress((tmp_path / plain).read_bytes(), codec=codec, asbytes=True))
    for name, make in {"f.arrow": pa.ipc.new_file, "s.arrow": pa.ipc.new_stream}.items():
        with make(tmp_path / name, pa.Table.from_pylist(rows).schema) as file:
            file.write_table(pa.Table.from_pylist(rows))
    wanted = {"c.csv": ":2", "j.json": "#1", "o.json": "#1", "p.parquet": "#1", "l.jsonl": ":1"}
    wanted |= {"l.jsonl.gz": ":1", "C.CSV.ZST": ":2", "j.json.zst": "#1", "f.arrow": "#1", "s.arrow": "#1"}
    for name, first in wanted.items():
        prepared = prepare(tmp_path, tmp_path / name)
        assert answers(prepared.train) == [row["text"] for row in rows], name
        assert prepared.train.source(0) == f"{tmp_path / name}{first}"
        assert prepared.report.sources[0].format == "text"


def test_a_txt_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfOnce upon\r\n\r\na time \xe2\x80\xa8")
    prepared = prepare(tmp_path, tmp_path / "a.txt")
    assert answers(prepared.train) == ["Once upon\r\n\r\na time \u2028"]
    assert prepared.report.sources[0].decided == "file type"


def test_lines_end_at_newline_only_and_are_numbered_as_in_an_editor(tmp_path: Path) -> None:
    raw = '\ufeff{"text": "a\u2028b\u0085c"}\r\n\n   \n{"text": "second"}'
    (tmp_path / "a.jsonl").write_bytes(raw.encode())
    rows = prepare(tmp_path, tmp_path / "a.jsonl").train
    assert [rows.source(i).rsplit(":", 1)[1] for i in range(2)] == ["1", "4"]
    assert answers(rows) == ["a\u2028b\u0085c", "second"]


def test_csv_rows_of_several_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,completion\n"a, ""b""\nc",one\n\nd,two\n', newline="")
    rows = prepare(tmp_path, tmp_path / "a.csv").train
    assert [rows.source(i).rsplit(":", 1)[1] for i in range(2)] == ["2", "5"]
    assert tiny.chatml().decode(rows.prompt(0)) == 'a, "b"\nc'


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"", "no rows"),
        ("a.jsonl", b"\n \n", "no rows"),
        ("a.csv", b"", "no rows"),
        ("a.csv", b"text\n", "no rows"),
        ("a.json", b"[]", "no rows"),
        ("a.json", b"[{}", "not JSON"),
        ("a.json", b'{"text": "a"}\n{"text": "b"}', "not JSON"),
        ("a.json", b'[{"text": NaN}]', "NaN"),
        ("a.json", b'{"a": [], "b": []}', "2 arrays"),
        ("a.json", b"3", "expected an array"),
        ("a.json", b"[" * 100_000, "nested"),
        ("a.jsonl", "a".encode("utf-16"), "UTF-16"),
        ("a.txt", b"ab\n\xff", ":2: invalid UTF-8"),
        ("a.csv", b"text,text\na,b\n", "appears twice"),
        ("a.csv", b'text\nok\n"open\nmore\n', "a.csv:4"),
        ("a.parquet", b"PAR1 or not", "parquet"),
        ("a.xlsx", b"x", "not a supported data file"),
        ("a.parquet.gz", b"x", r"\.parquet\.gz is not a supported"),
        ("a.gz", b"x", r"a\.gz: \.gz is not a supported"),
        ("a.arrow", b"", "not readable as arrow"),
        ("a.arrow", b"ARROW1 or not", "not readable as arrow"),
        ("a.jsonl.gz", b'{"text": "a"}', "not readable as gzip: zlib"),
        (
            "a.jsonl.zst",
            pa.compress(b'{"text": "a"}' * 99, codec="zstd", asbytes=True)[:-4],
            "not readable as zstd: Truncated",
        ),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    for policy in ("error", "skip"):
        with pytest.raises(DataError, match=says):
            prepare(tmp_path, tmp_path / name, on_bad_row=policy)


def test_names_that_are_not_there(tmp_path: Path) -> None:
    lines(tmp_path / "train.jsonl", *texts(2))
    with pytest.raises(DataError, match="no such file") as caught:
        prepare(tmp_path, tmp_path / "trian.jsonl")
    assert "train.jsonl" in str(caught.value.hint)
    with pytest.raises(DataError, match="expected hub:OWNER/NAME"):
        prepare(tmp_path, DataEntry(path="hub:name"))


def test_the_hub_that_cannot_be_reached_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(DataError, match="the hub cannot be reached"):
        prepare(tmp_path, DataEntry(path="hub:owner/name"))


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a server of the folder `served`; what it was asked for stands in `asked`."""
    (tmp_path / "served").mkdir()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_data_at_an_address(tmp_path: Path, address: str) -> None:
    pytest.importorskip("aiohttp")
    plain = lines(tmp_path / "rows.jsonl", *texts(3)).read_bytes()
    (tmp_path / "served" / "rows.jsonl.gz").write_bytes(pa.compress(plain, codec="gzip", asbytes=True))
    url = f"{address}/rows.jsonl.gz?key=7"
    prepared = prepare(tmp_path, DataEntry(path=url), validation=url)
    assert answers(prepared.train) == answers(prepared.validation) == [row["text"] for row in texts(3)]
    assert prepared.train.source(1) == f"{url}:2"
    with pytest.raises(DataError, match=r"absent\.jsonl: no such file"):
        prepare(tmp_path, DataEntry(path=f"{address}/absent.jsonl"))


@pytest.mark.parametrize(
    ("path", "error", "says", "hint"),
    [
        ("s3://bucket/rows.jsonl", MissingError, "reads s3:// is not installed", "pip install s3fs"),
        ("gs://bucket/rows.jsonl", MissingError, "reads gs:// is not installed", "pip install gcsfs"),
        ("https://host/rows.jsonl", MissingError, "reads https://", r"pip install 'lrft\[https\]'"),
        ("abfs://box/rows.jsonl", MissingError, "reads abfs://", "Install adlfs"),
        ("s4://bucket/rows.jsonl", DataError, "s4:// is not known", "None"),
        ("s3://bucket/folder", DataError, "a file without suffix is not a supported", "Data files end in"),
        ("memory://rows.jsonl", DataError, "no such file", "None"),
    ],
)
def test_addresses_that_cannot_be_read(
    tmp_path: Path, path: str, error: type, says: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for driver in ("s3fs", "gcsfs", "adlfs", "fsspec.implementations.http"):
        monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(error, match=says) as caught:
        prepare(tmp_path, DataEntry(path=path))
    assert re.search(hint, str(caught.value.hint))


def test_names_of_hub_data_sets() -> None:
    assert hub_name("hub:owner/name") == ("owner/name", None, None)
    assert hub_name("hub:owner/name/part@v1.0/x") == ("owner/name", "part", "v1.0/x")
    for wrong in ("hub:name", "hub:owner/name@", "hub:a/b/c/d", "hub:/b"):
        with pytest.raises(DataError, match="@REVISION"):
            hub_name(wrong)


def test_a_configuration_and_a_revision_reach_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("lrft.data.hub._unreachable", lambda: None)
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *args, **keys: [asked.append((args, keys)), datasets.Dataset.from_list(texts(2))][1],
    )
    prepared = prepare(tmp_path, DataEntry(path="hub:owner/name/part@v1", split="dev"))
    assert asked == [(("owner/name", "part"), {"split": "dev", "revision": "v1"})]
    assert prepared.train.source(1) == "hub:owner/name/part@v1#2"


def test_folders(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    (folder / "more").mkdir(parents=True)
    lines(folder / "b.jsonl", *texts(1, 10))
    lines(folder / "a.jsonl", *texts(1, 20))
    lines(folder / "more" / "c.jsonl", *texts(1, 30))
    (folder / "README.md").write_text("x")
    (folder / ".hidden.jsonl").write_text("x")
    rows = prepare(tmp_path, folder).train
    assert answers(rows) == [f"the answer is {i}" for i in (20, 10, 30)]
    lines(folder / "test.jsonl", *texts(1))
    with pytest.raises(DataError, match="rows meant for testing"):
        prepare(tmp_path, folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data file"):
        prepare(tmp_path, tmp_path / "empty")


# --- formats ---


@pytest.mark.parametrize(
    ("row", "name", "answer"),
    [
        (CHAT, "messages", "one"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "sharegpt",
            "b",
        ),
        ({"instruction": "a", "input": "", "output": "c", "id": 3}, "alpaca", "c"),
        ({"instruction": "a", "input": None, "output": "c"}, "alpaca", "c"),
        (PAIR, "completion", "one"),
        ({"text": "d", "label": 1}, "text", "d"),
    ],
)
def test_formats_are_found_and_said(tmp_path: Path, row: dict, name: str, answer: str) -> None:
    prepared = prepare(tmp_path, lines(tmp_path / "a.jsonl", row))
    assert (prepared.report.sources[0].format, prepared.report.sources[0].decided) == (name, "found")
    assert answers(prepared.train) == [answer]
    unused = {c: 1 for c in row if c in ("id", "label")}
    assert prepared.report.sources[0].ignored == unused


@given(st.sets(st.sampled_from([c for names in REQUIRED.values() for c in names] + ["id", "question"])))
def test_a_format_is_found_only_when_one_fits(columns: set[str]) -> None:
    for kind, row in registry.ROWS.items():
        ways = {name: ALTERNATIVES.get(name, (REQUIRED[name],)) for name in row.formats}
        fits = [name for name, each in ways.items() if any(columns.issuperset(way) for way in each)]
        assert detect(columns, kind) == (fits[0] if len(fits) == 1 else None)


@pytest.mark.parametrize(
    ("row", "says", "hint"),
    [
        ({"question": "a", "answer": "b"}, "question, answer", "{question: prompt, answer: completion}"),
        ({"instrution": "a", "output": "b"}, "instrution", "{instrution: instruction}"),
        ({"text": "a", **PAIR}, "completion and text", "data.train.0.format=completion"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "a chosen and a rejected answer", "chosen: completion"),
        ({}, "none match no format", "Rename"),
    ],
)
def test_unclear_columns_are_refused_with_the_way_out(tmp_path: Path, row: dict, says: str, hint: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        prepare(tmp_path, lines(tmp_path / "a.jsonl", row))
    assert hint in str(caught.value.hint)


def test_columns_are_renamed(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"question": "a ", "answer": "b"})
    columns = {"question": "prompt", "answer": "completion"}
    assert answers(prepare(tmp_path, DataEntry(path=str(path), columns=columns)).train) == ["b"]
    for wrong, says in (
        ({"qestion": "prompt"}, "Did you mean question"),
        ({"question": "promt"}, "Did you mean prompt"),
        ({"question": "prompt", "answer": "prompt"}, "two columns"),
    ):
        with pytest.raises(RecipeError, match=says):
            prepare(tmp_path, DataEntry(path=str(path), columns=wrong))


def test_alpaca_with_and_without_a_chat_template(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"instruction": "say {input}", "input": "x", "output": "c"})
    with_template = prepare(tmp_path, path)
    assert "user\nsay {input}\n\nx<|im_end|>" in tiny.chatml().decode(with_template.train.prompt(0))
    plain = tiny.chatml(None)
    text = plain.decode(prepare(tmp_path, path, tokenizer=plain).train.prompt(0))
    assert text.endswith("### Instruction:\nsay {input}\n\n### Input:\nx\n\n### Response:\n")
    path = lines(tmp_path / "b.jsonl", {"instruction": "say", "output": "c"})
    rows = prepare(tmp_path, path, tokenizer=plain).train
    assert plain.decode(rows.prompt(0)) == CLASSIC.format(instruction="say")


def test_conversations_need_a_template(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", CHAT)
    with pytest.raises(DataError, match="no chat template") as caught:
        prepare(tmp_path, path, tokenizer=tiny.chatml(None))
    assert ".jinja" in str(caught.value.hint)
    (tmp_path / "t.jinja").write_text(tiny.CHATML)
    rows = prepare(tmp_path, path, tokenizer=tiny.chatml(None), chat_template=str(tmp_path / "t.jinja")).train
    assert rows.tokens(0).tolist() == prepare(tmp_path, path).train.tokens(0).tolist()
    (tmp_path / "t.jinja").write_text("{% for %}")
    for name, says in (("t.jinja", "not a valid Jinja template"), ("u.jinja", "No such file")):
        with pytest.raises(RecipeError, match=says):
            prepare(tmp_path, path, chat_template=str(tmp_path / name))


# --- bad rows ---


def turns(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


BAD: list[tuple[Any, str]] = [
    ({"messages": None}, "null"),
    ({"messages": "a"}, "wrong type"),
    ({"messages": [["a"]]}, "wrong type"),
    ({"messages": []}, "no assistant turn"),
    ({"mesages": []}, "missing key"),
    (turns(("user", "a")), "no assistant turn"),
    (turns(("assistant", "a")), "answer before a question"),
    (turns(("user", "a"), ("assistent", "b")), "unknown role"),
    (turns(("user", "a"), ("assistant", "")), "empty answer"),
    (turns(("user", "a"), ("assistant", " \n")), "empty answer"),
    (turns(("user", "a"), ("assistant", None)), "null"),
    (turns(("user", ["a"]), ("assistant", "b")), "wrong type"),
    (turns(("user", 3), ("assistant", "b")), "wrong type"),
    ({"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}, "missing key"),
    (
        {"messages": [*CHAT["messages"], {"role": "assistant", "content": "x", "tool_calls": [1]}]},
        "tool calls",
    ),
    (
        {"messages": [*CHAT["messages"], {"role": "assistant", "content": "x", "refusal": "hm"}]},
        "unknown key in a turn",
    ),
    (
        b'{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "b"}]}',
        "lone surrogate",
    ),
    (b'{"messages": "\xff"}', "invalid UTF-8"),
    (b'{"messages": NaN}', "NaN or Infinity"),
    (b'{"messages": ', "bad JSON"),
    (b'{"messages": [], "messages": []}', "bad JSON"),
    (b"[" * 100_000, "bad JSON"),
    (b"1" * 5_000, "bad JSON"),
    (b"[]", "not an object"),
    (b"null", "not an object"),
]


def test_every_bad_row_is_counted_under_its_reason(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", CHAT, *(row for row, _ in BAD), CHAT)
    report = prepare(tmp_path, path, on_bad_row="skip").report
    assert (report.read, report.used) == (len(BAD) + 2, 2)
    found = {int(e["source"].rsplit(":", 1)[1]): e["reason"] for e in report.sources[0].examples}
    assert found == {k + 2: reason for k, (_, reason) in enumerate(BAD)}


def test_bad_rows_are_an_error_unless_skipping_is_asked_for(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", *[CHAT] * 3, *(row for row, _ in BAD))
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, path)
    said = caught.value.message.split("\n")
    assert said[0] == f"{len(BAD)} of {len(BAD) + 3} rows are invalid"
    assert said[1].startswith(f"{path}:4  messages: must be a list of turns, this is null")
    assert len(said) == 12
    assert said[-1] == f"... and {len(BAD) - 10} more"
    assert "on_bad_row: skip" in str(caught.value.hint)
    assert all(len(line) < 400 for line in said)


def test_what_the_template_refuses_is_counted_like_any_bad_row(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", CHAT, turns(("system", "x"), ("user", "a"), ("assistant", "b")))
    with pytest.raises(DataError, match="Only user and assistant turns"):
        prepare(tmp_path, path, tokenizer=tiny.spaced())
    report = prepare(tmp_path, path, tokenizer=tiny.spaced(), on_bad_row="skip").report
    assert report.dropped == {"rejected by the chat template": 1}


def test_the_sample_stands_in_the_error_of_an_unstable_template(tmp_path: Path) -> None:
    rows = turns(("user", "a"), ("assistant", "<think>x</think>b"), ("user", "c"), ("assistant", "d"))
    path = lines(tmp_path / "a.jsonl", CHAT, rows)
    with pytest.raises(DataError, match=r"a\.jsonl:2: the chat template writes"):
        prepare(tmp_path, path, tokenizer=tiny.chatml(tiny.FORGETS), on_bad_row="skip")


def test_ragged_csv_rows_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\na,1\nb\nc,2,3\n\xff\xfe,4\nd,5\n")
    report = prepare(tmp_path, tmp_path / "a.csv", on_bad_row="skip").report
    assert report.dropped == {"ragged row": 2, "invalid UTF-8": 1}


def test_a_row_of_ten_megabytes(tmp_path: Path) -> None:
    huge = "hello " * 1_700_000
    lines(tmp_path / "a.jsonl", {"text": "a", "extra": huge}, {"text": ["a"], "extra": huge})
    (tmp_path / "a.csv").write_text(f"text,extra\na,{huge}\nb\n")
    for name in ("a.jsonl", "a.csv"):
        assert answers(prepare(tmp_path, tmp_path / name, on_bad_row="skip").train) == ["a"]
        with pytest.raises(DataError, match="1 of 2 rows") as caught:
            prepare(tmp_path, tmp_path / name)
        assert len(caught.value.message) < 1_000


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.just("\ud800")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner),
    max_leaves=6,
)
ROWS = st.one_of(
    st.just(CHAT),
    VALUES,
    st.builds(lambda v: {"messages": v}, VALUES),
    st.builds(lambda r, c: turns(("user", "q"), (r, c)), st.sampled_from(["assistant", "tool", "x"]), VALUES),
)


@given(st.lists(ROWS, max_size=12), st.sampled_from(["truncate", "drop"]), st.integers(2, 40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_read_is_used_plus_dropped(tmp_path: Path, rows: list[Any], too_long: str, most: int) -> None:
    """Trust 15."""
    path = lines(tmp_path / "a.jsonl", CHAT, *rows)
    options = {"on_bad_row": "skip", "too_long": too_long, "max_length": most, "cache": False}
    try:
        prepared = prepare(tmp_path, path, **options)
    except DataError as error:
        if "nothing to train on" not in error.message:
            raise
        return
    assert prepared.report.read == len(rows) + 1
    assert len(prepared.train) == prepared.report.used
    assert all(prepared.train.trained(i).any() for i in range(len(prepared.train)))
    assert max(prepared.train.lengths) <= most


@given(
    st.binary(max_size=200),
    st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet", "a.arrow", "a.json.gz"]),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_rows_or_a_plain_error(tmp_path: Path, raw: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"text": "a"}\n' * (name == "a.jsonl") + raw)
    with contextlib.suppress(LrftError):
        prepare(tmp_path, tmp_path / name, on_bad_row="skip", cache=False)


# --- length ---


def test_long_rows_are_an_error_with_the_numbers(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", *texts(30), {"text": "hello world " * 60}, {"text": "the answer " * 60})
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, path, max_length=32)
    said = caught.value.message
    assert "2 of 32 rows (6.2%) are longer than 32 tokens (data.max_length)" in said
    assert "a.jsonl:31  " in said
    assert "longest " in said
    assert "data.max_length: " in str(caught.value.hint)
    with pytest.raises(DataError, match=r"\(the model\)"):
        prepare(tmp_path, path, limit=32)
    with pytest.raises(RecipeError, match=r"recipe.yaml:1:3 data.max_length: is 64, but the model has 32"):
        prepare(tmp_path, path, limit=32, max_length=64)


def test_drop_and_truncate_are_counted(tmp_path: Path) -> None:
    """Trust 5, 14."""
    long = {"prompt": "hello", "completion": "world " * 60}
    lost = {"prompt": "hello " * 60, "completion": "world"}
    path = lines(tmp_path / "a.jsonl", PAIR, long, lost)
    dropped = prepare(tmp_path, path, max_length=40, too_long="drop").report
    assert dropped.dropped == {"longer than max_length": 2}
    cut = prepare(tmp_path, path, max_length=40, too_long="truncate")
    assert cut.report.dropped == {"no trained token": 1}
    assert cut.report.truncated == 1
    assert cut.train.lengths.tolist()[1] == 40
    eos = tiny.chatml().eos_token_id
    assert cut.train.tokens(0)[-1] == eos
    assert eos not in cut.train.tokens(1)
    assert cut.train.cut(1) > 0
    with pytest.raises(DataError, match="nothing to train on: 1 rows read, none used"):
        prepare(tmp_path, lines(tmp_path / "b.jsonl", lost), max_length=20, too_long="truncate")


def test_the_answer_asked_for_is_the_last_one_that_was_not_cut_off(tmp_path: Path) -> None:
    row = turns(("user", "a"), ("assistant", "one"), ("user", "b " * 60), ("assistant", "two"))
    rows = prepare(tmp_path, lines(tmp_path / "a.jsonl", row), max_length=60, too_long="truncate").train
    assert rows.answer(0) == "one"
    assert tiny.chatml().decode(rows.prompt(0)).endswith("a<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("make", [tiny.chatml, tiny.spaced])
def test_split_trains_every_token_of_a_document_once(tmp_path: Path, make: Any) -> None:
    tokenizer = make(None)
    (tmp_path / "a.txt").write_text("Once upon a time, the answer is forty two. " * 20)
    whole = prepare(tmp_path, tmp_path / "a.txt", tokenizer=tokenizer).train
    prepared = prepare(tmp_path, tmp_path / "a.txt", tokenizer=tokenizer, max_length=13, too_long="split")
    rows = prepared.train
    assert (prepared.report.read, prepared.report.used, prepared.report.sources[0].rows) == (1, 1, len(rows))
    assert max(rows.lengths) <= 13
    trained = [t for i in range(len(rows)) for t in rows.tokens(i)[rows.trained(i)].tolist()]
    assert trained == whole.tokens(0)[1:].tolist()
    eos = [int(t == tokenizer.eos_token_id) for t in trained]
    assert sum(eos) == eos[-1] == 1
    bos = tokenizer.bos_token_id
    for i in range(1, len(rows)):
        assert rows.tokens(i)[0] == (rows.tokens(i - 1)[-1] if bos is None else bos)


def test_split_is_refused_where_it_would_part_answers_from_questions(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.too_long: split is for format text"):
        prepare(tmp_path, lines(tmp_path / "a.jsonl", PAIR), too_long="split")


# --- split and limit ---


def test_rows_keep_their_side_when_others_come(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", *texts(200))
    few = prepare(tmp_path, path, validation=0.2)
    lines(path, *texts(100, 500), *texts(200))
    many = prepare(tmp_path, path, validation=0.2)
    assert 20 < len(few.validation) < 60
    assert set(answers(few.validation)) <= set(answers(many.validation))
    assert set(answers(few.train)) <= set(answers(many.train))


def test_equal_rows_are_on_the_same_side(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", *[row for row in texts(40) for _ in range(3)])
    for validation in (0.3, 10):
        prepared = prepare(tmp_path, path, validation=validation)
        assert not set(answers(prepared.train)) & set(answers(prepared.validation))
        assert prepared.report.repeated == 0


@given(st.sets(st.integers(0, 2**64 - 1), min_size=2, max_size=50), st.integers(0, 99), st.data())
@settings(max_examples=50, deadline=None)
def test_a_count_holds_out_that_many(digests: set[int], seed: int, draw: st.DataObject) -> None:
    n = draw.draw(st.integers(1, len(digests) - 1))
    assert split(sorted(digests), n, seed).sum() == n


@pytest.mark.parametrize(
    ("n", "validation", "hint"),
    [(3, 0.01, "validation: 1"), (5, 5, "fewer"), (1, 0.5, "none"), (3, 0.9999, "Hold out less")],
)
def test_an_empty_side_is_an_error_with_a_remedy(tmp_path: Path, n: int, validation: Any, hint: str) -> None:
    with pytest.raises(DataError, match=r"data\.validation") as caught:
        prepare(tmp_path, lines(tmp_path / "a.jsonl", *texts(n)), validation=validation)
    assert hint in str(caught.value.hint)


def test_validation_from_a_path_is_read_like_the_train_data(tmp_path: Path) -> None:
    columns = {"question": "prompt", "answer": "completion"}
    rows = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(4)]
    train = DataEntry(path=str(lines(tmp_path / "a.jsonl", *rows)), columns=columns)
    other = lines(tmp_path / "b.jsonl", rows[0], {"question": "q", "answer": "z"})
    prepared = prepare(tmp_path, train, validation=str(other))
    assert answers(prepared.validation) == ["a0", "z"]
    assert len(prepared.train) == 4
    assert prepared.report.repeated == 1
    rows, report = data.prepare_file(
        str(other), section(train), tiny.chatml(), seed=7, limit=None, where=lambda key: "default"
    )
    assert answers(rows) == ["a0", "z"]
    check_conservation(report)


def test_limit_draws_from_each_entry_with_the_seed(tmp_path: Path) -> None:
    path = str(lines(tmp_path / "a.jsonl", *texts(50)))
    one = prepare(tmp_path, DataEntry(path=path, limit=5), DataEntry(path=path, limit=7))
    assert len(one.train) == 12
    assert one.report.dropped == {"not drawn (limit)": 88}
    assert answers(one.train)[:5] != [row["text"] for row in texts(5)]
    again = prepare(tmp_path, DataEntry(path=path, limit=5), DataEntry(path=path, limit=7), cache=False)
    assert answers(one.train) == answers(again.train)
    assert len(prepare(tmp_path, DataEntry(path=path, limit=500)).train) == 50


# --- cache ---


def test_the_cache_is_hit_only_by_the_same_data_tokenizer_template_and_options(tmp_path: Path) -> None:
    """Trust 16."""
    path = lines(tmp_path / "a.jsonl", CHAT, CHAT)
    first = prepare(tmp_path, path)
    second = prepare(tmp_path, path)
    assert (first.cached, second.cached) == (False, True)
    assert (first.report.hit, second.report.hit) == (False, True)
    assert first.key == second.key == second.report.key
    assert first.train.tokens(0).tolist() == second.train.tokens(0).tolist()
    assert "cache found" in second.report.lines()[-1]
    space = tiny.chatml(tiny.CHATML.replace("assistant\n", "assistant \n").replace("+ '\n' +", "+ ' \n' +"))
    named = tiny.chatml()
    named.add_tokens(["new"])
    others = [
        prepare(tmp_path, path, tokenizer=space),
        prepare(tmp_path, path, tokenizer=named),
        prepare(tmp_path, path, train_on="all"),
        prepare(tmp_path, path, max_length=100),
        prepare(tmp_path, path, limit=200),
        prepare(tmp_path, DataEntry(path=str(path), format="messages")),
    ]
    lines(path, CHAT, CHAT, CHAT)
    others.append(prepare(tmp_path, path))
    assert not any(other.cached for other in others)
    assert len({first.key, *(other.key for other in others)}) == len(others) + 1
    off = prepare(tmp_path, path, cache=False)
    assert (off.cached, off.report.hit, off.key) == (False, None, others[-1].key)


@pytest.mark.parametrize("name", ["train.safetensors", "report.json", "manifest.json", "validation.safetensors"])
def test_a_damaged_cache_entry_is_made_again(tmp_path: Path, name: str) -> None:
    path = lines(tmp_path / "a.jsonl", *texts(20))
    first = prepare(tmp_path, path, validation=3)
    file = tmp_path / "cache" / "data" / first.key / name
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    for damage in (bytes(raw), bytes(raw[:10]), b"", None):
        file.unlink()
        if damage is not None:
            file.write_bytes(damage)
        again = prepare(tmp_path, path, validation=3)
        assert not again.cached
        assert answers(again.train) == answers(first.train)
    assert prepare(tmp_path, path, validation=3).cached


def test_two_processes_make_the_rows_once(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", *texts(300))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import prepared, pathlib\n"
        "p = prepared.prepare(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))\n"
        "print(p.cached, len(p.train))"
    )
    here = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(here.parent)}
    command = [sys.executable, "-c", code, str(here), str(tmp_path), str(path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    assert sorted(p.communicate()[0].strip() for p in running) == ["False 300", "True 300"]
    assert sorted(f.suffix for f in (tmp_path / "cache" / "data").iterdir()) == ["", ".lock"]


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", *texts(2))
    key = prepare(tmp_path, path).key
    waiting = threading.Thread(target=prepare, args=(tmp_path, path))
    with locked(tmp_path / "cache", key):
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join(600)
    assert not waiting.is_alive()


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(LrftError, match="the cache cannot be written"):
        prepare(tmp_path, lines(tmp_path / "a.jsonl", *texts(2)))


# --- one chunk after the other ---


def numbered(n: int) -> tuple[list[Found], SourceReport]:
    report = SourceReport("f", read=n, used=n)
    item = Input("data.train.0", "train", (), "text", {}, None)
    return [Found(item, Sample(document=str(k)), "f:", k, "", report) for k in range(n)], report


def as_text(sample: Sample) -> Rendered:
    return Rendered((Piece(str(sample.document), True),), (), add_eos=False, end="")


@pytest.mark.parametrize("chunk", [1, 2, 7, 100])
def test_rows_come_in_order_and_are_counted_in_order_whatever_the_chunks(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_encode, "CHUNK", chunk)
    samples, report = numbered(20)

    def render(sample: Sample) -> Rendered:
        if int(sample.document or 0) % 3 == 0:
            raise BadRow("three")
        return as_text(sample)

    def encode(texts: list[Rendered], names: list[str]) -> list[Any]:
        assert names == [f"f:{text.text}" for text in texts]
        return [BadRow("five") if int(text.text) % 5 == 0 else int(text.text) for text in texts]

    found = list(tokenized(samples, render, encode))
    left = [k for k in range(20) if k % 3 and k % 5]
    assert [(item.number, int(text.text), ids) for item, (text,), (ids,) in found] == [(k, k, k) for k in left]
    assert [example["source"] for example in report.examples] == [f"f:{k}" for k in range(20) if k not in left]
    assert report.dropped == {"three": 7, "five": 2}
    assert report.used == len(left)


def test_a_chunk_is_encoded_while_the_next_one_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_encode, "CHUNK", 2)
    reached = [threading.Event() for _ in range(6)]

    def render(sample: Sample) -> Rendered:
        reached[int(sample.document or 0)].set()
        return as_text(sample)

    def encode(texts: list[Rendered], names: list[str]) -> list[Any]:
        following = int(texts[-1].text) + 1
        assert following == 6 or reached[following].wait(600), "the next chunk is rendered only afterwards"
        return [int(text.text) for text in texts]

    assert [ids for _, _, (ids,) in tokenized(numbered(6)[0], render, encode)] == list(range(6))


def test_an_error_of_the_encoder_stops_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_encode, "CHUNK", 1)

    def encode(texts: list[Rendered], names: list[str]) -> list[Any]:
        if names == ["f:2"]:
            raise DataError(f"{names[0]}: not this one")
        return [0]

    before = set(threading.enumerate())
    with pytest.raises(DataError, match="f:2: not this one"):
        list(tokenized(numbered(9)[0], as_text, encode))
    assert not set(threading.enumerate()) - before


def test_samples_are_taken_as_rows_are_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_encode, "CHUNK", 2)
    taken: list[int] = []
    samples = (taken.append(item.number) or item for item in numbered(20)[0])
    ahead = [
        len(taken) - done for done, _ in enumerate(tokenized(samples, as_text, lambda texts, names: [0] * len(texts)))
    ]
    assert len(ahead) == 20
    assert max(ahead) == 4, "one chunk and the one after it"


@pytest.mark.parametrize("part", [1, 2, 3])
def test_a_set_is_the_same_whatever_parts_it_was_written_in(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of one sequence and of two, from two files, where numbers come with a late row."""
    made = [
        Row(
            np.arange(n, n + 4, dtype=np.int32),
            np.arange(4) % 2 == 0,
            1,
            f"é{n}",
            f"{n % 2}.jsonl:",
            n,
            digest=2**64 - 1 - n,
            parts=(1, 3) if n == 2 else (),
            numbers={"late": np.array([0.5, n])} if n > 3 else {},
        )
        for n in range(7)
    ]
    whole = Rows.of(made)
    for module in ("lrft.data.growing", "lrft.data.dataset"):
        monkeypatch.setattr(sys.modules[module], "PART", part)
    with GrowingRows(tmp_path) as growing:
        for row in made:
            growing.add(row, held_out=row.number > 4)
        grown, digests, held_out = growing.finished()
    assert not list(tmp_path.iterdir()), "nothing is left"
    assert digests.tolist() == [row.digest for row in made]
    assert np.flatnonzero(held_out).tolist() == [5, 6]
    chosen = np.array([6, 0, 4, 2])
    grown.save(tmp_path / "some.safetensors", chosen)
    for found, ids in ((grown, range(7)), (Rows.load(tmp_path / "some.safetensors"), chosen), (grown.slice([]), [])):
        assert len(found) == len(ids)
        assert found.trained_counts().tolist() == [int(whole.trained(i).sum()) for i in ids]
        for k, i in enumerate(ids):
            assert (found.answer(k), found.source(k)) == (whole.answer(i), whole.source(i))
            assert found.numbers("late", k).tolist() == whole.numbers("late", i).tolist()
            pairs = zip(found.sequences(k), whole.sequences(i), strict=True)
            assert all(np.array_equal(a, b) for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True))


def test_a_bad_row_ends_the_work_on_those_behind_it_but_not_the_count(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", *texts(2), {"text": ""}, *texts(3), {"text": None})
    reports: list[SourceReport] = []
    chosen = data.config.settings(section(path), tiny.chatml(), seed=0, limit=None, where=lambda key: "default")
    found = collect(data.config.inputs(section(path), where=lambda key: "default"), chosen, str, reports)
    assert [item.number for item in found] == [1, 2]
    assert (reports[0].read, reports[0].used, reports[0].dropped) == (7, 5, {"empty": 1, "null": 1})


# --- report and preview ---


def test_the_report_counts_tokens_and_ends(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", CHAT, turns(("user", "<|im_end|>"), ("assistant", "b")))
    prepared = prepare(tmp_path, path)
    report = prepared.report
    assert report.tokens == sum(prepared.train.lengths)
    assert report.trained_tokens == prepared.train.trained_tokens()
    assert report.lengths["max"] == max(prepared.train.lengths)
    assert (report.end_tokens, report.end_token_trained) == (["<|im_end|>"], True)
    assert report.special_text == 1
    assert report.altered == 0


def test_an_end_that_is_not_trained_is_said(tmp_path: Path) -> None:
    open_end = turns(("user", "a"), ("assistant", "b"), ("user", "c"))
    report = prepare(tmp_path, lines(tmp_path / "a.jsonl", open_end), tokenizer=tiny.chatml(tiny.NO_END)).report
    assert not report.end_token_trained
    assert "NOT trained" in "\n".join(report.lines())


def test_preview_shows_what_is_trained_and_what_is_cut(tmp_path: Path) -> None:
    tokenizer = tiny.chatml()
    path = lines(tmp_path / "a.jsonl", CHAT, turns(("user", "\x1b[31m"), ("assistant", "b " * 60)))
    prepared = prepare(tmp_path, path, max_length=40, too_long="truncate")
    plain = preview.render(prepared.train, prepared.report, tokenizer, colour=False).plain
    assert "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[[one<|im_end|>]]\n" in plain
    assert "tokens cut off}}" in plain
    assert "\x1b" not in plain
    coloured = preview.render(prepared.train, prepared.report, tokenizer)
    styles = {coloured.plain[s.start : s.end]: str(s.style) for s in coloured.spans}
    assert styles["one<|im_end|>"] == "green"
    assert any("cut off" in text and style == "red" for text, style in styles.items())
    for made, marks in ((plain, ("[[trained]]", "{{cut off}}")), (coloured.plain, ("trained", "cut off"))):
        assert all(mark in made.splitlines()[0] for mark in ("not trained", *marks)), "the legend"
    assert (styles["trained"], styles["not trained"]) == ("green", "dim")


def test_preview_numbers_its_rows_and_lists_what_was_dropped(tmp_path: Path) -> None:
    """By reason, each with its place; what the report does not hold is counted."""
    short = [turns(("user", f"{i}"), ("assistant", "b")) for i in range(3)]
    bad = [{"messages": "text"}] * 12
    path = lines(tmp_path / "a.jsonl", *short, turns(("user", "a"), ("assistant", "b " * 60)), *bad)
    prepared = prepare(tmp_path, path, max_length=40, too_long="drop", on_bad_row="skip")
    text = preview.render(prepared.train, prepared.report, tiny.chatml(), n=2, colour=False).plain
    assert f"row 1 of 3   {path}:1   " in text
    assert f"row 3 of 3   {path}:3   " in text
    blocks = {block.splitlines()[0]: block.splitlines()[1:] for block in text.split("\n\n") if " dropped, " in block}
    one = blocks[f"{path}: 1 row dropped, longer than max_length"]
    assert one[0].startswith(f"  {path}:4  ")
    many = blocks[f"{path}: 12 rows dropped, wrong type"]
    assert [line.split()[0] for line in many[:-1]] == [f"{path}:{n}" for n in range(5, 15)]
    assert many[-1] == "  and 2 more"


@pytest.mark.parametrize(
    ("keys", "names"),
    [({"prompt": "{q}", "completion": "{a}"}, "prompt"), ({"columns": {"q": "prompt", "a": "completion"}}, "columns")],
)
def test_validation_data_without_the_columns_of_the_train_entry(
    tmp_path: Path, keys: dict[str, Any], names: str
) -> None:
    path = lines(tmp_path / "a.jsonl", {"q": "x", "a": "y"})
    other = lines(tmp_path / "b.jsonl", *texts(2))
    says = rf"data\.validation: .*b\.jsonl has no column q, which data\.train\[\]\.{names} names; validation data are"
    with pytest.raises(RecipeError, match=says):
        prepare(tmp_path, DataEntry(path=str(path), **keys), validation=str(other))
