"""A frozen VQGAN: images to ids and back. Pure functions; `tokenizer.Tokenizer` binds weights to them."""

import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from taming_jax import sharding
from taming_jax.images import color_labels, to_float
from taming_jax.models.quantize import make_quantizer, remap, unmap
from taming_jax.models.vqgan import VQModel


@dataclasses.dataclass(frozen=True)
class FirstStage:
    """The fixed parts of a first stage; `make_first_stage` builds it from a complete config.

    input: the feature of a batch that the model sees. size: pixels on a side of a training image. used, unknown: the
    ids that a second stage knows, if it does not know all of them, see `quantize.remap`.
    """

    model: VQModel
    input: str
    size: int
    codebook_size: int
    used: tuple[int, ...] = ()
    unknown: str = "random"

    @property
    def patch(self) -> int:
        """Pixels on a side of the patch that an id stands for."""
        return code_side(self.model)

    @property
    def side(self) -> int:
        """Ids on a side of a training image."""
        return self.size // self.patch

    @property
    def num_ids(self) -> int:
        """How many ids a second stage knows."""
        return len(self.used) + (self.unknown == "extra") if self.used else self.codebook_size

    def parameter_shapes(self) -> dict:
        """The generator's parameters as shapes."""
        images = jax.ShapeDtypeStruct((1, self.size, self.size, self.model.out_ch), jnp.float32)
        return jax.eval_shape(self.model.init, jax.random.key(0), images)["params"]

    def to_input(self, batch: dict) -> jax.Array:
        """The model's input from a batch: [B,H,W,C] float32, images in [-1, 1] or one-hot maps."""
        if self.input == "segmentation":
            return jax.nn.one_hot(batch["segmentation"], self.model.out_ch)
        return to_float(batch[self.input])

    def to_picture(self, output: jax.Array) -> jax.Array:
        """Turns the model's inputs or outputs into pictures: [B,H,W,C] -> [B,H,W,3], roughly in [-1, 1]."""
        if self.input == "segmentation":
            return color_labels(jnp.argmax(output, -1))
        return jnp.broadcast_to(output, (*output.shape[:3], 3))

    def encode(self, params: dict, batch: dict) -> jax.Array:
        """Encodes a batch of images of any size into ids of the whole codebook: [B,h,w] int32."""
        seen = self.to_input(batch)
        return self.model.apply({"params": sharding.gather(params)}, seen, method="encode")[1]["ids"]

    def remap(self, ids: jax.Array, key: jax.Array) -> jax.Array:
        """Those ids -> ids that a second stage knows; unknown ones may be drawn with `key`. [B,h,w] -> [B,h,w]."""
        if not self.used:
            return ids
        unknown = int(self.unknown) if self.unknown.isdecimal() else self.unknown
        return remap(ids, jnp.asarray(self.used, jnp.int32), unknown, key)

    def unmap(self, ids: jax.Array) -> jax.Array:
        """A second stage's ids -> those of the whole codebook. [...] -> [...]."""
        return unmap(ids, jnp.asarray(self.used, jnp.int32)) if self.used else ids

    def decode(self, params: dict, ids: jax.Array) -> jax.Array:
        """A second stage's ids [B,h,w] -> images [B,H,W,3], roughly in [-1, 1]."""
        ids = self.unmap(ids)
        return self.to_picture(self.model.apply({"params": sharding.gather(params)}, ids, method="decode_ids"))

    def vectors(self, params: dict, ids: jax.Array) -> jax.Array:
        """A second stage's ids [...] -> their codes' vectors [...,D] float32, as the decoder gets them."""
        return self.model.apply({"params": sharding.gather(params)}, self.unmap(ids), method="lookup")

    def codebook(self, params: dict) -> jax.Array:
        """The codes of all ids of the whole codebook: [codebook_size,D] float32."""
        return self.model.apply({"params": params}, jnp.arange(self.codebook_size), method="lookup")


def code_side(model: VQModel | ConfigDict) -> int:
    """Pixels on a side of the patch that an id stands for; model: the module, or its fields in a config."""
    return model.patch * 2 ** (len(model.ch_mult) - 1)


def make_model(config: ConfigDict) -> VQModel:
    """The generator of a stage-one config."""
    resolution, quantizer = config.data.size // config.model.patch, config.quantizer.to_dict()
    return VQModel(resolution=resolution, quantizer=quantizer, dtype=jnp.dtype(config.dtype), **config.model)


def make_first_stage(config: ConfigDict, used: tuple[int, ...] = (), unknown: str = "random") -> FirstStage:
    """Builds it from a complete stage-one config. used, unknown: see `FirstStage`."""
    codebook_size = make_quantizer(config.quantizer).codebook_size
    return FirstStage(make_model(config), config.input, config.data.size, codebook_size, tuple(used), unknown)
