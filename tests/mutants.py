"""The money protocol, broken on purpose: each break must be noticed by the test named beside it.

``make mutants`` copies the project, breaks one thing at a time and runs those tests. It fails when
they pass, that is when a break survives, and when a break no longer fits the code.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("lib", "handlers", "infra", "tests", "pyproject.toml", "template.yaml")
TEST_RUN_TAKES_AT_MOST_S = 600
AT_ONCE = 2
OPTIONS = ("-q", "-x", "-m", "", "-p", "no:cacheprovider")

LEDGER = "tests/test_ledger.py::"
CRASHES = "tests/test_crashes.py::test_no_fault_at_any_call_loses_or_invents_a_credit_on_moto"
ORDERS = "tests/test_interleavings.py::test_in_every_order_the_books_are_sound_on_moto"
HISTORIES = (
    "tests/test_state_machine.py"
    "::test_no_history_makes_the_service_disagree_with_a_plain_account[moto]"
)
JOBS = "tests/test_jobs.py::"
WORKER = "tests/test_worker.py::"
IN_THIS_PROCESS = "[handlers in this process]"


@dataclass(frozen=True)
class Mutant:
    """One break: in ``file``, ``old`` becomes ``new``; ``test`` must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


MUTANTS = (
    Mutant(
        "debit without looking at the balance",
        "lib/ledger/reservation.py",
        'has_credits = "credits >= :price"',
        'has_credits = "(credits >= :price OR credits < :price)"',
        LEDGER + "test_without_five_credits_nothing_is_written_and_the_balance_is_told[moto]",
    ),
    Mutant(
        "overwrite a generation of the same millisecond",
        "lib/ledger/reservation.py",
        'never_used = "attribute_not_exists(pk)"',
        'never_used = "attribute_not_exists(pk) OR attribute_exists(pk)"',
        LEDGER + "test_generations_of_one_millisecond_get_milliseconds_of_their_own[moto]",
    ),
    Mutant(
        "take an idempotency key that is taken",
        "lib/ledger/reservation.py",
        'key_is_free = "attribute_not_exists(pk) OR expiresAt <= :now"',
        'key_is_free = "attribute_not_exists(pk) OR expiresAt > :now OR expiresAt <= :now"',
        ORDERS + "[two requests with one key]",
    ),
    Mutant(
        "take over a key that was freed, whoever took it since",
        "lib/ledger/reservation.py",
        'key_is_free += " OR generation = :released"',
        'key_is_free += " OR generation >= :released"',
        ORDERS + "[two retries after a refund]",
    ),
    Mutant(
        "not recognise the own debit after a lost answer",
        "lib/ledger/reservation.py",
        "if _failed(generation) and _attempt_id(generation) == mine.attempt_id:",
        "if _failed(generation) and _attempt_id(generation) is None:",
        LEDGER + "test_a_debit_whose_answer_was_lost_is_recognised_and_not_made_again[moto]",
    ),
    Mutant(
        "count nothing against the minute's limit",
        "lib/ledger/reservation.py",
        'count = "rateUsed = rateUsed + :one"',
        'count = "rateUsed = rateUsed + :one - :one"',
        LEDGER + "test_the_limit_of_a_minute_is_kept_and_the_next_minute_begins_anew[moto]",
    ),
    Mutant(
        "settle whatever the status",
        "lib/ledger/ledger.py",
        """        still_reserved = "#status = :reserved AND attemptId = :attemptId"
        update: dict""",
        """        still_reserved = "(#status = :reserved OR attemptId = :attemptId)"
        update: dict""",
        LEDGER + "test_what_is_refunded_can_not_be_settled[moto]",
    ),
    Mutant(
        "refund whatever the status",
        "lib/ledger/ledger.py",
        """        still_reserved = "#status = :reserved AND attemptId = :attemptId"
        values = {""",
        """        still_reserved = "(#status = :reserved OR attemptId = :attemptId)"
        values = {""",
        LEDGER + "test_refunding_twice_pays_back_once[moto]",
    ),
    Mutant(
        "check, then refund without a condition",
        "lib/ledger/ledger.py",
        """        release = self._release(generation, failure_code, revisit_at)
""",
        """        found = self.generation(generation.organisation, generation.created_ms, deadline)
        if found is None or found.status is not Status.RESERVED:
            return found.status if found else Status.REFUNDED
        release = self._release(generation, failure_code, revisit_at)
        release["ConditionExpression"] = "#status = :reserved OR attemptId = :attemptId"
""",
        ORDERS + "[two reconcilers and an abandoned reservation]",
    ),
    Mutant(
        "forget the fence: keep the image of a refunded generation",
        "lib/generation.py",
        """        except ReservationGone as fault:
            self._delete(generation, observation)
            lost = ReservationLost()
            _report(lost, generation, observation)
            raise lost from fault
""",
        """        except ReservationGone:
            observation.count("Fenced")
""",
        ORDERS + "[a slow request and the reconciler]",
    ),
    Mutant(
        "delete the image before the refund is decided",
        "lib/generation.py",
        "        may_be_stored = in_doubt and not isinstance(failure, KeyTaken)\n",
        "        may_be_stored = in_doubt and not isinstance(failure, KeyTaken)\n"
        "        self._delete(generation, observation)\n",
        ORDERS + "[a refund in doubt and the reconciler's settle]",
    ),
    Mutant(
        "reconciler: delete first, refund afterwards",
        "lib/ledger/reconciliation.py",
        "        revisit_at = int(self._clock()) + hold.lease_s\n",
        "        revisit_at = int(self._clock()) + hold.lease_s\n"
        "        self._images.delete(hold.image_key)\n",
        ORDERS + "[a slow request and the reconciler]",
    ),
    Mutant(
        "reconciler: never come back for an image that arrives late",
        "lib/ledger/reconciliation.py",
        "self._ledger.refund(hold, EXPIRED, deadline, revisit_at)",
        "self._ledger.refund(hold, EXPIRED, deadline)",
        ORDERS + "[a slow request and the reconciler]",
    ),
    Mutant(
        "reconciler: settle an image that is not whole",
        "lib/ledger/reconciliation.py",
        "if stored is not None and is_own and is_whole_png(stored.content):",
        "if stored is not None and is_own:",
        "tests/test_reconciliation.py"
        "::test_an_image_that_is_not_whole_is_refunded_and_removed[moto]",
    ),
    Mutant(
        "reconciler: refund without looking for the image",
        "lib/ledger/reconciliation.py",
        "if stored is not None and is_own and is_whole_png(stored.content):",
        "if stored is not None and is_own and self._clock() < 0:",
        CRASHES + "[success]",
    ),
    Mutant(
        "leave our own bugs unrefunded",
        "lib/generation.py",
        "except Exception as fault:  # noqa: BLE001 - after the debit",
        "except ArithmeticError as fault:  # after the debit",
        CRASHES + "[failure: RuntimeError]",
    ),
    Mutant(
        "answer 500 when a settle goes unheard",
        "lib/generation.py",
        'observation.count("SettlesLeftToReconciler")',
        "raise UnexpectedFailure from fault",
        CRASHES + "[success]",
    ),
    Mutant(
        "reuse a lease that has passed: a reservation is born expired",
        "lib/ledger/ledger.py",
        "due_at=now_ms // 1000 + lease_s,",
        "due_at=now_ms // 1000,",
        LEDGER + "test_a_reservation_takes_five_credits_and_opens_a_generation[moto]",
    ),
    Mutant(
        "overwrite the image of another attempt",
        "lib/picture/storage.py",
        '            IfNoneMatch="*",\n',
        "",
        "tests/test_storage.py::test_an_image_of_another_attempt_is_never_overwritten[moto]",
    ),
    Mutant(
        "take a debit that nobody heard of for one: a 202 before the reservation",
        "lib/ledger/ledger.py",
        "            if fault.maybe_done or fault.hopeless:\n",
        "            if fault.maybe_done:\n"
        "                return attempt.generation\n"
        "            if fault.hopeless:\n",
        CRASHES + "[accept]",
    ),
    Mutant(
        "reserve again for a 202 that is repeated",
        "lib/ledger/reservation.py",
        "if earlier is not None and earlier.status is not Status.REFUNDED:",
        "if earlier is not None and earlier.status is Status.SETTLED:",
        ORDERS + "[two asynchronous requests with one key]",
    ),
    Mutant(
        "repeat a 202 to one who waits for the image",
        "lib/ledger/reservation.py",
        "if earlier.asynchronous and mine.asynchronous:",
        "if earlier.asynchronous:",
        ORDERS + "[a synchronous and an asynchronous request with one key]",
    ),
    Mutant(
        "accept without queueing",
        "lib/generation.py",
        "self._jobs.put(Job(",
        "(lambda *_: None)(Job(",
        CRASHES + "[work that fails]",
    ),
    Mutant(
        "let a job wait long before it is queued",
        "lib/generation.py",
        '        with observation.timed("QueueMs"):\n',
        "        self._ledger.extend_lease(\n"
        "            generation.organisation, generation.created_ms, JOB_WAITS_S, deadline\n"
        "        )\n"
        '        with observation.timed("QueueMs"):\n',
        HISTORIES,
    ),
    Mutant(
        "give a queued job no longer than a request",
        "lib/generation.py",
        "                    JOB_WAITS_S,\n",
        "                    LEASE_S,\n",
        WORKER + "test_a_job_that_waits_ten_minutes_in_the_queue_is_still_made",
    ),
    Mutant(
        "keep the credits of a job that the queue refused until the lease is over",
        "lib/generation.py",
        "            return self._refund(generation, failure, deadline, observation)\n"
        '        observation.count("Accepted")\n',
        '            raise failure from failure.__cause__\n        observation.count("Accepted")\n',
        HISTORIES,
    ),
    Mutant(
        "answer 202 for a job that the queue refused",
        "lib/generation.py",
        "            return self._refund(generation, failure, deadline, observation)\n"
        '        observation.count("Accepted")\n',
        '            observation.warning("not queued", failure)\n'
        '        observation.count("Accepted")\n',
        JOBS
        + "test_a_queue_that_refuses_is_a_500_whose_credits_are_back_already"
        + IN_THIS_PROCESS,
    ),
    Mutant(
        "take a job whatever its status",
        "lib/ledger/ledger.py",
        """        still_reserved = "#status = :reserved"
        update: dict""",
        """        still_reserved = "(#status = :reserved OR attribute_exists(pk))"
        update: dict""",
        CRASHES + "[work that is done]",
    ),
    Mutant(
        "work without looking at the status",
        "lib/generation.py",
        """            generation = self._ledger.extend_lease(
                job.organisation,
                job.created_ms,
                WORKER_LEASE_S,
                deadline.within(FIRST_EXTENSION_WITHIN_S),
            )
""",
        """            generation = self._ledger.generation(
                job.organisation, job.created_ms, deadline
            )
""",
        WORKER + "test_a_message_that_comes_again_does_nothing" + IN_THIS_PROCESS,
    ),
    Mutant(
        "give a worker no longer than a request",
        "lib/generation.py",
        "                WORKER_LEASE_S,\n",
        "                LEASE_S,\n",
        WORKER + "test_a_worker_that_dies_twice_leaves_the_job_to_the_third_delivery",
    ),
    Mutant(
        "settle a job that another delivery refunded",
        "lib/ledger/ledger.py",
        """        still_reserved = "#status = :reserved AND attemptId = :attemptId"
        update: dict""",
        """        still_reserved = "(#status = :reserved OR attemptId = :attemptId)"
        update: dict""",
        ORDERS + "[two deliveries of one job, one of which fails]",
    ),
    Mutant(
        "refund a job that another delivery settled",
        "lib/ledger/ledger.py",
        """        still_reserved = "#status = :reserved AND attemptId = :attemptId"
        values = {""",
        """        still_reserved = "(#status = :reserved OR attemptId = :attemptId)"
        values = {""",
        WORKER
        + "test_when_one_of_two_deliveries_has_made_the_image"
        + "_the_others_failure_takes_nothing_away"
        + IN_THIS_PROCESS,
    ),
    Mutant(
        "refund a job and never come back for what another delivery stores",
        "lib/generation.py",
        "+ generation.lease_s if may_be_stored else None\n",
        "+ LEASE_S if may_be_stored and not generation.asynchronous else None\n",
        ORDERS + "[two deliveries of one job, one of which fails]",
    ),
    Mutant(
        "reconciler: come back for a job's image as soon as for a request's",
        "lib/ledger/rows.py",
        "return WORKER_LEASE_S if self.asynchronous else LEASE_S",
        "return LEASE_S",
        ORDERS + "[a late delivery and the reconciler, who comes again]",
    ),
    Mutant(
        "worker: be done with a job that was never begun",
        "handlers/worker.py",
        '                failed.append({"itemIdentifier": message})\n',
        "",
        WORKER
        + "test_a_message_that_finds_no_ledger_comes_again_and_then_makes_the_image"
        + IN_THIS_PROCESS,
    ),
)


