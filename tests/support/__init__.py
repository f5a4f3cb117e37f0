"""Helpers for tests of every layer; the fixtures are in tests/conftest.py."""
