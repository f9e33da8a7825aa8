"""Results of a verification, written by hand for the tests of the page: every kind of failure, and hostile texts."""

HOSTILE = """<script>document.title = "taken"</script> & "quoted" <img src=x onerror=alert(1)>"""


def check(name, error=1e-9, tolerance=1e-6, passed=True, measured=1.0, expected=1.0, standard_error=None):
    return {
        "name": name,
        "measured": measured,
        "expected": expected,
        "error": error,
        "tolerance": tolerance,
        "standard_error": standard_error,
        "passed": passed,
    }


def claim(id, checks, paper="Alpha 2023", **more):
    passed = "reason" not in more and all(one["passed"] for one in checks)
    return {
        "id": id,
        "paper": paper,
        "statement": f"Statement of {id}.",
        "source": "Theorem 1",
        "parameters": {"d": 3, "Lam": None, "rho": [0.5, -0.3]},
        "checks": checks,
        "passed": passed,
        "seconds": 0.25,
        "device": "cpu (cpu)",
        "precision": "float64",
        **more,
    }


def results():
    """Seven claims: four of Alpha, of which two failed, one of Beta with texts that must be escaped, and two of the lab's."""
    vector = [float(i) / 7 for i in range(60)]
    return [
        claim("alpha.exact", [check("holds_abs", 0.0, 0.0), check("limit", 5e-7, 1e-6)]),
        claim("alpha.off", [check("fine"), check("slope", 2e-3, 1e-3, False), check("rate", 3.1e-2, 1e-3, False)]),
        claim("alpha.vector", [check("weights", 1.2e-7, 1e-6, measured=vector, expected=vector)]),
        claim("alpha.raised", [], reason="LinAlgError: singular <matrix> (zheng.py:12)"),
        claim("beta.hostile", [check(HOSTILE)], paper='Beta "2024" & <b>others</b>', statement=HOSTILE),
        claim("lab.nan", [check("loss", None, 1e-3, False, measured=None)], paper="icl_lab, extending Beta"),
        claim("lab.noisy", [check("risk", 0.55, 0.6, False, standard_error=0.15)], paper="icl_lab"),
    ]
