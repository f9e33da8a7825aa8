"""Which tests answer which public bug reports: the kind of fault that people met elsewhere, and where it is tried here.

A report is a repository and the number of its issue or pull request. Most are of other projects; what is tested is that this
one does not have the same fault.
"""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent

REPORTS = (
    # Never wrong.
    ("statsmodels/statsmodels#1662", "the cut-off of a pseudo-inverse hides small directions", "training/test_verdicts.py"),
    ("scipy/scipy#10879", "a cut-off of a pseudo-inverse that is too coarse", "training/test_verdicts.py"),
    ("JuliaNLSolvers/Optim.jl#873", "success reported on a badly scaled problem", "training/test_verdicts.py"),
    ("coin-or/Ipopt#69", "a solution reported as found that is none", "training/test_verdicts.py"),
    ("patrick-kidger/diffrax#207", "no number of steps is enough for a stiff problem", "training/test_verdicts.py"),
    ("jax-ml/jax#13346", "a setting of the generator changes the numbers of a seed", "cli/test_foreign_environment.py"),
    ("SlopDotCash/asi#2919", "the environment's generator changes the numbers of a seed", "cli/test_foreign_environment.py"),
    # Never stuck, never growing.
    ("PyAutoLabs/PyAutoFit#1528", "a vectorised program waits for ever on the CPU's thread pool", "core/test_compiled.py"),
    ("PyAutoLabs/PyAutoFit#1530", "an operation waits for the pool in which it runs", "core/test_compiled.py"),
    ("IntelPython/dpnp#1778", "a batched solve hangs on a CPU", "core/test_compiled.py"),
    ("tensorflow/tensorflow#4917", "operations that block starve a pool of as many threads as cores", "core/test_compiled.py"),
    ("pasteurlabs/mosaic#15", "a long process runs out of memory maps", "core/test_programs.py"),
    ("jax-ml/jax#9929", "a segmentation fault of the compiler in a test run", "core/test_programs.py"),
    ("jax-ml/jax#10828", "compiled programs pile up", "core/test_programs.py"),
    ("JuliaLang/julia#49745", "compiled code exceeds the kernel's number of maps", "core/test_programs.py"),
    ("pytest-dev/pytest-xdist#784", "a lost worker's tests are waited for", "packaging/test_lost_worker.py"),
    ("pytest-dev/pytest-xdist#1323", "a worker in place of a lost one has nothing to do", "packaging/test_lost_worker.py"),
    ("oclif/cli-ux#137", "no progress where the output is no terminal", "cli/test_never_silent.py"),
    # Environment, places, names.
    ("garrytan/gbrain#2840", "liveness by process number is wrong across namespaces", "runs/test_liveness.py"),
    ("deeptools/deepTools#1416", "a notebook's matplotlib backend in a command", "cli/test_foreign_environment.py"),
    ("nanograv/PINT#470", "a failed figure loses the computation", "runs/test_damaged.py"),
    ("ROCm/TheRock#4236", "the environment names a platform that is not there", "cli/test_foreign_environment.py"),
    ("jax-ml/jax#23208", "an accelerator's build on a machine without one", "cli/test_foreign_environment.py"),
    ("pi-top/pi-top-Python-SDK#476", "matplotlib's message on its fonts among the output", "cli/test_foreign_environment.py"),
    ("google-deepmind/alphafold3#656", "a message on a backend that is not there", "cli/test_foreign_environment.py"),
    ("Textualize/rich#3203", "square brackets in a path are markup", "runs/test_damaged.py"),
    ("evalstate/fast-agent#299", "a path in brackets is taken for a closing tag", "runs/test_damaged.py"),
    ("wkentaro/git-hunk#14", "brackets of a user's text vanish", "runs/test_damaged.py"),
    ("langchain-ai/deepagents#2307", "brackets of an error message vanish", "runs/test_damaged.py"),
    ("microsoft/knack#153", "a folder called ~", "runs/test_damaged.py"),
    # Configuration.
    ("Valentyn1997/CausalTransformer#3", "a choice of a group that looks like an integer", "config/test_own_files.py"),
    ("hydra-ecosystem/hydra#2599", "a name of digits and an E is a number", "config/test_own_files.py"),
    ("hydra-ecosystem/hydra#1896", "mappings are merged and cannot be replaced", "config/test_own_files.py"),
    ("hydra-ecosystem/hydra#3106", "values of a sweep that are mappings", "config/test_compose.py"),
    ("hydra-ecosystem/hydra#3053", "an option between overrides", "config/test_own_files.py"),
    ("hydra-ecosystem/hydra#1617", "a user's file without a schema", "config/test_own_files.py"),
    ("exosite-archive/exoline#97", "a tab in a YAML file", "config/test_own_files.py"),
    ("yaml/pyyaml#173", "1e5 is a word", "config/test_yaml12.py"),
    ("yaml/pyyaml#395", "1:10 is sexagesimal", "config/test_yaml12.py"),
    ("eemeli/yaml#205", "010 is octal", "config/test_yaml12.py"),
    ("DevilsAutumn/quater#26", "a word where a list is meant is split into letters", "claims/test_claim.py"),
    ("BrianPugh/cyclopts#942", "NaN passes a range", "config/test_limits.py"),
    ("jkitchin/pounce#298", "tolerances of 0, -1 and NaN", "config/test_limits.py"),
    ("JuliaStats/NMF.jl#109", "no steps at all", "config/test_limits.py"),
    ("patrick-kidger/optimistix#121", "an optimiser that needs the loss", "training/test_every_optimiser.py"),
    # Records.
    ("mlflow/mlflow#3052", "one damaged record hides every run", "runs/test_damaged.py"),
    ("github/spec-kit#3904", "a cut status file ends the listing", "runs/test_damaged.py"),
    ("monad-developers/ultrafuzz#1075", "a folder without its record ends the listing", "runs/test_damaged.py"),
    ("bytedance/jaqmc#22", "a cut archive of arrays", "runs/test_damaged.py"),
    ("Center-for-Applied-AI/delm#61", "a configuration from before a key was added", "runs/test_damaged.py"),
    # Stopping, pipes, outputs, seeds.
    ("python/cpython#125886", "an interrupt leaves a pool of workers behind", "cli/test_stopping.py"),
    ("bootandy/dust#619", "an interrupt throws partial results away", "cli/test_stopping.py"),
    ("humanbound/humanbound#75", "an interrupted run discards what it had finished", "cli/test_stopping.py"),
    ("jax-ml/jax#18246", "an interrupt is not heard during a computation", "cli/test_stopping.py"),
    ("keras-team/keras#21019", "a segmentation fault after an interrupt", "cli/test_stopping.py"),
    ("Backblaze/B2_Command_Line_Tool#1071", "a pipe whose reader has gone", "cli/test_stopping.py"),
    ("deeptools/deepTools#764", "an output's place is tried after the work", "cli/test_stopping.py"),
    ("ziglang/zig#18932", "nothing selected counts as success", "cli/test_stopping.py"),
    ("joblib/loky#373", "workers that grow and are not recycled", "claims/test_workers.py"),
    ("marimo-team/marimo#9762", "a notebook's function in a spawned process", "claims/test_workers.py"),
    ("python/cpython#132898", "a function of the interactive session in a worker", "claims/test_workers.py"),
    ("jax-ml/jax#4745", "a seed beyond 64 bits", "cli/test_misuse.py"),
    ("NAVADMC/ADSM#14", "a negative seed is accepted", "cli/test_misuse.py"),
    ("pytest-dev/pytest-randomly#275", "a seed outside the generator's range", "cli/test_misuse.py"),
    # Installing.
    ("google/flax#5596", "releases that do not fit together", "packaging/test_lower_ends.py"),
    ("patrick-kidger/equinox#869", "a release that a newer JAX breaks", "packaging/test_lower_ends.py"),
    ("patrick-kidger/equinox#403", "a lower end that was never tried", "packaging/test_lower_ends.py"),
    ("princeton-ddss/blackfish#403", "lower ends rot unless they are tested", "packaging/test_lower_ends.py"),
)


@pytest.mark.parametrize(("report", "fault", "answer"), REPORTS, ids=[report for report, _, _ in REPORTS])
def test_every_report_is_answered_by_tests(report, fault, answer):
    assert report.count("#") == 1
    assert fault
    assert "def test_" in (ROOT / answer).read_text(encoding="utf-8")
