"""Numbers: metric collections on the device, event and JSONL files, and the line that people read."""

import functools
import json
import time
from pathlib import Path

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from taming_jax import animation, images
from taming_jax.errors import UserError, with_extra

SHOWN = (
    "loss",
    "l1_loss",
    "l2_loss",
    "bce_loss",
    "p_loss",
    "disc_loss",
    "d_weight",
    "code_use",
)  # on the progress line; files hold all


@flax.struct.dataclass
class CodeUse(clu.metrics.Metric):
    """How often each code was chosen. Takes 'code_counts' [codebook_size] from the step."""

    counts: jax.Array

    @classmethod
    def from_model_output(cls, code_counts: jax.Array, **_) -> "CodeUse":
        return cls(code_counts)

    @classmethod
    def empty(cls) -> "CodeUse":
        return cls(jnp.zeros(()))

    def merge(self, other: "CodeUse") -> "CodeUse":
        return CodeUse(self.counts + other.counts)

    def compute(self) -> dict[str, jax.Array]:
        """code_use: share of the codebook chosen at least once. code_entropy: nats of the unigram distribution."""
        p = self.counts / jnp.maximum(self.counts.sum(), 1)
        entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0))
        return {"code_use": jnp.mean(self.counts > 0), "code_entropy": entropy, "code_perplexity": jnp.exp(entropy)}


def count_codes(ids: jax.Array, codebook_size: int, weight: jax.Array | None = None) -> jax.Array:
    """ids [B,...] int32, weight [B] -> how often each code was chosen [codebook_size] float32."""
    weight = jnp.ones(ids.shape[0]) if weight is None else weight
    weights = jnp.broadcast_to(weight.reshape(-1, *[1] * (ids.ndim - 1)), ids.shape)
    return jnp.zeros(codebook_size).at[ids.ravel()].add(weights.ravel())


def collection(
    averages: dict[str, jax.Array], mask: jax.Array | None = None, **metrics: clu.metrics.Metric
) -> clu.metrics.Collection:
    """A clu collection of averages ([], or [B] under a mask [B]) and other metrics, to be merged with other steps'."""
    values = {
        name: clu.metrics.Average.from_model_output(value, mask=mask if jnp.ndim(value) else None)
        for name, value in averages.items()
    }
    fields = {**values, **metrics}
    return _collection_class(tuple((name, type(metric)) for name, metric in fields.items())).empty().replace(**fields)


@functools.cache
def _collection_class(fields: tuple[tuple[str, type], ...]) -> type[clu.metrics.Collection]:
    """One class for equal fields: among many of them, `jax.jit` (0.10.2) took one for another of as many fields."""
    return clu.metrics.Collection.create(**dict(fields))


@jax.jit
def merge(a: clu.metrics.Collection, b: clu.metrics.Collection) -> clu.metrics.Collection:
    """Both steps' metrics as one, on the device."""
    return a.merge(b)


def summarize(collected: clu.metrics.Collection) -> dict[str, float]:
    """Waits for the device and returns plain numbers by name."""
    result = {}
    for name, value in jax.device_get(collected.compute()).items():
        result.update({k: float(v) for k, v in value.items()} if isinstance(value, dict) else {name: float(value)})
    return result


