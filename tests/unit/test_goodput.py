"""The ledger of wall time: every second belongs to one kind, over restarts too."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refvlm_jax.train.goodput import KINDS, DeviceClock, Ledger, carried_on

SPANS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 100)), max_size=30)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@given(SPANS)
def test_kinds_add_up_to_the_wall_time(spans):
    clock = Clock()
    ledger = Ledger(clock=clock)
    for kind, seconds in spans:
        ledger.enter(kind)
        clock.now += seconds
    totals = ledger.totals()
    assert sum(totals.values()) == clock.now
    for kind in KINDS:
        assert totals[kind] == sum(s for k, s in spans if k == kind)


def test_blocks_nest_and_time_can_be_booked_again():
    clock = Clock()
    ledger = Ledger(clock=clock)
    ledger.enter("step")
    clock.now = 2.0
    with pytest.raises(KeyError), ledger.spend("input"):
        clock.now = 5.0
        raise KeyError
    clock.now = 6.0
    ledger.move(1.0, "input", "step")
    assert ledger.kind == "step"
    assert {k: s for k, s in ledger.totals().items() if s} == {"step": 4.0, "input": 2.0}
    assert ledger.record()["goodput"] == pytest.approx(4 / 6)
    assert ledger.record()["ledger/input"] == 2.0
    assert ledger.summary() == "6 s in all: step 66.7%, input 33.3%"


def test_a_restart_counts_what_was_thrown_away_and_how_long_nobody_worked():
    saved = {"step": 10.0, "compile": 5.0}
    last = {"step": 7, "time": 100.0, "ledger/step": 16.0, "ledger/compile": 5.0}
    expected = {"step": 10.0, "compile": 5.0, "lost": 6.0, "down": 30.0}
    assert carried_on(saved, 5, last, 130.0) == expected


def test_a_clean_end_loses_nothing():
    saved = {"step": 10.0}
    last = {"step": 7, "time": 100.0, "ledger/step": 10.0, "ledger/checkpoint": 3.0}
    totals = carried_on(saved, 7, last, 101.0)
    assert totals == {"step": 10.0, "checkpoint": 3.0, "down": 1.0}


def test_without_a_checkpoint_all_work_was_lost():
    last = {"step": 7, "time": 100.0, "ledger/step": 10.0, "ledger/compile": 5.0}
    assert carried_on(None, 0, last, 100.0) == {"lost": 15.0, "down": 0.0}
    assert carried_on(None, 0, None, 100.0) == {}
    assert carried_on({"step": 1.0}, 3, {"step": 3, "loss": 1.0}, 100.0) == {"step": 1.0}


class Result:
    """An array that becomes ready when told to; a failed one raises."""

    def __init__(self, error=None):
        self.ready, self.error = threading.Event(), error

    def block_until_ready(self):
        self.ready.wait()
        if self.error:
            raise self.error


def test_devices_are_idle_only_after_the_last_dispatched_step():
    times = iter((1.0, 2.0, 3.0))
    devices = DeviceClock(clock=lambda: next(times))
    assert devices.idle_since() == 1.0
    first, second = Result(RuntimeError("out of memory")), Result()
    devices.expect(first)
    devices.expect(second)
    first.ready.set()
    assert devices.idle_since() is None
    second.ready.set()
    devices.close()
    devices._thread.join()
    assert devices.idle_since() == 3.0
