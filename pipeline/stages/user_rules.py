"""Rules of the user's own: a function ``module:function`` from evidence to λ, found, fingerprinted and checked.

Such a function is code. It runs only where the command line says ``--allow-code`` (DESIGN rule 8).
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.coefficients.evidence import Evidence
from pipeline.coefficients.rules import Coefficients, from_user
from pipeline.errors import ManifestError, StaleCacheError, one_line
from pipeline.store.fingerprints import digest_file

PROBE_ROWS = 7


@dataclass(frozen=True, slots=True)
class UserRule:
    """Where a rule was found: its reference, the SHA-256 of its module's source, and the folder imports start from."""

    reference: str
    digest: str
    root: str

    def apply(self, evidence: Evidence, settings: Mapping[str, Any]) -> Coefficients:
        """λ of all samples, checked; :class:`ManifestError` in one line when the function fails or gives no λ.

        :class:`StaleCacheError` when the file is not the one that was fingerprinted.
        """
        function = _function(self.reference, self.root)
        if digest_file(_source_file(self.reference)) != self.digest:
            raise StaleCacheError(f"rule {self.reference}: its source changed while the run was under way; run again")
        try:
            lambdas = function(evidence, **settings)
        except (Exception, SystemExit) as error:  # the user's own code may raise anything
            kind = type(error).__name__
            raise ManifestError(
                f"rule {self.reference}: raised {kind} ({one_line(error)}); mend the function"
            ) from error
        try:
            return from_user(lambdas, len(evidence), self.reference)
        except ValueError as error:
            raise ManifestError(str(error)) from error


def find_user_rule(reference: str, root: Path) -> UserRule:
    """Locate and import a rule; :class:`ManifestError` when there is no such module or function.

    Modules are looked up as ``python -m`` does it: in ``root``, the working directory, then on the usual path.
    """
    _function(reference, str(root), anew=True)
    return UserRule(reference, digest_file(_source_file(reference)), str(root))


def probe_user_rule(
    rule: UserRule, sources: Sequence[str], classes: int, settings: Mapping[str, Any], *, labels: bool
) -> None:
    """Run a rule on invented evidence, some of it extreme, before any image is read; ManifestError as in ``apply``."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0.0, 3.0, (len(sources), PROBE_ROWS, classes)).astype(np.float32)
    logits[:, 0] = 0.0
    logits[0, 1, 0] = logits[1, 1, -1] = logits[:, 2, 0] = 1e4
    known = np.zeros(PROBE_ROWS, dtype=np.int64) if labels else None
    rule.apply(Evidence.from_logits(dict(zip(sources, logits, strict=True)), known), settings)


def _source_file(reference: str) -> Path:
    module = sys.modules[reference.split(":", maxsplit=1)[0]]
    if getattr(module, "__file__", None) is None:
        raise ManifestError(f"rule {reference}: its module has no source file; write it in a .py file")
    return Path(str(module.__file__))


def _function(reference: str, root: str, *, anew: bool = False) -> Callable[..., object]:
    """The function; ``anew`` loads a module that this process knows again: its file may have changed since."""
    module_name, name = reference.split(":")
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        known = sys.modules.get(module_name)
        module = importlib.reload(known) if known is not None and anew else importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # importing runs the user's own code
        kind = type(error).__name__
        raise ManifestError(
            f"rule {reference}: module {module_name!r} cannot be imported ({kind}: {one_line(error)}); "
            "run where it can be found, or set PYTHONPATH"
        ) from error
    function: Callable[..., object] | None = getattr(module, name, None)
    if function is None or not callable(function):
        raise ManifestError(f"rule {reference}: module {module_name!r} has no function {name!r}; check the name")
    return function
