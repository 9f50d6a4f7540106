"""Bad numbers, hangs, profiles and changed shapes in a running loop."""

import dataclasses
import json
import logging
import os
import time

import jax
import numpy as np
import pytest

from refvlm_jax.config.errors import ConfigError
from refvlm_jax.testing.toy import ToyModel, toy_batch, toy_batches, toy_config, toy_task
from refvlm_jax.train import profiling
from refvlm_jax.train.goodput import KINDS
from refvlm_jax.train.loop import Hook, TrainingError, fit
from refvlm_jax.train.metrics import read_metrics
from refvlm_jax.train.profiling import ProfileOnDemand
from refvlm_jax.train.watchdog import Watchdog


def train(folder, loader=toy_batches, hooks=(), **sections):
    config = toy_config(**sections)
    return fit(config, toy_task(), ToyModel, lambda start: loader(start, 16), folder, hooks=hooks)


def poisoned(*steps):
    """The toy stream with an infinite target in the batches of these updates."""

    def batches(start, rows):
        for step, batch in enumerate(toy_batches(start, rows), start):
            if step + 1 in steps:
                batch.y[np.flatnonzero(batch.valid)[0]] = np.inf
            yield batch

    return batches


def bad_steps(folder):
    return [json.loads(line) for line in (folder / "nonfinite.jsonl").read_text().splitlines()]


SKIP = {"steps": 12, "nonfinite": "skip", "nonfinite_limit": 3}


def test_stop_lists_the_samples(tmp_path):
    with pytest.raises(TrainingError, match=r"step 4: .*samples \[48, .*nonfinite\.jsonl"):
        train(tmp_path, poisoned(4))
    (record,) = bad_steps(tmp_path)
    assert (record["step"], record["process"]) == (4, 0)
    assert record["sample_ids"] == list(range(48, 64))
    assert record["values"]["loss"] in ("inf", "nan")


def test_a_skipped_update_changes_nothing_but_the_step(tmp_path):
    seen = {}

    def keep(step, state, frozen):
        seen[step] = jax.device_get((state.params, state.opt_state, int(state.step)))
        return {}

    result = train(tmp_path, poisoned(4, 5, 8), [Hook(every=1, run=keep)], train=SKIP)
    assert result.finished and result.metrics["skipped_updates"] == 3
    for before, after in ((3, 4), (4, 5), (7, 8)):
        jax.tree.map(np.testing.assert_array_equal, seen[before][:2], seen[after][:2])
        assert seen[after][2] == after
    assert not np.array_equal(seen[5][0]["stem"], seen[6][0]["stem"])
    assert all(np.isfinite(value).all() for value in seen[12][0].values())
    assert [r["step"] for r in bad_steps(tmp_path)] == [4, 5, 8]
    counted = [(r["step"], r["skipped_updates"]) for r in read_metrics(tmp_path / "metrics.jsonl")
               if "skipped_updates" in r]  # fmt: skip
    assert counted[2:5] == [(3, 0), (4, 1), (5, 2)] and counted[-1] == (12, 3)
    # The numbers of a skipped step stay valid JSON.
    json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[3], parse_constant=pytest.fail)


def test_the_count_survives_a_restart(tmp_path):
    train(tmp_path, poisoned(4), train={**SKIP, "steps": 5})
    assert train(tmp_path, poisoned(7), train={**SKIP, "steps": 10}).metrics["skipped_updates"] == 2


def test_too_many_skips_in_a_row_stop(tmp_path):
    with pytest.raises(TrainingError, match=r"step 8: .*3 updates in a row.*nonfinite_limit"):
        train(tmp_path, poisoned(2, 3, 6, 7, 8), train=SKIP)


def test_policies_are_checked():
    with pytest.raises(ConfigError, match=r"nonfinite = 'skp' .*did you mean \"skip\""):
        toy_config(train={"nonfinite": "skp"})
    with pytest.raises(ConfigError, match=r"train.nonfinite_limit = 0 must be positive"):
        toy_config(train={"nonfinite_limit": 0})


def test_a_hang_is_reported_with_the_stack_that_hangs(tmp_path, caplog):
    stacks = tmp_path / "stacks.0.txt"

    def stuck_in_the_loader(start, rows):
        for step, batch in enumerate(toy_batches(start, rows), start):
            while step == 3 and not (stacks.exists() and "stuck_in" in stacks.read_text()):
                time.sleep(0.01)
            yield batch

    with caplog.at_level(logging.ERROR):
        result = train(tmp_path, stuck_in_the_loader, train={"steps": 6, "hang_seconds": 0.4})
    assert result.finished
    assert "no progress for 0.4 s after step 2, in input" in caplog.text
    assert "stacks of all threads are in" in stacks.read_text()


