"""Verdicts and processes of a verification: flows short of their limits, claims that only this process has, lost workers."""

import os
import types

import pytest

from icl_lab.claims import check, registry, verify, workers
from icl_lab.claims.claim import Source
from icl_lab.claims.setting import Setting
from icl_lab.report import tables


def test_a_flow_that_has_not_ended_is_no_verdict_on_its_theorem():
    (entry,) = verify.run(["zhang2023.thm4.1"], {"d": 3, "Lam": [1, 1e-4, 1e-8]})
    assert (entry["passed"], entry["verdict"]) == (False, "not_converged")
    assert "A gradient flow ended as" in entry["reason"]
    assert "NOT CONVERGED" in str(tables.verified_table([entry]))


def _in_which_process(one, parameters):
    return {"id": one.id, "process": os.getpid()}


@pytest.mark.slow
def test_a_worker_leaves_with_its_memory_after_some_claims(monkeypatch):
    monkeypatch.setattr(workers, "CLAIMS_PER_WORKER", 2)
    chosen = registry.select(["zhang2023.lem*"])[:4]
    entries, lost = [], []
    left = workers.run_each([(one, one.resolve()) for one in chosen], 1, _in_which_process, entries.append, lost.append)
    assert (left, lost) == ([], [])
    processes = [entry["process"] for entry in entries]
    assert sorted(map(processes.count, set(processes))) == [2, 2]
    assert os.getpid() not in processes


@pytest.mark.slow
def test_claims_that_only_this_process_has_run_here_with_a_remark(monkeypatch):
    monkeypatch.setattr(registry, "_CLAIMS", dict(registry.all_claims()))
    made = types.ModuleType("made_by_hand")
    code = """
@registry.claim("own.one", Setting, Source("own", "-"))
def one(setting):
    "One is one.\\n\\nBy hand."
    return [check.exact("one", 1.0, 1.0, 1e-15)]
"""
    made.check, made.registry, made.Source, made.Setting = check, registry, Source, Setting
    exec(code, made.__dict__)
    entries = verify.run(["own.one", "zhang2023.setup"], None, 2)
    assert [entry["verdict"] for entry in entries] == ["passed", "passed"]
    (own,) = (entry for entry in entries if entry["id"] == "own.one")
    assert "ran in the calling process" in own["remark"]
