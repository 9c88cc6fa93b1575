"""Deliberate breaks of the money protocol, each with a test that must catch it.

``make mutants`` copies the project, applies one mutant at a time and runs its test. It fails when a
mutant survives and when one no longer fits the code. ``python -m tests.mutants WORD ...`` runs
those whose name or test contains one of the words.
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
RECONCILIATION = "tests/test_reconciliation.py::"
ENDINGS = "tests/test_endings.py::"
STORAGE = "tests/test_storage.py::"
DELETION = "tests/test_deletion.py::"
CRASHES = "tests/test_crashes.py::test_no_fault_at_any_call_loses_or_creates_a_credit_on_moto"
ORDERS = "tests/test_interleavings.py::test_the_books_are_sound_in_every_order_on_moto"
HISTORIES = (
    "tests/test_state_machine.py"
    "::test_the_service_agrees_with_a_plain_account_after_any_history[moto]"
)
AUDIT = "tests/test_audit.py::"
PROVED = AUDIT + "test_the_books_of_a_busy_organisation_are_proved_to_the_credit[moto]"
LONG_AND_BUSY = AUDIT + "test_the_drift_of_a_long_busy_history_is_known_to_the_credit[moto]"
FOUND = AUDIT + "test_what_the_audit_finds_at_rest_it_finds_beside_requests[moto-"
IMAGES = AUDIT + "test_images_that_are_missing_or_should_not_be_there_are_found[moto-"
JOBS = "tests/test_jobs.py::"
WORKER = "tests/test_worker.py::"
KEYS = "tests/test_keys.py::"
RECEIPTS = "tests/test_receipts.py::"
OPENAI = "tests/test_openai.py::"
HERE = "[handlers in this process]"
ALARMS = "tests/test_alarms.py::"
ON_EITHER_PATH = ALARMS + "test_what_fails_by_a_fault_of_the_service_pages_on_either_path"
REFUSED = ALARMS + "test_healthy_traffic_and_refused_prompts_alone_never_page"
A_DAY = ALARMS + "test_a_failure_among_three_requests_of_a_day_does_not_page"
CANARY = ALARMS + "test_a_canary_that_fails_every_image_of_one_path_rolls_the_deployment_back"

STILL_RESERVED = '"#status = :reserved"'
ANY_STATUS = '"(#status = :reserved OR attribute_exists(pk))"'


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
in_usage = partial(Mutant, "lib/ledger/usage.py")
in_key_ring = partial(Mutant, "lib/keys/key_ring.py")
in_rows = partial(Mutant, "lib/ledger/rows.py")
in_endings = partial(Mutant, "lib/ledger/endings.py")
in_accounts = partial(Mutant, "lib/ledger/accounts.py")
in_audit = partial(Mutant, "lib/ledger/audit.py")
in_image_audit = partial(Mutant, "lib/ledger/image_audit.py")
in_replay = partial(Mutant, "lib/ledger/replay.py")
in_deletion = partial(Mutant, "lib/ledger/deletion.py")
in_reconciliation = partial(Mutant, "lib/ledger/reconciliation.py")
in_storage = partial(Mutant, "lib/picture/storage.py")
in_clients = partial(Mutant, "lib/clients.py")
in_generation = partial(Mutant, "lib/generation.py")
in_jobs = partial(Mutant, "lib/jobs.py")
in_worker = partial(Mutant, "handlers/worker.py")
in_handler = partial(Mutant, "handlers/generate.py")
in_openai = partial(Mutant, "lib/http/openai.py")
in_openai_request = partial(Mutant, "lib/http/openai_request.py")
in_errors = partial(Mutant, "lib/errors/after_debit.py")
in_template = partial(Mutant, "template.yaml")
in_verification = partial(Mutant, "infra/receipts/verification.py")

MUTANTS = (
    # Reserve
    in_reservation(
        "debit without checking the balance",
        LEDGER + "test_without_five_credits_nothing_is_written_and_the_balance_is_reported[moto]",
        'has_credits = "credits >= :price"',
        'has_credits = "(credits >= :price OR credits < :price)"',
    ),
    in_reservation(
        "debit a suspended organisation",
        LEDGER + "test_a_suspension_refuses_the_debit_itself_and_leaves_what_was_accepted[moto]",
        'not_suspended = "attribute_not_exists(suspendedAt)"',
        'not_suspended = "attribute_exists(pk)"',
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
        "            raise ServiceUnavailable from fault\n",
        "            if fault.maybe_done:\n                return attempt.generation\n"
        "            raise ServiceUnavailable from fault\n",
    ),
    in_ledger(
        "tell the customer of a throttled table to send less",
        LEDGER
        + "test_a_table_that_throttles_until_the_deadline_is_our_fault_and_not_the_customers[moto]",
        "if fault.contended and not (",
        "if not (",
    ),
    in_reservation(
        "reserve again for a key whose generation is reserved",
        LEDGER
        + "test_an_idempotency_key_in_flight_is_refused"
        + "_and_a_settled_one_is_replayed_without_credits[moto]",
        "earlier.status is not Status.REFUNDED",
        "earlier.status is Status.SETTLED",
    ),
    in_reservation(
        "open a minute again that another request has opened",
        LEDGER + "test_a_minute_that_another_request_opened_meanwhile_is_not_opened_again[moto-0]",
        "rateWindow < :window OR",
        "rateWindow <= :window OR",
    ),
    in_reservation(
        "replace a minute that a sandbox with a faster clock has opened",
        LEDGER + "test_a_minute_that_another_request_opened_meanwhile_is_not_opened_again[moto-90]",
        "rateWindow < :window OR",
        "rateWindow <> :window OR",
    ),
    in_reservation(
        "count against this sandbox's own minute only",
        LEDGER + "test_a_clock_that_is_minutes_behind_does_not_reopen_the_minute[moto-60]",
        "window <= account.rate_window <= window + MAX_CLOCK_SKEW_S",
        "window == account.rate_window",
    ),
    in_reservation(
        "count against any later minute",
        LEDGER + "test_a_minute_that_no_clock_can_have_opened_yet_is_replaced[moto]",
        "window <= account.rate_window <= window + MAX_CLOCK_SKEW_S",
        "window <= account.rate_window",
    ),
    in_reservation(
        "never replace a later minute",
        LEDGER + "test_a_minute_that_no_clock_can_have_opened_yet_is_replaced[moto]",
        "OR rateWindow > :latest",
        "AND rateWindow < :latest",
    ),
    # Usage and budgets
    in_usage(
        "count without checking the budget",
        ORDERS + "[two requests for the last of a budget]",
        'within_budget = "credits <= :room"',
        'within_budget = "(credits <= :room OR credits > :room)"',
    ),
    in_usage(
        "count a price above the budget in a month without usage",
        LEDGER + "test_a_key_spends_its_budget_and_no_credit_more[moto-4-0]",
        "if room >= 0:",
        "if room >= -5:",
    ),
    in_usage(
        "do not count a refund",
        ORDERS + "[the reconciler's refund and a request on one budget]",
        'return [{"Update": update}]',
        "return []",
        after="def take_back(",
    ),
    in_ledger(
        "do not count a refund that gives its place back",
        CRASHES + "[failure: ModelOverloaded]",
        '{"Update": pay_back}, *usage]',
        '{"Update": pay_back}]',
    ),
    in_usage(
        "count in the month of the write",
        LEDGER + "test_a_request_counts_in_the_month_of_its_creation_wherever_it_ends[moto]",
        "month_of(generation.created_ms // 1000)",
        'month_of(__import__("time").time())',
    ),
    in_reservation(
        "refuse a request for the budget of the month that it has left",
        LEDGER
        + "test_a_request_that_moves_into_the_next_month_spends_from_that_months_budget[moto]",
        " and _month(following.generation) == _month(mine)",
        "",
    ),
    in_handler(
        "give a rotated key a budget of its own",
        "tests/test_history.py::test_the_usage_of_a_month_is_in_all_and_by_key" + HERE,
        "Spender(key.id, key.meter,",
        "Spender(key.id, key.id,",
    ),
    in_key_ring(
        "rotate a key without its budget",
        KEYS + "test_a_rotated_key_spends_from_the_budget_of_the_key_that_it_replaces",
        '"monthlyBudget": newest.monthly_budget,',
        "",
    ),
    in_key_ring(
        "rotate a key without its meter",
        KEYS + "test_a_rotated_key_spends_from_the_budget_of_the_key_that_it_replaces",
        '"meter": newest.meter,',
        "",
    ),
    in_key_ring(
        "continue any of several budgets with one key",
        KEYS + "test_a_rotation_of_all_keys_continues_one_budget_or_is_refused",
        "if has_budgets and",
        "if not live and",
    ),
    Mutant(
        "lib/keys/records.py",
        "lift a budget that can't be read",
        KEYS + "test_a_record_without_a_usable_budget_does_not_authenticate",
        "if not (budget is None or is_budget(budget)) or not is_meter(meter):",
        "if not is_meter(meter):",
    ),
    # Settle and refund
    in_ledger(
        "settle in any status",
        LEDGER + "test_a_refunded_generation_cannot_be_settled[moto]",
        STILL_RESERVED,
        ANY_STATUS,
        after="def settle(",
    ),
    in_ledger(
        "settle without the hash of the picture",
        RECEIPTS + "test_a_settled_row_names_the_picture_that_is_stored[moto]",
        'string(image_sha256 or "")',
        'string("")',
    ),
    in_ledger(
        "refund in any status",
        LEDGER + "test_a_repeated_refund_pays_back_once[moto]",
        STILL_RESERVED,
        ANY_STATUS,
        after="def _release(",
    ),
    in_ledger(
        "check the status, then refund without a condition",
        RECONCILIATION + "test_two_reconcilers_refund_a_reservation_once_and_count_it_once[moto]",
        "        release = self._release("
        "generation, failure_code, revisit_at, only_if_due=only_if_due)\n",
        """        found = self.generation(generation.organisation, generation.created_ms, deadline)
        if found is None or found.status is not Status.RESERVED:
            return Refund.SETTLED if found and found.settled_at else Refund.MADE_BEFORE
        release = self._release(generation, failure_code, revisit_at, only_if_due=False)
        release["ConditionExpression"] = "#status = :reserved OR attribute_exists(pk)"
