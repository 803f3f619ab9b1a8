"""Which package mirror to use, and whose signature to believe.

The first that is set counts: the argument, the environment (RINGFENCE_MIRROR, RINGFENCE_KEYRING), the user's
configuration file (`mirror` and `keyring` in ringfence/config.toml), and for the mirror what the host's own apt uses.
"""

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from ringfence.errors import BadAddress, ImageError, MirrorError
from ringfence.guest.file import read_regular

SETTINGS = ("mirror", "keyring")
APT = Path("/etc/apt")
KEYRINGS = tuple(Path("/usr/share/keyrings/debian-archive-keyring").with_suffix(end) for end in (".pgp", ".gpg"))


def config_file() -> Path:
    """Where the user's configuration is, whether it exists or not."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "ringfence" / "config.toml"


def mirrors(argument: str | None = None, *, apt: Path = APT) -> list[str]:
    """The addresses to try in turn, without a slash at the end; at least one, or MirrorError.

    Only what apt is configured with can be more than one: it names archives of other suites too.
    """
    if (named := _setting("mirror", argument)) is not None:
        if not _is_web(named):
            raise BadAddress(f"a mirror's address is http:// or https:// with a host behind it, and {named!r} is not")
        return [named.rstrip("/")]
    if not (found := list(dict.fromkeys(_apt_mirrors(apt)))):
        raise MirrorError(
            f"no Debian mirror is known: name one with --mirror, in RINGFENCE_MIRROR, or as `mirror` in {config_file()}"
        )
    return found


def keyring(argument: str | None = None) -> Path:
    """The file of public keys that may sign an archive's index, or MirrorError."""
    if (named := _setting("keyring", argument)) is not None:
        path = Path(os.path.expanduser(named))
        if not path.is_file():
            raise MirrorError(f"there is no keyring {named!r}")
        return path
    for path in KEYRINGS:
        if path.is_file():
            return path
    raise MirrorError(
        "Debian's public keys are not on this host: install the package debian-archive-keyring,"
        " or name a keyring with --keyring"
    )


def _setting(key: str, argument: str | None) -> str | None:
    if argument is not None:
        return argument
    if named := os.environ.get(f"RINGFENCE_{key.upper()}"):
        return named
    path = config_file()
    try:
        settings = tomllib.loads(read_regular(path).decode())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"the configuration file {path} cannot be read: {why}") from error
    if unknown := [name for name in settings if name not in SETTINGS]:
        raise ImageError(f"{unknown[0]!r} in {path} is no setting: there are {' and '.join(SETTINGS)}")
    value = settings.get(key)
    if value is not None and not isinstance(value, str):
        raise ImageError(f"`{key}` in {path} must be a text")
    return value


def _is_web(address: str) -> bool:
    try:
        parts = urlsplit(address)
        known = parts.hostname is not None and (parts.port or 0) >= 0  # asking for the port checks it
        (parts.hostname or "").encode("idna")
        address.encode("ascii")
    except ValueError:  # UnicodeError too
        return False
    return known and parts.scheme in ("http", "https") and bool(parts.hostname)


def _apt_mirrors(apt: Path) -> Iterator[str]:
    """What apt's source lists name that looks like a Debian archive, in apt's order of files."""
    directory = apt / "sources.list.d"
    lists = [apt / "sources.list"]
    if directory.is_dir():
        lists += sorted(path for path in directory.iterdir() if path.suffix in (".list", ".sources"))
    for path in lists:
        try:
            text = read_regular(path).decode(errors="replace")
        except OSError:
            continue
        sources = _deb822(text) if path.suffix == ".sources" else _one_line(text)
        for address, components in sources:
            if _is_web(address) and "main" in components and "security" not in urlsplit(address).path:
                yield address.rstrip("/")


def _one_line(text: str) -> Iterator[tuple[str, list[str]]]:
    """Address and components of each `deb` line; source: sources.list(5), one-line-style format."""
    for line in text.splitlines():
        if match := re.match(r"deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+\S+\s+([^#]*)", line.strip()):
            yield match[1], match[2].split()


def _deb822(text: str) -> Iterator[tuple[str, list[str]]]:
    """Addresses and components of each enabled stanza; source: sources.list(5), deb822-style format."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields = stanza_fields(stanza)
        if (
            fields.get("enabled", "yes").lower() not in ("no", "false", "0")
            and "deb" in fields.get("types", "").split()
        ):
            for address in fields.get("uris", "").split():
                yield address, fields.get("components", "").split()


def stanza_fields(stanza: str) -> dict[str, str]:
    """The fields of one control-file stanza, names in lower case; source: deb-control(5)."""
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line[:1] in (" ", "\t"):
            fields[name] = fields.get(name, "") + "\n" + line.strip()
        else:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields
