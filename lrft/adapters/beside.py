"""What is trained beside the adapters: modules in full, rows of the embedding, biases, norms. Found, and put in place.

In files and in the optimiser a tensor has the name PLACE.WORD: of a module in full those of the model, of rows
EMBEDDING.rows, of a bias LAYER.bias.value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lrft.adapters import targets
from lrft.adapters.adapter import AdapterLinear
from lrft.adapters.modules_to_save import (
    EmbeddingRows,
    HeadRows,
    OwnBias,
    SavedModule,
    TokenRows,
    TrainedBias,
    unwrapped,
)
from lrft.adapters.unfit import is_in, sharing
from lrft.errors import Problem, RecipeError, nearest
from lrft.model import linear
from lrft.model.head import head_modules
from lrft.model.layers import head_of as layer_of_logits
from lrft.model.pruned import PrunedLinear
from lrft.model.quantized import QuantizedLinear
from lrft.utils.text import count


@dataclass(frozen=True)
class NamesBeside:
    """Names of modules. full: trained as a whole; rows: embedding or head -> ids of its tokens; biases: of layers."""

    full: tuple[str, ...] = ()
    rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    biases: tuple[str, ...] = ()

    def lines(self, tied: bool = False) -> list[str]:
        """What is trained, a line for each kind. tied: the rows are those of the head too."""
        norms = [name for name in self.full if "norm" in name.rsplit(".", 1)[-1].lower() or "ln_" in name]
        others = [name for name in self.full if name not in norms]
        said = [f"trained in full: {' '.join(others)}"] if others else []
        said += [f"trained: {count(len(norms), 'norm')}"] if norms else []
        for name, ids in self.rows.items():
            said.append(f"trained: {count(len(ids), 'row')} of {name}{', which are those of the head' * tied}")
        return said + ([f"trained: {count(len(self.biases), 'bias', 'biases')}"] if self.biases else [])

    @property
    def places(self) -> list[str]:
        """First words of the names of the tensors."""
        return [*self.full, *self.rows, *(f"{name}.bias" for name in self.biases)]

    def to_json(self) -> dict[str, Any]:
        rows = {name: list(ids) for name, ids in self.rows.items()}
        found = {"modules_to_save": list(self.full), "rows": rows, "biases": list(self.biases)}
        return {key: value for key, value in found.items() if value}

    @classmethod
    def from_json(cls, info: Mapping[str, Any]) -> NamesBeside:
        """Raises TypeError, ValueError or AttributeError for what is none."""
        rows = {str(name): tuple(int(i) for i in ids) for name, ids in info.get("rows", {}).items()}
        return cls(tuple(info.get("modules_to_save", ())), rows, tuple(info.get("biases", ())))


@dataclass(frozen=True)
class Put:
    """What is trained, by place."""

    full: dict[str, nn.Module] = field(default_factory=dict)
    rows: dict[str, TokenRows] = field(default_factory=dict)
    biases: dict[str, TrainedBias] = field(default_factory=dict)
    wrappers: dict[str, nn.Module] = field(default_factory=dict)
    """name -> what stands there in the place of the base's module, beside adapted layers"""

    @property
    def by_place(self) -> dict[str, nn.Module]:
        return {**self.full, **self.rows, **{f"{name}.bias": bias for name, bias in self.biases.items()}}

    @property
    def names(self) -> NamesBeside:
        return NamesBeside(tuple(self.full), {name: rows.ids for name, rows in self.rows.items()}, tuple(self.biases))


def token_ids(section: Any, tokenizer: Any, added: Iterable[int], where: targets.Where) -> list[int]:
    """Ids of adapter.train_tokens. added: those of model.add_tokens. Raises RecipeError."""
    if section.train_tokens == "added":
        return sorted(added)
    if section.train_tokens and tokenizer is None:
        text = "adapter.train_tokens names tokens by their text, and there is no tokenizer"
        raise RecipeError([Problem(where("adapter.train_tokens"), text)])
    if not section.train_tokens:
        return []
    known = tokenizer.get_vocab()
    problems = []
    for token in section.train_tokens:
        if token not in known:
            close = nearest(token, list(known))
            text = f"adapter.train_tokens: {token} is no token of this model" + (
                f". Close: {close[0]}" if close else ""
            )
            problems.append(Problem(where("adapter.train_tokens"), f"{text}. model.add_tokens adds new ones"))
    if problems:
        raise RecipeError(problems)
    return [known[token] for token in section.train_tokens]


