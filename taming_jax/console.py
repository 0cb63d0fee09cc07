"""What people read on the terminal."""

import time

import jax

# On the progress line; files hold all.
SHOWN = (
    "loss",
    "l1_loss",
    "l2_loss",
    "bce_loss",
    "p_loss",
    "disc_loss",
    "d_weight",
    "code_use",
)


def say(message: str) -> None:
    """Prints a line, from process 0 alone."""
    if jax.process_index() == 0:
        print(message, flush=True)


def duration(seconds: float) -> str:
    """75 -> '1:15'; 3675 -> '1:01:15'."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"


class Progress:
    """The line that people read while they wait: step, rate, time left, and a few numbers."""

    def __init__(self, step: int, steps: int, batch_size: int):
        self.steps, self.batch_size = steps, batch_size
        self.restart(step)

    def restart(self, step: int) -> None:
        """Starts the clock again, after something that is not training."""
        self.step, self.time = step, time.monotonic()

    def report(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Prints the line for the steps since the last report; returns the rates."""
        seconds = max(time.monotonic() - self.time, 1e-9)
        rate = (step - self.step) / seconds
        numbers = "  ".join(f"{name} {values[name]:.4g}" for name in SHOWN if name in values)
        place = f"step {step:>{len(str(self.steps))}}/{self.steps}"
        speed = f"{rate:.2f} steps/s  {rate * self.batch_size:.0f} images/s"
        say(f"{place}  {speed}  {duration((self.steps - step) / rate)} left  {numbers}")
        self.restart(step)
        return {"steps_per_second": rate, "images_per_second": rate * self.batch_size, "seconds": seconds}
