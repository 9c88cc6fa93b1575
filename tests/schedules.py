"""A deterministic scheduler: every interleaving of several sandboxes, with a bound on crashes.

Each actor runs in its own thread and stops before every call that leaves its sandbox. The explorer
continues one of them, or kills it there, and tries each choice in turn: a depth-first walk over all
schedules. Only where an actor crashes matters, not when, so a crash is tried right after a step of
that actor and nowhere else, and no two schedules are the same run.

A schedule is named by its list of choices; ``pytest --schedule NAME`` replays it.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.world import Call, Fault, Killed, Network, Sandbox, World

__all__ = ["Actor", "Explorer", "Scene"]

STEP_TAKES_AT_MOST_S = 30


@dataclass(frozen=True)
class Actor:
    """One sandbox and what it does."""

    name: str
    act: Callable[[World, Sandbox], Any]
    strikes_at: int | None = None
    fault: Fault | None = None
    model_takes_s: float = 0
    clock_ahead_s: float = 0
    index_lags: bool = False


@dataclass(frozen=True)
class Scene:
    """The actors, their world, and the check of each actor's answer and of the end."""

    world: Callable[[], World]
    actors: tuple[Actor, ...]
    check: Callable[[World, dict[str, Any]], None]


class _Running:
    """An actor in its thread."""

    def __init__(self, actor: Actor, world: World) -> None:
        self.name = actor.name
        self.answer: Any = None
        self.fault: BaseException | None = None
        self.waiting_for: Call | None = None
        self._previous: Call | None = None
        self._crash = False
        self._go = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        network = Network(actor.strikes_at, actor.fault, before_each=self._before)
        process = world.process(
            network,
            model_takes_s=actor.model_takes_s,
            clock_ahead_s=actor.clock_ahead_s,
            index_lags=actor.index_lags,
        )
        self._thread = threading.Thread(target=self._run, args=(actor, world, process))

    def start(self) -> None:
        self._thread.start()
        self._wait()

    def go(self, *, crash: bool) -> None:
        """Makes the call that the actor waits for, or kills the actor before it."""
        self._crash = crash
        self.waiting_for = None
        self._go.release()
        self._wait()

    def _wait(self) -> None:
        assert self._stopped.acquire(timeout=STEP_TAKES_AT_MOST_S), f"{self.name} hangs"

    def _run(self, actor: Actor, world: World, process: Sandbox) -> None:
        try:
            self.answer = actor.act(world, process)
        except Killed:
            pass
        except BaseException as fault:  # noqa: BLE001 - raised again by the explorer
            self.fault = fault
        self._stopped.release()

    def _before(self, call: Call) -> None:
        # The index is read partition by partition; that is one step, as all but one are empty.
        same_list = call.operation == "query" and self._previous == call
        self._previous = call
        if same_list:
            return
        self.waiting_for = call
        self._stopped.release()
        self._go.acquire()
        if self._crash:
            raise Killed


@dataclass
class _Decision:
    options: int
    taken: int


@dataclass
class Explorer:
    """Runs all schedules of a scene, with at most ``crashes`` of them.

    ``switches`` limits how often an actor that could continue is preempted; without it there is no
    limit.
    """

    scene: Scene
    switches: int | None = None
    crashes: int = 1
    explored: int = 0
    _story: list[str] = field(default_factory=list)

    def explore(self) -> int:
        """Runs every schedule; returns their number."""
        prefix: list[int] | None = []
        while prefix is not None:
            prefix = self._next(self.replay(prefix))
            self.explored += 1
        return self.explored

    def replay(self, choices: list[int]) -> list[_Decision]:
        """Runs the schedule that begins with ``choices`` and continues with the first choice."""
        with self.scene.world() as world:
            return self._replay(world, choices)

    def _replay(self, world: World, choices: list[int]) -> list[_Decision]:
        running = [_Running(actor, world) for actor in self.scene.actors]
        self._story = []
        for each in running:
            each.start()
        decisions: list[_Decision] = []
        last: _Running | None = None
        crashed = switched = 0
        while any(each.waiting_for for each in running):
            options = self._options(running, last, crashed=crashed, switched=switched)
            depth = len(decisions)
            taken = choices[depth] if depth < len(choices) else 0
            decisions.append(_Decision(len(options), taken))
            chosen, crash = options[taken]
            if last is not None and last is not chosen and last.waiting_for:
                switched += 1
            step = "dies before" if crash else "does"
            self._story.append(f"{chosen.name} {step} {chosen.waiting_for}")
            chosen.go(crash=crash)
            crashed += crash
            last = chosen
        self._check(world, running, decisions)
        return decisions

    def _options(
        self, running: list[_Running], last: _Running | None, *, crashed: int, switched: int
    ) -> list[tuple[_Running, bool]]:
        ready = [each for each in running if each.waiting_for]
        if self.switches is not None and switched >= self.switches and last in ready:
            ready = [last]
        options = [(each, False) for each in ready]
        if crashed < self.crashes:
            may_crash = [each for each in ready if last is None or each is last]
            options += [(each, True) for each in may_crash]
        return options

    def _check(self, world: World, running: list[_Running], decisions: list[_Decision]) -> None:
        name = ".".join(str(each.taken) for each in decisions)
        story = "\n  ".join([f"schedule {name}", *self._story])
        for each in running:
            if each.fault is not None:
                raise AssertionError(story) from each.fault
        try:
            self.scene.check(world, {each.name: each.answer for each in running})
        except AssertionError as fault:
            raise AssertionError(f"{fault}\n  {story}") from fault

    @staticmethod
    def _next(decisions: list[_Decision]) -> list[int] | None:
        while decisions:
            last = decisions.pop()
            if last.taken + 1 < last.options:
                return [*(each.taken for each in decisions), last.taken + 1]
        return None
