"""The peers in this virtual environment: those installed, and the reasons for those missing."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent
PYTHON_PACKAGE = SCRIPTS.parent / "python"

# Modules and their names for pip, in the order of the table in the report.
NEEDED = {"numpy": "numpy>=2,<3", "numcodecs": "numcodecs", "matplotlib": "matplotlib"}
PEERS = {
    "torchio": "torchio==1.2.1",
    "monai": "monai",
    "zarr": "zarr>=3",
    "zarrs": "zarrs",
    "tensorstore": "tensorstore",
    "blosc2": "blosc2",
    "nibabel": "nibabel",
    "patchly": "patchly",
    "konfai": "konfai",
}
LOOK = "import importlib, importlib.metadata as m, sys; importlib.import_module(sys.argv[1]); print(m.version(sys.argv[1]))"


def looked_up(module):
    """Returns the version of a module that can be imported, or the problem."""
    done = subprocess.run([sys.executable, "-c", LOOK, module], capture_output=True, text=True, timeout=300)
    if done.returncode == 0:
        return done.stdout.strip(), None
    return None, last_line(done.stderr)


def install(*what):
    """Installs a package. Returns pip's last line if that failed."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *map(str, what)]
    done = subprocess.run(command, capture_output=True, text=True)
    return None if done.returncode == 0 else last_line(done.stderr)


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip() and "[notice]" not in line]
    return lines[-1][:300] if lines else "it says nothing"


def environment(say, install_missing=True):
    """Installs the peers. Returns the versions of those installed, and the reasons for those missing."""
    versions, reasons = {}, {}
    for module, requirement in {**NEEDED, **PEERS}.items():
        version, problem = looked_up(module)
        if version is None and install_missing:
            say(f"installing {requirement}")
            problem = install(requirement)
            if problem is None:
                version, problem = looked_up(module)
        if version is not None:
            versions[module] = version
        elif module in NEEDED:
            sys.exit(f"bench: {requirement} cannot be installed: {problem}")
        else:
            reasons[module] = problem
    # voxpatch is built again, because it may have changed.
    version, problem = looked_up("voxpatch")
    if PYTHON_PACKAGE.is_dir() and install_missing:
        say(f"building {PYTHON_PACKAGE.name}")
        problem = install("--force-reinstall", "--no-deps", PYTHON_PACKAGE)
        if problem is None:
            version, problem = looked_up("voxpatch")
    if version is not None:
        versions["voxpatch"] = version
    else:
        reasons["voxpatch"] = problem
    return versions, reasons


def commit():
    """Returns the name of the sources' commit; None outside of a repository."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=SCRIPTS, capture_output=True, text=True)
    return done.stdout.strip()


def remembered(path, say, install_missing):
    """Returns the same as `environment`, from a file if it already has everything about this commit."""
    if path.exists():
        found = json.loads(path.read_text())
        if not found["reasons"] and found.get("commit") == commit():
            return found["versions"], found["reasons"]
    versions, reasons = environment(say, install_missing)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"versions": versions, "reasons": reasons, "commit": commit()}))
    return versions, reasons
