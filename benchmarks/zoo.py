"""Networks that people ask for, as their papers describe them, with batch norms folded and random seeded weights.

Each builder takes ``same``, as Graph does. No engine's time depends on the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from benchmarks.graph import Graph

#: Of the trained networks that these stand for; a classifier's without its softmax.
IMAGE = (1, 3, 224, 224)
#: Gain of the first layer, which takes pixels of 0..255: values behind it are as behind normalised ones.
PIXEL = 1 / 128


def _relu(graph: Graph, x: str) -> str:
    return graph.add("Relu", x)


def _relu6(graph: Graph, x: str) -> str:
    return graph.clip(x, 0, 6)


def _hard_swish(graph: Graph, x: str) -> str:
    return graph.add("HardSwish", x)


def _swish(graph: Graph, x: str) -> str:
    return graph.add("Mul", [x, graph.add("Sigmoid", x)])


def _classes(graph: Graph, x: str, name: str) -> onnx.ModelProto:
    graph.dense(graph.flatten(graph.global_pool(x)), 1000)
    return graph.model(name)


def mobilenet_v1(same: bool = False) -> onnx.ModelProto:
    """MobileNet 1.0 (Howard et al. 2017), 224x224."""
    graph = Graph(IMAGE, 11, same)
    x = _relu(graph, graph.conv(graph.input, 32, stride=2, gain=PIXEL))
    for channels, stride in [
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *[(512, 1)] * 5,
        (1024, 2),
        (1024, 1),
    ]:
        x = _relu(graph, graph.depthwise(x, stride=stride))
        x = _relu(graph, graph.conv(x, channels, 1))
    return _classes(graph, x, "mobilenet-v1")


def _inverted(graph: Graph, x: str, wide: int, kernel: int, stride: int, channels: int) -> str:
    """A block that widens to ``wide`` channels, filters them one by one and narrows them to ``channels``."""
    y = x if wide == graph.channels(x) else _relu6(graph, graph.conv(x, wide, 1))
    y = graph.conv(_relu6(graph, graph.depthwise(y, kernel, stride)), channels, 1)
    return graph.add("Add", [x, y]) if graph.shapes[x] == graph.shapes[y] else y


def mobilenet_v2(same: bool = False) -> onnx.ModelProto:
    """MobileNet 2 (Sandler et al. 2018), 224x224."""
    graph = Graph(IMAGE, 12, same)
    x = _relu6(graph, graph.conv(graph.input, 32, stride=2, gain=PIXEL))
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for widening, channels, blocks, stride in stages:
        for block in range(blocks):
            x = _inverted(graph, x, widening * graph.channels(x), 3, 1 if block else stride, channels)
    return _classes(graph, _relu6(graph, graph.conv(x, 1280, 1)), "mobilenet-v2")


def efficientnet_lite0(same: bool = False) -> onnx.ModelProto:
    """EfficientNet-Lite0 (Google 2020): EfficientNet-B0 without squeeze-and-excite, with ReLU6; 224x224."""
    graph = Graph(IMAGE, 13, same)
    x = _relu6(graph, graph.conv(graph.input, 32, stride=2, gain=PIXEL))
    stages = [(1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3)]
    stages += [(6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1)]
    for widening, kernel, stride, channels, blocks in stages:
        for block in range(blocks):
            x = _inverted(graph, x, widening * graph.channels(x), kernel, 1 if block else stride, channels)
    return _classes(graph, _relu6(graph, graph.conv(x, 1280, 1)), "efficientnet-lite0")


def mobilenet_v3_small(same: bool = False) -> onnx.ModelProto:
    """MobileNet 3, small (Howard et al. 2019), 224x224."""
    graph = Graph(IMAGE, 14, same)
    x = _hard_swish(graph, graph.conv(graph.input, 16, stride=2, gain=PIXEL))
    # Kernel, width, channels, squeeze-and-excite, activation, stride: table 2 of the paper.
    blocks = [(3, 16, 16, True, _relu, 2), (3, 72, 24, False, _relu, 2), (3, 88, 24, False, _relu, 1)]
    blocks += [(5, 96, 40, True, _hard_swish, 2), *[(5, 240, 40, True, _hard_swish, 1)] * 2]
    blocks += [(5, 120, 48, True, _hard_swish, 1), (5, 144, 48, True, _hard_swish, 1)]
    blocks += [(5, 288, 96, True, _hard_swish, 2), *[(5, 576, 96, True, _hard_swish, 1)] * 2]
    for kernel, wide, channels, squeezed, activation, stride in blocks:
        y = x if wide == graph.channels(x) else activation(graph, graph.conv(x, wide, 1))
        y = activation(graph, graph.depthwise(y, kernel, stride))
        y = graph.conv(_excited(graph, y) if squeezed else y, channels, 1)
        x = graph.add("Add", [x, y]) if graph.shapes[x] == graph.shapes[y] else y
    x = graph.flatten(graph.global_pool(_hard_swish(graph, graph.conv(x, 576, 1))))
    graph.dense(_hard_swish(graph, graph.dense(x, 1024)), 1000)
    return graph.model("mobilenet-v3-small")


def _excited(graph: Graph, x: str) -> str:
    """Squeeze-and-excite, by a quarter of the channels in whole eights."""
    wide = graph.channels(x)
    narrow = _relu(graph, graph.conv(graph.global_pool(x), (wide // 4 + 7) // 8 * 8, 1))
    return graph.add("Mul", [x, graph.add("HardSigmoid", graph.conv(narrow, wide, 1), alpha=1 / 6, beta=0.5)])


def squeezenet(same: bool = False) -> onnx.ModelProto:
    """SqueezeNet 1.1 (Iandola et al. 2016), 224x224."""
    graph = Graph(IMAGE, 15, same)

    def fire(x: str, narrow: int, wide: int) -> str:
        x = _relu(graph, graph.conv(x, narrow, 1))
        return graph.concat(_relu(graph, graph.conv(x, wide, 1)), _relu(graph, graph.conv(x, wide, 3)))

    x = graph.pool(_relu(graph, graph.conv(graph.input, 64, stride=2, gain=PIXEL)), 3, padded=False)
    x = graph.pool(fire(fire(x, 16, 64), 16, 64), 3, padded=False)
    x = graph.pool(fire(fire(x, 32, 128), 32, 128), 3, padded=False)
    x = fire(fire(fire(fire(x, 48, 192), 48, 192), 64, 256), 64, 256)
    graph.flatten(graph.global_pool(_relu(graph, graph.conv(x, 1000, 1))))
    return graph.model("squeezenet-1.1")


def shufflenet_v2(same: bool = False) -> onnx.ModelProto:
    """ShuffleNet 2, 1.0x (Ma et al. 2018), 224x224."""
    graph = Graph(IMAGE, 16, same)

    def filtered(x: str, channels: int, stride: int) -> str:
        x = graph.depthwise(_relu(graph, graph.conv(x, channels, 1)), stride=stride)
        return _relu(graph, graph.conv(x, channels, 1))

    x = graph.pool(_relu(graph, graph.conv(graph.input, 24, stride=2, gain=PIXEL)), 3)
    for channels, blocks in ((116, 4), (232, 8), (464, 4)):
        for block in range(blocks):
            if block:
                kept, y = graph.halves(x)
            else:
                kept, y = _relu(graph, graph.conv(graph.depthwise(x, stride=2), channels // 2, 1)), x
            x = graph.shuffle(graph.concat(kept, filtered(y, channels // 2, 1 if block else 2)), 2)
    return _classes(graph, _relu(graph, graph.conv(x, 1024, 1)), "shufflenet-v2")


def u_net(same: bool = False) -> onnx.ModelProto:
    """A U-Net (Ronneberger et al. 2015) of 16 to 256 channels on 128x128, with padded convolutions."""
    graph = Graph((1, 3, 128, 128), 17, same)

    def twice(x: str, channels: int) -> str:
        first = graph.conv(x, channels, gain=PIXEL if x == graph.input else 1)
        return _relu(graph, graph.conv(_relu(graph, first), channels))

    x, kept = graph.input, []
    for channels in (16, 32, 64, 128):
        kept.append(twice(x, channels))
        x = graph.pool(kept[-1], 2)
    x = twice(x, 256)
    for y in reversed(kept):
        x = twice(graph.concat(graph.transposed(x, graph.channels(y)), y), graph.channels(y))
    graph.add("Sigmoid", graph.conv(x, 1, 1, gain=0.1))
    return graph.model("u-net@128")


def yolov5n(same: bool = False) -> onnx.ModelProto:
    """YOLOv5n (Ultralytics, release 6) on 320x320, up to the three heads before decoding."""
    graph = Graph((1, 3, 320, 320), 18, same)

    def conv(x: str, channels: int, kernel: int = 1, stride: int = 1) -> str:
        return _swish(graph, graph.conv(x, channels, kernel, stride))

    def c3(x: str, channels: int, repeats: int, added: bool = True) -> str:
        y = conv(x, channels // 2)
        for _ in range(repeats):
            z = conv(conv(y, channels // 2), channels // 2, 3)
            y = graph.add("Add", [y, z]) if added else z
        return conv(graph.concat(y, conv(x, channels // 2)), channels)

    x = conv(_swish(graph, graph.conv(graph.input, 16, 6, 2, gain=PIXEL)), 32, 3, 2)
    eighth = c3(conv(c3(x, 32, 1), 64, 3, 2), 64, 2)
    sixteenth = c3(conv(eighth, 128, 3, 2), 128, 3)
    y = conv(c3(conv(sixteenth, 256, 3, 2), 256, 1), 128)
    pools = [y]
    for _ in range(3):
        pools.append(graph.pool(pools[-1], 5, 1))
    deep = conv(conv(graph.concat(*pools), 256), 128)
    middle = conv(c3(graph.concat(graph.doubled(deep), sixteenth), 128, 1, False), 64)
    fine = c3(graph.concat(graph.doubled(middle), eighth), 64, 1, False)
    coarse = c3(graph.concat(conv(fine, 64, 3, 2), middle), 128, 1, False)
    coarsest = c3(graph.concat(conv(coarse, 128, 3, 2), deep), 256, 1, False)
    return graph.model("yolov5n@320", *(graph.conv(head, 255, 1) for head in (fine, coarse, coarsest)))


ZOO: Mapping[str, Callable[[bool], onnx.ModelProto]] = {
    "mobilenet-v1": mobilenet_v1,
    "mobilenet-v2": mobilenet_v2,
    "mobilenet-v3-small": mobilenet_v3_small,
    "efficientnet-lite0": efficientnet_lite0,
    "squeezenet-1.1": squeezenet,
    "shufflenet-v2": shufflenet_v2,
    "u-net@128": u_net,
    "yolov5n@320": yolov5n,
}