""",
    ),
    in_ledger(
        "refund as expired although the lease was extended",
        RECONCILIATION + "test_a_job_that_begins_while_it_is_given_up_is_left_to_its_worker[moto]",
        "if only_if_due and",
        "if not only_if_due and",
    ),
    in_ledger(
        "give a place back to a later minute",
        LEDGER + "test_a_place_is_not_given_back_to_a_later_minute[moto-60]",
        '"rateWindow = :window AND',
        '"rateWindow >= :window AND',
    ),
    in_ledger(
        "give a place back from an earlier minute",
        LEDGER + "test_a_place_is_not_given_back_to_a_later_minute[moto-0]",
        "if frees_place and window == rate_window(self._now_s()):",
        "if frees_place and (window := rate_window(self._now_s())):",
    ),
    in_generation(
        "count refused prompts no longer against the limit of the minute",
        LEDGER + "test_only_a_failure_that_is_not_the_prompts_gives_its_place_in_the_minute_back",
        "frees_place=not failure.counts_against_limit",
        "frees_place=True",
    ),
    in_generation(
        "count failures of the model against the limit of the minute",
        LEDGER + "test_only_a_failure_that_is_not_the_prompts_gives_its_place_in_the_minute_back",
        "frees_place=not failure.counts_against_limit",
        "frees_place=False",
    ),
    in_generation(
        "answer 200 for a generation that was refunded meanwhile",
        ENDINGS + "test_a_request_that_was_refunded_meanwhile_leaves_no_image[moto]",
        "raise self.lost(generation, observation) from fault",
        'observation.count("Fenced")',
        after="except ReservationGone",
    ),
    in_generation(
        "leave the image of a generation that was refunded meanwhile",
        ENDINGS + "test_a_request_that_was_refunded_meanwhile_leaves_no_image[moto]",
        "            self._delete(generation, observation)\n",
        "",
        after="except ReservationGone",
    ),
    in_generation(
        "do not refund after an unexpected error",
        ENDINGS + "test_a_bug_in_the_drawing_is_refunded_and_counted[moto]",
        "except Exception as fault:  # noqa: BLE001",
        "except ArithmeticError as fault:  #",
        after="def fulfil(",
    ),
    in_generation(
        "do not count a bug that is refunded",
        ENDINGS + "test_a_bug_in_the_drawing_is_refunded_and_counted[moto]",
        'observation.count("UnexpectedErrors")',
        "pass",
        after="def fulfil(",
    ),
    in_generation(
        "do not count a bug that leaves the outcome open",
        ENDINGS + "test_a_bug_in_the_refund_leaves_the_outcome_open_and_is_counted[moto]",
        'observation.count("UnexpectedErrors")',
        "pass",
        after="def bugs_leave_it_open(",
    ),
    in_generation(
        "say nothing of the outcome after a bug in the refund",
        ENDINGS + "test_a_bug_in_the_refund_leaves_the_outcome_open_and_is_counted[moto]",
        "raise _pending(generation, observation) from fault",
        "raise ServiceUnavailable from fault",
        after="def bugs_leave_it_open(",
    ),
    in_generation(
        "answer 500 when the response to a settle is lost",
        ENDINGS + "test_a_settle_that_meets_silence_is_a_200_within_5_s[moto]",
        'observation.count("SettlesLeftToReconciler")',
        "raise UnexpectedFailure from fault",
    ),
    in_generation(
        "wait for a settle until the end of the request",
        ENDINGS + "test_a_settle_that_meets_silence_is_a_200_within_5_s[moto]",
        "deadline.within(SETTLE_WITHIN_S)",
        "deadline",
    ),
    # A store or a queue in doubt
    in_storage(
        "overwrite the image of another attempt",
        STORAGE + "test_an_image_of_another_attempt_is_never_overwritten[moto]",
        'IfNoneMatch="*",\n',
        "\n",
    ),
    in_storage(
        "put a tombstone over an image",
        STORAGE + "test_a_tombstone_leaves_an_image_that_is_there[moto]",
        'IfNoneMatch="*",\n',
        '**({} if attempt_id == TOMBSTONE else {"IfNoneMatch": "*"}),\n',
    ),
    in_storage(
        "tell a tombstone from an image the wrong way round",
        STORAGE + "test_a_tombstone_leaves_an_image_that_is_there[moto]",
        "return there if there.attempt_id == attempt_id else None",
        "return there if there.attempt_id != attempt_id else None",
    ),
    in_storage(
        "settle with the hash of what was drawn, not of what is stored",
        STORAGE
        + "test_the_hash_is_that_of_what_is_stored_even_if_another_delivery_stored_it[moto]",
        "metadata.get(_SHA256)",
        "sha256",
    ),
    in_storage(
        "let a tombstone be cached",
        STORAGE + "test_a_tombstone_keeps_the_image_out_and_is_not_cached[moto]",
        'TOMBSTONE, "no-store",',
        "TOMBSTONE, _CACHE_A_DAY,",
    ),
    in_clients(
        "assume that a lost response had no effect",
        STORAGE + "test_a_put_that_gives_up_says_whether_the_image_may_be_stored",
        "    if isinstance(fault, ClientError):\n",
        "    return False\n    if isinstance(fault, ClientError):\n",
        after="def may_have_taken_effect(",
    ),
    in_clients(
        "assume that every failed write may have had an effect",
        STORAGE + "test_a_put_that_gives_up_says_whether_the_image_may_be_stored",
        "    if isinstance(fault, ClientError):\n",
        "    return True\n    if isinstance(fault, ClientError):\n",
        after="def may_have_taken_effect(",
    ),
    in_endings(
        "refund although the tombstone found the image",
        ENDINGS + "test_an_image_whose_put_was_not_confirmed_is_charged_if_it_is_there[moto]",
        "            if found is not None:\n",
        "            if found is not None and deadline.passed():\n",
    ),
    in_endings(
        "settle although the tombstone was accepted",
        "tests/test_reconciliation.py::test_no_image_can_arrive_after_the_refund_and_nothing_is_left"
        "_a_lease_later[moto]",
        "            if found is not None:\n                return found\n",
        "            return found or FoundImage(None, None)\n",
    ),
    in_endings(
        "leave the tombstone for ever",
        "tests/test_reconciliation.py::test_no_image_can_arrive_after_the_refund_and_nothing_is_left"
        "_a_lease_later[moto]",
        "revisit = revisit or in_doubt or now_s >= (generation.due_at or 0)",
        "revisit = False",
    ),
    in_generation(
        "refund a request without asking the store",
        ENDINGS + "test_an_image_whose_put_was_not_confirmed_is_charged_if_it_is_there[moto]",
        "in_doubt=failure.may_be_stored",
        "in_doubt=False",
    ),
    in_generation(
        "refund a job and never look for the image of another delivery",
        WORKER
        + "test_a_second_message_whose_image_fails_refunds_the_job_and_the_stored_image_is_swept",
        "revisit=is_job or may_be_queued",
        "revisit=may_be_queued",
    ),
    in_generation(
        "say 0 credits while the store may have the image",
        ENDINGS + "test_while_the_store_may_have_the_image_the_outcome_is_pending[moto]",
        "raise _pending(generation, observation) from fault",
        "raise failure from failure.__cause__",
        after="except StorageUnreachable as fault:\n            _report",
    ),
    in_generation(
        "say 0 credits while the queue may have the job",
        ENDINGS + "test_while_the_queue_may_have_the_job_the_outcome_is_pending[moto]",
        "            if may_be_queued:\n",
        "            if may_be_queued and deadline.passed():\n",
    ),
    in_generation(
        "say that the outcome is pending although nothing can be charged any more",
        ENDINGS + "test_a_refund_that_fails_is_told_as_the_failure_when_no_image_can_arrive[moto]",
        "            if may_be_queued:\n",
        "            if not deadline.passed():\n",
    ),
    in_generation(
        "do not revisit a refunded job that may be in the queue",
        ENDINGS + "test_the_image_of_a_job_that_was_refunded_when_queueing_it_is_removed[moto]",
        "revisit=is_job or may_be_queued or isinstance(failure, KeyTaken)",
        "revisit=is_job or isinstance(failure, KeyTaken)",
    ),
    in_generation(
        "do not revisit a refunded job whose key a tombstone took",
        RECONCILIATION + "test_a_job_that_begins_while_it_is_given_up_is_left_to_its_worker[moto]",
        "revisit=is_job or may_be_queued or isinstance(failure, KeyTaken)",
        "revisit=may_be_queued",
    ),
    # Repeat
    in_replay(
        "never end an abandoned reservation",
        WORKER + "test_a_retry_refunds_the_reservation_of_a_request_that_died_and_makes_a_new_one",
        "is_abandoned = self._clock() > may_wait_until",
        "is_abandoned = self._clock() < 0",
    ),
    in_replay(
        "repeat a 202 for a job that was never queued",
        WORKER + "test_a_retry_refunds_the_reservation_of_a_request_that_died_and_makes_a_new_one",
        "if is_queued and asynchronous and not is_abandoned:",
        "if earlier.asynchronous and asynchronous:",
    ),
    in_replay(
        "repeat a 202 for a job that was given up",
        WORKER + "test_a_retry_after_a_job_was_given_up_makes_a_new_one",
        "if is_queued and asynchronous and not is_abandoned:",
        "if is_queued and asynchronous:",
    ),
    in_replay(
        "repeat a 202 to a synchronous request",
        JOBS
        + "test_a_key_of_the_synchronous_route_is_in_flight_on_the_asynchronous_one_and_vice_versa"
        + HERE,
        "if is_queued and asynchronous and not is_abandoned:",
        "if is_queued and not is_abandoned:",
    ),
    in_reconciliation(
        "leave a retry in flight although the image is stored",
        ENDINGS + "test_a_retry_settles_at_once_what_a_dead_request_has_stored[moto]",
        "return self._endings.settle(generation, deadline, stored.sha256, stored.stored_at)",
        "return Ending.IN_PROGRESS",
        after="def settle_if_stored(",
    ),
    # Reconcile
    in_reconciliation(
        "reconciler: delete the image before the refund is decided",
        RECONCILIATION
        + "test_an_image_that_arrives_while_its_request_is_given_up_is_charged[moto]",
        "        ending = self._endings.refund(",
        "        self._images.delete(generation.image_key)\n        ending = self._endings.refund(",
    ),
    in_reconciliation(
        "do not revisit what a retry refunded before its lease had passed",
        WORKER + "test_a_retry_leaves_no_tombstone_of_the_retry_that_died_before_it",
        "revisit=True",
        "revisit=False",
    ),
    in_reconciliation(
        "reconciler: settle an image that is not whole",
        RECONCILIATION
        + "test_an_image_that_is_not_whole_is_refunded_and_removed_a_lease_later[moto]",
        " and is_whole_png(stored.content)",
        "",
    ),
    in_reconciliation(
        "reconciler: refund without checking the image",
        RECONCILIATION + "test_a_stored_image_is_settled_with_its_duration[moto]",
        "stored is not None and _is_image_of(generation, stored)",
        "stored is not None and self._clock() < 0",
        after="def end(",
    ),
    in_reconciliation(
        "reconciler: trust the index, which lags",
        RECONCILIATION
        + "test_a_job_whose_lease_was_extended_is_left_alone"
        + "_though_the_index_says_it_is_due[moto]",
        "self._ledger.generation(listed.organisation, listed.created_ms, deadline)",
        "listed",
    ),
    in_endings(
        "reconciler: count a refund that another one made",
        RECONCILIATION + "test_two_reconcilers_refund_a_reservation_once_and_count_it_once[moto]",
        "Refund.MADE_BEFORE: Ending.ALREADY_REFUNDED",
        "Refund.MADE_BEFORE: Ending.REFUNDED",
    ),
    in_reconciliation(
        "reconciler: sweep the object of another attempt",
        RECONCILIATION + "test_an_image_of_another_attempt_is_neither_charged_nor_removed[moto]",
        "stored is not None and (stored.is_tombstone or _is_own(generation, stored))",
        "stored is not None",
    ),
    in_reconciliation(
        "reconciler: leave the tombstone when it sweeps",
        RECONCILIATION
        + "test_no_image_can_arrive_after_the_refund_and_nothing_is_left_a_lease_later[moto]",
        "stored is not None and (stored.is_tombstone or _is_own(generation, stored))",
        "stored is not None and _is_own(generation, stored)",
    ),
    in_rows(
        "reconciler: revisit the image of a job as soon as that of a request",
        ORDERS + "[a late delivery and the reconciler, which runs again]",
        "return WORKER_LEASE_S if self.asynchronous else LEASE_S",
        "return LEASE_S",
    ),
    # Counters and audit
    in_reservation("count nothing that is taken", PROVED, "ADD taken :price SET", "SET"),
    in_reservation(
        "count generations that are taken, not their price",
        PROVED,
        "ADD taken :price",
        "ADD taken :one",
    ),
    in_ledger("count nothing that is returned", PROVED, "ADD returned :price SET", "SET"),
    in_ledger("count a refund as taken", PROVED, "ADD returned :price", "ADD taken :price"),
    in_accounts("count nothing that is granted", PROVED, "ADD {counter} :amount SET", "SET"),
    in_accounts(
        "count credits that a grant takes as granted",
        PROVED,
        'counter = "granted" if grant.credits > 0 else "taken"',
        'counter = "granted"',
    ),
    in_accounts(
        "do not list a new organisation",
        LEDGER + "test_an_account_is_listed_and_creating_it_again_changes_nothing[moto]",
        '[{"Put": account}, {"Put": listing}]',
        '[{"Put": account}]',
    ),
    in_accounts(
        "do not list an account again that has lost its place",
        LEDGER + "test_an_account_is_listed_and_creating_it_again_changes_nothing[moto]",
        "self._table.put(listing, deadline)",
        "pass",
    ),
    in_audit(
        "let each window loosen the lower bound",
        LONG_AND_BUSY,
        "max(known.least, least)",
        "min(known.least, least)",
    ),
    in_audit(
        "let each window loosen the upper bound",
        LONG_AND_BUSY,
        "min(known.most, most)",
        "max(known.most, most)",
    ),
    in_audit(
        "do not look at usage that no generation has",
        FOUND + "usage of a key that made nothing]",
        "rows.keys() | after.keys()",
        "rows.keys()",
    ),
    in_audit(
        "do not compare a usage row with its counters",
        FOUND + "usage that does not add up]",
        "each.credits != counted",
        "each.credits < 0",
    ),
    in_audit(
        "count every generation for the account alone",
        FOUND + "usage lost]",
        "(ACCOUNT,) if row.meter is None else (ACCOUNT, row.meter)",
        "(ACCOUNT,)",
    ),
    in_audit(
        "take the first window's word",
        LONG_AND_BUSY,
        "if number == MAX_WINDOWS or all(",
        "if number or all(",
    ),
    in_audit(
        "read every window oldest first",
        LONG_AND_BUSY,
        "newest_first=number % 2 == 0",
        "newest_first=False",
    ),
    in_audit(
        "believe a disagreement at once",
        AUDIT + "test_an_item_of_a_transaction_that_is_seen_late_is_no_finding[moto]",
        "MAX_SERIES = 3",
        "MAX_SERIES = 1",
    ),
    in_audit(
        "leave out old generations that are still reserved",
        FOUND + "an old reservation without a lease]",
        "reserved.append(row.created_ms)",
        "pass",
    ),
    in_audit(
        "leave out generations that are reserved while the audit runs",
        PROVED,
        "_sort_key(since_ms), ",
        "_sort_key(since_ms + 3_600_000), ",
    ),
    in_audit(
        "do not miss an account",
        FOUND + "no account]",
        'yield "the account is missing"',
        "return",
    ),
    in_audit(
        "do not compare the balance with the counters",
        FOUND + "lost credits]",
        "account.credits != counted",
        "account.credits < 0",
    ),
    in_audit(
        "call a key lost whose generation came during the audit",
        AUDIT + "test_a_key_that_is_used_during_the_audit_is_no_finding[moto]",
        "if not books.knows(created_ms) and self._table.get(key, deadline) is None:",
        "if not books.knows(created_ms):",
    ),
    in_image_audit(
        "call an image lost whose generation ends during the audit",
        AUDIT + "test_a_generation_that_ends_while_its_image_is_looked_for_is_no_finding[moto]",
        '            again = next(images.stored(key, deadline), ("", 0))\n',
        "            again = (key, size_bytes)\n",
    ),
    in_image_audit(
        "look for images that the reconciler is still to remove",
        IMAGES + "still due]",
        "row.is_due or ",
        "",
    ),
    # Accept and work
    Mutant(
        "lib/ledger/refusals.py",
        "never suspend for refused prompts",
        "tests/test_safety.py::test_refused_prompts_suspend_an_organisation_at_the_limit_of_a_day",
        "if refusals < self._limit:",
        "if refusals <= self._limit:",
    ),
    in_jobs(
        "accept without queueing",
        WORKER + "test_a_job_that_waits_ten_minutes_in_the_queue_is_still_done",
        "queue.put(Job(",
        "(lambda *_: None)(Job(",
    ),
    in_jobs(
        "extend the lease before the job is queued",
        WORKER
        + "test_a_request_that_dies_before_it_queues_its_job_is_refunded_within_three_minutes",
        '        try:\n            with observation.timed("QueueMs"):\n',
        "        self._ledger.extend_lease(\n"
        "            generation.organisation, generation.created_ms, JOB_WAITS_S, deadline\n"
        "        )\n"
        '        try:\n            with observation.timed("QueueMs"):\n',
    ),
    in_jobs(
        "give a queued job only the lease of a request",
        WORKER + "test_a_job_that_waits_ten_minutes_in_the_queue_is_still_done",
        "JOB_WAITS_S,\n",
        "59,\n",
        after="def _enqueue(",
    ),
    in_jobs(
        "refund a job that the queue refused only when its lease expires",
        JOBS + "test_a_queue_that_refuses_is_a_500_with_the_credits_already_refunded" + HERE,
        "return self._generations.refund(generation, failure, deadline, observation)",
        "raise failure from failure.__cause__",
    ),
    in_jobs(
        "answer 202 for a job that the queue refused",
        JOBS + "test_a_queue_that_refuses_is_a_500_with_the_credits_already_refunded" + HERE,
        "return self._generations.refund(generation, failure, deadline, observation)",
        'observation.warning("not queued", failure)',
    ),
    in_ledger(
        "extend the lease in any status",
        WORKER + "test_a_job_that_is_not_delivered_in_time_is_refunded_and_not_done_later",
        STILL_RESERVED,
        ANY_STATUS,
        after="def extend_lease(",
    ),
    in_ledger(
        "make a job of any reservation that a message names",
        "tests/test_safety.py::test_a_message_from_elsewhere_does_not_make_a_job_of_a_request",
        'is_job = "asynchronous = :true"',
        'is_job = "(asynchronous = :true OR attribute_not_exists(asynchronous))"',
    ),
    in_jobs(
        "work without checking the status",
        WORKER + "test_a_job_that_is_not_delivered_in_time_is_refunded_and_not_done_later",
        "generation is None or generation.status is not Status.RESERVED",
        "generation is None",
    ),
    in_jobs(
        "answer 202 for a job that a retry had refunded",
        WORKER + "test_an_acceptor_that_a_retry_took_for_dead_answers_that_nothing_is_charged",
        "queued.status is Status.REFUNDED",
        "False",
    ),
    in_jobs(
        "give a worker only the lease of a request",
        WORKER + "test_a_worker_that_fails_twice_leaves_the_job_to_the_third_delivery",
        "WORKER_LEASE_S,\n",
        "59,\n",
        after="def work(",
    ),
    in_jobs(
        "draw again without a look into the store",
        WORKER + "test_the_image_that_a_dead_worker_stored_is_charged_and_not_drawn_again",
        "if redelivered and self._ended_by_earlier_delivery(",
        "if not redelivered and self._ended_by_earlier_delivery(",
    ),
    # Delete
    in_deletion(
        "delete a generation in any status",
        DELETION + "test_a_deletion_is_refused_as_it_says",
        'settled = "#status = :settled"',
        'settled = "(#status = :settled OR attribute_exists(pk))"',
    ),
    in_deletion(
        "mark a deleted generation without making it due",
        CRASHES + "[delete]",
        "dueShard = :shard,",
        "seenShard = :shard,",
    ),
    in_deletion(
        "keep the prompt of a deleted generation",
        CRASHES + "[delete]",
        "dueAt = if_not_exists(dueAt, :now) REMOVE prompt",
        "dueAt = if_not_exists(dueAt, :now)",
    ),
    in_deletion(
        "bring forward the later visit of a deleted generation",
        DELETION + "test_a_repeated_deletion_leaves_the_later_visit_as_it_is_planned",
        "dueAt = if_not_exists(dueAt, :now)",
        "dueAt = :now",
    ),
    in_deletion(
        "clean up after a refund before its time",
        DELETION + "test_a_refunds_own_visit_stays_planned",
        "SET deletedAt = if_not_exists(deletedAt, :now) REMOVE prompt",
        "SET deletedAt = if_not_exists(deletedAt, :now) REMOVE prompt, dueAt",
    ),
    in_deletion(
        "do not come back after the deletion of a fresh image",
        ORDERS + "[a deletion and a late delivery]",
        "if now_s < writers_end:",
        "if now_s > writers_end:",
    ),
    in_deletion(
        "take a deleted generation for done before its object is removed",
        CRASHES + "[delete later]",
        "    images.delete(generation.image_key)\n",
        "    ledger.clear_due(generation, deadline)\n    images.delete(generation.image_key)\n",
    ),
    in_ledger(
        "let a late image of a deleted generation stay",
        DELETION + "test_a_late_worker_removes_the_image_that_its_customer_has_deleted",
        'return "deletedAt" not in (fault.item or {})',
        "return True",
    ),
    in_endings(
        "leave the tombstone of a deleted generation",
        DELETION + "test_a_tombstone_that_comes_after_a_deletion_is_removed",
        "made in (Refund.MADE_BEFORE, Refund.SETTLED)",
        "made is Refund.MADE_BEFORE",
    ),
    in_reconciliation(
        "remove a settled image that is due and not deleted",
        DELETION + "test_a_settled_image_that_is_due_and_not_deleted_stays",
        "found.status is Status.SETTLED and found.deleted_at is not None",
        "found.status is Status.SETTLED",
    ),
    in_reconciliation(
        "never remove a deleted image that is due",
        CRASHES + "[reconciler deletes]",
        "found.status is Status.SETTLED and found.deleted_at is not None",
        "False",
    ),
    in_reservation(
        "replay the dead URL of a deleted image",
        DELETION + "test_a_key_counts_for_a_day_after_its_image_was_deleted",
        "if earlier.deleted_at is not None:",
        "if earlier.deleted_at == 0:",
    ),
    in_worker(
        "worker: acknowledge a job that was never begun",
        WORKER
        + "test_a_message_that_meets_an_unreachable_ledger_is_redelivered_and_then_done"
        + HERE,
        'failed.append({"itemIdentifier": message})',
        "pass",
        after='observation.count("JobsNotBegun")',
    ),
    in_worker(
        "worker: acknowledge a job whose image may be stored",
        WORKER + "test_a_job_whose_image_may_be_stored_is_redelivered_and_charged" + HERE,
        'failed.append({"itemIdentifier": message})',
        "pass",
        after='observation.count("JobsInDoubt")',
    ),
    # Alarms
    in_jobs(
        "alarms: count no fault of a worker",
        ON_EITHER_PATH,
        "observation.count_job(failure)",
        "observation.count_job()",
    ),
    in_worker(
        "alarms: count no job that could not be begun",
        ON_EITHER_PATH,
        "observation.count_job(ServiceUnavailable())",
        "observation.count_job()",
    ),
    in_worker(
        "alarms: count no job in doubt",
        ON_EITHER_PATH,
        "observation.count_job(fault)",
        "observation.count_job()",
    ),
    in_worker(
        "alarms: count no job that crashed its worker",
        ON_EITHER_PATH,
        "observation.count_job(UnexpectedFailure())",
        "observation.count_job()",
    ),
    in_handler(
        "alarms: count no failed request",
        ON_EITHER_PATH,
        "            count(error)",
        "            count()",
    ),
    in_handler(
        "alarms: count a job that the queue refused among the requests",
        ALARMS + "test_few_faults_among_many_images_do_not_page",
        "count = observation.count_job if _is_job(service, event) else observation.count_request",
        "count = observation.count_request",
    ),
    in_handler(
        "alarms: subtract from the gateway's faults what OpenAI's form refuses with a 400",
        ALARMS + "test_refused_prompts_do_not_hide_the_faults_of_the_gateway[refused1]",
        "if not error.is_fault and response",
        "if not error.is_fault or response",
    ),
    in_handler(
        "alarms: count a bug outside the generation as a success",
        ON_EITHER_PATH,
        "count(unavailable)",
        "count()",
    ),
    in_errors(
        "alarms: count refused prompts as faults",
        REFUSED,
        "return not self.counts_against_limit",
        "return True",
    ),
    in_template(
        "alarms: leave the jobs out of the share",
        CANARY + "[worker-storage_failed]",
        "IF(ofRequests > ofJobs, ofRequests, ofJobs)",
        "ofRequests",
        after="  FaultsAlarm:\n",
    ),
    in_template(
        "alarms: leave the requests out of the share",
        CANARY + "[generate-storage_failed]",
        "IF(ofRequests > ofJobs, ofRequests, ofJobs)",
        "ofJobs",
        after="  FaultsAlarm:\n",
    ),
    in_template(
        "alarms: take the share of both paths together",
        CANARY + "[worker-storage_failed]",
        "IF(ofRequests > ofJobs, ofRequests, ofJobs)",
        "100 * (requestFaults + jobFaults) / (requests + jobs)",
        after="  FaultsAlarm:\n",
    ),
    in_template(
        "alarms: page without a floor of traffic",
        A_DAY,
        "jobFaults >= 5",
        "jobFaults >= 1",
    ),
    in_template(
        "alarms: page for one fault of a quiet day",
        A_DAY,
        "jobFaults >= 3",
        "jobFaults >= 1",
    ),
    in_template(
        "alarms: promote a version that makes no image",
        ALARMS + "test_a_canary_that_can_use_no_picture_rolls_the_deployment_back",
        "        - !Ref NoImageAlarm\n",
        "",
    ),
    in_template(
        "alarms: promote a version that stores no image",
        CANARY + "[worker-storage_failed]",
        "        - !Ref FaultsAlarm\n",
        "",
    ),
    in_template(
        "alarms: subtract the workers' refused prompts from the gateway's faults",
        ALARMS + "test_refused_prompts_do_not_hide_the_faults_of_the_gateway[refused0]",
        """MetricName: RequestsRefused
              Dimensions:
