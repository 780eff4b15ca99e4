"""A module that takes long to load, as one that imports a large package does."""

import time

began = time.process_time()
while time.process_time() < began + 0.5:
    pass
