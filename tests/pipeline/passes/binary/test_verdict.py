"""Facts of binary convolutions in words."""

import pytest

from bitkiln.pipeline.passes.binary.verdict import BinaryFacts, Verdict


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (BinaryFacts(), ["signs x +-1", "no padding"]),
        (BinaryFacts(padding=0, scaled=True), ["signs x scaled +-1", "true zero padding"]),
        (BinaryFacts(padding=-1, zeros_count_as=1), ["padding -1", "zeros count as +1"]),
        (BinaryFacts((0, 0.5), padding=0, zeros_count_as=0.5), ["levels 0 and 0.5", "padding 0", "count as 0.5"]),
        (BinaryFacts(zero_weights=7), ["signs x 0 and +-1", "in 2 convolutions", "7 weights are zero"]),
        (BinaryFacts(zero_weights=7, exact_zeros=True), ["in 4 convolutions", "7 weights are zero", "Sign(0) = 0"]),
        (BinaryFacts(padding=1, stored=True), ["stored as binary", "padding +1"]),
    ],
)
def test_each_fact_is_told(facts, said):
    assert not [fact for fact in said if fact not in facts.in_words()]


def test_a_verdict_tells_its_facts_or_its_refusal():
    assert Verdict("conv", BinaryFacts()).binary and Verdict("conv", BinaryFacts()).reason == BinaryFacts().in_words()
    assert not Verdict("conv", refusal="float weights").binary
    assert Verdict("conv", refusal="float weights").reason == "float weights"
