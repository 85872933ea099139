"""A mock survey: galaxies whose image, spectrum and labels follow from one physical model (see docs/mock-survey.md)."""
