"""The parts of ActivationMonitor: one fit from hooks to loggers, figures and warnings."""
