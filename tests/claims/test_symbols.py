"""A symbol means one thing in a paper, and says what it means."""

import collections

from icl_lab.claims import registry

# No paper: its claims take the symbols of the papers that they extend.
LAB = "lab"


def test_a_symbol_has_one_meaning_in_a_paper():
    meanings = collections.defaultdict(set)
    for id, one in registry.all_claims().items():
        for name, parameter in one.parameters.items():
            meanings[id.split(".")[0], name].add(parameter.symbol)
    several = {key: found for key, found in meanings.items() if len(found) > 1 and key[0] != LAB}
    assert not several


def test_every_symbol_is_explained():
    unexplained = [
        f"{id}: {name}"
        for id, one in registry.all_claims().items()
        for name, parameter in one.parameters.items()
        if not parameter.symbol
    ]
    assert not unexplained
