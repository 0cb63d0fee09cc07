"""TFDS data sets by random access, without TensorFlow."""

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from taming_jax.data.openmoji import Openmoji
from taming_jax.errors import UserError, nearest, not_among


class TfdsSource:
    """Random access to the records of a prepared TFDS split."""

    def __init__(self, name: str, split: str, records, class_names: list[str]):
        self.name, self.split, self.records, self.class_names = name, split, records, class_names

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"TfdsSource({self.name!r}, {self.split!r}, {len(self)} records)"

    def __getitem__(self, index: int) -> dict:
        record = self.records[index]
        image = record["image"]
        image = image.repeat(3, axis=-1) if image.shape[-1] == 1 else image[..., :3]
        return {"image": image, "label": record["label"] if self.class_names else 0}

    def describe(self, index: int) -> str:
        return f"record {index} of {self.name} {self.split}"


def source(data: ConfigDict, split: str) -> TfdsSource:
    """`data.name` as TFDS knows it ('imagenet2012', 'celeb_a_hq/256'), or 'openmoji/px64'; in `data.dir` or TFDS's own.

    Prepares the data set, as ArrayRecord, where it is not yet prepared and can be. `data.splits` names its splits.
    """
    kind, _, variant = data.name.partition("/")
    try:
        if kind == "openmoji":
            tfds.disable_progress_bar()  # it shows one with the time left
            builder = Openmoji(config=variant or None, data_dir=data.dir, file_format="array_record")
        else:
            builder = tfds.builder(data.name, data_dir=data.dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as e:
        names = ["folder", "openmoji", *tfds.list_builders(with_community_datasets=False)]
        raise UserError(f"data.name={data.name!r} is neither 'folder' nor a TFDS data set{nearest(kind, names)}") from e
    except ValueError as e:  # no such variant
        variants = [f"{kind}/{v}" for v in (Openmoji if kind == "openmoji" else tfds.builder_cls(kind)).builder_configs]
        raise not_among("data.name", data.name, variants) from e
    if not builder.data_path.exists():
        print(f"preparing {data.name} in {builder.data_path}", flush=True)
    try:
        builder.download_and_prepare()
    except (AssertionError, OSError, tfds.download.DownloadError, ModuleNotFoundError) as e:
        raise UserError(
            f"data set {data.name} is not in {builder.data_path} and cannot be prepared here:"
            f" {' '.join(str(e).split())[:300]}"
        ) from e
    name = data.splits[split]
    records = builder.as_data_source(name)
    features = builder.info.features
    class_names = list(features["label"].names) if "label" in features else []
    return TfdsSource(data.name, name, records, class_names)
