"""Exit status and message of the misuses of every verb but `run`, whose own are in tests/runs and test_as_a_user.py."""

import pytest

from icl_lab import cli


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "nothing.*"], "no claim matches 'nothing.*'"),
        (["verify", "--set", "bogus=1"], "accepted are"),
        (["verify", "--set", "d"], "`--set` takes NAME=VALUE; got 'd'."),
        (["verify", "--set", "d=[1"], "YAML syntax; got '[1'"),
        (["verify", "--set", "d=0"], "got 0"),
        (["verify", "zhang2023.setup", "--set", "seed=-1"], "`seed` must be an integer >= 0; got -1"),
        (
            ["verify", "zhang2023.setup", "--set", "seed=18446744073709551615"],
            "seed` must be an integer from 0 to",
        ),
        (["verify", "zhang2023.setup", "--set", "d=100000"], "`d` must be at most 1024"),
        (["verify", "zhou2025.trained-weights", "--set", "N=1e9"], "Take a shorter context"),
        (["verify", "zhou2025.trained-weights", "--set", "rho=[0.9999999]"], "Take a longer context"),
        (["verify", "--jobs", "0"], "`jobs` must be an integer >= 1; got 0."),
        (["verify", "--json", "no/such/folder/x.json"], "the folder of `--json` must exist"),
        (["claims", "--status", "proved"], "`status` must be one of stated, corrected, refuted, extended; got 'proved'."),
        (["table", "no/such/folder"], "RUN_ROOT must be an existing folder"),
    ],
)
def test_other_verbs_say_what_is_wrong_and_exit_with_two(arguments, message, capsys):
    assert cli.main(arguments) == cli.MISUSE
    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""


@pytest.mark.parametrize("arguments", [[], ["fly"], ["verify", "--jobs", "many"], ["table"], ["claims", "--yaml"]])
def test_wrong_arguments_exit_with_two(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == cli.MISUSE
    assert "usage: icl-lab" in capsys.readouterr().err
