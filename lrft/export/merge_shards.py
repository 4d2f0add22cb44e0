"""Merge one safetensors file of the base, piece by piece.

A piece is some whole rows of a tensor as they are stored: a few MB that are read, changed, rounded once and written at
their place. Several workers take one piece after the other, each on one core, while the disk writes what is finished.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lrft.adapters.adapter import Adapter, Delta, Factors, Site
from lrft.adapters.storage import SavedAdapter
from lrft.errors import CheckFailed
from lrft.export.merge_experts import Merged
from lrft.export.merge_head import HeadMerge
from lrft.model.linear import as_rows
from lrft.utils.safetensors_stream import DTYPES, Entry, TensorReader, TensorWriter, raw

FLOATS = ("F64", "F32", "F16", "BF16")
CHOICES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
PIECE = 2**19  # numbers: what is computed on the way stays in a core's cache
COPIED = 2**22  # bytes at a time of what is not changed
MOST_WORKERS = 4  # more of them wait for memory and disk


@dataclass
class Change:
    """What merging did to one site's weight, as sums of squares over its pieces."""

    update: float = 0.0
    lost: float = 0.0
    """norm of the part of the update lost to rounding to the stored dtype"""


@dataclass(frozen=True)
class TrainedOn:
    """What is to be taken in the place of the files' content, where the base was quantised for training."""

    made: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)
    """tensor name -> function that returns it, float32, in its stored shape"""
    dtype: torch.dtype | None = None
    """dtype of all other tensors, as in training"""


