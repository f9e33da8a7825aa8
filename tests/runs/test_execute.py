"""The job of a run: what it stores, what it refuses, and that it does nothing twice."""

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from rich.console import Console

from icl_lab import analysis, theory
from icl_lab.config import build, paths
from icl_lab.config.compose import register
from icl_lab.core.errors import IclLabError
from icl_lab.models import LSAWeights
from icl_lab.runs import execute, records, store

QUICK = ("analysis.prompts=400", "analysis.figures=false")


@pytest.fixture
def run(tmp_path):
    """A function: overrides -> (outcome, what was printed)."""

    def run(*overrides):
        register()
        with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
            config = compose("run", overrides=[f"run_root={tmp_path}", *QUICK, *overrides])
        with open("/dev/null", "w") as nowhere:
            console = Console(file=nowhere, record=True, width=120)
            return execute.execute(config, console), console.export_text()

    return run


SMALL = ("task.dim=2", "task.context_length=6", "analysis.context_lengths=[]")


def test_run_lands_on_the_closed_form_and_stores_all_of_it(run):
    settings = ("task.dim=2", "task.context_length=6", "task.covariance=[[2,0.5],[0.5,1]]", "analysis.figures=true")
    settings += ("analysis.context_lengths=[12,3]",)
    outcome, printed = run(*settings)
    assert outcome.converged
    assert outcome.status == "done"
    assert {path.name for path in outcome.folder.iterdir()} == {
        "figures",
        "config.yaml",
        "metrics.json",
        "status.json",
        "trajectory.npz",
        "weights.npz",
    }

    # What is in the files is the theorem's limit, found here without going through the run's own comparison.
    covariance = np.array([[2.0, 0.5], [0.5, 1.0]])
    arrays = records.read_arrays(outcome.folder / "weights.npz")
    limit = LSAWeights(w_pv=arrays["limit.w_pv"], w_kq=arrays["limit.w_kq"])
    w_pv, w_kq = theory.zhang2023.limit(covariance, 6)
    # Ten times the weight tolerance of the flow, which is relative to weights of norm about 1.
    np.testing.assert_allclose(limit.w_pv, w_pv, atol=1e-7)
    np.testing.assert_allclose(limit.w_kq, w_kq, atol=1e-7)
    metrics = records.read_json(outcome.folder / "metrics.json")
    assert metrics["theory"]["source"].endswith("Theorem 4.1")
    assert metrics["theory"]["weight_distance"] < 1e-7
    # Risks: the model's is exact, so is the closed form's; a wrong 1/2 would be a factor of two.
    assert metrics["comparison"]["model"]["risk"] == pytest.approx(theory.zhang2023.risk(covariance, 6, 6), rel=1e-9)

    trajectory = records.read_arrays(outcome.folder / "trajectory.npz")
    assert np.all(np.diff(trajectory["times"]) > 0)
    assert np.array_equal(trajectory["weights.w_pv"][0], arrays["initial.w_pv"])
    assert trajectory["losses"][-1] < trajectory["losses"][0]

    # Sampled risks at other lengths: four standard errors of the exact ones. At the training length the model's is exact
    # itself, up to the flow's weight tolerance, which enters a minimum squared, and rounding.
    curve = metrics["risk_curve"]
    assert curve["context_lengths"] == [3, 6, 12]
    exact = [theory.zhang2023.risk(covariance, 6, length) for length in curve["context_lengths"]]
    assert curve["closed_form"] == pytest.approx(exact, rel=1e-12)
    gaps = np.abs(np.subtract(curve["risk"]["model"], exact))
    assert np.all(gaps <= 4 * np.asarray(curve["standard_error"]["model"]) + 1e-13)
    assert np.count_nonzero(curve["standard_error"]["model"]) == 2
    for expected in ("CONVERGED", "one preconditioned GD step", "OLS", "ridge", str(outcome.folder)):
        assert expected in printed

    status = records.read_json(outcome.folder / "status.json")
    assert status["seconds"] > status["compile_seconds"] > 0
    assert status["provenance"]["precision"] == {"default_float": "float64", "matmul": "highest"}
    config = yaml.safe_load((outcome.folder / "config.yaml").read_text())
    assert store.config_hash(config) == outcome.folder.name


def test_run_on_inputs_that_are_not_gaussian_lands_on_the_risk_worked_by_hand(run):
    # x uniform on the unit circle, w ~ N(0, I): by rotation invariance the best layer is a step eta I, with E<m, w> = 1 and
    # E|m|^2 = 1/N + (1 - 1/N)/d for m = (1/N) sum_i y_i x_i, hence the risk (d - 1)/(N + d - 1) = 1/7.
    settings = ("task=sphere", "task.dim=2", "task.context_length=6", "analysis.context_lengths=[]")
    outcome, _ = run(*settings, "objective.prompts=20000", "trainer.init_scale=0.5")
    metrics = records.read_json(outcome.folder / "metrics.json")
    assert outcome.converged
    assert metrics["training"]["objective"] == "sampled"
    assert metrics["theory"]["risk"] == pytest.approx(1 / 7, rel=1e-12)
    model, step = metrics["comparison"]["model"], metrics["comparison"]["preconditioned_gradient_descent"]
    assert model["standard_error"] < 0.01
    assert abs(model["risk"] - 1 / 7) < 4 * model["standard_error"]
    # The fitted step sees 400 prompts of its own: its risk is above the best by a share of about d^2 / 400.
    assert step["standard_error"] == 0
    assert 0 < step["risk"] - 1 / 7 < 0.01 / 7
    assert "weight_distance" in step