def test_no_stacks_are_left_by_a_run_that_does_not_hang(tmp_path):
    train(tmp_path)
    assert not list(tmp_path.glob("stacks*"))


def test_the_watchdog_lets_evaluations_take_their_time(tmp_path):
    now, activity = [0.0], ["step"]
    watched = Watchdog(tmp_path / "s", 10.0, lambda: activity[0], clock=lambda: now[0])
    watched._file = (tmp_path / "s").open("w")
    now[0] = 9.0
    assert not watched.check()
    now[0], activity[0] = 50.0, None
    assert not watched.check()
    now[0], activity[0] = 59.0, "step"
    assert not watched.check()
    now[0] = 61.0
    assert watched.check() and not watched.check()
    watched._file.close()
    assert "in test_the_watchdog_lets" in (tmp_path / "s").read_text()


def test_the_ledger_accounts_for_the_run(tmp_path):
    result = train(tmp_path, hooks=[Hook(every=4, run=lambda *_: {"eval/x": 1.0})])
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "goodput" in r]
    for record in records:
        assert 0 <= record["goodput"] <= 1
        assert all(record[f"ledger/{kind}"] >= 0 for kind in KINDS)
    spent = [sum(r[f"ledger/{k}"] for k in KINDS) for r in records]
    assert spent == sorted(spent)
    last = records[-1]
    assert last["step"] == 20 and last["ledger/compile"] > 0 and last["ledger/evaluate"] > 0
    assert last["ledger/lost"] == last["ledger/down"] == 0
    assert result.ledger["step"] >= last["ledger/step"]
    # Saved after steps 5, 10 and 15, and at the end: each is told with the next record.
    blocked = [r["step"] for r in records if "checkpoint/blocked_ms" in r]
    assert blocked == [6, 11, 16, 20]


def test_a_crash_shows_as_lost_time_and_downtime(tmp_path):
    def crash(step, state, frozen):
        raise OSError("the host is gone")

    with pytest.raises(OSError):
        train(tmp_path, hooks=[Hook(every=9, run=crash)])
    result = train(tmp_path)
    assert result.finished and result.ledger["lost"] > 0 and result.ledger["down"] > 0


def test_a_shape_that_changes_is_said_aloud(tmp_path, caplog):
    def ragged(start, rows):
        for step in range(start, 20):
            batch = toy_batch(step, rows)
            wide = step == 6
            yield dataclasses.replace(batch, y=batch.y.astype(np.float16)) if wide else batch

    with caplog.at_level(logging.WARNING):
        train(tmp_path, ragged)
    assert caplog.text.count("was compiled anew") == 1
    assert "step 7 was compiled anew" in caplog.text


def test_touching_the_file_traces_the_next_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "_POLL_SECONDS", 0.0)

    def touch(start, rows):
        for step, batch in enumerate(toy_batches(start, rows), start):
            if step == 5:
                (tmp_path / "profile").touch()
            yield batch

    train(tmp_path, touch, train={"profile_steps": 3})
    (folder,) = (tmp_path / "profiles").iterdir()
    assert folder.name.startswith("step_") and list(folder.rglob("*.xplane.pb"))


def test_every_touch_counts_once_and_a_busy_profiler_is_no_error(tmp_path, caplog):
    now, calls = [0.0], []

    def start(folder):
        if len(calls) == 2:
            raise RuntimeError("a profile is already running")
        calls.append(folder)

    (tmp_path / "profile").touch()
    profile = ProfileOnDemand(tmp_path, 2, lambda: now[0], start, stop=lambda: calls.append("stop"))
    for step in range(1, 30):
        now[0] += 2.0
        if step in (10, 20):
            os.utime(tmp_path / "profile", (step, step))
        profile.after(step, np.zeros(()))
    assert calls == [str(tmp_path / "profiles" / "step_11"), "stop"]
    assert "no profile: a profile is already running" in caplog.text


class _Tallied:
    """The toy stream with what a loader says it has read."""

    def __init__(self, start, rows):
        self._batches, self._read = iter(toy_batches(start, rows)), 0

    def __iter__(self):
        return self

    def __next__(self):
        self._read += 16
        return next(self._batches)

    def tally(self):
        return {"task/T17": self._read, "lost/rows": 0}


def test_what_was_read_is_recorded(tmp_path):
    train(tmp_path, _Tallied, train={"steps": 12, "log_every": 5})
    read = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "data/task/T17" in r]
    assert [record["step"] for record in read] == [5, 10, 12]
    assert sum(record["data/task/T17"] for record in read) == 12 * 16
    assert not any("data/lost/rows" in record for record in read)
