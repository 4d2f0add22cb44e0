"""Layers that read one tensor share their thin products: the same numbers as each by itself, and nothing held."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import cases
import pytest
import tiny
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PhiConfig, PhiForCausalLM

import lrft
from lrft.adapters import gradient_checkpointing
from lrft.adapters.reach import reach
from lrft.adapters.shared_input import SharedInput, share_inputs

# Plain; kept off the base by its start; around another; without a trained A; a product that grows; one that is gated.
SAMPLE = ("lora", "pissa", "dora", "lora-fa", "relora", "adalora")
CASES = [pytest.param(case, marks=[] if case in SAMPLE else [pytest.mark.all]) for case in cases.FIRSTS]


class Products(TorchDispatchMode):
    """Counts matrix products and sums."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.made[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def adapted(
    words: Any = "lora", *, shares: bool, dtype: torch.dtype = torch.float64, **more: Any
) -> tuple[Any, Any, list[SharedInput]]:
    """A tiny Llama in training with adapters, its handle, and the groups where it shares."""
    model = tiny.make("llama").to(dtype).train()
    together = reach(model).together
    attached = lrft.attach(model, {"method": words, "rank": 3, **more}, seed=0)
    tiny.disturb(list(attached.trained().values()))
    return model, attached, share_inputs(attached, together) if shares else []


def answer(model: Any, attached: Any, seed: int = 1) -> list[Tensor]:
    """The loss, and the gradients of all trained tensors."""
    ids = tiny.tokens(seed=seed)
    torch.manual_seed(5)
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    return [loss.detach(), *torch.autograd.grad(loss, list(attached.trained().values()), allow_unused=True)]


def assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def is_empty(group: SharedInput) -> bool:
    return group.x is None and group.passed is None and not group.turns and not group.is_open


def test_what_is_read_together_is_seen_in_a_pass() -> None:
    """Of a block whose parts read the same tensor, over the modules that they are in."""
    attention = tuple(f"model.layers.0.self_attn.{word}_proj" for word in "qkv")
    assert reach(tiny.make("llama")).together[:2] == (
        attention,
        ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"),
    )
    assert reach(tiny.make("gpt2")).together == ()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = PhiForCausalLM(PhiConfig(vocab_size=tiny.VOCABULARY, pad_token_id=0, **sizes)).double()
    (group,) = reach(model).together
    assert group == (*attention, "model.layers.0.mlp.fc1")
    attached = lrft.attach(model, {"method": "lora", "rank": 2}, seed=0)
    tiny.disturb(list(attached.trained().values()))
    alone = answer(model, attached)
    share_inputs(attached, [group])
    assert_same(answer(model, attached), alone)


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_each_by_itself(case: str) -> None:
    found = []
    for shares in (False, True):
        model = tiny.make("llama").double().train()
        together = reach(model).together
        attached = cases.attach(model, case)
        cases.late(attached)
        groups = share_inputs(attached, together if shares else [])
        found.append(answer(model, attached))
    assert all(map(is_empty, groups))
    assert_same(*found)


def test_products_are_fewer_and_a_gradient_is_not_summed() -> None:
    made = []
    for shares in (False, True):
        model, attached, _ = adapted(shares=shares)
        with Products() as products:
            answer(model, attached)
        made.append(products.made)
    before, after = (counts["mm"] + counts["addmm"] + counts["addmm_"] for counts in made)
    # q, k and v have one thin product, one gradient of their A and one addition to that of x instead of three each,
    # gate and up instead of two. What the first block's q, k and v read has no gradient.
    assert before - after == 2 * 3 * (2 + 1) - 2
    assert made[0]["add"] - made[1]["add"] == 2 * (2 + 1) - 2


@pytest.mark.parametrize("kind", ["light", "medium", "full"])
@pytest.mark.parametrize("words", ["lora", "lora-fa"])
def test_blocks_that_are_computed_again_share_again(words: str, kind: str) -> None:
    model, attached, groups = adapted(words, shares=True)
    plain = answer(model, attached)
    gradient_checkpointing.checkpoint(model, kind)
    assert_same(answer(model, attached), plain)
    assert all(map(is_empty, groups))


