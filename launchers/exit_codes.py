"""Exit codes of ``astroclip train`` and its workers beyond 0, 1, 2; apart, so that to read them takes no torch."""

from __future__ import annotations

# A crash that a restart may cure, told apart from an error of the user's (1, 2), which it cannot.
CRASHED = 70
# The state is saved: whoever asked the process to leave is to queue the job again.
PREEMPTED = 75
