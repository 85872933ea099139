"""Which tokens a model has to predict: drawn from the sample's identity, never from a rank's state."""
