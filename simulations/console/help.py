"""What ``--help`` shows: the configuration's files, with their comments."""

import re
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

_RESOLVER = "fedcurv.help"  # as conf/*.yaml name it

_TEMPLATE = """\
Set anything by its path, such as {example}; choose one of a group, such as model=cnn.

== Groups ==

$APP_CONFIG_GROUPS

== Settings, and their defaults ==

{settings}

--multirun runs every combination of a,b,c; --cfg job shows the configuration that comes of the
command line; --hydra-help has all else.
"""


def register_help(conf: Path) -> None:
    """Let a configuration's ``hydra.help.template`` be made of its files.

    Args:
        conf: the folder of the configuration's files.
    """

    def template(name: str, *, _root_: DictConfig) -> str:
        choices = OmegaConf.select(_root_, "hydra.runtime.choices")
        strategies = OmegaConf.select(_root_, "strategy") or {}
        chosen = [(group, option) for group, option in choices.items()]
        return help_template(conf, name, [*chosen, *(("strategy", s) for s in strategies)])

    OmegaConf.register_new_resolver(_RESOLVER, template, replace=True)


def help_template(conf: Path, name: str, chosen: Iterable[tuple[str, object]]) -> str:
    """Return the template of a command's help.

    Args:
        conf: the folder of the configuration's files.
        name: of the primary one.
        chosen: groups, each with what was chosen of it.
    """
    parts = [_without(("hydra", "defaults"), (conf / f"{name}.yaml").read_text(encoding="utf-8"))]
    for group, option in chosen:
        file = conf / group / f"{option}.yaml"
        if file.is_file() and not group.startswith("hydra/"):
            parts.append(_of_group(group, option, file.read_text(encoding="utf-8")))
    settings = "\n\n".join(part.strip("\n") for part in parts).replace("$", "$$")
    return _TEMPLATE.format(example="num_rounds=10", settings=settings)


def _of_group(group: str, option: object, text: str) -> str:
    """Return a chosen file's text as it stands in the whole."""
    is_package = re.match(r"# @package (\S+)\n", text)
    place = is_package[1] if is_package else group
    levels = [] if place == "_global_" else place.split(".")
    heads = [f"{'  ' * depth}{level}:" for depth, level in enumerate(levels)]
    body = _without(("defaults",), text[is_package.end() :] if is_package else text)
    lines = [f"{'  ' * len(levels)}{line}".rstrip() for line in body.splitlines()]
    return "\n".join([f"# {group}={option}", *heads, *lines])


def _without(blocks: tuple[str, ...], text: str) -> str:
    """Return a YAML file's text without these blocks of its top level."""
    kept, inside = [], False
    for line in text.splitlines():
        if line[:1] not in ("", " ", "#"):
            inside = line.partition(":")[0] in blocks
        if not inside:
            kept.append(line)
    return "\n".join(kept)
