"""Networks of ncnn's benchmark as ncnn parameter text, and their published times on Cortex-A53 boards.

Structures are those of the papers with batch normalisation folded into the convolutions, as in ncnn's benchmark;
weights are all zero there and here: ncnn's float kernels take the same time whatever the values.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class Net:
    """A network in the making: layers in order, each with its input and output blobs."""

    layers: list[tuple[str, str, list[str], str, str]] = field(default_factory=list)
    channels: dict[str, int] = field(default_factory=dict)
    """Channels of each blob."""

    def add(self, kind: str, inputs: list[str], channels: int, parameters: str = "") -> str:
        """Adds a layer and returns its output blob."""
        blob = f"{kind.lower()}{len(self.layers)}"
        self.layers.append((kind, blob, inputs, blob, parameters))
        self.channels[blob] = channels
        return blob

    def input(self) -> str:
        """The network's input, an image of 3 channels."""
        self.layers.append(("Input", "data", [], "data", ""))
        self.channels["data"] = 3
        return "data"

    def conv(self, x: str, out: int, k: int, stride: int = 1, pad: int = 0, groups: int = 1, relu: bool = True) -> str:
        """A convolution with bias and, unless `relu` is false, a ReLU."""
        weights = out * self.channels[x] // groups * k * k
        kind = "Convolution" if groups == 1 else "ConvolutionDepthWise"
        text = f"0={out} 1={k} 3={stride} 4={pad} 5=1 6={weights}"
        text += "" if groups == 1 else f" 7={groups}"
        return self.add(kind, [x], out, text + (" 9=1" if relu else ""))

    def pool(self, x: str, k: int, stride: int, pad: int = 0, average: bool = False) -> str:
        """Max pooling, or average pooling."""
        return self.add("Pooling", [x], self.channels[x], f"0={int(average)} 1={k} 2={stride} 3={pad}")

    def global_pool(self, x: str) -> str:
        """The average over the whole picture."""
        return self.add("Pooling", [x], self.channels[x], "0=1 4=1")

    def dense(self, x: str, out: int, inputs: int, relu: bool = False) -> str:
        """A fully connected layer."""
        return self.add("InnerProduct", [x], out, f"0={out} 1=1 2={out * inputs}" + (" 9=1" if relu else ""))

    def sum(self, a: str, b: str, relu: bool) -> str:
        """The sum of two blobs, with a ReLU layer after it if asked for."""
        added = self.add("Eltwise", [a, b], self.channels[a], "0=1")
        return self.add("ReLU", [added], self.channels[a]) if relu else added

    def concat(self, *blobs: str) -> str:
        """Blobs side by side in channels."""
        return self.add("Concat", list(blobs), sum(self.channels[blob] for blob in blobs))

    def normalise(self, x: str) -> str:
        """Local response normalisation across channels."""
        return self.add("LRN", [x], self.channels[x], "2=0.0001")

    def text(self) -> str:
        """The parameter file, output blob `prob`. A blob read more than once goes through a Split, as ncnn wants it."""
        self.layers.append(("Softmax", "prob", [self.layers[-1][3]], "prob", ""))
        readers = Counter(blob for _, _, inputs, _, _ in self.layers for blob in inputs)
        given: Counter[str] = Counter()
        lines, blobs = [], 0
        for kind, name, inputs, output, parameters in self.layers:
            sources = []
            for blob in inputs:
                sources.append(f"{blob}_{given[blob]}" if readers[blob] > 1 else blob)
                given[blob] += 1
            lines.append(f"{kind} {name} {len(inputs)} 1 {' '.join([*sources, output])} {parameters}".rstrip())
            blobs += 1
            if readers[output] > 1:
                copies = [f"{output}_{i}" for i in range(readers[output])]
                lines.append(f"Split split_{output} 1 {len(copies)} {' '.join([output, *copies])}")
                blobs += len(copies)
        return "\n".join(["7767517", f"{len(lines)} {blobs}", *lines]) + "\n"


