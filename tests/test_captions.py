"""Captions: where they come from, how their bytes are read, and which of them a draw uses."""

import collections
import json
import math
import posixpath
import random
import subprocess
import sys
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamlit.datamodules.captions import (
    CaptionStrategy,
    Csv,
    decode_text,
    draw_caption,
    expand,
    read_captions,
    strategy_for,
)
from dreamlit.datamodules.config import CaptionShuffle, CaptionTable, DatasetSpecs, ImageDataset
from dreamlit.errors import ConfigError, DataError


class Files:
    """A source of images and sidecars held in memory."""

    def __init__(self, *images: str, **sidecars: bytes | str) -> None:
        self.images = list(images)
        self.sidecars = {name: text.encode() if isinstance(text, str) else text for name, text in sidecars.items()}

    def names(self) -> list[str]:
        return self.images

    def sidecar(self, name: str, suffix: str) -> bytes | None:
        return self.sidecars.get(posixpath.splitext(name)[0] + suffix)


def spec_of(**keys: Any) -> ImageDataset:
    return ImageDataset(id="dog", instance_data_dir="/photos", **keys)


def texts(content: bytes | str, **keys: Any) -> tuple[str, ...]:
    """The captions of one image whose text file has this content."""
    source = Files("a.jpg", **{"a.txt": content})
    return read_captions(spec_of(caption_strategy="textfile", **keys), source, ["a.jpg"]).variants["a.jpg"]


# -- strategies --------------------------------------------------------------------------------------------------------


def test_instance_prompts_are_variants_of_every_image():
    spec = spec_of(instance_prompt=("a dog", "the dog"))
    found = read_captions(spec, Files("a.jpg", "b/c.png"), ["a.jpg", "b/c.png"])
    assert found.variants == {"a.jpg": ("a dog", "the dog"), "b/c.png": ("a dog", "the dog")}


def test_text_file_lines_are_variants_without_blank_or_repeated_ones():
    assert texts("one\r\n\r\n  two \rone\nthree\n") == ("one", "two", "three")


def test_text_file_belongs_to_the_image_in_its_own_folder():
    source = Files("x/a.JPG", "y/a.jpeg", **{"x/a.txt": "in x", "y/a.txt": "in y"})
    found = read_captions(spec_of(caption_strategy="textfile"), source, source.names())
    assert found.variants == {"x/a.JPG": ("in x",), "y/a.jpeg": ("in y",)}


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("a_red_dog.jpg", "a red dog"),
        ("x/y/two__words .PNG", "two words"),
        ("v1.5 dog.webp", "v1.5 dog"),
        ("un_été.jpg", "un été"),
    ],
)
def test_file_names_become_captions(name, caption):
    assert strategy_for(spec_of(caption_strategy="filename")).variants(Files(name), name) == (caption,)


def test_instance_prompt_is_put_before_each_caption_or_in_place_of_all():
    prompts: dict[str, Any] = {"instance_prompt": ("sks dog", "zwx dog")}
    before = texts("runs\nsits", prepend_instance_prompt=True, **prompts)
    assert before == ("sks dog runs", "zwx dog runs", "sks dog sits", "zwx dog sits")
    only = spec_of(caption_strategy="textfile", only_instance_prompt=True, **prompts)
    assert (
        read_captions(only, Files("no-text.jpg"), ["no-text.jpg"]).variants["no-text.jpg"] == prompts["instance_prompt"]
    )


def test_all_missing_captions_are_in_one_report():
    names = [f"{index}.jpg" for index in range(5)]
    with pytest.raises(DataError) as raised:
        read_captions(spec_of(caption_strategy="textfile"), Files(*names, **{"3.txt": "here"}), names)
    lines = str(raised.value).splitlines()
    assert "'dog'" in lines[0] and [line.split(":")[0].strip(" -") for line in lines[1:]] == [
        "0.jpg",
        "1.jpg",
        "2.jpg",
        "4.jpg",
    ]
    assert "0.txt" in lines[1]


@pytest.mark.parametrize("content", ["", " \n\t\n", "\ufeff"])
def test_empty_captions_follow_the_policy(content):
    source = Files("a.jpg", "b.jpg", **{"a.txt": content, "b.txt": "b"})
    found = {
        policy: read_captions(spec_of(caption_strategy="textfile", empty_caption=policy), source, source.names())
        for policy in ("allow", "skip")
    }
    assert found["allow"].variants == {"a.jpg": ("",), "b.jpg": ("b",)} and not found["allow"].skipped
    assert found["skip"].variants == {"b.jpg": ("b",)} and list(found["skip"].skipped) == ["a.jpg"]
    with pytest.raises(DataError, match=r"a\.jpg: its caption is empty"):
        read_captions(spec_of(caption_strategy="textfile"), source, source.names())


# -- a class of the user's own -----------------------------------------------------------------------------------------

OWN = """
from dreamlit.datamodules.captions import CaptionStrategy
class {name}(CaptionStrategy):
    def variants(self, source, name):
        return (f"{{self.spec.id}}: {{name}}",)
class Unrelated: pass
"""


def test_own_strategy_works_by_dotted_path_and_by_short_name(tmp_path, monkeypatch):
    (tmp_path / "my_captions.py").write_text(OWN.format(name="MyCaptions"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(CaptionStrategy, "registry", dict(CaptionStrategy.registry))
    entry = {"id": "dog", "instance_data_dir": "p", "caption_strategy": "my_captions.MyCaptions"}
    spec = DatasetSpecs([entry]).images[0]
    assert read_captions(spec, Files("a.jpg"), ["a.jpg"]).variants == {"a.jpg": ("dog: a.jpg",)}
    short = DatasetSpecs([entry | {"caption_strategy": "MyCaptions"}]).images[0]
    assert strategy_for(short).variants(Files("a.jpg"), "a.jpg") == ("dog: a.jpg",)


@pytest.mark.parametrize(
    ("path", "fragment"),
    [
        ("no_such_module.Captions", "cannot be imported"),
        ("other_captions.OtherCaption", "did you mean 'OtherCaptions'"),
        ("other_captions.Unrelated", "no subclass"),
    ],
)
def test_own_strategy_that_cannot_be_used_is_refused(path, fragment, tmp_path, monkeypatch):
    (tmp_path / "other_captions.py").write_text(OWN.format(name="OtherCaptions"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(CaptionStrategy, "registry", dict(CaptionStrategy.registry))
    with pytest.raises(ConfigError, match=fragment):
        strategy_for(spec_of(caption_strategy=path))


@pytest.mark.parametrize("given", ["'a dog'", "('a dog', None)"])
@pytest.mark.parametrize("keys", [{}, {"prepend_instance_prompt": True, "instance_prompt": "sks"}])
def test_own_strategy_that_gives_no_tuple_of_texts_is_refused(given, keys, tmp_path, monkeypatch):
    text = OWN.format(name="TextCaptions").replace('(f"{self.spec.id}: {name}",)', given)
    (tmp_path / "text_captions.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "text_captions", raising=False)
    monkeypatch.setattr(CaptionStrategy, "registry", dict(CaptionStrategy.registry))
    spec = DatasetSpecs(
        [{"id": "dog", "instance_data_dir": "p", "caption_strategy": "text_captions.TextCaptions", **keys}]
    ).images[0]
    with pytest.raises(DataError, match=r"TextCaptions.variants gave a .* a tuple of texts"):
        read_captions(spec, Files("a.jpg"), ["a.jpg"])


def test_a_class_cannot_take_the_name_of_another():
    with pytest.raises(ConfigError, match="'textfile'"):
        type("TextFile", (CaptionStrategy,), {"variants": lambda *_: ("",)})


# -- bytes -------------------------------------------------------------------------------------------------------------

ACCENTS = "crème brûlée, 犬, “smart”, 🐕"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_survives_every_marked_encoding(encoding):
    assert decode_text(ACCENTS.encode(encoding), "a.txt") == (ACCENTS, None)


@pytest.mark.parametrize("order", ["le", "be"])
def test_both_byte_orders_of_utf16_are_read(order):
    assert decode_text(("\ufeff" + ACCENTS).encode(f"utf-16-{order}"), "a.txt") == (ACCENTS, None)


def test_composed_and_decomposed_accents_are_kept_as_written():
    for form in ("NFC", "NFD"):
        text = unicodedata.normalize(form, "un été")
        assert texts(text) == (text,)


def test_cp1252_is_read_with_a_warning_that_names_file_and_byte():
    source = Files("a.jpg", **{"a.txt": b"the dog\x92s ball"})
    found = read_captions(spec_of(caption_strategy="textfile"), source, ["a.jpg"])
    assert found.variants["a.jpg"] == ("the dog’s ball",)
    assert len(found.warnings) == 1 and "a.txt" in found.warnings[0] and "byte 7 (0x92)" in found.warnings[0]


@pytest.mark.parametrize("data", [b"a\x00b\x00", b"\xff\xfea", b"caf\x81\xe9", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_bytes_that_are_no_text_are_refused_with_file_and_place(data):
    with pytest.raises(DataError, match=r"a\.txt: byte \d+ .*UTF-8"):
        decode_text(data, "a.txt")


@given(st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"])))
def test_any_utf8_text_is_read_as_it_is(text):
    assert decode_text(text.encode(), "a.txt") == (text, None)


def test_captions_do_not_depend_on_the_locale(tmp_path):
    (tmp_path / "t.csv").write_text(f'filename,caption\nété.jpg,"{ACCENTS}"\n', encoding="utf-8")
    code = (
        "from dreamlit.datamodules.config import DatasetSpecs\n"
        "from dreamlit.datamodules.captions import strategy_for\n"
        "import sys\n"
        "spec = DatasetSpecs.parse(sys.argv[1]).images[0]\n"
        "class S:\n"
        "    def names(self): return ['\\u00e9t\\u00e9.jpg']\n"
        "print(ascii((spec.id, strategy_for(spec).variants(S(), '\\u00e9t\\u00e9.jpg'))))\n"
    )
    entry = {"id": "café", "instance_data_dir": "p", "caption_strategy": "csv", "csv": {"path": "t.csv"}}
    (tmp_path / "list.json").write_text(json.dumps([entry], ensure_ascii=False), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "list.json")],
        env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == ascii(("café", (ACCENTS,))), done.stderr


# -- tables ------------------------------------------------------------------------------------------------------------

ROWS = [("x/a.jpg", "one"), ("b.png", "two, with a comma"), ("c", 'three "quoted"'), ("x/a.jpg", "one again")]
IMAGES = ("x/a.jpg", "x/b.png", "y/c.webp")
CAPTIONS = {"x/a.jpg": ("one", "one again"), "x/b.png": ("two, with a comma",), "y/c.webp": ('three "quoted"',)}


def table_of(kind: str, folder, rows: list[tuple[Any, Any]], **columns: str) -> ImageDataset:
    """A dataset whose captions are these rows, written as a table of this kind."""
    path = folder / f"table.{kind}"
    name, caption = columns.get("filename_column", "filename"), columns.get("caption_column", "caption")
    if kind == "csv":
        lines = [[name, caption], *rows]
        quoted = [",".join('"{}"'.format(str(cell).replace('"', '""')) for cell in line) for line in lines]
        path.write_text("\ufeff" + "\r\n".join(quoted), encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("\n\n".join(json.dumps({name: key, caption: text}) for key, text in rows), encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({name: [row[0] for row in rows], caption: [row[1] for row in rows]}), path)
    return spec_of(caption_strategy=kind, **{kind: CaptionTable(path=str(path), **columns)})


KINDS = pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])


@KINDS
def test_tables_give_captions_by_path_name_or_stem(kind, tmp_path):
    source = Files(*IMAGES)
    for columns in ({}, {"filename_column": "file_name", "caption_column": "text"}):
        assert read_captions(table_of(kind, tmp_path, ROWS, **columns), source, IMAGES).variants == CAPTIONS


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_list_in_a_cell_gives_variants(kind, tmp_path):
    spec = table_of(kind, tmp_path, [("a.jpg", ["one", "two"])])
    assert strategy_for(spec).variants(Files("a.jpg"), "a.jpg") == ("one", "two")


@KINDS
def test_names_in_either_accent_form_and_with_backslashes_match(kind, tmp_path):
    disk = unicodedata.normalize("NFD", "été/café.jpg")
    spec = table_of(kind, tmp_path, [(unicodedata.normalize("NFC", "été\\café.jpg"), "found")])
    assert strategy_for(spec).variants(Files(disk), disk) == ("found",)


@KINDS
def test_rows_and_images_that_fit_several_are_refused(kind, tmp_path):
    source = Files("x/a.jpg", "y/a.jpg", "b.jpg")
    rows = [("a.jpg", "which?"), ("p/b.png", "one"), ("q/b.png", "other")]
    with pytest.raises(DataError) as raised:
        read_captions(table_of(kind, tmp_path, rows), source, source.names())
    message = str(raised.value)
    assert "x/a.jpg: the row 'a.jpg' also fits y/a.jpg" in message
    assert "b.jpg" in message and "p/b.png, q/b.png" in message


def test_an_exact_row_wins_over_a_loose_one(tmp_path):
    spec = table_of("csv", tmp_path, [("a.jpg", "top"), ("x/a.jpg", "in x")])
    source = Files("a.jpg", "x/a.jpg")
    assert read_captions(spec, source, source.names()).variants == {"a.jpg": ("top",), "x/a.jpg": ("in x",)}


@KINDS
def test_images_without_a_row_are_in_one_report(kind, tmp_path):
    with pytest.raises(DataError) as raised:
        read_captions(table_of(kind, tmp_path, ROWS), Files("p.jpg", "q.jpg"), ["p.jpg", "q.jpg"])
    assert "p.jpg" in str(raised.value) and "q.jpg" in str(raised.value) and "no row" in str(raised.value)


@KINDS
def test_a_missing_column_is_named_with_the_nearest_one(kind, tmp_path):
    spec = table_of(kind, tmp_path, ROWS, caption_column="captoin")
    wrong = spec_of(caption_strategy=kind, **{kind: CaptionTable(path=getattr(spec, kind).path)})
    with pytest.raises(DataError, match=r"no .*'caption'; did you mean 'captoin'") as raised:
        read_captions(wrong, Files(*IMAGES), IMAGES)
    assert len(str(raised.value).splitlines()) == 2  # once, not for each image


@pytest.mark.parametrize(
    ("kind", "content", "fragment"),
    [
        ("csv", "filename,caption\na.jpg\n", "line 2"),
        ("csv", "filename,caption\na.jpg,one,two\n", "line 2"),
        ("csv", 'filename,caption\na.jpg,"open\n', "after line 1"),
        ("csv", "", "no column 'filename'"),
        ("jsonl", '{"filename": "a.jpg", "caption": "x"}\n{"filename": ', "line 2 is not JSON"),
        ("jsonl", "[1]", "line 1"),
        ("jsonl", '{"filename": "a.jpg", "caption": 3}', "a.jpg is 3"),
        ("parquet", "no parquet", "cannot be read as parquet"),
    ],
)
def test_a_broken_table_is_refused_with_its_name_and_line(kind, content, fragment, tmp_path):
    path = tmp_path / f"broken.{kind}"
    path.write_text(content)
    spec = spec_of(caption_strategy=kind, **{kind: CaptionTable(path=str(path))})
    with pytest.raises(DataError) as raised:
        read_captions(spec, Files("a.jpg", "b.jpg"), ["a.jpg", "b.jpg"])
    assert path.name in str(raised.value) and fragment in str(raised.value)
    assert len(str(raised.value).splitlines()) == 2  # once, not for each image


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    spec = spec_of(caption_strategy="parquet", parquet=CaptionTable(path="t.parquet"))
    with pytest.raises(ConfigError, match=r"dreamlit\[parquet\]"):
        read_captions(spec, Files("a.jpg"), ["a.jpg"])


def test_tables_are_separated_by_tabs_in_tsv_files(tmp_path):
    (tmp_path / "t.tsv").write_text("filename\tcaption\na.jpg\tone, two\n")
    table = Csv(spec_of(csv=CaptionTable(path=str(tmp_path / "t.tsv"))))
    assert table.variants(Files("a.jpg"), "a.jpg") == ("one, two",)


# -- draws -------------------------------------------------------------------------------------------------------------

words = st.text("abcde ", min_size=0, max_size=4)
captions = st.lists(words, min_size=1, max_size=6).map(", ".join)
specs = st.builds(
    spec_of,
    instance_prompt=st.sampled_from([("sks, dog",), ("x", "x y")]),
    prepend_instance_prompt=st.booleans(),
    caption_dropout=st.sampled_from([0.0, 0.3, 1.0]),
    caption_shuffle=st.builds(
        CaptionShuffle,
        enable=st.booleans(),
        keep_tokens=st.integers(0, 3),
        count=st.integers(1, 8),
        separator=st.sampled_from([",", " ", "|"]),
    ),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(captions, min_size=1, max_size=3), specs, st.integers(0, 5), st.integers(0, 500))
def test_every_draw_is_in_the_expanded_set_and_repeats_exactly(variants, spec, seed, visit):
    state = random.getstate()
    everything = expand(variants, spec, seed)
    drawn = draw_caption(variants, spec, seed, "dog/a.jpg", visit)
    assert drawn in everything and len(set(everything)) == len(everything)
    assert drawn == draw_caption(list(variants), spec, seed, "dog/a.jpg", visit)
    assert random.getstate() == state


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.text("abcdefgh", min_size=1, max_size=3), min_size=1, max_size=8), st.integers(0, 4), st.integers(1, 12)
)
def test_shuffling_keeps_the_head_and_every_tag(tags, keep, count):
    spec = spec_of(caption_shuffle=CaptionShuffle(enable=True, keep_tokens=keep, count=count))
    orders = expand([", ".join(tags)], spec, 0)
    assert orders[0] == ", ".join(tags) and len(orders) <= count
    for order in (order.split(", ") for order in orders):
        assert order[:keep] == tags[:keep] and collections.Counter(order) == collections.Counter(tags)


@pytest.mark.parametrize(("n_tags", "count"), [(2, 1), (3, 2), (4, 6), (4, 20), (6, 20), (10, 64)])
def test_as_many_distinct_orders_as_asked_for_where_there_are_enough(n_tags, count):
    spec = spec_of(caption_shuffle=CaptionShuffle(enable=True, keep_tokens=1, count=count))
    found = expand([", ".join(f"tag{index}" for index in range(n_tags))], spec, 3)
    assert len(found) == min(count, math.factorial(n_tags - 1))


def test_a_prepended_prompt_with_commas_is_not_shuffled():
    keys: dict[str, Any] = {"instance_prompt": ("sks, the dog",), "prepend_instance_prompt": True}
    spec = spec_of(caption_shuffle=CaptionShuffle(enable=True, keep_tokens=0, count=24), **keys)
    found = expand(["sks, the dog a, b, c"], spec, 0)
    assert len(found) == 6 and all(caption.startswith("sks, the dog ") for caption in found)
    assert {tuple(sorted(caption[len("sks, the dog ") :].split(", "))) for caption in found} == {("a", "b", "c")}


def test_images_that_share_a_caption_share_its_orders_and_seeds_differ():
    spec = spec_of(caption_shuffle=CaptionShuffle(enable=True, count=4))
    caption = ", ".join("abcdefgh")
    drawn = [{draw_caption([caption], spec, 0, name, visit) for visit in range(4)} for name in ("a", "b")]
    assert drawn[0] == drawn[1] == set(expand([caption], spec, 0)) and len(drawn[0]) == 4
    assert set(expand([caption], spec, 1)) != drawn[0]


def test_each_round_of_visits_uses_every_variant_once_in_changing_order():
    variants = ("a", "b", "c", "d")
    drawn = [draw_caption(variants, spec_of(), 0, "x", visit) for visit in range(400)]
    rounds = [tuple(drawn[start : start + 4]) for start in range(0, 400, 4)]
    assert all(sorted(turn) == list(variants) for turn in rounds)
    assert len(set(rounds)) > 12  # of 24 orders


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
def test_dropout_rate_is_within_three_sigma(probability):
    n = 20_000
    spec = spec_of(caption_dropout=probability)
    dropped = sum(draw_caption(("a",), spec, 7, f"image{visit % 10}", visit // 10) == "" for visit in range(n))
    assert abs(dropped - n * probability) < 3 * math.sqrt(n * probability * (1 - probability))


def test_dropout_leaves_the_other_draws_as_they_were():
    variants = ("a", "b", "c")
    plain = [draw_caption(variants, spec_of(), 1, "x", visit) for visit in range(200)]
    dropped = [draw_caption(variants, spec_of(caption_dropout=0.4), 1, "x", visit) for visit in range(200)]
    assert {found for found, kept in zip(dropped, plain, strict=True) if found != kept} == {""}
    assert expand(variants, spec_of(caption_dropout=0.4), 1)[-1] == ""
