"""A trained second stage with its weights: it paints images on request, and scores given images."""

import copy
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from taming_jax import checkpoint, completion, losses, request, sharding
from taming_jax.console import bar
from taming_jax.errors import ArgumentError, UserError, check_count, show
from taming_jax.hub import address
from taming_jax.painting import Painting, Plan
from taming_jax.sampling.animation import Animation, draw_frames
from taming_jax.sampling.draw import MASKED, make_sampling
from taming_jax.sampling.painter import METHODS
from taming_jax.sampling.tiling import TILE
from taming_jax.second_stage import SecondStage, make_second_stage
from taming_jax.tasks.transformer import load_first_stages
from taming_jax.tokenizer import BATCH_SIZE, in_batches, read_pictures
from taming_jax.values import INT64, whole


class Growth(NamedTuple):
    """Images of a batch while they are painted.

    first: the number of the batch's first image. done: codes of all images that are painted by now. whole: whether
    those of this batch are. images: decodes them, uint8 [b,H,W,3], blank where nothing is painted yet; not after the
    next part was asked for.
    """

    first: int
    done: int
    whole: bool
    images: Callable[[], np.ndarray]


class Generator:
    """A transformer and its first stages with their weights, on all devices. `Generator.load(workdir)` makes one.

    config: that of its run. step: that of its checkpoint. stage: its pure functions. Programs are compiled at their
    first use and kept: other conditions, seeds and numbers of the same shapes compile nothing.
    """

    def __init__(self, config: ConfigDict, step: int, stage: SecondStage, params: dict):
        """params: of the transformer, as numpy arrays. Those of the first stages are read at their first use."""
        self.config, self.step, self.stage, self._params = config, step, stage, params
        self.mesh = sharding.mesh_here(config.mesh.tensor)
        self.painting, self._score = Painting(stage), jax.jit(self._nats)

    @classmethod
    def load(cls, workdir: str | Path, step: int | None = None, first_stage: str | Path | None = None) -> "Generator":
        """Loads a run directory, at its newest step that is whole, or another; or a published run, as `Tokenizer.load`.

        first_stage: its first stage's run directory, if that was moved, or of another one with the same codes. Raises
        UserError where there is no such run.
        """
        found = address.find(workdir)
        task = completion.load_config(found, step)[0].task
        if task != "transformer":
            raise UserError(f"{workdir} is a {task!r} run; samples come from a transformer's (task 'transformer')")
        config, step, params = completion.load_run(found, step)
        if first_stage is not None:
            config.first_stage = completion.find_moved(config.first_stage, address.find(first_stage))
        generator = cls(config, step, make_second_stage(config), params)
        generator.nets  # noqa: B018, read here, so that what is missing is told here
        return generator

    @functools.cached_property
    def nets(self) -> dict:
        """The weights on their devices, as `Painting` takes them."""
        nets = {"gpt": self._params}
        nets = jax.device_put(nets, sharding.infer_shardings(nets, self.mesh))
        with jax.set_mesh(self.mesh):
            return {"gpt": self.painting.prepare(nets["gpt"]), **self._first_stages}

    @functools.cached_property
    def _first_stages(self) -> dict:
        nets = load_first_stages(self.config, self.stage)
        return jax.device_put(nets, sharding.infer_shardings(nets, self.mesh))

    def at(self, step: int, params: dict) -> "Generator":
        """The same transformer with the weights of another step; programs and first stages are shared."""
        self._first_stages  # noqa: B018, read here, so that it is read once
        other = copy.copy(self)
        other.step, other._params = step, params
        for name in ("nets", "digest"):
            other.__dict__.pop(name, None)
        return other

    @functools.cached_property
    def digest(self) -> str:
        """Identifies the transformer's weights."""
        return checkpoint.digest(self._params)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the training data; () where they have none."""
        return tuple(self.config.data.class_names)

    def sample(
        self,
        num_samples: int = 1,
        *,
        seed: int = 0,
        size: str | tuple[int, int] | None = None,
        image: Any = None,
        keep: Any = None,
        keep_pixels: bool = True,
        data_path: str | Path | None = None,
        num_conditions: int = 8,
        batch_size: int | None = None,
        progress: bool = True,
        method: str = "cached",
        stride: int = 1,
        tile: int = TILE,
        speculate: int = 1,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float | None = None,
        guidance_power: float | None = None,
        guidance_codes: int | None = None,
        passes: int | None = None,
        choice_temperature: float | None = None,
        **asked: Any,
    ) -> np.ndarray:
        """Paints `num_samples` images of each condition in turn: uint8 [conditions * num_samples,H,W,3].

        asked: the conditions, by the argument that the run takes, see `conditions.ARGUMENTS`: classes=['flags', 3],
        condition=[images], layout=[scenes]; without one, all classes, or `num_conditions` held-out images (from the
        folder `data_path`, if it is given). size: (height, width) in pixels, as in training or larger. image, keep: an
        image and the part of it that stays, see `request.read_kept`. keep_pixels=False decodes that part anew.
        temperature to choice_temperature: see `Sampling`; None takes the run's. method, stride: see
        `sampling.painter`. speculate: codes guessed at once: other draws of the same distribution, see
        `sampling.speculative`. tile: codes on a side that are decoded at once. batch_size: images painted at once.
        Raises ArgumentError for arguments that do not fit the run.
        """
        check_count(num_samples=num_samples, num_conditions=num_conditions)
        whole(1, 1_000_000)("num_samples", num_samples, ArgumentError)
        plan = self.plan(
            size=size, seed=seed, image=image, keep=keep, keep_pixels=keep_pixels, method=method, stride=stride,
            tile=tile, speculate=speculate, temperature=temperature, top_k=top_k, top_p=top_p, guidance=guidance,
            guidance_power=guidance_power, guidance_codes=guidance_codes, passes=passes,
            choice_temperature=choice_temperature,
        )  # fmt: skip
        rows = request.make_rows(self.stage, self.config, plan.size, asked, data_path, num_conditions, plan.kept)
        rows = {name: np.repeat(value, num_samples, 0) for name, value in rows.items()}
        rows["index"] = np.tile(np.arange(num_samples, dtype=np.int32), len(rows["label"]) // num_samples)
        return np.concatenate(list(self.paint(rows, plan, batch_size, progress)))

    def plan(
        self,
        *,
        size: str | tuple[int, int] | None = None,
        seed: int = 0,
        image: Any = None,
        keep: Any = None,
        keep_pixels: bool = True,
        method: str = "cached",
        stride: int = 1,
        tile: int = TILE,
        speculate: int = 1,
        **sampling: float | None,
    ) -> Plan:
        """Checks all that `sample` is asked for except the conditions; arguments and errors are those of `sample`."""
        whole(-(2**63), INT64)("seed", seed, ArgumentError)
        given = {name: value for name, value in sampling.items() if value is not None}
        for name in MASKED:
            if name in given and not self.stage.masks:
                raise ArgumentError(f"{name}: it is for a masked transformer; this one writes code by code")
        drawing = make_sampling({**self.config.sample, **given}, self.stage.drop, ArgumentError)
        if (image is None) != (keep is None):
            raise ArgumentError("image and keep go together: an image, and which part of it stays")
        whole(8)("tile", tile, ArgumentError)
        whole()("stride", stride, ArgumentError)
        whole(1)("speculate", speculate, ArgumentError)
        if method not in METHODS:
            raise ArgumentError(f"method={show(method)}: it is {' or '.join(map(repr, METHODS))}")
        self.painting.painter(drawing.guidance != 1, method, stride, speculate)  # raises for ways that do not fit
        kept = None
        if image is None or size is not None:
            size = request.parse_size(size, self.stage, self.config)
        if image is not None:
            kept, size = request.read_kept(self.stage, image, keep, size, keep_pixels)
        return Plan(size, drawing, seed, kept, method, stride, tile, speculate)

    def paint(
        self, rows: dict[str, np.ndarray], plan: Plan, batch_size: int | None = None, progress: bool = True
    ) -> Iterator[np.ndarray]:
        """Paints an image for each row, batch by batch: uint8 [b,H,W,3], b <= batch_size.

        rows: as in `Painting.codes`, [N,...]. batch_size: None for 16 images as large as in training, or fewer larger
        ones.
        """
        total = len(rows["label"]) * int(np.prod(plan.grid(self.stage.first.patch)))
        with bar(total=total, desc="painting", unit="code", unit_scale=True, disable=not progress) as shown:
            for part in self.grow(rows, plan, batch_size):
                shown.update(part.done - shown.n)
                if part.whole:
                    yield part.images()

    def grow(self, rows: dict[str, np.ndarray], plan: Plan, batch_size: int | None = None) -> Iterator[Growth]:
        """Paints as `paint` does, and tells after each part of a batch's codes what there is.

        Whoever wants no more asks for no more. Each part may be asked for in another thread.
        """
        total, parts = len(rows["label"]), self.mesh.shape["data"]
        check_count(batch_size=batch_size)
        if batch_size is None:
            share = plan.size[0] * plan.size[1] / self.stage.first.size**2
            batch_size = max(1, round(BATCH_SIZE / share / parts)) * parts
        batch_size = min(batch_size, -(-total // parts) * parts)
        sharding.check_batch(batch_size, self.mesh)
        size, first = int(np.prod(plan.grid(self.stage.first.patch))), 0
        for batch, count in sharding.filled_batches(rows, batch_size, self.mesh):
            painter = self.painting.codes(self.nets, batch, plan)
            while True:
                with jax.set_mesh(self.mesh):  # of a thread: not while others have their turn
                    painted = next(painter, None)
                if painted is None:
                    break
                codes, done = painted
                images = functools.partial(self._images, codes, plan, None if done == size else done, count)
                yield Growth(first, first * size + count * done, done == size, images)
            first += count

    def _images(self, codes: jax.Array, plan: Plan, done: int | None, count: int) -> np.ndarray:
        with jax.set_mesh(self.mesh):
            return self.painting.images(self.nets, codes, plan, done)[:count]

    def check_frames(self) -> None:
        """Raises ArgumentError where there are no `frames`."""
        if self.stage.masks:
            raise ArgumentError("animate: each pass of a masked transformer writes the whole image")

    def frames(self, image: np.ndarray, plan: Plan) -> list[np.ndarray]:
        """Frames for `sampling.animation` that show how an image uint8 [H,W,3] was painted by a plan.

        Raises ArgumentError for a masked transformer, each pass of which writes the whole image.
        """
        self.check_frames()
        when = self.stage.painting_order(plan.grid(self.stage.first.patch), plan.method)
        if plan.kept is not None:
            when = np.where(plan.kept.codes, -1, when)
        fill = [(0, whole - part) for whole, part in zip(plan.size, image.shape, strict=False)]
        image = np.pad(image, [*fill, (0, 0)], mode="edge")
        return draw_frames(Animation(image, when, self.stage.frame(when.shape), plan.stride))

    def score(self, images: Any, batch_size: int = BATCH_SIZE, progress: bool = False, **asked: Any) -> np.ndarray:
        """How likely the transformer finds images: nats of all codes of each, [N] float32; less is likelier.

        images: as in `Tokenizer.encode`, of the size of training. asked: their conditions as in `sample`, one for all
        or one for each. The mean score, divided by the number of codes, is the `nll` of an evaluation. Raises
        ArgumentError for images or conditions that do not fit.
        """
        if self.stage.masks:
            raise ArgumentError(
                "score: a masked transformer does not say how likely an image is; one of codes in a row does"
            )
        first = self.stage.first
        seen = read_pictures(first, images, self.config.data.label_shift)
        if seen.shape[1:3] != (first.size, first.size):
            sides = "x".join(map(str, seen.shape[1:3]))
            raise ArgumentError(f"images: {sides} pixels; the run was trained at {first.size}x{first.size}")
        asked, arguments = {n: v for n, v in asked.items() if v is not None}, self.stage.cond.ARGUMENTS
        if arguments and not asked:
            raise ArgumentError(f"{next(iter(arguments))} is missing: the condition of each image, or one for all")
        rows = request.make_rows(self.stage, self.config, seen.shape[1:3], asked)
        if len(rows["label"]) not in (1, len(seen)):
            raise ArgumentError(
                f"images: {len(seen)} for {len(rows['label'])} conditions; one for all, or one for each"
            )
        rows = {name: np.repeat(value, len(seen) // len(value), 0) for name, value in rows.items()}
        score = lambda batch: self._score(self.nets, *batch)  # noqa: E731
        return in_batches(self.mesh, score, (rows, {first.input: seen}), batch_size, progress, "scoring")

    def _nats(self, nets: dict, rows: dict, seen: dict) -> jax.Array:
        c = self.stage.cond.ids(nets, rows)
        codes = self.stage.to_sequence(self.stage.first.encode(nets["gen"], seen), jax.random.key(0))
        return codes.shape[1] * losses.cross_entropy(self.stage.logits(nets["gpt"], c, codes), codes)
