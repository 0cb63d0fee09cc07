"""The second stage: a first stage, a condition, a transformer over the ids of both, and the order in which it writes.

Pure functions of parameters; `generator.Generator` binds weights to them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from taming_jax import permute, sharding
from taming_jax.conditions import Condition, make_condition
from taming_jax.errors import UserError
from taming_jax.first_stage import FirstStage, make_first_stage
from taming_jax.models.gpt import GPT, Cache, align, unstack
from taming_jax.models.llamagen import LlamaGPT, default_mlp_dim
from taming_jax.models.rar import RAR
from taming_jax.models.vectors import spread
from taming_jax.models.wave import WaveGPT
from taming_jax.sampling.draw import Sampling, away_from_null, guide
from taming_jax.sampling.masked import make_masked_painter, one_pass
from taming_jax.sampling.painter import Painter, make_painter, painting_order
from taming_jax.sampling.schedule import make_chunk, make_schedule_painter
from taming_jax.sampling.sequence import make_sequence_painter, make_speculative_painter, sample_full
from taming_jax.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class SecondStage:
    """The fixed parts of a second stage; `make_second_stage` builds it from a complete config.

    gpt: in a `GPT` itself, the condition's ids and the codes share one vocabulary, as in the original. order_name: see
    `permute.ORDERS`. drop: the share of training examples without their condition. aligned: see `gpt.align`.
    """

    first: FirstStage
    cond: Condition
    gpt: GPT
    order_name: str
    drop: float
    aligned: bool

    @property
    def order(self) -> np.ndarray:
        """[N]: the cells of a training image's grid, numbered row by row, in the order in which they are written."""
        return permute.ORDERS[self.order_name](self.first.side, self.first.side)

    @property
    def slides(self) -> bool:
        """Whether its window can slide over a larger image: only if it writes row by row."""
        return self.order_name == "row_major"

    @property
    def masks(self) -> bool:
        """Whether it learns codes that are hidden among others, and not each from those before it."""
        return False

    @property
    def least(self) -> int:
        """Pixels on a side of the smallest image that it paints."""
        return self.first.size

    def window(self, grid: tuple[int, int]) -> int:
        """Codes on a side of the part of a grid that one condition is about."""
        return self.first.side

    def frame(self, grid: tuple[int, int]) -> int:
        """Codes on a side of what a code sees, of a grid."""
        return self.first.side

    @property
    def step(self) -> int:
        """Pixels that a side is a multiple of: whole codes, and whole ids of the condition's grid."""
        n, grid = self.first.side, self.cond.grid
        return self.first.patch * (1 if grid is None else n // math.gcd(n, grid[0]))

    @property
    def null(self) -> int:
        """The id that stands for a dropped condition."""
        return self.cond.vocab_size

    def with_null(self, c: jax.Array) -> jax.Array:
        """Each condition, followed by one that is dropped: [B,...] -> [2B,...], neighbours, as guidance pairs them."""
        return jnp.stack([c, jnp.full_like(c, self.null)], 1).reshape(-1, *c.shape[1:])

    def frozen_shapes(self) -> dict:
        """The parameters of the first stages, as shapes: {'gen': ...}, with the condition's {'cond': ...}."""
        stages = {"gen": self.first} | ({"cond": self.cond.stage} if self.cond.stage is not None else {})
        return {name: stage.parameter_shapes() for name, stage in stages.items()}

    def init(self, key: jax.Array) -> dict:
        """The transformer's initial parameters."""
        params = self.gpt.init(key, jnp.zeros((1, self.gpt.block_size), jnp.int32))["params"]
        if self.aligned:
            named = self.cond.named_places(self.first.side)
            params = align(params, self.places()[: self.gpt.block_size], self.gpt.num_heads, named)
        return params

    def places(self) -> np.ndarray:
        """The cell that each position is about, [condition and codes,3], for `gpt.align`; a code's is the next cell."""
        seen, order, n = self.cond.places(self.first.side), self.order, self.first.side
        asked = np.stack(np.unravel_index(np.append(order[1:], order[-1]), (n, n)), 1)
        both = np.concatenate([seen, asked])
        return np.concatenate([both, (np.arange(len(both)) >= len(seen))[:, None]], 1)

    def read(self, frozen: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        """Condition [B,S] and the first stage's ids [B,h,w], int32: of a batch's images, or as the batch holds them."""
        if "codes" in batch:
            return batch["cond"], batch["codes"]
        codes = self.first.encode(frozen["gen"], batch)
        return self.cond.ids(frozen, batch), codes

    def to_sequence(self, codes: jax.Array, key: jax.Array) -> jax.Array:
        """The first stage's ids [B,h,w] -> the transformer's ids in the order in which it writes them, [B,T]."""
        grid = self.first.remap(codes, key)
        return grid.reshape(len(grid), -1)[:, self.order]

    def logits(self, params: dict, c: jax.Array, ids: jax.Array, **kwargs) -> jax.Array:
        """The logits of every code, given the condition and the codes before it. [B,S], [B,T] -> [B,T,V] float32.

        params: as in training, or from `decode_params`.
        """
        inputs = jnp.concatenate([c, ids[:, :-1]], 1)
        return self.apply(params, inputs, start=self.cond.length - 1, **kwargs)

    def logits_and_outputs(self, params: dict, c: jax.Array, ids: jax.Array, **kwargs) -> tuple[jax.Array, jax.Array]:
        """The same, and what comes out of each layer at the positions that predict the codes: [L,B,T,D]."""
        logits, sown = self.logits(params, c, ids, mutable="intermediates", **kwargs)
        (outputs,) = sown["intermediates"]["blocks"]["out"]
        return logits, outputs[:, :, -ids.shape[1] :]

    def codes_read(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The codes that each position reads: [B,T] -> ids [B,T,R], and which of them there are, bool [T,R]."""
        return jnp.pad(ids[:, :-1], ((0, 0), (1, 0)))[..., None], (jnp.arange(ids.shape[1]) > 0)[:, None]

    def apply(self, params: dict, *inputs: jax.Array, **kwargs) -> jax.Array:
        """Calls the transformer with parameters as in `logits`."""
        outside = {name: value for name, value in params.items() if not name.startswith("blocks")}
        params = {**params, **sharding.gather(outside, "gpt")}  # layers are gathered one by one
        gpt = self.gpt if "blocks" in params else self.gpt.clone(unrolled=True)
        return gpt.apply({"params": params}, *inputs, **kwargs)

    def condition(self, frozen: dict, batch: dict, grid: tuple[int, int]) -> jax.Array:
        """The condition's ids for a painter of `grid`: [B,S], or a grid of ids if `grid` is larger than in training."""
        c, n = self.cond.of_size(grid, self.window(grid)).ids(frozen, batch), self.first.side
        if self.cond.grid is None or grid == (n, n):
            return c
        return c.reshape(len(c), self.cond.grid[0] * grid[0] // n, self.cond.grid[1] * grid[1] // n)

    def make_decode(self, guided: bool) -> tuple[Callable, Callable]:
        """`decode` and `init_cache`, as `sampling.painter` takes them."""
        gpt = self.gpt.clone(unrolled=True)
        decode, init_cache = functools.partial(next_code, gpt, self.first.num_ids), gpt.init_cache
        if not guided:
            return decode, init_cache
        return guide(decode, init_cache, self.cond.length, self.null, self.first.side**2)

    def decode_params(self, params: dict) -> dict:
        """The transformer's parameters for `make_decode`: cast, and gathered along 'fsdp', once for all codes."""
        params = sharding.gather(unstack(params), "gpt")
        for name in params:
            if name == "head" or name.startswith("blocks_"):
                params[name] = jax.tree.map(lambda x: x.astype(self.gpt.dtype) if x.ndim > 1 else x, params[name])
        return params

    def make_painter(
        self, guided: bool = False, method: str = "cached", stride: int = 1, speculate: int = 1
    ) -> Painter:
        """A painter of grids; it takes `decode_params`. Raises UserError for ways that do not fit.

        speculate: codes that are guessed at once, 1 for none, see `sampling.speculative`; of a larger grid, those
        where the window rests.
        """
        decode, init_cache = self.make_decode(guided)
        if speculate > 1:
            if (method, stride) != ("cached", 1):
                raise UserError(f"speculate={speculate}: it goes with neither method={method!r} nor stride={stride}")
            guesses, n = min(speculate, self.first.side**2), self.first.side
            whole = make_speculative_painter(decode, init_cache, self.order, guesses, self.first.num_ids)
            sliding = make_painter(decode, init_cache, n, guesses=guesses) if self.slides and n > 1 else whole

            def paint(params, cond, codes, *others) -> Iterator[tuple[jax.Array, int]]:
                return (whole if codes.shape[1:] == (n, n) else sliding)(params, cond, codes, *others)

            return paint
        if not self.slides:
            if (method, stride) != ("cached", 1):
                raise UserError(
                    f"method={method}, stride={stride}: ways of a window that follows rows; this transformer's order"
                    f" is {self.order_name!r}"
                )
            return make_sequence_painter(decode, init_cache, self.order)
        try:
            return make_painter(decode, init_cache, self.first.side, method, stride)
        except ValueError as e:
            raise UserError(str(e)) from e

    def painting_order(self, grid: tuple[int, int], method: str = "cached") -> np.ndarray:
        """The step at which `make_painter`'s painter paints each code, [h,w] int."""
        if self.slides:
            return painting_order(*grid, self.first.side, method)
        return np.argsort(self.order).reshape(grid)

    def sample(self, params: dict, first_stage: dict, c: jax.Array, keys: jax.Array, sampling: Sampling) -> jax.Array:
        """Samples images as large as in training, in one program. c [B,S] int32, keys [B] -> [B,H,W,3], about [-1, 1].

        params: from `decode_params`. There is no guidance. The codes are those that `make_painter`'s painter gives.
        """
        (decode, init_cache), order, n = self.make_decode(False), self.order, self.first.side
        codes, known = jnp.zeros((len(c), n * n), jnp.int32), jnp.zeros(n * n, bool)
        cache = init_cache(len(c))
        ids = sample_full(functools.partial(decode, params), cache, c, codes, known, order, keys, sampling)
        return self.first.decode(first_stage, ids[:, np.argsort(order)].reshape(-1, n, n))

    def check_size(self, name: str, size: tuple[int, int], kind: type[UserError] = UserError) -> None:
        """Raises `kind` for a size (height, width) that the transformer cannot paint; `name` names the field."""
        text, factor, least = "x".join(map(str, size)), self.first.patch, self.least
        if len(size) != 2 or min(size) < least or any(n % factor for n in size):
            trained = ", the size of training" if least == self.first.size else ""
            raise kind(f"{name}={text}: multiples of {factor} from {least} on{trained}")
        if tuple(size) != (least, least) and not self.slides:
            why = "a masked transformer has none" if self.masks else f"this transformer's order is {self.order_name!r}"
            raise kind(f"{name}={text}: a sliding window follows rows; {why}")
        grid, n = self.cond.grid, self.first.side
        if grid is not None and any(pixels // factor * grid[0] % n for pixels in size):
            raise kind(f"{name}={text}: the condition has {grid[0]} ids where there are {n} codes, which must divide")


@dataclasses.dataclass(frozen=True)
class WaveStage(SecondStage):
    """A second stage whose transformer writes along the fronts of a schedule: grids of any size, at equal cost a code.

    Its `params` hold a `WaveGPT`. A condition that lies on a grid goes with the codes, cell by cell.
    """

    gpt: WaveGPT

    @property
    def tables(self) -> dict[str, str]:
        """The tables of embeddings whose first rows are codes, and of which net."""
        of_condition = {} if self.cond.stage is None else {"cond_embedding": "cond"}
        return {"left_embedding": "gen", "above_embedding": "gen"} | of_condition

    def begin_from_vectors(self, params: dict, frozen: dict, deviation: float, key: jax.Array) -> dict:
        """Initial parameters where codes that look alike are alike: to each row of the tables comes its code's vector.

        deviation: of what comes to the rows, which begin with 0.02.
        """
        stages = {"gen": self.first, "cond": self.cond.stage}
        for (name, net), own in zip(self.tables.items(), jax.random.split(key, len(self.tables)), strict=True):
            table, ids = params[name], jnp.arange(stages[net].num_ids)
            rows = spread(stages[net].vectors(frozen[net], ids), table.shape[1], own)
            params = {**params, name: table.at[ids].add(deviation * rows)}
        return params

    @property
    def least(self) -> int:
        return self.step

    def window(self, grid: tuple[int, int]) -> int:
        return max(grid)

    def frame(self, grid: tuple[int, int]) -> int:
        return min(2 * max(self.gpt.schedule.reach) + 1, *grid)

    def init(self, key: jax.Array) -> dict:
        n, c = self.first.side, jnp.zeros((1, self.cond.length), jnp.int32)
        return self.gpt.init(key, self.on_grid(c, (n, n)), jnp.zeros((1, n, n), jnp.int32))["params"]

    def on_grid(self, c: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """The condition's ids [B,S] as they lie over a grid of codes; others as they are."""
        if self.cond.grid is None or c.ndim != 2:
            return c
        return c.reshape(len(c), *(n // self.gpt.cells for n in grid))

    def logits(self, params: dict, c: jax.Array, ids: jax.Array, **kwargs) -> jax.Array:
        n = self.first.side
        return self.apply(params, self.on_grid(c, (n, n)), ids.reshape(-1, n, n), **kwargs)

    def codes_read(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        n = self.first.side
        around = jnp.pad(ids.reshape(-1, n, n), ((0, 0), (1, 0), (1, 0)))
        left, above = around[:, 1:, :-1], around[:, :-1, 1:]
        i, j = np.indices((n, n))
        return jnp.stack([left, above], -1).reshape(*ids.shape, 2), jnp.stack([j > 0, i > 0], -1).reshape(n * n, 2)

    def condition(self, frozen: dict, batch: dict, grid: tuple[int, int]) -> jax.Array:
        return self.on_grid(self.cond.of_size(grid, self.window(grid)).ids(frozen, batch), grid)

    def make_steps(self, guided: bool) -> tuple[Callable, Callable]:
        """`begin` and `step`, as `sampling.schedule` takes them.

        guided: parameters are (parameters, sampling), and each image has a copy without its condition (Ho & Salimans).
        """
        gpt = self.gpt.clone(unrolled=True)

        def begin(params, c, h, w):
            if guided:
                params, c = params[0], self.with_null(c)
            return sharding.split(gpt.apply({"params": params}, c, h, w, method="begin"))

        def step(params, codes, wave, front):
            if not guided:
                return gpt.apply({"params": params}, codes, wave, front, method="step")
            params, sampling = params
            logits, wave = gpt.apply({"params": params}, jnp.repeat(codes, 2, 0), wave, front, method="step")
            h, w = codes.shape[1:]
            number = jnp.clip(front.i * w + front.j, 0, h * w - 1)  # slots outside of the grid have none
            return away_from_null(logits, sampling.guidance_at(number, h * w)[:, None]), wave

        return begin, step

    def make_painter(
        self, guided: bool = False, method: str = "cached", stride: int = 1, speculate: int = 1
    ) -> Painter:
        refuse_ways(method, stride, speculate, "ways of a window; this transformer has none, it follows its fronts")
        return make_schedule_painter(self.gpt.schedule, *self.make_steps(guided))

    def painting_order(self, grid: tuple[int, int], method: str = "cached") -> np.ndarray:
        return self.gpt.schedule.times(*grid)

    def sample(self, params: dict, first_stage: dict, c: jax.Array, keys: jax.Array, sampling: Sampling) -> jax.Array:
        n, (begin, step) = self.first.side, self.make_steps(False)
        codes, known = jnp.zeros((len(c), n, n), jnp.int32), jnp.zeros((n, n), bool)
        wave = begin(params, self.on_grid(c, (n, n)), n, n)
        paint = make_chunk(self.gpt.schedule, step)
        steps = int(self.gpt.schedule.times(n, n).max()) + 1
        return self.first.decode(first_stage, paint(params, codes, known, keys, sampling, wave, 0, steps)[0])


@dataclasses.dataclass(frozen=True)
class MaskedStage(SecondStage):
    """A second stage whose transformer sees all codes but those that are hidden, and writes many of them in a pass.

    Its `params` hold a `GPT` in which all positions see each other; the last id of its vocabulary stands for a hidden
    code. It paints images as large as in training.
    """

    @property
    def masks(self) -> bool:
        return True

    @property
    def slides(self) -> bool:
        return False

    def logits(self, params: dict, c: jax.Array, ids: jax.Array, hidden: jax.Array, **kwargs) -> jax.Array:
        """The logits of every code, given the condition and the codes that are not hidden. hidden: bool [B,T]."""
        seen = jnp.where(hidden, self.gpt.vocab_size - 1, ids)
        logits = self.apply(params, jnp.concatenate([c, seen], 1), start=self.cond.length, **kwargs)
        return logits[..., : self.first.num_ids]

    def make_read(self, guided: bool) -> Callable:
        """`read`, as `sampling.masked` takes it; guided: with parameters and copies as in `sampling.draw.guide`."""

        def read(params, c, codes, hidden):
            return self.logits(params, c, codes, hidden)

        def read_guided(params, c, codes, hidden):
            params, sampling = params
            seen = (~hidden).sum(-1)
            logits = read(params, self.with_null(c), jnp.repeat(codes, 2, 0), jnp.repeat(hidden, 2, 0))
            return away_from_null(logits, sampling.guidance_at(seen, codes.shape[1])[:, None, None])

        return read_guided if guided else read

    def make_painter(
        self, guided: bool = False, method: str = "cached", stride: int = 1, speculate: int = 1
    ) -> Painter:
        refuse_ways(
            method, stride, speculate, "ways of a transformer that writes code by code; a masked one has passes"
        )
        return make_masked_painter(self.make_read(guided))

    def painting_order(self, grid: tuple[int, int], method: str = "cached") -> np.ndarray:
        """0 for all codes: each pass writes all of them."""
        return np.zeros(grid, int)

    def sample(self, params: dict, first_stage: dict, c: jax.Array, keys: jax.Array, sampling: Sampling) -> jax.Array:
        n, read = self.first.side, self.make_read(False)
        sampling = sampling._replace(passes=min(sampling.passes, n * n))

        def body(step, carry):
            return one_pass(read, params, c, *carry, keys, sampling, step, n * n)

        begin = jnp.zeros((len(c), n * n), jnp.int32), jnp.ones((len(c), n * n), bool)
        codes, _ = jax.lax.fori_loop(0, sampling.passes, body, begin)
        return self.first.decode(first_stage, codes.reshape(-1, n, n))


def refuse_ways(method: str, stride: int, speculate: int, why: str) -> None:
    """Raises UserError for any way of painting but the usual one."""
    if (method, stride, speculate) != ("cached", 1, 1):
        raise UserError(f"method={method}, stride={stride}, speculate={speculate}: {why}")


def next_code(
    gpt: GPT, limit: int, params: dict, ids: jax.Array, position: jax.Array, cache: Cache, at: jax.Array | None = None
) -> tuple[jax.Array, Cache]:
    """`GPT.decode` with the logits of the first `limit` ids, the codes; the rest of the vocabulary is cut off."""
    logits, cache = gpt.apply({"params": params}, ids, position, cache, at=at, method="decode")
    return logits[..., :limit], cache


def make_second_stage(config: ConfigDict) -> SecondStage:
    """Builds it from a complete config; raises UserError where the transformer is too small for condition and codes."""
    first = make_first_stage(config.first_stage.config, config.first_stage.used, config.first_stage.unknown)
    cond, fields = make_condition(config), config.gpt.to_dict()
    context, architecture = fields.pop("context"), fields.pop("architecture")
    own = {name: fields.pop(name) for name in ("mlp_dim", "num_kv_heads", "random_order")}
    fields |= dict(dtype=jnp.dtype(config.dtype), gather=functools.partial(sharding.gather, path="gpt/blocks_0"))
    masked = context["kind"] == "masked"
    if context["kind"] == "wavefront":
        if architecture == "modern":
            fields["mlp_dim"] = own["mlp_dim"] or default_mlp_dim(config.gpt.embed_dim, multiple_of=64)
        return make_wave_stage(config, dataclasses.replace(first, size=config.data.size), cond, fields, context)
    if architecture != "gpt":
        fields |= dict(vocab_size=first.num_ids, cond_size=cond.vocab_size + 1)
        if architecture == "llamagen":
            fields["mlp_dim"] = own["mlp_dim"] or default_mlp_dim(config.gpt.embed_dim)
            fields |= dict(block_size=cond.length + first.side**2 - 1, num_kv_heads=own["num_kv_heads"])
            gpt = LlamaGPT(**fields, prefix=cond.length, side=first.side)
        else:
            if cond.length != 1:
                raise UserError(
                    f"gpt.architecture='rar' reads a condition of one id; {config.cond.name!r} has {cond.length}"
                )
            fields |= dict(block_size=first.side**2 + 1, mlp_dim=own["mlp_dim"] or 4 * config.gpt.embed_dim)
            gpt = RAR(**fields, num_codes=first.side**2)
        return SecondStage(first, cond, gpt, config.order, config.cond.drop, config.cond.aligned)
    for name, least in (
        ("vocab_size", max(first.num_ids, cond.vocab_size + (config.cond.drop > 0)) + masked),
        ("block_size", cond.length + first.side**2 - (not masked)),
    ):
        if fields[name] is None:
            fields[name] = least
        elif fields[name] < least:
            raise UserError(f"gpt.{name}={fields[name]}: condition and codes need at least {least}")
    if config.gpt.n_unmasked > cond.length:
        raise UserError(f"gpt.n_unmasked={config.gpt.n_unmasked}: the condition has {cond.length} ids")
    if config.cond.aligned and cond.places(first.side) is None:
        raise UserError(f"cond.aligned: a condition on {config.cond.name!r} has no place in the picture")
    if masked:
        gpt = GPT(**fields | {"n_unmasked": fields["block_size"]})
        return MaskedStage(first, cond, gpt, config.order, config.cond.drop, config.cond.aligned)
    gpt = GPT(**fields)
    return SecondStage(first, cond, gpt, config.order, config.cond.drop, config.cond.aligned)


def make_wave_stage(config: ConfigDict, first: FirstStage, cond: Condition, fields: dict, context: dict) -> WaveStage:
    """The second stage with a wavefront transformer. fields, context: of `config.gpt`, of `config.gpt.context`."""
    for name in ("vocab_size", "block_size"):
        if fields.pop(name) is not None:
            raise UserError(f"gpt.{name}: a wavefront transformer has none; set it to None")
    if fields.pop("n_unmasked"):
        raise UserError("gpt.n_unmasked: a wavefront transformer's condition sees all of itself; it must be 0")
    cells = 1 if cond.grid is None else first.side // cond.grid[0]
    if cond.grid is not None and cells * cond.grid[0] != first.side:
        raise UserError(
            f"the condition has {cond.grid[0]} ids on a side where there are {first.side} codes: a wavefront"
            " transformer needs as many codes or a multiple of them"
        )
    gpt = WaveGPT(
        Schedule(context["lag"], tuple(context["reach"])),
        first.num_ids,
        cond.vocab_size + 1,
        0 if cond.grid is not None else cond.length,
        cells,
        places=first.side if context["places"] else 0,
        **fields,
    )
    return WaveStage(first, cond, gpt, config.order, config.cond.drop, False)
