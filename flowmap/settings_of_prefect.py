"""Prefect's settings, read without Prefect: importing it takes seconds, and may be what fails.

Sources and their order are those of `prefect/settings` in Prefect 3.9: the environment, `.env`,
`prefect.toml` and `pyproject.toml` in the working directory, then the active profile. Of the
names from before plugins were settled only those in the environment are read.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dotenv import dotenv_values

from flowmap.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

_TRUE: Final = frozenset({"1", "true", "t", "yes", "y", "on"})  # pydantic's words for it


class Setting(NamedTuple):
    """A setting that somebody made.

    Attributes:
        value: As it is there: text, or what TOML has.
        where: Where it is, for a message.
        by_profile: Whether it is in the active profile, which everything else overrides.
    """

    value: Any
    where: str
    by_profile: bool = False

    @property
    def is_true(self) -> bool:
        """Whether Prefect takes it for true."""
        return str(self.value).lower() in _TRUE

    @property
    def words(self) -> set[str]:
        """The words of a list, in TOML's form or in that of the environment."""
        parts = self.value if isinstance(self.value, list) else str(self.value).split(",")
        return {str(part).strip() for part in parts} - {""}


class Settings:
    """Prefect's settings as a process would get them that starts here and now.

    Attributes:
        home: Prefect's folder, where its profiles are and, unless set otherwise, its database.

    Raises:
        InvalidArgumentError: A file of the working directory is no TOML, to Prefect either.
        OSError: One cannot be read.
    """

    def __init__(self) -> None:
        dotenv = dotenv_values(".env") if Path(".env").is_file() else {}
        self._texts = [("the environment", _upper(os.environ)), (".env", _upper(dotenv))]
        self._tables = [
            ("prefect.toml", _toml(Path("prefect.toml"))),
            ("pyproject.toml", _below(_toml(Path("pyproject.toml")), "tool", "prefect")),
        ]
        self.home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
        self._profile_name, self._profile = self._read_profile(
            os.environ.get("PREFECT_PROFILES_PATH") or dotenv.get("PREFECT_PROFILES_PATH")
        )

    def get(self, table: str, field: str) -> Setting | None:
        """Return a setting, or None where nobody made it.

        Args:
            table: "api", "plugins" or "server.database".
            field: "url", "enabled", ...
        """
        name = f"PREFECT_{table}_{field}".replace(".", "_").upper()
        for where, texts in self._texts:
            for each in (name, name.replace("PREFECT_PLUGINS", "PREFECT_EXPERIMENTS_PLUGINS")):
                if texts.get(each) is not None:
                    return Setting(texts[each], f"{each} in {where}")
        for where, tables in self._tables:
            value = _below(tables, *table.split(".")).get(field)
            if value is not None:
                return Setting(value, f"{field} under [{table}] in {where}")
        if self._profile.get(name) is not None:
            where = f"{name} in the profile {self._profile_name}"
            return Setting(self._profile[name], where, by_profile=True)
        return None

    def _read_profile(self, path: str | None) -> tuple[str, dict[str, Any]]:
        """Return the active profile; an empty one stands for Prefect's own default."""
        for _, tables in self._tables:
            path = path or tables.get("profiles_path")
        try:
            everything = _toml(Path(path) if path else self.home / "profiles.toml")
        except InvalidArgumentError:  # Prefect warns, and does without
            return "", {}
        active = os.environ.get("PREFECT_PROFILE") or str(everything.get("active"))
        return active, _below(everything, "profiles", active)


def _upper(texts: Mapping[str, str | None]) -> dict[str, str | None]:
    return {name.upper(): value for name, value in texts.items()}


def _toml(path: Path) -> dict[str, Any]:
    """Return what a file of TOML says, nothing where there is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:  # of TOML, or of UTF-8
        raise InvalidArgumentError(
            f"{path.absolute()} is no TOML ({error}). Mend it: Prefect does not start here."
        ) from error


def _below(tables: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return a table within tables, an empty one where there is none."""
    for name in names:
        tables = tables.get(name, {})
        if not isinstance(tables, dict):
            return {}
    return tables
