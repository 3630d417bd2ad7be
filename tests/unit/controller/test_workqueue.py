"""The work queue: one worker per key, nothing forgotten, failures back off."""

from __future__ import annotations

import asyncio
import random

from greentrain.controller.workqueue import JITTER, LONGEST_DELAY_SECONDS, WorkQueue


async def test_a_waiting_key_is_there_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.add("a")
    assert len(queue) == 1
    assert await queue.get() == "a"


async def test_a_key_added_while_worked_on_comes_again_only_afterwards() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    await queue.get()
    queue.add("a")
    assert len(queue) == 0
    queue.done("a")
    assert await queue.get() == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_the_earliest_of_several_delays_wins() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 60)
    queue.add_after("a", 0.01)
    queue.add_after("a", 60)
    assert await asyncio.wait_for(queue.get(), 5) == "a"
    queue.close()


async def test_failures_back_off_up_to_a_bound_and_success_forgets_them() -> None:
    queue: WorkQueue[str] = WorkQueue()
    delays = [queue.retry("a") for _ in range(20)]
    for delay, base in zip(delays, (0.05, 0.1, 0.2, 0.4), strict=False):
        assert base <= delay <= base * (1 + JITTER)
    assert LONGEST_DELAY_SECONDS <= delays[-1] <= LONGEST_DELAY_SECONDS * (1 + JITTER)
    assert queue.failures("a") == 20
    queue.succeeded("a")
    assert queue.failures("a") == 0
    assert queue.retry("a") < 0.1
    queue.close()


async def test_keys_that_failed_together_do_not_come_back_together() -> None:
    queue: WorkQueue[int] = WorkQueue(random.Random(1))
    delays = {queue.retry(key) for key in range(100)}
    assert len(delays) == 100
    queue.close()


async def test_a_held_key_does_not_come_before_its_time_whatever_asks_for_it() -> None:
    queue: WorkQueue[str] = WorkQueue()
    loop = asyncio.get_running_loop()
    queue.add("a")
    await queue.get()
    begun = loop.time()
    assert queue.retry("a", not_before=0.3) >= 0.3
    queue.add("a")
    queue.done("a")
    queue.add("a")
    queue.add_after("a", 0.01)
    queue.add("b")
    assert await queue.get() == "b"
    assert await asyncio.wait_for(queue.get(), 5) == "a"
    assert loop.time() - begun >= 0.3
    queue.done("a")
    queue.add("a")
    assert await asyncio.wait_for(queue.get(), 0.1) == "a", "once, and no longer"
    queue.close()


async def test_keys_are_worked_on_in_turn_by_any_number_of_workers() -> None:
    queue: WorkQueue[int] = WorkQueue()
    busy: set[int] = set()
    done: list[int] = []

    async def work() -> None:
        while True:
            key = await queue.get()
            assert key not in busy
            busy.add(key)
            await asyncio.sleep(0)
            busy.discard(key)
            done.append(key)
            queue.done(key)

    workers = [asyncio.create_task(work()) for _ in range(4)]
    for i in range(200):
        queue.add(i % 7)
        if i % 5 == 0:
            await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    assert set(done) == set(range(7))
    assert len(queue) == 0


async def test_a_key_that_waits_or_is_worked_on_is_late_after_its_time_and_not_once_it_is_done() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("worked on")
    queue.add("waits")
    await queue.get()
    queue.add("worked on")  # again: due since the first time until that is done
    await asyncio.sleep(0.02)
    assert sorted(queue.late(0.01)) == ["waits", "worked on"]
    assert queue.late(10) == []
    queue.done("worked on")
    assert queue.late(0.01) == ["waits"]
    assert sorted(queue.late(0)) == ["waits", "worked on"]


async def take(queue: WorkQueue[str]) -> float:
    """Take the next key, be done with it at once; when that was."""
    queue.done(await asyncio.wait_for(queue.get(), 5))
    return asyncio.get_running_loop().time()


async def test_what_is_not_urgent_comes_at_once_to_a_quiet_key_and_then_together() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_soon("a", 0.1)
    first = await take(queue)
    for _ in range(100):
        queue.add_soon("a", 0.1)
    assert len(queue) == 0
    second = await take(queue)
    assert second - first >= 0.1
    await asyncio.sleep(0.15)
    assert len(queue) == 0, "a hundred reports make one pass"


async def test_what_is_urgent_does_not_wait_and_takes_along_what_does() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    first = await take(queue)
    queue.add_soon("a", 0.2)
    queue.add("a")
    assert await take(queue) - first < 0.1
    await asyncio.sleep(0.25)
    assert len(queue) == 0


async def test_a_report_during_a_pass_is_taken_up_after_it() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert await queue.get() == "a"
    queue.add_soon("a", 0.05)
    await asyncio.sleep(0.1)
    assert len(queue) == 0
    queue.done("a")
    await take(queue)


async def test_a_key_that_waits_for_others_is_late_counted_from_its_first_report() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    await take(queue)
    queue.add_soon("a", 0.2)
    await asyncio.sleep(0.25)
    assert queue.late(0.15) == ["a"]
    queue.forget("a")
    queue.add_soon("a", 60)  # a key that is new, for all that is known
    assert len(queue) == 1
    queue.close()


async def take_all(queue: WorkQueue[str]) -> list[str]:
    """The keys that wait, in their turn."""
    found = []
    while len(queue):
        found.append(await asyncio.wait_for(queue.get(), 5))
        queue.done(found[-1])
    return found


async def test_what_is_urgent_goes_ahead_of_reports_that_came_before() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for key in ("report 1", "report 2", "report 3"):
        queue.add_soon(key, 60)
    for key in ("pod 1", "pod 2", "report 2", "pod 1"):
        queue.add(key)
    assert await take_all(queue) == ["pod 1", "pod 2", "report 2", "report 1", "report 3"]


async def test_a_report_that_has_let_others_go_ahead_for_its_time_has_its_turn() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_soon("report", 0.02)
    await asyncio.sleep(0.04)
    for i in range(100):
        queue.add(f"pod {i}")
    assert (await take_all(queue))[0] == "report"


async def test_a_report_that_has_waited_for_others_has_waited_its_time() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("report")
    await take(queue)
    queue.add_soon("report", 0.05)
    await asyncio.sleep(0.1)
    queue.add("pod")
    assert await take_all(queue) == ["report", "pod"]


async def test_who_takes_a_key_plans_when_it_comes_again() -> None:
    """Each report plans the next look at a job's progress: one that was planned before is not one more pass."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 0.02)
    queue.add("a")
    await take(queue)
    await asyncio.sleep(0.05)
    assert len(queue) == 0
    queue.add("a")
    await queue.get()
    queue.add_after("a", 0.02)
    queue.done("a")
    assert await asyncio.wait_for(queue.get(), 5) == "a"


async def test_free_workers_do_not_take_many_keys_before_what_is_urgent_comes() -> None:
    queue: WorkQueue[str] = WorkQueue()
    taken: list[str] = []

    async def work() -> None:
        while True:
            taken.append(await queue.get())
            if len(taken) == 1:
                queue.add("pod")

    workers = [asyncio.create_task(work()) for _ in range(16)]
    for i in range(16):
        queue.add_soon(f"report {i}", 60)
    await asyncio.sleep(0.1)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    assert taken.index("pod") == 1
    assert len(taken) == 17
