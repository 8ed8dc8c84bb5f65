"""What a bundle says of images and classes against what the model is read with."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from bitkiln.pipeline.bundle import Bundle
from bitkiln.pipeline.errors import VerifyError
from bitkiln.pipeline.model import Preprocessing
from bitkiln.pipeline.verify.belonging import Mismatch, check


@pytest.fixture
def made(board, tmp_path):
    """A bundle with preprocessing and two labels."""
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    manifest = board().bundle.manifest | {
        "preprocessing": asdict(Preprocessing(8, 8, mean=(1.0, 1.0, 1.0), channel_order="BGR")),
        "files": {"labels.txt": {}},
    }
    return Bundle(tmp_path, manifest)


def test_what_agrees_is_not_mentioned(made, model):
    same = replace(
        model, preprocessing=Preprocessing(8, 8, mean=(1.0,) * 3, channel_order="BGR"), labels=("cat", "dog")
    )
    found = check(made, same)
    assert found.same_file and not found.notes and not found.disagreements


def test_options_that_were_not_given_again_are_a_note(made, model):
    found = check(made, replace(model, preprocessing=Preprocessing(8, 8)))
    assert found.notes == ("the bundle was compiled with --channel-order BGR, --mean 1, and is checked as it is",)
    assert not found.disagreements


def test_options_that_were_given_are_held_against_the_bundle(made, model):
    other = replace(model, preprocessing=Preprocessing(8, 8, mean=(1.0, 2.0, 3.0)), labels=("cat", "cow"))
    found = check(made, other, stated=["mean", "labels"])
    assert len(found.disagreements) == 2
    assert "--mean 1, the model as given here with 1,2,3" in found.disagreements[0]
    assert "class 1 is 'dog' in the bundle, 'cow'" in found.disagreements[1]
    assert (
        "2 classes, the labels given here 1"
        in check(made, replace(model, labels=("cat",)), ["labels"]).disagreements[0]
    )


def test_the_same_file_read_with_another_shape(made, model):
    made.manifest["inputs"][0]["shape"] = [1, 9, 9, 3]
    with pytest.raises(Mismatch, match="give the --shape it was compiled with"):
        check(made, model)


def test_a_manifest_that_does_not_name_its_model_is_refused(made, model):
    made.manifest["model"] = {}
    with pytest.raises(VerifyError, match="does not say what it was compiled from"):
        check(made, model)
