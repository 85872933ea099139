"""``astroclip doctor``: what this machine can do for a run, what is missing, and how to mend it.

A check is a function ``(Context) -> list[Finding]`` in its own file, and one line in ``checks.CHECKS``.
"""
