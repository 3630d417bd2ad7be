"""How the rules of an agent's looks are driven where there is no agent: request by request."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from greentrain.node.capping import Answer, CapJournal, Look, Request

T = TypeVar("T")


def carry_out(look: Look[T], answer: Callable[[Request], Answer]) -> T:
    """What comes of a look whose requests are answered so; what `answer` raises cuts it off there."""
    try:
        request = next(look)
        while True:
            request = look.send(answer(request))
    except StopIteration as end:
        result: T = end.value
        return result


def copy_journal(content: CapJournal) -> CapJournal:
    """What the disk has of it: later changes of memory are not in it."""
    return CapJournal(dict(content.entries), dict(content.asked))
