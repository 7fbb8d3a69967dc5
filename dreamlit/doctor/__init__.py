"""`dreamlit doctor`: what this machine is, and whether a run's configuration will work on it."""
