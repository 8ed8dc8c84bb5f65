"""What others published of networks that are built in, with its source: shown beside what was measured here."""

from __future__ import annotations

from bitkiln.pipeline import schema

_BINARY = "ELL gallery, ILSVRC2012/d_I224x224x3NCMNCMNBMNBMNBMNBMNC1A, trained by Chuck Jacobs with CNTK 2.1"
_FLOAT = "ELL gallery, ILSVRC2012/dr_I256x256x3CMCMCMCMCMCMCMC1AS, trained by Juan Lema with CNTK 2.2"


def _rows(source: str, *facts: tuple[str, str]) -> list[schema.Reference]:
    return [{"what": what, "value": value, "source": source} for what, value in facts]


#: By the name of the model. The original networks were trained; ours of the same layers have synthetic weights.
PUBLISHED: dict[str, list[schema.Reference]] = {
    "card-binary": _rows(
        _BINARY,
        ("top 1 on ILSVRC2012", "38.37 %"),
        ("top 5 on ILSVRC2012", "63.46 %"),
        ("Raspberry Pi 3 (Raspbian) at 700 MHz", "1050 ms"),
        ("Raspberry Pi 3 (OpenSUSE) at 600 MHz", "840 ms"),
        ("DragonBoard 410c at 1.2 GHz", "500 ms"),
        ("uncompressed size", "20 MB"),
    ),
    "card-float": _rows(
        _FLOAT,
        ("top 1 on ILSVRC2012", "60.11 %"),
        ("top 5 on ILSVRC2012", "82.27 %"),
        ("Raspberry Pi 3 (Raspbian) at 700 MHz", "590 ms"),
        ("uncompressed size", "98 MB"),
    ),
}
#: What a card says of networks without trained weights.
SYNTHETIC = "The layers are those of the published network, the weights are synthetic: its answers mean nothing."
