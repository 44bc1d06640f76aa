"""Strategies that handle copies of an event once."""
