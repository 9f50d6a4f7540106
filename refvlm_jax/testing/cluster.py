"""Real processes on one machine that form a JAX cluster over loopback, and ways to hurt them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from refvlm_jax.train.distributed import Cluster


def free_port() -> int:
    """A TCP port of the loopback device that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Processes:
    """`count` copies of one program, each with `devices` CPU devices and a log of its own.

    Used as a context manager; whatever still runs at the end of the block is killed.
    """

    def __init__(
        self, program: Sequence[str], count: int, devices: int, folder: Path, path: Path
    ) -> None:
        """Starts `python PROGRAM... CLUSTER`, where CLUSTER is the text form of `Cluster`.

        Args:
          folder: logs are written here, as `log.<process>.txt`.
          path: put in front of the module search path.
        """
        folder.mkdir(parents=True, exist_ok=True)
        address = f"127.0.0.1:{free_port()}"
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "PYTHONPATH": str(path),
            # Two cores run them all: threads beyond that only wait for each other.
            "OMP_NUM_THREADS": "1",
        }
        self.logs = [folder / f"log.{index}.txt" for index in range(count)]
        self.processes = [
            subprocess.Popen(
                [sys.executable, *program, str(Cluster(address, count, index))],
                env=environment,
                stdout=log.open("w", encoding="utf-8"),
                stderr=subprocess.STDOUT,
            )
            for index, log in enumerate(self.logs)
        ]

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def wait(self, seconds: float = 600.0) -> list[int]:
        """Exit statuses of all; negative for one ended by a signal.

        Raises:
          TimeoutError: one still ran after `seconds`; its log's end is in the message.
        """
        ends = time.monotonic() + seconds
        for process, log in zip(self.processes, self.logs, strict=True):
            try:
                process.wait(max(0.0, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"still running after {seconds} s: {tail(log)}") from None
        return [process.returncode for process in self.processes]

    def until(self, condition: Callable[[], bool]) -> bool:
        """Waits for `condition`; False if all processes ended before it held."""
        while not condition():
            if all(process.poll() is not None for process in self.processes):
                return condition()
            time.sleep(0.005)
        return True

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to all that still run, SIGKILL by default."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)
        if number == signal.SIGKILL:
            for process in self.processes:
                process.wait()


def tail(log: Path, characters: int = 2000) -> str:
    """The end of a log."""
    return log.read_text(encoding="utf-8", errors="replace")[-characters:]


def truncate_item(step_folder: Path, item: str = "params") -> list[Path]:
    """Cuts every data file of a checkpoint item to a third; returns the files.

    Raises:
      FileNotFoundError: there is no data file to cut.
    """
    files = [f for f in (step_folder / item).rglob("*") if f.is_file() and "d" in f.parts]
    if not files:
        raise FileNotFoundError(f"{step_folder / item} holds no data files")
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    return files
