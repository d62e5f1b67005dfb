"""The conformance kit on ElasticMQ, or on whatever TASKQ_TEST_ELASTICMQ_URL names."""

from __future__ import annotations

import pytest

from taskq.spi import Url
from taskq.testing import PackagingSuite, TransportSuite, transport_rig
from taskq.testing.transports_abilities import CountingTests, OrderTests
from taskq.testing.transports_leases import LeaseTests
from taskq.testing.transports_settling import SettlingTests

_HIDDEN = {"test_a_stalled_server_hangs_nobody", "test_cuts_at_random_moments", "test_a_waiting_fetch_notices_a_cut"}
"""What the server has handed out in an answer that was lost on the way is hidden for one lease, whatever a client does.
The kit's lease for these is as long as its patience."""


@pytest.fixture(autouse=True)
def short_lease(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.originalname in _HIDDEN:
        monkeypatch.setattr(transport_rig, "_LONG_LEASE_S", 3.0)


class TestStandard(TransportSuite):
    scheme = "sqs"
    slack_s = 6.0  # leases are whole seconds
    random_s = 2.0
    fault_options = {"timeout": 1.0, "connect_timeout": 1.0}  # noqa: RUF012
    skip_reasons = {  # noqa: RUF012
        "test_delays_end_in_order_of_due_time": "its delays differ by less than a second; see test_sqs.py",
        "test_close_hands_back_uncounted_and_in_order": "it takes the second delivery for the second message, which a "
        "standard queue does not promise; test_sqs.py has it without",
    }

    def proxy_target(self, url: Url) -> tuple[str, int]:
        if url.port is None:
            pytest.skip("only an emulator can be put behind a proxy")
        return super().proxy_target(url)

    @pytest.fixture
    def url(self, sqs_url: str) -> str:
        return sqs_url


class TestFifo(LeaseTests, CountingTests, OrderTests, SettlingTests):
    """All queues FIFO: what depends on the queue's kind."""

    scheme = "sqs"
    slack_s = 6.0
    options = {"kind": "fifo"}  # noqa: RUF012
    skip_reasons = {  # noqa: RUF012
        "test_close_hands_back_uncounted_and_in_order": "as for standard queues: there is no order between groups",
    }

    @pytest.fixture
    def url(self, sqs_url: str) -> str:
        return sqs_url


class TestPackaging(PackagingSuite):
    kind = "transport"
    name = "sqs"
