"""Images kept in every way: the same are chosen, hashed and decoded; what is hostile is refused."""

import csv
import io
import os
import shutil
import tarfile
import warnings

import numpy as np
import pytest
from pictures import COUNTS, KEPT, NAMES, as_folder, as_index, as_tar, every, pictures, write_tar
from PIL import Image

from circuitcore.errors import InputError, UsageError
from circuitcore.inputs.decoding import decode_all
from circuitcore.inputs.image_files import Folder, choose_images
from circuitcore.inputs.images import offsets
from circuitcore.inputs.images.opening import open_images
from circuitcore.inputs.pixels import Preprocessing

PLAIN = Preprocessing(None, None, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(autouse=True)
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("CIRCUITCORE_CACHE", str(tmp_path / "cache"))


def chosen(source, counts=COUNTS):
    """(split, category, sha256) of every image of a run, and all pixels."""
    found = choose_images(source, list(enumerate(source.categories())), counts)
    pixels = decode_all(source, found, PLAIN)
    return [(i.split, i.category, i.sha256) for i in found], pixels.tobytes()


@pytest.mark.parametrize("kind", KEPT)
def test_the_same_images_are_chosen_however_they_are_kept(kind, tmp_path):
    found = pictures()
    want = chosen(Folder(as_folder(tmp_path / "plain", found)))
    kept = KEPT[kind](tmp_path / "kept", found)
    for _ in range(2):  # a second reading gives the same
        source = open_images(str(kept), COUNTS[0])
        assert source.categories() == list(NAMES)
        assert source.place == str(kept.resolve())
        assert chosen(source) == want
    with pytest.raises(InputError, match="4 for extraction"):
        choose_images(source, list(enumerate(NAMES)), (2, 4, 3))


@pytest.mark.parametrize("pattern", ["images-{00..01}.tar", "images-*.tar"])
def test_one_data_set_alone_is_split_in_its_order(tmp_path, pattern):
    val = pictures()["val"]
    for number, name in enumerate(NAMES):
        members = [(f"{name}/{file}", content) for file, content in val[name].items()]
        write_tar(tmp_path / f"images-{number:02}.tar", members)
    as_folder(tmp_path, {"plain": val})
    with (tmp_path / "index.csv").open("w", newline="") as out:
        rows = [(f"plain/{c}/{n}", c) for _, c, n, _ in every({"": val})]
        csv.writer(out).writerows([("file_name", "class"), *rows])
    kept = [open_images(str(tmp_path / name), 1) for name in (pattern, "plain", "index.csv")]
    want = chosen(kept[0], (1, 3, 2))
    assert [chosen(each, (1, 3, 2)) for each in kept] == [want] * 3
    assert all("the first images score" in each.notes()[0] for each in kept)
    for each in kept:
        first = [each.listed("train", "cat"), each.listed("val", "cat")]
        assert [len(names) for names in first] == [1, 5] and first[0][0].endswith("0.png")


def test_splits_have_several_names_and_test_stands_in_for_val(tmp_path):
    found = pictures()
    renamed = {"Training": found["train"], "test": found["val"]}
    source = open_images(str(as_index(tmp_path, renamed)), 2)
    assert chosen(source) == chosen(Folder(as_folder(tmp_path / "plain", found)))
    assert source.notes() == ["there is no val split: test images extract and test"]
    more = {**found, "test": pictures(1)["val"]}
    source = open_images(str(as_index(tmp_path / "more", more)), 2)
    assert source.notes() == ["12 images of the test split, passed over"]
    with pytest.raises(InputError, match="the split 'holdout' is none of train, val and test"):
        open_images(str(as_index(tmp_path / "odd", {"train": {}, "holdout": found["val"]})), 2)
    with pytest.raises(InputError, match="no images of the train split"):
        open_images(str(as_index(tmp_path / "half", {"val": found["val"]})), 2)


INDEXES = {
    "climbs": ("path,label\n../up.png,cat\n", "line 2: '../up.png' leaves the index's folder"),
    "climbs within": ("path,label\na/../../up.png,cat\n", "leaves the index's folder"),
    "address": ("path,label\nhttp://x/1.png,cat\n", "is an address; nothing is fetched"),
    "no label": ("path,label\n1.png,\n", "line 2: no label"),
    "no path": ("path,label\n,cat\n", "line 2: no path"),
    "short": ("path,label\n1.png\n", "line 2: 1 cells, too few"),
    "no heading": ("1.png,cat\n2.png,cat\n", "columns path and label are needed"),
    "empty": ("", "columns path and label are needed"),
    "heading alone": ("path,label\n", "no images"),
    "quote left open": ('path,label\n"1.png,cat\n', "line"),
    "twice": ("path,label\n1.png,cat\n1.png,dog\n", "1.png stands there twice"),
    "some splits": ("path,label,split\n1.png,cat,train\n2.png,cat,\n", "2.png: no split"),
}


@pytest.mark.parametrize("what", INDEXES)
def test_an_index_that_is_refused(what, tmp_path):
    text, said = INDEXES[what]
    (tmp_path / "index.csv").write_text(text)
    with pytest.raises(InputError, match="index.csv") as error:
        open_images(str(tmp_path / "index.csv"), 1)
    assert said in str(error.value)


def test_an_index_may_name_whole_paths_and_links_but_opens_plain_files_alone(tmp_path):
    as_folder(tmp_path / "far", pictures())
    real = tmp_path / "far" / "val" / "cat" / "0.png"
    (tmp_path / "link.png").symlink_to(real)
    (tmp_path / "gone.png").symlink_to(tmp_path / "none.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    names = [str(real), "link.png", "gone.png", "pipe.png", "folder.png"]
    (tmp_path / "index.csv").write_text("path,label\n" + "".join(f"{n},cat\n" for n in names))
    source = open_images(str(tmp_path / "index.csv"), 1)
    assert source.pixels(names[0], PLAIN).tobytes() == source.pixels("link.png", PLAIN).tobytes()
    assert source.sha256(names[0]) == source.sha256("link.png")
    for name, why in (("gone.png", "No such file"), ("pipe.png", "no plain file"),
                      ("folder.png", "directory")):  # fmt: skip
        for use in (source.sha256, lambda n: source.pixels(n, PLAIN)):
            with pytest.raises(InputError, match=f"index.csv: {name}: cannot be read: .*{why}"):
                use(name)


def test_parquet_labels_are_names_or_whole_numbers(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    def written(labels):
        table = pa.table({"image": ["1.png", "2.png"], "label": labels})
        pyarrow.parquet.write_table(table, tmp_path / "index.parquet")
        return open_images(str(tmp_path / "index.parquet"), 1)

    assert written([7, 3]).categories() == ["3", "7"]
    with pytest.raises(InputError, match="row 1: float where text is needed"):
        written([1.5, 2.0])
    with pytest.raises(InputError, match="line 2: no label"):
        written(["cat", None])
    (tmp_path / "index.parquet").write_bytes(b"PAR1 but not much more")
    with pytest.raises(InputError, match="cannot be read"):
        open_images(str(tmp_path / "index.parquet"), 1)


def hostile(root, kind):
    """A tar file of images with one member that is no image in it."""
    found = pictures()
    file = root / "images.tar"
    good = [(f"{p}/{c}/{n}", b) for p, c, n, b in every(found)]
    names = {"climbs": "train/../../x.png", "whole": "/etc/x.png", "backslash": "..\\x.png"}
    if kind in names:
        return write_tar(file, [*good, (names[kind], b"")])
    if kind == "twice":
        return write_tar(file, [*good, good[0]])
    write_tar(file, good)
    content = file.read_bytes()
    if kind == "cut in a member":
        file.write_bytes(content[: len(content) // 2 + 100])
    elif kind == "cut between members":
        with tarfile.open(file) as tar:
            tar.next()
            file.write_bytes(content[: tar.next().offset])
    elif kind == "damaged header":
        with tarfile.open(file) as tar:
            at = tar.getmembers()[5].offset
        file.write_bytes(content[: at + 20] + b"garbage" + content[at + 27 :])
    elif kind == "compressed":
        import gzip

        file.write_bytes(gzip.compress(content))
    elif kind == "text":
        file.write_text("no tar file" * 200)
    elif kind == "empty":
        file.write_bytes(b"")
    return file


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("climbs", "is a path out of it; refused"),
        ("whole", "is a path out of it; refused"),
        ("backslash", "is a path out of it; refused"),
        ("twice", "'train/cat/0.png' stands there twice"),
        ("cut in a member", "no whole tar file: unexpected end of data"),
        ("cut between members", "cut off or damaged after 1 members"),
        ("damaged header", "cut off or damaged after 5 members"),
        ("compressed", "unpack it once"),
        ("text", "no whole tar file"),
        ("empty", "no whole tar file"),
    ],
)
def test_a_tar_file_that_is_refused(kind, said, tmp_path):
    with pytest.raises(InputError, match="images.tar") as error:
        open_images(str(hostile(tmp_path, kind)), 1)
    assert said in str(error.value)


def test_links_and_devices_in_a_tar_file_are_passed_over(tmp_path):
    file = as_tar(tmp_path, pictures())
    (tmp_path / "secret.png").write_bytes(b"secret")
    with tarfile.open(file, "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"train/cat/{kind.decode()}.png")
            info.type, info.linkname = kind, str(tmp_path / "secret.png")
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("train/readme.txt"), io.BytesIO())
    source = open_images(str(file), 2)
    assert source.notes() == ["files that are no images, passed over: 1 .txt, 4 links or devices"]
    assert len(source.listed("train", "cat")) == 3


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_kind_of_tar_file_are_read(form, tmp_path):
    deep = "train/" + "/".join(["folder" * 4] * 5) + "/cat/" + "0" * 60 + ".png"
    with tarfile.open(tmp_path / "long.tar", "w", format=form) as tar:
        for name in (deep, "val/cat/\u00e9.png"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    source = open_images(str(tmp_path / "long.tar"), 1)
    assert source.listed("train", "cat") == [f"long.tar:{deep}"]
    assert source.read(f"long.tar:{deep}") == source.read("long.tar:val/cat/\u00e9.png") == b"abc"


def test_the_index_of_a_large_tar_file_is_made_once_and_held_against_the_file(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(offsets, "WORTH_KEEPING", 1)
    file = as_tar(tmp_path, pictures())
    want = chosen(open_images(str(file), 2))
    assert len(list((tmp_path / "cache" / "tars").iterdir())) == 1
    scanned = offsets.scanned
    monkeypatch.setattr(offsets, "scanned", lambda file: pytest.fail("read again"))
    assert chosen(open_images(str(file), 2)) == want
    kept = open_images(str(file), 2)
    monkeypatch.setattr(offsets, "scanned", scanned)
    when = file.stat()
    shutil.move(file, tmp_path / "old.tar")
    as_tar(tmp_path, {p: dict(reversed(c.items())) for p, c in pictures().items()})
    os.utime(file, ns=(when.st_atime_ns, when.st_mtime_ns + 1))
    assert chosen(open_images(str(file), 2)) == want  # read anew, in another order
    file.write_bytes(b"\1" * when.st_size)
    with pytest.raises(InputError, match="was changed while it was in use"):
        kept.sha256(kept.listed("val", "cat")[0])
    for broken in (tmp_path / "cache" / "tars").iterdir():
        broken.write_bytes(b"no parquet")
    shutil.move(tmp_path / "old.tar", file)
    assert chosen(open_images(str(file), 2)) == want


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("a.png", b"x")], "a.png has no label"),
        ([("train/a.png", b"x")], "train/a.png has no label"),
        ([("a.png", b"x"), ("a.cls", b"")], "a.cls: '' is no label"),
        ([("a.png", b"x"), ("a.cls", b"\xff")], "a.cls: no label"),
        ([("a.png", b"x"), ("a.cls", b"c\x1b[2J")], "is no label"),
        ([("a.png", b"x"), ("a.cls", b"c" * 2_000_000)], "2,000,000 bytes are no label"),
        ([("a.png", b"x"), ("a.json", b"{")], "a.json: no label"),
        ([("a.png", b"x"), ("a.json", b'{"caption": "c"}')], "no label, cls or class in it"),
        ([("a.png", b"x"), ("a.json", b'{"label": 1.5}')], "neither a name nor a whole number"),
        ([("a.png", b"x"), ("a.json", b"[" * 100_000)], "a.json: no label"),
        ([("a.txt", b"x")], "no images"),
    ],
)
def test_labels_of_a_tar_file_that_are_refused(members, said, tmp_path):
    write_tar(tmp_path / "set.tar", members)
    with pytest.raises(InputError, match="set.tar") as error:
        open_images(str(tmp_path / "set.tar"), 1)
    assert said in str(error.value)


def test_a_number_beside_an_image_is_a_label_and_a_category_may_be_called_train(tmp_path):
    write_tar(tmp_path / "n.tar", [("a.png", b"x"), ("a.cls", b"7\n"), ("b.png", b"x"),
                                   ("b.json", b'{"cls": 12}')])  # fmt: skip
    assert open_images(str(tmp_path / "n.tar"), 1).categories() == ["12", "7"]
    write_tar(tmp_path / "t.tar", [("train/train/1.png", b"x"), ("val/train/1.png", b"x")])
    assert open_images(str(tmp_path / "t.tar"), 1).categories() == ["train"]


def test_shards_that_are_not_there(tmp_path):
    write_tar(tmp_path / "s-0.tar", [("cat/1.png", b"x")])
    for pattern in ("s-{0..1}.tar", "t-*.tar", "t.tar", "s-{0..99999999}.tar", "t.csv", "t"):
        with pytest.raises(InputError, match="cannot be read|no such|no range"):
            open_images(str(tmp_path / pattern), 1)
    with pytest.raises(InputError, match="compressed: unpack it once"):
        open_images(str(tmp_path / "s.tar.gz"), 1)
    (tmp_path / "notes.doc").write_text("")
    with pytest.raises(InputError, match="neither a folder, an index"):
        open_images(str(tmp_path / "notes.doc"), 1)


def test_a_stored_data_set_that_is_damaged_or_cannot_be_read(tmp_path, monkeypatch):
    import sys

    kept = KEPT["stored"](tmp_path, pictures())
    shutil.copytree(kept, tmp_path / "cut")
    for file in (tmp_path / "cut").rglob("*.arrow"):
        file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(InputError, match="cut: no whole data set"):
        open_images(str(tmp_path / "cut"), 2)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="pip install datasets"):
        open_images(str(kept), 2)