""",
        """MetricName: FailuresByCode
              Dimensions:
                - {Name: code, Value: content_rejected}
""",
    ),
    in_template(
        "alarms: send the faults as a notice",
        ON_EITHER_PATH,
        "!Ref AlarmTopic",
        "!Ref NoticeTopic",
        after="  FaultsAlarm:\n",
    ),
    in_template(
        "alarms: end the drift that the next hour does not report",
        ALARMS + "test_an_audit_that_finds_drift_pages_until_one_finds_none",
        "TreatMissingData: ignore",
        "TreatMissingData: notBreaching",
    ),
    # OpenAI's Images API
    in_generation(
        "forget the picture of a replay in base64",
        OPENAI + "test_a_retry_with_a_key_replays_in_either_form_and_charges_once",
        "return replace(replayed, png=stored.content)",
        "return replace(replayed, png=None)",
    ),
    in_generation(
        "replay an image that is gone",
        OPENAI + "test_a_replay_whose_object_expired_is_no_longer_there",
        "raise ImageDeleted",
        "return replayed",
    ),
    in_generation(
        "read the image of a replay without the time for it",
        OPENAI + "test_a_replay_without_the_time_to_read_the_image_may_be_retried",
        "if deadline.remaining_s() < STORAGE_CALL_S:",
        "if deadline.passed():",
    ),
    in_openai(
        "answer with more than Lambda lets through",
        OPENAI + "test_the_largest_image_in_base64_fits_into_lambda_s_response_and_a_larger_one"
        "_is_its_url",
        "or len(png) > MAX_INLINE_PNG_BYTES",
        "",
    ),
    in_openai(
        "let the SDKs retry a refused prompt",
        OPENAI + "test_an_error_has_the_status_that_makes_the_sdks_do_the_right_thing",
        'status, kind, code = 400, "invalid_request_error", "content_policy_violation"',
        'kind, code = "invalid_request_error", "content_policy_violation"',
    ),
    in_openai_request(
        "draw a ratio that is not near to the size",
        OPENAI + "test_a_field_that_would_change_the_picture_is_refused_by_name",
        "> SIZE_TOLERANCE_PERCENT:",
        "> 100:",
    ),
    in_openai_request(
        "draw one picture of a stream",
        OPENAI + "test_a_field_that_would_change_the_picture_is_refused_by_name",
        "if request.stream:",
        "if request.n == 0:",
    ),
    # Receipts
    in_verification(
        "accept the algorithm that a receipt names",
        RECEIPTS + "test_a_forged_receipt_is_refused_with_its_reason[no algorithm]",
        "if algorithm != ALGORITHM:",
        "if algorithm is None:",
    ),
    in_verification(
        "verify with the first key, whichever the receipt names",
        RECEIPTS + "test_a_forged_receipt_is_refused_with_its_reason[an unknown key]",
        "if key.kid == kid:",
        "if key.kid:",
    ),
    in_verification(
        "accept any picture",
        RECEIPTS + "test_a_picture_that_differs_in_one_byte_is_another",
        "if hashlib.sha256(image).hexdigest() != expected:",
        "if not image:",
    ),
    in_verification(
        "leave out the receipts' hash",
        RECEIPTS + "test_a_statement_counts_exactly_its_receipts[another receipt]",
        'if digest.hex() != claims["receiptsSha256"]:',
        "if not digest.count:",
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
    """Runs every mutant, or the chosen ones; returns 1 if any is not caught."""
    words = sys.argv[1:] or [""]
    chosen = [each for each in MUTANTS if any(word in each.name + each.test for word in words)]
    caught = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for mutant, result in zip(chosen, pool.map(outcome, chosen), strict=True):
            caught += result == "caught"
            print(f"{result:>8}  {mutant.name}  ({mutant.test.rpartition('::')[2]})", flush=True)  # noqa: T201 - a command prints
    print(f"{caught} of {len(chosen)} mutants caught")  # noqa: T201 - a command prints
    return 0 if chosen and caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
