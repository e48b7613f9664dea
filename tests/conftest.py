"""What tests of every kind share."""

import os

# Before anything imports torch: idle OpenMP threads that spin starve the processes under test on a small machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
