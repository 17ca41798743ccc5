"""The house holds: imports fall, no machine is named, nothing pickles, the README is true."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
ROOMS = CONFIG["root_packages"]
CONTRACTS = {contract["id"]: contract["name"] for contract in CONFIG["contracts"]}

# contract, the file that breaks it, the line that does.
VIOLATIONS = [
    ("imports-fall", "trail", "import world"),
    ("imports-fall", "trail", "import intake"),
    ("imports-fall", "intake", "import models"),
    ("imports-fall", "models", "import world"),
    ("imports-fall", "world", "import pipelines"),
    ("imports-fall", "monitoring", "import pipelines"),
    ("imports-fall", "pipelines", "import serving"),
    ("imports-fall", "serving", "import bench"),
    ("imports-fall", "serving", "import dags"),
    ("dags-alone", "dags", "import trail"),
    ("dags-alone", "dags", "import pipelines"),
    ("dags-alone", "dags", "import torch"),
    ("dags-alone", "dags", "from mlflow import MlflowClient"),
    ("deploy-alone", "deploy", "import serving"),
    ("deploy-alone", "deploy", "import mlflow"),
    ("trail-pure", "trail", "import torch.nn"),
    ("trail-pure", "trail", "import mlflow"),
    ("trail-pure", "trail", "from fastapi import FastAPI"),
    ("trail-pure", "trail", "import airflow"),
    ("trail-pure", "trail", "def connect():\n    import redis"),
    ("world-blind", "world", "import trail.rules"),
    ("world-blind", "world", "from trail import features"),
    ("serving-apart", "serving", "import pipelines"),
    ("serving-apart", "serving", "import world"),
    ("imports-fall", "logbook", "import models"),
    ("intake-light", "logbook", "import mlflow"),
    ("intake-light", "intake", "import torch"),
    ("intake-light", "intake", "import mlflow"),
    ("intake-light", "intake", "import fastapi"),
]

# What belongs to one machine or one registry, and so to no file of the product.
OF_A_MACHINE = re.compile(
    r"(?<![\w.}$~/])/(?:(?:root|work|mnt|srv)/|opt/(?!airflow|ml\b))\w"  # this or that machine
    r"|(?<![\w.}$~/])/(?:home|Users)/(?!airflow)\w"  # somebody's home
    r"|file:/{2,}\w"
    r"|\b[A-Z]:\\\w"
)
OF_A_REGISTRY = re.compile(
    r"//(?:[\w.-]+\.)?(?:pypi|pythonhosted|anaconda|conda|download\.pytorch)\.\w+"
    r"|^\s*--?(?:extra-)?(?:index-url|find-links)[ =]\S*//",
    re.MULTILINE,
)
PICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve"}


def lint_imports(tree: Path, *options: str) -> subprocess.CompletedProcess:
    linter = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [linter, "--no-cache", "--no-logo", *options], cwd=tree, capture_output=True, text=True
    )


def tracked(*patterns: str) -> list[Path]:
    """The tracked files that are there; DVC's and git's own bookkeeping included."""
    git = ["git", "-c", "safe.directory=*"]  # whoever owns the checkout
    listed = subprocess.run(
        [*git, "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [file for file in files if file.is_file()]


def found(pattern: re.Pattern, text: str) -> list[str]:
    return [
        f"line {text.count(chr(10), 0, match.start()) + 1}: {match.group().strip()}"
        for match in pattern.finditer(text)
    ]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the rooms and of the contracts, to break."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for room in ROOMS:
        shutil.copytree(
            ROOT / room,
            tmp_path / room,
            ignore=lambda folder, names: [
                name
                for name in names
                if not name.endswith(".py")
                and (not (Path(folder) / name).is_dir() or name in {"__pycache__", "weights"})
            ],
        )
    return tmp_path


def test_imports_only_fall():
    answer = lint_imports(ROOT)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_every_room_is_under_contract():
    packages = {file.parent.name for file in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages == set(ROOMS)


def test_every_contract_is_broken_below():
    assert {contract for contract, _, _ in VIOLATIONS} == set(CONTRACTS)


@pytest.mark.parametrize(("contract", "room", "line"), VIOLATIONS)
def test_planted_violation_breaks_its_contract(tree: Path, contract: str, room: str, line: str):
    (tree / room / "planted.py").write_text(f"{line}\n")
    answer = lint_imports(tree, "--contract", contract)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert f"{CONTRACTS[contract]} BROKEN" in answer.stdout
    assert f"{room}.planted" in answer.stdout


@pytest.mark.parametrize(
    ("pattern", "bad", "good"),
    [
        (
            OF_A_MACHINE,
            ["'/root" + "/x'", "cd /work" + "/main", "/home" + "/ann/data", "file:/" + "//srv/x"],
            ["$PWD/work/x", "../work/", "${HOME}/root/a", "work/validated", "/home/airflow/x"],
        ),
        (
            OF_A_REGISTRY,
            ["https:/" + "/pypi.org/simple", "--index-url http:/" + "/10.0.0.1/simple"],
            ["https://example.org/docs", "--index-url-less"],
        ),
    ],
)
def test_patterns_find_what_they_should(pattern: re.Pattern, bad: list[str], good: list[str]):
    assert [text for text in bad if not pattern.search(text)] == []
    assert [text for text in good if pattern.search(text)] == []


def test_no_tracked_file_names_a_machine_or_a_registry():
    said = {}
    for file in tracked():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not a text
        if finds := found(OF_A_MACHINE, text) + found(OF_A_REGISTRY, text):
            said[str(file.relative_to(ROOT))] = finds
    assert said == {}


def pickling(source: str) -> list[str]:
    """Where Python source imports a pickler, or asks a library to pickle."""
    finds = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                used = {name.name.split(".")[0] for name in names} & PICKLERS
            case ast.ImportFrom(module=str(module), level=0):
                used = {module.split(".")[0]} & PICKLERS
            case ast.Attribute(attr="read_pickle" | "to_pickle" as attr):
                used = {attr}
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                used = {"allow_pickle=True"}
            case ast.keyword(arg="weights_only", value=ast.Constant(value=False)):
                used = {"weights_only=False"}
            case _:
                continue
        finds += [f"line {getattr(node, 'lineno', '?')}: {name}" for name in sorted(used)]
    return finds


def test_pickling_is_noticed():
    assert pickling("import joblib") and pickling("from pickle import load")
    assert pickling("frame.to_pickle(path)") and pickling("numpy.load(p, allow_pickle=True)")
    assert not pickling("import json\nnumpy.load(p, allow_pickle=False)")


def test_no_tracked_file_pickles():
    said = {
        str(file.relative_to(ROOT)): finds
        for file in tracked("*.py")
        if (finds := pickling(file.read_text(encoding="utf-8")))
    }
    assert said == {}


def commands_of_readme() -> list[str]:
    """The lines of the README's code, in blocks and in passing."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    passing = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return [line.split(" #")[0] for block in blocks for line in block.splitlines()] + passing


def targets_of_makefile() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_readme_commands_exist():
    commands = commands_of_readme()
    wanted = {
        word
        for command in commands
        for words in re.findall(r"\bmake((?: +[a-z][a-z-]*(?![\w=.]))+)", command)
        for word in words.split()
    }
    assert {"run", "test"} <= wanted, "the README names the two commands, make run and make test"
    assert wanted - targets_of_makefile() == set()


def test_readme_modules_exist():
    modules = {
        module
        for command in commands_of_readme()
        for module in re.findall(r"\bpython3? -m ([a-z_]+(?:\.[a-z_]+)*)", command)
        if module.split(".")[0] in ROOMS
    }
    paths = {module: ROOT.joinpath(*module.split(".")) for module in modules}
    missing = {
        module
        for module, path in paths.items()
        if not path.with_suffix(".py").is_file() and not (path / "__main__.py").is_file()
    }
    assert missing == set()


def test_every_target_says_what_it_does():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    undocumented = {name for name in targets_of_makefile() if f"make {name} " not in shown.stdout}
    assert undocumented == set()
