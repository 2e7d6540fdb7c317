"""Modules of `--plugin`, which add entries to registries."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

from clipvid import InputError

PLUGINS = "CLIPVID_PLUGINS"  # environment variable with modules and files to import, for child processes


def import_plugin(plugin: str) -> None:
    """Import a module that adds entries to registries, in this process and its child processes.

    Args:
        plugin: Name of a module, or path of a Python file.

    Raises:
        InputError: The module or file does not exist, or a file has the name of another module.
    """
    if not plugin:
        raise InputError("--plugin: expected the name of a module or the path of a Python file")
    file = Path(plugin).resolve() if plugin.endswith(".py") else None
    if file is not None and not file.is_file():
        raise InputError(f"--plugin {plugin}: the file does not exist")
    name = plugin if file is None else file.stem
    if file is not None and str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # child processes inherit the path
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise InputError(
            f"--plugin {plugin}: the module does not exist; install it, or pass the path of a file"
        ) from None
    if file is not None and Path(module.__file__ or "").resolve() != file:
        raise InputError(f"--plugin {plugin}: {module.__file__ or 'Python'} has the same module name; rename the file")
    plugins = [part for part in os.environ.get(PLUGINS, "").split(os.pathsep) if part]
    lasting = plugin if file is None else str(file)
    if lasting not in plugins:
        os.environ[PLUGINS] = os.pathsep.join([*plugins, lasting])