def test_run_that_is_done_is_not_run_again(run, monkeypatch, leave_over):
    first, _ = run(*SMALL)
    monkeypatch.setattr(execute, "simulate", lambda *_, **__: pytest.fail("ran again"))
    leftover = leave_over(first.folder)
    second, printed = run(*SMALL, "task.noise_std=0")
    assert second == first
    assert not leftover.exists()
    assert "done already" in printed
    assert "CONVERGED" in printed


def test_weights_of_a_run_can_be_used_again(run):
    outcome, _ = run(*SMALL)
    config = yaml.safe_load((outcome.folder / "config.yaml").read_text())
    task, model = build.build_task(config["task"]), build.build_model(config["model"])
    arrays = records.read_arrays(outcome.folder / "weights.npz")
    limit = LSAWeights(w_pv=arrays["limit.w_pv"], w_kq=arrays["limit.w_kq"])
    assert analysis.compare(limit, theory.zhang2023.optimum(task), model).passed


def test_flow_that_runs_out_of_steps_is_stored_as_such_and_is_no_success(run):
    outcome, printed = run(*SMALL, "trainer.max_steps=5")
    assert outcome.status == "max_steps"
    assert not outcome.converged
    assert "MAX_STEPS" in printed
    assert records.read_json(outcome.folder / "status.json")["verdict"] == "max_steps"


def test_descent_that_explodes_is_stored_as_diverged(run):
    outcome, printed = run(*SMALL, "trainer=gradient_descent", "trainer.learning_rate=50", "trainer.steps=300")
    assert outcome.status == "diverged"
    assert not outcome.converged
    assert "DIVERGED" in printed


def test_start_outside_the_assumption_is_named_and_recorded(run):
    outcome, printed = run(*SMALL, "trainer.init_scale=5")
    (warning,) = records.read_json(outcome.folder / "metrics.json")["warnings"]
    assert "Assumption 3.3 of arXiv 2306.09927" in warning
    assert "outside the theorem's assumption" in printed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.context_length=0", "`context_length` must be an integer >= 1; got 0"),
        ("task.dim=0", "`task.dim` must be an integer >= 1; got 0"),
        ("task.covariance=[1,-1]", "must be positive definite; its smallest eigenvalue is -1"),
        ("task.covariance=[[1,0.5],[0,1]]", "must be symmetric"),
        ("task.noise_std=-1", "`noise_std` must be a finite number >= 0; got"),
        ("trainer.init_scale=0", "Assumption 3.3 of arXiv 2306.09927"),
        ("precision=float32", "trainer=gradient_flow integrates in float64"),
        ("analysis.context_lengths=[0]", "`analysis.context_lengths` must be an integer >= 1; got 0"),
        ("trainer.solver=euler", "euler"),
    ],
)
def test_bad_input_is_one_sentence_and_a_record_of_failure(run, tmp_path, override, message):
    with pytest.raises(IclLabError) as caught:
        run(*SMALL, override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    (folder,) = (tmp_path / "default").iterdir()
    status = records.read_json(folder / "status.json")
    assert folder.name.endswith(".failed")
    assert status["status"] == "failed"
    assert message in status["error"]
    assert "Traceback" in status["traceback"]


def test_unknown_key_is_refused_before_anything_is_written(run, tmp_path):
    with pytest.raises(IclLabError, match=r"Unknown configuration key `task\.foo`"):
        run("+task.foo=1")
    assert list(tmp_path.iterdir()) == []


def test_any_other_exception_is_recorded_and_raised_and_the_run_can_be_tried_again(run, tmp_path, monkeypatch):
    def break_down(*_, **__):
        raise RuntimeError("disk on fire")

    with monkeypatch.context() as patch:
        patch.setattr(execute, "simulate", break_down)
        with pytest.raises(RuntimeError, match="disk on fire"):
            run(*SMALL)
    (folder,) = (tmp_path / "default").iterdir()
    assert "disk on fire" in records.read_json(folder / "status.json")["error"]
    outcome, _ = run(*SMALL)
    assert outcome.status == "done"
    assert list((tmp_path / "default").iterdir()) == [outcome.folder]


def test_interrupt_leaves_nothing(run, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(execute, "simulate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(*SMALL)
    assert list((tmp_path / "default").iterdir()) == []
