"""What messages advise to install: flowmap from where this one came."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import flowmap
from flowmap.errors import MissingExtraError
from flowmap.extras import DISTRIBUTION, extra, pip_install

GIT = {"url": "https://git.invalid/f.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, ["prefect-flowmap[dask]"]),
        ({"url": "file:///my%20src", "dir_info": {}}, ["/my src[dask]"]),
        ({"url": "file:///src", "dir_info": {"editable": True}}, ["-e", "/src[dask]"]),
        (GIT, ["prefect-flowmap[dask] @ git+https://git.invalid/f.git@c0ffee"]),
        (
            {"url": "file:///f.whl", "archive_info": {}},
            ["prefect-flowmap[dask] @ file:///f.whl"],
        ),
    ],
    ids=["registry", "folder", "editable", "repository", "wheel"],
)
def test_pip_install(monkeypatch: pytest.MonkeyPatch, source: Any, words: list[str]) -> None:
    """The registry's name where it came from there; otherwise the folder or the address."""

    def distribution(name: str) -> SimpleNamespace:
        assert name == "prefect-flowmap"
        texts = {"direct_url.json": None if source is None else json.dumps(source)}
        return SimpleNamespace(read_text=texts.get)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    assert shlex.split(pip_install("dask")) == ["pip", "install", *words]


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flowmap that is only on the path is installed from its folder."""

    def distribution(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    folder = Path(flowmap.__file__).parents[1]
    assert shlex.split(pip_install("zarr")) == ["pip", "install", f"{folder}[zarr]"]


def test_this_one() -> None:
    """The package that the tests try is installed, with every extra that messages name."""
    assert pip_install("dask").endswith("[dask]'")
    extras = importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra")
    assert {"dask", "zarr", "xarray", "plot"} <= set(extras or ())


def test_missing() -> None:
    """The error names the module, and ends with the command."""
    with pytest.raises(MissingExtraError) as caught:
        extra("no_such_module", "zarr")
    assert "no_such_module cannot be imported" in str(caught.value)
    assert str(caught.value).endswith(f"{pip_install('zarr')}.")
