"""The opening of a run: its own mixture first, the other one after it, whatever the host."""

from pathlib import Path

import pytest
from tiny_dialogs import write_dataset

from data_pipelines.plan import build_plan
from data_pipelines.shards import DialogStore
from data_pipelines.tokenizer import load_tokenizer
from refvlm_jax.cli.data_setup import plan_of
from refvlm_jax.config.check import check
from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.schema import DataConfig, RunConfig, TrainConfig

OPENING = {"opening_steps": 5, "opening_weights": {"T13": 1.0}}


def test_the_opening_has_its_own_tasks(tmp_path: Path) -> None:
    store = DialogStore(write_dataset(tmp_path))
    config = DataConfig(batch_size=4, weights={"T17": 1.0}, **OPENING)
    plan = plan_of(RunConfig(name="x", data=config), store, load_tokenizer())
    assert [plan.decodes(row) for row in range(40)] == [False] * 20 + [True] * 20
    tasks = [{store[k].task_id for k in plan.rows(row)} for row in range(40)]
    assert tasks == [{"T13"}] * 20 + [{"T17"}] * 20
    later = build_plan(store, weights={"T17": 1.0}, seed=config.seed)
    assert [plan.rows(row) for row in range(20, 40)] == [later.rows(row) for row in range(20, 40)]


@pytest.mark.parametrize("fields", [{"opening_steps": 5}, {"opening_weights": {"T13": 1.0}}])
def test_half_an_opening_is_refused(fields: dict) -> None:
    with pytest.raises(ConfigError, match="an opening needs both"):
        check(RunConfig(name="x", data=DataConfig(**fields)))


def test_an_opening_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"opening_steps = 5 is more than train\.steps = 4"):
        check(RunConfig(name="x", data=DataConfig(**OPENING), train=TrainConfig(steps=4)))


def test_an_opening_is_not_packed() -> None:
    with pytest.raises(ConfigError, match=r"data\.pack = True does not make"):
        check(RunConfig(name="x", data=DataConfig(**OPENING, pack=True)))
