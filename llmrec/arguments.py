"""What users write in YAML and on the command line: checked by name."""

import inspect
from collections.abc import Callable, Mapping


def construct(kind: Callable, arguments: Mapping, what: str):
    """`kind(**arguments)` for arguments that a user wrote, in YAML for instance.

    Raises:
        ValueError: beginning with `what`: an argument that `kind` does not take (and those that it takes), or one
            that it refuses.
    """
    known = inspect.signature(kind).parameters
    open_ended = any(each.kind is each.VAR_KEYWORD for each in known.values())
    unknown = next((name for name in arguments if name not in known), None)
    if unknown is not None and not open_ended:
        names = ", ".join(name for name in known if name != "cache_dir")
        raise ValueError(f"{what}: there is no argument {unknown!r}; it takes {names or 'none'}")
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: {error}") from error
