"""What two notebooks share: data, networks, saliency maps and their evaluation."""

import os

# Two OpenMP threads that spin while they wait can be many times slower than one; read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
