"""How every Relief command starts: verbatim text past Hydra's grammar, one-line errors, exit codes.

Hydra parses `prompt=a red chair, with dots` as a sweep and refuses `mesh=a b(1).glb`. The values of
`VERBATIM_KEYS` are therefore quoted before Hydra sees them: what the user typed is what arrives.

Exit codes: 0 done; 1 the user's error, told in one line; 2 wrong usage (the command line itself);
130 interrupted. RELIEF_TRACEBACK=1 shows the traceback of any error.
"""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from data_pipeline.contract import UserError

CONFIG_DIR = Path(__file__).resolve().parents[1] / "conf"

VERBATIM_KEYS = frozenset(
    {
        "autoencoder", "blender_python", "checkpoint", "ckpt", "clip", "data.groups", "dinov2",
        "drop", "first", "groups", "html", "image", "inception", "latents", "mesh", "meshes", "out",
        "paths.pipeline_dir", "paths.run_dir", "png", "prompt", "prompts", "reference",
        "reference_images", "run_id", "sample", "scratch", "second", "shard", "shards",
        "source.annotations", "source.captions", "source.exclude", "source.glob", "source.list",
        "source.root", "source.uids", "uid", "views",
    }
)  # fmt: skip
"""Keys whose values are free text or paths, in every command."""

TEXT_KEYS = frozenset({"prompt", "run_id", "sample", "shard", "uid"})
"""Those of them that are no paths, and may be empty."""

OPTIONAL_NUMBERS = {
    "count": int, "gpus": int, "workers": int, "source.count": int, "source.max_bytes": int,
    "source.max_faces": int, "source.min_faces": int, "source.quota_gb": float,
    "rss_limit_mb": float, "timeout_s": float,
}  # fmt: skip
"""Keys that are null by default, which tells nothing of the kind of value that they take."""

DONE, USER_ERROR, USAGE_ERROR, INTERRUPTED = 0, 1, 2, 130
INTERRUPTION = "interrupted: the same command goes on from here"


def quote_verbatim(argument: str) -> str:
    """Return `key=value` with the value quoted for Hydra's grammar if `key` is a verbatim one."""
    key, equals, value = argument.partition("=")
    if not equals or key not in VERBATIM_KEYS:
        return argument
    # OmegaConf: an interpolation is taken literally behind a backslash, and backslashes just
    # before one are halved.
    escaped = _escape_before(value, "${", "\\")
    # Hydra: the same rule for the closing quote.
    return f'{key}="{_escape_before(escaped + chr(34), chr(34), chr(92), last_is_end=True)}'


def _escape_before(text: str, mark: str, escape: str, *, last_is_end: bool = False) -> str:
    """Double the escapes in front of each `mark` and add one; the last mark may be the real end."""
    parts = text.split(mark)
    out = ""
    for i, part in enumerate(parts[:-1]):
        bare = part.rstrip(escape)
        num_escapes = len(part) - len(bare)
        is_end = last_is_end and i == len(parts) - 2
        out += bare + escape * (2 * num_escapes + (0 if is_end else 1)) + mark
    return out + parts[-1]


def named(arguments: Sequence[str], *keys: str) -> list[str]:
    """Return `key=value` for leading arguments that were given without a key."""

    def has_no_key(argument: str) -> bool:
        return not argument.startswith("-") and argument.partition("=")[0] not in keys

    given = list(takewhile(has_no_key, arguments))[: len(keys)]
    pairs = [f"{key}={value}" for key, value in zip(keys, given, strict=False)]
    return pairs + list(arguments[len(given) :])


