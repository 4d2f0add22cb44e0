"""Kernels of Liger: what is replaced, what is not, and where they are refused. They compute on a GPU alone."""

from __future__ import annotations

import copy
import importlib.util
import sys
from typing import Any

import pytest
import tiny
from runs import Place

from lrft.errors import MissingError, RecipeError
from lrft.loading.packages import refuse_missing_packages
from lrft.model import kernels
from lrft.training.base_model import use_kernels


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("kernels"))


def absent(monkeypatch: pytest.MonkeyPatch, *, there: bool) -> None:
    """As on a machine on which liger-kernel is installed, or is not."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: (there or None) if name == kernels.PACKAGE else found(name, *a)
    )


def test_norms_and_activations_compute_with_them_and_nothing_else_changes() -> None:
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    model, other = tiny.make("llama"), tiny.make("llama")
    file: Any = sys.modules[type(model).__module__]
    before = dict(vars(file))
    assert kernels.use_liger(model) == 2 * 3 + 1, "two norms and the gated activation of two blocks, and the last norm"
    norm, mlp = model.model.norm, model.model.layers[0].mlp
    for module in (norm, mlp, copy.deepcopy(norm)):
        assert module.forward.__func__.__module__.startswith("liger_kernel")
        assert module.forward.__self__ is module
    assert dict(vars(file)) == before, "a model that is made later is as transformers has it"
    assert not kernels.replaced(other)
    assert type(tiny.make("llama").model.norm) is type(norm) is file.LlamaRMSNorm
    assert kernels.use_liger(tiny.make("gpt2")) == 0


def test_asked_for_and_not_installed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch, there=False)
    with pytest.raises(MissingError, match=r"kernels: liger needs the package liger-kernel") as caught:
        refuse_missing_packages(place.recipe("training.kernels=liger"))
    assert caught.value.hint == "pip install 'lrft[liger]'"
    refuse_missing_packages(place.recipe("training.kernels=auto"))


def test_on_a_cpu_auto_is_none_and_liger_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch, there=True)
    model = tiny.make("llama")
    assert use_kernels(place.recipe("training.kernels=auto"), model, "cpu") == 0
    with pytest.raises(RecipeError, match=r"training.kernels: liger runs on a GPU, and there is none here"):
        use_kernels(place.recipe("training.kernels=liger"), model, "cpu")
    assert not kernels.replaced(model)


def test_on_a_gpu_auto_is_what_there_is(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"llama": 7, "gpt2": 0}
    monkeypatch.setattr(kernels, "use_liger", lambda model: made[model.config.model_type])
    for there, used in ((False, 0), (True, 7)):
        absent(monkeypatch, there=there)
        assert use_kernels(place.recipe("training.kernels=auto"), tiny.make("llama"), "cuda") == used
        assert use_kernels(place.recipe("training.kernels=auto"), tiny.make("gpt2"), "cuda") == 0
        assert use_kernels(place.recipe(), tiny.make("llama"), "cuda") == 0
    assert use_kernels(place.recipe("training.kernels=auto", "training.compile=true"), tiny.make("llama"), "cuda") == 0
    with pytest.raises(RecipeError, match=r"liger-kernel has none for gpt2\. auto does without"):
        use_kernels(place.recipe("training.kernels=liger"), tiny.make("gpt2"), "cuda")


def test_not_beside_compile(place: Place) -> None:
    with pytest.raises(RecipeError, match=r"training\.kernels: liger and training.compile make the same kernels"):
        place.recipe("training.kernels=liger", "training.compile=true")
