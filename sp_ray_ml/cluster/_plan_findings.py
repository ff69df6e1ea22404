"""What a plan has found: one finding a check, and the verdict and the text that they make together."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any, Literal

from sp_ray_ml.cluster._pod_resources import format_amount
from sp_ray_ml.cluster._requests import ClusterRequest

__all__ = ["Finding", "Plan", "State", "Verdict"]

State = Literal["ok", "short", "never", "unknown"]
Verdict = Literal["fits", "fits_after_scaling", "never_fits"]

_WIDTH = 100
_CHECK, _STATE = 13, 8
_SHOWN = ("cpu", "memory", "nvidia.com/gpu")
_HEADLINES = {
    "fits": "fits now",
    "fits_after_scaling": "does not fit now; it may once there is more room",
    "never_fits": "can never fit as it is asked for",
}


@dataclass(frozen=True)
class Finding:
    """What one check came to.

    Attributes:
        check: What was looked at: `quota`, `nodes`, `permissions`, …
        state: `ok`; `short`: not now, but once there is more room; `never`: not as it is asked for; `unknown`: it
            could not be looked at.
        sentence: What was found, without a full stop.
        remedy: What to do about it; empty where nothing needs to be done.
    """

    check: str
    state: State
    sentence: str
    remedy: str = ""


@dataclass(frozen=True)
class Plan:
    """Whether a cluster fits, and why.

    Attributes:
        request: What it asks for.
        findings: What was found, the worst first.
        gpu_types: Types of GPU that it asks for.
        notes: What else one should know, the defaults that came from a team say.
    """

    request: ClusterRequest
    findings: tuple[Finding, ...]
    gpu_types: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """`fits`, `fits_after_scaling` or `never_fits`, by what could be looked at."""
        states = {finding.state for finding in self.findings}
        return "never_fits" if "never" in states else "fits_after_scaling" if "short" in states else "fits"

    @property
    def complete(self) -> bool:
        """Whether everything could be looked at."""
        return all(finding.state != "unknown" for finding in self.findings)

    def lines(self) -> list[str]:
        """The answer in one screen of text."""
        headline = _HEADLINES[self.verdict]
        if self.verdict == "fits" and not self.complete:
            headline += ", as far as could be checked"
        return [
            f"cluster {self.request.name} in namespace {self.request.namespace}: {headline}",
            *self._asked(),
            *(line for finding in self.findings for line in _finding_lines(finding)),
        ]

    def _asked(self) -> Iterator[str]:
        yield from _wrapped("asks for", "", _said(self.request, gpu_types=self.gpu_types))
        if self.request.pods() != self.request.pods(most=True):
            yield from _wrapped("at most", "", _said(self.request, most=True))

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON: CPUs and GPUs as numbers, memory in bytes."""
        return {
            "name": self.request.name,
            "namespace": self.request.namespace,
            "verdict": self.verdict,
            "complete": self.complete,
            "pods": self.request.pods(),
            "most_pods": self.request.pods(most=True),
            "requests": _numbers(self.request.total()),
            "limits": _numbers(self.request.total("limits")),
            "most_requests": _numbers(self.request.total(most=True)),
            "groups": [
                {
                    "name": group.name or "head",
                    "pods": group.replicas,
                    "most_pods": group.most,
                    "requests": _numbers(group.requests),
                    "limits": _numbers(group.limits),
                }
                for group in self.request.groups
            ],
            "findings": [asdict(finding) for finding in self.findings],
            "notes": list(self.notes),
        }


def _numbers(amounts: dict[str, Decimal] | None) -> dict[str, int | float] | None:
    if amounts is None:
        return None
    return {
        name: int(amount) if amount == int(amount) else float(amount)
        for name, amount in amounts.items()
        if name != "pods"
    }


def _said(request: ClusterRequest, *, most: bool = False, gpu_types: Sequence[str] = ()) -> str:
    total, pods = request.total(most=most), request.pods(most=most)
    if total is None or pods is None:
        return "without a bound: a worker group has no max_workers"
    named = [name for name in _SHOWN if total.get(name)]
    named += [name for name in total if name not in (*_SHOWN, "pods") and total[name]]
    said = [format_amount("pods", Decimal(pods)), *(format_amount(name, total[name]) for name in named)]
    types = f" ({', '.join(gpu_types)})" if gpu_types else ""
    return ", ".join(said) + types


def _finding_lines(finding: Finding) -> Iterator[str]:
    yield from _wrapped(finding.check, finding.state, finding.sentence)
    if finding.remedy:
        yield from _wrapped("", "", finding.remedy)


def _wrapped(check: str, state: str, text: str) -> Iterator[str]:
    indent = " " * (2 + _CHECK + _STATE)
    first = f"  {check:<{_CHECK}}{state:<{_STATE}}"
    yield from textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