def compose(config_name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Return the composed configuration that a command line would give.

    Args:
        config_name: a file of conf/, without `.yaml`.
        overrides: as typed: `key=value`.
    """
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return hydra.compose(config_name, [quote_verbatim(argument) for argument in overrides])


def build(node: DictConfig) -> Any:
    """Instantiate a node of the configuration, after making sure that every key was given.

    Hydra leaves out an argument whose `${key}` was never given, and the constructor then complains
    of its own parameter, which the user never typed.
    """
    OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    return instantiate(node)


def run(
    config_name: str,
    main: Callable[[DictConfig], int | None],
    argv: Sequence[str] | None = None,
) -> None:
    """Compose `config_name` with the command line, call `main`, and exit with its code.

    Args:
        config_name: a file of conf/, without `.yaml`.
        main: does the work; returns an exit code, or None for 0.
        argv: the arguments; those of the process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if any(argument.startswith("-") for argument in arguments):
        _run_by_hydra(config_name, main, arguments)
        return
    try:
        config = compose(config_name, arguments)
        if problem := _wrong_value(config_name, arguments, config):
            _fail(USAGE_ERROR, problem)
    except (HydraException, OmegaConfBaseException) as error:
        _fail(USAGE_ERROR, _usage_message(config_name, error))
    sys.exit(_guarded(main, config))


def _wrong_value(config_name: str, arguments: Sequence[str], config: DictConfig) -> str | None:
    """Return what is wrong with the first value that is empty or not of its default's kind."""
    texts = {key: value for key, _, value in (argument.partition("=") for argument in arguments)}
    groups = [f"{key}={text}" for key, text in texts.items() if (CONFIG_DIR / key).is_dir()]
    defaults = OmegaConf.to_container(compose(config_name, groups), resolve=False)
    values = OmegaConf.to_container(config, resolve=False)
    for key, text in texts.items():
        if key in VERBATIM_KEYS - TEXT_KEYS and not text:
            return f"{key}= is empty: give a path (an unset shell variable?)"
        default = OPTIONAL_NUMBERS.get(key) or _kind(defaults, key)
        given = _kind(values, key)
        if default is bool and given is not bool:
            return f"{key}={text} is neither true nor false"
        if default is int and given not in (int, None):
            return f"{key}={text} is no whole number"
        if default is float and given not in (int, float, None):
            return f"{key}={text} is no number"
    return None


def _kind(values: Any, key: str) -> type | None:
    """Return the type of a plain value; None for a null, an interpolation, and a missing one."""
    for name in key.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return None if values is None or "${" in str(values) else type(values)


def _run_by_hydra(
    config_name: str, main: Callable[[DictConfig], int | None], arguments: list[str]
) -> None:
    """Leave `--help`, `--cfg job`, `--multirun` and their like to Hydra itself."""
    quoted = [quote_verbatim(argument) for argument in arguments]
    quiet = [
        f"hydra.job.name={config_name}",
        "hydra.run.dir=.",
        "hydra.output_subdir=null",
        "hydra/job_logging=disabled",
    ]
    sys.argv = [sys.argv[0], *quoted, *quiet]

    def guarded(config: DictConfig) -> None:
        if code := _guarded(main, config):
            sys.exit(code)

    hydra.main(config_path=str(CONFIG_DIR), config_name=config_name, version_base="1.3")(guarded)()


def _guarded(main: Callable[[DictConfig], int | None], config: DictConfig) -> int:
    """Return main's exit code, with every foreseeable failure told in one line."""
    try:
        return main(config) or DONE
    except UserError as error:
        # A loader's process hands its whole traceback on, with what was raised at its end.
        _fail(USER_ERROR, str(error).rpartition(f"{UserError.__module__}.UserError: ")[2])
    except InstantiationException as error:  # Hydra wraps what a constructor raises
        if isinstance(error.__cause__, UserError):
            _fail(USER_ERROR, str(error.__cause__))
        _fail(USER_ERROR, f"the configuration cannot be built: {error}")
    except (MissingMandatoryValue, InterpolationToMissingValueError) as error:
        # `...: KEY` or, behind an interpolation, `...: Missing mandatory value: KEY`
        key = str(error).splitlines()[0].rpartition(": ")[2]
        _fail(USAGE_ERROR, f"{key} is missing: give it as {key}=VALUE")
    except OSError as error:
        if error.filename is None:
            raise
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        problem = "is a file where a folder is needed" if in_the_way else error.strerror
        _fail(USER_ERROR, f"{error.filename}: {problem}: choose another path or mend it")
    except KeyboardInterrupt as error:
        _fail(INTERRUPTED, f"interrupted: {error}" if error.args else INTERRUPTION)


def _usage_message(config_name: str, error: Exception) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.partition("/")
        folder = CONFIG_DIR / group
        known = [str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml")]
        return f"unknown {group} {name!r}: choose one of {', '.join(sorted(known))}"
    if found := re.match(r"Could not override '([^']*)'", str(error)):
        near = get_close_matches(found[1], _keys(compose(config_name)), n=3)
        advice = f"did you mean {', '.join(near)}?" if near else "--help lists the keys"
        return f"there is no key {found[1]!r}: {advice}"
    return f"{error} (--help lists the keys)"


def _keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield every key as it is typed: `timeout_s`, `source.root`."""
    for key in config:
        yield f"{prefix}{key}"
        if not OmegaConf.is_missing(config, key) and isinstance(config._get_node(key), DictConfig):
            yield from _keys(config[key], f"{prefix}{key}.")


def _fail(code: int, message: str) -> NoReturn:
    """Print `error: message` as one line and exit."""
    if os.environ.get("RELIEF_TRACEBACK") == "1":
        traceback.print_exc()
    one_line = " ".join(message.split())
    print(f"error: {one_line}", file=sys.stderr, flush=True)
    sys.exit(code)
