"""Which packages some packages need."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.errors import ImageError
from ringfence.guest.dependencies import Fields, closure


class Suite:
    """Packages by name; each a text such as `pre-depends: x; depends: a | b, c (>= 2); provides: d`."""

    def __init__(self, **texts: str) -> None:
        parts = {name: [part.partition(":") for part in text.split(";") if part] for name, text in texts.items()}
        self.packages: dict[str, Fields] = {
            name: {key.strip(): value.strip() for key, _, value in found} for name, found in parts.items()
        }

    def find(self, name: str) -> Fields | None:
        return self.packages.get(name)

    def providers(self, name: str) -> list[str]:
        return [other for other, fields in self.packages.items() if name in fields.get("provides", "").split(", ")]


@pytest.mark.parametrize(
    ("asked", "needed"),
    [
        ("a", "a b c"),  # both fields, and what they name needs
        ("shell", "shell dash"),  # the first alternative
        ("shell bash", "shell bash"),  # what was asked for is an alternative too, named before or behind
        ("bash shell", "shell bash"),
        ("mail", "mail exim"),  # the first that provides it
        ("mail postfix", "mail postfix"),
        ("late", "late exim"),  # the second alternative, since there is no first
        ("round", "round back"),
        ("typed", "typed c"),
    ],
)
def test_closure_is_what_the_fields_say(asked: str, needed: str) -> None:
    suite = Suite(
        a="pre-depends: b (>= 2)",
        b="depends: c:any",
        c="",
        dash="provides: sh",
        bash="provides: sh",
        shell="depends: dash | bash",
        mail="depends: mta",
        exim="provides: smtp, mta",
        postfix="provides: mta",
        late="depends: none-such | mta",
        round="depends: back",
        back="depends: round",
        typed="depends: c [riscv64]",
    )
    assert closure(suite, asked.split()) == sorted(needed.split())


def test_closure_names_what_is_missing() -> None:
    suite = Suite(a="depends: x | y")
    with pytest.raises(ImageError, match="the package a needs x or y, which the archive does not have"):
        closure(suite, ["a"])
    with pytest.raises(ImageError, match="the archive has no package b"):
        closure(suite, ["b"])


NAMES = st.sampled_from("abcdefgh")


@given(st.dictionaries(NAMES, st.lists(st.lists(NAMES, min_size=1, max_size=3), max_size=3), min_size=1), st.data())
def test_closure_holds_whatever_the_suite(wanted: dict[str, list[list[str]]], data: st.DataObject) -> None:
    """Of every package's every clause one alternative is there; nothing is that was not asked for or needed."""
    suite = Suite(**{name: "depends: " + ", ".join(" | ".join(clause) for clause in wanted[name]) for name in wanted})
    asked = data.draw(st.lists(st.sampled_from(sorted(wanted)), min_size=1))
    try:
        found = closure(suite, asked)
    except ImageError:
        # Some clause that can be reached has no package.
        assert any(not set(clause) & set(wanted) for clauses in wanted.values() for clause in clauses)
        return
    assert set(asked) <= set(found)
    assert all(set(clause) & set(found) for name in found for clause in wanted[name])
    needed = {choice for name in found for clause in wanted[name] for choice in clause}
    assert set(found) <= {*asked, *needed}
