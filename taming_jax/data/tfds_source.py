"""TFDS data sets by random access, without TensorFlow."""

import sys
from collections.abc import Iterator

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from taming_jax.data.classes import number_classes
from taming_jax.data.features import DERIVED
from taming_jax.data.files import check_labels
from taming_jax.data.openmoji import Openmoji, name_of
from taming_jax.errors import UserError, nearest, not_among


class TfdsSource:
    """Random access to the records of a prepared TFDS split; labels are a run's, see `classes.number_classes`."""

    def __init__(self, name: str, split: str, records, class_names: list[str], data: ConfigDict, features: tuple):
        self.name, self.split, self.records, self.class_names = name, split, records, class_names
        self.numbers = [number or 0 for number in number_classes(class_names, data.class_names)]
        self.features, self.num_labels = features, data.num_labels

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"TfdsSource({self.name!r}, {self.split!r}, {len(self)} records)"

    def __getitem__(self, index: int) -> dict:
        record = self.records[index]
        image = record["image"]
        image = image.repeat(3, axis=-1) if image.shape[-1] == 1 else image[..., :3]
        found = {"image": image, "label": self.numbers[record["label"]] if self.class_names else 0}
        if "line" in self.features:
            found["line"] = record["line"]
        if "segmentation" in self.features:
            found["segmentation"] = record["segmentation"][..., 0]
            check_labels(found["segmentation"], self.describe(index), self.num_labels, 0)
        if "caption" in self.features:
            found["caption"] = name_of(record["hexcode"].decode())
        return found

    def texts(self, kind: str) -> Iterator[str]:
        """The captions of all records."""
        return (name_of(record["hexcode"].decode()) for record in self.records)

    def describe(self, index: int) -> str:
        return f"record {index} of {self.name} {self.split}"


def source(data: ConfigDict, split: str, name: str, features: tuple[str, ...]) -> TfdsSource:
    """A data set as TFDS knows it ('imagenet2012', 'celeb_a_hq/256'), or 'openmoji/px64'; in `data.dir` or TFDS's own.

    If possible, prepares a data set that is not yet prepared, as ArrayRecord. `data.splits` names its splits. Raises
    UserError where it has no such split, no images, or a format without random access.
    """
    builder = find_builder(name, data.dir or None)
    if not builder.is_prepared():
        print(f"preparing {name} in {builder.data_path}", flush=True)
        try:
            builder.download_and_prepare(file_format="array_record")
        except (AssertionError, OSError, tfds.download.DownloadError, ModuleNotFoundError) as e:
            builder = find_builder(name, data.dir or None)
            if not builder.is_prepared():  # by another process, which was faster
                raise UserError(
                    f"data set {name} is not in {builder.data_path} and cannot be prepared here:"
                    f" {' '.join(str(e).split())[:300]}"
                ) from e
    if "image" not in builder.info.features:
        raise UserError(f"data set {name} has no feature 'image'; it has {', '.join(builder.info.features)}")
    part = data.splits[split]
    kinds = builder.info.features.items()
    unread = [n for n, kind in kinds if isinstance(kind, tfds.features.Image) and n not in ("image", *features)]
    # Unpacking pictures is most of the work of reading a record. TFDS's stand-in for data takes no empty table.
    decoders = dict.fromkeys(unread, tfds.decode.SkipDecoding()) or None
    try:
        records = builder.as_data_source(part, decoders=decoders)
    except NotImplementedError as e:
        raise UserError(
            f"data set {name} in {builder.data_path} is stored in a format without random access; convert it with"
            " python -m tensorflow_datasets.scripts.convert_format --out_file_format=array_record"
        ) from e
    except ValueError as e:
        raise UserError(
            f"data.splits.{split}={part!r} is no split of {name}; it has {', '.join(builder.info.splits)}"
        ) from e
    drawings = isinstance(builder, Openmoji)
    had = {"image", "caption"} | {"line", "segmentation"} & set(builder.info.features) if drawings else {"image"}
    if missing := set(features) - had - DERIVED:
        raise UserError(f"data.features: {name} has {', '.join(sorted(had))}, no {', '.join(sorted(missing))}")
    label = builder.info.features["label"] if "label" in builder.info.features else None
    class_names = list(getattr(label, "names", None) or [])
    return TfdsSource(name, part, records, class_names, data, features)


def find_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The builder of a data set; raises UserError for a name or a variant that is not there."""
    kind, _, variant = name.partition("/")
    try:
        if kind == "openmoji" or not sys.stderr.isatty():
            tfds.disable_progress_bar()  # Openmoji shows its own, with the time left; logs have no use for one
        if kind == "openmoji":
            return Openmoji(config=variant or None, data_dir=data_dir)
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as e:
        names = ["folder", "openmoji", *tfds.list_builders(with_community_datasets=False)]
        raise UserError(f"data.name={name!r} is neither 'folder' nor a TFDS data set{nearest(kind, names)}") from e
    except ValueError as e:
        variants = [f"{kind}/{v}" for v in (Openmoji if kind == "openmoji" else tfds.builder_cls(kind)).builder_configs]
        raise not_among("data.name", name, variants) from e
