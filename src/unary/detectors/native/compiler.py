"""C sources that come with the package, compiled at first use for this processor and kept in the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
from pathlib import Path

from unary.errors import CompilerError
from unary.files import replacing

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
_COMPILERS = ("cc", "gcc", "clang")
_OPTIONS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-fno-math-errno")
_TUNING = ("-march=native", "-mcpu=native")  # the second is what older compilers call it on ARM
_LONGEST_S = 300


def load_library(name: str | Path, *, cache: Path | None = None) -> ctypes.CDLL:
    """Return a C source as a library, compiled now if it has not been before.

    A name is that of a source beside this module, or a path; it may include the headers beside it. Compiled libraries
    lie in ``cache``, by default ``unary`` in the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``). A library's
    name holds a hash of its source and headers, the options, and all that the compiler says of itself and of the
    processor, so that a changed source, or another machine with the same home, gets its own.

    A `CompilerError` says that there is no compiler, it fails, or its result can be neither kept nor loaded.
    """
    source = _FOLDER / name
    compiler = _find_compiler()
    tuning, description = _describe_target(compiler)
    options = (*_OPTIONS, *tuning)
    try:
        texts = [path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h")))]
        key = hashlib.sha256(b"\0".join([*texts, " ".join(options).encode(), description])).hexdigest()
        library = (cache or _cache_folder()) / f"{source.stem}-{key[:32]}.so"
        if not library.exists():
            logger.info("compiling %s, which is done once", source.name)
            with replacing(library) as partial:
                _run(compiler, *options, "-o", str(partial), str(source))
    except OSError as error:
        raise CompilerError(f"the compiled library cannot be kept: {error}") from error
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        library.unlink(missing_ok=True)
        raise CompilerError(f"the compiled library cannot be loaded: {error}") from error


def _find_compiler() -> str:
    if path := next(filter(None, map(shutil.which, _COMPILERS)), None):
        return path
    raise CompilerError(f"no C compiler was found (looked for {', '.join(_COMPILERS)})")


def _describe_target(compiler: str) -> tuple[tuple[str, ...], bytes]:
    """Return the options that tune for this processor, and the compiler's predefined macros, its version among them."""
    for tuning in (*((option,) for option in _TUNING), ()):
        try:
            return tuning, _run(compiler, *tuning, "-dM", "-E", "-x", "c", os.devnull)
        except CompilerError:
            if not tuning:
                raise
    raise AssertionError


def _run(*command: str) -> bytes:
    try:
        done = subprocess.run(command, capture_output=True, timeout=_LONGEST_S, stdin=subprocess.DEVNULL, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilerError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise CompilerError(
            f"{command[0]} fails with exit status {done.returncode}: {lines[0] if lines else 'no word'}"
        )
    return done.stdout


def _cache_folder() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # the XDG specification has a relative path ignored
        return Path(given) / "unary"
    try:
        return Path.home() / ".cache" / "unary"
    except RuntimeError as error:
        raise CompilerError("there is no home folder to keep a compiled library in") from error
