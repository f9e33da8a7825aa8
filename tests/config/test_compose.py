"""Every YAML file composes, builds what it describes, and refuses keys and types it does not know."""

import re
from dataclasses import fields

import jax
import pytest
from flax import nnx
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from icl_lab import mixers
from icl_lab.config import build, paths, schema
from icl_lab.config.compose import checked, register
from icl_lab.core.errors import InvalidValueError
from icl_lab.models import Decoder
from icl_lab.models.mixer_layer import in_range
from icl_lab.runs.hydra.launch import one_sentence
from icl_lab.training.covariate_shift import Training
from icl_lab.training.prefixes import Curriculum

FOLDER = paths.config_dir()


def composed(*overrides):
    register()
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        return compose("run", overrides=list(overrides))


def resolved(*overrides):
    return OmegaConf.to_container(checked(composed(*overrides)), resolve=True, enum_to_str=True)


def choices(group):
    return sorted(path.stem for path in (FOLDER / group).glob("*.yaml"))


def test_every_file_is_in_a_group_that_this_test_knows():
    groups = {path.parent.name for path in FOLDER.glob("*/*.yaml")}
    assert groups == {*schema.GROUPS, "experiment", "decoder"}


def test_home_is_no_folder_called_tilde(monkeypatch, tmp_path):
    """Hydra's own folder is below `run_root` too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert composed("run_root='~/runs'").run_root == str(tmp_path / "runs")


@pytest.mark.parametrize("name", choices("decoder"))
def test_every_decoder_composes_with_the_experiment_that_trains_it(name):
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        size = compose("covariate_shift", overrides=[f"decoder={name}"]).decoder
    sizes = {name: size[name] for name in ("width", "layers", "heads", "steps", "batch", "learning_rate")}
    Training(**sizes, curriculum=Curriculum(**size.curriculum))

    def make():
        return Decoder(size.dim, size.longest + 1, width=size.width, layers=1, heads=size.heads, rngs=nnx.Rngs(0))

    assert nnx.eval_shape(make).dim == size.dim
    assert size.longest > size.context_length


@pytest.mark.parametrize("name", choices("task"))
def test_every_task_samples_prompts_of_its_sizes(name, key):
    group = resolved(f"task={name}")["task"]
    task = build.build_task(group)
    prompt = jax.eval_shape(task.sample, key)
    assert prompt.inputs.shape == (group["context_length"], task.dim)
    assert prompt.labels.shape == (group["context_length"], task.label_dim)
    assert group["kind"] == name


@pytest.mark.parametrize("name", choices("model"))
def test_every_model_answers_a_prompt(name, key):
    config = resolved(f"model={name}", "trainer.init=gaussian")
    task, model = build.build_task(config["task"]), build.build_model(config["model"])
    weights = build.build_weights(config["trainer"], config["model"], task, model, key)
    assert jax.eval_shape(lambda k: model(weights, task.sample(k)), key).shape == (1,)
    assert config["model"]["kind"] == name


MIXED = ("model=mixer", "trainer.init=gaussian")


def built(*overrides):
    config = resolved(*MIXED, *overrides)
    task, model = build.build_task(config["task"]), build.build_model(config["model"])
    key = jax.random.key(0)
    return model, build.build_weights(config["trainer"], config["model"], task, model, key), task.sample(key)


@pytest.mark.parametrize("name", mixers.MIXERS)
def test_every_mixer_of_the_registry_is_a_model(name):
    model, weights, prompt = built(f"model.mixer={name}", "model.heads=2", "model.layers=2", "model.data_dependent=true")
    assert model.layers.mixer.name == name
    assert jax.eval_shape(model, weights, prompt).shape == (1,)
    assert weights[0].gates.keys() == {gate.name for gate in model.layers.mixer.description.gates}


@pytest.mark.parametrize("form", ["model.gates.write_strength=1.5", "model.gates={write_strength:1.5}"])
def test_gates_and_parameters_of_a_mixer_are_set_by_their_names(form):
    both = ("model.parameters.negative_eigenvalues=true", "model.parameters.scale=1")
    model, weights, _ = built("model.mixer=gated_deltanet", form, *both, "model.key_width=2", "model.gates.log_decay=-0.5")
    assert model.layers.mixer == mixers.named("gated_deltanet", negative_eigenvalues=True, scale=1)
    strength, decay = model.layers.mixer.description.gates
    assert float(in_range(weights.gates["write_strength"].bias, strength)[0]) == pytest.approx(1.5, rel=1e-14)
    assert float(in_range(weights.gates["log_decay"].bias, decay)[0]) == pytest.approx(-0.5, rel=1e-14)
    assert weights.w_k.shape == (1, 2, 6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.mixer=lstm"], r"No mixer is called 'lstm'; choose one of .*deltanet.*softmax"),
        (["model.parameters.size=3"], r"`deltanet` takes the parameters .*'scale'.*got \['size'\]"),
        (["model.parameters.scale=wide"], "`scale` of deltanet must be a number; got 'wide'"),
        (["model.parameters.normalised_step=1"], "`normalised_step` of deltanet must be true or false; got 1"),
        (["model.gates.log_decay=-0.1"], r"deltanet takes the gates \['write_strength'\], each once"),
        (["model.gates.write_strength=1.5"], r"`write_strength` must be in \[0, 1\]"),
        (["model.gates.write_strength=1"], "must start strictly between 0 and 1"),
        (
            ["trainer.init=zhang"],
            "trainer.init=zhang is the start of one layer of one head of attention.*kind=mixer.*Use trainer.init=gaussian",
        ),
    ],
)
def test_what_a_mixer_does_not_have_is_refused_with_what_it_has(overrides, message):
    with pytest.raises(InvalidValueError, match=message):
        built(*overrides)


def test_a_gate_is_a_number_and_other_mappings_take_no_new_keys():
    for overrides, words in [
        ((*MIXED, "model.gates.write_strength=strong"), "`model.gates.write_strength`: Value 'strong'"),
        (("task.covariance={condition_number:4}", "task.covariance.power_law=1"), "power_law"),
    ]:
        with pytest.raises(Exception) as caught:  # noqa: PT011
            composed(*overrides)
        assert words in one_sentence(caught.value)


def test_a_mixer_is_trained_by_adam_unless_another_trainer_is_chosen():
    assert composed("model=mixer").trainer == composed("trainer=adam").trainer
    assert composed("model=mixer", "trainer.steps=7").trainer.steps == 7
    assert composed("model=mixer", "trainer=gradient_descent").trainer.optimiser == "sgd"
    assert composed("model=softmax_attention").trainer.kind == "gradient_flow"


def test_drift_takes_one_persistence_or_one_a_coordinate():
    def persistence(*overrides):
        return build.build_task(resolved("task=drift", *overrides)["task"]).persistence.tolist()

    assert persistence("task.dim=2") == [0.97, 0.97]
    assert persistence("task.dim=2", "task.persistence=[0.8,1]") == [0.8, 1.0]
    for value, message in (
        ("[0.8,1]", r"got shape \(2,\)"),
        ("2", r"must be in \[-1, 1\]"),
        ("{a:1}", "a number or 4 numbers"),
    ):
        with pytest.raises(InvalidValueError, match=message):
            persistence(f"task.persistence={value}")


@pytest.mark.parametrize("name", choices("trainer"))
def test_every_trainer_composes_with_its_start(name, key):
    config = resolved(f"trainer={name}")
    task, model = build.build_task(config["task"]), build.build_model(config["model"])
    weights = build.build_weights(config["trainer"], config["model"], task, model, key)
    assert weights.w_pv.shape == (task.dim + 1, task.dim + 1)
    if config["trainer"]["kind"] == "descent":
        build.build_optimiser(config["trainer"]).init(weights)


@pytest.mark.parametrize("name", choices("objective"))
def test_every_objective_composes(name):
    assert resolved(f"objective={name}")["objective"]["kind"] == name


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_experiment_names_itself_and_builds(name, key):
    config = resolved(f"experiment={name}")
    assert config["experiment"] == name
    task, model = build.build_task(config["task"]), build.build_model(config["model"])
    build.build_weights(config["trainer"], config["model"], task, model, key)


def test_an_override_wins_over_an_experiment_and_the_experiment_over_a_group():
    assert resolved("experiment=zhang2023")["task"]["dim"] == 3
    assert resolved("experiment=zhang2023", "task.dim=4")["task"]["dim"] == 4


@pytest.mark.parametrize("covariance", ["null", "[2,1,0.5]", "[[2,1,0],[1,2,0],[0,0,1]]", "{condition_number:9}"])
def test_covariance_is_taken_in_every_form(covariance):
    task = build.build_task(resolved("task.dim=3", f"task.covariance={covariance}")["task"])
    assert task.covariance.shape == (3, 3)


def test_inverse_task_covariance_is_the_inverse():
    group = resolved("task.dim=2", "task.covariance=[[2,1],[1,2]]", "task.task_covariance=inverse")["task"]
    # By hand: inverse of [[2, 1], [1, 2]] is [[2, -1], [-1, 2]] / 3; a condition number of 3 costs a few eps.
    expected = pytest.approx([2 / 3, -1 / 3, -1 / 3, 2 / 3], abs=1e-15)
    assert list(build.build_task(group).task_covariance.ravel()) == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.dimm=3", "unknown configuration key `task.dimm`; accepted here: context_length, covariance, dim"),
        ("nope=3", "unknown configuration key `nope`; accepted here: .*seed"),
        ("task.dim=seven", "`task.dim`: Value 'seven' of type 'str' could not be converted to Integer"),
        ("precision=float16", "`precision`: Invalid value 'float16', expected one of .*float64"),
        ("task=foo", "Could not find 'task/foo'.*linear_regression"),
        ("task.covariance=[1", "viable alternative|mismatched|extraneous"),
    ],
)
def test_what_cannot_be_composed_is_one_sentence(override, message):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        composed(override)
    sentence = one_sentence(caught.value)
    assert "\n" not in sentence
    assert re.search(message, sentence), sentence


@pytest.mark.parametrize("override", ["+task.foo=1", "+foo=1"])
def test_keys_added_with_a_plus_are_refused_too(override):
    with pytest.raises(InvalidValueError, match=r"Unknown configuration key `(task\.)?foo`; accepted here"):
        checked(composed(override))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.layers=2"], "trainer.init=zhang is the start of one layer of one head .* layers=2"),
        (["model.heads=2"], "heads=2"),
        (["model.layers=0"], "`model.layers` must be an integer >= 1; got 0"),
        (["trainer.init=zero"], "`trainer.init` must be one of zhang, zhang_random, gaussian; got 'zero'"),
        (["model.parametrisation=both"], "`model.parametrisation` must be one of merged, separate"),
    ],
)
def test_starts_that_do_not_fit_the_model_are_refused(overrides, message, key):
    config = resolved(*overrides)
    task, model = build.build_task(config["task"]), build.build_model(config["model"])
    with pytest.raises(InvalidValueError, match=message):
        build.build_weights(config["trainer"], config["model"], task, model, key)


@pytest.mark.parametrize("init", ["zhang", "zhang_random"])
def test_merged_and_separate_starts_are_the_same_function(init):
    config = resolved(f"trainer.init={init}")
    task, model = build.build_task(config["task"]), build.build_model(config["model"])
    key = jax.random.key(5)
    merged = build.build_weights(config["trainer"], config["model"], task, model, key)
    separate = build.build_weights(
        config["trainer"], config["model"] | {"parametrisation": "separate"}, task, model, key
    ).merged()
    # Two factors of an SVD of a matrix of norm 0.1: rounding of a few eps.
    assert abs(merged.w_pv - separate.w_pv).max() < 1e-15
    assert abs(merged.w_kq - separate.w_kq).max() < 1e-15


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.optimiser=adamm", "name of an optax optimiser .* got 'adamm'"),
        ("trainer.optimiser=chain", "name of an optax optimiser .* got 'chain'"),
        ("trainer.learning_rate=0", "`trainer.learning_rate` must be a finite number > 0; got 0"),
    ],
)
def test_optimisers_that_do_not_exist_are_refused(override, message):
    with pytest.raises(InvalidValueError, match=message):
        build.build_optimiser(resolved("trainer=adam", override)["trainer"])


def test_ragged_random_spectra_are_padded_and_mismatches_refused():
    group = resolved("task=random_diagonal")["task"]
    ragged = group | {"values": [[1.0], [0.5, 2.0]], "probabilities": [[1.0], [0.25, 0.75]]}
    # E lambda = (1, 0.25 * 0.5 + 0.75 * 2).
    assert build.build_task(ragged).covariance.diagonal().tolist() == [1.0, 1.625]
    with pytest.raises(InvalidValueError, match=r"lengths \[1, 2\] and \[1, 1\]"):
        build.build_task(ragged | {"probabilities": [[1.0], [1.0]]})


def test_a_mixture_of_covariances_is_built_and_one_that_is_none_refused():
    group = resolved("task=gaussian_mixture", "task.probabilities=[0.5,0.5]")["task"]
    assert build.build_task(group).covariance.tolist() == [[2.0, 0.25], [0.25, 0.75]]
    with pytest.raises(InvalidValueError, match="`covariances` must be matrices of one shape"):
        build.build_task(group | {"covariances": [[[1.0, 0.5], [0.5]]]})


def test_schema_has_a_value_for_every_key_and_yaml_no_other():
    config = composed()
    for group in schema.GROUPS:
        declared = {field.name for field in fields(OmegaConf.get_type(config[group]))}
        assert declared == set(config[group])
    assert not OmegaConf.missing_keys(config)


@pytest.mark.parametrize(
    ("overrides", "covariance"),
    [
        (["task.covariance={condition_number: 4}", "task.covariance={power_law: 1}"], {"power_law": 1}),
        (["task.covariance={condition_number: 4}", "task.covariance=[2,1]"], [2, 1]),
        (["task.covariance=[2,1]", "task.covariance={power_law: 1}"], {"power_law": 1}),
        (["task.covariance={power_law: 1}", "task.covariance=null"], None),
        (["task.covariance={power_law: 1}", "task.covariance.power_law=3"], {"power_law": 3}),
        (["task={covariance: {power_law: 1}}"], {"power_law": 1}),
    ],
)
def test_a_later_covariance_takes_the_place_of_an_earlier_one(overrides, covariance):
    assert resolved(*overrides)["task"]["covariance"] == covariance


def test_numbers_of_a_list_come_into_its_type():
    assert resolved("task=random_diagonal", "task.values=[[1],[2]]")["task"]["values"] == [[1.0], [2.0]]


def test_integers_may_be_written_with_an_exponent():
    config = resolved("seed=1e3", "trainer.max_steps=2e5", "task.context_length=010", "model.heads=2.0")
    numbers = config["seed"], config["trainer"]["max_steps"], config["task"]["context_length"], config["model"]["heads"]
    assert numbers == (1000, 200_000, 10, 2)
    assert all(type(number) is int for number in numbers)


@pytest.mark.parametrize("value", ["yes", "on", "1", "0.0"])
def test_only_true_and_false_are_truth_values(value):
    with pytest.raises(InvalidValueError, match=r"`model\.causal` must be true or false; got"):
        composed(f"model.causal={value}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.kind=sphere"], "`task.kind=sphere` has other keys .* choose `task=sphere`"),
        (["task.kind=foo"], "`task.kind` must be one of linear_regression"),
        (["trainer=adam", "trainer.kind=gradient_flow"], "choose `trainer=gradient_flow`"),
        (["objective=streamed", "objective.kind=sampled"], "choose `objective=sampled`"),
    ],
)
def test_a_kind_belongs_to_its_file(overrides, message):
    with pytest.raises(InvalidValueError, match=message):
        checked(composed(*overrides))
