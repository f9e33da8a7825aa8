"""YAML 1.2's core schema, read and written."""

import math

import pytest
import yaml

from icl_lab import cli
from icl_lab.config import yaml12
from icl_lab.core.errors import InvalidValueError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("08", 8),
        ("0o10", 8),
        ("0x10", 16),
        ("1e5", 1e5),
        ("1e-3", 1e-3),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        ("yes", "yes"),
        ("off", "off"),
        ("'123'", "123"),
        ("True", True),
        ("~", None),
        ("", None),
        ("[1, {a: no}]", [1, {"a": "no"}]),
    ],
)
def test_scalars_are_read_by_the_core_schema(text, value):
    read = yaml12.load(text)
    assert read == value
    assert type(read) is type(value)


def test_what_is_written_reads_back_by_either_version():
    words = ["1e5", "010", "yes", "1:30", "0o7", "1_000", "null", "~", "", "2020-01-01", "x"]
    value = {"words": words, "numbers": [1e-8, 1e22, 3, -0.5, math.inf], "rest": [None, True, False]}
    text = yaml12.dump(value)
    assert yaml12.load(text) == value
    assert yaml.safe_load(text) == value
    assert math.isnan(yaml12.load(yaml12.dump(math.nan)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\n\tb: 2", "line 2, column 1: a tab stands where YAML takes spaces only"),
        ("a: 1\na: 2", "line 2, column 1: the key `a` stands twice"),
        ("a: [1", "did not find expected ',' or ']'"),
        ("!!int abc", "`abc` is no number"),
        ("1" * 5000, "is no number"),
    ],
)
def test_what_is_no_yaml_is_said_with_its_place(text, words):
    with pytest.raises(yaml.YAMLError) as caught:
        yaml12.load(text)
    sentence = yaml12.problem(caught.value)
    assert words in sentence
    assert "\n" not in sentence


def test_settings_of_the_command_line_follow_the_same_schema():
    pairs = ["seed=010", "N=1e5", "word=1:30", "flag=no", "Lam='123'", "empty="]
    assert cli._settings(pairs) == {"seed": 10, "N": 1e5, "word": "1:30", "flag": "no", "Lam": "123", "empty": None}
    with pytest.raises(InvalidValueError, match=r"`--set d` takes a value in YAML syntax; got '\[1': .*did not find"):
        cli._settings(["d=[1"])
