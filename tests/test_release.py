"""One version, one set of bounds, one list of commands: what a release is made of."""

import ast
import os
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import elk_ssm

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OWN = "elk-ssm"


def plain(name):
    """A name as package indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def release(version):
    """Numbers of a version, without zeros at its end."""
    numbers = [int(digits) for digits in re.findall(r"\d+", version)]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def pins(name):
    """Name to version of a file of constraints."""
    lines = (ROOT / name).read_text().splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in found), name
    return {plain(package): version for package, version in found}


def bounds(requirements):
    """Name to lower bound of requirements, those on the package's own extras apart."""
    found = {}
    for line in requirements:
        if line.startswith(f"{OWN}["):
            continue
        package, version = re.fullmatch(
            r"([\w.-]+)(?:\[\w+\])?>=([\d.]+)", line
        ).groups()
        assert found.setdefault(plain(package), version) == version, line
    return found


EXTRAS = PROJECT["project"]["optional-dependencies"]
DECLARED = bounds(
    [
        *PROJECT["project"]["dependencies"],
        *(x for lines in EXTRAS.values() for x in lines),
    ]
)


class TestVersion:
    def test_it_is_written_in_one_place(self):
        assert "version" not in PROJECT["project"]
        assert PROJECT["project"]["dynamic"] == ["version"]
        place = PROJECT["tool"]["hatch"]["version"]["path"]
        assigned = [
            node.value.value
            for node in ast.parse((ROOT / place).read_text()).body
            if isinstance(node, ast.Assign) and node.targets[0].id == "__version__"
        ]
        assert assigned == [elk_ssm.__version__]

    def test_the_metadata_have_it(self):
        assert metadata.version(OWN) == elk_ssm.__version__

    def test_the_citation_has_it(self):
        yaml = pytest.importorskip("yaml")
        citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
        assert citation["version"] == elk_ssm.__version__

    def test_the_changelog_begins_with_it_or_with_what_is_to_come(self):
        text = (ROOT / "docs" / "changelog.md").read_text()
        titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert titles[0] == "Unreleased"
        version, date = re.fullmatch(r"(\S+), (\d{4}-\d\d-\d\d)", titles[1]).groups()
        assert version == elk_ssm.__version__
        yaml = pytest.importorskip("yaml")
        citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
        assert str(citation["date-released"]) == date


def test_the_citation_is_valid():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= set(citation)
    assert citation["license"] == PROJECT["project"]["license"]
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert "2407.19115" in paper["url"]


class TestBounds:
    def test_the_oldest_are_pinned_exactly(self):
        oldest = pins("constraints-oldest.txt")
        assert set(DECLARED) <= set(oldest)
        for package, bound in DECLARED.items():
            assert release(oldest[package]) == release(bound), package

    def test_what_is_pinned_is_allowed(self):
        pinned = pins("constraints.txt")
        groups = PROJECT["dependency-groups"].values()
        for requirements in (*groups, [f"{k}>={v}" for k, v in DECLARED.items()]):
            for package, bound in bounds(requirements).items():
                assert release(pinned[package]) >= release(bound), package

    def test_tests_install_no_older_ones_than_users(self):
        for requirements in PROJECT["dependency-groups"].values():
            for package, bound in bounds(requirements).items():
                assert bound == DECLARED.get(package, bound), package

    @pytest.mark.skipif(
        os.environ.get("ELK_VERSIONS") != "oldest", reason="make test-oldest"
    )
    def test_the_oldest_are_what_runs_here(self):
        for package, version in pins("constraints-oldest.txt").items():
            if package in DECLARED:
                assert release(metadata.version(package)) == release(version), package

    @pytest.mark.skipif(
        os.environ.get("ELK_VERSIONS") != "latest", reason="make test-latest"
    )
    def test_no_older_ones_than_pinned_run_here(self):
        pinned = pins("constraints.txt")
        for package in bounds(PROJECT["project"]["dependencies"]):
            assert release(metadata.version(package)) >= release(pinned[package])

    def test_extras_of_extras_exist_and_all_has_all(self):
        named = {
            extra
            for lines in EXTRAS.values()
            for line in lines
            for found in re.findall(rf"^{OWN}\[(.+)\]$", line)
            for extra in found.split(",")
        }
        assert named <= set(EXTRAS)
        assert named | {"all"} == set(EXTRAS)


def targets():
    """Names that `make` knows."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    phony = re.search(r"^\.PHONY:(.*)$", text, re.MULTILINE)[1].split()
    rules = re.findall(r"^([\w-]+):", text, re.MULTILINE)
    assert set(phony) == set(rules)
    return set(rules)


def test_commands_that_are_named_exist():
    known = targets()
    files = [ROOT / ".ci" / "run", *sorted((ROOT / ".github" / "workflows").iterdir())]
    files += [ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "README.md")]
    files.append(ROOT / "docs" / "contributing.md")
    for path in files:
        for line in re.findall(r"(?:^|`|run: )make ([^\n`#]+)", path.read_text(), re.M):
            words = [word for word in line.split() if re.fullmatch(r"[a-z-]+", word)]
            assert set(words) <= known, path.name


def test_the_fast_part_is_there():
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    for name in re.search(r"^FAST \?= (.*)$", text, re.MULTILINE)[1].split():
        file, _, test = name.partition("::")
        assert (ROOT / file).exists(), name
        assert not test or f"def {test}(" in (ROOT / file).read_text(), name


def test_workflows_cover_the_promised_pythons():
    yaml = pytest.importorskip("yaml")
    folder = ROOT / ".github" / "workflows"
    flow = yaml.safe_load((folder / "ci.yml").read_text())
    promised = [
        line.rsplit(" ", 1)[1]
        for line in PROJECT["project"]["classifiers"]
        if line.startswith("Programming Language :: Python :: 3.")
    ]
    assert flow["jobs"]["latest"]["strategy"]["matrix"]["python"] == promised
    assert PROJECT["project"]["requires-python"] == f">={promised[0]}"
    publish = yaml.safe_load((folder / "release.yml").read_text())["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}  # and no token of PyPI's
    assert "secrets." not in (folder / "release.yml").read_text()


def test_hooks_fetch_nothing():
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = {hook["id"]: hook for hook in config["repos"][0]["hooks"]}
    assert set(hooks) == {"ruff", "ruff-format", "mypy"}
    assert all(hook["language"] == "system" for hook in hooks.values())


def test_warnings_of_our_own_are_errors():
    """And those of others are not, whatever their line is called by."""
    import warnings

    def warn(module, kind=UserWarning):
        warnings.warn_explicit("said", kind, f"{module}.py", 1, module)

    for module in ("elk_ssm", "elk_ssm.solve.loop", "benchmarks.harness"):
        with pytest.raises(UserWarning, match="said"):
            warn(module)
    with pytest.raises(DeprecationWarning):
        warn("tests.test_scan", DeprecationWarning)
    with pytest.warns(UserWarning, match="said"):
        warn("elk_ssm_of_others")
