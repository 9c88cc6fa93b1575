"""Deliberate breaks of the money protocol, each with a test that must catch it.

``make mutants`` copies the project, applies one mutant at a time and runs its test. It fails when a
mutant survives and when one no longer fits the code.
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
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("lib", "handlers", "infra", "tests", "pyproject.toml", "template.yaml")
TEST_RUN_TAKES_AT_MOST_S = 600
AT_ONCE = 2
OPTIONS = ("-q", "-x", "-m", "", "-p", "no:cacheprovider")

LEDGER = "tests/test_ledger.py::"
CRASHES = "tests/test_crashes.py::test_no_fault_at_any_call_loses_or_creates_a_credit_on_moto"
ORDERS = "tests/test_interleavings.py::test_the_books_are_sound_in_every_order_on_moto"
HISTORIES = (
    "tests/test_state_machine.py"
    "::test_the_service_agrees_with_a_plain_account_after_any_history[moto]"
)
JOBS = "tests/test_jobs.py::"
WORKER = "tests/test_worker.py::"
HERE = "[handlers in this process]"

STILL_MINE = '"#status = :reserved AND attemptId = :attemptId"'
ANY_STATUS = '"(#status = :reserved OR attemptId = :attemptId)"'


@dataclass(frozen=True)
class Mutant:
    """One break: in ``file``, the one ``old`` becomes ``new``; ``test`` must fail.

    With ``after``, it is the first ``old`` behind the one ``after``.
    """

    file: str
    name: str
    test: str
    old: str
    new: str
    after: str = ""

    def apply(self, text: str) -> str:
        """The broken text of the file.

        Raises:
            LookupError: the mutant no longer fits the code.
        """
        before, found, rest = text.partition(self.after) if self.after else ("", "", text)
        if text.count(self.after or self.old) != 1 or self.old not in rest:
            raise LookupError(f"{self.name}: the code to break is not there exactly once")
        return before + found + rest.replace(self.old, self.new, 1)


in_reservation = partial(Mutant, "lib/ledger/reservation.py")
in_ledger = partial(Mutant, "lib/ledger/ledger.py")
in_rows = partial(Mutant, "lib/ledger/rows.py")
in_reconciliation = partial(Mutant, "lib/ledger/reconciliation.py")
in_storage = partial(Mutant, "lib/picture/storage.py")
in_generation = partial(Mutant, "lib/generation.py")
in_worker = partial(Mutant, "handlers/worker.py")

MUTANTS = (
    # Reserve
    in_reservation(
        "debit without checking the balance",
        LEDGER + "test_without_five_credits_nothing_is_written_and_the_balance_is_reported[moto]",
        'has_credits = "credits >= :price"',
        'has_credits = "(credits >= :price OR credits < :price)"',
    ),
    in_reservation(
        "overwrite a generation of the same millisecond",
        LEDGER + "test_generations_of_one_millisecond_get_different_ids[moto]",
        'never_used = "attribute_not_exists(pk)"',
        'never_used = "attribute_not_exists(pk) OR attribute_exists(pk)"',
    ),
    in_reservation(
        "overwrite an idempotency key in use",
        ORDERS + "[two requests with one key]",
        'key_is_free = "',
        'key_is_free = "expiresAt > :now OR ',
    ),
    in_reservation(
        "overwrite a released idempotency key that was claimed again",
        ORDERS + "[two retries after a refund]",
        "OR generation = :released",
        "OR generation >= :released",
    ),
    in_reservation(
        "do not recognise the own debit after a lost response",
        LEDGER + "test_a_debit_whose_response_was_lost_is_not_repeated[moto]",
        "_attempt_id(generation) == mine.attempt_id",
        "_attempt_id(generation) is None",
    ),
    in_reservation(
        "count nothing against the limit of the minute",
        LEDGER + "test_the_limit_of_a_minute_holds_and_the_next_minute_resets_it[moto]",
        "rateUsed = rateUsed + :one",
        "rateUsed = rateUsed + :one - :one",
    ),
    in_ledger(
        "reserve with a lease that has expired",
        LEDGER + "test_a_reservation_debits_five_credits_and_opens_a_generation[moto]",
        "due_at=now_ms // 1000 + lease_s",
        "due_at=now_ms // 1000",
    ),
    in_ledger(
        "assume a debit whose response was lost: a 202 without a reservation",
        CRASHES + "[accept]",
        "if fault.maybe_done or fault.hopeless:\n",
        "if fault.maybe_done:\n                return attempt.generation\n"
        "            if fault.hopeless:\n",
    ),
    in_reservation(
        "reserve again for a repeated 202",
        ORDERS + "[two asynchronous requests with one key]",
        "earlier.status is not Status.REFUNDED",
        "earlier.status is Status.SETTLED",
    ),
    in_reservation(
        "repeat a 202 to a synchronous request",
        ORDERS + "[a synchronous and an asynchronous request with one key]",
        "if earlier.asynchronous and mine.asynchronous:",
        "if earlier.asynchronous:",
    ),
    # Settle and refund
    in_ledger(
        "settle in any status",
        LEDGER + "test_a_refunded_generation_cannot_be_settled[moto]",
        STILL_MINE,
        ANY_STATUS,
        after="def settle(",
    ),
    in_ledger(
        "settle a job that another delivery refunded",
        ORDERS + "[two deliveries of one job, one of which fails]",
        STILL_MINE,
        ANY_STATUS,
        after="def settle(",
    ),
    in_ledger(
        "refund in any status",
        LEDGER + "test_a_repeated_refund_pays_back_once[moto]",
        STILL_MINE,
        ANY_STATUS,
        after="def _release(",
    ),
    in_ledger(
        "refund a job that another delivery settled",
        WORKER
        + "test_two_concurrent_deliveries_end_as_the_first_of_them_to_end"
        + "[handlers in this process-the second ends first-the first is refused]",
        STILL_MINE,
        ANY_STATUS,
        after="def _release(",
    ),
    in_ledger(
        "check the status, then refund without a condition",
        ORDERS + "[two reconcilers and an abandoned reservation]",
        "release = self._release(generation, failure_code, revisit_at)\n",
        """found = self.generation(generation.organisation, generation.created_ms, deadline)
        if found is None or found.status is not Status.RESERVED:
            return found.status if found else Status.REFUNDED
        release = self._release(generation, failure_code, revisit_at)
        release["ConditionExpression"] = "#status = :reserved OR attemptId = :attemptId"
