"""darknet files that cannot be used: one line that names the file, the layer and the line; never a crash."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from bitkiln.pipeline.errors import ModelError, UnsupportedLayer
from bitkiln.pipeline.importers import ImportOptions, load_model
from tests.pipeline.importers.darknet_files import FIRST, Darknet

CONV = "[convolutional]\nfilters=2\nsize=1\nactivation=linear\n"
ARRAYS = [np.zeros(2), np.ones((2, 3))]


@pytest.fixture
def darknet(tmp_path: Path) -> Darknet:
    return Darknet(tmp_path)


def refusal(path: Path, options: ImportOptions | None = None, kind: type[ModelError] = ModelError) -> str:
    """The message, which is one line that names a file."""
    with pytest.raises(kind) as raised:
        load_model(path, options)
    text = str(raised.value)
    assert "\n" not in text and str(path.parent) in text and len(text) < 500
    return text


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (
            "[convolutional]\nfilters=many",
            "layer 0 [convolutional] (line 6): line 7: filters='many' is no whole number",
        ),
        ("[convolutional]\nfilters=1.5", "filters='1.5' is no whole number"),
        ("[convolutional]\nfilters=-3", "filters='-3' is not within 1..1048576"),
        ("[convolutional]\nfilters=1e300", "is not within"),
        ("[convolutional]\nfilters=2\nsize=9", "windows of 9 with padding 0 do not fit the input 3x6x5"),
        ("[convolutional]\nfilters=2\nsize=3\ndilation=2", "windows of 5 with padding 0"),
        ("[convolutional]\nfilters=2\ngroups=2", "3 channels and 2 filters do not make 2 groups"),
        ("[maxpool]\nsize=2\nstride=0", "line 8: stride='0' is not within 1..1024"),
        ("[maxpool]\nsize=2\npadding=9", "windows of 2 with padding 9 do not fit"),
        ("[route]\nlayers=0", "layers=0 is no layer before this one"),
        ("[route]\nlayers=-1", "layers=-1 is no layer before this one"),
        ("[dropout]\n[route]\nlayers=5", "layer 1 [route] (line 7): line 8: layers=5 is no layer before this one"),
        ("[dropout]\n[route]\nlayers=0,,0", "layers='' is no whole number"),
        ("[dropout]\n[route]\nlayers=" + ",".join(["0"] * 100), "layers has 100 numbers, more than 64"),
        ("[route]", "has no layers"),
        ("[dropout]\n[avgpool]\n[route]\nlayers=0,1", "puts together 3x6x5, 3x1x1, which differ in height or width"),
        ("[dropout]\n[route]\nlayers=0\ngroups=2", "does not divide 3x6x5 into 2 groups"),
        ("[shortcut]\nactivation=linear", "has no from"),
        ("[avgpool]\n[upsample]\n[scale_channels]\nfrom=0", "does not multiply"),
        ("[upsample]\nstride=1000", "more than 1048576 channels or 67108864 elements"),
        ("[reorg]\nstride=2", "3 channels are no multiple of 4"),
        ("[reorg3d]\nstride=2", "6x5 pixels are no multiple of 2"),
        ("[crop]\ncrop_width=9\ncrop_height=2", "a 2x9 part does not fit the input 3x6x5"),
        ("[softmax]\ngroups=7", "90 inputs do not make 7 groups"),
        ("[softmax]\ntemperature=0", "temperature is 0"),
        ("[softmax]\ntemperature=1e39", "temperature='1e39' is no number of float32"),
        ("[softmax]\ntemperature=nan", "temperature='nan' is no number of float32"),
        ("[yolo]\nclasses=80\nmask=0,1,2", "3 anchors of 80 classes need 255 channels, its input has 3"),
        ("[region]\nclasses=20\nnum=5", "5 anchors of 20 classes need 125 channels"),
        ("[detection]\nclasses=20", "its places and boxes need"),
        ("[connected]\noutput=1000000", "the layers of net.cfg need 364000020; the file is truncated"),
        ("[conv", "line 6: '[conv' has no closing bracket"),
        ("[dropout]\nwhat is this", "line 7: 'whatisthis' is neither a [section] nor key=value"),
        ("[dropout]\n=5", "is neither a [section] nor key=value"),
    ],
)
def test_cfgs_that_make_no_sense(darknet, layers, words):
    assert words in refusal(darknet.write(layers))


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("[dropout]\n[lstm]\noutput=5", "layer 1 [lstm] (line 7): layers of kind lstm are not supported"),
        ("[convolutional]\nactivation=wobbly", "line 7: activation 'wobbly' is not supported; known: linear, "),
        ("[\x01odd name]", "are not supported"),
        ("[softmax]\ntree=9k.tree", "class hierarchies (tree=) are not supported"),
        ("[softmax]\nspatial=1", "spatial=1 is not supported"),
        (
            "[dropout]\n[shortcut]\nfrom=0\nweights_type=per_feature",
            "learned weights (weights_type=) are not supported",
        ),
        ("[maxpool]\nsize=2\nstride=2\nantialiasing=1", "line 9: antialiasing='1' is not supported"),
        ("[convolutional]\nshare_index=0", "share_index='0' is not supported"),
        ("[reorg]\nstride=1\nflatten=1", "flatten= is not supported"),
    ],
)
def test_what_is_not_supported_is_named(darknet, layers, words):
    assert words in refusal(darknet.write(layers), kind=UnsupportedLayer)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("# nothing\n", "its first section must be [net]"),
        ("[metadata]\nname=x\n", "its first section must be [net]"),
        ("width=3\n[net]\n", "line 1: 'width=3' stands before any [section]"),
        ("[net]\nwidth=3\nheight=3\nchannels=3\n", "has no layers"),
        ("[net]\nwidth=3\n[dropout]\n", "says no width, height and channels"),
        ("[net]\nwidth=99999\nheight=1\nchannels=1\n[dropout]\n", "width='99999' is not within 0..16384"),
        ("[net]\nwidth=4\nheight=4\nchannels=1\n" + "[dropout]\n" * 5000, "more than 4096 sections"),
        ("[net]\nwidth=8000\nheight=8000\nchannels=1\n" + "[dropout]\n" * 9, "its layers make 640000000 values"),
        ("#" * (2 << 20), "too large for a darknet cfg"),
    ],
)
def test_files_that_are_no_network(tmp_path, text, words):
    (tmp_path / "net.cfg").write_text(text)
    (tmp_path / "net.weights").write_bytes(bytes(20))
    assert words in refusal(tmp_path / "net.cfg")


def test_weights_of_another_length(darknet):
    cfg = darknet.write(CONV, [*ARRAYS, np.zeros(3)])
    assert "has 64 bytes, the layers of net.cfg need 52; it belongs to another cfg" in refusal(cfg)
    cfg.with_suffix(".weights").write_bytes(cfg.with_suffix(".weights").read_bytes()[:41])
    assert "has 41 bytes, the layers of net.cfg need 52; the file is truncated" in refusal(cfg)
    cfg.with_suffix(".weights").write_bytes(bytes(9))
    assert "is too short for darknet weights (9 bytes)" in refusal(cfg)
    assert "need 48" in refusal(darknet.write(CONV, ARRAYS[:1], header=FIRST, name="first"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(darknet, value):
    cfg = darknet.write(CONV, [ARRAYS[0], [[1, 2, 3], [4, value, 6]]])
    assert "non-finite weight in the weights of conv_0" in refusal(cfg)


def test_negative_variances(darknet):
    cfg = darknet.write("[batchnorm]", [np.ones(3), np.ones(3), [1, -1, 1]])
    assert "a variance in the weights file is negative" in refusal(cfg)


def test_numbers_beyond_float32(darknet):
    cfg = darknet.write("[batchnorm]", [np.full(3, 1e38), np.full(3, -1e38), np.zeros(3)])
    assert "its batch normalisation overflows float32" in refusal(cfg)
    cfg = darknet.write(f"{CONV}xnor=1", [ARRAYS[0], np.full(6, 3e38)], name="xnor")
    assert "the mean magnitude of a filter overflows float32" in refusal(cfg)


def test_either_file_may_be_named(darknet, tmp_path):
    cfg = darknet.write(CONV, ARRAYS)
    weights = cfg.with_suffix(".weights")
    digest = load_model(cfg).source_digest
    assert load_model(weights).source_digest == digest and load_model(weights).name == "net"
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(weights, tmp_path / "elsewhere" / "trained.weights")
    assert load_model(cfg, ImportOptions(weights=Path(moved))).source_digest == digest
    assert "needs net.weights beside it; say where it is with --weights FILE" in refusal(cfg)
    assert "needs trained.cfg beside it; or name the .cfg" in refusal(Path(moved))
    both = ImportOptions(weights=Path(moved))
    assert "not two weights files" in refusal(Path(moved), both)
    assert "absent.weights: No such file" in refusal(cfg, ImportOptions(weights=tmp_path / "absent.weights"))


@pytest.mark.parametrize("saved", ["net_final", "net_best", "net_last", "net_20000"])
def test_names_that_darknet_saves_weights_under(darknet, saved):
    cfg = darknet.write(CONV, ARRAYS)
    weights = cfg.with_suffix(".weights").rename(cfg.with_name(f"{saved}.weights"))
    assert load_model(weights).name == "net"
    if saved != "net_20000":
        assert load_model(cfg).name == "net"


def test_the_weights_option_is_for_darknet_alone(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"x")
    options = ImportOptions(weights=tmp_path / "net.weights")
    assert "--weights is for darknet's .cfg files" in refusal(tmp_path / "net.onnx", options)


def test_shapes_that_do_not_fit(darknet):
    cfg = darknet.write(CONV, ARRAYS)
    for shapes in ({"input": (1, 4, 6, 5)}, {"data": (1, 3, 6, 5)}, {"input": (2, 3, 6, 5)}, {"input": (3, 6)}):
        assert "one input 'input' of shape 1,3,6,5" in refusal(cfg, ImportOptions(shapes=shapes))


def test_cfgs_are_read_as_darknet_reads_them(darknet):
    """Blanks, comments, empty and repeated keys, CRLF, a byte order mark, bytes that are no text in comments."""
    cfg = darknet.write(
        "# comment \n ; other\n[ convolutional ]\n\tfilters = 2 # two\nfilters=2\nsize=1\nsize=3\nstride=\n"
        " activation = linear",
        ARRAYS,
    )
    data = cfg.read_bytes().replace(b"\n", b"\r\n").replace(b"comment", b"\xff\xfe caf\xe9")
    cfg.write_bytes(b"\xef\xbb\xbf" + data)
    model = load_model(cfg)
    assert model.outputs[0].shape == (1, 2, 6, 5)
    assert [warning.partition(": ")[2] for warning in model.warnings] == [
        "layer 0 [convolutional] (line 8): line 11: size is given again in line 12; the first one counts"
    ]


def test_keys_that_nothing_reads_are_told(darknet):
    cfg = darknet.write(f"{CONV}learning_rate=.1\njitter=.3\nquantum=7\n", ARRAYS)
    assert len(load_model(cfg).warnings) == 1
    assert load_model(cfg).warnings[0].endswith("line 12: 'quantum' is not known and was ignored")


@pytest.mark.parametrize("by_data", [False, True])
def test_class_names_beside_the_cfg(darknet, by_data):
    cfg = darknet.write(f"{CONV}[avgpool]\n[softmax]", ARRAYS)
    if by_data:
        cfg.with_suffix(".data").write_text("classes = 2\nnames = data/animals.names\n")
    (cfg.parent / ("animals.names" if by_data else "net.names")).write_text("cat\ndog\n")
    assert load_model(cfg).labels == ("cat", "dog")


NETWORK = (
    "[convolutional]\nxnor=1\nbatch_normalize=1\nfilters=4\nsize=3\nstride=1\npad=1\nactivation=leaky\n\n"
    "[maxpool]\nsize=2\nstride=2\n[route]\nlayers=-1,-1\n[shortcut]\nfrom=-2\n[upsample]\nstride=2\n"
    "[connected]\noutput=7\nactivation=logistic\n[softmax]\ngroups=1\n"
)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_are_refused_or_read(darknet, seed):
    """Bytes flipped, cut, doubled and replaced by digits, in either file."""
    rng = np.random.default_rng(seed)
    counts = [4] * 4 + [108, 7, 7 * 8 * 6 * 6]
    cfg = darknet.write(NETWORK, [np.ones(count) for count in counts], (3, 6, 6))
    load_model(cfg)
    sound = {path: path.read_bytes() for path in (cfg, cfg.with_suffix(".weights"))}
    start = time.monotonic()
    for _ in range(60):
        for path, data in sound.items():
            path.write_bytes(data)
        path = cfg if rng.random() < 0.8 else cfg.with_suffix(".weights")
        damaged = bytearray(sound[path])
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(len(damaged)))
            match int(rng.integers(4)):
                case 0:
                    damaged[place] = int(rng.integers(256))
                case 1:
                    del damaged[place : place + int(rng.integers(1, 40))]
                case 2:
                    damaged[place:place] = damaged[place : place + int(rng.integers(1, 40))]
                case _:
                    damaged[place : place + 1] = str(int(rng.integers(-(10**9), 10**9))).encode()
            damaged = damaged or bytearray(b"\n")
        path.write_bytes(bytes(damaged))
        try:
            load_model(cfg)
        except ModelError as error:
            assert "\n" not in str(error) and str(cfg.parent) in str(error) and len(str(error)) < 500
    assert time.monotonic() - start < 120
