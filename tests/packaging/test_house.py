"""The house stays one in which a newcomer finds things: small modules, few to a folder."""

from pathlib import Path

import pytest

import icl_lab

PACKAGE = Path(icl_lab.__file__).parent
MOST_LINES = 400
MOST_MODULES = 16
FOLDERS = sorted({path.parent for path in PACKAGE.rglob("*.py")})


def name(path):
    return str(path.relative_to(PACKAGE.parent))


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_a_folder_holds_few_modules(folder):
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MOST_MODULES, modules


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_modules_are_short(folder):
    lengths = {name(path): len(path.read_text().splitlines()) for path in folder.glob("*.py")}
    assert not {path: lines for path, lines in lengths.items() if lines > MOST_LINES}
