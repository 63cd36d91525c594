"""What every command runs on: devices, processes, signals, reporting. Importing it needs no torch."""
