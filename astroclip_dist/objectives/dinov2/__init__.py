"""The parts of DINOv2's objective (Oquab et al. 2023; AstroCLIP appendix A2): targets of the teacher, and losses."""
