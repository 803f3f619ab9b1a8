"""Which packages a set of packages needs.

Source: Debian Policy, sections 7.1 to 7.5: what `Depends` and `Pre-Depends` name, each clause one of several
alternatives, each a package or what a package provides. Versions are not compared: a suite has one version of nearly
everything, and the package manager that installs what is found here does compare them.
"""

import re
from collections.abc import Iterable
from typing import Protocol

from ringfence.errors import BadSystem, ImageError

Fields = dict[str, str]
"""A package's fields in the index, by their names in lower case."""


class Packages(Protocol):
    """What a suite has."""

    def find(self, name: str) -> Fields | None:
        """The fields of the package of that name."""

    def providers(self, name: str) -> list[str]:
        """The packages that provide it, in the order in which they are preferred."""


def closure(packages: Packages, names: Iterable[str]) -> list[str]:
    """The packages and all that they need, sorted. BadSystem: there is none of that name; ImageError: nor one that is
    needed.

    Of alternatives the one counts that is needed anyway, else the first that there is, a package before its providers.
    """
    found: dict[str, Fields] = {}
    provided: set[str] = set()

    def take(name: str) -> None:
        fields = packages.find(name)
        if fields is None:
            raise BadSystem(f"the archive has no package {name}")
        found[name] = fields
        provided.update(relation_names(fields.get("provides", "")))
        waiting.append(name)

    waiting: list[str] = []
    for name in names:
        if name not in found:
            take(name)
    # In order, and what was asked for before what that needs: so a package that is asked for decides between
    # alternatives.
    for name in waiting:
        fields = found[name]
        for clause in _clauses(fields):
            if not any(choice in found or choice in provided for choice in clause):
                take(_choice(packages, name, clause))
    return sorted(found)


def _clauses(fields: Fields) -> list[list[str]]:
    relations = ",".join(fields.get(key, "") for key in ("pre-depends", "depends"))
    return [[_name(choice) for choice in clause.split("|")] for clause in relations.split(",") if clause.strip()]


def _choice(packages: Packages, name: str, clause: list[str]) -> str:
    for choice in clause:
        if packages.find(choice) is not None:
            return choice
        if providers := packages.providers(choice):
            return providers[0]
    raise ImageError(f"the package {name} needs {' or '.join(clause)}, which the archive does not have")


def relation_names(relations: str) -> list[str]:
    """The packages that a field such as `Provides` names."""
    return [_name(relation) for relation in relations.split(",") if relation.strip()]


def _name(relation: str) -> str:
    """The package of a relation such as `libc6:any (>= 2.36)`."""
    return re.split(r"[\s(:\[]", relation.strip(), maxsplit=1)[0]
