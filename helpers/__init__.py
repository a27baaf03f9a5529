"""What two notebooks share: data, networks, saliency maps and their evaluation."""

import os

# Threads that spin while they wait can be many times slower than one; read when torch and numpy are loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
