"""Writes the numbers and pictures of a run: event files, `metrics.jsonl`, PNGs, Weights & Biases."""

import json
from pathlib import Path

import clu.metrics
import jax
import numpy as np
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from taming_jax import images
from taming_jax.console import say
from taming_jax.errors import UserError, with_extra
from taming_jax.sampling import animation


class Writer:
    """TensorBoard events, `metrics.jsonl` and the newest pictures in a run directory, written by process 0 alone.

    config: that of the run; if it names a `wandb_project`, everything also goes to Weights & Biases. Raises UserError
    where that package is missing.
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

    def picture(self, step: int, name: str, shown: images.Sheet | animation.Animation) -> None:
        """A sheet as a PNG, an animation as a GIF."""
        if isinstance(shown, images.Sheet):
            self.sheet(step, name, shown)
        else:
            self.animation(step, name, shown)

    def sheet(self, step: int, name: str, sheet: images.Sheet) -> None:
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
    """Starts a run of Weights & Biases, or resumes the one that this run directory began."""
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
