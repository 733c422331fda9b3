"""The system: backend and precision, several processes, files written aside, signals, fresh processes."""
