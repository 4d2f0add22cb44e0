"""What is trained beside the adapters, in PEFT's files: `modules_to_save`, `trainable_token_indices`, `bias`.

PEFT keeps the values of rows and biases, not their changes. A bias lies under its layer's base_layer where the layer is
adapted. A tied head follows the rows of the embedding without being named, as it does here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lrft.adapters.attached import Attached
from lrft.adapters.beside import NamesBeside, embedding_of, head_of, name_of
from lrft.adapters.modules_to_save import tensors_of, unwrapped
from lrft.model.added_tokens import Added
from lrft.model.experts import stack_of

PREFIX = "base_model.model."
ROWS = "token_adapter.trainable_tokens_delta"
TWICE = (".original_module.", ".modules_to_save.")
"""In names of what PEFT saves once more of a module in full where biases are trained: the base's own, and a copy."""


def peft_keys(names: NamesBeside, sites: Collection[str]) -> dict[str, str]:
    """PEFT's name of each tensor of rows and biases -> lrft's. Those of modules in full differ by the prefix alone."""
    rows = {f"{PREFIX}{name}.{ROWS}": f"{name}.rows" for name in names.rows}
    inside = {name: "base_layer." * (name in sites) for name in names.biases}
    return {**rows, **{f"{PREFIX}{name}.{where}bias": f"{name}.bias.value" for name, where in inside.items()}}


def beside_tensors(attached: Attached, added: Added | None) -> dict[str, Tensor]:
    """PEFT's tensors of all that is trained beside the adapters, and of the rows of new tokens, which stock PEFT's user
    has to make room for with `resize_token_embeddings`."""
    put = attached.beside
    own = tensors_of(put.by_place)
    found: dict[str, Tensor] = {
        f"{PREFIX}{name}.{word}": p for name, module in put.full.items() for word, p in module.named_parameters()
    }
    found |= {key: own[name] for key, name in peft_keys(put.names, attached.modules).items()}
    for name, ids in rows_with_new(attached, added).items():
        if name in told_whole(attached):
            del found[f"{PREFIX}{name}.{ROWS}"]
            base: Any = unwrapped(attached.model.get_submodule(name))
            weight = base.weight.detach().to(torch.promote_types(base.weight.dtype, torch.float32), copy=True)
            weight[list(ids)] = rows_of(attached, name, ids)
            found[f"{PREFIX}{name}.weight"] = weight
        else:
            found[f"{PREFIX}{name}.{ROWS}"] = rows_of(attached, name, ids)
    return found


def told_whole(attached: Attached) -> list[str]:
    """Embeddings with trained rows that PEFT has to be given as a whole: it would have the rows in a head as well that
    is trained in full, where the base has one matrix for both."""
    head = head_of(attached.model)
    if head is None or name_of_base(attached, unwrapped(head)) not in attached.beside.full:
        return []
    weight = unwrapped(head).weight
    return [n for n in attached.beside.rows if unwrapped(attached.model.get_submodule(n)).weight is weight]


def is_as_it_is(attached: Attached, added: Added | None) -> bool:
    """Whether PEFT's tensors are lrft's under other names."""
    return added is None and not told_whole(attached) and not any(map(stack_of, attached.modules))


def rows_with_new(attached: Attached, added: Added | None) -> dict[str, tuple[int, ...]]:
    """Embedding or head -> the ids whose rows a folder of PEFT has to hold: trained ones, and those of new tokens."""
    rows = dict(attached.beside.names.rows)
    if added is None:
        return rows
    full = attached.beside.full
    embedding, head = unwrapped(embedding_of(attached.model)), head_of(attached.model)
    places = [name_of_base(attached, embedding)]
    if head is not None and (unwrapped(head).weight is not embedding.weight or places[0] in full):
        places.append(name_of_base(attached, unwrapped(head)))
    for name in places:
        if name not in full:
            rows[name] = tuple(dict.fromkeys((*rows.get(name, ()), *added.ids.values())))
    return rows


def name_of_base(attached: Attached, module: nn.Module) -> str:
    """The name that a module of the base has without what is around it."""
    found = name_of(attached.model, module)
    while found.endswith(".base"):
        found = found.removesuffix(".base")
    return found


