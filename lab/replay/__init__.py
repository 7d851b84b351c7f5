"""Replay: every text is run once and recorded; any policy with any parameters is then evaluated exactly."""
