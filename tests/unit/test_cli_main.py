"""What the `refvlm` command makes of errors."""

import errno
import sys
from types import ModuleType

import pytest

from refvlm_jax.cli import main as cli


def failing(monkeypatch, error):
    def run(args):
        raise error

    module = ModuleType("failing")
    module.add_arguments, module.run = lambda parser: None, run
    monkeypatch.setitem(sys.modules, "failing", module)
    monkeypatch.setitem(cli.COMMANDS, "train", ("failing", "fails"))
    return cli.main(["train"])


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("data.path: no shards"), 2),
        (FileNotFoundError(errno.ENOENT, "no such file", "x.json"), 2),
        (OSError(errno.ENOSPC, "no space left"), 2),
        (OSError("refused without a number"), 2),
        (OSError(errno.ENOTCONN, "transport endpoint is not connected"), 1),
        (ConnectionResetError(errno.ECONNRESET, "connection reset by peer"), 1),
    ],
)
def test_a_launcher_learns_what_may_pass(error, status, monkeypatch, capsys):
    assert failing(monkeypatch, error) == status
    assert capsys.readouterr().err == f"error: {error}\n"


def test_what_may_pass_is_found_behind_the_error_that_names_the_file(monkeypatch):
    named = ValueError("train-00000.array_record: cannot be read")
    named.__cause__ = OSError(errno.EIO, "input/output error")
    assert failing(monkeypatch, named) == 1


def test_a_defect_is_not_an_expected_failure(monkeypatch):
    with pytest.raises(KeyError):
        failing(monkeypatch, KeyError("x"))