""",
    ),
    in_generation(
        "answer 200 for a generation that the reconciler refunded",
        ORDERS + "[a slow request and the reconciler]",
        "raise lost from fault",
        'observation.count("Fenced")',
        after="except ReservationGone",
    ),
    in_generation(
        "delete the image before the refund is decided",
        ORDERS + "[a refund in doubt and the reconciler's settle]",
        "        may_be_stored =",
        "        self._delete(generation, observation)\n        may_be_stored =",
    ),
    in_generation(
        "do not refund after an unexpected error",
        CRASHES + "[failure: RuntimeError]",
        "except Exception as fault:  # noqa: BLE001",
        "except ArithmeticError as fault:  #",
        after="def fulfil(",
    ),
    in_generation(
        "answer 500 when the response to a settle is lost",
        CRASHES + "[success]",
        'observation.count("SettlesLeftToReconciler")',
        "raise UnexpectedFailure from fault",
    ),
    in_storage(
        "overwrite the image of another attempt",
        "tests/test_storage.py::test_an_image_of_another_attempt_is_never_overwritten[moto]",
        'IfNoneMatch="*",\n',
        "\n",
    ),
    # Reconcile
    in_reconciliation(
        "reconciler: delete the image before the refund is decided",
        ORDERS + "[a slow request and the reconciler]",
        "        revisit_at =",
        "        self._images.delete(hold.image_key)\n        revisit_at =",
    ),
    in_reconciliation(
        "reconciler: do not revisit a refunded generation",
        ORDERS + "[a slow request and the reconciler]",
        "EXPIRED, deadline, revisit_at)",
        "EXPIRED, deadline)",
    ),
    in_reconciliation(
        "reconciler: settle an image that is not whole",
        "tests/test_reconciliation.py"
        "::test_an_image_that_is_not_whole_is_refunded_and_removed[moto]",
        " and is_whole_png(stored.content)",
        "",
    ),
    in_reconciliation(
        "reconciler: refund without checking the image",
        CRASHES + "[success]",
        " and is_whole_png(stored.content)",
        " and self._clock() < 0",
    ),
    in_rows(
        "reconciler: revisit the image of a job as soon as that of a request",
        ORDERS + "[a late delivery and the reconciler, which runs again]",
        "return WORKER_LEASE_S if self.asynchronous else LEASE_S",
        "return LEASE_S",
    ),
    # Accept and work
    in_generation(
        "accept without queueing",
        CRASHES + "[work that fails]",
        "self._jobs.put(Job(",
        "(lambda *_: None)(Job(",
    ),
    in_generation(
        "extend the lease before the job is queued",
        HISTORIES,
        '        with observation.timed("QueueMs"):\n',
        "        self._ledger.extend_lease(\n"
        "            generation.organisation, generation.created_ms, JOB_WAITS_S, deadline\n"
        "        )\n"
        '        with observation.timed("QueueMs"):\n',
    ),
    in_generation(
        "give a queued job only the lease of a request",
        WORKER + "test_a_job_that_waits_ten_minutes_in_the_queue_is_still_done",
        "JOB_WAITS_S,\n",
        "LEASE_S,\n",
        after="def _queue(",
    ),
    in_generation(
        "refund a job that the queue refused only when its lease expires",
        HISTORIES,
        "return self._refund(generation, failure, deadline, observation)",
        "raise failure from failure.__cause__",
        after="except JobNotQueued as failure:",
    ),
    in_generation(
        "answer 202 for a job that the queue refused",
        JOBS + "test_a_queue_that_refuses_is_a_500_with_the_credits_already_refunded" + HERE,
        "return self._refund(generation, failure, deadline, observation)",
        'observation.warning("not queued", failure)',
        after="except JobNotQueued as failure:",
    ),
    in_ledger(
        "extend the lease in any status",
        CRASHES + "[work that is done]",
        '"#status = :reserved"',
        '"(#status = :reserved OR attribute_exists(pk))"',
        after="def extend_lease(",
    ),
    in_generation(
        "work without checking the status",
        WORKER + "test_a_redelivered_message_does_nothing" + HERE,
        """self._ledger.extend_lease(
                job.organisation,
                job.created_ms,
                WORKER_LEASE_S,
""",
        """self._ledger.generation(
                job.organisation,
                job.created_ms,
""",
    ),
    in_generation(
        "give a worker only the lease of a request",
        WORKER + "test_a_worker_that_fails_twice_leaves_the_job_to_the_third_delivery",
        "WORKER_LEASE_S,\n",
        "LEASE_S,\n",
        after="def work(",
    ),
    in_generation(
        "refund a job without a revisit for the image of another delivery",
        ORDERS + "[two deliveries of one job, one of which fails]",
        "+ generation.lease_s if may_be_stored else None",
        "+ LEASE_S if may_be_stored and not generation.asynchronous else None",
    ),
    in_worker(
        "worker: acknowledge a job that was never begun",
        WORKER
        + "test_a_message_that_meets_an_unreachable_ledger_is_redelivered_and_then_done"
        + HERE,
        'failed.append({"itemIdentifier": message})',
        "pass",
    ),
)


@contextmanager
def broken(mutant: Mutant) -> Iterator[Path]:
    """A copy of the project with this mutant."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / name)
        target = copy / mutant.file
        target.write_text(mutant.apply(target.read_text(encoding="utf-8")), encoding="utf-8")
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
    """Runs every mutant; returns 1 if any is not caught."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(outcome, MUTANTS))
    for mutant, result in zip(MUTANTS, outcomes, strict=True):
        print(f"{result:>8}  {mutant.name}  ({mutant.test.rpartition('::')[2]})")  # noqa: T201 - a command prints
    caught = outcomes.count("caught")
    print(f"{caught} of {len(MUTANTS)} mutants caught")  # noqa: T201 - a command prints
    return 0 if caught == len(MUTANTS) else 1


if __name__ == "__main__":
    sys.exit(main())
