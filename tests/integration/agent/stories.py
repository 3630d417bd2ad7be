"""Stories of single nodes, played side by side the first time one's outcome is asked for: most of their time is waiting."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sandbox.controlplane import ControlPlane
from sandbox.simgpu.build import apply_libraries
from sandbox.simgpu.cards import Card
from tests.integration.agent.processes import Node
from tests.support.api import Server

Play = Callable[[Node], Awaitable[None]]
Outcomes = dict[str, BaseException | None]
"""How each story went, by its sentence."""


@dataclass(frozen=True)
class Story:
    """What happens on one node."""

    play: Play
    profiles: tuple[str | Card, ...]

    @property
    def sentence(self) -> str:
        return self.play.__name__


@dataclass(frozen=True, eq=False)
class Book:
    """The stories of one file."""

    name: str
    """Begins the names of its nodes, which are namespaces too and are never deleted."""
    seconds: float
    """How long a story may last."""
    at_once: int
    """How many are on their way at a time: each starts agents, and other tests beside them are judged by the second."""
    stories: list[Story] = field(default_factory=list)
    _played: dict[Story, BaseException | None] = field(default_factory=dict)

    def story(self, *profiles: str | Card) -> Callable[[Play], Play]:
        """Take a story up; its node has these cards, else one V100."""

        def add(play: Play) -> Play:
            self.stories.append(Story(play, profiles or ("V100",)))
            return play

        return add

    def share_out(self, metafunc: pytest.Metafunc) -> None:
        """Make tests of the stories: one of each; one of the whole book where workers share the tests.

        Stories are played together, so that several workers with one each would all play the whole book.
        """
        distributed = hasattr(metafunc.config, "workerinput")
        tests = [tuple(self.stories)] if distributed else [(one,) for one in self.stories]
        names = [self.name] if distributed else [one.sentence for one in self.stories]
        metafunc.parametrize("told", tests, ids=names)

    def tell(self, told: tuple[Story, ...], request: pytest.FixtureRequest, plane: ControlPlane) -> Outcomes:
        """How these stories went; the first time, all that this run of the tests asks for are played."""
        apply_libraries()
        asked: set[Story] = set()
        for item in request.session.items:
            if item.path == request.path and isinstance(item, pytest.Function) and hasattr(item, "callspec"):
                wanted = item.callspec.params.get("told")
                asked.update(wanted if isinstance(wanted, tuple) else ())
        missing = tuple(one for one in self.stories if one in asked and one not in self._played)
        if missing:
            self._played.update(asyncio.run(self._play_all(missing, plane)))
        return {one.sentence: self._played[one] for one in told}

    async def _play_all(
        self, stories: tuple[Story, ...], plane: ControlPlane
    ) -> dict[Story, BaseException | None]:
        async with Server(plane.kubeconfig) as server, contextlib.AsyncExitStack() as stack:
            turns = asyncio.Semaphore(self.at_once)

            async def play(number: int, one: Story) -> None:
                # Sockets need short paths.
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gt-")))
                name = f"{self.name}-{os.getpid()}-{number}"
                async with (
                    turns,
                    asyncio.timeout(self.seconds),
                    Node.set_up(name, folder, server, plane.kubeconfig, one.profiles) as node,
                ):
                    await one.play(node)

            plays = (play(number, one) for number, one in enumerate(stories))
            found = await asyncio.gather(*plays, return_exceptions=True)
        return dict(zip(stories, found, strict=True))


def judge(outcomes: Outcomes, subtests: pytest.Subtests) -> None:
    """Each story by itself: those that went well do not hide one that did not."""
    for sentence, failure in outcomes.items():
        with subtests.test(sentence):
            if failure is not None:
                raise failure
