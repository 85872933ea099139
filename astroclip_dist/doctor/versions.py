"""Python and the packages against what this project was made for."""

from __future__ import annotations

import platform
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from astroclip_dist import __version__
from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.findings import Finding, fine, problem

DISTRIBUTION = "astroclip-dist"
# Those whose versions people ask for; the others are named when they are wrong.
_SHOWN = ("torch", "ray", "mlflow", "deepspeed", "obstore")
_MEND = "pip install -c constraints.txt astroclip-dist, in the same environment on every machine."


def check_versions(context: Context) -> list[Finding]:
    """Everything that the distribution requires is there, in a version that it was written for."""
    about = metadata.metadata(DISTRIBUTION)
    python, wanted = platform.python_version(), about["Requires-Python"]
    findings = []
    if not SpecifierSet(wanted).contains(python, prereleases=True):
        findings.append(problem(f"Python {python}, but {wanted} is needed", "Use another Python.", python=python))
    found: dict[str, str] = {}
    for text in about.get_all("Requires-Dist") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found[requirement.name] = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            findings.append(problem(f"{requirement.name} is not installed", _MEND, package=requirement.name))
            continue
        # Without a build's own label: 2.14.1+cpu is 2.14.1.
        if not requirement.specifier.contains(found[requirement.name].split("+")[0], prereleases=True):
            findings.append(
                problem(
                    f"{requirement.name} {found[requirement.name]}, but {requirement.specifier} is needed",
                    _MEND,
                    package=requirement.name,
                    version=found[requirement.name],
                )
            )
    shown = {name: found[name] for name in _SHOWN if name in found}
    in_words = ", ".join(f"{name} {version}" for name, version in shown.items())
    findings.append(
        fine(f"astroclip {__version__}, Python {python}, {in_words}", astroclip=__version__, python=python, **shown)
    )
    return findings
