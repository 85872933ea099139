"""A Ray cluster."""

# Set to 1 by who starts a cluster for one run: nobody has to clean up in it after a controller that dies.
ENDS_WITH_RUN = "ASTROCLIP_RAY_ENDS_WITH_RUN"