class Desk(threading.local):
    """Memory that a worker uses again for each piece: new pages cost as much as the arithmetic on them."""

    def __init__(self) -> None:
        self.places: dict[str, Tensor] = {}

    def place(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of any content, until the same name is asked for again."""
        size = math.prod(shape) * dtype.itemsize
        if name not in self.places or len(self.places[name]) < size:
            self.places[name] = torch.empty(size, dtype=torch.uint8)
        return self.places[name][:size].view(dtype).view(shape)


@dataclass
class FileMerge:
    """One file's pieces. `keys`: name of each target's tensor -> its site."""

    reader: TensorReader
    writer: TensorWriter
    saved: SavedAdapter
    keys: Mapping[str, Site]
    trained_on: TrainedOn
    head: HeadMerge
    experts: Mapping[str, Merged]
    reached: Callable[[], None]
    """called when the pieces of a tensor of the base have been given out"""
    desk: Desk = field(default_factory=Desk)
    lock: threading.Lock = field(default_factory=threading.Lock)
    changes: dict[str, Change] = field(default_factory=dict)
    """site name -> adapter"""

    def jobs(self) -> Iterator[Callable[[], None]]:
        """All that is to be done, in the file's order; each may be done by any thread."""
        for name, tensor in self.head.given.items():
            yield partial(self.give, name, tensor)
        for name, entry in self.reader.entries.items():
            if name in self.head.given or name not in self.writer.entries:
                self.reached()
                continue
            if name in self.keys:
                yield from self.target(name, entry, self.keys[name])
            elif name in self.experts:
                yield partial(self.expert, name)
            elif name in self.trained_on.made:
                yield partial(self.replace, name)
            elif self.writer.entries[name].dtype != entry.dtype or self.narrows(name):
                for first, last in spans(math.prod(entry.shape), PIECE):
                    yield partial(self.convert, name, first, last)
            else:
                for first, last in spans(entry.size, COPIED):
                    yield partial(self.copy, name, first, last)
            self.reached()

    def give(self, name: str, tensor: Tensor) -> None:
        """A tensor that was trained in full."""
        rounded = tensor.to(DTYPES[self.writer.entries[name].dtype])
        if not finite(rounded):
            raise too_large(name, rounded.dtype)
        self.writer.write(name, 0, raw(rounded.contiguous()))

    def copy(self, name: str, first: int, last: int) -> None:
        """Bytes that do not change."""
        data = raw(self.desk.place("stored", (last - first,), torch.uint8))
        self.reader.read(name, first, data)
        self.writer.write(name, first, data)

    def convert(self, name: str, first: int, last: int) -> None:
        """Numbers that change their dtype and nothing else."""
        stored = self.stored(name, first, last)
        if self.narrows(name):
            stored = stored.to(self.trained_on.dtype)
        rounded = self.rounded(name, stored)
        if not finite(rounded) and finite(stored):
            raise too_large(name, rounded.dtype)
        self.writer.write(name, first * rounded.itemsize, raw(rounded))

    def narrows(self, name: str) -> bool:
        """Whether a tensor was rounded when the base was loaded for training."""
        dtype, stored = self.trained_on.dtype, self.reader.dtype(name)
        cast = stored.is_floating_point and stored != dtype
        return dtype is not None and cast and stored.itemsize >= dtype.itemsize

    def replace(self, name: str) -> None:
        """A weight that is made, where no adapter is."""
        exact = self.trained_on.made[name]()
        rounded = self.rounded(name, exact)
        if not finite(rounded) and finite(exact):
            raise too_large(name, rounded.dtype)
        self.writer.write(name, 0, raw(rounded.contiguous()))

    def expert(self, name: str) -> None:
        """A tensor that holds the weights of adapted experts, or a part of one."""
        exact, before = self.experts[name]()
        rounded = exact.to(DTYPES[self.writer.entries[name].dtype]).contiguous()
        if not finite(rounded) and finite(exact):
            raise too_large(name, rounded.dtype)
        self.writer.write(name, 0, raw(rounded))
        change = Change(norm(exact - before) ** 2, norm(rounded.to(exact.dtype) - exact) ** 2)
        with self.lock:
            self.changes[name] = change

    def target(self, name: str, entry: Entry, site: Site) -> Iterator[Callable[[], None]]:
        """Thin factors are multiplied for the rows of each piece; any other adapter states the weight as a whole."""
        refuse_unfit(site, entry, self.reader.dtype(name))
        self.changes[site.name] = Change()
        adapter = self.saved.build(site)
        factors = thin(adapter)
        if factors is None or name in self.trained_on.made:
            yield partial(self.whole, name, site, adapter)
            return
        left, right = factors.scale * factors.B, factors.A
        if site.transposed:
            left, right = right.T, left.T
        for first, last in spans(len(left), rows_of(entry)):
            yield partial(self.add, name, site, first, left[first:last], right)

    def add(self, name: str, site: Site, first: int, left: Tensor, right: Tensor) -> None:
        """The rows from `first` on become themselves + left @ right."""
        shape = (len(left), right.shape[1])
        stored = self.stored(name, first * shape[1], (first + shape[0]) * shape[1])
        before = self.desk.place("before", shape, site.dtype).copy_(stored.view(shape))
        exact = torch.mm(left, right, out=self.desk.place("exact", shape, site.dtype)).add_(before)
        self.settle(name, site, first, before, exact)

    def whole(self, name: str, site: Site, adapter: Adapter) -> None:
        made = self.trained_on.made
        stored = made[name]() if name in made else self.reader.tensor(name)
        before = as_rows(stored, site.transposed).to(site.dtype)
        exact = as_rows(adapter.weight(before), site.transposed)
        before = as_rows(before, site.transposed)
        for first, last in spans(len(exact), rows_of(self.reader.entries[name])):
            self.settle(name, site, first, before[first:last], exact[first:last])

    def settle(self, name: str, site: Site, first: int, before: Tensor, exact: Tensor) -> None:
        """Round the rows from `first` on, write them, and note their norms. `before` is used up."""
        rounded = self.rounded(name, exact)
        self.writer.write(name, first * exact.shape[1] * rounded.itemsize, raw(rounded))
        update = norm(before.sub_(exact))
        lost = 0.0 if rounded.dtype == exact.dtype else norm(before.copy_(rounded).sub_(exact))
        if not math.isfinite(lost) and not finite(rounded) and finite(exact):
            raise too_large(site.name, rounded.dtype)
        with self.lock:
            self.changes[site.name].update += update**2
            self.changes[site.name].lost += lost**2

    def stored(self, name: str, first: int, last: int) -> Tensor:
        """The numbers from `first` to `last` of a tensor laid flat."""
        flat = self.desk.place("stored", (last - first,), self.reader.dtype(name))
        self.reader.read(name, first * flat.itemsize, raw(flat))
        return flat

    def rounded(self, name: str, exact: Tensor) -> Tensor:
        """In the dtype that the file to be written has for it."""
        dtype = DTYPES[self.writer.entries[name].dtype]
        return exact if exact.dtype == dtype else self.desk.place("rounded", tuple(exact.shape), dtype).copy_(exact)


def merge_file(
    path: Path,
    out: Path,
    saved: SavedAdapter,
    keys: Mapping[str, Site],
    dtype: str | None,
    workers: int,
    trained_on: TrainedOn,
    head: HeadMerge,
    experts: Mapping[str, Merged],
    reached: Callable[[], None],
    *,
    last: bool,
) -> dict[str, Change]:
    """Returns the change of each site whose tensor lies in this file.

    reached: called for each tensor of the file. last: of the base's files.
    """
    with TensorReader(path) as reader:
        kept = {
            name: (CHOICES[dtype] if dtype and entry.dtype in FLOATS else entry.dtype, entry)
            for name, entry in reader.entries.items()
            if name not in head.unread
        }
        announced = {name: (word, entry.shape, bytes_of(word, entry)) for name, (word, entry) in kept.items()}
        mine = head.of_file(reader.entries.keys(), last)
        common = next((word for word, entry in kept.values() if entry.dtype in FLOATS), "F32")
        for name, tensor in mine.given.items():
            word = announced[name][0] if name in announced else common
            announced[name] = (word, tensor.shape, tensor.numel() * DTYPES[word].itemsize)
        with TensorWriter(out, announced, reader.metadata) as writer:
            work = FileMerge(reader, writer, saved, keys, trained_on, mine, experts, reached)
            together(work.jobs(), workers)
    return work.changes


def refuse_unfit(site: Site, entry: Entry, dtype: torch.dtype) -> None:
    """Raises CheckFailed for a stored tensor that the site's update cannot be added to."""
    if not dtype.is_floating_point:
        raise CheckFailed(f"{site.name} is stored as {dtype} in the base: an update cannot be added to integers")
    here = entry.shape[::-1] if site.transposed else entry.shape
    if here != (site.d, site.k):
        raise CheckFailed(f"{site.name} is {here} in the base, {site.d} x {site.k} in the adapter")


def bytes_of(dtype: str, entry: Entry) -> int:
    return entry.size if dtype == entry.dtype else math.prod(entry.shape) * DTYPES[dtype].itemsize


def thin(adapter: Adapter) -> Factors | None:
    return adapter.factors() if isinstance(adapter, Delta) else None


def spans(length: int, most: int) -> Iterator[tuple[int, int]]:
    """0 to `length` in spans (first, last) of about the same length, none above `most`."""
    count = math.ceil(length / most)
    ends = [length * at // count for at in range(1, count + 1)]
    return zip([0, *ends], ends, strict=False)


def rows_of(entry: Entry) -> int:
    """How many rows of a stored matrix are a piece."""
    return max(1, PIECE // entry.shape[1])


def finite(tensor: Tensor) -> bool:
    """Whether all values are. (Ten times as fast as isfinite: the extremes show NaN and infinity alike.)"""
    return not tensor.numel() or all(math.isfinite(extreme.item()) for extreme in tensor.aminmax())


def norm(tensor: Tensor) -> float:
    return torch.linalg.vector_norm(tensor).item()


def too_large(name: str, dtype: torch.dtype) -> CheckFailed:
    """For a finite value that `dtype` cannot hold: float16 ends at 65504."""
    return CheckFailed(f"{name} holds values that do not fit into {str(dtype).removeprefix('torch.')}")


@contextmanager
def workers_for(saved: SavedAdapter) -> Iterator[int]:
    """How many threads take pieces, each on one core; one thread on all cores where weights are made as a whole."""
    threads = torch.get_num_threads()
    by_rows = all(thin(saved.build(site)) is not None for site in saved.sites[:1])  # all are of the same methods
    torch.set_num_threads(1 if by_rows else threads)
    try:
        yield min(threads, MOST_WORKERS) if by_rows else 1
    finally:
        torch.set_num_threads(threads)


def together(jobs: Iterator[Callable[[], None]], workers: int) -> None:
    """Do all jobs in `workers` threads, this one among them, each taking the next when it is free.

    The first error, also one of the iterator itself, ends all and is raised here when all have stopped.
    """
    errors: list[BaseException] = []
    lock = threading.Lock()

    @torch.no_grad()
    def work() -> None:
        try:
            while not errors:
                with lock:
                    job = next(jobs, None)
                if job is None:
                    return
                job()
        except BaseException as error:
            errors.append(error)

    def help_out() -> None:
        torch.set_num_threads(1)  # a thread's own setting
        work()

    helpers = [threading.Thread(target=help_out) for _ in range(workers - 1)]
    for helper in helpers:
        helper.start()
    work()
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[0]