class Writer:
    """TensorBoard events, `metrics.jsonl` and the newest pictures in a run directory, written by process 0 alone.

    config: of the run, where it also goes to Weights & Biases if `wandb_project` says so. Raises UserError where that
    package is missing.
    """

    def __init__(self, workdir: Path, config: ConfigDict | None = None):
        self.workdir, self.active, self.wandb = workdir, jax.process_index() == 0, None
        if self.active:
            if config is not None and config.wandb_project:
                self.wandb = start_wandb(workdir, config)
            workdir.mkdir(parents=True, exist_ok=True)
            self.events = SummaryWriter(str(workdir / "events"), flush_secs=20)
            self.jsonl = open(workdir / "metrics.jsonl", "a")

    def scalars(self, step: int, split: str, values: dict[str, float]) -> None:
        if self.active:
            for name, value in values.items():
                self.events.add_scalar(f"{split}/{name}", value, step)
            print(json.dumps({"step": step, "split": split, **values}), file=self.jsonl, flush=True)
        if self.wandb:
            self.wandb.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def code_histogram(self, step: int, collected: clu.metrics.Collection) -> None:
        """How often each code was used: x is the code, y its count."""
        if self.active:
            counts = np.asarray(jax.device_get(collected.codes.counts))
            edges = np.arange(len(counts) + 1) - 0.5
            self.events.add_histogram_raw(
                "codes",
                min=0,
                max=len(counts) - 1,
                num=counts.sum(),
                sum=counts @ np.arange(len(counts)),
                sum_squares=counts @ np.arange(len(counts)) ** 2,
                bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist(),
                global_step=step,
            )

    def picture(self, step: int, name: str, sheet: images.Sheet) -> None:
        if self.active:
            drawn = images.draw_sheet(sheet)
            self.events.add_image(name, np.asarray(drawn), step, dataformats="HWC")
            images.save_png(drawn, self.workdir / f"{name}.png", step=step)
            say(f"{name} at step {step}: {self.workdir / f'{name}.png'}")

        if self.wandb:
            import wandb

            self.wandb.log({name: wandb.Image(drawn)}, step=step)

    def animation(self, step: int, name: str, painted: animation.Animation) -> None:
        if self.active:
            file = self.workdir / f"{name}.gif"
            gif = animation.to_gif(animation.draw_frames(painted))
            images.write_whole(file, lambda part: part.write_bytes(gif))
            height, width, _ = painted.image.shape
            picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
            summary = Summary(value=[Summary.Value(tag=name, image=picture)])
            self.events._get_file_writer().add_summary(summary, step)
            say(f"{name} at step {step}: {file}")
        if self.wandb:
            import wandb

            self.wandb.log({name: wandb.Video(str(file), format="gif")}, step=step)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_) -> None:
        if self.active:
            self.events.close()
            self.jsonl.close()
        if self.wandb:
            self.wandb.finish()


def start_wandb(workdir: Path, config: ConfigDict) -> "wandb.Run":  # noqa: F821, an optional package
    """A run of Weights & Biases, or the one that this run directory has begun."""
    try:
        import wandb
    except ImportError as e:
        raise UserError(f"wandb_project={config.wandb_project!r} needs a package: {with_extra('wandb')}") from e
    workdir.mkdir(parents=True, exist_ok=True)
    stored = workdir / "wandb_id"
    begun = stored.read_text() if stored.exists() else None
    fields = dict(project=config.wandb_project, id=begun, name=workdir.name, config=config.to_dict())
    try:
        run = wandb.init(**fields, resume="allow", dir=str(workdir))
    except wandb.errors.Error as e:  # no login, no network, a name that it does not take
        raise UserError(f"wandb_project={config.wandb_project!r}: {' '.join(str(e).split())[:200]}") from e
    stored.write_text(run.id)
    return run


def say(message: str) -> None:
    """A line on the terminal, from process 0."""
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
        """Says the line for the steps since the last one; returns the rates."""
        seconds = max(time.monotonic() - self.time, 1e-9)
        rate = (step - self.step) / seconds
        numbers = "  ".join(f"{name} {values[name]:.4g}" for name in SHOWN if name in values)
        place = f"step {step:>{len(str(self.steps))}}/{self.steps}"
        speed = f"{rate:.2f} steps/s  {rate * self.batch_size:.0f} images/s"
        say(f"{place}  {speed}  {duration((self.steps - step) / rate)} left  {numbers}")
        self.restart(step)
        return {"steps_per_second": rate, "images_per_second": rate * self.batch_size, "seconds": seconds}
