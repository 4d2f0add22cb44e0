"""report.html: one sound file that shows what the run's folder holds, whatever that is, and nothing else."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from parsed import EVIL, Parsed, sound
from recorded import ODD, make_run, steps
from runs import Place

from lrft.cli.main import run_command
from lrft.data.report import BINS, histogram
from lrft.errors import CheckFailed, NonFinite, UsageError
from lrft.report import run_page, sections
from lrft.runs import after, metrics
from lrft.utils import files
from lrft.utils.text import visible

# Runs


def test_the_page_of_a_run_shows_what_its_files_hold(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run = place.train("evaluation.every=2", "evaluation.at_start=true", "evaluation.samples=2", "logging.every=1")
    assert run_command(["report", str(run)]) == 0
    assert f"wrote {run / 'report.html'}" in capsys.readouterr().out
    parsed = sound((run / "report.html").read_text())
    said = parsed.texts("td", "span", "p", "li", "code", "em", "h1", "h2", "summary")
    facts = files.read_json(run / "run.json")
    records, _ = metrics.read_metrics(run / "metrics.jsonl")
    for section in [*sections.recorded(run_page.without_lengths(facts)), sections.pace(records, 0)]:
        assert section.name in said
        for block in section.blocks:
            if isinstance(block, sections.Table):
                assert {cell.text for row in block.rows for cell in row if cell.text} <= set(said)
            elif isinstance(block, sections.Points):
                assert set(block.items) <= set(said)
    assert "Finished: 6 steps." in said
    # curves: every recorded step, every evaluation
    assert [a["aria-label"] for a in parsed.all("svg")] == [
        *("Loss, nats per token", "Learning rate", "Gradient norm, before clipping", "Tokens per second", "Memory, GB"),
        "Rows by length",
    ]
    evals = metrics.of_kind(records, "eval")
    assert len(evals) == 4
    assert len(parsed.all("circle")) == 4
    # samples of every evaluation
    for record in evals:
        assert any(words.startswith(f"At step {record['step']:,}, loss") for words in said)
        for sample in record["samples"]:
            for words in (sample["expected"], sample["answer"][:200]):
                shown = "\n".join(visible(line) for line in words.splitlines())
                assert any(shown in text for text in said), words
    # histogram, environment, recipe
    assert sum(rows for _, _, rows in run_page.lengths_of(facts)) == 15
    assert len(parsed.all("rect")) == len(facts["data"]["by_length"])
    packages = files.read_json(run / "environment.json")["packages"]
    assert {packages["torch"], "packages: torch"} <= set(said)
    for line in (run / "resolved.yaml").read_text().splitlines()[1:]:
        value, _, origin = line.partition("  # ")
        assert value in said, value
        assert origin in [*said, ""], origin
    assert "  learning_rate: 0.01" in said


def test_a_failed_run_has_a_page_that_says_so(place: Place) -> None:
    with pytest.raises(NonFinite):
        place.train("training.learning_rate=1e30", "training.warmup_steps=0", "training.max_grad_norm=none")
    run = place.root / "run"
    assert not (run / "report.md").exists()
    parsed = sound(run_page.write_page(run).read_text())
    (words,) = ("".join(inside) for tag, a, inside in parsed.found if tag == "p" and a.get("class") == "bad")
    assert words.startswith("Not finished: ")
    assert words.endswith("or the run is still in progress.")
    assert any("Earlier checkpoints are kept" in text for text in parsed.texts("pre"))
    assert {} in [{k: v for k, v in a.items() if k != "open"} for a in parsed.all("details") if "open" in a]


def test_a_run_that_was_killed_at_once_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"id": "x"}')
    (tmp_path / "metrics.jsonl").write_bytes(b'{"kind": "st\xff')
    parsed = sound(run_page.write_page(tmp_path).read_text())
    said = parsed.texts("p", "span", "h1")
    assert "No step was recorded: the run stopped before its first step, or has not reached it yet." in said
    assert "Unreadable lines in metrics.jsonl" in said
    assert any("environment.json is missing" in text for text in said)
    assert any("resolved.yaml is missing" in text for text in said)
    assert said.count("nothing was recorded") == 6
    assert tmp_path.name in said


@pytest.mark.parametrize(
    ("done", "log", "finished", "words"),
    [
        (6, [], True, "Finished: 6 steps."),
        (3, ["stopping early: 2 evaluations without a better validation loss"], True, "Stopped early after 3 of 6"),
        (3, ["stopped by signal 15"], False, "Not finished: 3 of 6 steps"),
        (0, [], False, "Not finished: 0 of 6 steps"),
    ],
)
def test_how_far_a_run_came(done: int, log: list[str], finished: bool, words: str) -> None:
    found = run_page.state({"training": {"steps": 6}}, steps(*[1.0] * done), log)
    assert found[0] is finished
    assert found[1].startswith(words)


ODDER = {
    "no-rate": [{"kind": "step", "step": 1, "loss": 0.0, "lr": 0.0, "grad_norm": 0.0, "memory_gb": 0}],
    "long": [{"kind": "step", "step": i, "loss": 1e29 * (-1) ** i, "grad_norm": 1e-29 * i} for i in range(2000)],
    "spike": steps(*([2.0, 2.1] * 30), 1e25),
}


@pytest.mark.parametrize("run", [*ODD.values(), *ODDER.values()], ids=[*ODD, *ODDER])
def test_any_records_give_a_sound_page(run: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in run))
    sound(run_page.render(tmp_path))


def test_what_a_panel_cannot_show_is_said(tmp_path: Path) -> None:
    drawn = run_page.curves(steps(*([2.0, 2.1] * 30), 1e25, None))
    assert max(float(words) for words in Parsed(drawn[0]).texts("text")[:3]) < 3, "the rest is not flattened"
    made = "".join(drawn)
    assert "1 training losses are above this panel, up to 1e+25" in made
    assert "1 losses are not finite" in made


# Text from outside


def test_text_from_outside_stays_text(tmp_path: Path) -> None:
    make_run(tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    run |= {"title": EVIL, "warnings": [EVIL], EVIL: {EVIL: EVIL}, "data": {"sources": [{"path": EVIL, EVIL: 1}]}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    record = {"kind": "eval", "step": 4, "loss": 1.0, "samples": [{"prompt": EVIL, "expected": EVIL, "answer": EVIL}]}
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    (tmp_path / "log.txt").write_text(f"{EVIL}\n\x1b[31m\u202e red\n")
    (tmp_path / "environment.json").write_text(json.dumps({EVIL: EVIL}))
    (tmp_path / "resolved.yaml").write_text(f"# head\nmodel: {EVIL}  # {EVIL}\n")
    parsed = sound(run_page.render(tmp_path))
    for tag, least in {"title": 1, "h1": 1, "h2": 1, "li": 1, "th": 1, "span": 7, "code": 0, "td": 1}.items():
        assert parsed.texts(tag).count(EVIL) >= least, tag
    assert f"model: {EVIL}" in parsed.texts("code")
    assert parsed.texts("pre") == [f"{EVIL}\n\\x1b[31m\\u202e red"]


# The histogram, the command


@pytest.mark.parametrize("lengths", [[], [1], [0, 0], [7] * 5, list(range(1, 100)), [3, 4096]])
def test_every_row_is_in_its_bar(lengths: list[int]) -> None:
    found = histogram(lengths)
    assert sum(bar["rows"] for bar in found) == len(lengths)
    assert len(found) <= BINS
    edges = [0, *(bar["up_to"] for bar in found)]
    for (low, high), bar in zip(itertools.pairwise(edges), found, strict=True):
        assert bar["rows"] == sum(low < max(length, 1) <= high for length in lengths)
    assert len({b - a for a, b in itertools.pairwise(edges)}) <= 1


def test_what_is_no_run_or_no_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, code, said in (
        ([str(tmp_path)], 2, "no run.json"),
        ([str(tmp_path / "nowhere")], 2, "no run.json"),
        ([], 2, "RUN"),
    ):
        assert run_command(["report", *words]) == code
        assert said in capsys.readouterr().err
    (tmp_path / "run.json").write_text("{}")
    for place in (tmp_path, tmp_path / "no" / "page.html"):
        assert run_command(["report", str(tmp_path), "-o", str(place)]) == 2
        assert "cannot be written" in capsys.readouterr().err
    for content in ("", "[1]", "{"):
        (tmp_path / "run.json").write_text(content)
        assert run_command(["report", str(tmp_path)]) == 4
        assert "run.json" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_page_needs_no_heavy_library(tmp_path: Path) -> None:
    make_run(tmp_path)
    out = tmp_path / "page.html"
    program = f"""if True:
        import sys
        from lrft.cli.main import run_command
        code = run_command(["report", {str(tmp_path)!r}, "-o", {str(out)!r}])
        print(code, sorted({{"torch", "transformers", "matplotlib", "numpy"}} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    sound(out.read_text())


# What came later


def test_the_page_shows_what_commands_found_since(tmp_path: Path) -> None:
    make_run(tmp_path)
    with after.noted(tmp_path, "eval", "lrft eval run"):
        pass
    with after.noted(tmp_path, "merge", "lrft merge <run>") as found:
        found["checked"] = EVIL
    with pytest.raises(CheckFailed), after.noted(tmp_path, "verify", "lrft verify run"):
        raise CheckFailed("packed: logits differ")
    with pytest.raises(UsageError), after.noted(tmp_path, "eval", "lrft eval --wrong"):
        raise UsageError("nothing was done")
    with after.noted(None, "eval", "lrft eval model"):
        pass
    parsed = sound(run_page.render(tmp_path))
    commands = [words for words in parsed.texts("code") if words.startswith("lrft")]
    assert sorted(commands) == ["lrft eval run", "lrft merge <run>", "lrft verify run"]
    assert f"checked: {EVIL}" in parsed.texts("li")
    assert "FAILED, exit code 4: packed: logits differ" in parsed.texts("p")
    for n in range(after.KEPT + 3):
        with after.noted(tmp_path, "eval", f"lrft eval {n}"):
            pass
    kept = after.of_run(tmp_path)["eval"]
    assert [one["command"] for one in kept[-2:]] == [f"lrft eval {after.KEPT + 1}", f"lrft eval {after.KEPT + 2}"]
    assert len(kept) == after.KEPT
    (tmp_path / after.FOLDER / "merge.json").write_text("{")
    assert "merge" not in after.of_run(tmp_path)
    sound(run_page.render(tmp_path))


def test_a_read_only_run_keeps_nothing_and_fails_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(after.os, "access", lambda path, mode: False)
    with after.noted(tmp_path, "eval", "lrft eval run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_summary_is_on_top_and_in_words(tmp_path: Path) -> None:
    make_run(tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    run |= {
        "title": "runs/first",
        "adapter": {"methods": ["lora", "dora"], "rank": "8", "trainable parameters": 12345},
        "data": {"train_rows": 1, "validation_rows": 50},
        "result": {
            **{"validation loss at the start": 4.28, "best validation loss": 4.28},
            **{"best step": 0, "last validation loss": 8.69},
        },
    }
    (tmp_path / "run.json").write_text(json.dumps(run))
    parsed = sound(run_page.render(tmp_path))
    rows = dict(line for line in parsed.tables[0])
    assert rows["Adapter"] == "lora + dora, rank 8, 12,345 trainable parameters"
    assert rows["Data"] == "1 train row, 50 validation rows"
    assert rows["Result"] == "validation loss 4.2800 before the first step, 8.6900 at the end"
    assert rows["Command"] == "lrft train runs/first --fresh"
    assert any(words.startswith("This run is worse than the untouched base") for words in parsed.texts("p"))
    assert "train rows" in parsed.texts("td", "span")
    assert "train_rows" not in parsed.texts("td", "span")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("train_rows", "train rows"),
        ("packages: torch", "packages: torch"),
        ("torch: cpu_capability", "torch: cpu capability"),
        ("data/my_file.jsonl", "data/my_file.jsonl"),
        ("lengths: max", "tokens per row, largest"),
    ],
)
def test_keys_become_words(key: str, words: str) -> None:
    assert sections.name_in_words(key) == words
