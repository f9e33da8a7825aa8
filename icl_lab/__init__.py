"""icl_lab: the theory lab for in-context learning.

A theorem beside what training does, in a few lines:

  >>> from icl_lab import analysis, models, objectives, tasks, theory, training
  >>> task = tasks.LinearRegression(dim=2, context_length=8, covariance=[2.0, 0.5])
  >>> model = models.LinearSelfAttention()
  >>> loss = objectives.population(task, model)  # exact, no prompt is drawn
  >>> path = training.gradient_flow(loss, models.initializers.zhang(task.dim, scale=0.1))
  >>> print(path.verdict)
  Verdict.CONVERGED
  >>> best = theory.zhang2023.optimum(task)  # a closed form
  >>> analysis.compare(path.limit, best).passed
  True
  >>> round(float(loss.risk(path.limit)), 6), round(best.risk, 6)
  (0.65331, 0.65331)

Such comparisons are kept as claims, which anybody can run again:

  >>> from icl_lab.claims import registry, verify
  >>> [claim.id for claim in registry.select(["mahankali2023.thm*"])]
  ['mahankali2023.thm1', 'mahankali2023.thm2', 'mahankali2023.thm3']
  >>> [entry["verdict"] for entry in verify.run(["zhang2023.setup"])]
  ['passed']
"""

from __future__ import annotations

from pathlib import Path

from icl_lab.core import compiler

__version__ = "0.1.0"

compiler.settle()


def enable_cache() -> Path | None:
    """Keep compiled programs on disk, so that the next process that asks the same kind of question starts at once.

    Call it first, before JAX is imported: programs with an ODE solver are kept only then. The command line does it by itself.

    Returns:
      The folder, or None where the cache is switched off (`JAX_ENABLE_COMPILATION_CACHE=false`) or cannot be written.

    Examples:
      >>> import icl_lab
      >>> folder = icl_lab.enable_cache()  # doctest: +SKIP
    """
    from icl_lab.runs import cache

    return cache.enable()
