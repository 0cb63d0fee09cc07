"""Any folder of images, found recursively."""

import hashlib
from pathlib import Path

from ml_collections import ConfigDict
from PIL import Image

from taming_jax.data.transforms import decode
from taming_jax.errors import UserError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


class FolderSource:
    """Random access to image files. `class_names` are the sub-folders that hold them, () where there are none."""

    def __init__(self, root: Path, files: list[Path], class_names: list[str]):
        self.root, self.files, self.class_names = root, files, class_names

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        return f"FolderSource({str(self.root)!r}, {len(self.files)} files)"

    def __getitem__(self, index: int) -> dict:
        file = self.files[index]
        with Image.open(file) as image:
            label = self.class_names.index(file.relative_to(self.root).parts[0]) if self.class_names else 0
            return {"image": decode(image), "label": label}

    def describe(self, index: int) -> str:
        return str(self.files[index])


def source(data: ConfigDict, split: str) -> FolderSource:
    """Images below `data.path`; `data.validation_share` of them are held out, chosen by a hash of their relative path.

    Where every image lies in a sub-folder, the first-level sub-folders are the classes.
    """
    if not data.path:
        raise UserError(
            "data.path is empty; name a folder of images: --config.data.path=/path/to/images, or with"
            " --data_path where a run is evaluated or sampled"
        )
    root = Path(data.path).expanduser()
    if not root.is_dir():
        raise UserError(f"data.path={data.path}: there is no such folder")
    if missing := set(data.features) - {"image", "coord"}:
        raise UserError(f"data.features: a folder holds images alone, no {', '.join(sorted(missing))}")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
    if len(files) < 2:
        raise UserError(
            f"data.path={data.path}: {len(files)} images found, at least 2 are needed; endings are {' '.join(ENDINGS)}"
        )
    parts = [p.relative_to(root).parts for p in files]
    class_names = sorted({p[0] for p in parts}) if all(len(p) > 1 for p in parts) else []

    def place(file: Path) -> float:
        digest = hashlib.blake2b(file.relative_to(root).as_posix().encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    held_out = {f for f in files if place(f) < data.validation_share} or {min(files, key=place)}
    if split == "train" and len(held_out) == len(files):
        raise UserError(f"data.validation_share={data.validation_share:g} leaves no image to train on")
    return FolderSource(root, [f for f in files if (f in held_out) == (split == "validation")], class_names)
