"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class ProgressView:
    """Shows steps, speed and time left of a run; silent on all processes but the first."""

    def __init__(self, name: str, quiet: bool = False) -> None:
        """A view of the run called `name`."""
        self._console = Console(quiet=quiet, soft_wrap=True, highlight=False)
        self._name, self._steps, self._rows = name, 0, 0
        self._clock: tuple[int, float] | None = None
        self._bar: Progress | None = None

    def start(self, first: int, steps: int, rows: int) -> None:
        """Begins counting from step `first` to `steps`, each of `rows` samples."""
        self._steps, self._rows = steps, rows
        if not self._console.is_terminal or self._console.quiet:
            return
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            console=self._console,
        )
        self._task = self._bar.add_task(self._name, total=steps, completed=first, text="compiling")
        self._bar.start()

    def advance(self, step: int) -> dict[str, float]:
        """Counts a finished step; returns `steps_per_second` and `samples_per_second`.

        The clock starts after the first step, so that compilation is not counted; until then the
        result is empty.
        """
        now = time.perf_counter()
        if self._clock is None:
            self._clock = (step, now)
            return {}
        first, started = self._clock
        rate = (step - first) / max(now - started, 1e-9)
        if self._bar is not None:
            text = f"{rate:.2f} steps/s  {self._time_left(step, rate)}"
            self._bar.update(self._task, completed=step, text=text)
        return {"steps_per_second": rate, "samples_per_second": rate * self._rows}

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics."""
        rate = values.get("steps_per_second", 0.0)
        hidden = ("count/", "data/", "ledger/", "train_seconds")
        shown = [k for k in values if not k.startswith(hidden)]
        shown.sort(key=lambda name: not name.startswith("loss"))
        text = "  ".join(f"{name} {values[name]:.4g}" for name in shown)
        self.say(f"step {step}/{self._steps}  {text}  {self._time_left(step, rate)}")

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(f"{self._name}: {text}", markup=False)

    def close(self) -> None:
        """Takes the bar down."""
        if self._bar is not None:
            self._bar.stop()

    def _time_left(self, step: int, rate: float) -> str:
        if rate <= 0:
            return ""
        minutes, seconds = divmod(round((self._steps - step) / rate), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left"