def test_under_autocast_and_without_gradients() -> None:
    found = []
    for shares in (False, True):
        model, attached, _ = adapted(shares=shares, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = answer(model, attached)
        with torch.no_grad():
            found.append([*loss, model(input_ids=tiny.tokens()).logits])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= 0.03 * other.abs().max()


def test_a_layer_with_dropout_is_on_its_own() -> None:
    found = []
    for shares in (False, True):
        model, attached, groups = adapted(shares=shares, dropout=0.4)
        first = next(iter(attached.modules.values()))
        found.append(answer(model, attached))
        first.dropout = 0.0  # as a schedule does
        if shares:
            groups[0].open()
            model.model.layers[0].self_attn.q_proj(torch.zeros(1, tiny.WIDTH).double())
            assert not groups[0].turns, "nothing is made for those that read other tensors"
            groups[0].close()
        found.append(answer(model, attached))
        model.eval()
        found.append(answer(model, attached))
    assert_same([t for f in found[:3] for t in f], [t for f in found[3:] for t in f])


def test_a_written_factor_is_seen_by_the_next_pass_over_the_same_tensor() -> None:
    model, attached, (group, *_) = adapted(shares=True)
    attention, x = model.model.layers[0].self_attn, torch.randn(2, 3, tiny.WIDTH, dtype=torch.float64)
    group.open()
    first = attention.q_proj(x)
    assert len(group.turns) == 2
    group.close()
    with torch.no_grad():
        attached.modules["model.layers.0.self_attn.k_proj"].A.mul_(2)
    group.open()
    assert torch.equal(attention.q_proj(x), first)
    shared = attention.k_proj(x)
    assert torch.allclose(attention.q_proj(x), first, rtol=1e-12), "called again, it is on its own"
    group.close()
    assert torch.allclose(shared, attention.k_proj(x), rtol=1e-12)


def test_nothing_is_held_when_a_module_ends_in_an_exception() -> None:
    """What is held would keep the graph of all blocks before it."""
    model, attached, groups = adapted(shares=True)
    hook = model.model.layers[1].self_attn.k_proj.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answer(model, attached)
    assert all(map(is_empty, groups))
    hook.remove()
    assert torch.isfinite(answer(model, attached)[0])


def test_what_nobody_trains_on_gets_no_gradient() -> None:
    """As of the first block's input, over a frozen embedding."""
    model, _, (group, *_) = adapted(shares=True)
    attention, x = model.model.layers[0].self_attn, torch.randn(2, 3, tiny.WIDTH, dtype=torch.float64)
    group.open()
    outputs = attention.q_proj(x), attention.k_proj(x)
    assert group.passed is not None
    assert not group.passed.requires_grad
    assert all(output.requires_grad for output in outputs)
    group.close()


def test_one_that_is_not_called_has_no_gradient() -> None:
    """Not even zero: by that a run finds layers that nothing reaches."""
    found = []
    for shares in (False, True):
        model, attached, _ = adapted(shares=shares)
        attached.layers()["model.layers.1.self_attn.k_proj"].enabled = False
        found.append(answer(model, attached))
    assert_same(*found)
    assert sum(gradient is None for gradient in found[1]) == 2


def test_gradients_of_gradients() -> None:
    found = []
    for shares in (False, True):
        model, attached, _ = adapted(shares=shares)
        model.set_attn_implementation("eager")
        trained = list(attached.trained().values())
        ids = tiny.tokens(1, 3)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        firsts = torch.autograd.grad(loss, trained, create_graph=True)
        found.append(list(torch.autograd.grad(sum(g.square().sum() for g in firsts), trained)))
    assert_same(*found)


def test_a_copy_of_an_adapter_is_on_its_own() -> None:
    _, attached, (group, *_) = adapted(shares=True)
    adapter = attached.modules["model.layers.0.self_attn.q_proj"]
    again = copy.deepcopy(adapter)
    base, x = attached.layers()["model.layers.0.self_attn.q_proj"].base, torch.randn(3, tiny.WIDTH).double()
    group.open()
    assert torch.equal(again(x, base), adapter(x, base)) or torch.allclose(again(x, base), adapter(x, base), rtol=1e-12)
    assert again.siblings is group
    assert group.product(again, x, base.weight, None) is None
    group.close()


def test_layers_without_an_adapter_are_left_out() -> None:
    model = tiny.make("llama").double().train()
    together = reach(model).together
    attached = lrft.attach(
        model, {"method": "lora", "rank": 2, "target_modules": ["q_proj", "v_proj", "up_proj"]}, seed=0
    )
    groups = share_inputs(attached, together)
    assert [len(group.readers) for group in groups] == [2, 2]
    tiny.disturb(list(attached.trained().values()))
    shared = answer(model, attached)
    for group in groups:
        for reader in group.readers:
            reader.siblings = None
    assert_same(shared, answer(model, attached))
