"""`icl-lab run`: Hydra composes the configuration and calls the job once, or once for every point of a sweep.

Hydra's own error report prints a traceback and exits with 1, so its errors are let through here (by the variable it
reads for that) and turned into one sentence and exit status 2.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import to_absolute_path
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from icl_lab.config import compose, paths
from icl_lab.core import streams
from icl_lab.core.errors import IclLabError, InvalidValueError, in_words, mistake_in
from icl_lab.runs import cache, distributed, environment
from icl_lab.runs.hydra import outcomes
from icl_lab.runs.hydra import sweeper as points

_RAISE = "HYDRA_FULL_ERROR"


def launch(arguments: Sequence[str]) -> int:
    """Run the job with Hydra's command-line arguments.

    Args:
      arguments: overrides and Hydra's options, as they follow `icl-lab run`.

    Returns:
      0; 1 if a run raised or ended short of convergence; 2 if one describes no valid problem. In a sweep the largest of them,
      wherever the runs were done.

    Raises:
      InvalidValueError: a configuration that cannot be composed.
    """
    environment.settle()
    cache.enable()
    distributed.join()
    compose.register()
    here: list[outcomes.JobEnd] = []
    launcher = os.getpid()
    outcomes.Outcomes.folder = None

    def job(config: DictConfig) -> outcomes.JobEnd:
        if os.getpid() != launcher:
            streams.outlive_readers()
        # In the process that a launcher runs the job in, before JAX is imported there.
        environment.settle()
        cache.enable()
        from icl_lab.runs.execute import execute

        if HydraConfig.get().job.chdir:
            # The folder that the user named it in; the job is in one of its own.
            config.run_root = to_absolute_path(config.run_root)
        try:
            run = execute(config)
            outcome = outcomes.JobEnd(0) if run.converged else outcomes.JobEnd(1, f"ended as {run.status}: {run.folder}")
        except Exception as error:
            if before_raise:
                raise
            outcome = outcomes.JobEnd(_report(error), in_words(error))
        here.append(outcome)
        return outcome

    def do(configs: list[DictConfig]) -> None:
        import jax

        from icl_lab.runs import execute, sweep

        if jax.process_count() > 1:
            for config in configs:
                job(config)
            return
        resolved = []
        for config in configs:
            try:
                resolved.append(execute.resolve(config))
            except InvalidValueError as error:
                here.append(outcomes.JobEnd(_report(error), str(error)))
        for point in sweep.execute_all(resolved) if resolved else ():
            if point.error is not None:
                here.append(outcomes.JobEnd(_report(point.error), str(point.error)))
            else:
                here.append(outcomes.JobEnd(0 if point.status == "done" else 1))

    points.register()
    points.Points.do = do
    before_argv, before_raise = sys.argv, os.environ.get(_RAISE)
    sys.argv = ["icl-lab run", *_options_first(arguments)]
    os.environ[_RAISE] = "1"
    try:
        hydra.main(config_path=str(paths.config_dir()), config_name="run", version_base="1.3")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise InvalidValueError(one_sentence(error)) from error
    except Exception as error:
        if before_raise:
            raise
        return _report(error)
    finally:
        sys.argv = before_argv
        if before_raise is None:
            del os.environ[_RAISE]
        else:
            os.environ[_RAISE] = before_raise
    if here or outcomes.Outcomes.folder is None:
        return max((outcome.status for outcome in here), default=0)
    failures = outcomes.failures(outcomes.Outcomes.folder)
    for failure in failures:
        print(f"icl-lab: job {failure['job']} ({' '.join(failure['overrides'])}) {failure['error']}", file=sys.stderr)
    return max((failure["status"] for failure in failures), default=0)


def _options_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with Hydra's options before the overrides: its parser refuses an option after the first override."""
    overrides = get_args_parser().parse_intermixed_args(arguments).overrides
    options = list(arguments)
    for override in overrides:
        options.remove(override)
    return [*options, "--", *overrides]


def _report(error: Exception) -> int:
    """Say on stderr why a run failed; the exit status, 2 if the user can mend it and 1 if not."""
    mistake = mistake_in(error)
    if isinstance(mistake, IclLabError):
        print(f"icl-lab: {mistake}", file=sys.stderr)
        return 2
    print(f"icl-lab: the run failed: {in_words(error)}", file=sys.stderr)
    return 1


def one_sentence(error: Exception) -> str:
    """What Hydra or OmegaConf has to say about a configuration, on one line, with the accepted keys or choices."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(cause.parent_node, DictConfig):
        accepted = ", ".join(sorted(str(key) for key in cause.parent_node))
        return f"unknown configuration key `{cause.full_key}`; accepted here: {accepted}."
    if isinstance(cause, OmegaConfBaseException):
        key = f"`{cause.full_key}`: " if cause.full_key else ""
        return f"{key}{str(cause).splitlines()[0].rstrip('.')}."
    text = str(error).split("Config search path")[0]
    sentence = re.sub(r"\s+", " ", re.sub(r"\n\t", ", ", text.replace(":\n\t", ": "))).strip()
    launcher = re.search(r"'hydra/launcher/(joblib|submitit_local|submitit_slurm|ray)'", sentence)
    if launcher is None:
        return sentence
    extra = "ray" if launcher[1] == "ray" else "cluster"
    return f"{sentence} That launcher comes with `pip install 'icl-lab[{extra}]'`."
