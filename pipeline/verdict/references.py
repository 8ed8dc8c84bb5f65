"""What others published of networks that are built in, with its source: shown beside what was measured here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A figure of a model's authors; ``of``: what of ours compares with it, a target's time, "top1", "top5" or "size"."""

    what: str
    value: str
    of: str = ""


@dataclass(frozen=True)
class Original:
    """What was published of a network that ours has the layers of, and where."""

    source: str
    figures: tuple[Published, ...]


#: By the name of the model. The original networks were trained; ours of the same layers have synthetic weights.
ORIGINALS = {
    "card-binary": Original(
        "ELL gallery, ILSVRC2012/d_I224x224x3NCMNCMNBMNBMNBMNBMNC1A, trained by Chuck Jacobs with CNTK 2.1",
        (
            Published("top 1 on ILSVRC2012", "38.37 %", "top1"),
            Published("top 5 on ILSVRC2012", "63.46 %", "top5"),
            Published("Raspberry Pi 3 (Raspbian) at 700 MHz", "1050 ms", "rasp3b-700"),
            Published("Raspberry Pi 3 (OpenSUSE) at 600 MHz", "840 ms"),
            Published("DragonBoard 410c at 1.2 GHz", "500 ms", "dragonboard410c"),
            Published("uncompressed size", "20 MB", "size"),
        ),
    ),
    "card-float": Original(
        "ELL gallery, ILSVRC2012/dr_I256x256x3CMCMCMCMCMCMCMC1AS, trained by Juan Lema with CNTK 2.2",
        (
            Published("top 1 on ILSVRC2012", "60.11 %", "top1"),
            Published("top 5 on ILSVRC2012", "82.27 %", "top5"),
            Published("Raspberry Pi 3 (Raspbian) at 700 MHz", "590 ms", "rasp3b-700"),
            Published("uncompressed size", "98 MB", "size"),
        ),
    ),
}
#: What a card says of networks without trained weights.
SYNTHETIC = "The layers are those of the published network, the weights are synthetic: its answers mean nothing."
