"""The conformance suite, for a process that eventlet has patched; ``test_conformance`` starts one."""

from __future__ import annotations

from taskq.testing import PoolSuite

ALONE = "the kit's own process for a pool waits for its standard input, which stops all greenlets; see test_eventlet.py"


class TestConformance(PoolSuite):
    name = "eventlet"
    skip_reasons = {  # noqa: RUF012  as in the suite
        "test_take_back_never_takes_what_runs": "the kit's thief never yields, so that nothing else runs beside it",
        "test_what_a_task_prints_goes_through": ALONE,
        "test_signals_are_the_workers": ALONE,
        "test_no_child_outlives_its_worker": ALONE,
        "test_a_running_job_does_not_keep_the_process": ALONE,
    }
