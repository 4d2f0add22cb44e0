"""Requests of many clients, answered in batches: those that wait for the same model go through it together."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from lrft.serving.answerer import Answer, Answerer, Request

GATHER_SECONDS = 0.005  # that the first request of a batch waits for others: little beside one token


class Full(Exception):
    """As many requests wait as may."""


class Closed(Exception):
    """The server is shutting down."""


class Ticket:
    """One request on its way. What happens to it is read with `next`."""

    def __init__(self, name: str, request: Request) -> None:
        self.name, self.request = name, replace(request, told=self._told)
        self._events: queue.SimpleQueue[str | Answer | Exception] = queue.SimpleQueue()
        self._left = False

    def next(self, seconds: float) -> str | Answer | None:
        """The next stretch of text, or the whole answer at the end; None when nothing came in time.

        Raises what went wrong.
        """
        try:
            event = self._events.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(event, Exception):
            raise event
        return event

    def leave(self) -> None:
        """The client has gone: the answer ends with the next token."""
        self._left = True

    @property
    def has_left(self) -> bool:
        return self._left

    def put(self, event: str | Answer | Exception) -> None:
        self._events.put(event)

    def _told(self, text: str) -> bool:
        self._events.put(text)
        return not self._left


class Batches:
    """One thread that answers, oldest first. most: waiting requests. size: requests of a batch."""

    def __init__(self, answerers: Mapping[str, Answerer], *, size: int, most: int) -> None:
        self._answerers, self._size, self._most = answerers, size, most
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    def submit(self, name: str, requests: list[Request]) -> list[Ticket]:
        """All of them, or none. Raises Full or Closed."""
        tickets = [Ticket(name, request) for request in requests]
        with self._changed:
            if self._closed:
                raise Closed
            if len(self._waiting) + len(tickets) > self._most:
                raise Full
            self._waiting.extend(tickets)
            self._changed.notify()
        return tickets

    def close(self) -> None:
        """Take no more requests, tell those that wait, and finish the batch that is being answered."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = list(self._waiting), deque()
            self._changed.notify()
        for ticket in waiting:
            ticket.put(Closed())
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            try:
                answers = self._answerers[batch[0].name].answer([ticket.request for ticket in batch])
            except Exception as error:  # whatever it is, each client of the batch is told, and the next one is served
                for ticket in batch:
                    ticket.put(error)
            else:
                for ticket, answer in zip(batch, answers, strict=True):
                    ticket.put(answer)

    def _next(self) -> list[Ticket]:
        """The next batch: the oldest request and those for the same model; empty at the end."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return []
        time.sleep(GATHER_SECONDS)
        with self._changed:
            here = [ticket for ticket in self._waiting if not ticket.has_left]
            chosen = [ticket for ticket in here if ticket.name == here[0].name][: self._size]
            self._waiting = deque(ticket for ticket in here if ticket not in chosen)
        return chosen or self._next()
