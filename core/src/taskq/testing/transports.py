"""The conformance suite for transports."""

from __future__ import annotations

from taskq.testing.transports_abilities import CountingTests, OrderTests
from taskq.testing.transports_basic import BasicTests
from taskq.testing.transports_faults import LeakTests, NetworkTests, ProcessTests
from taskq.testing.transports_fused import ExtraTests
from taskq.testing.transports_leases import LeaseTests, ThreadTests
from taskq.testing.transports_settling import SettlingTests
from taskq.testing.transports_stateful import StatefulTests


# pytest runs the tests of the last base first: what is basic fails before what builds on it.
class TransportSuite(
    NetworkTests,
    LeakTests,
    ProcessTests,
    StatefulTests,
    ThreadTests,
    LeaseTests,
    ExtraTests,
    CountingTests,
    OrderTests,
    SettlingTests,
    BasicTests,
):
    """All that a transport promises, tested on a real broker.

    Subclass it in a class named ``Test…`` with ``scheme`` and a fixture ``url`` that gives the URL of an empty broker.
    Tests of what is not declared are skipped; what is declared and fails is red. ``TransportBase`` lists what else may
    be set. ``TASKQ_SOAK=1`` runs thousands of random steps, ``TASKQ_SEED`` repeats one run.
    """
