"""Every public name is documented, in numpydoc form, and its examples run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import voxpatch

#: What numpydoc checks here: that there is a docstring, in form; a summary of one sentence, in the imperative for functions;
#: parameters, returned values, types; and an example for each class and function.
CODES = [
    "GL01", "GL03", "GL05", "GL06", "GL07", "GL08", "GL09", "GL10",
    "SS01", "SS02", "SS03", "SS04", "SS05", "SS06",
    "PR01", "PR02", "PR03", "PR04", "PR06", "PR07", "PR10",
    "RT01", "RT02", "RT03", "RT04", "EX01",
]  # fmt: skip
#: Modules whose public classes and functions are for users, without those of peers' shape.
MODULES = ["voxpatch", "voxpatch.errors"]
#: Of peers' classes, and of errors, only the summary is checked: their parameters are explained elsewhere.
SUMMARY = ["GL08", "SS01", "SS02", "SS03", "SS04", "SS06"]
COMPAT = ["voxpatch.compat.monai", "voxpatch.compat.torchio"]
#: Classes whose items and calls are documented.
READ = (voxpatch.GridSampler, voxpatch.Sampler)
ROOT = pathlib.Path(__file__).parents[2]


def members(owner: Any) -> Iterator[str]:
    """The public methods and properties of a class of ours, and calls."""
    for name, value in vars(owner).items():
        value = getattr(value, "__func__", value)
        is_member = inspect.isroutine(value) or isinstance(value, property) or inspect.isgetsetdescriptor(value)
        if is_member and (not name.startswith("_") or name in ("__call__", "__getitem__") and owner in READ):
            yield name


def public(module: str) -> dict[str, Any]:
    """The public names of a module that are defined in the package, as dotted names."""
    loaded = importlib.import_module(module)
    found = {}
    for name in getattr(loaded, "__all__", None) or [name for name in vars(loaded) if not name.startswith("_")]:
        value = getattr(loaded, name)
        own = getattr(value, "__module__", "").startswith(module if module != "voxpatch" else "voxpatch")
        if not (inspect.isclass(value) or inspect.isroutine(value)) or not own:
            continue
        found[f"{module}.{name}"] = value
        if inspect.isclass(value):
            found.update({f"{module}.{name}.{member}": inspect.getattr_static(value, member) for member in members(value)})
    return found


def documented() -> dict[str, Any]:
    return {name: value for module in MODULES for name, value in public(module).items()}


def complaints(name: str, codes: list[str]) -> list[str]:
    validate = importlib.import_module("numpydoc.validate").validate
    value = inspect.getattr_static(importlib.import_module("voxpatch"), name.rpartition(".")[2], None)
    is_short = name.count(".") > 1 or inspect.isclass(value) and issubclass(value, BaseException)
    errors = validate(name)["errors"]
    # A method's example is that of its class, and a property's summary is a noun phrase.
    return [f"{name}: {code} {text}" for code, text in errors if code in codes and not (code == "EX01" and is_short)]


def test_every_public_name_is_documented_in_numpydoc_form() -> None:
    pytest.importorskip("numpydoc", reason="numpydoc is not installed")
    names = documented()
    assert len(names) >= 58 and "voxpatch.Volume.astype" in names and "voxpatch.Queue.state_dict" in names
    assert not [line for name in names for line in complaints(name, CODES)]


def test_what_has_the_shape_of_peers_has_a_summary() -> None:
    pytest.importorskip("numpydoc", reason="numpydoc is not installed")
    for module in COMPAT:
        pytest.importorskip(module.rpartition(".")[2], reason="the peer is not installed")
        assert not [line for name in public(module) for line in complaints(name, SUMMARY)]


def test_signatures_are_known() -> None:
    for name, value in documented().items():
        is_error = inspect.isclass(value) and issubclass(value, BaseException)
        if (inspect.isroutine(value) or inspect.isclass(value)) and value is not voxpatch.Volume and not is_error:
            parameters = inspect.signature(getattr(value, "__func__", value)).parameters
            assert not {"args", "kwargs"} & set(parameters), name
    assert list(inspect.signature(voxpatch.Queue).parameters)[:4] == ["subjects", "sampler", "samples_per_subject", "max_length"]
    helped = subprocess.run(
        [sys.executable, "-c", "import voxpatch; help(voxpatch.Queue)"], capture_output=True, text=True, check=True
    ).stdout
    for word in ("class Queue", "samples_per_subject", "batch_size", "Parameters", "Examples"):
        assert word in helped


def test_the_version_is_that_of_the_library() -> None:
    manifest = (ROOT / "Cargo.toml").read_text()
    assert f'version = "{voxpatch.__version__}"' in manifest[manifest.index("[package]") :].split("\n\n")[0]


def test_the_stub_has_the_docstrings_of_the_build() -> None:
    subprocess.run([sys.executable, ROOT / "scripts/stub_docs.py", "--check"], check=True)


@pytest.mark.parametrize("module", ["voxpatch", *(f"voxpatch.{name}" for name in (
    "augment", "errors", "files", "inference", "options", "prediction", "queue", "samplers", "statistics", "subject"))])  # fmt: skip
def test_examples_run(module: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = importlib.import_module(module)
    tests = doctest.DocTestFinder(exclude_empty=True).find(loaded, module)
    if module == "voxpatch":
        tests = doctest.DocTestFinder().find(voxpatch.Volume, "voxpatch.Volume", module=False)
    run = 0
    for number, test in enumerate(tests):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
        assert not results.failed, test.name
        run += results.attempted > 0
    assert run >= 1