def squeezenet(net: Net) -> None:
    """SqueezeNet 1.1."""

    def fire(x: str, squeeze: int, expand: int) -> str:
        squeezed = net.conv(x, squeeze, 1)
        return net.concat(net.conv(squeezed, expand, 1), net.conv(squeezed, expand, 3, pad=1))

    x = net.pool(net.conv(net.input(), 64, 3, stride=2), 3, 2)
    x = net.pool(fire(fire(x, 16, 64), 16, 64), 3, 2)
    x = net.pool(fire(fire(x, 32, 128), 32, 128), 3, 2)
    x = fire(fire(fire(fire(x, 48, 192), 48, 192), 64, 256), 64, 256)
    net.global_pool(net.conv(x, 1000, 1, pad=1))


def mobilenet(net: Net) -> None:
    """MobileNet 1.0."""
    x = net.conv(net.input(), 32, 3, stride=2, pad=1)
    blocks = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for out, stride in blocks:
        x = net.conv(net.conv(x, net.channels[x], 3, stride, pad=1, groups=net.channels[x]), out, 1)
    net.dense(net.global_pool(x), 1000, 1024)


def mobilenet_v2(net: Net) -> None:
    """MobileNet 2."""
    x = net.conv(net.input(), 32, 3, stride=2, pad=1)
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2), (6, 32, 1, 1)]
    stages += [(6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, out, repeats, first_stride in stages:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            wide = net.channels[x] * expansion
            y = net.conv(net.conv(x, wide, 1), wide, 3, stride, pad=1, groups=wide)
            y = net.conv(y, out, 1, relu=False)
            x = net.sum(x, y, relu=False) if stride == 1 and net.channels[x] == out else y
    net.dense(net.global_pool(net.conv(x, 1280, 1)), 1000, 1280)


def resnet18(net: Net) -> None:
    """ResNet-18, with a convolution in the first shortcut too."""
    x = net.pool(net.conv(net.input(), 64, 7, stride=2, pad=3), 3, 2)
    for stage, out in enumerate((64, 128, 256, 512)):
        for block in range(2):
            stride = 2 if stage and not block else 1
            y = net.conv(net.conv(x, out, 3, stride, pad=1), out, 3, pad=1, relu=False)
            shortcut = x if block else net.conv(x, out, 1, stride, relu=False)
            x = net.sum(shortcut, y, relu=True)
    net.dense(net.pool(x, 7, 1, average=True), 1000, 512)


def resnet50(net: Net) -> None:
    """ResNet-50, strides in the first 1x1 convolution of a stage."""
    x = net.pool(net.conv(net.input(), 64, 7, stride=2, pad=3), 3, 2)
    for stage, (narrow, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = net.conv(net.conv(x, narrow, 1, stride), narrow, 3, pad=1)
            y = net.conv(y, 4 * narrow, 1, relu=False)
            shortcut = x if block else net.conv(x, 4 * narrow, 1, stride, relu=False)
            x = net.sum(shortcut, y, relu=True)
    net.dense(net.pool(x, 7, 1, average=True), 1000, 2048)


def alexnet(net: Net) -> None:
    """AlexNet as Caffe has it."""
    x = net.pool(net.normalise(net.conv(net.input(), 96, 11, stride=4)), 3, 2)
    x = net.pool(net.normalise(net.conv(x, 256, 5, pad=2, groups=2)), 3, 2)
    x = net.conv(net.conv(x, 384, 3, pad=1), 384, 3, pad=1, groups=2)
    x = net.pool(net.conv(x, 256, 3, pad=1, groups=2), 3, 2)
    net.dense(net.dense(net.dense(x, 4096, 9216, relu=True), 4096, 4096, relu=True), 1000, 4096)


def googlenet(net: Net) -> None:
    """GoogLeNet as Caffe has it."""

    def inception(x: str, a: int, b1: int, b3: int, c1: int, c5: int, d: int) -> str:
        return net.concat(
            net.conv(x, a, 1),
            net.conv(net.conv(x, b1, 1), b3, 3, pad=1),
            net.conv(net.conv(x, c1, 1), c5, 5, pad=2),
            net.conv(net.pool(x, 3, 1, pad=1), d, 1),
        )

    x = net.normalise(net.pool(net.conv(net.input(), 64, 7, stride=2, pad=3), 3, 2))
    x = net.pool(net.normalise(net.conv(net.conv(x, 64, 1), 192, 3, pad=1)), 3, 2)
    x = inception(inception(x, 64, 96, 128, 16, 32, 32), 128, 128, 192, 32, 96, 64)
    x = inception(net.pool(x, 3, 2), 192, 96, 208, 16, 48, 64)
    x = inception(inception(x, 160, 112, 224, 24, 64, 64), 128, 128, 256, 24, 64, 64)
    x = inception(inception(x, 112, 144, 288, 32, 64, 64), 256, 160, 320, 32, 128, 128)
    x = inception(net.pool(x, 3, 2), 256, 160, 320, 32, 128, 128)
    x = inception(x, 384, 192, 384, 48, 128, 128)
    net.dense(net.pool(x, 7, 1, average=True), 1000, 1024)


@dataclass(frozen=True)
class Published:
    """A network, the side of its input in pixels, and its published times in ms by board, with one thread and with four.

    Source: github Tencent/ncnn, benchmark/README.md, the minimum of 4 runs. Boards: "Pi 3B+", Raspberry Pi 3 Model B+ at
    1.4 GHz; "Snapdragon 410", a phone with the SoC of the DragonBoard 410c at 1.2 GHz; "Zero 2 W", Raspberry Pi Zero 2 W.
    """

    build: Callable[[Net], None]
    side: int
    times: Mapping[str, tuple[float, float]]

    def text(self) -> str:
        """ncnn's parameter text; the output blob is `prob`."""
        net = Net()
        self.build(net)
        return net.text()


def _published(
    build: Callable[[Net], None],
    side: int,
    pi3b_plus: tuple[float, float],
    snapdragon410: tuple[float, float],
    zero2w: tuple[float, float],
) -> Published:
    return Published(build, side, {"Pi 3B+": pi3b_plus, "Snapdragon 410": snapdragon410, "Zero 2 W": zero2w})


PUBLISHED = {
    "squeezenet": _published(squeezenet, 227, (125.34, 84.74), (147.48, 65.45), (240.53, 119.52)),
    "mobilenet": _published(mobilenet, 224, (204.62, 107.84), (243.78, 86.69), (393.79, 162.60)),
    "mobilenet_v2": _published(mobilenet_v2, 224, (158.69, 110.64), (168.04, 77.98), (273.97, 145.71)),
    "resnet18": _published(resnet18, 224, (379.21, 270.86), (396.46, 137.91), (653.62, 351.37)),
    "alexnet": _published(alexnet, 227, (270.13, 157.79), (362.44, 105.30), (687.99, 271.18)),
    "googlenet": _published(googlenet, 224, (450.64, 223.78), (525.25, 180.91), (780.05, 323.74)),
    "resnet50": _published(resnet50, 224, (977.51, 583.57), (1136.96, 380.46), (1800.97, 777.44)),
}

#: Milliseconds on four threads of boards with 32-bit systems, the least and the most that is published. All by ncnn of 2018 and
#: 2019, older than the wheel that is simulated: github Tencent/ncnn issue 795 (a Pi 3B and, quoted, a 3B+) and pull request 640
#: (a 3B+). Raspbian had 32-bit systems only.
PUBLISHED_32 = {
    "squeezenet": (102.85, 117.58),
    "mobilenet": (151.78, 214.80),
    "mobilenet_v2": (193.14, 228.65),
    "resnet18": (411.93, 556.46),
    "alexnet": (275.54, 436.50),
    "googlenet": (302.02, 365.26),
}

#: How many times longer a network takes in 32-bit code than in 64-bit code of one engine on one Cortex-A53, one thread,
#: float32. Source: github PaddlePaddle/Paddle-Lite, docs/performance/benchmark.md, version 2.11 on a Snapdragon 625.
WIDTHS = {"mobilenet": 147.85 / 143.64, "mobilenet_v2": 131.05 / 106.17, "resnet50": 886.98 / 831.62}