def names_for(
    model: Any, section: Any, sites: Sequence[str], where: targets.Where = lambda key: key, tokens: Sequence[int] = ()
) -> NamesBeside:
    """What a recipe's adapter section trains beside the adapters of `sites`. Raises RecipeError with every mistake.

    tokens: ids whose rows are trained
    """
    full = [*head_modules(model), *targets.in_full(model, section)]
    said = [*_problems(model, section, full), *(_row_problems(model, section, full, sites) if tokens else ())]
    rows: dict[str, tuple[int, ...]] = {}
    if tokens and not any(key.startswith("train_tokens") for key, _ in said):
        rows = {name_of(model, module): tuple(tokens) for module in matrices_of_rows(model, section)}
    norms = [name for name in norms_of(model) if not is_in(name, full)] if section.norms else []
    if section.norms and not norms:
        said.append(("norms", "this model has no norms with trainable tensors"))
    full += norms
    biases: list[str] = []
    if section.biases != "none":
        biases, odd = biases_of(model, sites if section.biases == "adapted" else None, full)
        if odd:
            text = f"{odd[0]} ({type(model.get_submodule(odd[0])).__name__}) has a bias that is not added to its output"
            said.append(("biases", f"{text}: use adapted"))
        elif cut := [name for name in biases if isinstance(model.get_submodule(name), PrunedLinear)]:
            said.append(("biases", f"{cut[0]} trains with a part of its weights: set it to none"))
        elif not biases:
            which = "adapted layer" if section.biases == "adapted" else "layer"
            said.append(("biases", f"no {which} of this model has a bias. Remove it"))
    if said:
        raise RecipeError([Problem(where(f"adapter.{key}"), f"adapter.{key}: {text}") for key, text in said])
    return NamesBeside(tuple(dict.fromkeys(full)), rows, tuple(biases))


def matrices_of_rows(model: Any, section: Any) -> list[Any]:
    """Embedding, head, or both, whose rows of tokens are trained."""
    both = {"embedding": embedding_of(model), "head": head_of(model)}
    return [module for word, module in both.items() if section.train_tokens_in in (word, "both")]


def _row_problems(model: Any, section: Any, full: Sequence[str], sites: Sequence[str]) -> Iterable[tuple[str, str]]:
    """(key, what is wrong with it) of rows. sites: names of the adapted layers"""
    wanted, embedding, head = section.train_tokens_in, embedding_of(model), head_of(model)
    if wanted != "head" and is_in(name_of(model, embedding), full):
        yield "train_tokens", "the embedding is trained in full by adapter.modules_to_save: remove one of them"
    if wanted == "embedding":
        return
    key, name = "train_tokens_in", name_of(model, head)
    if head is None:
        yield key, "this model has no head that gives tokens their logits. Remove it"
    elif embedding is not None and head.weight is embedding.weight:
        yield key, "embedding and head are one matrix in this model, which has one row for a token. Remove it"
    elif is_in(name, full):
        yield key, f"{name} is trained in full by adapter.modules_to_save: remove one of them"
    elif name in sites:
        yield key, f"{name} has an adapter, which trains all its rows: leave it out of adapter.target_modules"
    elif isinstance(head, QuantizedLinear):
        yield key, f"{name} is quantised, so its rows cannot be trained: set it to embedding"


def _problems(model: Any, section: Any, full: Sequence[str]) -> Iterable[tuple[str, str]]:
    """(key, what is wrong with it) of modules in full."""
    shared = sharing(model) if full or section.untie else {}
    pair = {name_of(model, embedding_of(model)), name_of(model, head_of(model))}
    apart = [name for name in full if name in shared]
    for pattern in section.modules_to_save:
        if not any(targets.matches(pattern, name) or is_in(name, [pattern]) for name in full):
            words = targets.module_names(name for name, module in model.named_modules() if name and trains(module))
            close = nearest(pattern, words)
            text = f"{pattern} matches no module of this model that has parameters"
            yield "modules_to_save", text + (f". Close: {close[0]}" if close else "")
    for name in full:
        module = model.get_submodule(name)
        if any(isinstance(part, QuantizedLinear) for part in module.modules()):
            yield "modules_to_save", f"{name} is quantised, so it cannot be trained in full: leave it out"
        elif name in shared and (name not in pair or shared[name] not in pair):
            yield "modules_to_save", f"{name} shares its weight with {shared[name]}, so it cannot be trained alone"
        elif name in shared and not section.untie:
            remedy = "set adapter.untie: true, which parts them, or train rows of it with adapter.train_tokens"
            yield "modules_to_save", f"{name} shares its weight with {shared[name]} in this model: {remedy}"
    if section.untie and not apart:
        whose = "modules_to_save names neither embedding nor head" if shared else "embedding and head are two matrices"
        yield "untie", f"it has no effect: {whose} in this model. Remove it"


def head_of(model: Any) -> Any:
    """The layer that makes logits; None for a model without one, or one that is not of transformers."""
    return layer_of_logits(model) if hasattr(model, "get_output_embeddings") else None


def embedding_of(model: Any) -> Any:
    """The embedding of the text; None where the model does not say which it is."""
    return model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None


