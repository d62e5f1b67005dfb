"""Every test of the kit is seen to fail on something broken, or says here why not."""

from __future__ import annotations

import pytest

from core.tests.kit import mutants_coordination, mutants_sending, mutants_settling, mutants_stores, test_network
from core.tests.kit.mutant import Coordinating, Store, Transport, mutants_of
from taskq.testing import CoordinationSuite, StoreSuite, TransportSuite

ELSEWHERE = {  # turned red by a test of its own in this folder
    "test_url_is_a_broker_of_its_own", "test_url_is_a_store_of_its_own", "test_what_works_is_declared",
    "test_capabilities_are_never_wider_than_the_spec_says", "test_capabilities_fit_together",
    "test_the_largest_payload_and_one_byte_more", "test_bad_messages_of_a_batch_fail_alone",
    "test_a_delay_beyond_the_maximum_is_refused", "test_too_large_is_refused_as_a_whole",
}  # fmt: skip
NEEDS_SERVER = {  # of what memory cannot have; they pass on real plugins, and nobody has broken one for them yet
    "test_a_killed_consumers_keys_go_with_its_lease", "test_no_keys_are_left_on_the_server", "test_a_wrong_password",
    "test_killing_a_consumer_returns_its_work", "test_killing_a_sender_loses_nothing_accepted",
    "test_messages_cross_processes", "test_maintenance_is_safe_at_any_time", "test_send_in_a_transaction",
    "test_send_in_refuses_a_stranger", "test_a_fork_after_open", "test_a_killed_writer_loses_nothing",
    "test_another_process_ends_the_wait", "test_a_killed_owner_loses_its_place_with_the_ttl",
    "test_processes_count_together", "test_a_wait_survives_a_cut", "test_cut_in_the_middle_of_a_put",
    "test_a_waiting_fetch_notices_a_cut",
}  # fmt: skip
TRIVIAL = {"test_spec_is_of_this_scheme"}


@pytest.mark.parametrize(
    ("kit", "mutants"),
    [
        (TransportSuite, [*mutants_of(Transport, mutants_sending, mutants_settling), *test_network.MUTANTS]),
        (StoreSuite, [*mutants_of(Store, mutants_stores), *test_network.MUTANTS]),
        (CoordinationSuite, mutants_of(Coordinating, mutants_coordination)),
    ],
)
def test_every_test_of_the_kit_has_been_seen_to_fail(kit: type, mutants: list[type]) -> None:
    tests = {name for name in dir(kit) if name.startswith("test_")}
    caught = {test for mutant in mutants for test in mutant.caught_by}  # type: ignore[attr-defined]
    assert not tests - caught - ELSEWHERE - NEEDS_SERVER - TRIVIAL


def test_the_exceptions_are_tests() -> None:
    tests = {name for kit in (TransportSuite, StoreSuite, CoordinationSuite) for name in dir(kit)}
    assert tests >= ELSEWHERE | NEEDS_SERVER | TRIVIAL
