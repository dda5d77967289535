"""Images of noise kept in every way a source reads them: the same bytes, the same order."""

import csv
import io
import json
import tarfile

import numpy as np
from PIL import Image

NAMES = ("cat", "dog")
COUNTS = (2, 3, 2)  # scoring, extraction and held-out images a category


def pictures(seed=0):
    """{part: {category: {file name: bytes}}} of PNG and JPEG files of 6 x 5 pixels."""
    random = np.random.default_rng(seed)
    found = {}
    for part, count in (("train", 3), ("val", 6)):
        for name in NAMES:
            for number in range(count):
                ending, form = (("png", "PNG"), ("jpg", "JPEG"))[number % 2]
                content = io.BytesIO()
                pixels = random.integers(0, 256, (5, 6, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(content, form)
                files = found.setdefault(part, {}).setdefault(name, {})
                files[f"{number}.{ending}"] = content.getvalue()
    return found


def every(found):
    """(part, category, file name, bytes) in order."""
    for part, categories in found.items():
        for category, files in categories.items():
            yield from ((part, category, name, content) for name, content in files.items())


def as_folder(root, found):
    """ImageNet's layout."""
    for part, category, name, content in every(found):
        file = root / part / category / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return root


def as_index(root, found, ending="csv"):
    """An index beside the folder's images: its file."""
    as_folder(root, found)
    rows = [(f"{p}/{c}/{n}", c, p) for p, c, n, _ in every(found)]
    file = root / f"index.{ending}"
    if ending == "parquet":
        import pyarrow as pa
        import pyarrow.parquet

        columns = [list(column) for column in zip(*rows, strict=True)]
        table = pa.table(columns, names=["path", "label", "split"])
        pyarrow.parquet.write_table(table, file)
        return file
    with file.open("w", newline="", encoding="utf-8-sig") as out:
        writer = csv.writer(out, delimiter="\t" if ending == "tsv" else ",")
        writer.writerows([("path", "label", "split"), *rows])
    return file


def write_tar(file, members):
    """A tar file of (name, bytes)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def as_tar(root, found):
    """ImageNet's layout in one tar file: the file."""
    return write_tar(root / "images.tar", [(f"./{p}/{c}/{n}", b) for p, c, n, b in every(found)])


def as_webdataset(root, found, label="cls"):
    """Shards as WebDataset writes them, two of each part, with .cls or .json: the folder."""
    for part, categories in found.items():
        rows = [(c, n, b) for c, files in categories.items() for n, b in files.items()]
        for number, some in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
            members = []
            for category, name, content in some:
                stem, _, ending = name.partition(".")
                said = json.dumps({"label": category}) if label == "json" else category
                members += [(f"{category}{stem}.{ending}", content),
                            (f"{category}{stem}.{label}", said.encode())]  # fmt: skip
            write_tar(root / f"{part}-{number:03}.tar", members)
    return root


def as_stored(root, found):
    """A Hugging Face data set as save_to_disk writes it: the folder."""
    import datasets

    def split(categories):
        rows = [(i, b) for i, files in enumerate(categories.values()) for b in files.values()]
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(categories))}
        )
        return datasets.Dataset.from_dict(
            {"image": [{"bytes": b, "path": None} for _, b in rows], "label": [i for i, _ in rows]},
            features=features,
        )

    made = datasets.DatasetDict({
        {"train": "train", "val": "validation"}[part]: split(some) for part, some in found.items()
    })  # fmt: skip
    made.save_to_disk(str(root / "stored"))
    return root / "stored"


KEPT = {
    "folder": as_folder,
    "csv": as_index,
    "tsv": lambda root, found: as_index(root, found, "tsv"),
    "parquet": lambda root, found: as_index(root, found, "parquet"),
    "tar": as_tar,
    "webdataset cls": as_webdataset,
    "webdataset json": lambda root, found: as_webdataset(root, found, "json"),
    "stored": as_stored,
}