def trains(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def name_of(model: nn.Module, module: Any) -> str:
    """The first name of a module, "" for None and for one that is not there."""
    return next((name for name, found in model.named_modules() if found is module), "")


def inside(model: Any, name: str) -> bool:
    """Whether a module belongs to what text reaches: the language model's decoder, or its head."""
    return name.startswith(targets.decoder_prefix(model)) or name == name_of(model, head_of(model))


def norms_of(model: Any) -> list[str]:
    """NamesBeside of the norms: modules called so whose own tensors are all vectors, outside towers of other senses."""
    found = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own and all(p.ndim == 1 for p in own) and "norm" in type(module).__name__.lower() and inside(model, name):
            found.append(name)
    return found


def biases_of(model: Any, sites: Sequence[str] | None, full: Sequence[str]) -> tuple[list[str], list[str]]:
    """(names of the layers whose bias can be trained, of modules whose bias is used in another way).

    sites: the adapted layers alone, or None for all
    """
    norms, chosen = set(norms_of(model)), None if sites is None else set(sites)
    found: list[str] = []
    odd: list[str] = []
    for name, module in model.named_modules():
        if getattr(module, "bias", None) is None or not isinstance(module.bias, nn.Parameter) or is_in(name, full):
            continue
        if name not in chosen if chosen is not None else not inside(model, name):
            continue
        (found if linear.is_linear(module) or name in norms else odd).append(name)
    return found, odd


def count_trained(model: Any, names: NamesBeside) -> int:
    """How many numbers are trained beside the adapters."""
    full = sum(p.numel() for name in names.full for p in model.get_submodule(name).parameters())
    rows = sum(len(ids) * model.get_submodule(name).weight.shape[1] for name, ids in names.rows.items())
    return full + rows + sum(model.get_submodule(name).bias.numel() for name in names.biases)


def make(model: Any, names: NamesBeside, adapted: Mapping[str, AdapterLinear]) -> Put:
    """What `names` says, made of the base's modules in `model`, and not put in place yet but for biases of `adapted`
    layers."""
    put = Put()
    heads, head_name = set(head_modules(model)), name_of(model, head_of(model))
    head = None if head_of(model) is None else unwrapped(head_of(model))
    for name in names.full:
        module = unwrapped(model.get_submodule(name))
        wrapper = SavedModule(module, wide=name in heads or name == head_name)
        put.full[name], put.wrappers[name] = wrapper.trained, wrapper
    for name, ids in names.rows.items():
        base: Any = unwrapped(model.get_submodule(name))
        trained = put.rows[name] = TokenRows(base.weight, ids)
        put.wrappers[name] = HeadRows(base, trained) if linear.is_linear(base) else EmbeddingRows(base, trained)
        shared = head is not None and head is not base and head.weight is base.weight
        if head is not None and shared and head_name not in {*names.full, *names.rows}:
            put.wrappers[head_name] = HeadRows(head, trained)
    for name in names.biases:
        layer = adapted.get(name)
        inner = unwrapped(model.get_submodule(name)) if layer is None else layer.base
        bias = put.biases[name] = TrainedBias(inner)
        if layer is None:
            put.wrappers[name] = OwnBias(put.wrappers.get(name, inner), bias)
        else:
            layer.own_bias = bias
    return put


def put_in(model: nn.Module, put: Put) -> None:
    """Put the wrappers in the places of the base's modules."""
    for name, wrapper in put.wrappers.items():
        parent, _, word = name.rpartition(".")
        setattr(model.get_submodule(parent), word, wrapper)


def untrained_rows(attached: Any, ids: Sequence[int]) -> list[str]:
    """NamesBeside of embedding and head, where they are two, in which some of these rows are not trained."""
    put, model = attached.beside, attached.model
    modules = {name_of(model, module): module for module in (embedding_of(model), head_of(model)) if module is not None}
    found = []
    for name, module in modules.items():
        inner = unbiased(module)
        trained = getattr(inner, "trained", None)
        whole = name in put.full or name in attached.modules
        if not whole and not (isinstance(trained, TokenRows) and set(ids) <= set(trained.ids)):
            found.append((name, id(unwrapped(module).weight)))
    return [name for k, (name, weight) in enumerate(found) if weight not in {other for _, other in found[:k]}]


def tied_rows(put: Put) -> bool:
    """Whether the rows of an embedding are those of a head as well."""
    heads = [wrapper for name, wrapper in put.wrappers.items() if isinstance(unbiased(wrapper), HeadRows)]
    return any(name not in put.rows for name, wrapper in put.wrappers.items() if wrapper in heads)


def unbiased(wrapper: nn.Module) -> nn.Module:
    return wrapper.base if isinstance(wrapper, OwnBias) else wrapper


def rows_in(tensors: Mapping[str, Tensor], ids: Sequence[int]) -> dict[int, Tensor]:
    """id -> its row, of saved rows."""
    return dict(zip(ids, tensors["rows"], strict=True))