def test_rotated_images_are_the_same_from_a_stored_data_set(tmp_path):
    """The library would turn them; the policy is one for all sources."""
    found = pictures()
    for files in found["val"].values():
        for name in files:
            turned = Image.Exif()
            turned[0x0112] = 3
            content = io.BytesIO()
            Image.open(io.BytesIO(files[name])).save(content, "JPEG", exif=turned)
            files[name] = content.getvalue()
    want = chosen(Folder(as_folder(tmp_path / "plain", found)))
    assert chosen(open_images(str(KEPT["stored"](tmp_path, found)), 2)) == want


def test_hidden_files_and_what_is_no_image_are_passed_over_and_counted(tmp_path):
    found = pictures()
    root = as_folder(tmp_path, found)
    want = chosen(Folder(root))
    for part in ("train", "val"):
        (root / part / ".ipynb_checkpoints").mkdir()
        (root / part / ".ipynb_checkpoints" / "0.png").write_bytes(b"")
        (root / part / "cat" / "._0.png").write_bytes(b"")
        (root / part / "cat" / "notes.TXT").write_bytes(b"")
        (root / part / "cat" / "thumbs").mkdir()
    (root / "val" / "cat" / "LICENSE").write_bytes(b"")
    assert chosen(Folder(root)) == want
    assert Folder(root).notes() == [
        "files that are no images, passed over: 1 without an ending, 2 .txt, 2 folders"
    ]
    assert Folder(as_folder(tmp_path / "clean", found)).notes() == []


