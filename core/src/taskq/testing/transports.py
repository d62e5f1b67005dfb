"""The conformance suite for transports."""

from __future__ import annotations

from taskq.testing.transports_abilities import CountingTests, ExtraTests, OrderTests
from taskq.testing.transports_basic import BasicTests
from taskq.testing.transports_leases import LeaseTests, ThreadTests
from taskq.testing.transports_settling import SettlingTests


class TransportSuite(BasicTests, SettlingTests, OrderTests, CountingTests, ExtraTests, LeaseTests, ThreadTests):
    """All that a transport promises, tested on a real broker.

    Subclass it in a class named ``Test…`` with ``scheme`` and a fixture ``url`` that gives the URL of an empty broker.
    Tests of what is not declared are skipped; what is declared and fails is red. ``TransportBase`` lists what else may
    be set. ``TASKQ_SOAK=1`` runs thousands of random steps, ``TASKQ_SEED`` repeats one run.
    """
