"""Jobs: runs and other long commands handed to a queue (this machine's, Ray's, Slurm's or Kubernetes's)."""
