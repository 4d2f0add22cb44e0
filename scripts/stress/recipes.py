"""Mutated recipes: each is accepted or refused with a place, quickly, in little memory, and nothing is written."""

from __future__ import annotations

import os
import random
from functools import cache
from pathlib import Path

from stress import ROOT
from stress.mutate import mutate
from stress.tally import Tally
from stress.workers import run_all

CANARY = "canary-5e1f0c"
OVERRIDDEN = 0.15
REPEATED = 0.05

HOSTILE = (
    "model: !!python/object/apply:os.system ['touch executed']\n",
    "model: !!python/name:os.system\n",
    "data: !!binary aGVsbG8=\n",
    "%YAML 9.9\n---\nmodel: a\n",
    "%TAG ! tag:example.com,2000:\n--- !x\na: 1\n",
    "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)),
    "data: &a [*a]\n",
    "adapter: &a {b: *a}\n",
    "model: " + "[" * 20_000 + "\n",
    "model: " + "{a: " * 5_000 + "\n",
    "- " * 10_000 + "\n",
    "".join(f"k{n}: {n}\n" for n in range(30_000)),
    "training: {seed: " + "9" * 5_000 + "}\n",
    "training: {learning_rate: 1e" + "9" * 400 + "}\n",
    "training: {epochs: 0x" + "f" * 4_000 + ", seed: -1}\n",
    "training: {seed: 1:30:00, epochs: 010, max_steps: 0o17}\n",
    "training: {learning_rate: .nan, weight_decay: .inf}\n",
    "<<: {model: a}\n<<: [{data: b}, {data: c}]\n",
    "model: a\n---\nmodel: b\n...\n",
    'model: "\\ud800"\n',
    'model: "\\x1b]0;title\\x07"\n',
    'model: "\\U00110000"\n',
    "model: \u202eevil\u2066\n",
    "? [complex, key]\n: value\n? {a: b}\n: value\n",
    "null: 1\ntrue: 2\n3: 4\n",
    "model: |9\n  a\n",
    "model: >+\n\n\n  a\n\n",
    "model: 'never closed\n",
    "key" * 50_000 + ": 1\n",
    "output_dir: ${HOME}/../../${PATH}/x\n",
    "adapter: {rank: ${CANARY}, method: ${CANARY}, ${CANARY}: 1}\n",
    "output_dir: ${MISSING_VARIABLE} ${X:-${Y:-z}} ${ $ }\n",
    "extends: /dev/zero\n",
    "extends: [/dev/urandom, /proc/self/environ, /etc/passwd, ., .., '']\n",
    "extends: recipe.yaml\n",
    "extends: ${CANARY}\n",
    "adapter: {target_modules: 're:(a+)+$', layers: 0-99999999999}\n",
    "adapter: {method: [lora, lora, pissa, mora, dora, '', 1, null, {lora: {}}]}\n",
    "adapter: {overrides: {'re:[': {rank: 0, alpha: -1}, '*': 3}}\n",
    "adapter: {layers: [" + "0, " * 5_000 + "1]}\n",
    "data: {train: [{path: a, columns: {a: b, c: b}}, [x], 3], validation: 1.5}\n",
    "data: hub:\n",
    "evaluation: {every: 1.5}\ncheckpoint: {every: -0.0, keep: 0}\n",
)
GOOD = (
    "model: some/model\ndata: train.jsonl\noutput_dir: out\n",
    "output_dir: ${CANARY}\nmodel: ${CANARY}\ndata: ${CANARY:-x}\n",
    "lrft: 1\nmodel: {name: m, revision: main, precision: bfloat16}\nadapter: [pissa, {lora+: {ratio: 8.0}}]\n"
    "data:\n  train:\n    - path: a.jsonl\n      format: messages\n      columns: {q: prompt}\n    - b.csv\n"
    "  validation: 0.1\n"
    "training: {epochs: 1.5, lr_scheduler: {wsd: {decay_ratio: 0.1}}, optimizer: {adamw: {betas: [0.9, 0.95]}}}\n"
    "evaluation: {every: 10}\noutput_dir: runs/${USER:-me}\n",
    "extends: base.yaml\nadapter:\n  method: [lora]\n  rank: 8\n  alpha: 16.0\n"
    "  overrides:\n    q_proj: {rank: 4}\n  layers: 0-3\n",
)
BASE = "model: base\ndata: {train: base.jsonl, packing: true}\noutput_dir: base\n"


@cache
def corpus() -> tuple[list[bytes], list[bytes]]:
    """Good recipes, and all texts to take pieces from."""
    shipped = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "recipes").rglob("*.yaml"))]
    good = [text.encode() for text in (*GOOD, *shipped)]
    return good, [*good, *(text.encode("utf-8", "surrogatepass") for text in HOSTILE)]


def generate(n: int, seed: int) -> tuple[bytes, list[str]]:
    """Recipe n and its overrides: always the same ones."""
    rng = random.Random(f"{seed} recipe {n}")
    good, everything = corpus()
    text = rng.choice(good if rng.random() < 0.9 else everything)
    text = everything[n] if n < len(everything) else mutate(text, everything, rng)  # each once as it is
    overrides = []
    if rng.random() < OVERRIDDEN:
        overrides = [mutate(b"adapter.rank=8", everything, rng).decode("utf-8", "replace") for _ in range(2)]
    return text, overrides


def judge(path: Path, overrides: list[str], *, again: bool) -> str:
    """Load one recipe. Any other exception than the two allowed ones is the caller's violation."""
    from lrft import recipe
    from lrft.errors import RecipeError, UsageError

    try:
        loaded = recipe.load(path, overrides)
    except RecipeError as error:
        said = error.lines()
        if not error.problems or any(not problem.place or not problem.text for problem in error.problems):
            raise ValueError(f"a problem without place or text: {said}") from None
        if CANARY in "\n".join(said):
            raise ValueError("the value of an environment variable is in the message") from None
        return "refused"
    except UsageError:
        return "refused"
    text = recipe.resolved(loaded, {})
    if CANARY in text:
        raise ValueError("the value of an environment variable is in the resolved recipe")
    if again:
        path.with_name("resolved.yaml").write_text(text, encoding="utf-8")
        if recipe.load(path.with_name("resolved.yaml")) != loaded:
            raise ValueError("the resolved recipe does not mean the same")
    return "accepted"


def campaign(tally: Tally, own: Path, count: int, seed: int) -> None:
    os.environ["CANARY"] = CANARY
    (own / "base.yaml").write_text(BASE)
    os.chdir(own)
    rng = random.Random(seed)
    repeated = {n for n in range(count) if rng.random() < REPEATED}

    def case(n: int) -> str:
        text, overrides = generate(n, seed)
        path = own / "recipe.yaml"
        path.write_bytes(text)
        return judge(path, overrides, again=n in repeated)

    with tally.figure("mutated recipes") as figure:
        run_all(tally, figure, case, count, own)