@pytest.mark.parametrize("ending", ["jfif", "jpe", "avif", "jp2", "JPEG", "tga"])
def test_what_pillow_opens_is_an_image(ending, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / part / "cat" / f"1.{ending}")
    source = Folder(tmp_path)
    assert source.listed("val", "cat") == [f"val/cat/1.{ending}"]
    assert source.pixels(f"val/cat/1.{ending}", PLAIN).shape == (3, 5, 6)


LAYOUTS = {
    "flat val": (["train/cat/1.png", "val/1.png"], "val/ holds 1 images"),
    "one too deep": (["train/a/cat/1.png", "val/a/cat/1.png"], "one folder too deep"),
    "no val": (["train/cat/1.png", "validation/cat/1.png"], "has no val/ folder, only train/"),
    "empty": ([], "has no train/ folder, it is empty"),
    "images alone": (["1.png", "2.png"], "has no train/ folder, only 1.png, 2.png"),
    "alone, too deep": (["a/cat/1.png", "b/cat/1.png"], "has no train/ folder, only a/, b/"),
}


@pytest.mark.parametrize("what", LAYOUTS)
def test_another_layout_is_named_and_the_expected_one_is_shown(what, tmp_path):
    files, said = LAYOUTS[what]
    root = tmp_path / "{odd}"  # braces of a name are no blanks to fill in
    root.mkdir()
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    with pytest.raises(InputError) as error:
        open_images(str(root), 1).categories()
    assert said in str(error.value)
    assert f"  {root}/\n    train/\n      <category>/*.jpg" in str(error.value)


