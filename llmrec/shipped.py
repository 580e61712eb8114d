"""Files that come with the package beside its code: `recipes/` with their configurations, and `prompts/`."""

from pathlib import Path

SHIPPED = ("recipes", "prompts")
_PACKAGE = Path(__file__).parent


def folder(name: str) -> Path:
    """`recipes` or `prompts`: inside an installed package, or at the top of a checkout."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def find(path: str | Path) -> Path:
    """`path`; where nothing lies there and it begins with `recipes/` or `prompts/`, the shipped file of that name."""
    path = Path(path)
    if path.parts[:1] and path.parts[0] in SHIPPED and not path.exists():
        shipped = folder(path.parts[0]).joinpath(*path.parts[1:])
        return shipped if shipped.exists() else path
    return path
