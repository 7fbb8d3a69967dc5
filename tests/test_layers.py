"""Configurations that extend each other: in which order they are read, and how often."""

import pathlib

import pytest

from dreamlit.layers import expand_layers, optimizer_class


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """`base`; `b` and `c`, which extend it; `top`, which extends both."""
    (tmp_path / "base.yaml").write_text("a: 1\n")
    (tmp_path / "b.yaml").write_text("extends: base.yaml\na: 2\n")
    (tmp_path / "c.yaml").write_text("extends: [base.yaml]\n")
    (tmp_path / "top.yaml").write_text("extends: [b.yaml, c.yaml]\n")
    return tmp_path


def names(folder: pathlib.Path, *asked: str) -> list[str]:
    args = [word for name in asked for word in ("--config", str(folder / f"{name}.yaml"))]
    return [pathlib.Path(word).stem for word in expand_layers(args) if word != "--config"]


def test_bases_come_before_what_extends_them(folder):
    assert names(folder, "b") == ["base", "b"]


def test_a_base_of_two_configurations_does_not_undo_what_the_first_has_changed(folder):
    assert names(folder, "top") == ["base", "b", "c", "top"]
    assert names(folder, "b", "c") == ["base", "b", "c"]


def test_a_configuration_that_is_asked_for_again_is_read_again(folder):
    assert names(folder, "b", "c", "b") == ["base", "b", "c", "b"]
    assert names(folder, "b", "base") == ["base", "b", "base"]


def test_the_optimizer_class_asked_for_last_gives_the_defaults(tmp_path):
    (tmp_path / "a.yaml").write_text("model: {optimizer: {class_path: torch.optim.SGD}}\n")
    words = ["fit", "--config", str(tmp_path / "a.yaml")]
    assert optimizer_class(["fit"]) == "torch.optim.AdamW"
    assert optimizer_class(words) == "torch.optim.SGD"
    assert optimizer_class([*words, "--model.optimizer", "Adam"]) == "Adam"
    assert optimizer_class([*words, "--model.optimizer.class_path=RAdam"]) == "RAdam"
