"""Shows a data set as a config sees it: a picture of its batches, or one line on what is missing.

    python -m taming_jax.show_data --config=openmoji_segmentation_vq --out=data.png
    python -m taming_jax.show_data --config=custom_small_vq --config.data.path=/my/images
    python -m taming_jax.show_data --config=coco_transformer --first_stage=coco_vq --cond=coco_segmentation_vq

The first images of both splits, cropped and flipped as in training, and beside each what the model sees or is
conditioned on: another picture, a scene's boxes, coordinates from dark to light, the name of a class.
"""

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from taming_jax import cli, completion, data, images
from taming_jax.conditions import Condition, make_condition
from taming_jax.console import say
from taming_jax.first_stage import make_first_stage

ROWS, COLUMNS = 8, 4  # of images


def look(config: ConfigDict, split: str) -> images.Sheet:
    """The first images of a split, each with its input or condition; prints what the split holds. Raises UserError."""
    source = data.open_source(config.data, split)
    if split == "train" or not config.data.class_names:
        config.update(completion.complete_from_data(config, source))  # the words of captions are the training's
    names = config.data.class_names
    text = f", {len(names)} classes: {', '.join(names)[:200]}" if names else ""
    numbered = images.legend(names)[:200]
    say(f"{split}: {len(source)} images{text}" + (f"; as numbers, {numbered}" if numbered else ""))
    config.batch_size = min(ROWS * COLUMNS, len(source))
    cond = make_condition(config) if config.task == "transformer" else None
    augment = data.make_augment(config.data, None if cond is None else cond.annotator)
    if split == "train":
        batch = next(data.train_batches(source, config, 0, augment))
    else:
        batch = data.eval_batches(source, config, augment)[0]
    pictures = [images.to_uint8(batch["image"])]
    if cond is not None:
        beside = show_condition(cond, batch, pictures[0].shape[1:3])
    elif config.input != "image":
        stage = make_first_stage(config)
        beside = stage.to_picture(stage.to_input(batch))
    else:
        beside = None
    pictures += [] if beside is None else [images.to_uint8(beside)]
    pairs = np.stack(pictures, 1)[: len(pictures[0]) // COLUMNS * COLUMNS or 1]
    columns = COLUMNS if len(pairs) >= COLUMNS else 1
    rows = pairs.reshape(-1, columns * len(pictures), *pairs.shape[2:])
    return images.Sheet(rows, (split,) * len(rows))


def show_condition(cond: Condition, batch: dict, size: tuple[int, int]) -> np.ndarray | None:
    """The conditions of a batch as pictures, or their names drawn, [B,H,W,3]; None where there is nothing to draw."""
    if (found := cond.pictures(batch, size)) is not None:
        return found
    words = cond.captions(batch)
    return np.stack([draw_words(word, size) for word in words]) if words else None


def draw_words(text: str, size: tuple[int, int]) -> np.ndarray:
    """Words on white, as wide as they can be: uint8 [H,W,3]."""
    picture = Image.new("RGB", size[::-1], "white")
    length = images.find_font(text, 10).getlength(text)
    font = images.find_font(text, max(6, min(size[0] // 4, 10 * size[1] / (length + 4))))
    ImageDraw.Draw(picture).text((size[1] // 2, size[0] // 2), text, fill="black", font=font, anchor="mm")
    return np.asarray(picture)


def main() -> None:
    out = cli.new_file("out")
    config = completion.complete_ahead(cli.required_config(), cli.stages())
    config.data.update(workers=0, class_names=())  # not the classes of the first stage
    sheets = [look(config, split) for split in ("train", "validation")]
    width = max(sheet.images.shape[1] for sheet in sheets)
    rows = [np.pad(s.images, [(0, 0), (0, width - s.images.shape[1]), *[(0, 0)] * 3]) for s in sheets]
    sheet = images.Sheet(np.concatenate(rows), sum((s.captions for s in sheets), ()))
    images.save_png(images.draw_sheet(sheet), out, data=config.data.name)
    say(f"crops as they are trained on and evaluated: {out}")


if __name__ == "__main__":
    cli.group("What is shown, and where the picture goes")
    cli.define_config("either stage")
    flags.DEFINE_string("out", "data.png", "Picture to write.")
    cli.group("Without runs of a transformer's first stages")
    cli.define_stages()
    cli.run(main)