def test_names_that_are_not_utf_8_are_refused_by_name(tmp_path):
    found = pictures()
    as_folder(tmp_path, found)
    first = os.fsencode(tmp_path / "val" / "cat") + b"/0\xe9.png"
    shutil.move(tmp_path / "val" / "cat" / "0.png", first)
    with pytest.raises(InputError, match=r"'val/cat/0\\udce9.png' is not UTF-8: rename it"):
        chosen(Folder(tmp_path))
    for part in ("train", "val"):
        os.rename(tmp_path / part / "dog", os.fsencode(tmp_path / part) + b"/d\xf6g")
    with pytest.raises(InputError, match=r"'d\\udcf6g' is not UTF-8") as error:
        chosen(Folder(tmp_path))
    str(error.value).encode()
    odd = [(f"{p}/{c}/{n}", b) for p, c, n, b in every(found)]
    odd[3] = (os.fsdecode(b"train/dog/\xe9.png"), odd[3][1])
    source = open_images(str(write_tar(tmp_path / "odd.tar", odd)), 2)
    with pytest.raises(InputError, match="is not UTF-8"):
        chosen(source)


@pytest.mark.parametrize("column", ["path", "label", "split"])
def test_an_index_whose_text_is_not_utf_8_is_refused(column, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    cells = {name: pa.array([name, name]) for name in ("path", "label", "split")}
    buffers = pa.array([b"\xe9 ", b"a"]).buffers()
    cells[column] = pa.Array.from_buffers(pa.string(), 2, buffers)
    parquet.write_table(pa.table(cells), tmp_path / "index.parquet")
    with pytest.raises(InputError, match="index.parquet: cannot be read: .*utf-8"):
        open_images(str(tmp_path / "index.parquet"), 2)


def test_dates_beyond_the_calendar_are_no_labels(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    far = pa.array([2**62], pa.int64()).cast(pa.timestamp("us"))
    parquet.write_table(pa.table({"path": ["a"], "label": far}), tmp_path / "index.parquet")
    with pytest.raises(InputError, match="index.parquet"):
        open_images(str(tmp_path / "index.parquet"), 2)


def test_reading_in_threads_gives_the_same(tmp_path):
    found = pictures()
    source = open_images(str(as_tar(tmp_path, found)), 2)
    images = choose_images(source, list(enumerate(NAMES)), COUNTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len({decode_all(source, images, PLAIN).tobytes() for _ in range(5)}) == 1
