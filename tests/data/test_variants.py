"""Names of variants are read in the notations that people write, or refused with a reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from molfun.data.variants import (
    Substitution,
    Variant,
    all_substitutions,
    parse_variant,
    parse_variants,
)
from molfun.errors import DataError
from molfun.protein import AMINO_ACIDS

WILD_TYPE = "ACKDE"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A1G", "A1G"),
        (" a1g ", "A1G"),
        ("p.Ala1Gly", "A1G"),
        ("p.(Ala1Gly)", "A1G"),
        ("P.ALA1GLY", "A1G"),
        ("p.A1G", "A1G"),
        ("K3E:A1G", "A1G:K3E"),
        ("A1G;K3E", "A1G:K3E"),
        ("A1G, K3E", "A1G:K3E"),
        ("A1G/K3E", "A1G:K3E"),
        ("A1G K3E", "A1G:K3E"),
        ("p.[Ala1Gly;Lys3Glu]", "A1G:K3E"),
        ("p.Ala1Gly:p.Lys3Glu", "A1G:K3E"),
        ("p.Ala1=", "WT"),
        ("A1A:K3E", "K3E"),
        ("WT", "WT"),
        ("=", "WT"),
        ("p.=", "WT"),
    ],
)
def test_notations(text: str, name: str) -> None:
    assert parse_variant(text, WILD_TYPE).name() == name


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "the variant is blank; write WT for the wild type."),
        ("C1G", "'C1G': residue 1 of the wild type is A, not C."),
        ("A9G", "'A9G': there is no residue 9; those of the wild type have the numbers 1 to 5."),
        ("A0G", "'A0G': there is no residue 0; those of the wild type have the numbers 1 to 5."),
        ("A1B", "'A1B': 'B' is none of the 20 amino acids."),
        ("p.Ala1Xaa", "'p.Ala1Xaa': 'XAA' is none of the 20 amino acids."),
        ("A1*", "'A1*': it is a stop codon; only substitutions can be read."),
        ("p.Ala1Ter", "'p.Ala1Ter': it is a stop codon; only substitutions can be read."),
        ("p.Ala1del", "'p.Ala1del': it is a deletion; only substitutions can be read."),
        ("A1_K3delinsG", "it is a deletion with an insertion; only substitutions can be read."),
        ("p.Ala1fs", "it is a frame shift; only substitutions can be read."),
        ("p.Ala1dup", "it is a duplication; only substitutions can be read."),
        ("A1G:A1C", "'A1G:A1C': residue 1 is exchanged twice."),
        ("AA1G", "'AA1G' is no substitution; write A24G, A24G:K31E or p.Ala24Gly."),
        ("1G", "'1G' is no substitution; write A24G, A24G:K31E or p.Ala24Gly."),
    ],
)
def test_what_is_no_variant_is_named(text: str, error: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_variant(text, WILD_TYPE)
    assert error in str(caught.value)


def test_numbers_may_begin_elsewhere() -> None:
    variant = parse_variant("A24G:K26E", WILD_TYPE, offset=23)
    assert variant.changes == (Substitution(0, "A", "G"), Substitution(2, "K", "E"))
    assert variant.name(offset=23) == "A24G:K26E"
    with pytest.raises(DataError, match="have the numbers 24 to 28"):
        parse_variant("A1G", WILD_TYPE, offset=23)


def test_all_that_cannot_be_read_are_listed() -> None:
    with pytest.raises(DataError) as caught:
        parse_variants(["A1G", "C1G", "K9A"], WILD_TYPE, names=["line 2", "line 3", "line 4"])
    text = str(caught.value)
    assert text.startswith("2 of 3 variants cannot be read:\n")
    assert "line 3: 'C1G': residue 1" in text
    assert "line 4: 'K9A': there is no residue 9" in text


def test_all_substitutions_are_different_and_at_amino_acids_alone() -> None:
    found = list(all_substitutions("AXk"))
    assert len({variant.apply("AXK") for variant in found}) == len(found) == 38
    assert {variant.changes[0].place for variant in found} == {0, 2}


@given(st.text(AMINO_ACIDS, min_size=1, max_size=30), st.data())
def test_a_name_is_read_back(wild_type: str, data: st.DataObject) -> None:
    places = data.draw(st.sets(st.integers(0, len(wild_type) - 1)))
    new = {place: data.draw(st.sampled_from(AMINO_ACIDS)) for place in places}
    changes = tuple(
        Substitution(place, wild_type[place], new[place])
        for place in sorted(places)
        if new[place] != wild_type[place]
    )
    variant, offset = Variant(changes), data.draw(st.integers(-5, 500))
    assert parse_variant(variant.name(offset=offset), wild_type, offset=offset) == variant
    mutant = variant.apply(wild_type)
    assert sum(a != b for a, b in zip(wild_type, mutant, strict=True)) == len(changes)