@contextmanager
def broken(mutant: Mutant) -> Iterator[Path]:
    """A copy of the project with this one break in it."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / name)
        target = copy / mutant.file
        text = target.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            raise LookupError(f"{mutant.name}: the code it breaks is not there once any more")
        target.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        yield copy


def outcome(mutant: Mutant) -> str:
    """``caught``, or what is wrong with this mutant."""
    try:
        with broken(mutant) as copy:
            run = subprocess.run(  # noqa: S603 - our own interpreter on our own tests
                [sys.executable, "-m", "pytest", *OPTIONS, mutant.test],
                cwd=copy,
                env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                text=True,
                timeout=TEST_RUN_TAKES_AT_MOST_S,
                check=False,
            )
    except LookupError as fault:
        return str(fault)
    failed = run.returncode == 1 and "1 failed" in run.stdout
    if failed:
        return "caught"
    return "SURVIVED" if run.returncode == 0 else f"the test did not run:\n{run.stdout[-1500:]}"


def main() -> int:
    """Tries every mutant; the exit status is 1 when one is not caught."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(outcome, MUTANTS))
    for mutant, result in zip(MUTANTS, outcomes, strict=True):
        print(f"{result:>8}  {mutant.name}  ({mutant.test.rpartition('::')[2]})")  # noqa: T201 - a command prints
    caught = outcomes.count("caught")
    print(f"{caught} of {len(MUTANTS)} mutants caught")  # noqa: T201 - a command prints
    return 0 if caught == len(MUTANTS) else 1


if __name__ == "__main__":
    sys.exit(main())