def rows_of(attached: Attached, name: str, ids: Sequence[int]) -> Tensor:
    """Values of rows: trained ones, and those of the base."""
    base: Any = unwrapped(attached.model.get_submodule(name))
    trained = attached.beside.rows.get(name)
    rows = base.weight.detach()[list(ids)].to(torch.promote_types(base.weight.dtype, torch.float32))
    if trained is not None:
        rows[: len(trained.ids)] = trained.rows.detach()
    return rows


def beside_config(attached: Attached, added: Added | None) -> dict[str, Any]:
    """The keys of PEFT's configuration that say so."""
    names, sites = attached.beside.names, attached.modules
    whole = told_whole(attached)
    rows = {name: list(ids) for name, ids in rows_with_new(attached, added).items() if name not in whole}
    only = "lora_only" if names.biases and set(names.biases) <= set(sites) else "all"
    return {
        "bias": only if names.biases else "none",
        "modules_to_save": [*names.full, *whole] or None,
        **({"trainable_token_indices": rows} if rows else {}),
    }


def names_in(config: Mapping[str, Any], keys: Iterable[str]) -> tuple[NamesBeside, dict[str, str]]:
    """(what a folder of PEFT trained beside its layers, PEFT's name of each of those tensors -> lrft's).

    keys: names of the tensors that are none of a linear layer's update. Raises ValueError for what the configuration
    says and the file does not have.
    """
    keys = [key.removeprefix(PREFIX) for key in keys if key.startswith(PREFIX) and not is_twice(key)]
    targets = list(config.get("modules_to_save") or ())
    own: dict[str, str] = {}
    full: dict[str, None] = {}
    rows: dict[str, tuple[int, ...]] = {}
    biases: dict[str, None] = {}
    said = config.get("trainable_token_indices")
    for key in keys:
        module, _, word = key.rpartition(".")
        if key.endswith(f".{ROWS}"):
            name = key.removesuffix(f".{ROWS}")
            rows[name] = ids_of(said, name)
            own[f"{PREFIX}{key}"] = f"{name}.rows"
        elif (outermost := whole(key, targets)) is not None:
            full[outermost] = None
            own[f"{PREFIX}{key}"] = key
        elif word == "bias" and config.get("bias", "none") != "none":
            name = module.removesuffix(".base_layer")
            biases[name] = None
            own[f"{PREFIX}{key}"] = f"{name}.bias.value"
    missing = [target for target in targets if not any(name.endswith(target) for name in full)]
    if missing:
        raise ValueError(f"modules_to_save names {missing[0]}, of which the file has no tensor")
    if said and not rows:
        raise ValueError("trainable_token_indices is set, and the file has no rows")
    return NamesBeside(tuple(full), rows, tuple(biases)), own


def is_twice(key: str) -> bool:
    return any(word in key for word in TWICE)


def by_place(names: NamesBeside, flat: Mapping[str, Tensor], own: Mapping[str, str]) -> dict[str, dict[str, Tensor]]:
    """place -> tensor name -> tensor, of the tensors `own` of a file of PEFT."""
    found: dict[str, dict[str, Tensor]] = {place: {} for place in names.places}
    for theirs, name in own.items():
        place = max((place for place in found if name.startswith(f"{place}.")), key=len)
        found[place][name[len(place) + 1 :]] = flat[theirs]
    return found


def whole(key: str, targets: Sequence[str]) -> str | None:
    """The module that PEFT has saved as a whole, of whose tensors `key` is one: the outermost whose name ends so."""
    words = key.split(".")
    names = (".".join(words[:n]) for n in range(1, len(words)))
    return next((name for name in names if any(name.endswith(target) for target in targets)), None)


def ids_of(said: Any, name: str) -> tuple[int, ...]:
    """Ids of the rows of the module `name`. Raises ValueError where the configuration does not say them."""
    if isinstance(said, Mapping):
        said = next((ids for target, ids in said.items() if name.endswith(target)), None)
    if not isinstance(said, list | tuple) or not all(isinstance(i, int) and i >= 0 for i in said):
        raise ValueError(f"{name}: the file has rows of tokens, and trainable_token_indices does not say which")
    return tuple(said)
